"""Learning rate over time, and which image shapes a step trains on."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

from .losses import Shapes

PATCH = 8
FINAL_SHARE = 0.02


@dataclass(frozen=True)
class Resolution:
    """Image shapes (H, W) of one long edge, and how often they come."""

    weight: float
    shapes: tuple[tuple[int, int], ...]


RESOLUTIONS = (
    Resolution(0.30, ((160, 160), (120, 160), (160, 120), (104, 160), (160, 104))),
    Resolution(0.45, ((168, 224), (224, 168), (224, 224), (144, 224), (224, 144))),
    Resolution(0.25, ((240, 320), (320, 240), (208, 320), (320, 208), (184, 320))),
)
TURNED_SHARE = 0.1
"""Share of steps whose second view is turned: a landscape with a portrait."""


def choose_shapes(step: int, resolutions: Sequence[Resolution] = RESOLUTIONS) -> Shapes:
    """Shapes of both views of a step, the same on all GPUs."""
    rng = random.Random(step)
    resolution = rng.choices(resolutions, [r.weight for r in resolutions])[0]
    shape = rng.choice(resolution.shapes)
    turned = rng.random() < TURNED_SHARE
    return shape, (shape[1], shape[0]) if turned else shape


def batch_for(shape: tuple[int, int], pairs_at_160: float) -> int:
    """Pairs a step may hold so that all shapes take about the same memory and time."""
    return max(4, round(pairs_at_160 * 160 * 160 / (shape[0] * shape[1]) / 4) * 4)


def learning_rate(
    peak: float, step: int, progress: float, warmup_steps: int, final_share: float = FINAL_SHARE
) -> float:
    """Linear warm-up over steps, then a cosine over `progress` (0 to 1, of the time budget) to `final_share`."""
    cosine = final_share + (1 - final_share) * 0.5 * (1 + math.cos(math.pi * min(max(progress, 0.0), 1.0)))
    return peak * cosine * min(1.0, (step + 1) / warmup_steps)
