"""What follows from refined cameras for the views: intrinsics, depth of the anchors, tracks in the scene."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from mast3r_sfm.alignment import AlignedGroup
from mast3r_sfm.alignment.anchors import FixedCamera, Sightings, errors_of, match_sides, solve_anchors
from mast3r_sfm.alignment.solver import AlignmentResult
from mast3r_sfm.densify import dense_depth
from mast3r_sfm.geometry import to_world
from mast3r_sfm.pairwise import PairwiseData
from mast3r_sfm.tracks import CameraGroup, LocalFeatures, RefinedCameras
from mast3r_sfm.types import CanonicalView, Refinement, Tracks, View


@dataclass(frozen=True)
class Start:
    """Cameras to begin the refinement with.

    members         indices of the images, ascending
    cam_from_world  (m, 4, 4), lengths in metres as the network sees them
    K               (m, 3, 3) network pixels: what a member keeps that is not refined
    groups, group_of   intrinsics, and the number of those of every member
    anchors         m tensors (rows, columns): depth of the anchors in this scene
    mapped          by local features alone, not by the alignment
    """

    members: tuple[int, ...]
    cam_from_world: np.ndarray
    K: np.ndarray
    groups: tuple[CameraGroup, ...]
    group_of: tuple[int, ...]
    anchors: tuple[torch.Tensor, ...]
    mapped: bool = False


@dataclass(frozen=True)
class Candidate:
    """A start, what the refinement made of it (None: too few tracks), and the number of matches that explains.

    features  of every member: those that the tracks are made of
    """

    start: Start
    features: tuple[LocalFeatures, ...]
    refined: RefinedCameras | None
    num_explained: int


def depth_at(
    image: View, canonical: CanonicalView, anchors: torch.Tensor, focal_px: float, xy: np.ndarray, subsample: int
) -> np.ndarray:
    """(N,) z-depth at pixels (N, 2) of a photo, nan outside of the network's image or without a depth.

    focal_px  of the network's image
    """
    depth = dense_depth(canonical, anchors, focal_px, subsample).cpu().numpy()
    H, W = depth.shape
    pixel = np.rint(image.transform.to_network(xy)).astype(int)
    inside = ((pixel >= 0) & (pixel < [W, H])).all(1)
    column, row = np.clip(pixel, 0, [W - 1, H - 1]).T
    found = depth[row, column].astype(np.float64)
    return np.where(inside & np.isfinite(found) & (found > 0), found, np.nan)


def place_views(images: Sequence[View], data: PairwiseData, best: Candidate, subsample: int) -> AlignedGroup:
    """The members of a start with refined cameras, and with the depth that these, the matches and the tracks give.

    Members that are not refined keep the cameras of the start.
    """
    start, refined = best.start, best.refined
    members = start.members
    n = len(members)
    is_refined = np.zeros(n, dtype=bool) if refined is None else refined.refined
    cam_from_world = start.cam_from_world if refined is None else refined.cam_from_world
    K, distortion = start.K.copy(), np.zeros(n)
    for k in np.flatnonzero(is_refined).tolist():
        assert refined is not None
        group = refined.groups[refined.group_of[k]]
        K[k], distortion[k] = images[members[k]].transform.K_to_network(group.K), group.distortion
    world_from_cam = cam_from_world[0] @ np.linalg.inv(cam_from_world)  # the first camera is the origin of the result
    views = {index: data.usable(index).in_main_memory() for index in members}
    cameras = {index: FixedCamera(K[k], float(distortion[k]), world_from_cam[k]) for k, index in enumerate(members)}
    matches = tuple(m for m in data.correspondences if m.i in views and m.j in views)
    sides = match_sides(views, cameras, matches, subsample)
    anchors, errors_px = [], np.full(n, np.nan)
    for k, index in enumerate(members):
        known = None
        depths = start.anchors[k].cpu().numpy()
        if refined is not None and is_refined[k]:
            known = _tracked(
                images[index], views[index], cameras[index], best.features[k], refined.track_depths[k], subsample
            )
            if len(known[1]):
                sightings, at = known
                depths = depths * float(np.median(at / (depths.ravel()[sightings.anchor] * sightings.factor)))
        solved = solve_anchors(depths, sides.get(index), known)
        errors = errors_of(solved, sides.get(index))
        anchors.append(torch.from_numpy(solved).to(start.anchors[k].device))
        errors_px[k] = np.median(errors) if len(errors) else np.nan
    no_losses = torch.zeros(0)
    return AlignedGroup(
        group=members,
        cameras=AlignmentResult(
            torch.from_numpy(K), torch.from_numpy(world_from_cam), tuple(anchors), no_losses, no_losses
        ),
        errors_px=torch.from_numpy(errors_px),
        matches=matches,
        refinement=None
        if refined is None
        else _refinement(best.features, start, refined, distortion, cam_from_world[0]),
    )


def _tracked(
    image: View,
    canonical: CanonicalView,
    camera: FixedCamera,
    features: LocalFeatures,
    depths: np.ndarray,
    subsample: int,
) -> tuple[Sightings, np.ndarray]:
    """The features of a view that belong to points, as pixels of the network's image, and the z-depth of those."""
    xy = image.transform.to_network(features.xy)
    inside = ((xy > -0.5) & (xy < np.array(image.transform.network_size) - 0.5)).all(1)
    known = inside & np.isfinite(depths) & (depths > 0)
    return Sightings.of(canonical, torch.from_numpy(xy[known]), camera, subsample), depths[known]


def _refinement(
    features: Sequence[LocalFeatures],
    start: Start,
    refined: RefinedCameras,
    distortion: np.ndarray,
    world_from_old: np.ndarray,
) -> Refinement:
    """The record of the refinement; observations of views that are not refined are left out of the tracks.

    world_from_old  (4, 4) from the frame of the refinement into that of the result
    """
    members = np.array(start.members)
    kept = refined.refined[refined.view_of]
    point_of, view_of, feature_of = refined.point_of[kept], refined.view_of[kept], refined.feature_of[kept]
    xy, colours = np.zeros((len(view_of), 2)), np.zeros((len(view_of), 3))
    for k, one in enumerate(features):
        own = view_of == k
        xy[own], colours[own] = one.xy[feature_of[own]], one.colours[feature_of[own]]
    errors = refined.errors_px[kept]
    used = np.flatnonzero(np.bincount(point_of, minlength=len(refined.points)) >= 2)
    number = np.full(len(refined.points), -1)
    number[used] = np.arange(len(used))
    kept = number[point_of] >= 0
    point_of = number[point_of[kept]]
    lengths = np.maximum(np.bincount(point_of, minlength=len(used)), 1)
    mean_colour = np.stack([np.bincount(point_of, colours[kept, c], len(used)) / lengths for c in range(3)], axis=1)
    group_of = np.array(refined.group_of)
    return Refinement(
        refined=refined.refined,
        distortion=distortion,
        num_observations=refined.num_observations,
        errors_px=refined.median_error_px,
        focal_std_px=refined.focal_std_px[group_of],
        position_std=refined.position_std,
        tracks=Tracks(
            points=to_world(refined.points[used], world_from_old),
            colours=np.rint(mean_colour).astype(np.uint8),
            errors_px=(np.bincount(point_of, errors[kept], len(used)) / lengths).astype(np.float32),
            point_of=point_of,
            view_of=members[view_of[kept]],
            xy=xy[kept],
        ),
    )
