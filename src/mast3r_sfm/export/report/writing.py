"""The report as one file, below a size that can be sent by mail whatever the number of photos."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mast3r_sfm.export.orientation import ShownScene
from mast3r_sfm.export.report.document import report_document
from mast3r_sfm.export.report.page import base64_text, embeddable_json, page
from mast3r_sfm.export.report.pictures import small_pictures
from mast3r_sfm.export.report.points import BYTES_PER_POINT, PointCloud
from mast3r_sfm.options import SceneOptions
from mast3r_sfm.types import ReconstructedScene

MAX_BYTES = 15_000_000
MAX_POINTS = 500_000
"""Drawn without effort by a telephone."""

_POLICY = "img-src data:"
_PICTURES_BYTES = 6_000_000
_BYTES_PER_CHUNK = 300
"""What a chunk takes besides its points."""


def write_report(
    scene: ReconstructedScene,
    path: Path,
    options: SceneOptions,
    run: Mapping[str, Any],
    shown: ShownScene | None = None,
) -> None:
    """Writes `report.html`: what `scene.glb` shows with `options`, as points, and what is known of every photo.

    run    content of `run.json`; what it lacks, the page leaves out
    shown  what `scene.glb` shows, if known
    """
    cloud = PointCloud.of_scene(scene, options, shown)
    document = report_document(scene, options, run, cloud)
    pictures = small_pictures(scene, _PICTURES_BYTES)
    blocks = {"pictures": embeddable_json(pictures)}
    taken = len(page(document, blocks, _POLICY))
    if cloud is not None:
        room = MAX_BYTES - taken - _BYTES_PER_CHUNK * len(cloud.placed)
        cloud = cloud.thinned(min(MAX_POINTS, max(0, room * 3 // (4 * BYTES_PER_POINT))))
        chunks = [cloud.chunk(position) for position in range(len(cloud.placed))]
        blocks |= {f"points-{number}": base64_text(chunk.data) for number, chunk in enumerate(chunks)}
        blocks["chunks"] = embeddable_json([chunk.described() for chunk in chunks])
    path.write_bytes(page(document, blocks, _POLICY))
