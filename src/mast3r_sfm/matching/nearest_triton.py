"""Exact nearest neighbours of many seeds in many descriptor maps at once, for CUDA devices.

A first pass multiplies in float16 on the tensor cores and keeps only the largest product of every tile of the
database. The row sought lies in a tile whose maximum is close to the best one, by the bound below: a second pass
computes float32 products in those few tiles. Tiles are two-dimensional because descriptors vary smoothly over an
image: the rows that compete with the nearest one are around it, so they share a few tiles. The result is that of a
full float32 search, the lowest index winning ties.

Bound. Let q, d be unit descriptors, q', d' their float16 roundings, |q - q'| <= e and |d - d'| <= f, measured when
the maps are packed. Then |q.d - q'.d'| <= |q - q'| |d| + |q'| |d - d'| <= (e + f) (1 + e), and the float32
accumulation adds less than `_ACCUMULATION` (more for descriptors longer than 64, in proportion); call the sum b. If
a tile holds the row of the largest exact product, its maximum is at least t - 2 b, where t is the largest maximum
of all tiles: the row that attained t has an exact product of at least t - b. Maxima are stored as s =
round16(maximum - 1), which is monotone and has a relative error of at most 2^-11 (2^-25 for subnormals); the tile
sought has s >= round16(t - 1 - 2 b) >= S - 2 |S| 2^-11 - 2 b - 2^-24, up to terms of second order, where S is the
largest s.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import triton
import triton.language as tl

_SECOND_ORDER = tl.constexpr(1.01)  # the bound's second-order terms are below 0.1 %; lengths may be off by as much
_ACCUMULATION = 2.0**-16  # of up to 64 products of float16 numbers, whose sum is at most 1 in size
_STORED = tl.constexpr(2.0**-10)  # 2 x 2^-11, the relative rounding of stored maxima
_SUBNORMAL = tl.constexpr(2.0**-23)  # their absolute rounding near 1, with room
_ALIGNMENT = tl.constexpr(16)  # bytes; what torch allocates is aligned so, a view of it need not be
_NONE = tl.constexpr(0x7FFFFFFF)


@dataclass(frozen=True)
class SearchTuning:
    """How the search is cut into programs; results do not depend on it.

    tile              (height, width) in pixels of a tile, powers of two, at least 16 pixels in all
    queries           seeds per program of the first pass, a power of two
    tiles_per_program tiles that one program of the first pass goes through, a power of two
    warps, stages     of the first pass: warps per program, tiles in flight
    rescore_warps     warps per seed of the second pass
    """

    tile: tuple[int, int] = (8, 16)
    queries: int = 128
    tiles_per_program: int = 64
    warps: int = 4
    stages: int = 3
    rescore_warps: int = 1


TUNING = SearchTuning()


class DescriptorMaps(NamedTuple):
    """A batch of M maps of unit descriptors.

    exact    M tensors (H_m, W_m, D) float32, contiguous
    address  (M,) int64 addresses of their first elements
    shape    (M, 2) int32 (H_m, W_m)
    half     (M, T, tile pixels, P) float16: the same in tiles, row-major over the image and within a tile, pixels
             beyond the border repeating the last row or column; P is D padded to a power of two with zeros
    rounding (M,) int32: the bits of the largest |exact - half| of each map, a float32
    tuning   what the tiles were cut for
    """

    exact: tuple[torch.Tensor, ...]
    address: torch.Tensor
    shape: torch.Tensor
    half: torch.Tensor
    rounding: torch.Tensor
    tuning: SearchTuning


class SeedList(NamedTuple):
    """The seeds of each job that are searched: `slot` (J, S) int32, of which the first `length` (J,) int32 count."""

    slot: torch.Tensor
    length: torch.Tensor


class Workspace(NamedTuple):
    """Maxima of a search, float16: `maxima` (J, T, S') of tiles and `peaks` (J, programs, S') of tiles_per_program
    tiles, where S' is S rounded up to whole programs."""

    maxima: torch.Tensor
    peaks: torch.Tensor


def pack_maps(maps: Sequence[torch.Tensor], tuning: SearchTuning | None = None) -> DescriptorMaps:
    """Half-precision tiles of float32 maps (H_m, W_m, D). The maps are not copied if they are contiguous."""
    tuning = tuning or TUNING
    exact = tuple(_aligned(m.contiguous()) for m in maps)
    device, depth = exact[0].device, exact[0].shape[2]
    padded = max(16, triton.next_power_of_2(depth))
    tiles = max(triton.cdiv(m.shape[0], tuning.tile[0]) * triton.cdiv(m.shape[1], tuning.tile[1]) for m in exact)
    pixels = tuning.tile[0] * tuning.tile[1]
    packed = DescriptorMaps(
        exact,
        to_device([m.data_ptr() for m in exact], torch.int64, device),
        to_device([m.shape[:2] for m in exact], torch.int32, device),
        torch.empty(len(exact), tiles, pixels, padded, dtype=torch.float16, device=device),
        torch.zeros(len(exact), dtype=torch.int32, device=device),
        tuning,
    )
    _pack(packed)
    return packed


def pack_anew(packed: DescriptorMaps, maps: Sequence[torch.Tensor]) -> DescriptorMaps:
    """`pack_maps` of as many maps of the same shapes, into the tensors of `packed`."""
    exact = tuple(_aligned(m.contiguous()) for m in maps)
    packed.address.copy_(to_device([m.data_ptr() for m in exact], torch.int64, packed.address.device))
    packed.rounding.zero_()
    packed = packed._replace(exact=exact)
    _pack(packed)
    return packed


def _pack(packed: DescriptorMaps) -> None:
    count, tiles, _, padded = packed.half.shape
    tuning = packed.tuning
    _pack_kernel[(tiles, count)](
        packed.address, packed.shape, packed.half, packed.rounding, tiles,
        DEPTH=packed.exact[0].shape[2], PADDED=padded, TILE_H=tuning.tile[0], TILE_W=tuning.tile[1], num_warps=4,
    )  # fmt: skip


def make_workspace(maps: DescriptorMaps, jobs: int, seeds: int) -> Workspace:
    """Buffers for searches of up to `seeds` seeds in each of `jobs` jobs."""
    tiles, tuning = maps.half.shape[1], maps.tuning
    padded = triton.cdiv(max(1, seeds), tuning.queries) * tuning.queries
    programs = triton.cdiv(tiles, tuning.tiles_per_program)
    empty = maps.half.new_empty
    return Workspace(empty(jobs, tiles, padded), empty(jobs, programs, padded))


def nearest(
    maps: DescriptorMaps,
    workspace: Workspace,
    source: torch.Tensor,
    database: torch.Tensor,
    rows: torch.Tensor,
    listed: SeedList,
    found: torch.Tensor,
    moved: SeedList,
) -> None:
    """For listed seeds, `found` becomes the pixel of map `database[j]` nearest to pixel `rows[j, s]` of `source[j]`.

    source, database (J,) int32 map numbers; rows, found (J, S) int32 flat row-major pixels. Seeds whose `found`
    changed are appended to `moved`, in any order; its lengths are zero before. Does not wait for the device.
    """
    jobs, seeds = rows.shape
    if not seeds:
        return
    tuning, (_, tiles, _, padded) = maps.tuning, maps.half.shape
    programs, padded_seeds = workspace.peaks.shape[1:]
    _tile_maxima_kernel[(padded_seeds // tuning.queries, programs, jobs)](
        maps.half, maps.shape, source, database, rows, listed.slot, listed.length, workspace.maxima, workspace.peaks,
        seeds, padded_seeds, tiles, programs,
        PADDED=padded, TILE_H=tuning.tile[0], TILE_W=tuning.tile[1], QUERIES=tuning.queries,
        TILES=tuning.tiles_per_program, STAGES=tuning.stages, num_warps=tuning.warps,
    )  # fmt: skip
    _rescore_kernel[(seeds, jobs)](
        maps.address, maps.shape, maps.rounding, source, database, rows, listed.slot, listed.length,
        workspace.maxima, workspace.peaks, found, moved.slot, moved.length,
        seeds, padded_seeds, tiles, programs,
        DEPTH=maps.exact[0].shape[2], PADDED=padded, TILE_H=tuning.tile[0], TILE_W=tuning.tile[1],
        TILES=tuning.tiles_per_program, PROGRAMS=triton.next_power_of_2(programs),
        ACCUMULATION=_ACCUMULATION * max(1, padded // 64), num_warps=tuning.rescore_warps,
    )  # fmt: skip


def _aligned(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.clone() if tensor.data_ptr() % _ALIGNMENT.value else tensor


def to_device(values: Sequence[object], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """A tensor of `values` on the device, without waiting for its work as a copy of pageable memory does."""
    host = torch.tensor(values, dtype=dtype, pin_memory=device.type == "cuda")
    return host.to(device, non_blocking=True)


@triton.jit
def _tile_pixels(tile, height, width, TILE_H: tl.constexpr, TILE_W: tl.constexpr):  # type: ignore[no-untyped-def]
    """Flat pixels of a tile, row-major, coordinates beyond the border clamped."""
    lane = tl.arange(0, TILE_H * TILE_W)
    across = tl.cdiv(width, TILE_W)
    y = tl.minimum(tile // across * TILE_H + lane // TILE_W, height - 1)
    x = tl.minimum(tile % across * TILE_W + lane % TILE_W, width - 1)
    return y * width + x


@triton.jit
def _map_at(address, number):  # type: ignore[no-untyped-def]
    """Pointer to a float32 map. Its alignment, lost with the type, is what lets loads take 16 bytes at once."""
    return tl.multiple_of(tl.load(address + number).to(tl.pointer_type(tl.float32)), _ALIGNMENT)


@triton.jit(do_not_specialize=["num_tiles"])
def _pack_kernel(  # type: ignore[no-untyped-def]  # triton's own types
    address, shape, half, rounding, num_tiles,
    DEPTH: tl.constexpr, PADDED: tl.constexpr, TILE_H: tl.constexpr, TILE_W: tl.constexpr,
):  # fmt: skip
    """One tile of `half`, and its part of the largest rounding error."""
    tile = tl.program_id(0)
    number = tl.program_id(1)
    height = tl.load(shape + 2 * number)
    width = tl.load(shape + 2 * number + 1)
    if tile < tl.cdiv(height, TILE_H) * tl.cdiv(width, TILE_W):
        pixel = _tile_pixels(tile, height, width, TILE_H, TILE_W)
        depth = tl.arange(0, PADDED)
        at = pixel.to(tl.int64)[:, None] * DEPTH + depth[None, :]
        values = tl.load(_map_at(address, number) + at, mask=(depth < DEPTH)[None, :], other=0.0)
        rounded = values.to(tl.float16)
        to = (number.to(tl.int64) * num_tiles + tile) * (TILE_H * TILE_W * PADDED)
        tl.store(half + to + tl.arange(0, TILE_H * TILE_W)[:, None] * PADDED + depth[None, :], rounded)
        error = values - rounded.to(tl.float32)
        worst = tl.sqrt(tl.max(tl.sum(error * error, axis=1), axis=0))
        # bits of non-negative floats are ordered as the floats are
        tl.atomic_max(rounding + number, worst.to(tl.int32, bitcast=True), sem="relaxed")


@triton.jit(do_not_specialize=["num_seeds", "num_tiles", "num_programs"])
def _tile_maxima_kernel(  # type: ignore[no-untyped-def]
    half, shape, source, database, rows, slots, count, maxima, peaks,
    num_seeds, padded_seeds, num_tiles, num_programs,
    PADDED: tl.constexpr, TILE_H: tl.constexpr, TILE_W: tl.constexpr, QUERIES: tl.constexpr,
    TILES: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """maxima[job, tile, place]: the largest float16 product, less 1, of the place-th listed seed in a tile."""
    job = tl.program_id(2)
    first = tl.program_id(0) * QUERIES
    program = tl.program_id(1)
    active = tl.load(count + job)
    target = tl.load(database + job)
    own_tiles = tl.cdiv(tl.load(shape + 2 * target), TILE_H) * tl.cdiv(tl.load(shape + 2 * target + 1), TILE_W)
    start = program * TILES
    if (first < active) & (start < own_tiles):
        PIXELS: tl.constexpr = TILE_H * TILE_W
        place = first + tl.arange(0, QUERIES)
        depth = tl.arange(0, PADDED)
        slot = tl.load(slots + job * num_seeds + tl.minimum(place, active - 1))
        pixel = tl.load(rows + job * num_seeds + slot)
        origin = tl.load(source + job)
        width = tl.load(shape + 2 * origin + 1)
        y = pixel // width
        x = pixel % width
        tile = y // TILE_H * tl.cdiv(width, TILE_W) + x // TILE_W
        packed = tile * PIXELS + y % TILE_H * TILE_W + x % TILE_W
        at = (origin.to(tl.int64) * num_tiles * PIXELS + packed) * PADDED
        query = tl.load(half + at[:, None] + depth[None, :])
        database_at = half + target.to(tl.int64) * num_tiles * (PIXELS * PADDED)
        database_at += tl.arange(0, PIXELS)[:, None] * PADDED + depth[None, :]
        maxima_at = maxima + job.to(tl.int64) * num_tiles * padded_seeds + place
        peak = tl.full((QUERIES,), float("-inf"), tl.float32)
        for k in tl.range(0, TILES, num_stages=STAGES):
            # the last program repeats the last tile: a constant loop without a mask is what the compiler pipelines
            number = tl.minimum(start + k, own_tiles - 1)
            rows_of_tile = tl.load(database_at + number * (PIXELS * PADDED))
            best = tl.max(tl.dot(query, rows_of_tile.T), axis=1)
            tl.store(maxima_at + number * padded_seeds, (best - 1.0).to(tl.float16))
            peak = tl.maximum(peak, best)
        tl.store(peaks + (job * num_programs + program) * padded_seeds + place, (peak - 1.0).to(tl.float16))


@triton.jit(do_not_specialize=["num_seeds", "num_tiles", "num_programs"])
def _rescore_kernel(  # type: ignore[no-untyped-def]
    address, shape, rounding, source, database, rows, slots, count, maxima, peaks, found, moved, moved_count,
    num_seeds, padded_seeds, num_tiles, num_programs,
    DEPTH: tl.constexpr, PADDED: tl.constexpr, TILE_H: tl.constexpr, TILE_W: tl.constexpr,
    TILES: tl.constexpr, PROGRAMS: tl.constexpr, ACCUMULATION: tl.constexpr,
):  # fmt: skip
    """found[job, slot]: the pixel with the largest float32 product among the tiles that may hold it."""
    job = tl.program_id(1)
    place = tl.program_id(0)
    if place < tl.load(count + job):
        slot = job * num_seeds + tl.load(slots + job * num_seeds + place)
        origin = tl.load(source + job)
        target = tl.load(database + job)
        height = tl.load(shape + 2 * target)
        width = tl.load(shape + 2 * target + 1)
        own_tiles = tl.cdiv(height, TILE_H) * tl.cdiv(width, TILE_W)
        depth = tl.arange(0, PADDED)
        used = depth < DEPTH
        query_at = _map_at(address, origin) + tl.load(rows + slot).to(tl.int64) * DEPTH
        query = tl.load(query_at + depth, mask=used, other=0.0)
        exact = _map_at(address, target)

        lane = tl.arange(0, PROGRAMS)
        peaks_at = peaks + job * num_programs * padded_seeds + place
        peak = tl.load(peaks_at + lane * padded_seeds, mask=lane * TILES < own_tiles, other=float("-inf"))
        peak = peak.to(tl.float32)
        top = tl.max(peak, axis=0)
        error = tl.load(rounding + origin).to(tl.float32, bitcast=True)
        error += tl.load(rounding + target).to(tl.float32, bitcast=True)
        margin = 2.0 * (error * _SECOND_ORDER + ACCUMULATION) + tl.abs(top) * (_STORED * _SECOND_ORDER) + _SUBNORMAL
        threshold = top - margin

        maxima_at = maxima + job.to(tl.int64) * num_tiles * padded_seeds + place
        tile_lane = tl.arange(0, TILES)
        best_value = float("-inf")
        best_pixel = 0
        # candidates are taken in order: the first lane that reaches the threshold, beyond the last one taken
        program = tl.min(tl.where(peak >= threshold, lane, _NONE), axis=0)
        while program < _NONE:
            number = program * TILES + tile_lane
            of_tile = tl.load(maxima_at + number * padded_seeds, mask=number < own_tiles, other=float("-inf"))
            candidate = of_tile.to(tl.float32) >= threshold
            tile = tl.min(tl.where(candidate, number, _NONE), axis=0)
            while tile < _NONE:
                pixel = _tile_pixels(tile, height, width, TILE_H, TILE_W)
                at = pixel.to(tl.int64)[:, None] * DEPTH + depth[None, :]
                values = tl.load(exact + at, mask=used[None, :], other=0.0)
                product = tl.sum(values * query[None, :], axis=1)
                value = tl.max(product, axis=0)
                index = tl.min(tl.where(product == value, pixel, _NONE), axis=0)
                better = (value > best_value) | ((value == best_value) & (index < best_pixel))
                best_pixel = tl.where(better, index, best_pixel)
                best_value = tl.maximum(value, best_value)
                tile = tl.min(tl.where(candidate & (number > tile), number, _NONE), axis=0)
            program = tl.min(tl.where((peak >= threshold) & (lane > program), lane, _NONE), axis=0)
        if best_pixel != tl.load(found + slot):
            tl.store(found + slot, best_pixel)
            tl.store(moved + job * num_seeds + tl.atomic_add(moved_count + job, 1), slot - job * num_seeds)
