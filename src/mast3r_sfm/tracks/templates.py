"""Small patches of a photo found again in another to part of a pixel, where texture is too weak for features.

The place to look is known to a few pixels, and the geometry tells how the patch is distorted by the change of the
viewpoint. Brightness and contrast may change.

Source: S. Baker, I. Matthews, "Lucas-Kanade 20 years on: a unifying framework", IJCV 56(3), 2004 (the inverse
compositional form, for a translation).
"""

from __future__ import annotations

import numpy as np

_HALF = 8  # a patch has 17 x 17 pixels
_ITERATIONS = 8
_LEVELS = (2, 1)  # photo reduced to a half, then as it is
_MIN_CORRELATION = 0.7
_MAX_SIGMA_PX = 0.5  # standard deviation of the place that is found
_MAX_LAST_STEP_PX = 0.1


def corners(
    grey: np.ndarray, cell: tuple[float, float], origin: tuple[float, float], grid: tuple[int, int]
) -> np.ndarray:
    """(rows, columns, 2) pixels of the place in every cell of a grid whose patch is told best from its neighbours.

    grey    (H, W) uint8
    cell    (width, height) of a cell, pixels;  origin  (x, y) of the corner of the first one
    grid    (rows, columns)

    nan for cells without a place far enough from the edge of the photo.
    """
    import cv2

    strength = cv2.cornerMinEigenVal(grey, 2 * _HALF + 1)
    margin = 2 * _HALF + 2
    strength[:margin] = strength[-margin:] = 0
    strength[:, :margin] = strength[:, -margin:] = 0
    found = np.full((*grid, 2), np.nan)
    for row in range(grid[0]):
        top, bottom = (int(np.clip(round(origin[1] + k * cell[1]), 0, len(grey))) for k in (row, row + 1))
        for column in range(grid[1]):
            left, right = (int(np.clip(round(origin[0] + k * cell[0]), 0, grey.shape[1])) for k in (column, column + 1))
            part = strength[top:bottom, left:right]
            if part.size and part.max() > 0:
                y, x = np.unravel_index(part.argmax(), part.shape)
                found[row, column] = left + x, top + y
    return found


def find_again(
    first: np.ndarray, second: np.ndarray, xy: np.ndarray, expected: np.ndarray, affine: np.ndarray, max_shift_px: float
) -> tuple[np.ndarray, np.ndarray]:
    """Where patches of one photo lie in another: (M, 2) pixels, and (M,) bool whether that can be relied on.

    first, second  (H, W) uint8
    xy             (M, 2) centres of the patches in the first
    expected       (M, 2) roughly where they are in the second
    affine         (M, 2, 2) pixels in the second per pixel in the first around the patch
    max_shift_px   largest distance from where they were expected
    """
    import cv2

    place, good = expected.astype(np.float64).copy(), np.ones(len(xy), dtype=bool)
    if not len(xy):
        return place, good
    offsets = np.stack(np.meshgrid(*[np.arange(-_HALF, _HALF + 1)] * 2), -1).reshape(-1, 2).astype(np.float64)
    for level in _LEVELS:
        a, b = (
            cv2.resize(image.astype(np.float32), None, fx=1 / level, fy=1 / level, interpolation=cv2.INTER_AREA)
            for image in (first, second)
        )
        centre = (xy + 0.5) / level - 0.5
        template = _sample(a, centre[:, None] + offsets)
        slope = np.stack(
            [
                (_sample(a, centre[:, None] + offsets + step) - _sample(a, centre[:, None] + offsets - step)) / 2
                for step in ([1.0, 0.0], [0.0, 1.0])
            ],
            axis=2,
        )  # (M, K, 2)
        mean, spread = template.mean(1, keepdims=True), template.std(1, keepdims=True) + 1e-6
        normal = np.einsum("mka,mkb->mab", slope, slope) + 1e-9 * np.eye(2)
        inverse = np.linalg.inv(normal)
        at = (place + 0.5) / level - 0.5
        warped = np.einsum("mab,kb->mka", affine, offsets)
        for _ in range(_ITERATIONS):
            seen = _sample(b, at[:, None] + warped)
            seen_spread = seen.std(1, keepdims=True) + 1e-6
            error = (seen - seen.mean(1, keepdims=True)) * (spread / seen_spread) + mean - template
            step = np.einsum("mab,mkb,mk->ma", inverse, slope, error)
            length = np.linalg.norm(step, axis=1)
            step *= np.minimum(1, 2 / np.maximum(length, 1e-9))[:, None]
            at = at - np.einsum("mab,mb->ma", affine, step)
        place = (at + 0.5) * level - 0.5
    correlation = 1 - (error**2).mean(1) / (2 * spread[:, 0] ** 2)
    sigma = np.sqrt((error**2).mean(1) * np.linalg.eigvalsh(inverse)[:, 1])
    H, W = second.shape
    inside = ((place > _HALF) & (place < np.array([W, H]) - 1 - _HALF)).all(1)
    near = np.linalg.norm(place - expected, axis=1) <= max_shift_px
    good = inside & near & (correlation > _MIN_CORRELATION) & (sigma < _MAX_SIGMA_PX) & (length < _MAX_LAST_STEP_PX)
    return place, good


def _sample(image: np.ndarray, at: np.ndarray) -> np.ndarray:
    """(M, K) float64 values of (H, W) at (M, K, 2) places, bilinear."""
    import cv2

    x, y = at[..., 0].astype(np.float32), at[..., 1].astype(np.float32)
    rows = 30_000  # OpenCV's limit of the sides of a map is 32,767
    parts = [
        cv2.remap(image, x[k : k + rows], y[k : k + rows], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        for k in range(0, len(x), rows)
    ]
    return np.concatenate(parts).astype(np.float64)
