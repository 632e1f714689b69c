"""A photo placed anew among others whose cameras and depth are known, by its matches with them.

For photos that the adjustment to tracks did not reach, and, with a focal length of their own, for photos that the
alignment misplaced because nothing told that they have another zoom.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pycolmap

from mast3r_sfm.alignment import AlignedGroup
from mast3r_sfm.densify import dense_depth
from mast3r_sfm.geometry import project, rays, to_world
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
    error_px        median reprojection error of the known points, pixels of the original photo
    """

    cam_from_world: np.ndarray
    camera: CameraGroup
    depth_factor: float
    error_px: float


def resect(
    images: Sequence[View],
    data: PairwiseData,
    placed: AlignedGroup,
    index: int,
    known: Sequence[bool],
    camera: CameraGroup,
    own_focal: bool,
    subsample: int,
) -> tuple[Resection, float] | None:
    """Where the image `index` is by its matches with the known members of a group, and the median error, in pixels of
    the photo, of the same points with the camera that it has in the group; None if few matches agree.

    known      of every member of the group, whether its camera and depth can be relied on
    camera     intrinsics
    own_focal  the focal length is found as well; else it is that of `camera`
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
        in_camera = rays(at, K, float(placed.distortion[k])) * depth[row, column, None]
        points.append(to_world(in_camera, placed.cameras.world_from_cam[k].cpu().numpy()))
        pixels.append(own_xy.double().cpu().numpy())
    if not pixels:
        return None
    at, world = np.concatenate(pixels), np.concatenate(points)
    finite = np.isfinite(world).all(1)
    at, world = at[finite], world[finite]
    estimation = pycolmap.AbsolutePoseEstimationOptions()
    estimation.estimate_focal_length = own_focal
    estimation.ransac.max_error = _MAX_ERROR * max(camera.size)
    estimation.ransac.max_num_trials = _MAX_TRIALS
    estimation.ransac.random_seed = _SEED
    refinement = pycolmap.AbsolutePoseRefinementOptions()
    refinement.refine_focal_length = own_focal
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
    k = position_of[index]
    now = np.linalg.inv(placed.cameras.world_from_cam[k].cpu().numpy())
    transform = images[index].transform
    seen_at = transform.to_original(at)
    found_group = camera_group(found_camera)
    error_px = _median_error(world, seen_at, cam_from_world, found_group.K)
    before_px = _median_error(world, seen_at, now, transform.K_to_original(placed.cameras.K[k].cpu().numpy()))
    return Resection(cam_from_world, found_group, float(np.median(ratio)), error_px), before_px


def _median_error(world: np.ndarray, seen_at: np.ndarray, cam_from_world: np.ndarray, K: np.ndarray) -> float:
    pixels = project(world @ cam_from_world[:3, :3].T + cam_from_world[:3, 3], K)
    distance = np.linalg.norm(pixels - seen_at, axis=1)
    return float(np.median(np.where(np.isfinite(distance), distance, np.inf)))
