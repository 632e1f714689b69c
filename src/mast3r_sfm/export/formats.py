"""The formats that a result can be written in, by name. A new one is a function here and a module beside this one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mast3r_sfm.errors import InputError
from mast3r_sfm.export.cameras import write_cameras
from mast3r_sfm.export.colmap import write_colmap
from mast3r_sfm.export.depth import write_depth_maps
from mast3r_sfm.export.glb import write_glb
from mast3r_sfm.export.matches import write_matches
from mast3r_sfm.export.ply import write_ply
from mast3r_sfm.export.report import write_report
from mast3r_sfm.export.usdz import write_usdz
from mast3r_sfm.options import PhotoOptions, SceneOptions
from mast3r_sfm.types import ReconstructedScene

Exporter = Callable[[ReconstructedScene, Path, SceneOptions, PhotoOptions, Mapping[str, Any]], object]
"""Writes a scene to a file, or for formats of several files (depth, colmap) into a folder. The last argument is what
`run.json` says of how the result came about, as far as it is known. Raises InputError."""

EXPORTERS: Mapping[str, Exporter] = {
    "glb": lambda scene, path, options, *_: write_glb(scene, path, options),
    "cameras": lambda scene, path, options, *_: write_cameras(scene, path, options),
    "depth": lambda scene, folder, *_: _write_depth(scene, folder),
    "matches": lambda scene, path, *_: write_matches(scene, path),
    "colmap": lambda scene, folder, _, photos, *__: write_colmap(scene, folder, photos),
    "ply": lambda scene, path, options, *_: write_ply(scene, path, options),
    "usdz": lambda scene, path, options, *_: write_usdz(scene, path, options),
    "report": lambda scene, path, options, _, run: write_report(scene, path, options, run),
}


def _write_depth(scene: ReconstructedScene, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    write_depth_maps(scene, folder)


def exporter_of(kind: str) -> Exporter:
    """Raises InputError that lists the formats."""
    if kind not in EXPORTERS:
        raise InputError(f"`kind` {kind!r}: unknown; allowed: {', '.join(EXPORTERS)}")
    return EXPORTERS[kind]
