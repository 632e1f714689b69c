"""Depth and confidence of every view: arrays to compute with and pictures to look at."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mast3r_sfm.export.files import write_npy, write_png
from mast3r_sfm.types import ReconstructedScene, ReconstructedView

_MAX_SAMPLES = 2_000_000
_WRITERS = 4
"""Threads that encode pictures; more take memory and gain little."""


@dataclass(frozen=True)
class ColourScale:
    """The values at the two ends of a colour map, `low` <= `high`, both positive: depths in scene units or
    confidences."""

    low: float
    high: float


def depth_scale(depths: Sequence[np.ndarray]) -> ColourScale:
    """The 2nd and 98th percentile of all valid depths (finite, positive): a few wild ones do not flatten the rest."""
    return _percentiles(depths, 2, 98)


def confidence_scale(confidences: Sequence[np.ndarray]) -> ColourScale:
    """The smallest and the 98th percentile of all valid confidences (finite, positive)."""
    return _percentiles(confidences, 0, 98)


def depth_picture(depth: np.ndarray, scale: ColourScale) -> np.ndarray:
    """(H, W, 3) uint8 RGB of z-depth (H, W): red is near, blue is far, black is invalid (not finite or not positive).

    Colours follow the inverse depth, which spreads the foreground as a photo does. Colour map: Turbo.
    """
    import cv2

    valid = _valid(depth)
    inverse = 1 / np.where(valid, depth, scale.high).astype(np.float64)
    return _coloured(inverse, valid, 1 / scale.high, 1 / scale.low, cv2.COLORMAP_TURBO)


def confidence_picture(conf: np.ndarray, scale: ColourScale) -> np.ndarray:
    """(H, W, 3) uint8 RGB of confidence (H, W): yellow is high, violet is low, black is invalid.

    Colours follow the logarithm. Colour map: Viridis.
    """
    import cv2

    valid = _valid(conf)
    log = np.log(np.where(valid, conf, scale.low).astype(np.float64))
    return _coloured(log, valid, np.log(scale.low), np.log(scale.high), cv2.COLORMAP_VIRIDIS)


def write_depth_maps(reconstruction: ReconstructedScene, folder: Path) -> None:
    """Writes `depth_000.npy`, `depth_000.png`, `confidence_000.npy` and `confidence_000.png` for every view.

    The arrays are float32 of the network's image (H, W): z-depth in scene units, and the merged confidence before
    cleaning. Pictures of all views share one scale, taken from the registered views where there are any (others
    have a scale of their own, and are clipped).
    """
    reference = reconstruction.registered or reconstruction.views
    depth_colours = depth_scale([view.depth for view in reference])
    conf_colours = confidence_scale([view.conf for view in reference])

    def write(view: ReconstructedView) -> None:
        write_npy(folder / f"depth_{view.index:03d}.npy", view.depth.astype(np.float32))
        write_npy(folder / f"confidence_{view.index:03d}.npy", view.conf.astype(np.float32))
        write_png(folder / f"depth_{view.index:03d}.png", depth_picture(view.depth, depth_colours))
        write_png(folder / f"confidence_{view.index:03d}.png", confidence_picture(view.conf, conf_colours))

    with ThreadPoolExecutor(_WRITERS) as writers:
        deque(writers.map(write, reconstruction.views), maxlen=0)  # raises the first error


def _valid(values: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore"):
        return np.isfinite(values) & (values > 0)


def _percentiles(maps: Sequence[np.ndarray], low: float, high: float) -> ColourScale:
    step = max(1, sum(values.size for values in maps) // _MAX_SAMPLES)
    samples = np.concatenate([values[_valid(values)][::step] for values in maps])
    if not samples.size:
        return ColourScale(1.0, 1.0)
    return ColourScale(float(np.percentile(samples, low)), float(np.percentile(samples, high)))


def _coloured(values: np.ndarray, valid: np.ndarray, low: float, high: float, colour_map: int) -> np.ndarray:
    """Colours of values between `low` and `high`; black where not `valid`. The middle colour if low equals high."""
    import cv2

    level = np.clip((values - low) / (high - low), 0, 1) if high > low else np.full(values.shape, 0.5)
    coloured = cv2.applyColorMap(np.round(level * 255).astype(np.uint8), colour_map)
    rgb = cv2.cvtColor(coloured, cv2.COLOR_BGR2RGB)
    rgb[~valid] = 0
    return rgb
