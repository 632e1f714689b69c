"""Depth without waves where a surface is flat, for meshes.

A predicted depth map waves by a share of a per cent, more than a pixel's width on a wall far away: its triangles would
face to all sides, show their backs in places, and break apart where they are seen nearly edge on.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from mast3r_sfm.export.surface import PlacedView

_REACHES = (1 / 14, 1 / 28, 1 / 56)
"""Pixels that a window reaches to either side of its middle, as shares of the image's long edge."""

_FLAT = 0.2
"""A window is flat if inverse depth differs from that of a plane by less than this share of a depth jump, root of the
mean square: 0.6 % for a jump of 3 %."""

_MOST = 2 / 3
"""A pixel moves by no more than this share of a depth jump: further away are thin things in front of a plane."""

_LEAST = 1e-5
"""Less than this share is rounding, and depth stays as it is."""

_LEAST_SHARE, _LEAST_SPREAD, _LEAST_VOTE = 0.2, 1e-3, 1e-3
"""Of a window's pixels that must be kept, of their spread to two sides, and of the flat windows around a pixel."""


def flat_view(placed: PlacedView, depth_jump: float) -> PlacedView:
    """The view with its depth flattened; `depth_jump` is the share of the depth that is an edge and no noise."""
    view = placed.view
    return replace(placed, view=replace(view, depth=flattened(view.depth, placed.kept, depth_jump)))


def flattened(depth: np.ndarray, kept: np.ndarray, depth_jump: float) -> np.ndarray:
    """Depths (H, W) moved onto the planes of the flat windows around them, by less than a depth jump.

    The inverse depth of a plane is affine in the pixel. A pixel takes the mean of the planes of all flat windows that
    hold it, those of the largest windows where there are some: one at a depth edge takes those on its side. Where no
    window is flat, depth stays.

    kept        (H, W) bool: the pixels that planes are fitted to; others near such a plane move too, as they may close
                a hole
    depth_jump  share of the depth from which a step is an edge
    """
    result = depth.copy()
    rest = np.isfinite(depth) & (depth > 0)
    for share in _REACHES:
        smooth = _on_planes(depth, kept, max(2, round(share * max(depth.shape))), _FLAT * depth_jump)
        with np.errstate(invalid="ignore"):
            near = rest & (np.abs(smooth - depth) <= _MOST * depth_jump * depth)
        result[near] = smooth[near]
        rest &= ~near
    with np.errstate(invalid="ignore"):
        return np.where(np.abs(result - depth) > _LEAST * depth, result, depth)


def _on_planes(depth: np.ndarray, kept: np.ndarray, reach: int, flat: float) -> np.ndarray:
    """Depths (H, W) of the flat windows of one size around every pixel; nan where there are none.

    flat  largest relative misfit of a flat window
    """
    import cv2

    H, W = depth.shape
    side = (2 * reach + 1, 2 * reach + 1)

    def mean(values: np.ndarray) -> np.ndarray:
        return cv2.boxFilter(values, -1, side, borderType=cv2.BORDER_CONSTANT)

    y, x = (np.mgrid[:H, :W] - np.array([H / 2, W / 2])[:, None, None]) / reach
    with np.errstate(invalid="ignore", divide="ignore"):
        inverse = np.where(kept, 1 / depth, 0.0)
    share = mean(kept.astype(np.float64))
    count = np.maximum(share, 1e-9)
    mean_x, mean_y, mean_w = (mean(kept * values) / count for values in (x, y, inverse))
    xx = mean(kept * x * x) / count - mean_x**2
    yy = mean(kept * y * y) / count - mean_y**2
    xy = mean(kept * x * y) / count - mean_x * mean_y
    xw = mean(x * inverse) / count - mean_x * mean_w
    yw = mean(y * inverse) / count - mean_y * mean_w
    ww = mean(inverse * inverse) / count - mean_w**2
    determinant = xx * yy - xy * xy
    fits = (share > _LEAST_SHARE) & (determinant > _LEAST_SPREAD)
    determinant = np.where(fits, determinant, 1.0)
    slope_x, slope_y = (xw * yy - yw * xy) / determinant, (yw * xx - xw * xy) / determinant
    level = mean_w - slope_x * mean_x - slope_y * mean_y
    misfit = np.sqrt(np.maximum(ww - slope_x * xw - slope_y * yw, 0)) / np.maximum(mean_w, 1e-12)
    vote = np.where(fits, np.clip(1 - misfit / flat, 0, 1), 0.0)
    with np.errstate(invalid="ignore", divide="ignore"):
        plane = (mean(vote * slope_x) * x + mean(vote * slope_y) * y + mean(vote * level)) / mean(vote)
        return np.where((mean(vote) > _LEAST_VOTE) & (plane > 0), 1 / plane, np.nan)
