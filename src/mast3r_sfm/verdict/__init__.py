"""How far a result is to be relied on: numbers first (`evidence`), then words (`judgement`)."""

from collections.abc import Sequence
from pathlib import Path

from mast3r_sfm.quality import doubts
from mast3r_sfm.types import Correspondences, PairSummary, ReconstructedView, SceneVerdict
from mast3r_sfm.verdict.evidence import collect_evidence
from mast3r_sfm.verdict.judgement import judge


def verdict_on(
    views: Sequence[ReconstructedView],
    matches: Sequence[Correspondences],
    summaries: Sequence[PairSummary],
    groups: Sequence[Sequence[int]],
) -> SceneVerdict:
    """The verdict on a result, with the photos called by the names of their files.

    views      all, each at the place of its index; at least one is registered
    matches    that entered the alignment
    summaries  of the pairs that were looked at
    groups     indices of the images that connect, the registered ones first
    """
    evidence = collect_evidence(views, matches, summaries)
    unusable = [view.index for view in views if view.mask is not None and not view.mask.any()]
    names = [Path(view.file).name for view in views]
    return judge(names, evidence, doubts(views), summaries, groups, unusable=unusable)
