"""Refined cameras as a stage: features of the photos, cameras that photos share, and what follows for the depth."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence

import numpy as np

from mast3r_sfm.errors import InputError
from mast3r_sfm.graphs import number_by_first
from mast3r_sfm.images.loading import read_grey
from mast3r_sfm.options import RefinementOptions
from mast3r_sfm.progress import Advance
from mast3r_sfm.tracks import LocalFeatures, RefinedCameras, TrackView, extract_features, refine_cameras
from mast3r_sfm.tracks.bundle import CameraGroup
from mast3r_sfm.tracks.refinement import NUM_STEPS as NUM_STEPS
from mast3r_sfm.types import ReconstructedView, View

logger = logging.getLogger(__name__)


def refine_views(
    images: Sequence[View],
    views: Sequence[ReconstructedView],
    pairs: Sequence[tuple[int, int]],
    options: RefinementOptions,
    camera_of: Sequence[int],
    advance: Advance | None = None,
) -> tuple[ReconstructedView, ...]:
    """The views with cameras adjusted to tracks of local features; those without enough tracks stay as they are.

    pairs      of indices into `views`
    camera_of  group of every image (`camera_groups`): its photos of one size share a camera

    The depth maps stay as predicted but for their scale, which follows the tracks. Lengths stay those of the network.
    """
    registered = [view for view in views if view.registered]
    position_of = {view.index: k for k, view in enumerate(registered)}
    group_of = number_by_first([(camera_of[view.index], view.transform.original_size) for view in registered])
    used_groups = range(max(group_of) + 1)
    inputs = []
    for view, group in zip(registered, group_of, strict=True):
        found = _features_of(images[view.index], options)
        inputs.append(TrackView(found, depth_at(view, found.xy), np.linalg.inv(view.world_from_cam), group))
        if advance is not None:
            advance(1)
    groups = [_start(registered, group_of, group) for group in used_groups]
    own_pairs = [(position_of[i], position_of[j]) for i, j in pairs if i in position_of and j in position_of]
    refined = refine_cameras(inputs, groups, own_pairs, advance) if len(registered) > 1 else None
    if refined is None or not refined.refined.all():
        kept = [view for k, view in enumerate(registered) if refined is None or not refined.refined[k]]
        names = ", ".join(images[view.index].path.name for view in kept[:10]) + (", ..." if len(kept) > 10 else "")
        logger.warning("%d of %d cameras stay as aligned, for lack of features: %s", len(kept), len(registered), names)
    if refined is None:
        return tuple(views)
    poses = np.linalg.inv(refined.cam_from_world)
    poses = np.linalg.inv(poses[0]) @ poses  # the first camera is the origin
    adjusted = {view.index: _adjusted(view, poses[k], refined, k, inputs[k]) for k, view in enumerate(registered)}
    return tuple(adjusted.get(view.index, view) for view in views)


def depth_at(view: ReconstructedView, xy: np.ndarray) -> np.ndarray:
    """(N,) z-depth at pixels (N, 2) of the original photo, nan outside of the network's image or without a depth."""
    H, W = view.depth.shape
    pixel = np.rint(view.transform.to_network(xy)).astype(int)
    inside = ((pixel >= 0) & (pixel < [W, H])).all(1)
    column, row = np.clip(pixel, 0, [W - 1, H - 1]).T
    depth = view.depth[row, column].astype(np.float64)
    return np.where(inside & np.isfinite(depth) & (depth > 0), depth, np.nan)


def _features_of(image: View, options: RefinementOptions) -> LocalFeatures:
    """Features of the photo; none, with a warning, if its file is gone or has changed its size since it was loaded."""
    try:
        grey, mask = read_grey(image.path)
    except InputError as error:
        logger.warning("%s; its camera stays as aligned", error)
        return LocalFeatures.none()
    if (grey.shape[1], grey.shape[0]) != image.transform.original_size:
        logger.warning("%s: has changed since it was loaded; its camera stays as aligned", image.path)
        return LocalFeatures.none()
    return extract_features(grey, options.max_feature_size, options.max_features, mask)


def _start(views: Sequence[ReconstructedView], group_of: Sequence[int], group: int) -> CameraGroup:
    """The camera that a group starts with: the median of its focal lengths, the principal point in the middle."""
    members = [view for view, own in zip(views, group_of, strict=True) if own == group]
    width, height = members[0].transform.original_size
    focal = float(np.median([view.K_original[0, 0] for view in members]))
    return CameraGroup((width, height), focal, ((width - 1) / 2, (height - 1) / 2))


def _adjusted(
    view: ReconstructedView, world_from_cam: np.ndarray, refined: RefinedCameras, k: int, before: TrackView
) -> ReconstructedView:
    if not refined.refined[k]:
        return dataclasses.replace(view, world_from_cam=world_from_cam)
    group = refined.groups[before.group]
    K = np.array(
        [[group.focal_px, 0, group.principal_point[0]], [0, group.focal_px, group.principal_point[1]], [0, 0, 1]]
    )
    with np.errstate(invalid="ignore"):
        ratio = refined.track_depths[k] / before.depths
    ratio = ratio[np.isfinite(ratio)]
    scale = float(np.median(ratio)) if len(ratio) else 1.0
    return dataclasses.replace(
        view,
        K=view.transform.K_to_network(K),
        world_from_cam=world_from_cam,
        depth=(view.depth * scale).astype(np.float32),
        distortion=group.distortion,
        refined=True,
        num_track_observations=int(refined.num_observations[k]),
        track_error_px=float(refined.median_error_px[k]),
    )
