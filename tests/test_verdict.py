"""What speaks for and against a result, and the words for it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import pytest
from wall_scene import H, K, W, pose_of, views_of_wall

from mast3r_sfm.types import ImageTransform, Level, PairSummary, ReconstructedView, Verdict
from mast3r_sfm.verdict import verdict_on
from mast3r_sfm.verdict.evidence import PairEvidence, SceneEvidence, ViewEvidence, collect_evidence
from mast3r_sfm.verdict.judgement import LIMITS, judge
from mast3r_sfm.verdict.rift import cuts_of, find_bridge, find_rift

POSES = (np.eye(4), pose_of(-8, (0.8, 0.05, 0.1)), pose_of(6, (-0.7, 0.3, -0.1)), pose_of(-4, (0.3, -0.4, 0)))
CANONICAL, MATCHES = views_of_wall(POSES)
SUMMARIES = tuple(PairSummary(m.i, m.j, len(m), len(m), True) for m in MATCHES)
GROUPS = ((0, 1, 2, 3),)


def views_at(poses: Sequence[np.ndarray]) -> list[ReconstructedView]:
    """The views of the wall with their true depth, at the given poses."""
    found = []
    for k, pose in enumerate(poses):
        view = CANONICAL[k]
        depth = (view.relative_depth * view.core_depth.repeat_interleave(8, 0).repeat_interleave(8, 1)).numpy()
        conf = np.full((H, W), 3.0, np.float32)
        transform = ImageTransform((W, H), (W, H), (0, 0), (W, H))
        found.append(
            ReconstructedView(
                k, f"photo_{k}.jpg", transform, np.zeros((H, W, 3), np.uint8), True, K, pose, depth, conf, conf, 0.2, 9
            )
        )
    return found


def test_true_cameras_are_good() -> None:
    evidence = collect_evidence(views_at(POSES), MATCHES, SUMMARIES)
    for view in evidence.views:
        assert view.explained == 1 and view.num_partners == 3 and view.contradiction == 0
        assert view.num_explained == sum(len(m) for m in MATCHES if view.index in (m.i, m.j))
    for pair in evidence.pairs:
        assert pair.explained == 1 and pair.confirmed == 1 and pair.covisible > 0.5
    verdict = verdict_on(views_at(POSES), MATCHES, SUMMARIES, GROUPS)
    assert verdict.overall == Verdict(Level.GOOD) and all(own.level is Level.GOOD for own in verdict.views)


def test_the_angle_is_that_between_the_rays() -> None:
    """Two cameras a unit apart see a point four units ahead of the first under atan(1 / 4)."""
    evidence = collect_evidence(views_at(POSES), MATCHES, SUMMARIES)
    pair = next(one for one in evidence.pairs if (one.i, one.j) == (0, 1))
    centres = POSES[0][:3, 3], POSES[1][:3, 3]
    assert pair.angle_deg == pytest.approx(np.degrees(np.arctan(np.linalg.norm(centres[1] - centres[0]) / 4)), rel=0.2)


def test_a_camera_in_a_wrong_place_is_named() -> None:
    wrong = POSES[3].copy()
    wrong[:3, 3] += (0.3, 0.2, 0.9)
    views = views_at([*POSES[:3], wrong])
    evidence = collect_evidence(views, MATCHES, SUMMARIES)
    assert evidence.views[3].explained < 0.3 and min(view.explained for view in evidence.views[:3]) > 0.6
    verdict = verdict_on(views, MATCHES, SUMMARIES, GROUPS)
    assert verdict.views[3].level is not Level.GOOD and verdict.overall.level is not Level.GOOD
    assert "photo_3.jpg" in " ".join(verdict.overall.reasons)


def test_photos_from_one_place_are_poor() -> None:
    views = views_at([pose_of(turn, (0, 0, 0)) for turn in (-8, -3, 3, 8)])
    verdict = verdict_on(views, (), SUMMARIES, GROUPS)
    assert verdict.overall.level is Level.POOR and "one place" in verdict.overall.reasons[0]


def test_one_photo_is_doubtful() -> None:
    verdict = verdict_on(views_at(POSES[:1]), (), (), ((0,),))
    assert verdict.overall.level is Level.DOUBTFUL and "one photo" in verdict.overall.reasons[0]


# ------------------------------------------------------------------ words
NAMES = [f"view_{k:02d}.jpg" for k in range(8)]


def scene_evidence(**changes: object) -> SceneEvidence:
    """Sound evidence of eight views in a ring, with changes."""
    views = tuple(ViewEvidence(k, 900, 0.8, 4, 0.005, 0.05) for k in range(8))
    pairs = tuple(PairEvidence(k, (k + 1) % 8, 400, 0.8, 20.0, 0.8, 0.6) for k in range(8))
    return dataclasses.replace(SceneEvidence(views, pairs, 20.0, 0.8, 0.5), **changes)  # type: ignore[arg-type]


def with_view(evidence: SceneEvidence, index: int, **changes: object) -> SceneEvidence:
    views = list(evidence.views)
    views[index] = dataclasses.replace(views[index], **changes)  # type: ignore[arg-type]
    return dataclasses.replace(evidence, views=tuple(views))


def judged(evidence: SceneEvidence, doubted: dict[int, str] | None = None) -> tuple[Verdict, tuple[Verdict, ...]]:
    verdict = judge(NAMES, evidence, doubted or {}, (), (tuple(range(8)),))
    return verdict.overall, verdict.views


def test_sound_evidence_is_good() -> None:
    overall, views = judged(scene_evidence())
    assert overall == Verdict(Level.GOOD) and set(views) == {Verdict(Level.GOOD)}


@pytest.mark.parametrize(
    ("changes", "level", "words"),
    [
        ({"num_partners": 1}, Level.DOUBTFUL, "only one other photo"),
        ({"num_partners": 0}, Level.DOUBTFUL, "few matches"),
        ({"error": 0.02}, Level.DOUBTFUL, "2.0 %"),
        ({"error": 0.05}, Level.POOR, "5.0 %"),
        ({"explained": 0.4}, Level.DOUBTFUL, "40 %"),
        ({"explained": 0.1}, Level.POOR, "10 %"),
        ({"contradiction": 0.5}, Level.DOUBTFUL, "see through"),
    ],
)
def test_what_speaks_against_a_photo(changes: dict[str, float], level: Level, words: str) -> None:
    overall, views = judged(with_view(scene_evidence(), 3, **changes))
    assert views[3].level is level and words in views[3].reasons[0]
    assert all(view.level is Level.GOOD for k, view in enumerate(views) if k != 3)
    assert overall.level is Level.DOUBTFUL and "view_03.jpg" in overall.reasons[0]


def test_places_that_look_alike_are_named_at_both() -> None:
    evidence = scene_evidence()
    pairs = (dataclasses.replace(evidence.pairs[0], confirmed=0.3), *evidence.pairs[1:])
    _, views = judged(dataclasses.replace(evidence, pairs=pairs))
    assert "view_01.jpg" in views[0].reasons[0] and "view_00.jpg" in views[1].reasons[0]
    assert "look alike" in views[0].reasons[0] and views[2].level is Level.GOOD


def test_a_doubt_is_a_reason_unless_there_are_better_ones() -> None:
    _, views = judged(with_view(scene_evidence(), 1, error=0.02), {1: "other", 2: "its camera says nothing"})
    assert views[2] == Verdict(Level.DOUBTFUL, ("its camera says nothing",)) and "other" not in views[1].reasons


def test_cameras_on_a_line_are_told() -> None:
    overall, _ = judged(scene_evidence(straight=0.001))
    assert overall.level is Level.DOUBTFUL and "on a line" in overall.reasons[0]


def test_one_doubtful_photo_of_many_leaves_the_result_good() -> None:
    names = [f"{k}.jpg" for k in range(40)]
    views = tuple(ViewEvidence(k, 900, 0.8, 4, 0.02 if k == 7 else 0.005, 0.05) for k in range(40))
    verdict = judge(names, scene_evidence(views=views), {}, (), (tuple(range(40)),))
    assert verdict.overall.level is Level.GOOD and verdict.views[7].level is Level.DOUBTFUL


def test_photos_left_out_are_told_why() -> None:
    evidence = scene_evidence(views=scene_evidence().views[:4], pairs=scene_evidence().pairs[:3])
    summaries = (PairSummary(2, 7, 200, 30, False), PairSummary(3, 7, 100, 10, False))
    verdict = judge(NAMES, evidence, {}, summaries, ((0, 1, 2, 3), (4, 5, 6), (7,)))
    assert verdict.views[4].level is Level.POOR and "view_05.jpg, view_06.jpg" in verdict.views[4].reasons[0]
    assert "at best 30 of 200" in verdict.views[7].reasons[0] and "view_02.jpg" in verdict.views[7].reasons[0]
    assert verdict.overall.level is Level.DOUBTFUL
    assert any("group 2: view_04.jpg, view_05.jpg, view_06.jpg" in reason for reason in verdict.overall.reasons)


def with_pairs_at_odds(*first: int, num_features: int = 0) -> SceneEvidence:
    """The ring, in which the cameras explain a tenth of the matches of the pairs (k, k + 1) for k in `first`."""
    evidence = scene_evidence()
    pairs = tuple(
        dataclasses.replace(pair, explained=0.1, covisible=0.01, num_features=num_features) if k in first else pair
        for k, pair in enumerate(evidence.pairs)
    )
    return dataclasses.replace(evidence, pairs=pairs)


def test_sets_that_only_unexplained_matches_join_are_told() -> None:
    # photos 0 to 2 agree, and 3 to 7; wrong cameras show little in common, so covisible shares are small
    overall, _ = judged(with_pairs_at_odds(2, 7))
    assert overall.level is Level.DOUBTFUL
    assert "only within 2 sets, the largest of 5 photos, the others with view_00.jpg:" in overall.reasons[0]
    # 0 to 2, 3 to 5, 6 and 7: no set of half of the photos
    overall, _ = judged(with_pairs_at_odds(2, 5, 7))
    assert overall.level is Level.POOR and "largest of 3 photos, the others with view_03.jpg" in overall.reasons[0]
    overall, _ = judged(with_pairs_at_odds(2, 5, 7, num_features=200))  # which say that the photos do show the same
    assert not any("sets" in reason for reason in overall.reasons)
    overall, _ = judged(with_pairs_at_odds(2))  # a ring is joined the other way round
    assert overall.level is Level.GOOD


def test_matches_behind_cameras_are_no_number() -> None:
    _, views = judged(with_view(scene_evidence(), 3, error=float("inf")))
    assert views[3].level is Level.POOR and "behind cameras" in views[3].reasons[0] and "inf" not in views[3].reasons[0]


def test_photos_that_are_masked_as_a_whole_do_not_count_as_not_connecting() -> None:
    evidence = scene_evidence(views=scene_evidence().views[:3], pairs=scene_evidence().pairs[:2])
    groups = ((0, 1, 2), *((k,) for k in range(3, 8)))
    verdict = judge(NAMES, evidence, {}, (), groups, unusable=(3, 4, 5, 6))
    assert verdict.overall.level is Level.DOUBTFUL  # three of the four that can be used: more than half
    masked, left_out = verdict.overall.reasons
    assert masked.startswith("4 of 8 photos are masked") and masked.endswith("view_06.jpg: check their masks")
    assert left_out == "1 of 8 photos do not connect: view_07.jpg: add photos between them"
    assert "its mask" in verdict.views[4].reasons[0] and "looked at" in verdict.views[7].reasons[0]


# ------------------------------------------------------------------ cuts
def two_rooms(across: float, num_features: int = 0) -> tuple[PairEvidence, ...]:
    """Photos 0 to 3 and 4 to 7, all pairs; those across share as much as those within and confirm `across` of it."""
    return tuple(
        PairEvidence(i, j, 400, 0.8, 20.0, 0.6, 0.5, 0, 30.0)
        if (i < 4) == (j < 4)
        else PairEvidence(i, j, 200, 0.8, 20.0, across * 0.6, 0.5, num_features, 30.0)
        for i in range(8)
        for j in range(i + 1, 8)
    )


def test_a_rift_is_where_pairs_across_agree_less() -> None:
    pairs = two_rooms(0.78)
    rift = find_rift(pairs, cuts_of(pairs), 0.15, 90, 0.3, 100)
    assert rift is not None and rift.likeness == pytest.approx(0.78) and set(rift.side) in ({0, 1, 2, 3}, {4, 5, 6, 7})
    overall, views = judged(scene_evidence(pairs=pairs))
    assert overall.level is Level.DOUBTFUL and "78 %" in overall.reasons[0] and "look alike" in overall.reasons[0]
    assert all(view.level is Level.GOOD for view in views)


def test_pairs_that_agree_about_as_well_across_make_no_rift() -> None:
    assert judged(scene_evidence(pairs=two_rooms(0.9)))[0] == Verdict(Level.GOOD)


def test_features_across_prove_that_there_is_no_rift() -> None:
    pairs = two_rooms(0.5, num_features=LIMITS.sure_features)
    assert find_rift(pairs, cuts_of(pairs), 0.15, 90, 0.3, LIMITS.sure_features) is None
    assert judged(scene_evidence(pairs=pairs))[0] == Verdict(Level.GOOD)


def test_pairs_that_look_another_way_say_nothing_of_a_rift() -> None:
    pairs = tuple(
        dataclasses.replace(pair, apart_deg=120.0) if (pair.i < 4) != (pair.j < 4) else pair for pair in two_rooms(0.4)
    )
    assert find_rift(pairs, cuts_of(pairs), 0.15, 90, 0.3, 100) is None


def test_one_pair_that_holds_two_sets_together_is_told() -> None:
    pairs = tuple(
        pair
        if (pair.i < 4) == (pair.j < 4) or (pair.i, pair.j) == (3, 4)
        else dataclasses.replace(pair, num_matches=0, explained=float("nan"), covisible=0.05)
        for pair in two_rooms(1.0)
    )
    bridge = find_bridge(pairs, cuts_of(pairs), 3)
    assert bridge is not None and len(bridge.side) == 4 and bridge.across.sum() == 16
    overall, _ = judged(scene_evidence(pairs=pairs))
    assert overall.level is Level.DOUBTFUL and "at most one pair" in overall.reasons[0]


def test_a_chain_whose_other_pairs_were_not_looked_at_is_no_bridge() -> None:
    pairs = scene_evidence().pairs[:7]
    assert find_bridge(pairs, cuts_of(pairs), 3) is None


def test_scenes_without_pairs_have_no_cuts() -> None:
    denied = PairEvidence(0, 1, 0, float("nan"), float("nan"), 0.1, 0.0)
    assert cuts_of(()) == [] and cuts_of((denied,)) == []


def test_pairs_at_odds_count_by_what_they_share() -> None:
    """Opposite sides of a circle see little in common, and their matches mean little."""
    odd = [PairEvidence(k, k + 4, 40, 0.2, 90.0, 0.1, 0.05, 0, 170.0) for k in range(4)]
    assert judged(scene_evidence(pairs=(*scene_evidence().pairs, *odd)))[0] == Verdict(Level.GOOD)
    odd = [dataclasses.replace(pair, covisible=0.39) for pair in odd]
    overall, _ = judged(scene_evidence(pairs=(*scene_evidence().pairs[:6], *odd)))
    assert overall.level is Level.DOUBTFUL and "at odds" in overall.reasons[0]


def test_a_pair_that_shares_much_and_is_at_odds_makes_both_photos_doubtful() -> None:
    pairs = list(scene_evidence().pairs)
    pairs[2] = dataclasses.replace(pairs[2], explained=0.4)
    _, views = judged(scene_evidence(pairs=tuple(pairs)))
    assert "view_03.jpg" in views[2].reasons[0] and "view_02.jpg" in views[3].reasons[0]
    assert all(view.level is Level.GOOD for k, view in enumerate(views) if k not in (2, 3))


def test_the_angle_between_cameras_is_that_of_their_directions() -> None:
    pair = next(p for p in collect_evidence(views_at(POSES), MATCHES, SUMMARIES).pairs if (p.i, p.j) == (0, 1))
    cosine = POSES[0][:3, 2] @ POSES[1][:3, 2]
    assert pair.apart_deg == pytest.approx(np.degrees(np.arccos(cosine)))
