"""The sky, by what the depth itself says: farther than all that views confirm, never confident, at the upper border.

No network looks for it, and no colour is taken for that of a sky: a pixel is sky only if all of these agree.
"""

from __future__ import annotations

import cv2
import numpy as np

FARTHER = 3.0
"""How many times as deep as the farthest confident pixels of its view the sky is, at the least."""

OF_SKY = 0.6
"""Share of the depth at the upper border that the sky has everywhere, at the least; most of the ground has less."""

_FARTHEST = 0.99  # quantile of the confident depths
_CONFIDENT, _DOUBTFUL = 0.5, 0.2  # of the confidence that a quarter of a view's pixels reaches
_MATCH_RADIUS = 3  # pixels around a match in which nothing is sky
_STEEP = 0.12  # log depth lost per row around a pixel: ground towards a horizon loses more, the sky less
_STEEP_ABOVE = 0.04  # and in the rows above it: right above a roof the sky is even
_SLOPE_ROWS = 2  # above and below a pixel, over which that is measured
_EDGE = 20.0  # grey levels within 3 x 3 pixels: more is no sky
_GROWTH = 3  # pixels by which the smooth region grows up to the edges around it
_LEAST_SHARE = 0.002  # of the pixels: a smaller region is none


def sky_of(depth: np.ndarray, conf: np.ndarray, rgb: np.ndarray, matched: np.ndarray) -> np.ndarray:
    """(H, W) bool: the sky of a view.

    depth    (H, W) z-depth, nan where unknown
    conf     (H, W) finished confidence
    rgb      (H, W, 3) uint8
    matched  (M, 2) int pixels (x, y) of the matches that entered the alignment: what another view shows is solid

    A region is sky if its pixels are doubtful, much farther than (almost) all confident ones, not much nearer than at
    the upper border of the image, and without edges, and if it touches that border. Walls and ground nearby fail some
    of these; ground that vanishes in haze may pass them.
    """
    nothing = np.zeros(depth.shape, dtype=bool)
    usual = float(np.quantile(conf, 0.75))
    confident = (conf > _CONFIDENT * usual) & np.isfinite(depth)
    if usual <= 0 or not confident.any():
        return nothing
    farthest = float(np.quantile(depth[confident], _FARTHEST))
    solid = nothing.astype(np.uint8)
    solid[matched[:, 1], matched[:, 0]] = 1
    near_match = cv2.dilate(solid, np.ones((2 * _MATCH_RADIUS + 1,) * 2, np.uint8)) > 0
    possible = (conf < _DOUBTFUL * usual) & ~(depth < FARTHER * farthest) & ~near_match
    smooth = possible & (_contrast(rgb) < _EDGE)
    if not smooth[0].any():
        return nothing
    level = float(np.nanmedian(depth[0][smooth[0]]))
    even = possible & ~(depth < OF_SKY * level) & ~_falls(depth)
    region = _at_upper_border(smooth & even)
    if region.mean() < _LEAST_SHARE:
        return nothing
    for _ in range(_GROWTH):
        region = (cv2.dilate(region.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0) & even
    # clouds, and gaps between twigs: what has sky above and below it, while ground has none below
    enclosed = np.logical_or.accumulate(region) & np.logical_or.accumulate(region[::-1])[::-1]
    return region | (enclosed & possible)


def _falls(depth: np.ndarray) -> np.ndarray:
    """(H, W) bool: the depth falls downwards as that of ground does that leads to a horizon."""
    rows, H = _SLOPE_ROWS, len(depth)
    log_depth = np.pad(np.log(depth), ((rows, rows), (0, 0)), mode="edge")
    above, here, below = log_depth[:H], log_depth[rows : rows + H], log_depth[2 * rows :]
    return ((above - below) / (2 * rows) > _STEEP) & ((above - here) / rows > _STEEP_ABOVE)


def _contrast(rgb: np.ndarray) -> np.ndarray:
    """(H, W) float32: brightest minus darkest of the 3 x 3 pixels around each, in the channel where that is most."""
    kernel = np.ones((3, 3), np.uint8)
    return (cv2.dilate(rgb, kernel).astype(np.float32) - cv2.erode(rgb, kernel)).max(-1)


def _at_upper_border(candidates: np.ndarray) -> np.ndarray:
    """The connected regions of (H, W) bool that touch the first row."""
    labels = cv2.connectedComponents(candidates.astype(np.uint8), connectivity=4)[1]
    touching = np.unique(labels[0][candidates[0]])
    return np.isin(labels, touching) & candidates
