"""What the pairs leave behind: matches and canonical views. No dense prediction outlives its batch."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from mast3r_sfm.canonical import Addition, CanonicalAccumulator, Finished, add_pointmaps, finish_views
from mast3r_sfm.errors import ReconstructionError
from mast3r_sfm.graphs import connected_components
from mast3r_sfm.inference import encode_views, predict_batches, predict_pairs
from mast3r_sfm.matching import RepeatedMatching, verify_batch
from mast3r_sfm.model.checkpoint import Model
from mast3r_sfm.options import ReconstructionOptions, VerificationLimits
from mast3r_sfm.progress import StageTimer
from mast3r_sfm.scene_graph import make_pairs, similarity_from_tokens
from mast3r_sfm.types import (
    CanonicalView,
    Correspondences,
    FallbackPrediction,
    PairPrediction,
    PairSummary,
    View,
    ViewPrediction,
)

logger = logging.getLogger(__name__)

_FINISHED_AT_ONCE = 16  # images; their sums wait, and the device is asked once for all of them

Matcher = Callable[[Sequence[PairPrediction], int], list[Correspondences]]
"""The matches of every prediction of a batch, for seeds on a grid of so many pixels."""


@dataclass(frozen=True)
class PairwiseData:
    """Everything the alignment needs, of all pairs.

    pairs            the pairs that were looked at, in order
    canonical        one per image, None where no usable prediction exists
    correspondences  of the pairs that take part, in the order of the pair list, in main memory
    fallback         (r, o): the points of view o as predicted in the camera of r, for pairs whose best match is
                     not confident enough to be used
    """

    pairs: tuple[tuple[int, int], ...]
    canonical: tuple[CanonicalView | None, ...]
    correspondences: tuple[Correspondences, ...]
    fallback: Mapping[tuple[int, int], FallbackPrediction]
    summaries: tuple[PairSummary, ...]

    def usable(self, index: int) -> CanonicalView:
        """The canonical view of an image that has one."""
        view = self.canonical[index]
        assert view is not None, index
        return view

    def of(self, members: Sequence[int]) -> PairwiseData:
        """The data of some images alone, which are numbered by their place in `members`."""
        number = {index: k for k, index in enumerate(members)}

        def inside(i: int, j: int) -> bool:
            return i in number and j in number

        return PairwiseData(
            tuple((number[i], number[j]) for i, j in self.pairs if inside(i, j)),
            tuple(
                None if (view := self.canonical[index]) is None else replace(view, index=k)
                for index, k in number.items()
            ),
            tuple(replace(m, i=number[m.i], j=number[m.j]) for m in self.correspondences if inside(m.i, m.j)),
            {(number[i], number[j]): one for (i, j), one in self.fallback.items() if inside(i, j)},
            tuple(replace(s, i=number[s.i], j=number[s.j]) for s in self.summaries if inside(s.i, s.j)),
        )

    def groups(self) -> list[list[int]]:
        """Images that connect through pairs with matches, the largest group first; some may hold a single image."""
        usable = [view is not None for view in self.canonical]
        edges = [(m.i, m.j) for m in self.correspondences if usable[m.i] and usable[m.j]]
        return connected_components(len(self.canonical), edges)


def predict_pairwise(
    model: Model,
    views: Sequence[View],
    options: ReconstructionOptions,
    timer: StageTimer,
    pairs: Sequence[tuple[int, int]] | None = None,
) -> PairwiseData:
    """Encodes every view once, decodes and matches the pairs, and keeps what the alignment needs of them.

    pairs  None: those of `options.scene_graph`, which may ask for the similarity of what the images show
    """
    with timer.stage("Encode images", len(views)) as advance:
        encoded = encode_views(model, views, options.batch_size, advance)
    if pairs is None:
        clips = [None if view.frame is None else view.frame.clip for view in views]
        needed = options.scene_graph.needs_similarity(len(views), any(clips))
        similarity = similarity_from_tokens(encoded.tokens) if needed else None
        names = [view.path for view in views]
        pairs = make_pairs(options.scene_graph, len(views), similarity, options.seed, names=names, clips=clips)
    alone = [(k, k) for k in range(len(views))] if not pairs else []  # a single image is paired with itself
    collector = PairwiseCollector(
        [view.shape for view in views],
        [view.path.name for view in views],
        pairs or alone,
        options.alignment.subsample,
        _limits(options.verification, model.config.min_match_conf),
        options.alignment.matching_conf_thr,
        [None if view.mask is None else torch.from_numpy(view.mask) for view in views],
    )
    with timer.stage("Predict and match pairs", max(1, len(pairs))) as advance, torch.inference_mode():
        for prediction in predict_pairs(model, encoded, alone, options.batch_size):
            collector.add_single(prediction)
        for batch in predict_batches(model, encoded, pairs, options.batch_size, advance, overwrite=True):
            collector.add(batch)
        return collector.finish()


def _limits(limits: VerificationLimits | None, min_match_conf: float | None) -> VerificationLimits | None:
    """The limits, with the model's own where they do not say."""
    if limits is None or limits.min_conf is not None:
        return limits
    return replace(limits, min_conf=min_match_conf)


class PairwiseCollector:
    """Takes predictions by the batch; `finish` gives what they left.

    An image's canonical view is finished soon after its last pair is in. Pairs that the verification denies
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
        match: Matcher | None = None,
    ) -> None:
        """`shapes` (H, W), `names` for messages and `masks` (H, W) bool (False: not used) are per image.

        match  what finds the matches of a batch of predictions; None: `RepeatedMatching`
        """
        self._shapes = list(shapes)
        self._names = list(names)
        self._order = {pair: k for k, pair in enumerate(pairs)}
        self._subsample = subsample
        self._verification = verification
        self._matching_conf_thr = matching_conf_thr
        self._match = match or RepeatedMatching()
        self._masks = list(masks) if masks is not None else [None] * len(shapes)
        self._complete: list[Finished] = []
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
        once per batch, not once per pair (but for photos with masks).
        """
        found = [
            matches.within(self._masks[matches.i], self._masks[matches.j])
            for matches in self._match(batch, self._subsample)
        ]
        if self._verification is None:
            verified = [(matches, len(matches) > 0) for matches in found]
        else:
            verified = verify_batch(batch, found, self._verification)
        best = _best_confidences([kept for kept, _ in verified])
        additions: list[Addition] = []
        for prediction, matches, (kept, believed), best_conf in zip(batch, found, verified, best, strict=True):
            pair = (prediction.i, prediction.j)
            self._summaries[pair] = PairSummary(*pair, len(matches), len(kept), believed)
            if believed:
                self._correspondences[pair] = kept
                if best_conf <= self._matching_conf_thr:
                    self._fallback |= sample_fallback(
                        prediction, self._subsample, self._masks[prediction.i], self._masks[prediction.j]
                    )
            additions += self._own(prediction.i, prediction.i_in_i, pair, believed)
            additions += self._own(prediction.j, prediction.j_in_j, pair, believed)
        add_pointmaps(additions)
        self._count_down([index for pair in batch for index in (pair.i, pair.j)])

    def add_single(self, prediction: PairPrediction) -> None:
        """Takes the prediction of an image paired with itself: a canonical view, no matches."""
        add_pointmaps(self._own(prediction.i, prediction.i_in_i, (prediction.i, prediction.j), True))
        self._count_down([prediction.i])

    def finish(self) -> PairwiseData:
        """All that is left when every pair is in."""
        self._finish_complete()
        in_order = sorted(self._summaries, key=self._order.__getitem__)
        # one after the other, so that a GPU never holds them beside the copies that the alignment packs
        matches = tuple(self._correspondences.pop(pair).cpu() for pair in in_order if pair in self._correspondences)
        return PairwiseData(
            tuple(in_order),
            tuple(self._canonical),
            matches,
            dict(self._fallback),
            tuple(self._summaries[pair] for pair in in_order),
        )

    def _own(self, index: int, view: ViewPrediction, pair: tuple[int, int], believed: bool) -> list[Addition]:
        """Where an image's own map goes, if anywhere."""
        group = self._believed if believed else self._denied
        if believed:
            self._denied.pop(index, None)
        elif index in self._believed:
            return []
        if index not in group:
            group[index] = CanonicalAccumulator(*self._shapes[index], self._subsample, view.points.device)
        return [Addition(group[index], view.points, view.conf, pair)]

    def _count_down(self, indices: Sequence[int]) -> None:
        """Every one of `indices` is an image's part in a pair that is in now."""
        for index in indices:
            self._left[index] -= 1
            if not self._left[index]:
                sums = self._believed.pop(index, None) or self._denied.pop(index)
                self._complete.append(Finished(index, self._names[index], sums))
        if len(self._complete) >= _FINISHED_AT_ONCE:
            self._finish_complete()

    def _finish_complete(self) -> None:
        """The canonical views of images whose pairs are all in."""
        by_shape: dict[tuple[int, int], list[Finished]] = {}
        for image in self._complete:
            by_shape.setdefault(image.sums.shape, []).append(image)
        self._complete.clear()
        for images in by_shape.values():
            for image, merged in zip(images, finish_views(images), strict=True):
                if isinstance(merged, ReconstructionError):  # one bad image must not end the run
                    logger.warning("%s It is left out.", merged)
                    continue
                mask = self._masks[image.index]
                self._canonical[image.index] = (
                    merged if mask is None else replace(merged, conf=_masked(merged.conf, mask))
                )


def sample_fallback(
    pair: PairPrediction, subsample: int, mask_i: torch.Tensor | None = None, mask_j: torch.Tensor | None = None
) -> dict[tuple[int, int], FallbackPrediction]:
    """What the fallback loss needs of a pair: key (r, v) holds view v's points in the camera of view r.

    mask_i, mask_j  (H, W) bool of the views; points of pixels outside of them have no confidence, and so no weight
    """

    def corners(prediction: ViewPrediction, mask: torch.Tensor | None) -> FallbackPrediction:
        conf = prediction.conf if mask is None else _masked(prediction.conf, mask)
        return FallbackPrediction(  # copies: the maps are overwritten by those of other pairs
            points=prediction.points[::subsample, ::subsample].float().clone().view(-1, 3),
            conf=conf[::subsample, ::subsample].float().clone().view(-1),
        )

    return {(pair.i, pair.j): corners(pair.j_in_i, mask_j), (pair.j, pair.i): corners(pair.i_in_j, mask_i)}


def _masked(conf: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Confidences (H, W) that are 0 outside of a mask."""
    return torch.where(mask.to(conf.device), conf, 0.0)


def _best_confidences(matches: Sequence[Correspondences]) -> list[float]:
    """The largest confidence of each pair's matches, 0 without any."""
    if not matches:
        return []
    return torch.stack([one.conf.amax() if len(one) else one.conf.new_zeros(()) for one in matches]).tolist()
