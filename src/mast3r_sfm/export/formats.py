"""The formats that a result can be written in, by name. A new one is a function here and a module beside this one."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from mast3r_sfm.errors import InputError
from mast3r_sfm.export import colmap, deep_depth, nerfstudio, realityscan
from mast3r_sfm.export.cameras import write_cameras
from mast3r_sfm.export.colmap import write_colmap
from mast3r_sfm.export.deep_depth import write_exr, write_png16
from mast3r_sfm.export.depth import write_depth_maps
from mast3r_sfm.export.extras import require_for
from mast3r_sfm.export.georeference import in_metres
from mast3r_sfm.export.glb import write_glb
from mast3r_sfm.export.matches import write_matches
from mast3r_sfm.export.nerfstudio import write_nerfstudio
from mast3r_sfm.export.ply import write_ply
from mast3r_sfm.export.point_clouds import write_e57, write_las
from mast3r_sfm.export.realityscan import write_realityscan
from mast3r_sfm.export.report import write_report
from mast3r_sfm.export.usdz import write_usdz
from mast3r_sfm.options import ExportFormat, PhotoOptions, SceneOptions
from mast3r_sfm.types import ReconstructedScene

Exporter = Callable[[ReconstructedScene, Path, SceneOptions, PhotoOptions, Mapping[str, Any]], object]
"""Writes a scene to a file, or for formats of several files (depth, colmap) into a folder. The last argument is what
`run.json` says of how the result came about, as far as it is known. Raises InputError."""


def _metric(write: Exporter) -> Exporter:
    """The same for the scene in metres east, north and up, where it is georeferenced."""
    return lambda scene, path, options, photos, run: write(in_metres(scene), path, options, photos, run)


EXPORTERS: Mapping[str, Exporter] = {
    "glb": lambda scene, path, options, *_: write_glb(scene, path, options),
    "cameras": lambda scene, path, options, *_: write_cameras(scene, path, options),
    "depth": lambda scene, folder, *_: _write_depth(scene, folder),
    "matches": lambda scene, path, *_: write_matches(scene, path),
    "colmap": _metric(lambda scene, folder, _, photos, *__: write_colmap(scene, folder, photos)),
    "nerfstudio": _metric(lambda scene, folder, options, photos, _: write_nerfstudio(scene, folder, options, photos)),
    "realityscan": _metric(lambda scene, folder, options, photos, _: write_realityscan(scene, folder, options, photos)),
    "ply": _metric(lambda scene, path, options, *_: write_ply(scene, path, options)),
    "las": lambda scene, path, options, *_: write_las(scene, path, options),
    "e57": _metric(lambda scene, path, options, *_: write_e57(scene, path, options)),
    "usdz": lambda scene, path, options, *_: write_usdz(scene, path, options),
    "png16": _metric(lambda scene, folder, *_: write_png16(scene, folder)),
    "exr": _metric(lambda scene, folder, *_: write_exr(scene, folder)),
    "report": lambda scene, path, options, _, run: write_report(scene, path, options, run),
}

OWN_ENTRIES: Mapping[ExportFormat, re.Pattern[str]] = {
    ExportFormat.COLMAP: colmap.OWN_ENTRY,
    ExportFormat.NERFSTUDIO: nerfstudio.OWN_ENTRY,
    ExportFormat.REALITYSCAN: realityscan.OWN_ENTRY,
    ExportFormat.PNG16: deep_depth.OWN_ENTRY,
    ExportFormat.EXR: deep_depth.OWN_ENTRY,
}
"""What a format that is a folder writes there: paths relative to it."""


def check_extras(kinds: Iterable[str]) -> None:
    """Raises InputError that says how to install what one of the formats needs, if it is not there."""
    for kind in kinds:
        require_for(kind)


def _write_depth(scene: ReconstructedScene, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    write_depth_maps(scene, folder)


def exporter_of(kind: str) -> Exporter:
    """Raises InputError that lists the formats, or that says how to install what this one needs."""
    if kind not in EXPORTERS:
        raise InputError(f"`kind` {kind!r}: unknown; allowed: {', '.join(EXPORTERS)}")
    require_for(kind)
    return EXPORTERS[kind]
