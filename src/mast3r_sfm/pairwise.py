"""What the pairs leave behind: matches and canonical views. No dense prediction outlives its batch.

The pairs are done tile by tile (`tiles`). What a tile leaves is merged into that of all, in a fixed order, whether it
was predicted now or found in a store (`pair_store`): the result is the same bit by bit.
"""

from __future__ import annotations

import contextlib
import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace

import torch

from mast3r_sfm.canonical import Addition, CanonicalAccumulator, Finished, add_pointmaps, finish_views
from mast3r_sfm.errors import ReconstructionError
from mast3r_sfm.graphs import connected_components
from mast3r_sfm.inference import PairPredictor, ViewEncoder, auto_batch_size, predict_pairs
from mast3r_sfm.matching import RepeatedMatching, verify_batch
from mast3r_sfm.model.checkpoint import Model
from mast3r_sfm.options import ReconstructionOptions, VerificationLimits
from mast3r_sfm.pair_store import PairsIdentity, PairStore
from mast3r_sfm.progress import StageTimer
from mast3r_sfm.scene_graph import make_pairs, similarity_from_tokens
from mast3r_sfm.tiles import ImageSums, Tile, TileResult, images_of, pairs_per_tile, plan_tiles
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
    store: PairStore | None = None,
) -> PairwiseData:
    """Encodes every view once, decodes and matches the pairs, and keeps what the alignment needs of them.

    pairs  None: those of `options.scene_graph`, which may ask for the similarity of what the images show
    store  where tiles of pairs are kept, and taken from if they are there; their views are then not encoded
    """
    setting = PairwiseSetting(
        tuple(view.shape for view in views),
        tuple(view.path.name for view in views),
        tuple(None if view.mask is None else torch.from_numpy(view.mask) for view in views),
        options.alignment.subsample,
        _limits(options.verification, model.config.min_match_conf),
        options.alignment.matching_conf_thr,
    )
    state = None if store is None else store.open(_identity(model, views, options, setting))
    sizes = {shape: options.batch_size or auto_batch_size(model, shape) for shape in setting.shapes}
    if state is not None and options.batch_size is None:
        sizes |= state.batch_sizes
    encoder = ViewEncoder(model, views, options.batch_size, sizes)
    if pairs is None:
        clips = [None if view.frame is None else view.frame.clip for view in views]
        similarity = None
        if options.scene_graph.needs_similarity(len(views), any(clips)):
            with timer.stage("Encode images", len(views)) as advance:
                similarity = similarity_from_tokens(encoder.encode(range(len(views)), advance).tokens)
        names = [view.path for view in views]
        pairs = make_pairs(options.scene_graph, len(views), similarity, options.seed, names=names, clips=clips)
    if not pairs:
        return _predict_alone(model, setting, encoder, options.batch_size, timer)

    num_parameters = sum(parameter.numel() for parameter in model.network.parameters())
    known = () if state is None else state.tiles
    tiles = plan_tiles(pairs, pairs_per_tile(model.device.type, num_parameters), known)
    kept = [False] * len(tiles) if state is None else state.plan(tiles, sizes)
    ahead = [pair for tile, found in zip(tiles, kept, strict=True) if not found for pair in tile]
    missing = [index for batch, _ in encoder.missing(images_of(ahead)) for index in batch]
    if missing:
        with timer.stage("Encode images", len(missing)) as advance:
            encoder.encode(missing, advance)
    predictor = PairPredictor(model, setting.shapes, sizes, ahead)
    match, merger = RepeatedMatching(), TileMerger(setting, pairs, tiles)
    with (
        timer.stage("Predict and match pairs", len(pairs)) as advance,
        torch.inference_mode(),
        contextlib.nullcontext() if state is None else state,
    ):

        def result_of(tile: Tile) -> TileResult:
            if state is not None and (found := state.load(tile)) is not None:
                advance(len(tile))
                return found
            encoded = encoder.encode(images_of(tile))  # there already, unless the store's file was spoilt
            collector = PairwiseCollector(setting, tile, match)
            for batch in predictor.batches(encoded, tile, advance):
                collector.add(batch)
            result = collector.finish()
            if state is not None:
                state.save(tile, result)
            return result

        for tile in tiles:
            merger.add(result_of(tile))  # nothing else refers to its sums while the next ones grow
        return merger.finish()


def _identity(
    model: Model, views: Sequence[View], options: ReconstructionOptions, setting: PairwiseSetting
) -> PairsIdentity:
    """All that the pairs' results depend on, but the pairs."""
    return PairsIdentity(
        model,
        tuple(views),
        {
            "subsample": setting.subsample,
            "verification": None if setting.verification is None else asdict(setting.verification),
            "matching_conf_thr": setting.matching_conf_thr,
            "batch_size": options.batch_size,
        },
    )


def _predict_alone(
    model: Model, setting: PairwiseSetting, encoder: ViewEncoder, batch_size: int | None, timer: StageTimer
) -> PairwiseData:
    """Of images without pairs, as a single one is: each is paired with itself."""
    alone = [(k, k) for k in range(len(setting.shapes))]
    with timer.stage("Encode images", len(alone)) as advance:
        encoded = encoder.encode(range(len(alone)), advance)
    merger, collector = TileMerger(setting, (), [tuple(alone)]), PairwiseCollector(setting, alone)
    with timer.stage("Predict and match pairs", 1), torch.inference_mode():
        for prediction in predict_pairs(model, encoded, alone, batch_size):
            collector.add_single(prediction)
        merger.add(collector.finish())
        return merger.finish()


def _limits(limits: VerificationLimits | None, min_match_conf: float | None) -> VerificationLimits | None:
    """The limits, with the model's own where they do not say."""
    if limits is None or limits.min_conf is not None:
        return limits
    return replace(limits, min_conf=min_match_conf)


@dataclass(frozen=True)
class PairwiseSetting:
    """What the pairs' results depend on besides the predictions.

    shapes, names, masks  of every image: (H, W), its name in messages, (H, W) bool (False: not used) or None
    subsample             step of the seeds and anchors, pixels
    verification          limits of the test of matches by geometry, None: all are kept
    matching_conf_thr     pairs whose best match is not above it leave fallback predictions
    """

    shapes: tuple[tuple[int, int], ...]
    names: tuple[str, ...]
    masks: tuple[torch.Tensor | None, ...]
    subsample: int = 8
    verification: VerificationLimits | None = None
    matching_conf_thr: float = 0.0


class PairwiseCollector:
    """Takes the predictions of a tile's pairs by the batch; `finish` gives what they left.

    Pairs that the verification denies do not shape an image's canonical view, unless it has no other.
    """

    def __init__(
        self, setting: PairwiseSetting, pairs: Sequence[tuple[int, int]], match: Matcher | None = None
    ) -> None:
        """match: what finds the matches of a batch of predictions; None: `RepeatedMatching`"""
        self._setting = setting
        self._pairs = list(pairs)
        self._match = match or RepeatedMatching()
        self._believed: dict[int, CanonicalAccumulator] = {}
        self._denied: dict[int, CanonicalAccumulator] = {}
        self._correspondences: dict[tuple[int, int], Correspondences] = {}
        self._fallback: dict[tuple[int, int], FallbackPrediction] = {}
        self._summaries: dict[tuple[int, int], PairSummary] = {}

    def add(self, batch: Sequence[PairPrediction]) -> None:
        """Matches pairs, verifies them, and adds their own maps to the sums of their images.

        The pairs of a batch agree in the shapes of their views. What the host must know of the matches it asks for
        once per batch, not once per pair (but for photos with masks).
        """
        setting = self._setting
        found = [
            matches.within(setting.masks[matches.i], setting.masks[matches.j])
            for matches in self._match(batch, setting.subsample)
        ]
        if setting.verification is None:
            verified = [(matches, len(matches) > 0) for matches in found]
        else:
            verified = verify_batch(batch, found, setting.verification)
        best = _best_confidences([kept for kept, _ in verified])
        additions: list[Addition] = []
        for prediction, matches, (kept, believed), best_conf in zip(batch, found, verified, best, strict=True):
            pair = (prediction.i, prediction.j)
            self._summaries[pair] = PairSummary(*pair, len(matches), len(kept), believed)
            if believed:
                self._correspondences[pair] = kept
                if best_conf <= setting.matching_conf_thr:
                    self._fallback |= sample_fallback(
                        prediction, setting.subsample, setting.masks[prediction.i], setting.masks[prediction.j]
                    )
            additions += self._own(prediction.i, prediction.i_in_i, pair, believed)
            additions += self._own(prediction.j, prediction.j_in_j, pair, believed)
        add_pointmaps(additions)

    def add_single(self, prediction: PairPrediction) -> None:
        """Takes the prediction of an image paired with itself: a canonical view, no matches."""
        add_pointmaps(self._own(prediction.i, prediction.i_in_i, (prediction.i, prediction.j), True))

    def finish(self) -> TileResult:
        """All that is left when every pair of the tile is in."""
        sums = {
            index: ImageSums(self._believed[index], True)
            if index in self._believed
            else ImageSums(self._denied[index], False)
            for index in images_of(self._pairs)
        }
        return TileResult(
            tuple(self._summaries[pair] for pair in self._pairs if pair in self._summaries),
            _in_main_memory([self._correspondences[pair] for pair in self._pairs if pair in self._correspondences]),
            dict(self._fallback),
            sums,
        )

    def _own(self, index: int, view: ViewPrediction, pair: tuple[int, int], believed: bool) -> list[Addition]:
        """Where an image's own map goes, if anywhere."""
        group = self._believed if believed else self._denied
        if believed:
            self._denied.pop(index, None)
        elif index in self._believed:
            return []
        if index not in group:
            shape = self._setting.shapes[index]
            group[index] = CanonicalAccumulator(*shape, self._setting.subsample, view.points.device)
        return [Addition(group[index], view.points, view.conf, pair)]


class TileMerger:
    """Takes the results of the tiles in their order; `finish` gives what the pairs left.

    An image's canonical view is finished soon after its last tile is in, and the sums of its tiles go.
    """

    def __init__(
        self, setting: PairwiseSetting, pairs: Sequence[tuple[int, int]], tiles: Sequence[Sequence[tuple[int, int]]]
    ) -> None:
        """pairs: in the order in which their results are wanted"""
        self._setting = setting
        self._order = {pair: k for k, pair in enumerate(pairs)}
        self._left = Counter(index for tile in tiles for index in images_of(tile))
        self._sums: dict[int, ImageSums] = {}
        self._complete: list[Finished] = []
        self._canonical: list[CanonicalView | None] = [None] * len(setting.shapes)
        self._correspondences: dict[tuple[int, int], Correspondences] = {}
        self._fallback: dict[tuple[int, int], FallbackPrediction] = {}
        self._summaries: dict[tuple[int, int], PairSummary] = {}

    def add(self, result: TileResult) -> None:
        """Takes the next tile's."""
        self._summaries |= {(one.i, one.j): one for one in result.summaries}
        self._correspondences |= {(one.i, one.j): one for one in result.matches}
        self._fallback |= result.fallback
        for index, own in result.sums.items():
            before = self._sums.get(index)
            if before is None or own.believed > before.believed:
                self._sums[index] = own
            elif own.believed == before.believed:
                self._sums[index] = ImageSums(before.sums.merged(own.sums), own.believed)
            self._left[index] -= 1
            if not self._left[index]:
                self._complete.append(Finished(index, self._setting.names[index], self._sums.pop(index).sums))
                if len(self._complete) >= _FINISHED_AT_ONCE:
                    self._finish_complete()

    def finish(self) -> PairwiseData:
        """All that is left when every tile is in."""
        self._finish_complete()
        in_order = sorted(self._summaries, key=self._order.__getitem__)
        return PairwiseData(
            tuple(in_order),
            tuple(self._canonical),
            tuple(self._correspondences[pair] for pair in in_order if pair in self._correspondences),
            dict(self._fallback),
            tuple(self._summaries[pair] for pair in in_order),
        )

    def _finish_complete(self) -> None:
        """The canonical views of images whose tiles are all in."""
        by_shape: dict[tuple[int, int], list[Finished]] = {}
        for image in self._complete:
            by_shape.setdefault(image.sums.shape, []).append(image)
        self._complete.clear()
        for images in by_shape.values():
            for image, merged in zip(images, finish_views(images), strict=True):
                if isinstance(merged, ReconstructionError):  # one bad image must not end the run
                    logger.warning("%s It is left out.", merged)
                    continue
                mask = self._setting.masks[image.index]
                self._canonical[image.index] = (
                    merged if mask is None else replace(merged, conf=_masked(merged.conf, mask))
                )


def _in_main_memory(matches: Sequence[Correspondences]) -> tuple[Correspondences, ...]:
    """The same in main memory, where they come in few large copies."""
    if not matches:
        return ()
    lengths = [len(one) for one in matches]
    columns = ([one.xy_i for one in matches], [one.xy_j for one in matches], [one.conf.float() for one in matches])
    parts = zip(*(torch.cat(column).cpu().split(lengths) for column in columns), strict=True)
    return tuple(Correspondences(one.i, one.j, *own) for one, own in zip(matches, parts, strict=True))


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
