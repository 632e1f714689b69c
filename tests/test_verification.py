"""Two opinions on a point: hand-made maps where one match is right and one is wrong."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from mast3r_sfm.matching import verify_batch, verify_matches
from mast3r_sfm.matching.geometric_check import disagreement
from mast3r_sfm.options import VerificationLimits
from mast3r_sfm.types import Correspondences, PairPrediction, ViewPrediction


def _pair(shift: float) -> PairPrediction:
    """Two 2 x 3 images of the same points at distance 4 on the axis; j's opinions are `shift` off along z."""
    points = torch.zeros(2, 3, 3)
    points[..., 2] = 4.0
    moved = points.clone()
    moved[0, 2, 2] += shift  # pixel (x=2, y=0) only
    view = lambda p: ViewPrediction(p, torch.ones(2, 3))  # noqa: E731
    return PairPrediction(0, 1, view(points), view(moved), view(points), view(points))


def _matches(count: int = 1) -> Correspondences:
    xy = torch.tensor([[0, 1], [2, 0]], dtype=torch.int32).repeat(count, 1)
    return Correspondences(0, 1, xy, xy, torch.ones(len(xy)))


def _none() -> Correspondences:
    nowhere = torch.zeros(0, 2, dtype=torch.int32)
    return Correspondences(0, 1, nowhere, nowhere, torch.zeros(0))


def test_disagreement_is_relative_to_the_distance() -> None:
    assert disagreement([_pair(1.0)], [_matches()]).tolist() == pytest.approx([0.0, 0.25])


def test_wrong_matches_are_dropped() -> None:
    limits = VerificationLimits(max_distance=0.1, min_share=0.2, min_matches=1)
    kept, believed = verify_matches(_pair(1.0), _matches(), limits)
    assert kept.xy_i.tolist() == [[0, 1]] and believed


@pytest.mark.parametrize(
    ("limits", "believed"), [((0.1, 0.5, 1), True), ((0.1, 0.6, 1), False), ((0.1, 0.1, 9), False)]
)
def test_pair_needs_a_share_and_a_number(limits: tuple[float, float, int], believed: bool) -> None:
    assert verify_matches(_pair(1.0), _matches(4), VerificationLimits(*limits))[1] is believed


def test_point_at_the_camera_is_denied() -> None:
    pair = _pair(0.0)
    pair.i_in_i.points[0, 2] = 0
    pair.j_in_i.points[0, 2] = 0
    assert disagreement([pair], [_matches()]).tolist() == [0.0, float("inf")]


def test_no_match_at_all() -> None:
    kept, believed = verify_matches(_pair(0.0), _none(), VerificationLimits())
    assert len(kept) == 0 and not believed


def test_pairs_of_a_batch_do_not_mix() -> None:
    # the second pair denies every match at (2, 0), the first and the last none
    batch = [_pair(0.0), _pair(1.0), _pair(0.0), _pair(0.1)]
    confs = [torch.arange(1.0, 5.0), torch.arange(5.0, 9.0), torch.zeros(0), torch.arange(9.0, 13.0)]
    matches = [_matches(2), _matches(2), _none(), _matches(2)]
    matches = [Correspondences(m.i, m.j, m.xy_i, m.xy_j, conf) for m, conf in zip(matches, confs, strict=True)]
    limits = VerificationLimits(max_distance=0.1, min_share=0.6, min_matches=1)
    found = verify_batch(batch, matches, limits)
    assert [kept.conf.tolist() for kept, _ in found] == [[1, 2, 3, 4], [5, 7], [], [9, 10, 11, 12]]
    assert [believed for _, believed in found] == [True, False, False, True]
    assert found[1][0].xy_i.tolist() == [[0, 1], [0, 1]] and found[1][0].xy_i.dtype == torch.int32


def test_an_empty_batch_is_nothing() -> None:
    assert verify_batch([], [], VerificationLimits()) == []


@pytest.mark.parametrize(("conf", "believed"), [([3.0] * 2 + [1.0] * 8, True), ([3.0] + [1.0] * 11, False)])
def test_one_match_in_ten_must_be_sure(conf: list[float], believed: bool) -> None:
    """A network may see the same surface in two images of noise; its descriptors are not sure of it."""
    count = len(conf)
    matches = dataclasses.replace(_matches(count // 2), conf=torch.tensor(conf))
    limits = VerificationLimits(max_distance=0.1, min_share=0.2, min_matches=1, min_conf=2.5)
    kept, is_believed = verify_matches(_pair(0.0), matches, limits)
    assert len(kept) == count and is_believed is believed
    assert verify_matches(_pair(0.0), matches, dataclasses.replace(limits, min_conf=None))[1]
