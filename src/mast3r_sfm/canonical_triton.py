"""Adding up pointmaps of a view and its focal length on CUDA devices: `canonical` in one pass over memory each."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

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
    table, flags, views, maps, height, width, subsample,
    CONF_OFFSET: tl.constexpr, MIN_RADIUS: tl.constexpr, EPS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Some pixels of one view: its pointmaps one after the other. For `table` see `add_pointmaps`."""
    view = tl.program_id(1)
    pixel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    pixels = height * width
    valid = pixel < pixels
    row, column = pixel // width, pixel % width
    half = subsample // 2
    centre_row = tl.minimum(row // subsample * subsample + half, height - 1)
    centre_column = tl.minimum(column // subsample * subsample + half, width - 1)
    centre = centre_row * width + centre_column

    at = tl.load(table + view).to(tl.pointer_type(tl.float32)) + pixel
    sum_weight = tl.load(at, mask=valid, other=0.0)
    sum_x = tl.load(at + pixels, mask=valid, other=0.0)
    sum_y = tl.load(at + 2 * pixels, mask=valid, other=0.0)
    sum_z = tl.load(at + 3 * pixels, mask=valid, other=0.0)
    sum_square = tl.load(at + 4 * pixels, mask=valid, other=0.0)
    sum_angle = tl.load(at + 5 * pixels, mask=valid, other=0.0)
    sum_radius = tl.load(at + 6 * pixels, mask=valid, other=0.0)
    first = tl.load(table + views + view).to(tl.int32)
    last = tl.load(table + views + view + 1).to(tl.int32)
    for number in range(first, last):
        entry = table + 2 * views + 1 + number
        points = tl.load(entry).to(tl.pointer_type(tl.float32))
        conf = tl.load(entry + maps).to(tl.pointer_type(tl.float32))
        x = tl.load(points + 3 * pixel, mask=valid, other=0.0)
        y = tl.load(points + 3 * pixel + 1, mask=valid, other=0.0)
        z = tl.load(points + 3 * pixel + 2, mask=valid, other=0.0)
        c = tl.load(conf + pixel, mask=valid, other=1.0)
        dx = x - tl.load(points + 3 * centre, mask=valid, other=0.0)
        dy = y - tl.load(points + 3 * centre + 1, mask=valid, other=0.0)
        centre_z = tl.load(points + 3 * centre + 2, mask=valid, other=0.0)
        weight = tl.maximum(c - CONF_OFFSET, 1 - CONF_OFFSET)
        radius = tl.maximum(tl.sqrt(dx * dx + dy * dy), MIN_RADIUS)
        sum_weight += weight
        sum_x += weight * x
        sum_y += weight * y
        sum_z += weight * z
        sum_square += weight * weight
        sum_angle += weight * _atan((z - tl.maximum(centre_z, EPS)) / radius)
        sum_radius += radius
        total = tl.sum(x + y + z + c)  # inf and nan survive a sum
        if (total - total) != 0.0:
            tl.store(flags + number, total - total)
    tl.store(at, sum_weight, mask=valid)
    tl.store(at + pixels, sum_x, mask=valid)
    tl.store(at + 2 * pixels, sum_y, mask=valid)
    tl.store(at + 3 * pixels, sum_z, mask=valid)
    tl.store(at + 4 * pixels, sum_square, mask=valid)
    tl.store(at + 5 * pixels, sum_angle, mask=valid)
    tl.store(at + 6 * pixels, sum_radius, mask=valid)


@triton.jit
def _focal_kernel(  # type: ignore[no-untyped-def]
    points, focals, height, width, low, high, ROUNDS: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """One program a view."""
    pixels = height * width
    points += tl.program_id(0).to(tl.int64) * 3 * pixels
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
    tl.store(focals + tl.program_id(0), tl.minimum(tl.maximum(f, low), high))


def add_pointmaps(
    sums: Sequence[torch.Tensor], maps: Sequence[Sequence[tuple[torch.Tensor, torch.Tensor]]],
    subsample: int, conf_offset: float, min_radius: float, eps: float,
) -> torch.Tensor:  # fmt: skip
    """Adds to the sums (`PLANES`, H, W) of every view its pointmaps (H, W, 3) with confidences (H, W), in their order.

    All maps contiguous float32 of one shape. Returns (number of maps,) float32, in their order: nan where a value is
    not finite, else 0. Does not wait for the device.
    """
    device = sums[0].device
    flat = [one for of_view in maps for one in of_view]
    # addresses of the sums, where the maps of each view begin and end, addresses of the maps and confidences
    rows = [
        *(one.data_ptr() for one in sums),
        *accumulate((len(of_view) for of_view in maps), initial=0),
        *(points.data_ptr() for points, _ in flat),
        *(conf.data_ptr() for _, conf in flat),
    ]
    table = torch.tensor(rows).to(device)
    flags = torch.zeros(len(flat), device=device)
    _, height, width = sums[0].shape
    _add_kernel[(triton.cdiv(height * width, _BLOCK), len(sums))](
        table, flags, len(sums), len(flat), height, width, subsample,
        CONF_OFFSET=conf_offset, MIN_RADIUS=min_radius, EPS=eps, BLOCK=_BLOCK,
    )  # fmt: skip
    return flags


def focals_of_planes(points: torch.Tensor, low: float, high: float, rounds: int) -> torch.Tensor:
    """(n,) float32 focal lengths in pixels of pointmaps (n, 3, H, W) by Weiszfeld's algorithm, within limits."""
    count, _, height, width = points.shape
    focals = points.new_empty(count)
    _focal_kernel[(count,)](
        points, focals, height, width, low, high,
        ROUNDS=rounds, BLOCK=_BLOCK * 4, num_warps=_WARPS_OF_FOCAL,
    )  # fmt: skip
    return focals
