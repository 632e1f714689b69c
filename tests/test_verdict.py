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
from mast3r_sfm.verdict.judgement import judge

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
