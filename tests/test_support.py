"""What local features say of cameras: what they connect, what they explain, and when refined cameras are given up."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from scipy.spatial.transform import Rotation
from wall_scene import H, K, S, W, pose_of, views_of_wall

from mast3r_sfm.alignment import AlignedGroup
from mast3r_sfm.alignment.solver import AlignmentResult
from mast3r_sfm.local_features import FeatureEvidence
from mast3r_sfm.pairwise import PairwiseData
from mast3r_sfm.refine import _what_got_worse
from mast3r_sfm.support import parts_by_features, with_support
from mast3r_sfm.tracks import CameraGroup, LocalFeatures, colmap_camera, confirm_pair
from mast3r_sfm.types import FeatureSupport, ImageTransform, Refinement, Tracks, View

POSES = (np.eye(4), pose_of(-8, (0.8, 0.05, 0.1)), pose_of(6, (-0.7, 0.3, -0.1)))
CANONICAL, MATCHES = views_of_wall(POSES)
IMAGES = tuple(
    View(k, Path(f"{k}.png"), np.zeros((H, W, 3), np.uint8), ImageTransform((W, H), (W, H), (0, 0), (W, H)))
    for k in range(3)
)


def aligned_with(poses: Sequence[np.ndarray]) -> AlignedGroup:
    cameras = AlignmentResult(
        torch.from_numpy(np.stack([K] * 3)),
        torch.from_numpy(np.stack(poses)),
        tuple(view.core_depth for view in CANONICAL.values()),
        torch.zeros(0),
        torch.zeros(0),
    )
    return AlignedGroup((0, 1, 2), cameras, torch.full((3,), 0.1, dtype=torch.float64), MATCHES)


def evidence_of(pairs: Sequence[tuple[int, int]]) -> FeatureEvidence:
    """Features where the network matches them, and of these pairs what one geometry confirms."""
    places: list[list[np.ndarray]] = [[], [], []]
    index: dict[tuple[int, int], np.ndarray] = {}
    for m in MATCHES:
        first, second = (sum(len(own) for own in places[k]) for k in (m.i, m.j))
        places[m.i].append(m.xy_i.double().numpy())
        places[m.j].append(m.xy_j.double().numpy())
        index[m.i, m.j] = np.stack([first + np.arange(len(m)), second + np.arange(len(m))], axis=1)
    xy = [np.concatenate(own) for own in places]
    features = tuple(
        LocalFeatures(
            own, np.eye(len(own), dtype=np.float32), np.ones(len(own), np.float32), np.zeros((len(own), 3), np.uint8)
        )
        for own in xy
    )
    camera = colmap_camera(CameraGroup((W, H), 90.0, (47.5, 31.5)), 1)
    confirmed = {}
    for i, j in pairs:
        geometry = confirm_pair(camera, xy[i], camera, xy[j], index[i, j], 1.0)
        assert geometry is not None
        confirmed[i, j] = geometry
    return FeatureEvidence(features, confirmed)


def support_of(poses: Sequence[np.ndarray], pairs: Sequence[tuple[int, int]]) -> FeatureSupport:
    data = PairwiseData(tuple((m.i, m.j) for m in MATCHES), tuple(CANONICAL.values()), MATCHES, {}, ())
    found = with_support(aligned_with(poses), IMAGES, data, evidence_of(pairs), S).support
    assert found is not None
    return found


def test_parts_hang_together_by_features() -> None:
    assert parts_by_features((2, 5, 6, 9), [(9, 5), (2, 7), (6, 5)]).tolist() == [1, 0, 0, 0]
    assert parts_by_features((0, 1), []).tolist() == [0, 1]


def test_views_that_no_feature_connects_are_judged_by_the_networks_matches() -> None:
    """By those with the others: right cameras pass, a shifted one does not. Where features connect all, none is."""
    assert np.isnan(support_of(POSES, [(0, 1), (0, 2)]).apart_errors_px).all()
    right = support_of(POSES, [(0, 1)])
    assert np.isnan(right.apart_errors_px[:2]).all() and right.apart_errors_px[2] < 0.1
    assert right.num_confirmed[0] > 40 and right.num_confirmed[2] == 0
    shifted = [*POSES[:2], pose_of(6, (-0.7, 0.7, -0.1))]  # by 0.4 before a wall four away: about 9 px
    assert support_of(shifted, [(0, 1)]).apart_errors_px[2] > 5
    assert (support_of(shifted, []).apart_errors_px > 0).all()  # nothing connects any of them


def test_right_cameras_explain_what_features_confirm() -> None:
    right = support_of(POSES, [(0, 1), (0, 2)])
    assert (right.num_confirmed[1:] > 40).all() and right.num_confirmed[0] == right.num_confirmed[1:].sum()
    np.testing.assert_array_equal(right.num_explained, right.num_confirmed)
    tilted = POSES[1].copy()
    tilted[:3, :3] = tilted[:3, :3] @ Rotation.from_euler("x", 20, degrees=True).as_matrix()
    wrong = support_of([POSES[0], tilted, POSES[2]], [(0, 1), (0, 2)])
    np.testing.assert_array_equal(wrong.num_confirmed, right.num_confirmed)
    assert wrong.num_explained[1] < right.num_confirmed[1] / 2 and wrong.num_explained[2] == right.num_confirmed[2]


def test_few_matches_judge_no_camera() -> None:
    """Twenty of thousands agree with one geometry by accident."""
    evidence = evidence_of([(0, 1)])
    assert evidence.num_confirmed((0, 1, 2), 40).tolist() == evidence.num_confirmed((0, 1, 2)).tolist()
    assert evidence.num_confirmed((0, 1, 2), 1000).tolist() == [0, 0, 0] and not evidence.among((0, 1, 2), 1000)


def test_refined_cameras_that_explain_less_are_given_up() -> None:
    nothing, zeros = np.zeros(0), np.zeros(3)
    tracks = Tracks(np.zeros((0, 3)), np.zeros((0, 3), np.uint8), nothing, nothing, nothing, np.zeros((0, 2)))
    refinement = Refinement(np.ones(3, dtype=bool), zeros, zeros, zeros, zeros, zeros, tracks)
    evidence = evidence_of([(0, 1), (0, 2)])

    def explaining(explained: int, is_refined: bool) -> AlignedGroup:
        support = FeatureSupport(np.full(3, np.nan), np.array([200, 100, 100]), explained * np.array([2, 1, 1]))
        return dataclasses.replace(aligned_with(POSES), support=support, refinement=refinement if is_refined else None)

    def fault(before: int, after: int) -> str | None:
        return _what_got_worse(IMAGES, explaining(before, False), explaining(after, True), evidence)

    assert fault(95, 90) is None
    assert "explain 190 of 200" in (fault(95, 80) or "") and "only 160" in (fault(95, 80) or "")
    assert fault(60, 40) is None  # most matches are wrong, whichever cameras are right
