"""Furniture, buildings and clutter as tables of at most six primitives each.

Heights are above the floor (metres, upwards); the composer flips them into the y-down world. A part is
(centre x, height, z; half sizes x, y, z; shape; profile of 4; axis), see `layout` for shapes and profiles.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch

from .layout import BOX, ROUND, SLOTS_PER_ITEM

UPRIGHT, LYING_X, LYING_Z = range(3)


@dataclass(frozen=True)
class Part:
    """One primitive of a template."""

    centre: tuple[float, float, float]
    half: tuple[float, float, float]
    shape: float = BOX
    profile: tuple[float, float, float, float] = (1.0, 0.0, 1.0, 0.0)
    axis: int = UPRIGHT


def _box(x: float, y: float, z: float, hx: float, hy: float, hz: float) -> Part:
    return Part((x, y, z), (hx, hy, hz))


def _gable(x: float, y: float, z: float, hx: float, hy: float, hz: float) -> Part:
    """A roof with its ridge along z."""
    return Part((x, y, z), (hx, hy, hz), BOX, (0.5, 0.5, 1.0, 0.0))


def _taper(x: float, y: float, z: float, hx: float, hy: float, hz: float, top: float) -> Part:
    """A box whose top is `top` times as wide as its bottom; 0 makes a pyramid."""
    middle, lean = (1 + top) / 2, (1 - top) / 2
    return Part((x, y, z), (hx, hy, hz), BOX, (middle, lean, middle, lean))


def _cylinder(x: float, y: float, z: float, r: float, hy: float, axis: int = UPRIGHT) -> Part:
    return Part((x, y, z), (r, hy, r), ROUND, (1.0, 0.0, 0.0, 0.0), axis)


def _cone(x: float, y: float, z: float, r: float, hy: float, top: float = 0.0) -> Part:
    """A cone, cut off where it is `top` times as wide as at its bottom."""
    middle, lean = (1 + top) / 2, (1 - top) / 2
    return Part((x, y, z), (r, hy, r), ROUND, (middle**2, 2 * middle * lean, lean**2, 0.0))


def _ball(x: float, y: float, z: float, hx: float, hy: float, hz: float) -> Part:
    return Part((x, y, z), (hx, hy, hz), ROUND, (1.0, 0.0, -1.0, 0.0))


def _legs(x: float, z: float, half_height: float, thickness: float) -> list[Part]:
    return [_box(sx * x, half_height, sz * z, thickness, half_height, thickness) for sx in (-1, 1) for sz in (-1, 1)]


TABLE = [_box(0, 0.73, 0, 0.62, 0.03, 0.4), *_legs(0.55, 0.33, 0.35, 0.035), _ball(0.15, 0.9, 0.05, 0.14, 0.14, 0.14)]
ROUND_TABLE = [
    _cylinder(0, 0.7, 0, 0.45, 0.025),
    _cylinder(0, 0.36, 0, 0.05, 0.33),
    _cylinder(0, 0.02, 0, 0.25, 0.02),
    _cone(-0.12, 0.84, 0.08, 0.1, 0.12, 0.5),
    _ball(0.17, 0.8, -0.1, 0.08, 0.08, 0.08),
    _box(0.1, 0.75, 0.2, 0.11, 0.03, 0.08),
]
CHAIR = [_box(0, 0.46, 0, 0.23, 0.03, 0.23), _box(0, 0.76, -0.21, 0.23, 0.28, 0.025), *_legs(0.19, 0.19, 0.22, 0.025)]
SHELF = [
    _box(-0.45, 0.75, 0, 0.02, 0.75, 0.17),
    _box(0.45, 0.75, 0, 0.02, 0.75, 0.17),
    *(_box(0, h, 0, 0.44, 0.02, 0.17) for h in (0.1, 0.52, 0.97, 1.46)),
]
SOFA = [
    _box(0, 0.21, 0, 0.75, 0.2, 0.38),
    _box(0, 0.55, -0.32, 0.75, 0.35, 0.1),
    _box(-0.76, 0.36, 0, 0.09, 0.34, 0.38),
    _box(0.76, 0.36, 0, 0.09, 0.34, 0.38),
    _ball(-0.35, 0.46, 0.05, 0.34, 0.1, 0.3),
    _ball(0.35, 0.46, 0.05, 0.34, 0.1, 0.3),
]
LAMP = [
    _cylinder(0, 0.02, 0, 0.17, 0.02),
    _cylinder(0, 0.65, 0, 0.02, 0.62),
    _cone(0, 1.38, 0, 0.24, 0.16, 0.55),
    _box(0.35, 0.14, 0.1, 0.16, 0.14, 0.12),
    _box(0.37, 0.31, 0.1, 0.12, 0.03, 0.1),
    _ball(0.3, 0.12, -0.3, 0.12, 0.12, 0.12),
]
VESSELS = [
    _cylinder(-0.3, 0.2, 0, 0.12, 0.2),
    _cone(-0.3, 0.48, 0, 0.12, 0.08, 0.35),
    _ball(0.05, 0.2, 0.15, 0.22, 0.2, 0.22),
    _cylinder(0.05, 0.42, 0.15, 0.07, 0.06),
    _cone(0.4, 0.25, -0.1, 0.2, 0.25, 0.4),
    _cylinder(0.2, 0.07, -0.35, 0.16, 0.07),
]
CRATES = [
    _box(-0.25, 0.25, 0, 0.25, 0.25, 0.25),
    _box(0.32, 0.2, 0.1, 0.2, 0.2, 0.3),
    _box(-0.1, 0.68, 0.02, 0.3, 0.18, 0.2),
    _box(0.35, 0.5, 0.05, 0.12, 0.1, 0.12),
    _box(0.1, 0.1, -0.45, 0.3, 0.1, 0.15),
    _cylinder(-0.15, 0.98, 0, 0.13, 0.12),
]
HOUSE = [
    _box(0, 0.45, 0, 0.55, 0.45, 0.45),
    _gable(0, 1.12, 0, 0.65, 0.24, 0.52),
    _box(0.3, 1.2, 0.15, 0.07, 0.25, 0.07),
    _box(0, 0.24, 0.46, 0.1, 0.24, 0.02),
    _box(0.75, 0.25, 0, 0.22, 0.25, 0.3),
    Part((0.75, 0.58, 0.0), (0.24, 0.08, 0.33), BOX, (1.0, 0.0, 0.5, 0.5)),
]
TOWER = [
    _cylinder(0, 0.75, 0, 0.3, 0.75),
    _cylinder(0, 1.53, 0, 0.38, 0.04),
    _cylinder(0, 1.75, 0, 0.24, 0.18),
    _cone(0, 2.13, 0, 0.33, 0.2),
    _box(0, 0.22, 0.29, 0.09, 0.22, 0.03),
    _taper(0, 0.1, 0, 0.45, 0.1, 0.45, 0.8),
]
CHURCH = [
    _box(0, 0.4, 0, 0.32, 0.4, 0.7),
    _gable(0, 1.0, 0, 0.38, 0.2, 0.75),
    _box(0, 0.75, 0.85, 0.2, 0.75, 0.2),
    _taper(0, 1.85, 0.85, 0.22, 0.35, 0.22, 0.0),
    _box(-0.38, 0.2, 0, 0.08, 0.2, 0.5),
    _box(0.38, 0.2, 0, 0.08, 0.2, 0.5),
]
CAR = [
    _box(0, 0.27, 0, 0.75, 0.15, 0.32),
    _taper(-0.05, 0.53, 0, 0.48, 0.12, 0.29, 0.7),
    *(_cylinder(sx * 0.45, 0.13, sz * 0.3, 0.13, 0.05, LYING_Z) for sx in (-1, 1) for sz in (-1, 1)),
]
STAIRS = [_box(0, 0.07 * (k + 1), -0.2 * k, 0.45, 0.07 * (k + 1), 0.1) for k in range(6)]
TEMPLE = [
    _box(0, 0.08, 0, 0.6, 0.08, 0.45),
    *(_cylinder(sx * 0.45, 0.6, sz * 0.32, 0.08, 0.46) for sx in (-1, 1) for sz in (-1, 1)),
    Part((0.0, 1.22, 0.0), (0.65, 0.18, 0.5), BOX, (0.5, 0.5, 1.0, 0.0)),
]
PLANTER = [
    _cone(0, 0.17, 0, 0.16, 0.17, 1.4),
    _cylinder(0, 0.55, 0, 0.035, 0.3),
    _box(0.4, 0.04, 0.1, 0.2, 0.04, 0.25),
    _ball(-0.35, 0.1, 0.2, 0.13, 0.1, 0.12),
    _ball(-0.2, 0.07, -0.3, 0.1, 0.07, 0.09),
    _cylinder(0.4, 0.16, 0.1, 0.08, 0.08),
]
BENCH = [
    _box(0, 0.42, 0, 0.7, 0.03, 0.2),
    _box(0, 0.75, -0.2, 0.7, 0.1, 0.02),
    _box(-0.55, 0.2, 0, 0.04, 0.2, 0.18),
    _box(0.55, 0.2, 0, 0.04, 0.2, 0.18),
    _box(-0.55, 0.6, -0.2, 0.03, 0.25, 0.03),
    _box(0.55, 0.6, -0.2, 0.03, 0.25, 0.03),
]
LOGS = [
    *(_cylinder(0, 0.14, z, 0.13, 0.5, LYING_X) for z in (-0.28, 0.0, 0.28)),
    *(_cylinder(0, 0.37, z, 0.12, 0.48, LYING_X) for z in (-0.14, 0.14)),
    _cylinder(0.1, 0.58, 0.0, 0.12, 0.45, LYING_X),
]
CLUTTER: list[Part] = [_box(0, 0.2, 0, 0.2, 0.2, 0.2)] * SLOTS_PER_ITEM  # replaced by random shapes

TEMPLATES = {
    "clutter": CLUTTER,
    "planter": PLANTER,
    "table": TABLE,
    "round table": ROUND_TABLE,
    "chair": CHAIR,
    "shelf": SHELF,
    "sofa": SOFA,
    "lamp": LAMP,
    "vessels": VESSELS,
    "crates": CRATES,
    "bench": BENCH,
    "stairs": STAIRS,
    "house": HOUSE,
    "tower": TOWER,
    "church": CHURCH,
    "car": CAR,
    "temple": TEMPLE,
    "logs": LOGS,
}
CLUTTER_INDEX, PLANTER_INDEX = 0, 1
INDOOR = tuple(range(2, 12))
OUTDOOR = tuple(range(9, 18))


def template_index(name: str) -> int:
    """Position of a template in the tables; raises ValueError that lists the names."""
    if name not in TEMPLATES:
        raise ValueError(f"no template {name!r}; known: {', '.join(TEMPLATES)}")
    return list(TEMPLATES).index(name)


@dataclass(frozen=True)
class TemplateTable:
    """All templates as tensors, T templates of SLOTS_PER_ITEM parts.

    centre, half (T, S, 3); shape (T, S); profile (T, S, 4); axes (T, S, 3, 3) world from local axes.
    """

    centre: torch.Tensor
    half: torch.Tensor
    shape: torch.Tensor
    profile: torch.Tensor
    axes: torch.Tensor


@cache
def template_table() -> TemplateTable:
    turned = {
        UPRIGHT: [[1.0, 0, 0], [0, 1, 0], [0, 0, 1]],
        LYING_X: [[0, 1.0, 0], [-1, 0, 0], [0, 0, 1]],
        LYING_Z: [[1.0, 0, 0], [0, 0, -1], [0, 1, 0]],
    }

    def table(read: str) -> torch.Tensor:
        return torch.tensor([[getattr(part, read) for part in template] for template in TEMPLATES.values()])

    axes = torch.tensor([[turned[part.axis] for part in template] for template in TEMPLATES.values()])
    return TemplateTable(table("centre"), table("half"), table("shape"), table("profile"), axes)
