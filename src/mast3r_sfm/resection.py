"""A photo placed anew among others whose cameras and depth are known, with a focal length of its own.

For photos that the alignment misplaced: with the wrong zoom, for example, because nothing told that they have another.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pycolmap

from mast3r_sfm.alignment import AlignedGroup
from mast3r_sfm.densify import dense_depth
from mast3r_sfm.geometry import rays, to_world
from mast3r_sfm.pairwise import PairwiseData
from mast3r_sfm.tracks import CameraGroup, camera_group, colmap_camera
from mast3r_sfm.types import View

_MAX_ERROR = 0.012  # of a match that counts, as a share of the long edge of the photo
_MIN_INLIERS = 50
_MIN_SHARE = 0.3  # of the matches
_MAX_TRIALS = 2000
_SEED = 0


@dataclass(frozen=True)
class Resection:
    """Where a photo is.

    cam_from_world  (4, 4)
    camera          its intrinsics
    depth_factor    by which its predicted depth is to be multiplied
    """

    cam_from_world: np.ndarray
    camera: CameraGroup
    depth_factor: float


def resect(
    images: Sequence[View],
    data: PairwiseData,
    placed: AlignedGroup,
    index: int,
    known: Sequence[bool],
    camera: CameraGroup,
    subsample: int,
) -> Resection | None:
    """Pose and focal length of the image `index` by its matches with the known members of a group; None if few agree.

    known   of every member of the group, whether its camera and depth can be relied on
    camera  intrinsics to begin with
    """
    position_of = {member: k for k, member in enumerate(placed.group)}
    pixels, points = [], []
    for m in placed.matches:
        if index not in (m.i, m.j):
            continue
        other, own_xy, other_xy = (m.j, m.xy_i, m.xy_j) if m.i == index else (m.i, m.xy_j, m.xy_i)
        k = position_of[other]
        if not known[k]:
            continue
        K = placed.cameras.K[k].cpu().numpy()
        depth = dense_depth(data.usable(other), placed.cameras.core_depths[k], float(K[0, 0]), subsample).cpu().numpy()
        at = other_xy.double().cpu().numpy()
        column, row = np.rint(at).astype(int).T
        k1 = 0.0 if placed.refinement is None else float(placed.refinement.distortion[k])
        in_camera = rays(at, K, k1) * depth[row, column, None]
        points.append(to_world(in_camera, placed.cameras.world_from_cam[k].cpu().numpy()))
        pixels.append(own_xy.double().cpu().numpy())
    if not pixels:
        return None
    at, world = np.concatenate(pixels), np.concatenate(points)
    finite = np.isfinite(world).all(1)
    at, world = at[finite], world[finite]
    estimation = pycolmap.AbsolutePoseEstimationOptions()
    estimation.estimate_focal_length = True
    estimation.ransac.max_error = _MAX_ERROR * max(camera.size)
    estimation.ransac.max_num_trials = _MAX_TRIALS
    estimation.ransac.random_seed = _SEED
    refinement = pycolmap.AbsolutePoseRefinementOptions()
    refinement.refine_focal_length = True
    found_camera = colmap_camera(camera, 1)
    found = pycolmap.estimate_and_refine_absolute_pose(
        images[index].transform.to_original(at) + 0.5, world, found_camera, estimation, refinement
    )
    if found is None or found["num_inliers"] < max(_MIN_INLIERS, _MIN_SHARE * len(at)):
        return None
    cam_from_world = np.eye(4)
    cam_from_world[:3] = found["cam_from_world"].matrix()
    inlier = np.asarray(found["inlier_mask"])
    own = placed.cameras.core_depths[position_of[index]]
    focal = images[index].transform.K_to_network(camera_group(found_camera).K)[0, 0]
    predicted = dense_depth(data.usable(index), own, float(focal), subsample).cpu().numpy()
    column, row = np.rint(at[inlier]).astype(int).T
    depth = world[inlier] @ cam_from_world[2, :3] + cam_from_world[2, 3]
    ratio = depth / predicted[row, column]
    ratio = ratio[np.isfinite(ratio) & (ratio > 0)]
    if not len(ratio):
        return None
    return Resection(cam_from_world, camera_group(found_camera), float(np.median(ratio)))
