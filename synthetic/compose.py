"""Random scenes: rooms and open grounds, furnished from the templates. Runs on the CPU (see `draws`)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from .draws import Draws
from .layout import (
    BOX,
    NUM_ITEMS,
    NUM_LEAVES,
    NUM_OBJECTS,
    NUM_SOLIDS,
    ROUND,
    SLOTS_PER_ITEM,
    LightColumns,
    ObjectColumns,
    Scenes,
    terrain_height,
)
from .materials import draw_materials
from .templates import CLUTTER_INDEX, INDOOR, OUTDOOR, PLANTER_INDEX, template_index, template_table

OUTDOOR_SCALE = 2.0
"""Outdoor things are this much larger than the templates say, and cameras stand off accordingly."""


def yaw_matrix(angle: torch.Tensor) -> torch.Tensor:
    """Rotations (..., 3, 3) about the vertical axis by angles (...) in radians."""
    c, s, zero, one = angle.cos(), angle.sin(), torch.zeros_like(angle), torch.ones_like(angle)
    return torch.stack([c, zero, s, zero, one, zero, -s, zero, c], -1).unflatten(-1, (3, 3))


def quaternion_matrix(q: torch.Tensor) -> torch.Tensor:
    """Rotations (..., 3, 3) of quaternions (..., 4) w, x, y, z of any length."""
    w, x, y, z = torch.nn.functional.normalize(q, dim=-1).unbind(-1)
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    return torch.stack([torch.stack(row, -1) for row in rows], -2)


def scene_scale(outdoor: torch.Tensor) -> torch.Tensor:
    """Size of the things in a scene relative to the templates: (B,) from outdoor (B,) bool."""
    return torch.where(outdoor, OUTDOOR_SCALE, 1.0)


def compose(draws: Draws, outdoor: torch.Tensor, items: Sequence[str] | None = None) -> Scenes:
    """Random scenes, one for each entry of `outdoor` (B,) bool. Any camera placed later calls `clear_view`.

    items   names of the `NUM_ITEMS` templates that every scene is made of; None: the draws decide
    """
    scale = scene_scale(outdoor)
    half = torch.stack([draws.uniform(2.6, 5.0), draws.uniform(1.15, 1.7), draws.uniform(2.6, 5.0)], -1)
    half = torch.where(outdoor[:, None], torch.tensor([60.0, 1.4, 60.0]) * scale[:, None], half)
    terrain = draw_terrain(draws, outdoor, scale)
    templates = _choose_templates(draws, outdoor)
    if items is not None:
        templates = torch.tensor([template_index(name) for name in items]).expand_as(templates)
    objects = furnish(draws, templates, scale, half[:, 1], terrain)
    materials = draw_materials(draws, templates, outdoor)
    return Scenes(half, outdoor.float(), terrain, objects, materials, draw_lights(draws, outdoor))


def clear_view(scenes: Scenes, eyes: torch.Tensor, margin: float = 0.35) -> Scenes:
    """The scenes without the objects that hold or almost touch a camera at `eyes` (B, V, 3)."""
    objects = scenes.objects
    A = objects[..., ObjectColumns.A : ObjectColumns.A + 9].unflatten(-1, (3, 3))
    size = objects[..., ObjectColumns.HALF_SIZE : ObjectColumns.HALF_SIZE + 3]
    off = eyes[:, :, None] - objects[:, None, :, ObjectColumns.CENTRE : ObjectColumns.CENTRE + 3]
    local = (A[:, None] @ off[..., None])[..., 0].abs() * size[:, None]  # metres along the object's axes
    near = (local < size[:, None] + margin).all(-1).any(1)
    objects = objects.clone()
    objects[..., ObjectColumns.ACTIVE] *= (~near).float()
    return scenes._replace(objects=objects)


def draw_terrain(draws: Draws, outdoor: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    direction = draws.uniform(0, 2 * math.pi, 4)
    wavelength = torch.stack([draws.log_uniform(low, low * 2.2) for low in (9.0, 4.0, 1.6, 0.7)], -1) * scale[:, None]
    steepness = draws.uniform(0.0, 0.16, 4) * torch.tensor([1.0, 0.8, 0.5, 0.35])
    steepness = steepness * (outdoor & draws.chance(0.7)).float()[:, None]
    k = 2 * math.pi / wavelength
    return torch.stack([steepness / k, k * direction.cos(), k * direction.sin(), draws.uniform(0, 6.28, 4)], -1)


def _choose_templates(draws: Draws, outdoor: torch.Tensor) -> torch.Tensor:
    """(B, NUM_ITEMS) template indices; about a third of the items is loose clutter."""
    indoor_choice = torch.tensor(INDOOR)[draws.integers(0, len(INDOOR), NUM_ITEMS)]
    outdoor_choice = torch.tensor(OUTDOOR)[draws.integers(0, len(OUTDOOR), NUM_ITEMS)]
    templates = torch.where(outdoor[:, None], outdoor_choice, indoor_choice)
    templates = torch.where(draws.chance(0.15, NUM_ITEMS), PLANTER_INDEX, templates)
    return torch.where(draws.chance(0.35, NUM_ITEMS), CLUTTER_INDEX, templates)


def furnish(
    draws: Draws, templates: torch.Tensor, scale: torch.Tensor, floor: torch.Tensor, terrain: torch.Tensor
) -> torch.Tensor:
    B, N, S = draws.batch, NUM_ITEMS, SLOTS_PER_ITEM
    table = template_table()
    # one item: where it stands, how it is turned and stretched
    around = 2 * math.pi * (torch.arange(N) / N) + draws.uniform(-0.6, 0.6, N) + draws.uniform(0, 6.28, 1)
    reach = draws.uniform(0.75, 1.35, 1) * draws.uniform(0.25, 1.0, N) * scale[:, None]
    x, z = reach * around.cos(), reach * around.sin()
    ground = floor[:, None] - terrain_height(terrain, x, z)
    turn = draws.uniform(0, 2 * math.pi, N)
    stretch = draws.log_uniform(0.75, 1.3, N, 1) * draws.log_uniform(0.85, 1.18, N, 3) * scale[:, None, None]

    centre = table.centre[templates] * stretch[:, :, None]
    axes = table.axes[templates]
    half = table.half[templates] * (axes.abs().transpose(-1, -2) @ stretch[:, :, None, :, None])[..., 0]
    shape = table.shape[templates]
    profile = table.profile[templates]
    R = yaw_matrix(turn)[:, :, None] @ axes

    # loose clutter: any shape, some of it tilted or in the air
    loose = (templates == CLUTTER_INDEX)[:, :, None].expand(B, N, S)
    loose_half = (
        draws.log_uniform(0.08, 0.34, N, S, 1) * draws.log_uniform(0.6, 1.65, N, S, 3) * scale[:, None, None, None]
    )
    kinds = torch.tensor(
        [
            [BOX, 1.0, 0.0, 1.0, 0.0],
            [ROUND, 1.0, 0.0, -1.0, 0.0],
            [ROUND, 1.0, 0.0, 0.0, 0.0],
            [ROUND, 0.25, 0.5, 0.25, 0.0],
            [BOX, 0.7, 0.3, 0.7, 0.3],
        ]
    )
    kind = kinds[draws.integers(0, len(kinds), N, S)]
    tilted = draws.chance(0.3, N, S)
    loose_R = torch.where(
        tilted[..., None, None], quaternion_matrix(draws.normal(N, S, 4)), yaw_matrix(draws.uniform(0, 6.28, N, S))
    )
    stands = torch.where(tilted, loose_half.amax(-1), loose_half[..., 1])
    lift = torch.where(draws.chance(0.75, N, S), 0.0, draws.uniform(0, 0.8, N, S)) * scale[:, None, None]
    loose_centre = torch.stack(
        [
            draws.uniform(-0.7, 0.7, N, S) * scale[:, None, None],
            stands + lift,
            draws.uniform(-0.7, 0.7, N, S) * scale[:, None, None],
        ],
        -1,
    )
    pick = loose[..., None]
    centre = torch.where(pick, loose_centre, centre)
    half = torch.where(pick, loose_half, half)
    shape = torch.where(loose, kind[..., 0], shape)
    profile = torch.where(pick, kind[..., 1:], profile)
    R = torch.where(pick[..., None], loose_R, R)

    # into the world: heights become -y
    flat = (yaw_matrix(turn)[:, :, None] @ (centre * torch.tensor([1.0, 0.0, 1.0]))[..., None])[..., 0]
    place = torch.stack([x, ground, z], -1)[:, :, None]
    centre = place + flat - centre * torch.tensor([0.0, 1.0, 0.0])
    active = torch.where(loose, draws.chance(0.75, N, S), True) & draws.chance(0.93, N)[:, :, None]
    solids = object_rows(centre, half, shape, profile, R, active).flatten(1, 2)
    leaves = _grow(draws, templates, scale, floor, terrain, x, ground, z)
    return torch.cat([solids, leaves], 1)


def _grow(
    draws: Draws,
    templates: torch.Tensor,
    scale: torch.Tensor,
    floor: torch.Tensor,
    terrain: torch.Tensor,
    x: torch.Tensor,
    ground: torch.Tensor,
    z: torch.Tensor,
) -> torch.Tensor:
    """Foliage: two plants of three porous ellipsoids, on planters where there are any, else on the ground."""
    plants, blobs = 2, NUM_LEAVES // 2
    order = torch.argsort((templates != PLANTER_INDEX).float() + 0.01 * draws.uniform(0, 1, NUM_ITEMS), dim=1)[
        :, :plants
    ]
    potted = torch.gather(templates, 1, order) == PLANTER_INDEX
    own_x, own_z = (draws.uniform(-1.5, 1.5, plants) * scale[:, None] for _ in range(2))
    at_x = torch.where(potted, torch.gather(x, 1, order), own_x)
    at_z = torch.where(potted, torch.gather(z, 1, order), own_z)
    own_ground = floor[:, None] - terrain_height(terrain, own_x, own_z)
    at_y = torch.where(potted, torch.gather(ground, 1, order) - 0.7 * scale[:, None], own_ground)
    size = draws.log_uniform(0.12, 0.32, plants, blobs, 1) * draws.log_uniform(0.75, 1.35, plants, blobs, 3)
    size = size * scale[:, None, None, None]
    up = draws.uniform(0.0, 0.3, plants, blobs) * scale[:, None, None]
    shift = draws.uniform(-0.2, 0.2, plants, blobs, 2) * scale[:, None, None, None]
    shift = shift * torch.where(potted, 0.35, 1.0)[..., None, None]  # a crown stays on its trunk
    centre = torch.stack(
        [at_x[..., None] + shift[..., 0], at_y[..., None] - up - 0.4 * size[..., 1], at_z[..., None] + shift[..., 1]],
        -1,
    )
    leaf = draws.log_uniform(0.012, 0.045, plants, 1) * scale[:, None, None]
    ball = torch.tensor([1.0, 0.0, -1.0]).expand(draws.batch, plants, blobs, 3)
    profile = torch.cat([ball, leaf[..., None].expand(-1, -1, blobs, 1)], -1)
    R = yaw_matrix(draws.uniform(0, 6.28, plants, blobs))
    active = (potted | draws.chance(0.4, plants))[..., None] & draws.chance(0.9, plants, blobs)
    shape = torch.full((draws.batch, plants, blobs), ROUND)
    return object_rows(centre, size, shape, profile, R, active).flatten(1, 2)


def object_rows(
    centre: torch.Tensor,
    half: torch.Tensor,
    shape: torch.Tensor,
    profile: torch.Tensor,
    R: torch.Tensor,
    active: torch.Tensor,
) -> torch.Tensor:
    """Packs primitives (..., 3), (..., 3), (...), (..., 4), (..., 3, 3), (...) into rows of the object table."""
    A = R.transpose(-1, -2) / half[..., None]
    p = profile.abs().unbind(-1)
    is_round, is_ball = shape > 0.5, (shape > 0.5) & (profile[..., 2] < 0)
    widest_x = torch.where(is_round, (p[0] + p[1] + p[2]).sqrt(), p[0] + p[1])
    widest_z = torch.where(is_round, widest_x, p[2] + p[3])
    bound = (half * torch.stack([widest_x, torch.ones_like(widest_x), widest_z], -1)).norm(dim=-1)
    bound = torch.where(is_ball, half.amax(-1), bound)
    columns = [A.flatten(-2), centre, half, shape[..., None], profile, active.float()[..., None], bound[..., None]]
    rows = torch.cat(columns, -1)
    assert rows.shape[-1] == ObjectColumns.WIDTH
    return rows


def draw_lights(draws: Draws, outdoor: torch.Tensor) -> torch.Tensor:
    sun = draws.directions() * torch.tensor([1.0, 0.6, 1.0])
    sun = torch.nn.functional.normalize(torch.cat([sun[:, :1], -sun[:, 1:2].abs() - 0.35, sun[:, 2:]], -1), dim=-1)
    fill = torch.nn.functional.normalize(draws.normal(3) - torch.tensor([0.0, 0.5, 0.0]), dim=-1)
    ambient = draws.uniform(0.3, 0.6, 1)
    sun_strength = torch.where(outdoor[:, None], draws.uniform(0.35, 0.9, 1), draws.uniform(0.15, 0.6, 1))
    warm = torch.exp(draws.normal(1) * torch.tensor([[0.10, 0.02, -0.12]]))
    zenith = torch.tensor([0.25, 0.45, 0.85]) * draws.log_uniform(0.6, 1.2, 1)
    zenith = torch.where(draws.chance(0.3, 1), zenith.mean(-1, keepdim=True).expand(-1, 3) * 1.4, zenith)
    horizon = (zenith + draws.uniform(0.35, 0.6, 1)).clamp(max=1.0) * torch.exp(0.06 * draws.normal(3))
    clouds, seed = draws.uniform(0, 1, 1), draws.integers(0, 1 << 20, 1).float()
    lights = torch.cat(
        [sun, fill, ambient, sun_strength, draws.uniform(0.05, 0.25, 1), warm, zenith, horizon, clouds, seed], -1
    )
    assert lights.shape[-1] == LightColumns.WIDTH and NUM_SOLIDS + NUM_LEAVES == NUM_OBJECTS
    return lights
