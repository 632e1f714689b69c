"""What the page says in words and numbers. Positions are in the axes of `scene.glb`: y up, lengths as in the result."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mast3r_sfm._version import __version__
from mast3r_sfm.export.cameras import verdict_entry
from mast3r_sfm.export.frusta import default_camera_size, frustum_corners
from mast3r_sfm.export.orientation import SceneFrame
from mast3r_sfm.export.report.points import PointCloud
from mast3r_sfm.export.surface import kept_pixels
from mast3r_sfm.options import SceneOptions
from mast3r_sfm.quality import doubts
from mast3r_sfm.types import ReconstructedScene, ReconstructedView, Verdict

MAX_PAIRS = 40_000
"""Pairs in the matrix, those with the most matches: all pairs of 283 photos."""

MAX_WARNINGS = 200

_SIGNIFICANT = 7
"""Digits of numbers on the page; more would be longer, and tell nothing."""


def report_document(
    scene: ReconstructedScene,
    options: SceneOptions,
    run: Mapping[str, Any],
    cloud: PointCloud | None,
) -> dict[str, Any]:
    """What the page shows besides points and pictures, as values for JSON.

    run    content of `run.json`; what it lacks, the page leaves out
    cloud  the points of the page; None if no view is registered
    """
    found = doubts(scene.views)
    warnings = [str(warning) for warning in run.get("warnings") or ()]
    return _rounded(
        {
            "tool": f"mast3r-sfm {__version__}",
            "verdict": verdict_entry(None if scene.verdict is None else scene.verdict.overall),
            "views": [
                _view_entry(view, options, cloud, found.get(view.index), own)
                for view, own in zip(scene.views, scene.verdicts, strict=True)
            ],
            "camera_size": None if cloud is None else _camera_size(cloud),
            "up_from": None if cloud is None else cloud.frame.up_from,
            "confidence": None if cloud is None else [cloud.confidence.low, cloud.confidence.high],
            "kept_points": 0 if cloud is None else sum(int(np.count_nonzero(one.kept)) for one in cloud.placed),
            "pairs": _pairs(scene, run),
            "groups": run.get("groups") or [],
            "settings": {
                "Run": _flat(run.get("options")),
                "Scene": _flat(vars(options)),
                "Model": _flat(run.get("model")),
                "Versions": _flat(run.get("versions")),
            },
            "seconds": run.get("seconds") or {},
            "warnings": warnings[:MAX_WARNINGS],
            "warnings_left_out": max(0, len(warnings) - MAX_WARNINGS),
        }
    )


def _view_entry(
    view: ReconstructedView,
    options: SceneOptions,
    cloud: PointCloud | None,
    doubt: str | None,
    verdict: Verdict | None,
) -> dict[str, Any]:
    width, height = view.transform.original_size
    K = view.K_original
    return {
        "index": view.index,
        "name": Path(view.file).name,
        "size": [width, height],
        "picture_size": [view.depth.shape[1], view.depth.shape[0]],
        "registered": view.registered,
        "refined": view.refined,
        "focal_px": float(K[0, 0]),
        "focal_std_px": view.focal_std_px,
        "principal_point_px": [float(K[0, 2]), float(K[1, 2])],
        "distortion_k1": view.distortion,
        "position_std": view.position_std,
        "median_reprojection_error_px": view.median_reprojection_error_px,
        "track_error_px": view.track_error_px,
        "num_track_observations": view.num_track_observations,
        "num_matches": view.num_matches,
        "mean_confidence": view.mean_confidence,
        "share_kept": float(np.mean(kept_pixels(view, options.threshold, options.clean_depth))),
        "doubt": doubt,
        "verdict": verdict_entry(verdict),
        "camera": None if cloud is None or not view.registered else _camera(view, cloud.frame),
    }


def _camera(view: ReconstructedView, frame: SceneFrame) -> dict[str, Any]:
    """Where the camera stands, the corners of its picture at a depth of 1, and its angle of view."""
    pose = frame.gltf_from_world @ view.world_from_cam
    H, W = view.depth.shape
    # the size is the height at the depth of f size / H
    corners = frustum_corners(view.K, (H, W), H / view.K[1, 1])
    return {
        "centre": pose[:3, 3],
        "right": pose[:3, 0],
        "down": pose[:3, 1],
        "forward": pose[:3, 2],
        "corners": corners @ pose[:3, :3].T,
        "height_at_1": H / view.K[1, 1],
        "width_at_1": W / view.K[0, 0],
    }


def _camera_size(cloud: PointCloud) -> float:
    """Depth of the base of the drawn cameras."""
    depths = np.concatenate([one.view.depth[one.kept][::16] for one in cloud.placed])
    centres = np.stack([one.centre for one in cloud.placed])
    return default_camera_size(centres, float(np.median(depths)) if len(depths) else 1.0)


def _pairs(scene: ReconstructedScene, run: Mapping[str, Any]) -> dict[str, Any]:
    """Of every pair: the photos, matches found, confirmed, and those that entered the alignment; as columns.

    A result without its history knows the last alone.
    """
    rows: dict[tuple[int, int], list[int | None]] = {}
    for pair in run.get("pairs") or ():
        rows[pair["i"], pair["j"]] = [pair["num_matches"], pair["num_verified"], pair.get("num_features"), 0]
    for match in scene.matches:
        rows.setdefault((match.i, match.j), [None, None, None, 0])[3] = len(match)
    ranked = sorted(rows.items(), key=lambda item: (-(item[1][3] or 0), -(item[1][0] or 0), item[0]))
    shown = sorted(ranked[:MAX_PAIRS])
    names = ("found", "confirmed", "features", "used")
    columns: dict[str, Any] = {name: [row[k] for _, row in shown] for k, name in enumerate(names)}
    return {
        "i": [i for (i, _), _ in shown],
        "j": [j for (_, j), _ in shown],
        **columns,
        "num_all": len(rows),
        "num_used": sum(bool(row[3]) for row in rows.values()),
    }


def _flat(values: Any, lead: str = "") -> dict[str, str]:
    """Nested settings as text by dotted names."""
    if not isinstance(values, Mapping):
        return {}
    flat: dict[str, str] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{lead}{name}.")
        elif isinstance(value, list | tuple):
            flat[lead + str(name)] = ", ".join(map(str, value)) or "none"
        else:
            flat[lead + str(name)] = "none" if value is None else str(value)
    return flat


def _rounded(value: Any) -> Any:
    """The same with floats of a few digits."""
    if isinstance(value, np.ndarray | np.generic):
        return _rounded(value.tolist())
    if isinstance(value, float):
        return float(f"{value:.{_SIGNIFICANT}g}")
    if isinstance(value, dict):
        return {name: _rounded(item) for name, item in value.items()}
    return [_rounded(item) for item in value] if isinstance(value, list | tuple) else value
