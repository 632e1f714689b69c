"""The points of the scene as arrays: what PLY, LAS and E57 files hold."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mast3r_sfm.errors import EmptySceneError
from mast3r_sfm.export.surface import chosen_pixels, placed_views
from mast3r_sfm.options import SceneOptions
from mast3r_sfm.types import ReconstructedScene


@dataclass(frozen=True)
class ScenePoints:
    """Points of the scene, in the frame of its cameras.

    xyz         (N, 3) float32
    normals     (N, 3) float32 unit normals on the side of the camera, 0 0 0 where the surface around is not known
    rgb         (N, 3) uint8, of the network's image
    confidence  (N,) float32 of the depth
    """

    xyz: np.ndarray
    normals: np.ndarray
    rgb: np.ndarray
    confidence: np.ndarray


def scene_points(scene: ReconstructedScene, options: SceneOptions, max_points: int | None = None) -> ScenePoints:
    """The kept pixels of all registered views, or a random subset of at most `max_points` (None: `options`' budget).

    Raises EmptySceneError (an InputError) if no point is left.
    """
    placed = placed_views(scene.registered, options)
    if not any(one.kept.any() for one in placed):
        raise EmptySceneError(f"`min_conf_thr={options.threshold:g}` keeps no point", None)
    chosen = chosen_pixels(placed, options.max_points if max_points is None else max_points)
    pairs = list(zip(placed, chosen, strict=True))
    return ScenePoints(
        xyz=np.concatenate([one.points.reshape(-1, 3)[pixels] for one, pixels in pairs]),
        normals=np.concatenate([np.nan_to_num(one.normals.reshape(-1, 3)[pixels]) for one, pixels in pairs]),
        rgb=np.concatenate([one.view.rgb.reshape(-1, 3)[pixels] for one, pixels in pairs]),
        confidence=np.concatenate([one.view.conf.reshape(-1)[pixels] for one, pixels in pairs]),
    )
