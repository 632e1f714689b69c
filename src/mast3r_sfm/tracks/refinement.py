"""The refinement of cameras: features, guided matches, tracks and bundle adjustment in rounds, from loose to tight."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pycolmap
from scipy.spatial import cKDTree

from mast3r_sfm.geometry import rotation_angles_deg, similarity_transform
from mast3r_sfm.progress import Advance
from mast3r_sfm.tracks.adjusted import MIN_OBSERVATIONS, AdjustedTracks
from mast3r_sfm.tracks.bundle import Bundle
from mast3r_sfm.tracks.cameras import CameraGroup, free_intrinsics
from mast3r_sfm.tracks.covariance import standard_deviations
from mast3r_sfm.tracks.features import LocalFeatures
from mast3r_sfm.tracks.guided import match_guided
from mast3r_sfm.tracks.splitting import MAX_FOCAL_STD, split_cameras
from mast3r_sfm.tracks.two_views import is_flat

MAX_ERROR_PX = 2.0
"""A view whose tracks reproject worse than this in the median, at 1,600 pixels, keeps the camera that it has."""

MAX_CENTRE_STD = 0.001
"""Largest standard deviation of a principal point that is adjusted, as a share of the image's long edge."""

_REFERENCE_PX = 1600.0  # long edge at which pixel limits are stated; they grow with larger photos


@dataclass(frozen=True)
class Round:
    """One round: matches within `radius` of their predicted place (share of the long edge), then adjustment.

    max_error_px  of an observation that stays, at 1,600 pixels
    iterations, tolerance   of the adjustments (`Bundle.adjust`); the first ones need not end where they go
    """

    radius: float
    max_error_px: float
    iterations: int
    tolerance: float


ROUNDS = (Round(0.02, 4.0, 10, 1e-4), Round(0.006, 3.0, 10, 1e-4), Round(0.003, 2.0, 25, 1e-5))

SETTLED = 1e-6
"""Share of the loss by which the last steps of the last adjustments lower it."""


@dataclass(frozen=True)
class TrackView:
    """What the refinement reads of one aligned view.

    features        of the photo
    depths          (N,) predicted z-depth of every feature in scene units, nan where unknown
    cam_from_world  (4, 4)
    group           index of its camera
    """

    features: LocalFeatures
    depths: np.ndarray
    cam_from_world: np.ndarray
    group: int


@dataclass(frozen=True)
class RefinedCameras:
    """Cameras after the adjustment.

    cam_from_world  (n, 4, 4), in the frame and unit that the cameras came in
    groups          intrinsics of every camera
    group_of        (n,) the camera of every view; there may be more than came in
    refined         (n,) bool: the view takes the new camera; False: its tracks were too few or do not fit
    num_observations, median_error_px   (n,) of every view's tracks; original pixels, nan without
    focal_std_px   (groups,) standard deviation of every focal length, original pixels; nan if it was held
    position_std   (n,) of every camera's centre, in the unit that the cameras came in; see `covariance`
    mean_track_length  of the scene
    track_depths   n arrays (N,): z-depth of every feature's point in the unit that the cameras came in, nan without
    points         (P, 3) of the tracks, in the frame that the cameras came in
    point_of, view_of, feature_of   (T,) of every observation of a point: the point, the view, the view's feature
    errors_px      (T,) reprojection error of every observation, original pixels
    """

    cam_from_world: np.ndarray
    groups: tuple[CameraGroup, ...]
    group_of: tuple[int, ...]
    refined: np.ndarray
    num_observations: np.ndarray
    median_error_px: np.ndarray
    focal_std_px: np.ndarray
    position_std: np.ndarray
    mean_track_length: float
    track_depths: tuple[np.ndarray, ...]
    points: np.ndarray
    point_of: np.ndarray
    view_of: np.ndarray
    feature_of: np.ndarray
    errors_px: np.ndarray


def refine_cameras(
    views: Sequence[TrackView],
    groups: Sequence[CameraGroup],
    pairs: Sequence[tuple[int, int]],
    known: Mapping[tuple[int, int], np.ndarray] | None = None,
    may_split: bool = True,
    advance: Advance | None = None,
) -> RefinedCameras | None:
    """Adjusts the cameras to tracks of local features; None if there are too few tracks to say anything, or two views
    alone that share a flat scene or a place, which leaves their distance and focal lengths open.

    pairs  of views that may share something
    known  by pair: matches (M, 2) of features that were found without the cameras; they count before those that the
           cameras lead to, and are found again wherever those are wrong
    may_split  whether a view may get a camera of its own because its focal length is clearly another (`split_groups`)

    Intrinsics that the tracks do not determine stay as they came in (`_settle_intrinsics`). The frame stays, and the
    scale is that of the camera centres that came in.
    """
    start = np.stack([view.cam_from_world for view in views])
    groups, group_of = list(groups), [view.group for view in views]
    places = [view.features.xy for view in views]
    trees = [cKDTree(view.features.described.xy) for view in views]
    bundle = Bundle(groups, group_of, start, places)
    long_edge = max(max(group.size) for group in groups)
    pixel = max(1.0, long_edge / _REFERENCE_PX)
    depths = [view.depths for view in views]
    for number, one in enumerate(ROUNDS):
        if number:
            tracks = bundle.tracks()
            depths = [
                _first_known(tracks.depths(k, len(own)), view.depths)
                for k, (own, view) in enumerate(zip(places, views, strict=True))
            ]
        confirmed = _confirmed_matches(bundle, views, trees, depths, pairs, known or {}, one, long_edge, pixel)
        if not confirmed or (len(views) == 2 and all(is_flat(geometry) for geometry in confirmed.values())):
            return None
        if may_split and number == len(ROUNDS) - 1:
            split = split_cameras(bundle, group_of, confirmed, 2 * one.max_error_px * pixel, pixel)
            if split is not None:
                groups, group_of = split
                bundle = Bundle(groups, group_of, bundle.cam_from_world(), places)
        bundle.triangulate(confirmed, 2 * one.max_error_px * pixel)
        if bundle.num_points < MIN_OBSERVATIONS:
            return None
        for factor in (2.0, 1.0):
            bundle.adjust(pixel, iterations=one.iterations, tolerance=one.tolerance)
            bundle.filter(factor * one.max_error_px * pixel)
            bundle.extend(factor * one.max_error_px * pixel)
        if advance is not None:
            advance(1)
    tracks, focal_std_px, position_std = _settle_intrinsics(bundle, groups, pixel)
    if advance is not None:
        advance(1)

    counts, errors = tracks.num_observations, tracks.median_errors_px()
    refined = (counts >= MIN_OBSERVATIONS) & (errors <= MAX_ERROR_PX * pixel)
    if refined.sum() < 2:
        return None
    scale, rotation, shift = into_frame_of(tracks.cam_from_world, start, refined)
    found = moved_cameras(tracks.cam_from_world, scale, rotation, shift)
    return RefinedCameras(
        cam_from_world=np.where(refined[:, None, None], found, start),
        groups=tuple(bundle.group(k) for k in range(len(groups))),
        group_of=tuple(group_of),
        refined=refined,
        num_observations=counts,
        median_error_px=errors,
        focal_std_px=focal_std_px,
        position_std=scale * position_std,
        mean_track_length=bundle.mean_track_length,
        track_depths=tuple(scale * tracks.depths(k, len(xy)) for k, xy in enumerate(places)),
        points=scale * tracks.points @ rotation.T + shift,
        point_of=tracks.point_of,
        view_of=tracks.view_of,
        feature_of=tracks.feature_of,
        errors_px=tracks.errors_px,
    )


def _confirmed_matches(
    bundle: Bundle,
    views: Sequence[TrackView],
    trees: Sequence[cKDTree],
    depths: Sequence[np.ndarray],
    pairs: Sequence[tuple[int, int]],
    known: Mapping[tuple[int, int], np.ndarray],
    one: Round,
    long_edge: int,
    pixel: float,
) -> dict[tuple[int, int], pycolmap.TwoViewGeometry]:
    """By pair: the matches near their predicted places, and the known ones, that a two-view geometry confirms."""

    def work(pair: tuple[int, int]) -> pycolmap.TwoViewGeometry | None:
        i, j = pair
        first, second = views[i].features.described, views[j].features.described
        matches = match_guided(
            first,
            second,
            trees[i],
            trees[j],
            bundle.predict(i, j, depths[i])[: len(first)],
            bundle.predict(j, i, depths[j])[: len(second)],
            one.radius * long_edge,
        )
        return bundle.confirm(i, j, _joined(known.get(pair), matches), 2 * one.max_error_px * pixel)

    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        found = list(pool.map(work, pairs))
    return {pair: geometry for pair, geometry in zip(pairs, found, strict=True) if geometry is not None}


def _settle_intrinsics(
    bundle: Bundle, start: Sequence[CameraGroup], pixel: float
) -> tuple[AdjustedTracks, np.ndarray, np.ndarray]:
    """The last adjustments: every camera gets the intrinsics that its tracks determine, and keeps the others.

    Returns the tracks as they are then, and the standard deviations of the focal lengths (groups,), pixels, and of the
    positions (n,), scene units.

    A focal length that the tracks leave uncertain by more than `MAX_FOCAL_STD` stays the one that came in. A principal
    point stays in the middle of the image unless two things hold: it is not more uncertain than `MAX_CENTRE_STD`, and
    the Bayesian information criterion asks for it, so it spares more than 2 ln N of the squared errors in units of
    their variance. Cameras close together or looking the same way, a flat scene or a turn about a single axis leave
    these open: they would wander far for a hundredth of a pixel, and take the rotations along.
    """
    bundle.adjust(pixel, tolerance=SETTLED)
    held_tracks = bundle.tracks()
    focal_std = standard_deviations(held_tracks, free_intrinsics(start, centre=False), pixel)[0][:, 0]
    held = {k for k, own in enumerate(start) if not focal_std[k] <= MAX_FOCAL_STD * own.focal_px}
    for k in held:
        bundle.set_intrinsics(k, start[k])
    if held:
        bundle.adjust(pixel, held=held, tolerance=SETTLED)
        held_tracks = bundle.tracks()
    settled = [bundle.group(k) for k in range(len(start))]
    cost_held = held_tracks.robust_costs(pixel)
    bundle.adjust(pixel, principal_point=True, held=held, tolerance=SETTLED)
    free_tracks = bundle.tracks()
    cost_free = free_tracks.robust_costs(pixel)
    std, _ = standard_deviations(free_tracks, free_intrinsics(start, centre=True), pixel)
    focal_known = np.array([k not in held for k in range(len(start))])
    put_back = False
    for k, own in enumerate(start):
        spared = (cost_held[k, 0] - cost_free[k, 0]) / max(cost_free[k, 0], 1e-300) * cost_free[k, 1]
        needed = spared > 2 * np.log(max(cost_free[k, 1], 2))
        if k not in held and not (needed and std[k, 1:3].max() <= MAX_CENTRE_STD * max(own.size)):
            bundle.set_intrinsics(k, settled[k])
            held.add(k)
            put_back = True
    if put_back:
        bundle.adjust(pixel, principal_point=True, held=held, tolerance=ROUNDS[-1].tolerance)
    bundle.filter(ROUNDS[-1].max_error_px * pixel)
    bundle.adjust(pixel, principal_point=True, held=held, tolerance=SETTLED)
    tracks = bundle.tracks()
    told = tracks.of_views(tracks.num_observations >= MIN_OBSERVATIONS)  # the others keep their cameras
    _, position_std = standard_deviations(told, free_intrinsics(start, centre=True, held=held), pixel)
    return tracks, np.where(focal_known, np.minimum(std[:, 0], focal_std), np.nan), position_std


NUM_STEPS = len(ROUNDS) + 1
"""Calls of `advance` by `refine_cameras`, one step each."""


def into_frame_of(
    cam_from_world: np.ndarray, reference: np.ndarray, used: np.ndarray
) -> tuple[float, np.ndarray, np.ndarray]:
    """Scale, rotation (3, 3) and translation (3,) that bring cameras (n, 4, 4) into the frame and unit of a reference,
    so that the centres of `used` (n,) agree best.

    Centres alone leave a turn about their line open, or all of it if they coincide; then the rotations decide.
    """
    poses, target = np.linalg.inv(cam_from_world), np.linalg.inv(reference)
    scale, rotation, shift = similarity_transform(poses[used, :3, 3], target[used, :3, 3])
    relative = target[used, :3, :3] @ poses[used, :3, :3].transpose(0, 2, 1)
    u, _, vt = np.linalg.svd(relative.sum(0))
    mean_rotation = u @ np.diag([1, 1, np.linalg.det(u @ vt)]) @ vt
    if rotation_angles_deg(rotation[None], mean_rotation[None])[0] > 5:
        rotation = mean_rotation
        shift = target[used, :3, 3].mean(0) - scale * rotation @ poses[used, :3, 3].mean(0)
    return scale, rotation, shift


def moved_cameras(cam_from_world: np.ndarray, scale: float, rotation: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """Cameras (n, 4, 4) in a world whose points became scale * rotation X + shift."""
    poses = np.linalg.inv(cam_from_world)
    poses[:, :3, 3] = scale * poses[:, :3, 3] @ rotation.T + shift
    poses[:, :3, :3] = rotation @ poses[:, :3, :3]
    return np.linalg.inv(poses)


def _joined(first: np.ndarray | None, second: np.ndarray) -> np.ndarray:
    """Matches (M, 2) of both; where the two disagree about a feature, those of the first."""
    if first is None or not len(first):
        return second
    first = first.astype(np.int64)
    new = ~(np.isin(second[:, 0], first[:, 0]) | np.isin(second[:, 1], first[:, 1]))
    return np.concatenate([first, second[new]])


def _first_known(preferred: np.ndarray, other: np.ndarray) -> np.ndarray:
    return np.where(np.isfinite(preferred), preferred, other)
