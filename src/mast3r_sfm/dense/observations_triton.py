"""What matches and tracks say of single pixels on CUDA devices: `observations.observe` of many views at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import torch
import triton
import triton.language as tl

from mast3r_sfm.dense.median_triton import segment_medians
from mast3r_sfm.dense.observations import (
    LEAST_SIGMA,
    MAX_STEP,
    PIXEL_SIGMA,
    SPREAD,
    STEPS,
    TRACK_SIGMA,
    UNITS,
    TrackedPixels,
)
from mast3r_sfm.dense.packed import PackedViews, pose_rows, runs_of_size
from mast3r_sfm.dense.views import DenseCameras
from mast3r_sfm.dense.views_triton import ray, seen_at, to_nearest, turned
from mast3r_sfm.types import Correspondences

_BLOCK = 512
_PIXELS_AT_ONCE = 1 << 22  # whose observations are summed together
_STEP = 1e-3  # of a log depth, to measure slopes


@dataclass(frozen=True)
class Observations:
    """Packed (N,) float32: the log factor of the predicted depth that is observed, and its weight; 0 without."""

    factor: torch.Tensor
    weight: torch.Tensor


@triton.jit(do_not_specialize=["base"])
def _triangulate_kernel(  # type: ignore[no-untyped-def]  # triton's own types
    xy_i, xy_j, conf, usual, segments, pose, relief, sizes, lens, base, index, excess, weight,
    STEPS: tl.constexpr, STEP: tl.constexpr, MAX_STEP: tl.constexpr, PIXEL_SQ: tl.constexpr, MOST: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """The log depth above the predicted one at which each pixel lies nearest to where another view sees it.

    A segment are the matches of a pair, seen from one of its views: first match, number of matches, 1 if its second
    view, own and other view, pair, first output.
    """
    number = tl.program_id(0)  # of which there may be more than the other axis takes
    segment = segments + 7 * number
    count = tl.load(segment + 1).to(tl.int32)
    k = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    valid = k < count
    at = tl.load(segment) + k
    second = tl.load(segment + 2) > 0
    view = tl.load(segment + 3)
    other = tl.load(segment + 4)
    x_i = tl.load(xy_i + 2 * at, mask=valid, other=0).to(tl.float32)
    y_i = tl.load(xy_i + 2 * at + 1, mask=valid, other=0).to(tl.float32)
    x_j = tl.load(xy_j + 2 * at, mask=valid, other=0).to(tl.float32)
    y_j = tl.load(xy_j + 2 * at + 1, mask=valid, other=0).to(tl.float32)
    column = to_nearest(tl.where(second, x_j, x_i))
    row = to_nearest(tl.where(second, y_j, y_i))
    target_x = tl.where(second, x_i, x_j)
    target_y = tl.where(second, y_i, y_j)
    pixel = tl.load(sizes + 3 * view) + row * tl.load(sizes + 3 * view + 2) + column
    predicted = tl.load(relief + pixel, mask=valid, other=0.0)
    x, y = ray(column.to(tl.float32), row.to(tl.float32), lens, view)
    X, Y, Z = turned(x, y, pose, number)
    log_depth = predicted
    slope_sq = tl.zeros([BLOCK], tl.float32)
    error_sq = tl.zeros([BLOCK], tl.float32)
    shown = valid
    for step in tl.static_range(STEPS + 1):
        u, v, z = seen_at(X, Y, Z, tl.exp(log_depth), pose, number, lens, other)
        u1, v1, z1 = seen_at(X, Y, Z, tl.exp(log_depth + STEP), pose, number, lens, other)
        shown = valid & (z > 0) & (z1 > 0)
        slope_x = (u1 - u) / STEP
        slope_y = (v1 - v) / STEP
        off_x = target_x - u
        off_y = target_y - v
        slope_sq = slope_x * slope_x + slope_y * slope_y
        error_sq = off_x * off_x + off_y * off_y
        if step < STEPS:
            move = (slope_x * off_x + slope_y * off_y) / tl.maximum(slope_sq, 1e-6)
            move = tl.where(shown & (move == move), move, 0.0)
            log_depth += tl.minimum(tl.maximum(move, -MAX_STEP), MAX_STEP)
    own_conf = tl.load(conf + at, mask=valid, other=0.0) / tl.maximum(tl.load(usual + tl.load(segment + 5)), 1e-6)
    sure = own_conf * slope_sq / (PIXEL_SQ + error_sq)
    sure = tl.where(shown & (sure - sure == 0), tl.minimum(sure, MOST), 0.0)
    to = tl.load(segment + 6) + k
    tl.store(index + to, (pixel - base).to(tl.int32), mask=valid)
    tl.store(excess + to, tl.minimum(tl.maximum(log_depth - predicted, -20.0), 20.0), mask=valid)
    tl.store(weight + to, sure, mask=valid)


@triton.jit(do_not_specialize=["size", "pixels"])
def _sum_kernel(  # type: ignore[no-untyped-def]
    index, excess, weight, size, before, sums, pixels,
    ROBUST: tl.constexpr, SPREAD: tl.constexpr, UNITS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Adds weights, and weighted excesses, at pixels; in integers, so that the order cannot matter."""
    k = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    valid = k < size
    at = tl.load(index + k, mask=valid, other=0)
    x = tl.load(excess + k, mask=valid, other=0.0)
    w = tl.load(weight + k, mask=valid, other=0.0)
    if ROBUST:
        total = (tl.load(before + at, mask=valid, other=0).to(tl.float64) / UNITS).to(tl.float32)
        mean = (tl.load(before + pixels + at, mask=valid, other=0).to(tl.float64) / UNITS).to(tl.float32)
        off = (x - mean / tl.maximum(total, 1e-6)) / SPREAD
        w = w / (1.0 + off * off)
    counted = valid & (w > 0)
    tl.atomic_add(sums + at, tl.floor(w.to(tl.float64) * UNITS + 0.5).to(tl.int64), mask=counted, sem="relaxed")
    pull = tl.floor((w * x).to(tl.float64) * UNITS + 0.5).to(tl.int64)
    tl.atomic_add(sums + pixels + at, pull, mask=counted, sem="relaxed")


def observe_packed(
    views: PackedViews,
    cameras: DenseCameras,
    group: Sequence[int],
    matches: Sequence[Correspondences],
    tracked: Sequence[TrackedPixels] | None,
) -> Observations:
    """`observe` of all views.

    group    `Correspondences.i` and `.j` of the views, in their order
    tracked  in main memory, of each view; None without tracks
    """
    device = views.relief.device
    factor, weight = torch.zeros_like(views.relief), torch.zeros_like(views.relief)
    position_of = {index: k for k, index in enumerate(group)}
    matches = [m for m in matches if len(m)]
    if matches:
        xy_i, xy_j, conf = (
            torch.cat([getattr(m, name) for m in matches]).to(device) for name in ("xy_i", "xy_j", "conf")
        )
        begin = [0, *accumulate(map(len, matches))]
        usual = segment_medians(conf.float(), torch.tensor(begin, device=device))
        on_device = (xy_i, xy_j, conf.float(), usual)
    sides: list[list[tuple[int, int, int, int, int, int]]] = [[] for _ in views.shapes]
    for pair, m in enumerate(matches):
        i, j = position_of[m.i], position_of[m.j]
        sides[i].append((begin[pair], len(m), 0, i, j, pair))
        sides[j].append((begin[pair], len(m), 1, j, i, pair))
    for run in runs_of_size(views.shapes, _PIXELS_AT_ONCE):
        part = slice(views.bounds[run.start], views.bounds[run.stop])
        segments = [side for k in run for side in sides[k]]
        points = [] if tracked is None else [_places(views, tracked[k], k, part.start) for k in run]
        num_matched = sum(side[1] for side in segments)
        total = num_matched + sum(len(one[0]) for one in points)
        if not total:
            continue
        index = torch.empty(total, dtype=torch.int32, device=device)
        excess, sure = torch.empty(total, device=device), torch.empty(total, device=device)
        if segments:
            table = np.array(segments)
            ends = table[:, 1].cumsum()
            table = np.column_stack([table, ends - table[:, 1]])
            grid = (len(table), triton.cdiv(int(table[:, 1].max()), _BLOCK))
            _triangulate_kernel[grid](
                *on_device, torch.from_numpy(table).to(device), pose_rows(cameras, table[:, 3], table[:, 4]).to(device),
                views.relief, views.sizes, views.lens, part.start, index, excess, sure,
                STEPS=STEPS, STEP=_STEP, MAX_STEP=MAX_STEP, PIXEL_SQ=PIXEL_SIGMA**2, MOST=LEAST_SIGMA**-2, BLOCK=_BLOCK,
            )  # fmt: skip
        if total > num_matched:
            place, log_depth = (torch.from_numpy(np.concatenate(one)).to(device) for one in zip(*points, strict=True))
            index[num_matched:] = place
            excess[num_matched:] = (log_depth - views.relief[part][place]).clamp_(-20, 20)
            sure[num_matched:] = TRACK_SIGMA**-2
        factor[part], weight[part] = _means(index, excess, sure, part.stop - part.start)
    return Observations(factor, weight)


def _places(views: PackedViews, tracked: TrackedPixels, k: int, base: int) -> tuple[np.ndarray, np.ndarray]:
    """int32 places in packed maps from `base` on, and log depths float32, of the tracked pixels of view k."""
    x, y = tracked.pixel.numpy().T
    place = views.bounds[k] - base + y * views.shapes[k][1] + x
    return place.astype(np.int32), tracked.depth.log().numpy()


def _means(
    index: torch.Tensor, excess: torch.Tensor, weight: torch.Tensor, pixels: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """(pixels,) mean of the excesses at each pixel and their weight; those near the others' mean count."""
    sums = torch.zeros(3, 2, pixels, dtype=torch.int64, device=index.device)
    grid = (triton.cdiv(len(index), _BLOCK),)
    for k in range(3):
        _sum_kernel[grid](
            index, excess, weight, len(index), sums[max(0, k - 1)], sums[k], pixels,
            ROBUST=k > 0, SPREAD=SPREAD, UNITS=UNITS, BLOCK=_BLOCK,
        )  # fmt: skip
    total, pull = (sums[1].double() / UNITS).float()
    return pull / total.clamp_min(1e-6), (sums[2, 0].double() / UNITS).float()
