"""Rays, places in other views and readings of packed maps, as the kernels of the dense stage share them.

Tables: `sizes` (n, 3) int64 start in packed maps, H, W; `lens` (n, 5) float32 fx, fy, cx, cy, k1; `pose` (E, 12)
float32 rows of the 3x4 matrices from one camera to another.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def ray(column, row, lens, view):  # type: ignore[no-untyped-def]  # triton's own types
    """x and y at depth 1 of pixels, as `geometry.rays`."""
    k1 = tl.load(lens + 5 * view + 4)
    x = (column - tl.load(lens + 5 * view + 2)) / tl.load(lens + 5 * view)
    y = (row - tl.load(lens + 5 * view + 3)) / tl.load(lens + 5 * view + 1)
    if k1 != 0.0:
        seen = tl.sqrt(x * x + y * y)
        largest = tl.where(k1 < 0, 1.0 / tl.sqrt(3.0 * tl.maximum(-k1, 1e-30)), float("inf"))
        radius = seen
        for _ in range(8):
            slope = tl.maximum(1.0 + 3.0 * k1 * radius * radius, 0.1)
            radius = tl.minimum(radius - (radius * (1.0 + k1 * radius * radius) - seen) / slope, largest)
        shrink = tl.where(seen > 0, radius / tl.where(seen > 0, seen, 1.0), 1.0)
        x = x * shrink
        y = y * shrink
    return x, y


@triton.jit
def turned(x, y, pose, edge):  # type: ignore[no-untyped-def]
    """Rays (x, y, 1) in the axes of the other camera of an edge."""
    at = pose + 12 * edge
    X = tl.load(at) * x + tl.load(at + 1) * y + tl.load(at + 2)
    Y = tl.load(at + 4) * x + tl.load(at + 5) * y + tl.load(at + 6)
    Z = tl.load(at + 8) * x + tl.load(at + 9) * y + tl.load(at + 10)
    return X, Y, Z


@triton.jit
def seen_at(X, Y, Z, depth, pose, edge, lens, other):  # type: ignore[no-untyped-def]
    """Pixel and depth in another view of points at a depth along turned rays."""
    at = pose + 12 * edge
    Z = Z * depth + tl.load(at + 11)
    X = (X * depth + tl.load(at + 3)) / Z
    Y = (Y * depth + tl.load(at + 7)) / Z
    bend = 1.0 + tl.load(lens + 5 * other + 4) * (X * X + Y * Y)
    x = tl.load(lens + 5 * other) * (X * bend) + tl.load(lens + 5 * other + 2)
    y = tl.load(lens + 5 * other + 1) * (Y * bend) + tl.load(lens + 5 * other + 3)
    return x, y, Z


@triton.jit
def is_inside(x, y, depth, height, width):  # type: ignore[no-untyped-def]
    """In front of the camera and within its image."""
    return (x > -0.5) & (x < width - 0.5) & (y > -0.5) & (y < height - 0.5) & (depth > 0)


@triton.jit
def limited(x, size):  # type: ignore[no-untyped-def]
    """Places moved into [0, size - 1], nan to 0."""
    return tl.minimum(tl.maximum(tl.where(x == x, x, 0.0), 0.0), size - 1.0)


@triton.jit
def to_nearest(x):  # type: ignore[no-untyped-def]
    """Integers nearest to numbers below 2^22, halves to even: what is added leaves no bits for the fraction."""
    return ((x + 12582912.0) - 12582912.0).to(tl.int32)
