"""What follows the tracks: patches found again, anchors with fixed cameras, doubtful views, the lowered threshold."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from wall_scene import H, K, S, W, pose_of, views_of_wall

from mast3r_sfm.alignment.anchors import FixedCamera, Sightings, errors_of, match_sides, solve_anchors
from mast3r_sfm.local_features import FeatureEvidence
from mast3r_sfm.options import ReconstructionOptions
from mast3r_sfm.pairwise import PairwiseData
from mast3r_sfm.pipeline import warn_of_doubts
from mast3r_sfm.placing import Candidate, Start
from mast3r_sfm.quality import doubts
from mast3r_sfm.reconstruction import LEAST_SHARE, Reconstruction
from mast3r_sfm.refine import with_resections
from mast3r_sfm.tracks import CameraGroup, LocalFeatures, RefinedCameras
from mast3r_sfm.tracks.templates import corners, find_again
from mast3r_sfm.types import CanonicalView, Correspondences, ImageTransform, PairSummary, ReconstructedView, View


def picture(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """A smooth texture at any place."""
    value = np.sin(x / 3.1) + np.cos(y / 4.3 + x / 9) + np.sin((x + 2 * y) / 7)
    return np.rint(128 + 40 * value).clip(0, 255).astype(np.uint8)


def test_patches_are_found_to_part_of_a_pixel() -> None:
    x, y = np.meshgrid(np.arange(240.0), np.arange(200.0))
    affine = np.array([[1.05, 0.04], [-0.03, 0.96]])
    back = np.linalg.inv(affine)
    at = np.stack([x - 4.3, y + 2.6], -1) @ back.T
    first, second = picture(x, y), (0.7 * picture(at[..., 0], at[..., 1]) + 30).astype(np.uint8)  # darker, flatter
    xy = np.stack(np.meshgrid(np.arange(60, 180, 20), np.arange(60, 150, 20)), -1).reshape(-1, 2).astype(float)
    true = xy @ affine.T + [4.3, -2.6]
    expected = true + np.random.default_rng(0).uniform(-1.5, 1.5, true.shape)
    found, good = find_again(first, second, xy, expected, np.tile(affine, (len(xy), 1, 1)), 6.0)
    assert good.mean() > 0.9
    assert np.median(np.linalg.norm(found - true, axis=1)[good]) < 0.05
    blank = np.full_like(second, 90)
    assert not find_again(first, blank, xy, expected, np.tile(affine, (len(xy), 1, 1)), 6.0)[1].any()
    assert not find_again(blank, second, xy, expected, np.tile(affine, (len(xy), 1, 1)), 6.0)[1].any()


def test_corners_are_the_best_places_of_their_cells() -> None:
    grey = np.full((120, 160), 100, dtype=np.uint8)
    grey[:, 70:] = 200
    grey[60:] = 50
    found = corners(grey, (40.0, 40.0), (0.0, 0.0), (3, 4))
    assert np.abs(found[1, 1] - [70, 60]).max() < 10  # the only corner; its cell is x 40 to 80, y 40 to 80
    assert np.isnan(found[0, 0]).all()


Wall = tuple[dict[int, CanonicalView], dict[int, FixedCamera], tuple[Correspondences, ...], np.ndarray]


@pytest.fixture
def wall() -> Wall:
    """Two views of a wall, their matches, and the true depth of the anchors of the first."""
    poses = [np.eye(4), pose_of(-8, (0.8, 0.05, 0.1))]
    views, matches = views_of_wall(poses)
    cameras = {k: FixedCamera(K, 0.0, pose) for k, pose in enumerate(poses)}
    return views, cameras, matches, views[0].core_depth.numpy()


def test_a_photo_placed_anew_is_in_the_frame_of_the_others() -> None:
    """Wherever the first camera of the refinement lies and looks."""
    world = pose_of(70, (3.0, -2, 1))  # of the refinement, in which no camera is the origin
    poses = [np.eye(4), pose_of(-8, (0.8, 0.05, 0.1)), pose_of(6, (-0.7, 0.3, -0.1)), pose_of(4, (0.4, -0.4, 0.2))]
    canonical, matches = views_of_wall(poses)
    transform = ImageTransform((W, H), (W, H), (0, 0), (W, H))
    images = [View(k, Path(f"{k}.png"), np.zeros((H, W, 3), np.uint8), transform) for k in range(4)]
    pairs = tuple((m.i, m.j) for m in matches)
    summaries = tuple(PairSummary(i, j, 96, 96, True) for i, j in pairs)
    data = PairwiseData(pairs, tuple(canonical.values()), matches, {}, summaries)
    true = np.linalg.inv(world @ np.stack(poses))
    start = true.copy()
    start[3] = pose_of(25, (0.5, 0, 0)) @ start[3]  # misplaced
    group = CameraGroup((W, H), 90.0, (47.5, 31.5))
    nothing, empty = np.full(4, np.nan), np.zeros(0, dtype=np.int64)
    refined = RefinedCameras(
        start, (group,), (0,) * 4, np.array([True, True, True, False]), np.array([99, 99, 99, 0]), nothing, nothing[:1],
        nothing, 3.0, (np.zeros(0),) * 4, np.zeros((0, 3)), empty, empty, empty, np.zeros(0),
    )  # fmt: skip
    anchors = tuple(view.core_depth for view in canonical.values())
    features = (LocalFeatures.none(),) * 4
    best = Candidate(Start((0, 1, 2, 3), start, np.stack([K] * 4), (group,), (0,) * 4, anchors), features, refined, 0)
    evidence = FeatureEvidence(features, {})
    placed = with_resections(images, data, evidence, best, ReconstructionOptions())
    assert placed.refined is not None
    np.testing.assert_allclose(placed.refined.cam_from_world, true, atol=0.02)


def test_anchors_come_back_from_matches(wall: Wall) -> None:
    views, cameras, matches, true = wall
    sides = match_sides(views, cameras, matches, S)
    factor = np.linspace(-0.2, 0.2, true.shape[1])  # a prediction that is bent
    start = (true * np.exp(factor)).astype(np.float32)
    solved = solve_anchors(start, sides[0])
    observed = np.unique(sides[0].sightings.anchor)
    before, after = (np.abs(np.log(d / true)).ravel()[observed] for d in (start, solved))
    assert np.median(after) < np.median(before) / 5
    errors = [np.median(errors_of(depth, sides[0])) for depth in (start, solved)]
    assert errors[1] < errors[0] / 5


def test_anchors_follow_the_depth_of_tracks(wall: Wall) -> None:
    """A factor of the whole prediction is told by a few points, and carries over to what nothing observes."""
    views, cameras, _, true = wall
    xy = torch.tensor([[12.0, 12], [50, 30], [84, 52], [20, 50]])
    sightings = Sightings.of(views[0], xy, cameras[0], S)
    depths = true.ravel()[sightings.anchor] * sightings.factor
    solved = solve_anchors(1.15 * true, None, (sightings, depths))
    assert np.abs(np.log(solved / true)).max() < 0.15 / 2
    assert np.abs(np.log(solved / true)).ravel()[sightings.anchor].max() < 0.01
    np.testing.assert_allclose(solve_anchors(true, None), true, rtol=1e-5)


def test_anchors_that_start_behind_the_camera_come_back_to_the_others(wall: Wall) -> None:
    """A network may predict a depth that is not positive; its logarithm would spoil the whole view."""
    _, _, _, true = wall
    start = true.copy()
    start[1, 2], start[0, 0] = -0.04, np.nan
    solved = solve_anchors(start, None)
    assert (solved > 0).all() and np.abs(np.log(solved / true)).max() < 0.5


def view(index: int, error: float, refined: bool = False, conf: float = 2.0) -> ReconstructedView:
    size = (20, 10)
    maps = np.ones((10, 20), np.float32)
    rgb = np.zeros((10, 20, 3), np.uint8)
    K = np.array([[20.0, 0, 9.5], [0, 20, 4.5], [0, 0, 1]])
    made = ReconstructedView(
        index, f"{index}.jpg", ImageTransform(size, size, (0, 0), size), rgb, True, K, np.eye(4), maps, conf * maps,
        conf * maps, error, 9,
    )  # fmt: skip
    return dataclasses.replace(made, refined=refined)


def test_doubtful_views_are_named_with_their_number() -> None:
    views = [view(k, 0.02) for k in range(4)] + [view(4, 0.11), view(5, 5.0), view(6, float("nan"))]
    found = doubts(views)
    assert set(found) == {4, 5}
    assert "5.5 times as much as usual" in found[4] and "5 px off" in found[5] and "1.5 % of 20 px" in found[5]
    assert doubts([view(0, 5.0, refined=True)]) == {}


def test_warnings_name_the_first_doubtful_photos_and_count_the_others(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("WARNING"):
        warn_of_doubts([view(k, 5.0) for k in range(8)])
    messages = [record.getMessage() for record in caplog.records]
    assert [message.partition(":")[0] for message in messages[:5]] == [f"{k}.jpg" for k in range(5)]
    assert messages[5:] == [
        "the cameras of 3 more photos are doubtful, for which cameras.json has the reasons: 5.jpg, 6.jpg, 7.jpg"
    ]


def test_what_features_leave_open_or_deny_is_doubted_even_if_refined() -> None:
    # 0.5 % of 400 px are 2
    good = dataclasses.replace(view(0, 0.02, refined=True), depth=np.ones((300, 400), np.float32))
    assert doubts([dataclasses.replace(good, apart_error_px=1.9, num_confirmed=900, num_explained=460)]) == {}
    apart = dataclasses.replace(good, apart_error_px=2.1)
    assert "2.1 px off" in doubts([apart])[0] and "no local feature connects it" in doubts([apart])[0]
    alike = dataclasses.replace(good, num_confirmed=900, num_explained=440)
    assert "only 440 of 900" in doubts([alike])[0]
    assert doubts([dataclasses.replace(good, num_confirmed=30, num_explained=0)]) == {}  # too few to say so
    assert doubts([dataclasses.replace(apart, registered=False)]) == {}
    small = dataclasses.replace(good, depth=np.ones((120, 160), np.float32))  # 256 / 160 px
    assert doubts([dataclasses.replace(small, apart_error_px=1.5)]) == {}
    assert "more than 1.6 px" in doubts([dataclasses.replace(small, apart_error_px=1.7)])[0]


def test_the_default_threshold_gives_way_to_an_empty_scene(caplog: pytest.LogCaptureFixture) -> None:
    dim = view(0, 0.1)
    dim.conf_clean[:] = np.linspace(1, 2, 200).reshape(10, 20)
    scene = Reconstruction((dim,), ())
    options = scene._with_threshold(None)
    assert (dim.conf_clean > options.threshold).mean() == pytest.approx(0.2, abs=0.02)
    assert f"less than {100 * LEAST_SHARE:.0f} % of the pixels" in caplog.text
    asked = dataclasses.replace(options, min_conf_thr=3.0)
    assert scene._with_threshold(asked).threshold == 3.0
    assert Reconstruction((view(0, 0.1, conf=9.0),), ())._with_threshold(None).threshold == 3.0
