"""Cameras refined by tracks of local features: by hand, on a rendered scene, and through the command."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation

from mast3r_sfm.app.cli import main
from mast3r_sfm.evaluation import pair_errors_deg
from mast3r_sfm.geometry import points_of_depth, project, rays, similarity_transform, to_world, undistort
from mast3r_sfm.local_features import connect_by_features, find_features, match_features, memory_of_features
from mast3r_sfm.options import CameraModel, RefinementOptions
from mast3r_sfm.pairwise import PairwiseData
from mast3r_sfm.reconstruction import Reconstruction
from mast3r_sfm.tracks import (
    CameraGroup,
    LocalFeatures,
    RefinedCameras,
    TrackView,
    camera_group,
    colmap_camera,
    confirm_pair,
    extract_features,
    is_flat,
    map_features,
    refine_cameras,
)
from mast3r_sfm.tracks.adjusted import MIN_OBSERVATIONS, AdjustedTracks
from mast3r_sfm.tracks.bundle import Bundle
from mast3r_sfm.tracks.covariance import standard_deviations
from mast3r_sfm.tracks.explained import count_explained, parallax_deg
from mast3r_sfm.tracks.guided import match_guided
from mast3r_sfm.tracks.orientation import upright_share
from mast3r_sfm.tracks.refinement import into_frame_of, moved_cameras
from mast3r_sfm.tracks.splitting import split_cameras, split_groups
from mast3r_sfm.tracks.unguided import match_everywhere
from mast3r_sfm.types import Correspondences, ImageTransform, PairSummary, View
from mast3r_sfm.unrefined import why_unrefined
from synthetic import RenderedScene, render_orbit

N, W, H = 5, 640, 480
MEGAPIXEL = CameraGroup((1000, 800), 900.0, (499.5, 399.5))


@pytest.fixture(scope="module")
def scene() -> RenderedScene:
    return render_orbit(900_100, N, (W, H), 40, effects=0)


@pytest.fixture(scope="module")
def track_views(scene: RenderedScene) -> list[TrackView]:
    """Exact depth, cameras off by a third of a degree and a few centimetres, as an alignment leaves them."""
    rng = np.random.default_rng(0)
    found = []
    for k in range(N):
        features = extract_features(Image.fromarray(scene.rgb[k].numpy()), 1600, 3000)
        column, row = np.clip(np.rint(features.xy).astype(int), 0, [W - 1, H - 1]).T
        depth = scene.depth[k].numpy()[row, column].astype(np.float64)
        pose = scene.world_from_cam[k].numpy().copy()
        pose[:3, :3] = pose[:3, :3] @ Rotation.from_rotvec(np.radians(0.3) * rng.normal(size=3)).as_matrix()
        pose[:3, 3] += 0.01 * rng.normal(size=3)
        found.append(TrackView(features, np.where(depth > 0, depth, np.nan), np.linalg.inv(pose), 0))
    return found


def refine(scene: RenderedScene, views: list[TrackView], focal: float = 1.02) -> RefinedCameras:
    group = CameraGroup((W, H), focal * float(scene.K[0, 0, 0]), ((W - 1) / 2, (H - 1) / 2))
    pairs = [(i, j) for i in range(N) for j in range(i + 1, N)]
    refined = refine_cameras(views, [group], pairs)
    assert refined is not None
    return refined


def test_a_pinhole_camera_has_no_distortion(scene: RenderedScene, track_views: list[TrackView]) -> None:
    group = CameraGroup((W, H), 1.02 * float(scene.K[0, 0, 0]), ((W - 1) / 2, (H - 1) / 2))
    pinhole = dataclasses.replace(group, model=CameraModel.SIMPLE_PINHOLE)
    for one, name in ((group, "SIMPLE_RADIAL"), (pinhole, "SIMPLE_PINHOLE")):
        assert colmap_camera(one, 1).model_name == name and camera_group(colmap_camera(one, 1)) == one
    refined = refine_cameras(track_views, [pinhole], [(i, j) for i in range(N) for j in range(i + 1, N)])
    assert refined is not None and refined.refined.all()
    found = refined.groups[0]
    assert found.model is CameraModel.SIMPLE_PINHOLE and found.distortion == 0
    assert found.focal_px == pytest.approx(float(scene.K[0, 0, 0]), rel=0.003)
    assert 0 < refined.focal_std_px[0] < 2 and np.isfinite(refined.position_std).all()


def worst_deg(scene: RenderedScene, cam_from_world: np.ndarray) -> tuple[float, float]:
    errors = pair_errors_deg(np.linalg.inv(cam_from_world), scene.world_from_cam.numpy(), np.ones(N, dtype=bool))
    return float(errors[0].max()), float(errors[1].max())


def test_cameras_come_much_closer_to_the_truth(scene: RenderedScene, track_views: list[TrackView]) -> None:
    before = worst_deg(scene, np.stack([view.cam_from_world for view in track_views]))
    refined = refine(scene, track_views)
    after = worst_deg(scene, refined.cam_from_world)
    assert refined.refined.all() and min(before) > 1
    assert after[0] < before[0] / 3 and after[1] < before[1] / 6, (before, after)  # the worst of ten pairs
    assert refined.groups[0].focal_px == pytest.approx(float(scene.K[0, 0, 0]), rel=0.005)
    assert (refined.median_error_px < 1).all() and refined.mean_track_length > 2.5
    # the unit stays that of the cameras that came in, and so do the depths
    for depths, view in zip(refined.track_depths, track_views, strict=True):
        assert np.nanmedian(depths / view.depths) == pytest.approx(1, abs=0.02)


def test_two_runs_give_the_same_cameras(scene: RenderedScene, track_views: list[TrackView]) -> None:
    first, second = refine(scene, track_views), refine(scene, track_views)
    assert np.array_equal(first.cam_from_world, second.cam_from_world) and first.groups == second.groups


def test_a_view_without_features_keeps_its_camera(scene: RenderedScene, track_views: list[TrackView]) -> None:
    nothing = LocalFeatures.none()
    views = [*track_views[:-1], dataclasses.replace(track_views[-1], features=nothing, depths=np.zeros(0))]
    refined = refine(scene, views)
    assert refined.refined.tolist() == [True] * (N - 1) + [False]
    assert np.array_equal(refined.cam_from_world[-1], views[-1].cam_from_world)
    assert np.isnan(refined.median_error_px[-1]) and refined.num_observations[-1] == 0


def test_two_photos_are_refined_by_what_both_show(scene: RenderedScene, track_views: list[TrackView]) -> None:
    """Points that only two photos show count where there are no others."""
    group = CameraGroup((W, H), float(scene.K[0, 0, 0]), ((W - 1) / 2, (H - 1) / 2))
    refined = refine_cameras(track_views[1:3], [group], [(0, 1)])
    assert refined is not None and refined.refined.all() and (refined.num_observations > 100).all()
    true = scene.world_from_cam[1:3].numpy()
    before = np.linalg.inv(np.stack([view.cam_from_world for view in track_views[1:3]]))
    both = np.ones(2, dtype=bool)
    after = pair_errors_deg(np.linalg.inv(refined.cam_from_world), true, both)
    assert after[0].max() < pair_errors_deg(before, true, both)[0].max() / 3


def test_nothing_to_hold_on_to(scene: RenderedScene, track_views: list[TrackView]) -> None:
    nothing = LocalFeatures.none()
    views = [dataclasses.replace(view, features=nothing, depths=np.zeros(0)) for view in track_views]
    group = CameraGroup((W, H), 500.0, ((W - 1) / 2, (H - 1) / 2))
    assert refine_cameras(views, [group], [(0, 1), (1, 2)]) is None


def test_features_lie_where_the_picture_has_them() -> None:
    """A dark disc at a place between pixels; centres are integers, whatever the size that is looked at."""
    y, x = np.mgrid[:240, :320]
    grey = (255 * np.clip(np.hypot(x - 150.3, y - 99.6) - 9.5, 0, 1)).astype(np.uint8)
    disc = Image.fromarray(grey).convert("RGB")
    for max_size in (320, 160):
        features = extract_features(disc, max_size, 100)
        nearest = np.linalg.norm(features.xy - [150.3, 99.6], axis=1).min()
        assert nearest < 0.15, max_size
    assert (features.colours[features.strengths.argmax()] == grey[100, 150]).all()
    mask = np.ones(grey.shape, dtype=bool)
    mask[60:140, 110:190] = False
    assert not len(extract_features(disc, 320, 100, mask))
    assert not len(extract_features(Image.new("RGB", (320, 240)), 320, 100))


def unit(*rows: list[float]) -> np.ndarray:
    padded = np.zeros((len(rows), 128), dtype=np.float32)
    padded[:, : len(rows[0])] = rows
    return padded / np.linalg.norm(padded, axis=1, keepdims=True)


def features_at(xy: list[list[float]], descriptors: np.ndarray, strengths: list[float] | None = None) -> LocalFeatures:
    grey = np.full((len(xy), 3), 128, dtype=np.uint8)
    return LocalFeatures(np.array(xy, dtype=float), descriptors, np.array(strengths or [1.0] * len(xy)), grey)


def test_matches_without_a_geometry_by_hand() -> None:
    first = features_at([[0, 0], [10, 0], [20, 0]], unit([1, 0, 0], [0, 1, 0], [0, 0, 1]), [3, 2, 1])
    # 0 has its twin far away; 1 has two that look the same; 2 has one, but that one prefers nobody else
    second = features_at(
        [[90, 90], [1, 1], [2, 2], [3, 3]], unit([1, 0.1, 0], [0, 1, 0.01], [0, 1, -0.01], [0, 0.2, 1])
    )
    assert match_everywhere(first, second, 10).tolist() == [[0, 0], [2, 3]]
    assert match_everywhere(first, second, 1).tolist() == [[0, 0]]  # the strongest of each
    assert match_everywhere(first, LocalFeatures.none(), 10).shape == (0, 2)


def test_groups_split_only_for_a_reason() -> None:
    focals = np.array([1000.0, 1004, 998, 1300, 1305, 1100])
    std = np.array([1.0, 1, 1, 2, 2, 300])
    counts = np.full(6, 500)
    # the last one's focal length is not known well enough to say anything
    assert split_groups(focals, std, [0] * 6, counts) == (0, 0, 0, 1, 1, 0)
    assert split_groups(focals, std, [0, 0, 0, 1, 1, 2], counts) == (0, 0, 0, 1, 1, 2)
    assert split_groups(focals, np.full(6, 500.0), [0] * 6, counts) == (0,) * 6


@pytest.mark.parametrize(("relief", "zoom"), [(0.0, 1.0), (0.8, 1.0), (0.8, 1.4)])
def test_a_split_must_pay_in_an_adjustment(relief: float, zoom: float) -> None:
    """A wall from straight ahead leaves the focal length almost open: each view alone finds one of its own, and yet one
    for all fits as well. A photo of another zoom does not."""
    rng = np.random.default_rng(1)
    points = np.stack([rng.uniform(-2, 2, 200), rng.uniform(-1.5, 1.5, 200), relief * rng.uniform(-1, 1, 200)], axis=1)
    cam_from_world, seen = np.tile(np.eye(4), (N, 1, 1)), []
    for k in range(N):
        turn = Rotation.from_euler("xyz", 2 * rng.normal(size=3), degrees=True).as_matrix()
        cam_from_world[k, :3, :3], cam_from_world[k, :3, 3] = turn, turn @ [-0.4 * (k - 2), 0.1 * rng.normal(), 4]
        focal = 900.0 * (zoom if k == 3 else 1)
        xy = project(points @ turn.T + cam_from_world[k, :3, 3], CameraGroup((1000, 800), focal, (499.5, 399.5)).K)
        seen.append(xy + 0.05 * rng.normal(size=xy.shape))
    cam_from_world[:, 2, 3] *= 2  # as a network that takes the lens for a longer one has it
    bundle = Bundle([CameraGroup((1000, 800), 1800.0, (499.5, 399.5))], [0] * N, cam_from_world, seen)
    index = np.stack([np.arange(200)] * 2, axis=1)
    pairs = {(i, j): bundle.confirm(i, j, index, 4.0) for i in range(N) for j in range(i + 1, N)}
    confirmed = {pair: one for pair, one in pairs.items() if one is not None}
    for _ in range(4):  # as often as the rounds before adjust them
        bundle.triangulate(confirmed, 100.0)
        bundle.adjust(1.0, iterations=10)
    split = split_cameras(bundle, [0] * N, confirmed, 100.0, 1.0)
    assert (None if split is None else split[1]) == (None if zoom == 1 else [0, 0, 0, 1, 0])
    same = bundle.with_cameras([bundle.group(0)], [0] * N)
    np.testing.assert_allclose(same.tracks().robust_costs(1.0), bundle.tracks().robust_costs(1.0), rtol=1e-9)
    assert same.num_points == bundle.num_points


def test_explained_matches_are_those_on_epipolar_lines(scene: RenderedScene) -> None:
    rng = np.random.default_rng(3)
    cam_from_world = np.linalg.inv(scene.world_from_cam[:2].numpy())
    K = scene.K[0].numpy()
    group = CameraGroup((W, H), float(K[0, 0]), (float(K[0, 2]), float(K[1, 2])), 0.05)
    pixels = rng.uniform(100, 380, (40, 2))
    points = to_world(rays(pixels, K, 0.05) * rng.uniform(2, 5, (40, 1)), scene.world_from_cam[0].numpy())
    seen = project(points @ cam_from_world[1, :3, :3].T + cam_from_world[1, :3, 3], K, 0.05)
    visible = np.flatnonzero(np.isfinite(seen).all(1))
    index = np.stack([visible, visible], axis=1)
    found = count_explained(cam_from_world, [group, group], [pixels, seen], {(0, 1): index})
    assert found.tolist() == [len(visible)] * 2 and len(visible) > 10
    turned = cam_from_world.copy()
    turned[1, :3, :3] = Rotation.from_euler("z", 10, degrees=True).as_matrix() @ turned[1, :3, :3]
    assert count_explained(turned, [group, group], [pixels, seen], {(0, 1): index})[0] < len(visible) / 3


def test_photos_from_one_place_have_no_parallax() -> None:
    group = CameraGroup((400, 300), 400.0, (199.5, 149.5))
    cam_from_world = np.tile(np.eye(4), (3, 1, 1))
    cam_from_world[1, :3, :3] = Rotation.from_euler("y", -10, degrees=True).as_matrix()
    cam_from_world[2, :3, 3] = [-1.0, 0, 0]  # one unit to the right, of points two away: 26.57 degrees
    points = np.array([[0.0, 0, 2], [0.1, 0, 2], [0.2, 0.1, 2]])
    seen = [project(points @ pose[:3, :3].T + pose[:3, 3], group.K) for pose in cam_from_world]
    index = np.stack([np.arange(3)] * 2, axis=1)
    turned = parallax_deg(cam_from_world, [group] * 3, seen, {(0, 1): index})
    assert turned[:2].max() < 1e-6 and np.isnan(turned[2])
    moved = parallax_deg(cam_from_world, [group] * 3, [seen[0][:1], seen[1][:1], seen[2][:1]], {(0, 2): index[:1]})
    assert moved[[0, 2]] == pytest.approx(np.degrees(np.arctan(0.5)))


def test_a_mirror_image_turns_all_triangles_over() -> None:
    xy = np.random.default_rng(0).uniform(0, 1000, (300, 2))
    turned = (xy - 500) @ Rotation.from_euler("z", 170, degrees=True).as_matrix()[:2, :2].T + [300, 900]
    assert upright_share(xy, turned) == 1
    assert upright_share(xy, xy * [-1, 1] + [999, 0]) == 0
    assert 0.35 < upright_share(xy, np.random.default_rng(1).uniform(0, 1000, (300, 2))) < 0.65
    assert np.isnan(upright_share(xy[:2], xy[:2]))
    on_a_line = np.stack([np.arange(9.0), np.arange(9.0)], axis=1)
    assert np.isnan(upright_share(on_a_line, on_a_line)) and np.isnan(upright_share(xy[:0], xy[:0]))


def seen_from(points: np.ndarray, yaw_deg: float, centre: tuple[float, float, float]) -> tuple[np.ndarray, np.ndarray]:
    """Pixels of points, and the camera (4, 4) that sees them."""
    pose = np.eye(4)
    pose[:3, :3] = Rotation.from_euler("y", yaw_deg, degrees=True).as_matrix()
    pose[:3, 3] = -pose[:3, :3] @ centre
    return project(points @ pose[:3, :3].T + pose[:3, 3], MEGAPIXEL.K), pose


def test_mirrored_matches_confirm_nothing() -> None:
    rng = np.random.default_rng(0)
    points = np.stack([rng.uniform(-1, 1, 200), rng.uniform(-0.8, 0.8, 200), np.full(200, 3.0)], axis=1)
    points[:, 2] += 0.3 * np.sin(3 * points[:, 0])
    (first, _), (second, _) = seen_from(points, 0, (0, 0, 0)), seen_from(points, -10, (0.6, 0, 0))
    camera, index = colmap_camera(MEGAPIXEL, 1), np.stack([np.arange(200)] * 2, axis=1)
    found = confirm_pair(camera, first, camera, second, index, 4.0)
    assert found is not None and len(found.inlier_matches) > 180 and not is_flat(found)
    mirrored = first * [-1, 1] + [MEGAPIXEL.size[0] - 1, 0]
    assert confirm_pair(camera, first, camera, mirrored, index, 4.0) is None


@pytest.mark.parametrize(("relief", "centre"), [(0.0, (0.6, 0, 0)), (0.3, (0, 0, 0)), (0.3, (0.6, 0, 0))])
def test_two_photos_of_a_plane_or_from_one_place_stay(relief: float, centre: tuple[float, float, float]) -> None:
    """They would fit with any focal length; the third case is neither."""
    rng = np.random.default_rng(0)
    points = np.stack([rng.uniform(-1, 1, 300), rng.uniform(-0.8, 0.8, 300), 3 + relief * rng.uniform(-1, 1, 300)], 1)
    views = []
    for xy, pose in (seen_from(points, 0, (0, 0, 0)), seen_from(points, -10, centre)):
        grey = np.zeros((300, 3), dtype=np.uint8)
        described = LocalFeatures(xy, np.eye(300, dtype=np.float32), np.ones(300, dtype=np.float32), grey)
        views.append(TrackView(described, (points @ pose[2, :3] + pose[2, 3]), pose, 0))
    known = {(0, 1): np.stack([np.arange(300)] * 2, axis=1)}
    refined = refine_cameras(views, [MEGAPIXEL], [(0, 1)], known)
    assert (refined is None) == (relief == 0 or centre == (0, 0, 0))


def test_a_camera_that_stays_is_told_why() -> None:
    nan = float("nan")
    reasons = why_unrefined(
        np.array([3, 12, 300, 0]), np.array([0.4, 0.4, 5.25, nan]), np.array([5, 900, 900, 0]),
        np.array([9.0, 0.05, 9.0, nan]), False,
    )  # fmt: skip
    assert [number for _, number in reasons] == ["3", "0.05", "5.2 px", "0"]
    assert [next(word for word in ("lack", "one place", "fit") if word in reason) for reason, _ in reasons] == [
        "lack", "one place", "fit", "lack",
    ]  # fmt: skip
    pair = why_unrefined(np.zeros(2, dtype=int), np.full(2, nan), np.array([900, 900]), np.full(2, 9.0), True)
    assert pair[0][1] == "900 matches" and "homography" in pair[0][0]


def test_standard_deviations_are_those_of_repeated_adjustments() -> None:
    rng = np.random.default_rng(0)
    cam_from_world = np.tile(np.eye(4), (N, 1, 1))
    for k in range(N):
        cam_from_world[k, :3, :3] = Rotation.from_euler("y", 8 * (k - 2), degrees=True).as_matrix()
        cam_from_world[k, :3, 3] = -cam_from_world[k, :3, :3] @ [0.6 * (k - 2), 0.1 * (k % 2), -4 + 0.1 * k]
    points = rng.uniform(-1, 1, (150, 3))
    group = CameraGroup((1000, 800), 900.0, (499.5, 399.5))
    matches = np.stack([np.arange(150)] * 2, axis=1)
    exact = [project(points @ pose[:3, :3].T + pose[:3, 3], group.K) for pose in cam_from_world]
    true = np.linalg.inv(cam_from_world)[:, :3, 3]
    centres, focals = [], []
    for _ in range(30):
        bundle = Bundle([group], [0] * N, cam_from_world, [xy + rng.normal(0, 0.5, xy.shape) for xy in exact])
        pairs = {(i, j): bundle.confirm(i, j, matches, 6) for i in range(N) for j in range(i + 1, N)}
        bundle.triangulate({pair: one for pair, one in pairs.items() if one is not None}, 6)
        bundle.adjust(3.0, principal_point=True)
        bundle.adjust(3.0, principal_point=True)
        scale, rotation, shift = similarity_transform(found := np.linalg.inv(bundle.cam_from_world())[:, :3, 3], true)
        centres.append(scale * found @ rotation.T + shift)
        focals.append(bundle.group(0).focal_px)
    spread = np.sqrt(np.var(centres, axis=0).sum(1))
    intrinsics, predicted = standard_deviations(bundle.tracks(), np.ones((1, 4), dtype=bool), 3.0)
    np.testing.assert_allclose(predicted, spread, rtol=0.35)
    assert intrinsics[0, 0] == pytest.approx(np.std(focals), rel=0.35)
    held, surer = standard_deviations(bundle.tracks(), np.array([[False, False, False, True]]), 3.0)
    assert (held[0, :3] == 0).all() and held[0, 3] > 0
    assert (surer <= predicted * 1.001).all()  # who knows the intrinsics knows the positions better


def test_a_copy_of_the_first_photo_does_not_set_the_unit_of_length() -> None:
    """The distance of a photo and its copy is an accident: as the unit it makes all others uncertain."""
    rng = np.random.default_rng(0)
    cam_from_world = np.tile(np.eye(4), (4, 1, 1))
    for k in range(4):
        cam_from_world[k, :3, 3] = [-0.5 * max(0, k - 1) + 1e-5 * k, 0.05 * k, 4]  # the second is where the first is
    cam_from_world[1, :3, 3] = cam_from_world[0, :3, 3] + 1e-5
    points = rng.uniform(-1, 1, (80, 3))
    group = CameraGroup((1000, 800), 900.0, (499.5, 399.5))
    seen = [project(points @ pose[:3, :3].T + pose[:3, 3], group.K) for pose in cam_from_world]
    matches = np.stack([np.arange(80)] * 2, axis=1)
    bundle = Bundle([group], [0] * 4, cam_from_world, [xy + rng.normal(0, 0.3, xy.shape) for xy in seen])
    pairs = {(i, j): bundle.confirm(i, j, matches, 6) for i in range(4) for j in range(i + 1, 4)}
    bundle.triangulate({pair: one for pair, one in pairs.items() if one is not None}, 6)
    bundle.adjust(3.0)
    tracks = bundle.tracks()
    _, std = standard_deviations(tracks, np.zeros((1, 4), dtype=bool), 3.0)
    assert (std < 0.01).all()
    assert tracks.num_observations.tolist() == [80] * 4
    assert tracks.view_of[:4].tolist() == [0, 1, 2, 3]  # photos of the first point


@pytest.mark.parametrize("num_features", [0, 2, 12])
def test_a_photo_that_shows_little_does_not_make_others_uncertain(num_features: int) -> None:
    rng = np.random.default_rng(0)
    cam_from_world = np.tile(np.eye(4), (4, 1, 1))
    cam_from_world[:, :3, 3] = [[-0.5 * k, 0.05 * k, 4] for k in range(4)]
    points = rng.uniform(-1, 1, (80, 3))
    seen_at = [project(points @ pose[:3, :3].T + pose[:3, 3], MEGAPIXEL.K) for pose in cam_from_world]
    view_of, point_of = np.repeat(np.arange(4), 80), np.tile(np.arange(80), 4)
    tracks = AdjustedTracks(
        cam_from_world, np.array([0, 1, 1, 1]), np.array([[900, 499.5, 399.5, 0.0]] * 2), points,
        point_of, view_of, point_of, np.concatenate(seen_at) + rng.normal(0, 0.3, (320, 2)),
    )  # fmt: skip
    kept = (view_of > 0) | (point_of < num_features)
    few = dataclasses.replace(
        tracks, point_of=point_of[kept], view_of=view_of[kept], feature_of=point_of[kept], seen_at=tracks.seen_at[kept]
    )
    free = np.array([[True, False, False, True]] * 2)
    intrinsics, centres = standard_deviations(few.of_views(few.num_observations >= MIN_OBSERVATIONS), free, 3.0)
    assert np.isinf(intrinsics[0, [0, 3]]).all() and np.isinf(centres[0])
    expected = standard_deviations(tracks.of_views(np.arange(4) > 0), free, 3.0)
    np.testing.assert_allclose(intrinsics[1], expected[0][1], rtol=1e-6)
    np.testing.assert_allclose(centres[1:], expected[1][1:], rtol=1e-6)
    all_few = standard_deviations(tracks.of_views(np.arange(4) > 2), free, 3.0)
    assert not (np.isfinite(all_few[0][:, [0, 3]]).any() or np.isfinite(all_few[1]).any())


def test_the_mapper_finds_the_cameras_alone(scene: RenderedScene, track_views: list[TrackView]) -> None:
    group = CameraGroup((W, H), 1.2 * W, ((W - 1) / 2, (H - 1) / 2))
    features = [view.features for view in track_views]
    confirmed = {}
    for i in range(N):
        for j in range(i + 1, N):
            found = match_everywhere(features[i], features[j], 2000)
            camera = colmap_camera(group, 1)
            geometry = confirm_pair(camera, features[i].xy, camera, features[j].xy, found, 4.0)
            if geometry is not None:
                confirmed[i, j] = geometry
    mapped = map_features([group], [False], [0] * N, [one.xy for one in features], confirmed)
    again = map_features([group], [False], [0] * N, [one.xy for one in features], confirmed)
    assert mapped is not None and again is not None and mapped.registered.all()
    assert np.array_equal(mapped.cam_from_world, again.cam_from_world)
    assert worst_deg(scene, mapped.cam_from_world)[0] < 1
    assert mapped.groups[0].focal_px == pytest.approx(float(scene.K[0, 0, 0]), rel=0.05)
    # depths come in one unit
    ratios = [np.nanmedian(d / v.depths) for d, v in zip(mapped.depths, track_views, strict=True)]
    assert max(ratios) < 1.05 * min(ratios)


def test_guided_matches_by_hand() -> None:
    first = features_at([[10, 10], [50, 50], [90, 90]], unit([1, 0, 0], [0, 1, 0], [0, 0, 1]))
    # the twin of feature 0 lies far from its predicted place; 1 has a rival that looks the same; 2 is alone
    second = features_at([[80, 10], [51, 50], [60, 50], [91, 90]], unit([1, 0, 0], [0, 1, 0], [0, 1, 0], [0, 0.1, 1]))
    trees = cKDTree(first.xy), cKDTree(second.xy)
    back = np.array([[10.0, 10], [50, 50], [59, 50], [90, 90]])

    def matches(radius: float, in_second: np.ndarray = first.xy) -> list[list[int]]:
        return match_guided(first, second, *trees, in_second, back, radius).tolist()

    assert matches(5) == [[1, 1], [2, 3]]  # the rival is out of reach
    assert matches(15) == [[2, 3]]  # and here it is not
    assert matches(5, np.where(np.arange(3)[:, None] == 2, np.nan, first.xy)) == [[1, 1]]  # of unknown depth


def test_frame_and_unit_come_back() -> None:
    rng = np.random.default_rng(1)
    poses = np.tile(np.eye(4), (4, 1, 1))
    poses[:, :3, :3] = Rotation.random(4, random_state=2).as_matrix()
    poses[:, :3, 3] = rng.normal(size=(4, 3))
    moved = poses.copy()
    turn = Rotation.from_euler("xyz", [0.3, -1, 2]).as_matrix()
    moved[:, :3, :3] = turn @ poses[:, :3, :3]
    moved[:, :3, 3] = 3 * poses[:, :3, 3] @ turn.T + [1, 2, 3]
    used = np.array([True, True, True, True])
    scale, *rest = into_frame_of(np.linalg.inv(moved), np.linalg.inv(poses), used)
    found = moved_cameras(np.linalg.inv(moved), scale, *rest)
    np.testing.assert_allclose(found, np.linalg.inv(poses), atol=1e-9)
    assert scale == pytest.approx(1 / 3)
    # two cameras: the turn about the line between them is told by their rotations
    motion = into_frame_of(np.linalg.inv(moved[:2]), np.linalg.inv(poses[:2]), used[:2])
    found = moved_cameras(np.linalg.inv(moved[:2]), *motion)
    np.testing.assert_allclose(found, np.linalg.inv(poses[:2]), atol=1e-9)


@pytest.mark.parametrize("k1", [-0.15, 0.0, 0.2])
def test_undistortion_undoes_distortion(k1: float) -> None:
    x = np.random.default_rng(0).uniform(-0.8, 0.8, (50, 2))
    seen = x * (1 + k1 * (x**2).sum(1, keepdims=True))
    np.testing.assert_allclose(undistort(seen, k1), x, atol=1e-9)
    K = np.array([[10.0, 0, 7.5], [0, 10, 5.5], [0, 0, 1]])
    points = points_of_depth(np.full((12, 16), 2.0), K, k1)
    ideal = points[..., :2] / points[..., 2:]
    pixels = ideal * (1 + k1 * (ideal**2).sum(-1, keepdims=True)) * 10 + K[:2, 2]
    np.testing.assert_allclose(pixels, np.stack(np.meshgrid(np.arange(16), np.arange(12)), -1), atol=1e-6)


def test_a_photo_that_is_gone_gives_no_features(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    transform = ImageTransform((W, H), (W, H), (0, 0), (W, H))
    Image.new("RGB", (W, H + 1)).save(tmp_path / "changed.png")
    images = [
        View(k, tmp_path / name, np.zeros((H, W, 3), dtype=np.uint8), transform)
        for k, name in enumerate(("gone.png", "changed.png"))
    ]
    assert [len(one) for one in find_features(images, RefinementOptions())] == [0, 0]
    assert "gone.png: cannot be read" in caplog.text and "changed.png: has changed" in caplog.text


def test_memory_of_features_by_hand_and_by_measure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mast3r_sfm.local_features.os.cpu_count", lambda: 2)
    transform = ImageTransform((2400, 1800), (96, 72), (0, 0), (96, 72))
    images = [View(k, Path(f"{k}.png"), np.zeros((72, 96, 3), np.uint8), transform) for k in range(3)]
    # three photos of 8192 features of 600 bytes; two at once are searched at 1600x1200, 230 bytes a pixel
    expected = 3 * 8192 * 600 + 2 * 1600 * 1200 * 230
    assert memory_of_features(images, RefinementOptions()) == pytest.approx(expected)

    Image.fromarray(np.random.default_rng(0).integers(0, 256, (1200, 1600, 3), np.uint8)).save(tmp_path / "a.png")
    code = (
        "import sys; from PIL import Image; from mast3r_sfm.app.memory import peak_memory;"
        "from mast3r_sfm.tracks import extract_features; import torch;"
        "rgb = Image.open(sys.argv[1]).convert('RGB'); extract_features(rgb, 64, 100);"
        "before = peak_memory(torch.device('cpu'))['ram']; extract_features(rgb, 1600, 8192);"
        "print(peak_memory(torch.device('cpu'))['ram'] - before)"
    )
    shown = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "a.png")], check=True, capture_output=True, text=True
    )
    assert float(shown.stdout) == pytest.approx(1600 * 1200 * 230, rel=0.5)


def test_denied_pairs_come_back_by_their_features(scene: RenderedScene, track_views: list[TrackView]) -> None:
    transform = ImageTransform((W, H), (W // 2, H // 2), (0, 0), (W // 2, H // 2))
    images = [View(k, Path(f"{k}.png"), np.zeros((H // 2, W // 2, 3), np.uint8), transform) for k in range(N)]
    believed = Correspondences(0, 1, *(torch.zeros(1, 2, dtype=torch.int32),) * 2, torch.tensor([2.0]))
    pairs = ((0, 1), (1, 2))
    data = PairwiseData(
        pairs, (None,) * N, (believed,), {}, (PairSummary(0, 1, 9, 9, True), PairSummary(1, 2, 9, 0, False))
    )
    evidence = match_features(images, [view.features for view in track_views], data.summaries)
    found = connect_by_features(data, images, evidence)
    assert found.correspondences[0] is believed and [one.kept for one in found.summaries] == [True, True]
    matches = found.correspondences[1]
    assert len(matches) > 50 and matches.xy_i.is_floating_point() and (matches.conf == 2).all()
    # in pixels of the network's images, at the place that the depth says
    xy = transform.to_original(matches.xy_i.double().numpy())
    nearest = cKDTree(track_views[1].features.xy).query(xy)[1]
    assert np.abs(track_views[1].features.xy[nearest] - xy).max() < 0.01
    K = scene.K[1].numpy()
    points = to_world(rays(xy, K) * track_views[1].depths[nearest, None], scene.world_from_cam[1].numpy())
    cam_from_world = np.linalg.inv(scene.world_from_cam[2].numpy())
    seen = project(points @ cam_from_world[:3, :3].T + cam_from_world[:3, 3], scene.K[2].numpy())
    off = np.linalg.norm(transform.to_network(seen) - matches.xy_j.double().numpy(), axis=1)
    assert np.nanmedian(off) < 0.5
    nothing = match_features(images, [LocalFeatures.none()] * N, data.summaries)
    assert [one.kept for one in connect_by_features(data, images, nothing).summaries] == [True, False]


def test_the_command(scene: RenderedScene, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for k in range(3):
        Image.fromarray(scene.rgb[k].numpy()).save(tmp_path / f"photo {k}.png")
    arguments = ["reconstruct", "--input", str(tmp_path), "--output", str(tmp_path / "out"), "--model-name", "small"]
    arguments += ["--device", "cpu", "--image-size", "160", "--niter", "60", "--min-conf-thr", "1"]
    with pytest.raises(SystemExit) as done:
        main(arguments)
    assert done.value.code == 0
    assert "Refined cameras 3 of 3" in " ".join(capsys.readouterr().err.split())
    cameras = json.loads((tmp_path / "out" / "cameras.json").read_text())["images"]
    assert all(c["refined"] and c["track_error_px"] < 2 and c["num_track_observations"] > 60 for c in cameras)
    assert cameras[0]["K_original"][0][0] == pytest.approx(float(scene.K[0, 0, 0]), rel=0.03)
    again = Reconstruction.load(tmp_path / "out").views
    assert [view.distortion for view in again] == [c["distortion_k1"] for c in cameras] and again[1].refined
