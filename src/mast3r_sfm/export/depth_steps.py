"""Depth as whole numbers of 16 bits: in millimetres where that suffices, else in a coarser unit that is stated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_LARGEST = 65535
_COVERED = 0.995
"""Share of the depths that has to fit: a few wild ones, of a sky, would make all others coarse."""

_MAX_SAMPLES = 2_000_000


@dataclass(frozen=True)
class DepthSteps:
    """How depth becomes whole numbers.

    metres   one step, 0.001 or more (of a scene that is not metric: scene units)
    """

    metres: float

    @property
    def largest(self) -> float:
        """What the largest number means."""
        return _LARGEST * self.metres

    def encoded(self, depth: np.ndarray) -> np.ndarray:
        """(H, W) uint16 steps of z-depth (H, W); 0 where it is unknown or too large."""
        with np.errstate(invalid="ignore"):
            steps = np.rint(depth.astype(np.float64) / self.metres)
            return np.where((steps >= 1) & (steps <= _LARGEST), steps, 0).astype(np.uint16)


def depth_steps(depths: Sequence[np.ndarray]) -> DepthSteps:
    """Millimetres if they reach as far as nearly all of the depths, else the first of 2, 5, 10, 20, ... that do."""
    stride = max(1, sum(depth.size for depth in depths) // _MAX_SAMPLES)
    samples = np.concatenate([np.zeros(0), *(depth[np.isfinite(depth) & (depth > 0)][::stride] for depth in depths)])
    far = float(np.quantile(samples, _COVERED)) if len(samples) else 0.0
    return DepthSteps(next(step for k in range(-3, 9) for step in _round(k) if far <= _LARGEST * step))


def _round(power: int) -> tuple[float, ...]:
    return tuple(float(f"{digit}e{power}") for digit in (1, 2, 5))
