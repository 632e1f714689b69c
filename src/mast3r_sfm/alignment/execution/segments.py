"""Sums over segments of rows whose result does not depend on the order in which a device runs its threads."""

from __future__ import annotations

import math
from itertools import pairwise

import torch

_ROWS_AT_ONCE = 1 << 22  # that are sorted together: there may be a hundred million, at sixty bytes each


class SegmentSum:
    """Adds up the rows of a tensor that belong to the same segment, in a fixed order, without atomics.

    Rows are gathered through a rectangular table, `width` per segment, and summed down its columns; a segment
    with more rows gets further columns, which are summed in the same way and added. Everything is
    precomputed, so a call is two operations (four when some segments need more columns).

    segments      (R,) integers: the segment of every row; -1 leaves a row out
    num_segments  number of segments; empty ones sum to zero
    zero_row      a row of the data that always holds zeros; fills the table
    """

    def __init__(self, segments: torch.Tensor, num_segments: int, zero_row: int) -> None:
        segments = segments.int()
        counts = torch.bincount(segments + 1, minlength=num_segments + 1)[1:]
        self.width = _table_width(counts)

        first = counts.cumsum(0) - counts
        extra = (counts - 1).clamp_min(0) // self.width  # further columns of each segment
        num_extra = int(extra.sum())
        num_columns = num_segments + num_extra + (num_extra > 0)  # the last of the extra columns stays zero
        first_extra = num_segments + extra.cumsum(0) - extra - 1
        table = torch.full((self.width, num_columns), zero_row, dtype=torch.int32, device=segments.device)
        for low, high in _ranges(counts):
            rows = ((segments >= low) & (segments < high)).nonzero()[:, 0]
            own, order = torch.sort(segments[rows], stable=True)
            position = torch.arange(len(rows), device=rows.device) + first[low] - first[own]
            further = first_extra[own] + position.div(self.width, rounding_mode="floor")
            column = torch.where(position < self.width, own, further)
            table[position % self.width, column] = rows[order].int()
        self._table = table.view(-1)
        self._num_segments = num_segments
        self._overflow: SegmentSum | None = None
        if num_extra:
            self._overflowing = extra.nonzero()[:, 0]
            owner = torch.arange(len(self._overflowing), device=segments.device)
            owner = owner.repeat_interleave(extra[self._overflowing])
            self._overflow = SegmentSum(owner, len(self._overflowing), zero_row=num_extra)

    def __call__(self, values: torch.Tensor) -> torch.Tensor:
        """(R, ...) -> (num_segments, ...)"""
        gathered = values.index_select(0, self._table).view(self.width, -1, *values.shape[1:])
        sums = gathered.sum(0)
        if self._overflow is None:
            return sums
        total = sums[: self._num_segments]
        # every index once: no two threads add to the same place
        return total.index_add_(0, self._overflowing, self._overflow(sums[self._num_segments :]))


def _ranges(counts: torch.Tensor) -> list[tuple[int, int]]:
    """Consecutive ranges of segments with about `_ROWS_AT_ONCE` rows each."""
    ends = counts.cumsum(0)
    limits = torch.tensor(range(_ROWS_AT_ONCE, int(ends[-1]), _ROWS_AT_ONCE), dtype=ends.dtype, device=ends.device)
    cuts = [0, *torch.searchsorted(ends, limits).tolist(), len(counts)]
    return list(pairwise(cuts))


def _table_width(counts: torch.Tensor) -> int:
    """The power of two next to the mean length of the segments, so that few need more columns."""
    used = counts[counts > 0]
    if len(used) == 0:
        return 1
    return 2 ** math.ceil(math.log2(float(used.float().mean())))
