"""Points of the scene as one binary PLY file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from mast3r_sfm._version import __version__
from mast3r_sfm.export.points import scene_points
from mast3r_sfm.options import SceneOptions
from mast3r_sfm.types import ReconstructedScene

_XYZ, _NORMAL, _RGB = ("x", "y", "z"), ("nx", "ny", "nz"), ("red", "green", "blue")
_TYPE_NAMES = {"f": "float", "u": "uchar"}


def write_ply(scene: ReconstructedScene, path: Path, options: SceneOptions) -> None:
    """Writes the kept pixels of all registered views, at most `options.max_points` of them (a random subset).

    Each has its place and its unit normal in the world, which points to the side of the camera (0 0 0 where the surface
    around it is not known), the colour of the network's image, and the confidence of its depth.

    Raises EmptySceneError (an InputError) if no point is left; nothing is written then.
    """
    points = scene_points(scene, options)
    columns = {
        **dict(zip(_XYZ, points.xyz.T, strict=True)),
        **dict(zip(_NORMAL, points.normals.T, strict=True)),
        **dict(zip(_RGB, points.rgb.T, strict=True)),
        "confidence": points.confidence,
    }
    write_vertices(path, columns, "frame of cameras.json" if scene.georeference is None else "metres east, north, up")


def write_coloured_points(path: Path, xyz: np.ndarray, rgb: np.ndarray, frame: str) -> None:
    """Writes points (N, 3) with colours (N, 3) uint8 and nothing else, which every reader knows."""
    columns = {**dict(zip(_XYZ, xyz.T, strict=True)), **dict(zip(_RGB, rgb.T, strict=True))}
    write_vertices(path, columns, frame)


def write_vertices(path: Path, columns: Mapping[str, np.ndarray], frame: str) -> None:
    """Writes properties (N,) by name, those of uint8 as bytes and all others as float32; `frame` is a comment."""
    kinds = {name: "u1" if values.dtype == np.uint8 else "<f4" for name, values in columns.items()}
    table = np.zeros(len(next(iter(columns.values()))), dtype=list(kinds.items()))
    for name, values in columns.items():
        table[name] = values
    properties = [f"property {_TYPE_NAMES[table.dtype[name].kind]} {name}" for name in columns]
    header = ["ply", "format binary_little_endian 1.0", f"comment mast3r-sfm {__version__}, {frame}"]
    header += [f"element vertex {len(table)}", *properties, "end_header"]
    path.write_bytes("\n".join(header).encode("ascii") + b"\n" + table.tobytes())
