"""Depth edges moved onto those of the photo on CUDA devices: `edges.sharpen_edges` of many views in one kernel."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from mast3r_sfm.dense.edges import COLOUR_SIGMA, CONF_FLOOR, DISTANCE_SIGMA, LEAST_RANGE, MOST_CONF, RADIUS
from mast3r_sfm.dense.packed import PackedViews

_BLOCK = 32  # one warp, each thread of which holds the neighbourhood of its pixel


@triton.jit(do_not_specialize=["first_view"])
def _edges_kernel(  # type: ignore[no-untyped-def]  # triton's own types
    log_depth, conf, rgb, sizes, first_view, sharp,
    RADIUS: tl.constexpr, RANGE: tl.constexpr, PER_COLOUR: tl.constexpr, PER_DISTANCE: tl.constexpr,
    MOST: tl.constexpr, FLOOR: tl.constexpr, PLACES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    SIDE: tl.constexpr = 2 * RADIUS + 1
    view = first_view + tl.program_id(1)
    start = tl.load(sizes + 3 * view)
    height = tl.load(sizes + 3 * view + 1).to(tl.int32)
    width = tl.load(sizes + 3 * view + 2).to(tl.int32)
    pixel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    valid = pixel < height * width
    pixel = tl.minimum(pixel, height * width - 1)
    row = pixel // width
    column = pixel % width
    # more places than there are repeat the last one, without weight
    place = tl.arange(0, PLACES)[:, None]
    down = tl.minimum(place, SIDE * SIDE - 1) // SIDE - RADIUS
    across = tl.minimum(place, SIDE * SIDE - 1) % SIDE - RADIUS
    r = tl.minimum(tl.maximum(row[None, :] + down, 0), height - 1)
    c = tl.minimum(tl.maximum(column[None, :] + across, 0), width - 1)
    at = r * width + c
    depth = tl.load(log_depth + start + at)
    highest = tl.max(depth, 0)
    near_edge = highest - tl.min(depth, 0) > RANGE
    result = tl.load(log_depth + start + pixel)
    if tl.max(near_edge.to(tl.int32)) > 0:
        colours = rgb + 3 * (start - tl.load(sizes + 3 * first_view))
        off = tl.zeros([PLACES, BLOCK], tl.float32)
        for channel in tl.static_range(3):
            own = tl.load(colours + 3 * pixel + channel).to(tl.float32)
            step = (tl.load(colours + 3 * at + channel).to(tl.float32) - own[None, :]) / 255.0
            off += step * step
        distance = (down * down + across * across).to(tl.float32)
        trusted = tl.load(conf + start + at)
        trusted = tl.where(trusted > 0, tl.minimum(tl.maximum(trusted, 1.0), MOST) - FLOOR, 0.0)
        weight = tl.exp(-off * PER_COLOUR - distance * PER_DISTANCE) * trusted
        weight = tl.where(place < SIDE * SIDE, weight, 0.0)
        half = 0.5 * tl.sum(weight, 0)
        median = highest
        for k in range(SIDE * SIDE):
            r1 = tl.minimum(tl.maximum(row + (k // SIDE - RADIUS), 0), height - 1)
            c1 = tl.minimum(tl.maximum(column + (k % SIDE - RADIUS), 0), width - 1)
            one = tl.load(log_depth + start + r1 * width + c1)
            share = tl.sum(tl.where(depth <= one[None, :], weight, 0.0), 0)
            median = tl.where((share >= half) & (one < median), one, median)
        result = tl.where(near_edge, median, result)
    tl.store(sharp + start + pixel, result, mask=valid)


def sharpen_packed(
    views: PackedViews, which: range, log_depth: torch.Tensor, rgb: torch.Tensor, sharp: torch.Tensor
) -> None:
    """Writes the sharpened log depths of some views that follow each other into `sharp` (N,).

    log_depth  (N,) packed
    rgb        (M, 3) uint8 pixels of these views alone, packed
    """
    pixels = max(views.shapes[k][0] * views.shapes[k][1] for k in which)
    _edges_kernel[(triton.cdiv(pixels, _BLOCK), len(which))](
        log_depth, views.conf, rgb, views.sizes, which.start, sharp,
        RADIUS=RADIUS, RANGE=LEAST_RANGE, PER_COLOUR=0.5 / COLOUR_SIGMA**2, PER_DISTANCE=0.5 / DISTANCE_SIGMA**2,
        MOST=MOST_CONF, FLOOR=CONF_FLOOR, PLACES=triton.next_power_of_2((2 * RADIUS + 1) ** 2), BLOCK=_BLOCK,
        num_warps=1,
    )  # fmt: skip
