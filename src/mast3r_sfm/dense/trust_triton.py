"""Confidence by confirmation and contradiction on CUDA devices: `trust.judge`, all views in each kernel."""

from __future__ import annotations

from itertools import accumulate

import torch
import triton
import triton.language as tl

from mast3r_sfm.dense.median_triton import median
from mast3r_sfm.dense.packed import PackedViews
from mast3r_sfm.dense.trust import (
    CONFIRMED,
    CONTRADICTED,
    IN_FRONT,
    LEAST_TOLERANCE,
    MOST_RANGE,
    MOST_TOLERANCE,
    MOST_UNCONFIRMED,
    OFFSET,
    SAME_SURFACE,
    SAMPLED,
    SLANT,
    UNCONFIRMED,
)
from mast3r_sfm.dense.views_triton import is_inside, limited, ray, seen_at, to_nearest, turned

_BLOCK = 256


@triton.jit
def _ranges_kernel(log_depth, sizes, ranges, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]  # triton's own types
    view = tl.program_id(1)
    start = tl.load(sizes + 3 * view)
    height = tl.load(sizes + 3 * view + 1).to(tl.int32)
    width = tl.load(sizes + 3 * view + 2).to(tl.int32)
    pixel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    valid = pixel < height * width
    row = pixel // width
    column = pixel % width
    low = tl.full([BLOCK], float("inf"), tl.float32)
    high = tl.full([BLOCK], float("-inf"), tl.float32)
    for k in range(9):
        r = tl.minimum(tl.maximum(row + (k // 3 - 1), 0), height - 1)
        c = tl.minimum(tl.maximum(column + (k % 3 - 1), 0), width - 1)
        value = tl.load(log_depth + start + r * width + c, mask=valid, other=0.0)
        low = tl.minimum(low, value)
        high = tl.maximum(high, value)
    tl.store(ranges + start + pixel, high - low, mask=valid)


@triton.jit
def _compared(  # type: ignore[no-untyped-def]
    x, y, depth, valid, edge, log_depth, conf, ranges, usual_tolerance, sizes, lens, neighbour, pose,
    SLANT: tl.constexpr, RANGE: tl.constexpr,
):  # fmt: skip
    """`trust._Comparison` of pixels with one neighbour: excess, tolerance, seen, index."""
    other = tl.load(neighbour + edge)
    height = tl.load(sizes + 3 * other + 1).to(tl.int32)
    width = tl.load(sizes + 3 * other + 2).to(tl.int32)
    X, Y, Z = turned(x, y, pose, edge)
    u, v, z = seen_at(X, Y, Z, depth, pose, edge, lens, other)
    seen = valid & is_inside(u, v, z, height, width)
    row = to_nearest(limited(v, height.to(tl.float32)))
    column = to_nearest(limited(u, width.to(tl.float32)))
    index = tl.load(sizes + 3 * other) + row * width + column
    seen = seen & (tl.load(conf + index, mask=seen, other=0.0) > 0)
    excess = tl.log(tl.maximum(z, 1e-6)) - tl.load(log_depth + index, mask=seen, other=0.0)
    slant = tl.minimum(tl.load(ranges + index, mask=seen, other=0.0), RANGE)
    return excess, usual_tolerance + SLANT * slant, seen, index


@triton.jit
def _samples_kernel(  # type: ignore[no-untyped-def]
    log_depth, conf, ranges, sizes, lens, first, neighbour, pose, sample_starts, samples,
    STEP: tl.constexpr, SAME: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Differences of one of `STEP` pixels, -1 where there is none."""
    view = tl.program_id(1)
    start = tl.load(sizes + 3 * view)
    width = tl.load(sizes + 3 * view + 2).to(tl.int32)
    pixels = tl.load(sizes + 3 * view + 1).to(tl.int32) * width
    sample = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    pixel = sample * STEP
    valid = pixel < pixels
    num_samples = (pixels + STEP - 1) // STEP
    x, y = ray((pixel % width).to(tl.float32), (pixel // width).to(tl.float32), lens, view)
    depth = tl.exp(tl.load(log_depth + start + pixel, mask=valid, other=0.0))
    to = samples + tl.load(sample_starts + view) + sample
    begin = tl.load(first + view)
    for edge in range(begin, tl.load(first + view + 1)):
        excess, _, seen, _ = _compared(
            x, y, depth, valid, edge, log_depth, conf, ranges, 0.0, sizes, lens, neighbour, pose, 0.0, 0.0
        )
        size = tl.abs(excess)
        value = tl.where(seen & (size < SAME), size, -1.0)
        tl.store(to + (edge - begin) * num_samples, value, mask=valid)


@triton.jit
def _confidence_kernel(  # type: ignore[no-untyped-def]
    log_depth, conf, ranges, tolerance, sizes, lens, first, neighbour, pose, judged,
    CONFIRMED: tl.constexpr, CONTRADICTED: tl.constexpr, UNCONFIRMED: tl.constexpr, OFFSET: tl.constexpr,
    MOST: tl.constexpr, FRONT: tl.constexpr, SLANT: tl.constexpr, RANGE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    view = tl.program_id(1)
    start = tl.load(sizes + 3 * view)
    width = tl.load(sizes + 3 * view + 2).to(tl.int32)
    pixel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    valid = pixel < tl.load(sizes + 3 * view + 1).to(tl.int32) * width
    x, y = ray((pixel % width).to(tl.float32), (pixel // width).to(tl.float32), lens, view)
    depth = tl.exp(tl.load(log_depth + start + pixel, mask=valid, other=0.0))
    usual = tl.load(tolerance)
    num_agree = tl.zeros([BLOCK], tl.int32)
    num_seen = tl.zeros([BLOCK], tl.int32)
    num_front = tl.zeros([BLOCK], tl.int32)
    for edge in range(tl.load(first + view), tl.load(first + view + 1)):
        excess, within, seen, _ = _compared(
            x, y, depth, valid, edge, log_depth, conf, ranges, usual, sizes, lens, neighbour, pose, SLANT, RANGE
        )
        num_seen += seen.to(tl.int32)
        num_agree += (seen & (tl.abs(excess) < within)).to(tl.int32)
        num_front += (seen & (excess < -FRONT * within)).to(tl.int32)
    unconfirmed = tl.minimum(num_seen - num_agree, MOST)
    gain = OFFSET + tl.where(num_agree > 0, CONFIRMED, 0.0)
    gain = gain + CONTRADICTED * num_front + UNCONFIRMED * unconfirmed
    own = tl.load(conf + start + pixel, mask=valid, other=0.0)
    tl.store(judged + start + pixel, own * tl.exp(gain), mask=valid)


@triton.jit
def _cleaning_kernel(  # type: ignore[no-untyped-def]
    log_depth, conf, ranges, tolerance, judged, sizes, lens, first, neighbour, pose, clean,
    FRONT: tl.constexpr, SLANT: tl.constexpr, RANGE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    view = tl.program_id(1)
    start = tl.load(sizes + 3 * view)
    width = tl.load(sizes + 3 * view + 2).to(tl.int32)
    pixel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    valid = pixel < tl.load(sizes + 3 * view + 1).to(tl.int32) * width
    x, y = ray((pixel % width).to(tl.float32), (pixel // width).to(tl.float32), lens, view)
    depth = tl.exp(tl.load(log_depth + start + pixel, mask=valid, other=0.0))
    usual = tl.load(tolerance)
    own = tl.load(judged + start + pixel, mask=valid, other=0.0)
    stays = valid
    for edge in range(tl.load(first + view), tl.load(first + view + 1)):
        excess, within, seen, index = _compared(
            x, y, depth, valid, edge, log_depth, conf, ranges, usual, sizes, lens, neighbour, pose, SLANT, RANGE
        )
        front = seen & (excess < -FRONT * within)
        stays = stays & ~(front & (own < tl.load(judged + index, mask=front, other=0.0)))
    tl.store(clean + start + pixel, tl.where(stays, own, 0.0), mask=valid)


def judge_packed(views: PackedViews, log_depth: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(N,) packed confidence, and the same with 0 for points that contradict a more confident surface."""
    n, blocks = len(views), triton.cdiv(views.most_pixels, _BLOCK)
    ranges = torch.empty_like(log_depth)
    _ranges_kernel[(blocks, n)](log_depth, views.sizes, ranges, BLOCK=_BLOCK)
    tolerance = _tolerance(views, log_depth, ranges)
    cameras = (views.sizes, views.lens, views.first, views.neighbour, views.pose)
    judged, clean = torch.empty_like(log_depth), torch.empty_like(log_depth)
    _confidence_kernel[(blocks, n)](
        log_depth, views.conf, ranges, tolerance, *cameras, judged,
        CONFIRMED=CONFIRMED, CONTRADICTED=CONTRADICTED, UNCONFIRMED=UNCONFIRMED, OFFSET=OFFSET, MOST=MOST_UNCONFIRMED,
        FRONT=IN_FRONT, SLANT=SLANT, RANGE=MOST_RANGE, BLOCK=_BLOCK,
    )  # fmt: skip
    _cleaning_kernel[(blocks, n)](
        log_depth, views.conf, ranges, tolerance, judged, *cameras, clean,
        FRONT=IN_FRONT, SLANT=SLANT, RANGE=MOST_RANGE, BLOCK=_BLOCK,
    )  # fmt: skip
    return judged, clean


def _tolerance(views: PackedViews, log_depth: torch.Tensor, ranges: torch.Tensor) -> torch.Tensor:
    """(1,) as `trust._tolerance`, on the device."""
    counts = [-(-H * W // SAMPLED) * len(others) for (H, W), others in zip(views.shapes, views.neighbours, strict=True)]
    starts = torch.tensor([0, *accumulate(counts)], device=log_depth.device)
    size = sum(counts)
    samples = torch.empty(size, device=log_depth.device)
    if not size:
        return samples.new_full((1,), LEAST_TOLERANCE)
    _samples_kernel[(triton.cdiv(-(-views.most_pixels // SAMPLED), _BLOCK), len(views))](
        log_depth, views.conf, ranges, views.sizes, views.lens, views.first, views.neighbour, views.pose,
        starts, samples,
        STEP=SAMPLED, SAME=SAME_SURFACE, BLOCK=_BLOCK,
    )  # fmt: skip
    # nan, if no place is seen twice, is taken for no difference
    return (3 * median(samples)).nan_to_num(0.0).clamp(LEAST_TOLERANCE, MOST_TOLERANCE)
