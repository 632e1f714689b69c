"""What the kinds of scenes beyond rooms and open ground share: two cameras with their lenses, solids without templates.

Such a scene is drawn, and rendered, in its own unit of length (`Shots.unit` metres), so that a roof from 100 m and a
cup from 20 cm both have the size that textures, haze and clearances are made for.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

from .compose import object_rows, yaw_matrix
from .draws import Draws
from .layout import BOX, ROUND, MaterialColumns, Scenes

MIN_FOV_DEG, MAX_FOV_DEG = 15.0, 110.0
MAX_SCALE_CHANGE = 3.0
SCALE_CHANGE_SHARE = 0.3
"""Share of pairs whose second view shows things up to `MAX_SCALE_CHANGE` times larger or smaller; the rest: 1.15."""

Numbers = tuple[float, float, float, float]
CUBE: Numbers = (1.0, 0.0, 1.0, 0.0)
RIDGE_Z: Numbers = (0.5, 0.5, 1.0, 0.0)
RIDGE_X: Numbers = (1.0, 0.0, 0.5, 0.5)
HIP: Numbers = (0.6, 0.4, 0.6, 0.4)
CYLINDER: Numbers = (1.0, 0.0, 0.0, 0.0)
CONE: Numbers = (0.25, 0.5, 0.25, 0.0)
BALL: Numbers = (1.0, 0.0, -1.0, 0.0)


class Shots(NamedTuple):
    """Scenes and the cameras that look at them, in the scene's unit of length.

    eye       (B, V, 3) centres
    rotation  (B, V, 3, 3) world from camera
    focal     (B, V) in longer sides of the image
    unit      (B,) metres that one unit of length stands for
    """

    scenes: Scenes
    eye: torch.Tensor
    rotation: torch.Tensor
    focal: torch.Tensor
    unit: torch.Tensor


class Lenses(NamedTuple):
    """Half of the field of view of both views as a tangent (B, 2), and their distances over the first one's (B, 2)."""

    tangent: torch.Tensor
    distance: torch.Tensor

    @property
    def focal(self) -> torch.Tensor:
        """(B, 2) in longer sides of the image."""
        return 0.5 / self.tangent


def draw_lenses(draws: Draws) -> Lenses:
    """Telephoto to wide, usual lenses more often; the change of scale is one of focal length or of distance."""
    fov = torch.where(draws.chance(0.55), draws.uniform(40, 85), draws.log_uniform(MIN_FOV_DEG, MAX_FOV_DEG))
    tangent = torch.tan(fov * (math.pi / 360))
    large = math.log(MAX_SCALE_CHANGE)
    change = torch.exp(
        torch.where(draws.chance(SCALE_CHANGE_SHARE), draws.uniform(-large, large), draws.uniform(-0.14, 0.14))
    )
    lowest, highest = (math.tan(math.radians(fov) / 2) for fov in (MIN_FOV_DEG, MAX_FOV_DEG))
    second = torch.where(draws.chance(0.5), (tangent * change).clamp(lowest, highest), tangent)
    return Lenses(
        torch.stack([tangent, second], 1), torch.stack([torch.ones_like(change), change * tangent / second], 1)
    )


def solids(
    centre: torch.Tensor,
    half: torch.Tensor,
    active: torch.Tensor | bool = True,
    yaw: torch.Tensor | float = 0.0,
    shape: torch.Tensor | float = BOX,
    profile: torch.Tensor | Numbers = CUBE,
) -> torch.Tensor:
    """Upright primitives as rows (B, n, WIDTH) of the object table; everything but `centre` (B, n, 3) broadcasts."""
    B, n = centre.shape[:2]
    R = yaw_matrix(torch.as_tensor(yaw, dtype=torch.float32).expand(B, n))
    return object_rows(
        centre,
        half.expand(B, n, 3),
        torch.as_tensor(shape, dtype=torch.float32).expand(B, n),
        torch.as_tensor(profile, dtype=torch.float32).expand(B, n, 4),
        R,
        torch.as_tensor(active).expand(B, n),
    )


def leaves(draws: Draws, centre: torch.Tensor, half: torch.Tensor, active: torch.Tensor) -> torch.Tensor:
    """Crowns of trees, porous ellipsoids, as rows of the object table; centre and half (B, n, 3), active (B, n)."""
    leaf = draws.log_uniform(0.015, 0.06, 1).expand(centre.shape[:2])
    profile = torch.cat([torch.tensor([1.0, 0.0, -1.0]).expand_as(centre), leaf[..., None]], -1)
    return solids(centre, half, active, draws.uniform(0, 6.28, centre.shape[1]), ROUND, profile)


def share_materials(materials: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
    """Material table whose row k is row `source[..., k]` of the one given; source (B, n) int64 for the first n rows."""
    n = source.shape[1]
    shared = torch.gather(materials, 1, source[..., None].expand(-1, -1, MaterialColumns.WIDTH))
    return torch.cat([shared, materials[:, n:]], 1)


def with_columns(rows: torch.Tensor, start: int, values: torch.Tensor, where: torch.Tensor) -> torch.Tensor:
    """Material rows (B, n, WIDTH) with `values` in the columns from `start` on, in the rows `where` (B, n)."""
    stop = start + values.shape[-1]
    changed = torch.where(where[..., None], values, rows[..., start:stop])
    return torch.cat([rows[..., :start], changed, rows[..., stop:]], -1)


def stone(draws: Draws, n: int) -> torch.Tensor:
    """Three shades each (B, n, 9) of n materials like plaster, brick and stone: greys, more often warm than cold."""
    warm = torch.tensor([1.2, 1.0, 0.78]) ** draws.uniform(-0.3, 1.6, n, 1, 1)
    shades = draws.log_uniform(0.6, 1.5, n, 3, 1) * torch.exp(0.05 * draws.normal(n, 3, 3))
    return (draws.uniform(0.2, 0.75, n, 1, 1) * warm * shades).clamp(0.03, 0.95).flatten(-2)
