"""Adding up pointmaps of a view and its focal length on CUDA devices: `canonical` in one pass over memory each."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

PLANES = 7
"""Running sums per pixel: weight, weighted x, y, z, squared weight, weighted angle, radius."""

_BLOCK = 1024
_WARPS_OF_FOCAL = 16


@triton.jit
def _atan(x):  # type: ignore[no-untyped-def]  # triton's own types
    """To 2 in 10^7: reduced to |x| <= tan(pi / 8), then the polynomial of Cephes' atanf."""
    size = tl.abs(x)
    far = size > 2.414213562373095
    middle = size > 0.4142135623730950
    reduced = tl.where(far, -1.0 / size, tl.where(middle, (size - 1.0) / (size + 1.0), size))
    start = tl.where(far, 1.5707963267948966, tl.where(middle, 0.7853981633974483, 0.0))
    z = reduced * reduced
    series = ((8.05374449538e-2 * z - 1.38776856032e-1) * z + 1.99777106478e-1) * z - 3.33329491539e-1
    angle = start + (series * z * reduced + reduced)
    return tl.where(x < 0, -angle, angle)


@triton.jit
def _add_kernel(  # type: ignore[no-untyped-def]
    points, conf, sums, flag, height, width, subsample,
    CONF_OFFSET: tl.constexpr, MIN_RADIUS: tl.constexpr, EPS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    pixel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    pixels = height * width
    valid = pixel < pixels
    row, column = pixel // width, pixel % width
    half = subsample // 2
    centre_row = tl.minimum(row // subsample * subsample + half, height - 1)
    centre_column = tl.minimum(column // subsample * subsample + half, width - 1)
    centre = centre_row * width + centre_column
    x = tl.load(points + 3 * pixel, mask=valid, other=0.0)
    y = tl.load(points + 3 * pixel + 1, mask=valid, other=0.0)
    z = tl.load(points + 3 * pixel + 2, mask=valid, other=0.0)
    c = tl.load(conf + pixel, mask=valid, other=1.0)
    dx = x - tl.load(points + 3 * centre, mask=valid, other=0.0)
    dy = y - tl.load(points + 3 * centre + 1, mask=valid, other=0.0)
    centre_z = tl.load(points + 3 * centre + 2, mask=valid, other=0.0)
    weight = tl.maximum(c - CONF_OFFSET, 1 - CONF_OFFSET)
    radius = tl.maximum(tl.sqrt(dx * dx + dy * dy), MIN_RADIUS)
    angle = _atan((z - tl.maximum(centre_z, EPS)) / radius)
    at = sums + pixel
    tl.store(at, tl.load(at, mask=valid) + weight, mask=valid)
    tl.store(at + pixels, tl.load(at + pixels, mask=valid) + weight * x, mask=valid)
    tl.store(at + 2 * pixels, tl.load(at + 2 * pixels, mask=valid) + weight * y, mask=valid)
    tl.store(at + 3 * pixels, tl.load(at + 3 * pixels, mask=valid) + weight * z, mask=valid)
    tl.store(at + 4 * pixels, tl.load(at + 4 * pixels, mask=valid) + weight * weight, mask=valid)
    tl.store(at + 5 * pixels, tl.load(at + 5 * pixels, mask=valid) + weight * angle, mask=valid)
    tl.store(at + 6 * pixels, tl.load(at + 6 * pixels, mask=valid) + radius, mask=valid)
    total = tl.sum(x + y + z + c)  # inf and nan survive a sum
    if (total - total) != 0.0:
        tl.store(flag, total - total)


@triton.jit
def _focal_kernel(  # type: ignore[no-untyped-def]
    points, focal, height, width, low, high, ROUNDS: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """One program: a view's maps stay in the cache, and other work of the device goes on beside it."""
    pixels = height * width
    f = 0.0
    for k in range(ROUNDS + 1):
        along = tl.zeros([BLOCK], tl.float32)
        square = tl.zeros([BLOCK], tl.float32)
        for start in range(0, pixels, BLOCK):
            pixel = start + tl.arange(0, BLOCK)
            valid = pixel < pixels
            u = (pixel % width).to(tl.float32) - width / 2
            v = (pixel // width).to(tl.float32) - height / 2
            x = tl.load(points + pixel, mask=valid, other=0.0)
            y = tl.load(points + pixels + pixel, mask=valid, other=0.0)
            z = tl.load(points + 2 * pixels + pixel, mask=valid, other=1.0)
            a, b = x / z, y / z
            a = tl.where((a - a) == 0, a, 0.0)
            b = tl.where((b - b) == 0, b, 0.0)
            p, q = u - f * a, v - f * b
            weight = 1.0 / tl.maximum(tl.sqrt(p * p + q * q), 1e-8)
            weight = tl.where(valid, tl.where(k == 0, 1.0, weight), 0.0)
            along += weight * (a * u + b * v)
            square += weight * (a * a + b * b)
        f = tl.sum(along) / tl.sum(square)
    tl.store(focal, tl.minimum(tl.maximum(f, low), high))


def add_pointmap(
    points: torch.Tensor, conf: torch.Tensor, sums: torch.Tensor, flag: torch.Tensor, subsample: int,
    conf_offset: float, min_radius: float, eps: float,
) -> None:  # fmt: skip
    """Adds a pointmap (H, W, 3) with confidence (H, W), contiguous float32, to `sums` (`PLANES`, H, W).

    `flag` (1,) float32 becomes nan if a value is not finite.
    """
    height, width = conf.shape
    _add_kernel[(triton.cdiv(height * width, _BLOCK),)](
        points, conf, sums, flag, height, width, subsample,
        CONF_OFFSET=conf_offset, MIN_RADIUS=min_radius, EPS=eps, BLOCK=_BLOCK,
    )  # fmt: skip


def focal_of_planes(points: torch.Tensor, low: float, high: float, rounds: int) -> torch.Tensor:
    """(1,) float32 focal length in pixels of a pointmap (3, H, W) by Weiszfeld's algorithm, within limits."""
    _, height, width = points.shape
    focal = points.new_empty(1)
    _focal_kernel[(1,)](
        points, focal, height, width, low, high,
        ROUNDS=rounds, BLOCK=_BLOCK * 4, num_warps=_WARPS_OF_FOCAL,
    )  # fmt: skip
    return focal
