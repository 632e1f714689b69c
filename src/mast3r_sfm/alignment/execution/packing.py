"""How matches become rectangular tensors.

Matches are cut into chunks of `CHUNK` matches of one pair, padded with weight 0. So every camera quantity is
needed once per chunk, not once per match, and a loss is a few dense products over all chunks.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from mast3r_sfm.alignment.execution.segments import SegmentSum
from mast3r_sfm.canonical import anchor_index, depth_offsets
from mast3r_sfm.types import CanonicalView, Correspondences, FallbackPrediction

logger = logging.getLogger(__name__)

CHUNK = 256


@dataclass(frozen=True)
class Observations:
    """Observed pixels of views, in chunks of L = `CHUNK`, padded with a valid anchor and weight 0.

    pixel   (..., 2, L) float32 (x, y)
    anchor  (..., L) int32: view * anchors per view + anchor
    offset  (..., L) float32: depth relative to the anchor's, minus 1, at the base focal length
    """

    pixel: torch.Tensor
    anchor: torch.Tensor
    offset: torch.Tensor


@dataclass(frozen=True)
class MatchChunks:
    """Matches of all good pairs, C chunks. Side 0 of a pair (i, j) is view i, side 1 is view j.

    A last pair (0, 0) and a last chunk of it hold padding only: the rows of zeros that the sums need.

    pairs            (P + 1, 2) int64 views (i, j)
    chunk_pair       (C,) int64
    observed         both sides, (C, 2, ...)
    weight           (C, L) float32: confidence of the match / sum of all confidences
    sum_by_pair      rows of chunks (C) -> pairs (P + 1)
    sum_by_view      rows of pair sides (2P + 2) -> views (n)
    sum_by_anchor    observations (2CL) -> anchors (n A)
    """

    pairs: torch.Tensor
    chunk_pair: torch.Tensor
    observed: Observations
    weight: torch.Tensor
    sum_by_pair: SegmentSum
    sum_by_view: SegmentSum
    sum_by_anchor: SegmentSum

    @property
    def num_pairs(self) -> int:
        """Number of real pairs P."""
        return len(self.pairs) - 1


@dataclass(frozen=True)
class FallbackChunks:
    """What stands in for the matches of bad pairs, C chunks: all observations of view a, and where view b's
    prediction puts the blocks they lie in.

    entries        (E + 1, 2) int64 views (a, b), both orientations of every bad pair; a last entry of padding
    chunk_entry    (C,) int64
    observed       of view a, (C, ...)
    target         (C, 3, L) float32 points in camera b
    weight         (C, L) float32: confidence / sum of all
    sum_by_*       as in `MatchChunks`, with entries for pairs
    """

    entries: torch.Tensor
    chunk_entry: torch.Tensor
    observed: Observations
    target: torch.Tensor
    weight: torch.Tensor
    sum_by_entry: SegmentSum
    sum_by_view: SegmentSum
    sum_by_anchor: SegmentSum


@dataclass(frozen=True)
class ObservedSide:
    """One view's side of the matches of a pair: (M, 2) pixels, (M,) int32 global anchors, (M,) offsets minus 1."""

    view: int
    xy: torch.Tensor
    anchor: torch.Tensor
    offset: torch.Tensor


def observe(
    canonical: Sequence[CanonicalView],
    pairs: Sequence[Correspondences],
    position_of: Mapping[int, int],
    per_view: int,
    subsample: int,
) -> list[tuple[ObservedSide, ObservedSide]]:
    """Anchors and offsets of both sides of every pair, looked up view by view.

    position_of  `CanonicalView.index` -> position in `canonical`
    per_view     anchors per view in the numbering of `Observations.anchor`
    """
    owned: list[list[tuple[int, int]]] = [[] for _ in canonical]
    for p, matches in enumerate(pairs):
        owned[position_of[matches.i]].append((p, 0))
        owned[position_of[matches.j]].append((p, 1))
    found: dict[tuple[int, int], ObservedSide] = {}
    for k, (view, own) in enumerate(zip(canonical, owned, strict=True)):
        if not own:
            continue
        pixels = [(pairs[p].xy_i, pairs[p].xy_j)[side] for p, side in own]
        xy = torch.cat(pixels).to(view.conf.device)
        shape = (int(view.conf.shape[0]), int(view.conf.shape[1]))
        anchor = (anchor_index(xy, shape, subsample) + k * per_view).int()
        offset = depth_offsets(view.relative_depth, xy, subsample) - 1
        counts = [len(pixel) for pixel in pixels]
        parts = zip(pixels, anchor.split(counts), offset.split(counts), strict=True)
        found |= {key: ObservedSide(k, *part) for key, part in zip(own, parts, strict=True)}
    return [(found[p, 0], found[p, 1]) for p in range(len(pairs))]


class _Chunking:
    """Where the rows of consecutive blocks of given lengths go, if every block starts a new chunk.

    A last block of one chunk holds nothing.
    """

    def __init__(self, lengths: Sequence[int], device: torch.device) -> None:
        length = torch.tensor([*lengths, 0], device=device)
        chunks = (length + CHUNK - 1) // CHUNK
        chunks[-1] = 1
        self.num_chunks = int(chunks.sum())
        self.block = torch.arange(len(length), device=device).repeat_interleave(chunks)
        shift = (chunks.cumsum(0) - chunks) * CHUNK - (length.cumsum(0) - length)
        self._row = torch.arange(int(length.sum()), device=device) + shift.repeat_interleave(length)

    def place(self, rows: Iterable[torch.Tensor], out: torch.Tensor) -> None:
        """Writes concatenated `rows` to `out` (C, L), whose padding is left as it is."""
        values = list(rows)
        if values:
            # a matrix index, because `out` need not be contiguous
            out[self._row // CHUNK, self._row % CHUNK] = torch.cat(values).to(out.device, out.dtype)

    def weights(self, confs: Iterable[torch.Tensor]) -> torch.Tensor:
        """(C, L) float32 confidences divided by their sum; 0 for padding."""
        weight = torch.zeros(self.num_chunks, CHUNK, device=self._row.device)
        self.place(confs, weight)
        return weight.div_(weight.sum(dtype=torch.float64).clamp_min(1e-30))

    def observations(self, sides: Sequence[Sequence[ObservedSide]], first_anchor: torch.Tensor) -> Observations:
        """(C, k, ...) for k lists of sides; `first_anchor` (blocks, k) is a valid anchor for a block's padding."""
        device, k = self._row.device, len(sides)
        pixel = torch.zeros(self.num_chunks, k, 2, CHUNK, device=device)
        anchor = first_anchor.int()[self.block, :, None].repeat(1, 1, CHUNK)
        offset = torch.zeros(self.num_chunks, k, CHUNK, device=device)
        for number, column in enumerate(sides):
            for axis in (0, 1):
                self.place((side.xy[:, axis] for side in column), pixel[:, number, axis])
            self.place((side.anchor for side in column), anchor[:, number])
            self.place((side.offset for side in column), offset[:, number])
        return Observations(pixel, anchor, offset)


def pack_matches(
    pairs: Sequence[Correspondences],
    views: np.ndarray,
    sides: Sequence[tuple[ObservedSide, ObservedSide]],
    good: Sequence[bool],
    num_anchors: tuple[int, int],
    device: torch.device,
) -> MatchChunks:
    """Good pairs as chunks; `views` (P, 2) are positions, `num_anchors` the number of views and of anchors of each."""
    kept = [p for p, is_good in enumerate(good) if is_good]
    chunking = _Chunking([len(pairs[p]) for p in kept], device)
    view_of = torch.tensor([*views[kept].tolist(), [0, 0]], device=device)
    observed = chunking.observations([[sides[p][k] for p in kept] for k in (0, 1)], view_of * num_anchors[1])
    weight = chunking.weights(pairs[p].conf for p in kept)
    block, sum_by_pair = chunking.block, _sum_chunks(chunking)
    del chunking  # the sums over anchors need the memory
    return MatchChunks(
        pairs=view_of,
        chunk_pair=block,
        observed=observed,
        weight=weight,
        sum_by_pair=sum_by_pair,
        sum_by_view=_sum_views(view_of, num_anchors[0]),
        sum_by_anchor=_sum_anchors(observed.anchor, (weight > 0)[:, None], num_anchors),
    )


def pack_fallback(
    pairs: Sequence[Correspondences],
    views: np.ndarray,
    sides: Sequence[tuple[ObservedSide, ObservedSide]],
    good: Sequence[bool],
    fallback: Mapping[tuple[int, int], FallbackPrediction],
    canonical: Sequence[CanonicalView],
    per_view: int,
) -> FallbackChunks | None:
    """Both orientations of bad pairs as chunks, None if there is no bad pair."""
    bad = [p for p, is_good in enumerate(good) if not is_good]
    if not bad:
        return None
    logger.info("%d pairs have no match above the threshold; the fallback loss takes their place", len(bad))
    oriented = [(int(a), int(b)) for p in bad for a, b in (views[p], views[p][::-1])]
    of_view: dict[int, list[ObservedSide]] = {}
    for side in (side for both in sides for side in both):
        of_view.setdefault(side.view, []).append(side)
    merged = {a: _merge(of_view[a]) for a, _ in oriented}
    points, confs = [], []
    for a, b in oriented:
        key = (canonical[b].index, canonical[a].index)
        if key not in fallback:
            raise ValueError(f"no fallback prediction {key} for a pair without a match above the threshold")
        block = merged[a].anchor.long() - a * per_view
        points.append(fallback[key].points.to(block.device)[block])
        confs.append(fallback[key].conf.to(block.device)[block])

    device = confs[0].device
    num_anchors = (len(canonical), per_view)
    chunking = _Chunking([len(conf) for conf in confs], device)
    entries = torch.tensor([*oriented, (0, 0)], device=device)
    packed = chunking.observations([[merged[a] for a, _ in oriented]], entries[:, :1] * per_view)
    observed = Observations(packed.pixel[:, 0], packed.anchor[:, 0], packed.offset[:, 0])
    weight = chunking.weights(confs)
    target = torch.zeros(chunking.num_chunks, 3, CHUNK, device=device)
    for axis in range(3):
        chunking.place((point[:, axis] for point in points), target[:, axis])
    return FallbackChunks(
        entries=entries,
        chunk_entry=chunking.block,
        observed=observed,
        target=target,
        weight=weight,
        sum_by_entry=_sum_chunks(chunking),
        sum_by_view=_sum_views(entries, num_anchors[0]),
        sum_by_anchor=_sum_anchors(observed.anchor, weight > 0, num_anchors),
    )


def _merge(sides: Sequence[ObservedSide]) -> ObservedSide:
    """All observations of one view."""
    return ObservedSide(
        sides[0].view,
        torch.cat([side.xy for side in sides]),
        torch.cat([side.anchor for side in sides]),
        torch.cat([side.offset for side in sides]),
    )


def _sum_chunks(chunking: _Chunking) -> SegmentSum:
    return SegmentSum(chunking.block, int(chunking.block[-1]) + 1, zero_row=chunking.num_chunks - 1)


def _sum_views(view_of: torch.Tensor, num_views: int) -> SegmentSum:
    owner = view_of.clone()
    owner[-1] = -1
    return SegmentSum(owner.view(-1), num_views, zero_row=owner.numel() - 1)


def _sum_anchors(anchor: torch.Tensor, real: torch.Tensor, num_anchors: tuple[int, int]) -> SegmentSum:
    owner = torch.where(real, anchor, -1).reshape(-1)
    return SegmentSum(owner, num_anchors[0] * num_anchors[1], zero_row=owner.numel() - 1)
