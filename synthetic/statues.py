"""Figures of stone or bronze on a pedestal, in the place of other things."""

from __future__ import annotations

import math

import torch

from .compose import object_rows, quaternion_matrix, scene_scale, yaw_matrix
from .draws import Draws
from .layout import (
    BOX,
    NUM_ITEMS,
    NUM_SOLIDS,
    ROUND,
    SLOTS_PER_ITEM,
    MaterialColumns,
    ObjectColumns,
    Scenes,
    terrain_height,
)
from .shots import BALL, CUBE, stone

CONE_LEGS = (0.5625, 0.375, 0.0625, 0.0)
"""Twice as wide at its lower end (local y points down) as at its upper: a robe, or legs."""

PARTS = (
    # centre x, height, z; half sizes x, y, z; all in heights of the statue
    ((0.0, 0.12, 0.0), (0.17, 0.12, 0.17), BOX, CUBE),
    ((0.0, 0.42, 0.0), (0.12, 0.2, 0.1), ROUND, CONE_LEGS),
    ((0.0, 0.68, 0.0), (0.1, 0.15, 0.075), ROUND, BALL),
    ((0.0, 0.9, 0.01), (0.055, 0.08, 0.06), ROUND, BALL),
    ((-0.12, 0.68, 0.02), (0.035, 0.15, 0.035), ROUND, BALL),
    ((0.12, 0.68, 0.02), (0.035, 0.15, 0.035), ROUND, BALL),
)


def raise_statues(draws: Draws, scenes: Scenes, where: torch.Tensor) -> Scenes:
    """The scenes with a statue in the place of the items `where` (B, NUM_ITEMS); each looks somewhere else."""
    B, N, S = draws.batch, NUM_ITEMS, SLOTS_PER_ITEM
    height = draws.log_uniform(0.9, 1.9, N) * scene_scale(scenes.outdoor > 0.5)[:, None]
    stretch = draws.log_uniform(0.75, 1.35, N, S, 3)
    stretch[:, :, 1:, 1] = draws.log_uniform(0.9, 1.1, N, S - 1)
    half = torch.tensor([part[1] for part in PARTS]) * stretch * height[..., None, None]
    centre = torch.tensor([part[0] for part in PARTS]) + 0.012 * draws.normal(N, S, 3) * torch.tensor([1.0, 0.0, 1.0])
    centre = centre * height[..., None, None]
    centre[:, :, 0, 1] = half[:, :, 0, 1]  # the pedestal stands on the ground
    turn = yaw_matrix(draws.uniform(0, 2 * math.pi, N))[:, :, None]
    lean = torch.cat([torch.ones(B, N, S, 1), 0.1 * draws.normal(N, S, 3)], -1)
    lean[:, :, :2, 1:] = 0
    lean[:, :, 4:, 3] = 0.3 * draws.normal(N, 2)  # arms
    R = turn @ quaternion_matrix(lean)

    objects = scenes.objects[:, :NUM_SOLIDS].unflatten(1, (N, S))
    at = objects[:, :, 0, ObjectColumns.CENTRE : ObjectColumns.CENTRE + 3]
    x, z = at[..., 0], at[..., 2]
    ground = scenes.half[:, 1:2] - terrain_height(scenes.terrain, x, z)
    flat = (turn @ (centre * torch.tensor([1.0, 0.0, 1.0]))[..., None])[..., 0]
    place = torch.stack([x, ground, z], -1)[:, :, None] + flat - centre * torch.tensor([0.0, 1.0, 0.0])
    shape = torch.tensor([part[2] for part in PARTS]).expand(B, N, S)
    profile = torch.tensor([part[3] for part in PARTS]).expand(B, N, S, 4)
    active = draws.chance(0.9, N, S) | (torch.arange(S) < 4)
    statues = object_rows(place, half, shape, profile, R, active)
    objects = torch.where(where[..., None, None], statues, objects).flatten(1, 2)

    materials = scenes.materials[:, :NUM_SOLIDS].unflatten(1, (N, S)).clone()
    figure = materials[:, :, 1:2].clone()
    figure[..., MaterialColumns.COLOUR : MaterialColumns.COLOUR + 9] = stone(draws, N)[:, :, None]
    figure = figure.expand(-1, -1, S - 1, -1)
    materials[:, :, 1:] = torch.where(where[..., None, None], figure, materials[:, :, 1:])
    return scenes._replace(
        objects=torch.cat([objects, scenes.objects[:, NUM_SOLIDS:]], 1),
        materials=torch.cat([materials.flatten(1, 2), scenes.materials[:, NUM_SOLIDS:]], 1),
    )
