"""Nearest neighbours of many seeds in many descriptor maps in one launch, for CUDA devices.

The product of a tile of seeds with a tile of the database lives in registers only. Descriptors are split
into a float16 and the float16 of its remainder, and the three products that matter are accumulated in
float32: that carries 22 bits, as good as a float32 product, at the speed of the tensor cores.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl

_QUERIES = 64
_DATABASE = 128
_SPLIT = 16384  # rows of the database per program


class SplitMaps(NamedTuple):
    """Descriptor maps of a batch, (M, N, D) float16 each, D padded to a power of two; `sizes` (M,) int32 <= N rows."""

    high: torch.Tensor
    low: torch.Tensor
    sizes: torch.Tensor


def split_maps(maps: list[torch.Tensor]) -> SplitMaps:
    """Packs float32 maps (N_k, D) of unit descriptors; rows beyond a map's size are zero."""
    rows = max(len(m) for m in maps)
    depth = max(16, triton.next_power_of_2(maps[0].shape[1]))
    packed = maps[0].new_zeros(len(maps), rows, depth)
    for k, m in enumerate(maps):
        packed[k, : len(m), : m.shape[1]] = m
    high = packed.half()
    low = packed.sub_(high).half()
    sizes = torch.tensor([len(m) for m in maps], dtype=torch.int32, device=maps[0].device)
    return SplitMaps(high, low, sizes)


@triton.jit
def _nearest_kernel(  # type: ignore[no-untyped-def]  # triton's own types
    high, low, sizes, source, database, rows, order, count, best,
    num_seeds, map_rows,
    DEPTH: tl.constexpr, QUERIES: tl.constexpr, DATABASE: tl.constexpr, SPLIT: tl.constexpr,
):  # fmt: skip
    job = tl.program_id(2)
    first = tl.program_id(0) * QUERIES
    active = tl.load(count + job)
    begin = tl.program_id(1) * SPLIT
    target = tl.load(database + job)
    size = tl.load(sizes + target)
    if (first < active) & (begin < size):
        place = first + tl.arange(0, QUERIES)
        valid = place < active
        slot = tl.load(order + job * num_seeds + place, mask=valid, other=0)
        row = tl.load(rows + job * num_seeds + slot, mask=valid, other=0)
        depth = tl.arange(0, DEPTH)
        from_row = (tl.load(source + job).to(tl.int64) * map_rows + row) * DEPTH
        q_high = tl.load(high + from_row[:, None] + depth[None, :])
        q_low = tl.load(low + from_row[:, None] + depth[None, :])
        best_value = tl.full((QUERIES, DATABASE), float("-inf"), tl.float32)
        best_start = tl.zeros((QUERIES, DATABASE), tl.int32)
        end = tl.minimum(begin + SPLIT, size)
        base = target.to(tl.int64) * map_rows * DEPTH
        for step in range(0, SPLIT, DATABASE):  # a constant count; rows beyond the end are masked
            start = begin + step
            column = start + tl.arange(0, DATABASE)
            inside = column < end
            at = base + column[None, :] * DEPTH + depth[:, None]
            d_high = tl.load(high + at, mask=inside[None, :], other=0.0)
            d_low = tl.load(low + at, mask=inside[None, :], other=0.0)
            product = tl.dot(q_high, d_low)
            product = tl.dot(q_low, d_high, product)
            product = tl.dot(q_high, d_high, product)
            product = tl.where(inside[None, :], product, float("-inf"))
            better = product > best_value  # strictly: the lowest index of equal products stays
            best_value = tl.where(better, product, best_value)
            best_start = tl.where(better, start, best_start)
        value = tl.max(best_value, axis=1)
        index = best_start + tl.arange(0, DATABASE)[None, :]
        index = tl.min(tl.where(best_value == value[:, None], index, 0x7FFFFFFF), axis=1)
        # one integer that orders by product, then by the lower index, so that the splits can be merged atomically
        bits = value.to(tl.int32, bitcast=True)
        ordered = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
        key = (ordered.to(tl.int64) << 32) | (0x7FFFFFFF - index).to(tl.int64)
        tl.atomic_max(best + job * num_seeds + slot, key, mask=valid)


def nearest(
    maps: SplitMaps, source: torch.Tensor, database: torch.Tensor, rows: torch.Tensor, active: torch.Tensor
) -> torch.Tensor:
    """(J, S) int64: for seed (j, s) the row of map `database[j]` nearest to row `rows[j, s]` of map `source[j]`.

    source, database (J,) int32 map numbers; rows (J, S) int64; active (J, S) bool: others are not searched
    and their result is undefined. Does not wait for the device.
    """
    jobs, seeds = rows.shape
    order = torch.argsort(~active, dim=1, stable=True).to(torch.int32)
    count = active.sum(1, dtype=torch.int32)
    best = torch.full(rows.shape, torch.iinfo(torch.int64).min, dtype=torch.int64, device=rows.device)
    map_rows, depth = maps.high.shape[1:]
    grid = (triton.cdiv(seeds, _QUERIES), triton.cdiv(map_rows, _SPLIT), jobs)
    _nearest_kernel[grid](
        maps.high, maps.low, maps.sizes, source, database, rows.to(torch.int32), order, count, best,
        seeds, map_rows,
        DEPTH=depth, QUERIES=_QUERIES, DATABASE=_DATABASE, SPLIT=_SPLIT, num_warps=4,
    )  # fmt: skip
    return 0x7FFFFFFF - (best & 0x7FFFFFFF)
