"""A picture of the matches of two images, to judge them by eye."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from mast3r_sfm.export.files import write_png

_GAP = 8
_ENLARGE_BELOW = 1000  # width of the picture in pixels from which lines and small images can be told apart


def draw_matches(
    rgb_i: np.ndarray,
    rgb_j: np.ndarray,
    xy_i: ArrayLike,
    xy_j: ArrayLike,
    conf: ArrayLike,
    path: Path,
    max_lines: int = 80,
) -> None:
    """Writes a PNG of two images side by side with lines between matched pixels.

    Of many matches it shows the most confident one of each of `max_lines` equal runs of the list, which is sorted by
    pixel, so that they cover the image. Colours go from violet on the left of image i to red on its right: right
    matches keep the order of their neighbours' colours, wrong ones stick out.

    rgb_i, rgb_j  (H, W, 3) uint8, sizes may differ
    xy_i, xy_j    (M, 2) pixels (x, y)
    conf          (M,)
    """
    write_png(path, matches_picture(rgb_i, rgb_j, np.asarray(xy_i), np.asarray(xy_j), np.asarray(conf), max_lines))


def matches_picture(
    rgb_i: np.ndarray, rgb_j: np.ndarray, xy_i: np.ndarray, xy_j: np.ndarray, conf: np.ndarray, max_lines: int
) -> np.ndarray:
    """(H, W, 3) uint8 RGB: what `draw_matches` writes."""
    import cv2

    zoom = max(1, round(_ENLARGE_BELOW / (rgb_i.shape[1] + rgb_j.shape[1])))
    left, right = (np.repeat(np.repeat(rgb, zoom, axis=0), zoom, axis=1) for rgb in (rgb_i, rgb_j))
    canvas = np.full((max(len(left), len(right)), left.shape[1] + _GAP + right.shape[1], 3), 255, dtype=np.uint8)
    canvas[: len(left), : left.shape[1]] = left
    canvas[: len(right), left.shape[1] + _GAP :] = right
    shown = spread_selection(conf, max_lines)
    # the centre of pixel x is zoom x + (zoom - 1) / 2 after zooming
    start = np.round(xy_i[shown] * zoom + (zoom - 1) / 2).astype(int)
    end = np.round(xy_j[shown] * zoom + (zoom - 1) / 2).astype(int)
    end[:, 0] += left.shape[1] + _GAP
    level = np.round(xy_i[shown, 0] / max(1, rgb_i.shape[1] - 1) * 255).astype(np.uint8)
    colours = cv2.applyColorMap(level.reshape(-1, 1), cv2.COLORMAP_TURBO)[:, 0, ::-1].tolist() if len(shown) else []
    for a, b, colour in zip(start.tolist(), end.tolist(), colours, strict=True):
        cv2.line(canvas, a, b, colour, 1, cv2.LINE_AA)
        for centre in (a, b):
            cv2.circle(canvas, centre, 4, (0, 0, 0), cv2.FILLED, cv2.LINE_AA)  # an outline, for any background
            cv2.circle(canvas, centre, 3, colour, cv2.FILLED, cv2.LINE_AA)
    return canvas


def spread_selection(conf: np.ndarray, count: int) -> np.ndarray:
    """Ascending indices of the largest value of each of `count` equal runs of `conf`; all if there are no more."""
    if len(conf) <= count:
        return np.arange(len(conf))
    bounds = np.linspace(0, len(conf), count + 1).astype(int)
    return np.array([a + int(np.argmax(conf[a:b])) for a, b in pairwise(bounds)])
