"""Medians on CUDA devices of many numbers, without sorting them and without a question to the device.

Floats that are not negative are ordered as their bits are: one histogram of the upper bits says in which bin the median
lies, one of the lower bits of that bin's numbers which it is.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

_BLOCK = 1024
_LOWER = 15  # bits; the sign aside, 16 are left
_PROGRAMS = 2048


@triton.jit(do_not_specialize=["size"])
def _histogram_kernel(  # type: ignore[no-untyped-def]  # triton's own types
    values, size, chosen, counts, LOWER: tl.constexpr, COARSE: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    for begin in range(tl.program_id(0) * BLOCK, size, tl.num_programs(0) * BLOCK):
        at = begin + tl.arange(0, BLOCK)
        value = tl.load(values + at, mask=at < size, other=-1.0)
        counted = value >= 0
        bits = tl.where(counted, value, 0.0).to(tl.int32, bitcast=True)
        if COARSE:
            tl.atomic_add(counts + (bits >> LOWER), 1, mask=counted, sem="relaxed")
        else:
            counted = counted & ((bits >> LOWER) == tl.load(chosen).to(tl.int32))
            tl.atomic_add(counts + (bits & ((1 << LOWER) - 1)), 1, mask=counted, sem="relaxed")


def median(values: torch.Tensor) -> torch.Tensor:
    """(1,) float32: of values (M,) float32, those that are not negative and no nan; the lower of two, nan of none."""
    counts = torch.zeros(1 << 16, dtype=torch.int32, device=values.device)
    grid = (min(_PROGRAMS, triton.cdiv(max(1, len(values)), _BLOCK)),)
    _histogram_kernel[grid](values, len(values), counts, counts, LOWER=_LOWER, COARSE=True, BLOCK=_BLOCK)
    reached = counts.cumsum(0)
    rank = (reached[-1:] + 1) // 2  # counted from 1
    upper = torch.searchsorted(reached, rank)
    before = torch.where(upper > 0, reached[(upper - 1).clamp_min(0)], 0)
    finer = torch.zeros(1 << _LOWER, dtype=torch.int32, device=values.device)
    _histogram_kernel[grid](values, len(values), upper, finer, LOWER=_LOWER, COARSE=False, BLOCK=_BLOCK)
    lower = torch.searchsorted(finer.cumsum(0), rank - before)
    bits = ((upper << _LOWER) + lower).int()
    return torch.where(rank > 0, bits.view(torch.float32), torch.nan)


@triton.jit
def _segment_median_kernel(values, bounds, medians, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """Of each segment, by halving the range of bits."""
    segment = tl.program_id(0)
    begin = tl.load(bounds + segment)
    end = tl.load(bounds + segment + 1)
    rank = (end - begin + 1) // 2
    low = 0
    for k in range(31):
        # the median is at least `middle` if fewer than `rank` numbers lie below it
        middle = low + (1 << (30 - k))
        below = tl.zeros([BLOCK], tl.int32)
        for start in range(begin, end, BLOCK):
            at = start + tl.arange(0, BLOCK)
            value = tl.load(values + at, mask=at < end, other=float("inf"))
            below += ((at < end) & (value.to(tl.int32, bitcast=True) < middle)).to(tl.int32)
        low = tl.where(tl.sum(below) < rank, middle, low)
    tl.store(medians + segment, low)


def segment_medians(values: torch.Tensor, bounds: torch.Tensor) -> torch.Tensor:
    """(S,) float32 medians of positive values (M,) float32, those from bounds[s] to bounds[s + 1] - 1 (S + 1,) int64.

    The lower of two; segments are not empty.
    """
    medians = torch.empty(len(bounds) - 1, dtype=torch.int32, device=values.device)
    _segment_median_kernel[(len(medians),)](values, bounds, medians, BLOCK=_BLOCK)
    return medians.view(torch.float32)
