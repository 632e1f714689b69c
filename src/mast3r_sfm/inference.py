"""Views and pairs -> predictions: every image encoded once, pairs decoded in batches, both directions together."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import torch

from mast3r_sfm.cpu import map_on_cores
from mast3r_sfm.cuda_graphs import capture
from mast3r_sfm.device import current, matmul_precision
from mast3r_sfm.errors import NotFiniteError, ReconstructionError
from mast3r_sfm.model.checkpoint import Model
from mast3r_sfm.model.network import HeadOutput
from mast3r_sfm.progress import Advance
from mast3r_sfm.types import PairPrediction, View, ViewPrediction, network_input

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

_MAX_BATCH = 6  # the kernels of fewer pairs take less time than their launches; more only costs memory
_LEAST_REPLAYS = 4  # batches whose time a recording costs
_FREE_BESIDE_RECORDINGS = 0.5  # of the GPU memory, else only the recording at work is kept
_SHARE = 0.6  # of the free GPU memory that a batch may take by estimate
_BYTES_PER_PIXEL = 1_500  # of one symmetric pair at the peak, matching included, per pixel of a view, half precision


@dataclass(frozen=True)
class EncodedViews:
    """Encoder tokens of all views, each (N, width) in the model's compute type, on its device; empty: not encoded."""

    tokens: tuple[torch.Tensor, ...]
    shapes: tuple[tuple[int, int], ...]


def auto_batch_size(model: Model, shape: tuple[int, int]) -> int:
    """Pairs decoded at once: as many as the free GPU memory takes by estimate, on a CPU one for every core."""
    if model.device.type == "cpu":
        return torch.get_num_threads()
    if model.device.type != "cuda":
        return 1
    free, _ = torch.cuda.mem_get_info(model.device)
    return max(1, min(_MAX_BATCH, int(_SHARE * free / bytes_per_pair(model, shape))))


def bytes_per_pair(model: Model, shape: tuple[int, int]) -> float:
    """Rough bytes of activations and maps that one symmetric pair of views of `shape` (H, W) takes at the peak."""
    element = model.network.decoder_embed.weight.element_size()
    return _BYTES_PER_PIXEL * shape[0] * shape[1] * element / 2


def encode_views(
    model: Model, views: Sequence[View], batch_size: int | None = None, advance: Advance | None = None
) -> EncodedViews:
    """Encodes every view once. Tokens stay on the model's device, in half precision if the model computes in it."""
    return ViewEncoder(model, views, batch_size).encode(range(len(views)), advance)


class ViewEncoder:
    """Encodes views in fixed batches, each when one of its views is asked for.

    What a view's tokens are does therefore not depend, not even in their last bit, on which others are asked for.

    batch_size  views encoded at once, None: twice the `sizes` of their shape, or what the free memory takes
    """

    def __init__(
        self,
        model: Model,
        views: Sequence[View],
        batch_size: int | None = None,
        sizes: Mapping[tuple[int, int], int] | None = None,
    ) -> None:
        self._model = model
        self._views = views
        self._batches: list[tuple[list[int], int]] = []
        for group in _by_shape(range(len(views)), lambda k: views[k].shape):
            shape = views[group[0]].shape
            size = batch_size or 2 * (auto_batch_size(model, shape) if sizes is None else sizes[shape])
            self._batches += [(group[start : start + size], size) for start in range(0, len(group), size)]
        self._tokens = [torch.empty(0)] * len(views)
        self._shapes = tuple(view.shape for view in views)

    @torch.inference_mode()
    def encode(self, wanted: Iterable[int], advance: Advance | None = None) -> EncodedViews:
        """Views encoded so far, those in `wanted` among them; `advance` hears of all that are encoded now."""
        for batch, size in self.missing(wanted):
            for part, encoded in _run_in_batches(batch, size, self._run):
                for k, row in zip(part, encoded, strict=True):
                    self._tokens[k] = row
                if advance:
                    advance(len(part))
        return EncodedViews(tuple(self._tokens), self._shapes)

    def missing(self, wanted: Iterable[int]) -> list[tuple[list[int], int]]:
        """The batches to encode before all views in `wanted` are, with their size."""
        asked = set(wanted)
        return [(b, size) for b, size in self._batches if not len(self._tokens[b[0]]) and not asked.isdisjoint(b)]

    def _run(self, batch: Sequence[int]) -> torch.Tensor:
        rgb = torch.stack([torch.from_numpy(self._views[k].rgb) for k in batch]).to(self._model.device)
        dtype = self._model.network.decoder_embed.weight.dtype
        with current(self._model.device), matmul_precision(self._model.precision):
            return self._model.network.encode(network_input(rgb)).to(dtype)


def predict_pairs(
    model: Model,
    encoded: EncodedViews,
    pairs: Sequence[tuple[int, int]],
    batch_size: int | None = None,
    advance: Advance | None = None,
) -> Iterator[PairPrediction]:
    """Symmetric predictions, one per pair of indices, in groups of equal shapes (not in the order given).

    A consumer that drops each prediction before it takes the next keeps one batch of dense maps in memory; one that
    keeps them may do so. Raises ReconstructionError if a prediction is not finite, naming the pair.
    """
    for batch in predict_batches(model, encoded, pairs, batch_size, advance):
        batch.reverse()
        while batch:
            yield batch.pop()  # the consumer's is then the only reference


def predict_batches(
    model: Model,
    encoded: EncodedViews,
    pairs: Sequence[tuple[int, int]],
    batch_size: int | None = None,
    advance: Advance | None = None,
    overwrite: bool = False,
) -> Iterator[list[PairPrediction]]:
    """`predict_pairs` by the batch; the pairs of a batch agree in the shapes of their views.

    A batch's list is emptied when the next one is asked for: nothing then holds its maps beside the next one's.

    overwrite  the maps of a batch may be overwritten by those of the next. On a CUDA device long lists of pairs are
               then decoded by a recorded graph, which takes a third less time
    """
    sizes = None if batch_size is None else dict.fromkeys(encoded.shapes, batch_size)
    yield from PairPredictor(model, encoded.shapes, sizes, pairs if overwrite else ()).batches(encoded, pairs, advance)


class PairPredictor:
    """`predict_batches` for many lists of pairs one after the other, whose recorded work they share.

    sizes    pairs of a batch by the shape of their first views, None: by the free memory
    to_come  all pairs whose maps may be overwritten by those of the next batch
    """

    def __init__(
        self,
        model: Model,
        shapes: Sequence[tuple[int, int]],
        sizes: Mapping[tuple[int, int], int] | None = None,
        to_come: Sequence[tuple[int, int]] = (),
    ) -> None:
        self._model = model
        self._sizes = sizes
        self._num_left = Counter((shapes[i], shapes[j]) for i, j in to_come)
        self._decoders: dict[tuple[tuple[int, int], tuple[int, int]], _Decoder] = {}

    def batches(
        self, encoded: EncodedViews, pairs: Sequence[tuple[int, int]], advance: Advance | None = None
    ) -> Iterator[list[PairPrediction]]:
        """See `predict_batches`."""
        shapes = encoded.shapes
        for group in _by_shape(range(len(pairs)), lambda k: (shapes[pairs[k][0]], shapes[pairs[k][1]])):
            both = shapes[pairs[group[0]][0]], shapes[pairs[group[0]][1]]
            size = auto_batch_size(self._model, both[0]) if self._sizes is None else self._sizes[both[0]]
            decoder = self._decoder(both)

            def run(batch: Sequence[int], decoder: _Decoder = decoder) -> list[PairPrediction]:
                with current(self._model.device), matmul_precision(self._model.precision), torch.inference_mode():
                    return decoder([pairs[k] for k in batch], encoded.tokens)

            for batch, predictions in _run_in_batches(group, size, run):
                self._num_left[both] -= len(batch)
                yield predictions
                predictions.clear()
                if advance:
                    advance(len(batch))

    def _decoder(self, both: tuple[tuple[int, int], tuple[int, int]]) -> _Decoder:
        """The one for views of these shapes; those for others go if what they have recorded takes too much memory."""
        if both not in self._decoders:
            if self._decoders and self._model.device.type == "cuda":
                free, total = torch.cuda.mem_get_info(self._model.device)
                if free < _FREE_BESIDE_RECORDINGS * total:
                    self._decoders.clear()
            self._decoders[both] = _Decoder(self._model, both, self._num_left[both])
        return self._decoders[both]


class _Decoded(NamedTuple):
    """Of B pairs (i, j) the four maps of each, and (B,) bool, on the device: whether all of these are finite."""

    i_in_i: list[ViewPrediction]
    j_in_i: list[ViewPrediction]
    j_in_j: list[ViewPrediction]
    i_in_j: list[ViewPrediction]
    finite: torch.Tensor


class _Decoder:
    """Decodes batches of pairs whose views have the shapes (H, W) `shapes`.

    The work of a batch is hundreds of operations, which a host issues no faster than a fast GPU does them. So a batch
    of the usual size is recorded where enough of them follow, the first one having been decoded as usual.

    num_left  pairs to come whose maps may be overwritten by the next ones', 0 for none
    """

    def __init__(self, model: Model, shapes: tuple[tuple[int, int], tuple[int, int]], num_left: int) -> None:
        self._model = model
        self._shapes = shapes
        self._num_left = num_left if model.device.type == "cuda" else 0
        self._last_count = 0
        self._recorded: tuple[int, torch.Tensor, torch.Tensor, Callable[[], None], _Decoded] | None = None

    def __call__(self, pairs: Sequence[tuple[int, int]], tokens: Sequence[torch.Tensor]) -> list[PairPrediction]:
        """Of pairs of indices into the `tokens` of all views.

        Raises NotFiniteError if a map holds an infinity or NaN; waits for the device once, for that.
        """
        count = len(pairs)
        first, second = ([tokens[pair[side]] for pair in pairs] for side in (0, 1))
        if self._recorded is None and count == self._last_count and self._num_left >= _LEAST_REPLAYS * count:
            self._record(first, second)
        if self._recorded is not None and self._recorded[0] == count:
            _, tokens1, tokens2, replay, decoded = self._recorded
            torch.stack(first, out=tokens1)
            torch.stack(second, out=tokens2)
            replay()
        else:
            decoded = _decode(self._model, torch.stack(first), torch.stack(second), *self._shapes)
        self._last_count = count
        self._num_left -= count
        for (i, j), good in zip(pairs, decoded.finite.tolist(), strict=True):
            if not good:
                raise NotFiniteError(
                    f"the network's prediction for images {i} and {j} is not finite; try `precision='fp32'`"
                )
        *maps, _ = decoded
        return [PairPrediction(i, j, *of_pair) for (i, j), *of_pair in zip(pairs, *maps, strict=True)]

    def _record(self, first: list[torch.Tensor], second: list[torch.Tensor]) -> None:
        """Where the memory does not suffice for that, batches are decoded without, as before."""
        tokens1, tokens2 = torch.stack(first), torch.stack(second)
        torch.cuda.empty_cache()  # a recording has memory of its own, which the last batch's may take up
        try:
            replay, decoded = capture(lambda: _decode(self._model, tokens1, tokens2, *self._shapes), self._model.device)
        except torch.cuda.OutOfMemoryError:
            self._num_left = 0
            return
        self._recorded = (len(first), tokens1, tokens2, replay, decoded)


def _decode(
    model: Model, tokens1: torch.Tensor, tokens2: torch.Tensor, shape1: tuple[int, int], shape2: tuple[int, int]
) -> _Decoded:
    """Both directions of B pairs of views of shapes (H, W), whose tokens are (B, N, width)."""
    if model.device.type == "cpu" and len(tokens1) > 1:
        return _decode_on_cores(model, tokens1, tokens2, shape1, shape2)
    decode = model.network.decode
    count = len(tokens1)
    if shape1 == shape2:  # both directions are one batch
        both = torch.cat([tokens1, tokens2]), torch.cat([tokens2, tokens1])
        outputs: tuple[HeadOutput, ...] = decode(*both, shape1, shape1)
    else:
        outputs = (*decode(tokens1, tokens2, shape1, shape2), *decode(tokens2, tokens1, shape2, shape1))
    # A sum over a map is finite if and only if all of it is, or if the sum itself overflows, which is refused as well.
    totals = [m.flatten(1).sum(1) for out in outputs for m in dict.fromkeys(out) if m is not None]
    finite = torch.stack(totals).isfinite().all(0).reshape(-1, count).all(0)
    if shape1 == shape2:
        own, other = outputs
        halves = ((own, 0), (other, 0), (own, count), (other, count))
    else:
        first_own, second, second_own, first = outputs
        halves = ((first_own, 0), (second, 0), (second_own, 0), (first, 0))
    i_in_i, j_in_i, j_in_j, i_in_j = (_views(out, start, count) for out, start in halves)
    return _Decoded(i_in_i, j_in_i, j_in_j, i_in_j, finite)


def _decode_on_cores(
    model: Model, tokens1: torch.Tensor, tokens2: torch.Tensor, shape1: tuple[int, int], shape2: tuple[int, int]
) -> _Decoded:
    """`_decode` with every pair on a core of its own."""

    def decode(k: int) -> _Decoded:
        return _decode(model, tokens1[k : k + 1], tokens2[k : k + 1], shape1, shape2)

    pairs = map_on_cores(decode, range(len(tokens1)))
    return _Decoded(
        [view for one in pairs for view in one.i_in_i],
        [view for one in pairs for view in one.j_in_i],
        [view for one in pairs for view in one.j_in_j],
        [view for one in pairs for view in one.i_in_j],
        torch.cat([one.finite for one in pairs]),
    )


def _views(out: HeadOutput, start: int, count: int) -> list[ViewPrediction]:
    return [
        ViewPrediction(
            out.points[k],
            out.conf[k],
            None if out.desc is None else out.desc[k],
            None if out.desc_conf is None else out.desc_conf[k],
        )
        for k in range(start, start + count)
    ]


def _by_shape(items: Sequence[int], key: Callable[[int], object]) -> list[list[int]]:
    """Groups items by key, both in order of first appearance."""
    groups: dict[object, list[int]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return list(groups.values())


def _run_in_batches(
    items: Sequence[int], size: int, run: Callable[[Sequence[int]], Result]
) -> Iterator[tuple[Sequence[int], Result]]:
    """Runs batches of `size`, halving it whenever GPU memory runs out; yields each batch and its result."""
    start = 0
    while start < len(items):
        batch = items[start : start + size]
        try:
            result = run(batch)
        except torch.cuda.OutOfMemoryError as error:
            if len(batch) == 1:
                raise ReconstructionError(
                    "the GPU's memory does not suffice for a single pair; use a smaller `image_size`, "
                    "`precision='fp16'`, or `device='cpu'`"
                ) from error
            size = len(batch) // 2
            logger.warning("GPU memory ran out; the batch size is now %d", size)
            torch.cuda.empty_cache()
            continue
        start += len(batch)
        yield batch, result
