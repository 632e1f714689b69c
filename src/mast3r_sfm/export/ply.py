"""The points of the scene as one binary PLY file, in the frame of `cameras.json`."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mast3r_sfm._version import __version__
from mast3r_sfm.errors import EmptySceneError
from mast3r_sfm.export.surface import chosen_pixels, placed_views
from mast3r_sfm.options import SceneOptions
from mast3r_sfm.types import ReconstructedScene

_POINT = np.dtype(
    [(name, "<f4") for name in ("x", "y", "z", "nx", "ny", "nz")]
    + [(name, "u1") for name in ("red", "green", "blue")]
    + [("confidence", "<f4")]
)
_NAMES = _POINT.names or ()
_TYPE_NAMES = {"f": "float", "u": "uchar"}


def write_ply(scene: ReconstructedScene, path: Path, options: SceneOptions) -> None:
    """Writes the kept pixels of all registered views, at most `options.max_points` of them (a random subset).

    Each has its place and its unit normal in the world, which points to the side of the camera (0 0 0 where the surface
    around it is not known), the colour of the network's image, and the confidence of its depth.

    Raises EmptySceneError (an InputError) if no point is left; nothing is written then.
    """
    placed = placed_views(scene.registered, options)
    if not any(one.kept.any() for one in placed):
        raise EmptySceneError(f"`min_conf_thr={options.threshold:g}` keeps no point", None)
    parts = []
    for one, pixels in zip(placed, chosen_pixels(placed, options.max_points), strict=True):
        part = np.zeros(len(pixels), dtype=_POINT)
        values = [
            *one.points.reshape(-1, 3)[pixels].T,
            *np.nan_to_num(one.normals.reshape(-1, 3)[pixels]).T,
            *one.view.rgb.reshape(-1, 3)[pixels].T,
            one.view.conf.reshape(-1)[pixels],
        ]
        for name, column in zip(_NAMES, values, strict=True):
            part[name] = column
        parts.append(part)
    points = np.concatenate(parts)
    properties = [f"property {_TYPE_NAMES[_POINT[name].kind]} {name}" for name in _NAMES]
    header = ["ply", "format binary_little_endian 1.0", f"comment mast3r-sfm {__version__}, frame of cameras.json"]
    header += [f"element vertex {len(points)}", *properties, "end_header"]
    path.write_bytes("\n".join(header).encode("ascii") + b"\n" + points.tobytes())
