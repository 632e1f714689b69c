"""Depth maps for other programs: 16-bit PNG files, or OpenEXR files of 32-bit floats, in a folder with `depth.json`."""

from __future__ import annotations

import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from mast3r_sfm.export.depth_steps import depth_steps
from mast3r_sfm.export.extras import require_for
from mast3r_sfm.export.files import encode_png, write_json
from mast3r_sfm.export.folders import check_replaceable, replaced_folder
from mast3r_sfm.options import ExportFormat
from mast3r_sfm.types import ReconstructedScene, ReconstructedView

OWN_ENTRY = re.compile(r"depth_\d{3,}\.(png|exr)|depth\.json")

_UNIT = "metres (approximate)"
_UNIT_OF_GEOREFERENCED = "metres"
_MEANING = (
    "z-depth, the distance along the camera's z axis and not along the ray, at the pixels of the network's image: "
    "X_cam = depth * inverse(K_network) (x, y, 1) with pixel centres at integers, the distortion taken off first where "
    "there is one (see cameras.json). 0 where the depth is not known. Images that are not registered have depth of "
    "their own, in no common frame."
)


def write_png16(scene: ReconstructedScene, folder: Path) -> None:
    """Writes `depth_000.png` of every view, 16 bits, 0 where the depth is unknown, and `depth.json` with the scale.

    One step is a millimetre, or as much more as depth beyond 65 m needs; it is the same for all views.
    """
    steps = depth_steps([view.depth for view in scene.registered or scene.views])
    _write(
        scene,
        folder,
        "png",
        lambda depth, path: path.write_bytes(encode_png(steps.encoded(depth))),
        {"depth_of_one_step": steps.metres, "largest_depth": steps.largest},
    )


def write_exr(scene: ReconstructedScene, folder: Path) -> None:
    """Writes `depth_000.exr` of every view, one float32 channel `Z`, 0 where the depth is unknown, and `depth.json`.

    Raises InputError if the library is missing.
    """
    require_for(ExportFormat.EXR)
    import OpenEXR

    def write(depth: np.ndarray, path: Path) -> None:
        with np.errstate(invalid="ignore"):
            known = np.where(depth > 0, depth, 0).astype(np.float32)
        header = {"compression": OpenEXR.ZIP_COMPRESSION, "type": OpenEXR.scanlineimage}
        with OpenEXR.File(header, {"Z": np.ascontiguousarray(known)}) as file:
            file.write(str(path))

    _write(scene, folder, "exr", write, {"channel": "Z"})


def _write(
    scene: ReconstructedScene,
    folder: Path,
    suffix: str,
    write: Callable[[np.ndarray, Path], object],
    details: dict[str, Any],
) -> None:
    def entry(view: ReconstructedView) -> dict[str, Any]:
        name = f"depth_{view.index:03d}.{suffix}"
        write(view.depth, staging / name)
        return {
            "file": name,
            "photo": view.file_in_result,
            "registered": view.registered,
            "size": view.transform.network_size,
            "K_network": view.K,
            "distortion_k1": view.distortion,
        }

    folder = folder.resolve()
    with (
        replaced_folder(folder, lambda: check_replaceable(folder, OWN_ENTRY)) as staging,
        ThreadPoolExecutor(4) as pool,
    ):
        unit = _UNIT if scene.georeference is None else _UNIT_OF_GEOREFERENCED
        document = {"meaning": _MEANING, "unit": unit, **details, "images": list(pool.map(entry, scene.views))}
        write_json(staging / "depth.json", document)
