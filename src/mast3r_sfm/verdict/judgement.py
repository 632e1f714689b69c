"""From evidence to words: whether photos and results are good, doubtful or poor, why, and what one can do.

The limits were set on rendered scenes, half of them spoiled on purpose (`benchmarks.verdicts`, docs/method.md).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mast3r_sfm.graphs import connected_components
from mast3r_sfm.text import listed
from mast3r_sfm.types import LEAST_OF_ANOTHER_SCENE, Level, PairSummary, SceneVerdict, Verdict
from mast3r_sfm.verdict.evidence import PARTNER_MATCHES, PairEvidence, SceneEvidence, ViewEvidence
from mast3r_sfm.verdict.rift import cuts_of, find_bridge, find_rift


@dataclass(frozen=True)
class Limits:
    """From where on evidence speaks against a result.

    max_error, poor_error          of `ViewEvidence.error`
    min_explained, poor_explained  of `ViewEvidence.explained`
    max_contradiction              of `ViewEvidence.contradiction`
    pair_explained                 a pair that the cameras explain less of is at odds with them ...
    max_pairs_at_odds              ... and a larger share of all pairs, weighed by their covisible share, must not be
    min_likeness                   of a pair that shares `covisible_pair` of its pixels: confirmed over covisible share
    sure_features                  matches of features that say that two photos do show the same
    max_pair_at_odds               covisible share from which on a single pair at odds makes its two photos doubtful
    rift_covisible, rift_apart_deg pairs that share fewer pixels, or look further apart, have no say about a rift
    rift_coverage                  sum of the covisible shares of pairs across that a rift needs
    min_rift_likeness              of `Rift`: pairs across agree less, and the two sets may be two places
    bridge_pairs                   pairs that were looked at between two sets of photos which only one connects
    min_angle_deg, min_spread      of `SceneEvidence`: less, and the photos are from one place
    min_straight                   of `SceneEvidence`: less, and the cameras lie on a line
    max_doubtful                   share of the photos, below which a result is still good
    min_registered                 share of the photos, below which a result is poor
    min_agreeing                   share of the registered photos in the largest set of `_agreeing`, likewise
    """

    max_error: float = 0.0105
    poor_error: float = 0.03
    min_explained: float = 0.5
    poor_explained: float = 0.25
    max_contradiction: float = 0.35
    pair_explained: float = 0.5
    max_pairs_at_odds: float = 0.25
    covisible_pair: float = 0.4
    min_likeness: float = 0.9
    sure_features: int = 100
    max_pair_at_odds: float = 0.4
    rift_covisible: float = 0.15
    rift_apart_deg: float = 90.0
    rift_coverage: float = 0.3
    min_rift_likeness: float = 0.82
    bridge_pairs: int = 3
    min_angle_deg: float = 2.0
    min_spread: float = 0.05
    min_straight: float = 0.01
    max_doubtful: float = 0.05
    min_registered: float = 0.5
    min_agreeing: float = 0.5


LIMITS = Limits()
_SHOWN = 6
_UNUSABLE = "it is masked or transparent as a whole: check it and its mask"


def judge(
    names: Sequence[str],
    evidence: SceneEvidence,
    doubted: Mapping[int, str],
    summaries: Sequence[PairSummary],
    groups: Sequence[Sequence[int]],
    limits: Limits = LIMITS,
    unusable: Collection[int] = (),
) -> SceneVerdict:
    """The verdict on a result.

    names      of all photos
    evidence   of the registered ones
    doubted    by index, why the camera of a registered photo is doubtful (`quality.doubts`)
    summaries  of the pairs that were looked at
    groups     indices of the images that connect, the registered ones first
    unusable   indices of photos that are masked or transparent as a whole
    """
    found = {one.index: one for one in evidence.views}
    own = [
        _judge_view(found[k], evidence, names, doubted.get(k), limits)
        if k in found
        else Verdict(Level.POOR, (_UNUSABLE if k in unusable else _why_left_out(k, names, summaries, groups),))
        for k in range(len(names))
    ]
    return SceneVerdict(_judge_scene(own, evidence, names, groups, limits, unusable), tuple(own))


def _judge_view(
    view: ViewEvidence, evidence: SceneEvidence, names: Sequence[str], doubt: str | None, limits: Limits
) -> Verdict:
    """The verdict on a registered view."""
    reasons: list[str] = []
    poor = view.error > limits.poor_error or view.explained < limits.poor_explained
    if len(evidence.views) > 2 and view.num_partners < 2:
        reasons.append(
            "it shares matches with only one other photo" if view.num_partners else "it shares few matches with others"
        )
        reasons[-1] += ": add photos between it and its neighbours"
    if np.isinf(view.error):
        reasons.append("most of its matches lie behind cameras: it may stand in a wrong place")
    elif view.error > limits.max_error:
        reasons.append(
            f"its matches reproject {100 * view.error:.1f} % of the image's width off in the median: things may have "
            "moved, or it was zoomed"
        )
    if view.explained < limits.min_explained:
        reasons.append(
            f"its camera explains only {100 * view.explained:.0f} % of its matches: it may stand in a wrong place"
        )
    if view.contradiction > limits.max_contradiction:
        reasons.append(
            f"other photos see through its surfaces in {100 * view.contradiction:.0f} % of the compared places: "
            "its depth or its place is wrong, or things have moved"
        )
    alike = [pair for pair in evidence.pairs if view.index in (pair.i, pair.j) and _only_alike(pair, limits)]
    if alike:
        reasons.append(
            f"it should show the same as {_listed(_partners(view.index, alike, names))}, but too few of "
            "their matches agree: places may look alike, or much has changed between the photos"
        )
    torn = [pair for pair in evidence.pairs if view.index in (pair.i, pair.j) and _torn(pair, limits)]
    if torn:
        reasons.append(
            f"it should show the same as {_listed(_partners(view.index, torn, names))}, but the two cameras explain "
            "less than half of what matches: it may stand in a wrong place, or was zoomed"
        )
    if doubt is not None and not reasons:
        reasons.append(doubt)
    level = Level.POOR if poor else Level.DOUBTFUL if reasons else Level.GOOD
    return Verdict(level, tuple(reasons))


def _only_alike(pair: PairEvidence, limits: Limits) -> bool:
    """Whether two views see the same according to their cameras, but not according to their matches."""
    return (
        pair.covisible >= limits.covisible_pair
        and pair.num_features < limits.sure_features
        and np.isfinite(pair.confirmed)
        and pair.confirmed < limits.min_likeness * pair.covisible
    )


def _torn(pair: PairEvidence, limits: Limits) -> bool:
    """Whether two views that share much are at odds with their cameras."""
    return (
        pair.covisible >= limits.max_pair_at_odds
        and pair.num_matches >= PARTNER_MATCHES
        and pair.explained < limits.pair_explained
    )


def _partners(index: int, pairs: Sequence[PairEvidence], names: Sequence[str]) -> list[str]:
    return [names[pair.j if pair.i == index else pair.i] for pair in pairs]


def _judge_scene(
    own: Sequence[Verdict],
    evidence: SceneEvidence,
    names: Sequence[str],
    groups: Sequence[Sequence[int]],
    limits: Limits,
    unusable: Collection[int],
) -> Verdict:
    registered = [one.index for one in evidence.views]
    poor: list[str] = []
    doubtful: list[str] = []
    left_out = sorted(set(range(len(names))).difference(registered, unusable))
    if unusable:
        doubtful.append(
            f"{len(unusable)} of {len(names)} photos are masked or transparent as a whole: "
            f"{_listed(names[k] for k in sorted(unusable))}: check their masks"
        )
    if left_out:
        share = len(registered) / (len(names) - len(unusable))
        text = f"{len(left_out)} of {len(names)} photos do not connect: {_listed(names[k] for k in left_out)}"
        (poor if share < limits.min_registered else doubtful).append(f"{text}: add photos between them")
    for number, group in enumerate(groups[1:], start=2):
        if len(group) >= LEAST_OF_ANOTHER_SCENE:
            doubtful.append(f"the photos fall into groups; group {number}: {_listed(names[k] for k in group)}")
    if len(registered) == 1:
        doubtful.append("one photo: its depth is the network's guess, which no other photo confirms")
    elif evidence.angle_deg < limits.min_angle_deg or evidence.spread < limits.min_spread:
        poor.append(
            f"all photos are from (nearly) one place: pairs see points under {evidence.angle_deg:.1f}\N{DEGREE SIGN} "
            "in the median, so that depth is the network's guess: walk between photos instead of turning"
        )
    elif len(registered) > 2 and evidence.straight < limits.min_straight:
        doubtful.append("all cameras lie on a line: scale and tilt across it are weak; add photos from its sides")
    odd = [pair for pair in evidence.pairs if pair.num_matches >= PARTNER_MATCHES]
    at_odds = [pair for pair in odd if pair.explained < limits.pair_explained]
    if sum(pair.covisible for pair in at_odds) > limits.max_pairs_at_odds * sum(pair.covisible for pair in odd):
        doubtful.append(
            f"{len(at_odds)} of {len(odd)} pairs of photos are at odds with the cameras, for example "
            f"{' and '.join(names[k] for k in _worst(at_odds))}: places may look alike"
        )
    sets = [own for own in _agreeing(len(names), evidence.pairs, limits) if len(own) >= LEAST_OF_ANOTHER_SCENE]
    if len(sets) > 1:
        text = (
            f"the photos agree with the cameras only within {len(sets)} sets, the largest of {len(sets[0])} photos, "
            f"the others with {_listed(names[own[0]] for own in sets[1:])}: how these stand to each other is a guess: "
            "add photos between them"
        )
        (poor if len(sets[0]) < limits.min_agreeing * len(registered) else doubtful).append(text)
    doubtful += _cut_apart(evidence.pairs, names, limits)
    weak = {level: [k for k in registered if own[k].level is level] for level in (Level.DOUBTFUL, Level.POOR)}
    flawed = weak[Level.DOUBTFUL] + weak[Level.POOR]
    if len(flawed) > limits.max_doubtful * len(registered):
        text = f"{len(flawed)} of {len(registered)} photos are doubtful: {_listed(names[k] for k in sorted(flawed))}"
        (poor if 2 * len(weak[Level.POOR]) > len(registered) else doubtful).append(text)
    level = Level.POOR if poor else Level.DOUBTFUL if doubtful else Level.GOOD
    return Verdict(level, (*poor, *doubtful))


def _agreeing(num_photos: int, pairs: Sequence[PairEvidence], limits: Limits) -> list[list[int]]:
    """Sets of photos that are joined by pairs whose matches the cameras explain, or features confirm; the largest
    first. All photos, if no pair has matches that could tell."""
    if not any(pair.num_matches for pair in pairs):
        return [list(range(num_photos))]
    joined = [
        (pair.i, pair.j)
        for pair in pairs
        if pair.num_features >= limits.sure_features
        or (pair.num_explained >= PARTNER_MATCHES and pair.explained >= limits.pair_explained)
    ]
    return connected_components(num_photos, joined)


def _cut_apart(pairs: Sequence[PairEvidence], names: Sequence[str], limits: Limits) -> list[str]:
    """Reasons to doubt that two sets of the photos belong together as they stand."""
    cuts, reasons = cuts_of(pairs), []
    rift = find_rift(
        pairs, cuts, limits.rift_covisible, limits.rift_apart_deg, limits.rift_coverage, limits.sure_features
    )
    if rift is not None and rift.likeness < limits.min_rift_likeness:
        reasons.append(
            f"{_listed(names[k] for k in rift.side)} agree with the other photos only {100 * rift.likeness:.0f} % as "
            "well as photos do within the two sets: these may be two places that look alike, or much has changed"
        )
    bridge = find_bridge(pairs, cuts, limits.bridge_pairs)
    if bridge is not None:
        reasons.append(
            f"at most one pair of photos connects {_listed(names[k] for k in bridge.side)} with the others: add photos "
            "between them"
        )
    return reasons


def _worst(pairs: Sequence[PairEvidence]) -> tuple[int, int]:
    pair = min(pairs, key=lambda one: one.explained)
    return pair.i, pair.j


def _why_left_out(
    index: int, names: Sequence[str], summaries: Sequence[PairSummary], groups: Sequence[Sequence[int]]
) -> str:
    """Why a photo is not part of the result, and what would help."""
    group = next((list(group) for group in groups if index in group), [index])
    if len(group) > 1:
        return f"it connects only with {_listed(names[k] for k in group if k != index)}: add photos between the groups"
    own = [pair for pair in summaries if index in (pair.i, pair.j) and pair.i != pair.j]
    if not own:
        return "no pair with it was looked at"
    best = max(own, key=lambda pair: pair.num_verified)
    partner = names[best.j if best.i == index else best.i]
    return (
        f"it connects with no other photo; at best {best.num_verified} of {best.num_matches} matches agree, "
        f"with {partner}: add photos between the two"
    )


def _listed(names: Iterable[str]) -> str:
    return listed(names, _SHOWN)
