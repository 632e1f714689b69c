"""What the pairs leave behind: matches and canonical views. No dense prediction outlives its batch."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from mast3r_sfm.canonical import CanonicalAccumulator
from mast3r_sfm.errors import ReconstructionError
from mast3r_sfm.matching import VerificationLimits, match_pairs, verify_batch
from mast3r_sfm.types import CanonicalView, Correspondences, FallbackPrediction, PairPrediction, ViewPrediction

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PairSummary:
    """One pair: matches found, matches that the geometry confirmed, and whether the pair takes part."""

    i: int
    j: int
    num_matches: int
    num_verified: int
    kept: bool


@dataclass(frozen=True)
class PairwiseData:
    """Everything the alignment needs, of all pairs.

    canonical        one per image, None where no usable prediction exists
    correspondences  of the pairs that take part, in the order of the pair list
    fallback         (r, o): the points of view o as predicted in the camera of r, for pairs whose best match is
                     not confident enough to be used
    """

    canonical: tuple[CanonicalView | None, ...]
    correspondences: tuple[Correspondences, ...]
    fallback: Mapping[tuple[int, int], FallbackPrediction]
    summaries: tuple[PairSummary, ...]


class PairwiseCollector:
    """Takes predictions by the batch; `finish` gives what they left.

    An image's canonical view is finished as soon as its last pair is in. Pairs that the verification denies
    do not shape it, unless the image has no other.
    """

    def __init__(
        self,
        shapes: Sequence[tuple[int, int]],
        names: Sequence[str],
        pairs: Sequence[tuple[int, int]],
        subsample: int = 8,
        verification: VerificationLimits | None = None,
        matching_conf_thr: float = 0.0,
        masks: Sequence[torch.Tensor | None] | None = None,
    ) -> None:
        """`shapes` (H, W), `names` for messages and `masks` (H, W) bool (False: transparent) are per image."""
        self._shapes = list(shapes)
        self._names = list(names)
        self._order = {pair: k for k, pair in enumerate(pairs)}
        self._subsample = subsample
        self._verification = verification
        self._matching_conf_thr = matching_conf_thr
        self._masks = list(masks) if masks is not None else [None] * len(shapes)
        self._left = Counter(index for pair in pairs for index in set(pair))
        self._believed: dict[int, CanonicalAccumulator] = {}
        self._denied: dict[int, CanonicalAccumulator] = {}
        self._canonical: list[CanonicalView | None] = [None] * len(shapes)
        self._correspondences: dict[tuple[int, int], Correspondences] = {}
        self._fallback: dict[tuple[int, int], FallbackPrediction] = {}
        self._summaries: dict[tuple[int, int], PairSummary] = {}

    def add(self, batch: Sequence[PairPrediction]) -> None:
        """Matches pairs, verifies them, and adds their own maps to the canonical views of their images.

        The pairs of a batch agree in the shapes of their views. What the host must know of the matches it asks for
        once per batch, not once per pair (but for photos with transparent pixels).
        """
        found = [self._opaque(matches) for matches in match_pairs(batch, self._subsample)]
        if self._verification is None:
            verified = [(matches, len(matches) > 0) for matches in found]
        else:
            verified = verify_batch(batch, found, self._verification)
        best = _best_confidences([kept for kept, _ in verified])
        for prediction, matches, (kept, believed), best_conf in zip(batch, found, verified, best, strict=True):
            summary = PairSummary(prediction.i, prediction.j, len(matches), len(kept), believed)
            self._add_pair(prediction, kept, summary, best_conf)

    def _add_pair(
        self, prediction: PairPrediction, kept: Correspondences, summary: PairSummary, best_conf: float
    ) -> None:
        pair, believed = (prediction.i, prediction.j), summary.kept
        self._summaries[pair] = summary
        if believed:
            self._correspondences[pair] = kept
            if best_conf <= self._matching_conf_thr:
                self._fallback |= sample_fallback(prediction, self._subsample)
        self._add_own(prediction.i, prediction.i_in_i, pair, believed)
        self._add_own(prediction.j, prediction.j_in_j, pair, believed)

    def add_single(self, prediction: PairPrediction) -> None:
        """Takes the prediction of an image paired with itself: a canonical view, no matches."""
        self._add_own(prediction.i, prediction.i_in_i, (prediction.i, prediction.j), True)

    def finish(self) -> PairwiseData:
        """All that is left when every pair is in."""
        in_order = sorted(self._summaries, key=self._order.__getitem__)
        return PairwiseData(
            tuple(self._canonical),
            tuple(self._correspondences[pair] for pair in in_order if pair in self._correspondences),
            dict(self._fallback),
            tuple(self._summaries[pair] for pair in in_order),
        )

    def _opaque(self, matches: Correspondences) -> Correspondences:
        """Drops matches on transparent pixels, whose colours mean nothing."""
        for mask, side in ((self._masks[matches.i], "xy_i"), (self._masks[matches.j], "xy_j")):
            if mask is not None:
                x, y = getattr(matches, side).long().unbind(-1)
                matches = matches.select(mask.to(x.device)[y, x])
        return matches

    def _add_own(self, index: int, view: ViewPrediction, pair: tuple[int, int], believed: bool) -> None:
        group = self._believed if believed else self._denied
        if believed:
            self._denied.pop(index, None)
        if believed or index not in self._believed:
            if index not in group:
                group[index] = CanonicalAccumulator(*self._shapes[index], self._subsample, view.points.device)
            group[index].add(view.points, view.conf, pair)
        self._left[index] -= 1
        if not self._left[index]:
            sums = self._believed.pop(index, None) or self._denied.pop(index)
            try:
                self._canonical[index] = sums.finish(index, self._names[index])
            except ReconstructionError as error:  # one bad image must not end the run
                logger.warning("%s It is left out.", error)


def sample_fallback(pair: PairPrediction, subsample: int) -> dict[tuple[int, int], FallbackPrediction]:
    """What the fallback loss needs of a pair: key (r, v) holds view v's points in the camera of view r."""

    def corners(prediction: ViewPrediction) -> FallbackPrediction:
        return FallbackPrediction(
            points=prediction.points[::subsample, ::subsample].float().reshape(-1, 3),
            conf=prediction.conf[::subsample, ::subsample].float().reshape(-1),
        )

    return {(pair.i, pair.j): corners(pair.j_in_i), (pair.j, pair.i): corners(pair.i_in_j)}


def _best_confidences(matches: Sequence[Correspondences]) -> list[float]:
    """The largest confidence of each pair's matches, 0 without any."""
    if not matches:
        return []
    return torch.stack([one.conf.amax() if len(one) else one.conf.new_zeros(()) for one in matches]).tolist()
