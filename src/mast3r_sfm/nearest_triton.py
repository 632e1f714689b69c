"""Exact nearest neighbours of many seeds in many descriptor maps at once, for CUDA devices.

A first pass multiplies in float16 on the tensor cores and keeps only the largest product of every 128 rows of
the database. For unit descriptors that product is off by less than `_MARGIN / 2`, so the row sought lies in a
block whose maximum is within `_MARGIN` of the best one: a second pass computes float32 products in those few
blocks. The result is that of a full float32 search, the lowest index winning ties.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl

_QUERIES = 64
_BLOCK = 128
_BLOCKS_PER_PROGRAM = 64
_GROUP = 32  # blocks that the second pass skips together
_MARGIN = 2.0e-3  # float16 rounds by 2^-11 of each vector's length: 2 (2^-11 + 2^-11), rounded up


class DescriptorMaps(NamedTuple):
    """A batch of maps: `exact` (M, N, D) float32 unit descriptors and `half` (M, N, P), the same in float16.

    P is D padded to a power of two with zeros; `sizes` (M,) int32 says how many of a map's N rows are its own.
    """

    exact: torch.Tensor
    half: torch.Tensor
    sizes: torch.Tensor


def pack_maps(maps: Sequence[torch.Tensor]) -> DescriptorMaps:
    """Stacks float32 maps (N_k, D); the rows that a shorter map lacks are zero."""
    rows = max(len(m) for m in maps)
    depth = maps[0].shape[1]
    padded = max(16, triton.next_power_of_2(depth))
    exact = maps[0].new_zeros(len(maps), rows, depth)
    half = torch.zeros(len(maps), rows, padded, dtype=torch.float16, device=maps[0].device)
    for k, m in enumerate(maps):
        exact[k, : len(m)] = m
        half[k, : len(m), :depth] = m
    return DescriptorMaps(exact, half, torch.tensor([len(m) for m in maps], dtype=torch.int32, device=exact.device))


@triton.jit
def _block_maxima_kernel(  # type: ignore[no-untyped-def]  # triton's own types
    half, sizes, source, database, rows, order, count, maxima,
    num_seeds, map_rows, num_blocks,
    DEPTH: tl.constexpr, QUERIES: tl.constexpr, BLOCK: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    """maxima[job, place, block]: the largest float16 product of the place-th active seed in a block of the database."""
    job = tl.program_id(2)
    first = tl.program_id(0) * QUERIES
    active = tl.load(count + job)
    if first < active:
        place = first + tl.arange(0, QUERIES)
        valid = place < active
        slot = tl.load(order + job * num_seeds + place, mask=valid, other=0)
        row = tl.load(rows + job * num_seeds + slot, mask=valid, other=0)
        depth = tl.arange(0, DEPTH)
        at = (tl.load(source + job).to(tl.int64) * map_rows + row) * DEPTH
        query = tl.load(half + at[:, None] + depth[None, :])
        target = tl.load(database + job)
        size = tl.load(sizes + target)
        base = target.to(tl.int64) * map_rows * DEPTH
        store_at = (job.to(tl.int64) * num_seeds + place) * num_blocks
        for k in range(BLOCKS):
            block = tl.program_id(1) * BLOCKS + k
            if block < num_blocks:
                column = block * BLOCK + tl.arange(0, BLOCK)
                inside = column < size
                tile = tl.load(half + base + column[None, :] * DEPTH + depth[:, None], mask=inside[None, :], other=0.0)
                product = tl.dot(query, tile)
                product = tl.where(inside[None, :], product, float("-inf"))
                tl.store(maxima + store_at + block, tl.max(product, axis=1), mask=valid)


@triton.jit
def _rescore_kernel(  # type: ignore[no-untyped-def]
    exact, sizes, source, database, rows, order, count, maxima, found,
    num_seeds, map_rows, depth_used,
    NUM_BLOCKS: tl.constexpr, MARGIN: tl.constexpr, DEPTH: tl.constexpr, BLOCK: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """found[job, slot]: the row with the largest float32 product among the blocks that may hold it."""
    job = tl.program_id(1)
    place = tl.program_id(0)
    if place < tl.load(count + job):
        slot = tl.load(order + job * num_seeds + place)
        row = tl.load(rows + job * num_seeds + slot)
        depth = tl.arange(0, DEPTH)
        at = (tl.load(source + job).to(tl.int64) * map_rows + row) * depth_used
        query = tl.load(exact + at + depth, mask=depth < depth_used, other=0.0)
        target = tl.load(database + job)
        size = tl.load(sizes + target)
        base = target.to(tl.int64) * map_rows * depth_used
        of_seed = maxima + (job.to(tl.int64) * num_seeds + place) * NUM_BLOCKS
        lane = tl.arange(0, GROUP)
        top = tl.full((GROUP,), float("-inf"), tl.float32)
        for start in range(0, NUM_BLOCKS, GROUP):
            inside = start + lane < NUM_BLOCKS
            top = tl.maximum(top, tl.load(of_seed + start + lane, mask=inside, other=float("-inf")))
        threshold = tl.max(top, axis=0) - MARGIN
        best_value = float("-inf")
        best_row = 0
        for start in range(0, NUM_BLOCKS, GROUP):
            inside = start + lane < NUM_BLOCKS
            group = tl.load(of_seed + start + lane, mask=inside, other=float("-inf"))
            if tl.max(group, axis=0) >= threshold:
                for k in range(GROUP):
                    mine = tl.max(tl.where(lane == k, group, float("-inf")), axis=0)
                    if mine >= threshold:
                        column = (start + k) * BLOCK + tl.arange(0, BLOCK)
                        usable = column < size
                        tile = tl.load(
                            exact + base + column[:, None] * depth_used + depth[None, :],
                            mask=usable[:, None] & (depth < depth_used)[None, :],
                            other=0.0,
                        )
                        product = tl.sum(tile * query[None, :], axis=1)
                        product = tl.where(usable, product, float("-inf"))
                        value = tl.max(product, axis=0)
                        index = tl.min(tl.where(product == value, column, 0x7FFFFFFF), axis=0)
                        better = value > best_value  # strictly: the lowest index of equal products stays
                        best_row = tl.where(better, index, best_row)
                        best_value = tl.where(better, value, best_value)
        tl.store(found + job * num_seeds + slot, best_row)


def nearest(
    maps: DescriptorMaps, source: torch.Tensor, database: torch.Tensor, rows: torch.Tensor, active: torch.Tensor
) -> torch.Tensor:
    """(J, S) int64: for seed (j, s) the row of map `database[j]` nearest to row `rows[j, s]` of map `source[j]`.

    source, database (J,) int32 map numbers; rows (J, S) int64; active (J, S) bool: others are not searched,
    their result is -1. Does not wait for the device.
    """
    jobs, seeds = rows.shape
    order = torch.argsort(active, dim=1, descending=True, stable=True).to(torch.int32)
    count = active.sum(1, dtype=torch.int32)
    found = torch.full(rows.shape, -1, dtype=torch.int64, device=rows.device)
    map_rows, depth = maps.exact.shape[1:]
    padded = maps.half.shape[2]
    blocks = triton.cdiv(map_rows, _BLOCK)
    maxima = torch.empty(jobs, seeds, blocks, dtype=torch.float32, device=rows.device)
    rows = rows.to(torch.int32)
    grid = (triton.cdiv(seeds, _QUERIES), triton.cdiv(blocks, _BLOCKS_PER_PROGRAM), jobs)
    _block_maxima_kernel[grid](
        maps.half, maps.sizes, source, database, rows, order, count, maxima, seeds, map_rows, blocks,
        DEPTH=padded, QUERIES=_QUERIES, BLOCK=_BLOCK, BLOCKS=_BLOCKS_PER_PROGRAM, num_warps=4,
    )  # fmt: skip
    _rescore_kernel[(seeds, jobs)](
        maps.exact, maps.sizes, source, database, rows, order, count, maxima, found,
        seeds, map_rows, depth,
        NUM_BLOCKS=blocks, MARGIN=_MARGIN, DEPTH=padded, BLOCK=_BLOCK, GROUP=_GROUP, num_warps=4,
    )  # fmt: skip
    return found
