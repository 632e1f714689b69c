"""What local features say of cameras: order in the plane, what they connect, what they explain."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from wall_scene import H, S, W, make_wall

from mast3r_sfm.alignment import AlignedGroup
from mast3r_sfm.alignment.solver import AlignmentResult
from mast3r_sfm.geometry import project
from mast3r_sfm.local_features import FeatureEvidence
from mast3r_sfm.pairwise import PairwiseData
from mast3r_sfm.refine import _what_got_worse
from mast3r_sfm.support import parts_by_features, with_support
from mast3r_sfm.tracks import (
    CameraGroup,
    LocalFeatures,
    TrackView,
    colmap_camera,
    confirm_pair,
    is_flat,
    refine_cameras,
)
from mast3r_sfm.tracks.orientation import upright_share
from mast3r_sfm.types import FeatureSupport, ImageTransform, Refinement, Tracks, View

SIZE = (1000, 800)
GROUP = CameraGroup(SIZE, 900.0, (499.5, 399.5))


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
    return project(points @ pose[:3, :3].T + pose[:3, 3], GROUP.K), pose


def test_mirrored_matches_confirm_nothing() -> None:
    rng = np.random.default_rng(0)
    points = np.stack([rng.uniform(-1, 1, 200), rng.uniform(-0.8, 0.8, 200), np.full(200, 3.0)], axis=1)
    points[:, 2] += 0.3 * np.sin(3 * points[:, 0])
    (first, _), (second, _) = seen_from(points, 0, (0, 0, 0)), seen_from(points, -10, (0.6, 0, 0))
    camera, index = colmap_camera(GROUP, 1), np.stack([np.arange(200)] * 2, axis=1)
    found = confirm_pair(camera, first, camera, second, index, 4.0)
    assert found is not None and len(found.inlier_matches) > 180 and not is_flat(found)
    mirrored = first * [-1, 1] + [SIZE[0] - 1, 0]
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
    refined = refine_cameras(views, [GROUP], [(0, 1)], known)
    assert (refined is None) == (relief == 0 or centre == (0, 0, 0))


def test_parts_hang_together_by_features() -> None:
    assert parts_by_features((2, 5, 6, 9), [(9, 5), (2, 7), (6, 5)]).tolist() == [1, 0, 0, 0]
    assert parts_by_features((0, 1), []).tolist() == [0, 1]


def wall_group(evidence_pairs: bool) -> tuple[AlignedGroup, list[View], PairwiseData, FeatureEvidence]:
    """Two aligned views of a wall, and features that confirm the pair or none."""
    views, cameras, matches, _ = make_wall()
    transform = ImageTransform((W, H), (W, H), (0, 0), (W, H))
    images = [View(k, Path(f"{k}.png"), np.zeros((H, W, 3), np.uint8), transform) for k in range(2)]
    data = PairwiseData(((0, 1),), tuple(views.values()), matches, {}, ())
    result = AlignmentResult(
        torch.from_numpy(np.stack([cameras[k].K for k in range(2)])),
        torch.from_numpy(np.stack([cameras[k].world_from_cam for k in range(2)])),
        tuple(views[k].core_depth for k in range(2)),
        torch.zeros(0),
        torch.zeros(0),
    )
    aligned = AlignedGroup((0, 1), result, torch.tensor([0.1, 0.1], dtype=torch.float64), matches)
    places = [side.double().numpy() for side in (matches[0].xy_i, matches[0].xy_j)]
    count = len(places[0])
    features = tuple(
        LocalFeatures(xy, np.eye(count, dtype=np.float32), np.ones(count, np.float32), np.zeros((count, 3), np.uint8))
        for xy in places
    )
    camera = colmap_camera(CameraGroup((W, H), 90.0, (47.5, 31.5)), 1)
    index = np.stack([np.arange(count)] * 2, axis=1)
    geometry = confirm_pair(camera, places[0], camera, places[1], index, 1.0)
    assert geometry is not None
    return aligned, images, data, FeatureEvidence(features, {(0, 1): geometry} if evidence_pairs else {})


def test_right_cameras_explain_what_features_confirm() -> None:
    aligned, images, data, evidence = wall_group(True)
    support = with_support(aligned, images, data, evidence, S).support
    assert support is not None and np.isnan(support.apart_errors_px).all()
    assert support.num_confirmed[0] == support.num_confirmed[1] > 40
    assert np.array_equal(support.num_explained, support.num_confirmed)
    tilted = aligned.cameras.world_from_cam.clone()
    turn = Rotation.from_euler("x", 20, degrees=True).as_matrix()
    tilted[1, :3, :3] = tilted[1, :3, :3] @ torch.from_numpy(turn)
    wrong = dataclasses.replace(aligned, cameras=dataclasses.replace(aligned.cameras, world_from_cam=tilted))
    support = with_support(wrong, images, data, evidence, S).support
    assert support is not None and (support.num_explained < support.num_confirmed / 2).all()


def test_without_features_the_networks_matches_are_judged() -> None:
    aligned, images, data, evidence = wall_group(False)
    support = with_support(aligned, images, data, evidence, S).support
    assert support is not None and (support.apart_errors_px < 0.1).all() and not support.num_confirmed.any()
    shifted = aligned.cameras.world_from_cam.clone()
    shifted[1, 1, 3] += 0.4  # of a wall four away, seen at 90 px: about 9 px
    wrong = dataclasses.replace(aligned, cameras=dataclasses.replace(aligned.cameras, world_from_cam=shifted))
    support = with_support(wrong, images, data, evidence, S).support
    assert support is not None and (support.apart_errors_px > 5).all()


def test_refined_cameras_that_explain_less_are_given_up() -> None:
    aligned, images, _, evidence = wall_group(True)
    nothing = np.zeros(0)
    tracks = Tracks(np.zeros((0, 3)), np.zeros((0, 3), np.uint8), nothing, nothing, nothing, np.zeros((0, 2)))
    zeros = np.zeros(2)
    refinement = Refinement(np.ones(2, dtype=bool), zeros, zeros, zeros, zeros, zeros, tracks)

    def supported(explained: int, is_refined: bool) -> AlignedGroup:
        support = FeatureSupport(np.full(2, np.nan), np.array([100, 100]), np.array([explained, explained]))
        return dataclasses.replace(aligned, support=support, refinement=refinement if is_refined else None)

    def fault(before: int, after: int) -> str | None:
        return _what_got_worse(images, supported(before, False), supported(after, True), evidence)

    assert fault(95, 90) is None
    assert "explain 95 of 100" in (fault(95, 80) or "") and "only 80" in (fault(95, 80) or "")
    assert fault(60, 40) is None  # most matches are wrong, whichever cameras are right
