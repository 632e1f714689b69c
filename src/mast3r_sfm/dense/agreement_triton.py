"""What neighbours say of the depth of pixels on CUDA devices: `agreement.opinions` of several views in one kernel."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from mast3r_sfm.dense.agreement import (
    FARTHEST,
    LEAST_SLOPE,
    MOST_CONF,
    MOST_SLOPE,
    OTHER_SIGMA,
    OWN_SIGMA,
    STEP,
)
from mast3r_sfm.dense.packed import PackedViews
from mast3r_sfm.dense.views_triton import is_inside, limited, ray, seen_at, to_nearest, turned

_BLOCK = 256


@triton.jit
def _between(packed, start, x, y, height, width, mask):  # type: ignore[no-untyped-def]  # triton's own types
    """Values between the pixels of the map that begins at `start`, bilinear."""
    x = limited(x, width.to(tl.float32))
    y = limited(y, height.to(tl.float32))
    left = x.to(tl.int32)
    top = y.to(tl.int32)
    right = tl.where(left + 1 < width, 1, 0)
    lower = tl.where(top + 1 < height, width, 0)
    corner = packed + start + top * width + left
    x = x - left
    y = y - top
    a = tl.load(corner, mask=mask, other=0.0)
    a += x * (tl.load(corner + right, mask=mask, other=0.0) - a)
    b = tl.load(corner + lower, mask=mask, other=0.0)
    b += x * (tl.load(corner + lower + right, mask=mask, other=0.0) - b)
    return a + y * (b - a)


@triton.jit
def _opinions_kernel(  # type: ignore[no-untyped-def]
    log_depth, conf, usual, sizes, lens, first, neighbour, pose, members, out_depth, out_weight, stride,
    OWN_WEIGHT: tl.constexpr, SIGMA: tl.constexpr, FAR: tl.constexpr, LEAST: tl.constexpr, MOST: tl.constexpr,
    STEP: tl.constexpr, CONF: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    slot = tl.program_id(1)
    view = tl.load(members + slot)
    if view >= 0:
        start = tl.load(sizes + 3 * view)
        width = tl.load(sizes + 3 * view + 2).to(tl.int32)
        pixels = tl.load(sizes + 3 * view + 1).to(tl.int32) * width
        pixel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
        valid = pixel < pixels
        unit = tl.load(usual)
        own = tl.load(log_depth + start + pixel, mask=valid, other=0.0)
        own_weight = tl.minimum(tl.load(conf + start + pixel, mask=valid, other=0.0), CONF) / unit * OWN_WEIGHT
        x, y = ray((pixel % width).to(tl.float32), (pixel // width).to(tl.float32), lens, view)
        near = tl.exp(own)
        far = tl.exp(own + STEP)
        total = tl.zeros([BLOCK], tl.float32)
        pull = tl.zeros([BLOCK], tl.float32)
        for edge in range(tl.load(first + view), tl.load(first + view + 1)):
            other = tl.load(neighbour + edge)
            other_start = tl.load(sizes + 3 * other)
            h = tl.load(sizes + 3 * other + 1).to(tl.int32)
            w = tl.load(sizes + 3 * other + 2).to(tl.int32)
            X, Y, Z = turned(x, y, pose, edge)
            u, v, depth = seen_at(X, Y, Z, near, pose, edge, lens, other)
            u1, v1, depth1 = seen_at(X, Y, Z, far, pose, edge, lens, other)
            seen = valid & is_inside(u, v, depth, h, w) & is_inside(u1, v1, depth1, h, w)
            surface = _between(log_depth, other_start, u, v, h, w, seen)
            difference = tl.log(tl.maximum(depth, 1e-6)) - surface
            surface = _between(log_depth, other_start, u1, v1, h, w, seen)
            slope = (tl.log(tl.maximum(depth1, 1e-6)) - surface - difference) / STEP
            seen = seen & (slope > LEAST)
            move = -difference / tl.where(seen, slope, 1.0)
            seen = seen & (tl.abs(move) < FAR)
            at = to_nearest(limited(v, h.to(tl.float32))) * w + to_nearest(limited(u, w.to(tl.float32)))
            belief = tl.minimum(tl.load(conf + other_start + at, mask=seen, other=0.0), CONF) / unit
            steep = tl.minimum(slope, MOST) / SIGMA
            weight = tl.where(seen, belief * (steep * steep) / (1.0 + (move / SIGMA) * (move / SIGMA)), 0.0)
            total += weight
            pull += tl.where(seen, weight * move, 0.0)
        # a view without neighbours has no opinion but its own
        total += own_weight + 1e-6
        at = slot.to(tl.int64) * stride + pixel
        tl.store(out_depth + at, own + pull / total, mask=valid)
        tl.store(out_weight + at, total, mask=valid)


def write_opinions(
    views: PackedViews, log_depth: torch.Tensor, usual: torch.Tensor, members: torch.Tensor,
    out_depth: torch.Tensor, out_weight: torch.Tensor,
) -> None:  # fmt: skip
    """Writes what views and their neighbours say of their log depths.

    log_depth  (N,) packed, as it stands
    usual      (1,) the usual confidence
    members    (B,) int32 numbers of views of one size, -1 for none
    out_depth, out_weight  (B, H, W) log depth and its weight, `Observed`
    """
    pixels = out_depth.shape[1] * out_depth.shape[2]
    _opinions_kernel[(triton.cdiv(pixels, _BLOCK), len(members))](
        log_depth, views.conf, usual, views.sizes, views.lens, views.first, views.neighbour, views.pose, members,
        out_depth, out_weight, pixels,
        OWN_WEIGHT=OWN_SIGMA**-2, SIGMA=OTHER_SIGMA, FAR=FARTHEST, LEAST=LEAST_SLOPE, MOST=MOST_SLOPE,
        STEP=STEP, CONF=MOST_CONF, BLOCK=_BLOCK,
    )  # fmt: skip
