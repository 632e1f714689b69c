"""Small things on a table, from 20 cm away: rooms whose items are toys, cups and boxes."""

from __future__ import annotations

import math

import torch

from .cameras import clamp_to_hull, look_at
from .compose import clear_view, draw_lights, furnish
from .draws import Draws
from .layout import FACE_X0, NUM_ITEMS, NUM_SURFACES, SLOTS_PER_ITEM, MaterialColumns, Scenes
from .materials import draw_materials
from .shots import Shots, draw_lenses, solids, with_columns
from .templates import CLUTTER_INDEX, template_index

ON_TABLES = (
    "clutter",
    "clutter",
    "clutter",
    "vessels",
    "vessels",
    "crates",
    "planter",
    "house",
    "car",
    "temple",
    "logs",
)
MIN_UNIT, MAX_UNIT = 0.07, 0.25
"""Metres a unit; the things are half a unit to a unit and a half large."""

NEAREST_M = 0.2
TABLE_HEIGHT_M = 0.74
CLEARANCE = 0.6
"""Units around a camera without any thing."""


def compose_table(draws: Draws, unit: torch.Tensor) -> tuple[Scenes, torch.Tensor]:
    """Rooms with a table, four items and plants on it, and the heights y of the table tops, (B,) units."""
    B = draws.batch
    indoors = torch.zeros(B, dtype=torch.bool)
    room = torch.stack([draws.uniform(1.8, 4.0), draws.uniform(1.15, 1.5), draws.uniform(1.8, 4.0)], -1)
    half = room / unit[:, None]
    top = half[:, 1] - TABLE_HEIGHT_M / unit
    known = torch.tensor([template_index(name) for name in ON_TABLES])
    templates = known[draws.integers(0, len(known), NUM_ITEMS)]
    templates[:, -1] = CLUTTER_INDEX  # its slots hold the table
    terrain = torch.zeros(B, 4, 4)
    objects = furnish(draws, templates, torch.ones(B), top, terrain)

    wide = torch.stack([draws.uniform(1.7, 4.0), draws.uniform(0.05, 0.2), draws.uniform(1.5, 3.0)], -1)
    low = top + 2 * wide[:, 1]
    leg_half = 0.5 * (half[:, 1] - low)
    corner = torch.tensor([[-1.0, -1.0], [-1.0, 1.0], [1.0, -1.0], [1.0, 1.0]]) * 0.9
    leg_at = torch.stack(
        [corner[:, 0] * wide[:, :1], (low + leg_half)[:, None].expand(-1, 4), corner[:, 1] * wide[:, 2:]], -1
    )
    legs = solids(leg_at, torch.stack([0.2 + 0 * leg_half, leg_half, 0.2 + 0 * leg_half], -1)[:, None])
    board = torch.stack([torch.zeros(B), top + wide[:, 1], torch.zeros(B)], -1)
    # something large behind: a cupboard or a box on the floor
    angle, far = draws.uniform(0, 2 * math.pi), half[:, ::2].amin(1) * draws.uniform(0.7, 1.0)
    large = half[:, 1:2] * draws.uniform(0.2, 0.9, 3)
    behind = torch.stack([far * angle.cos(), half[:, 1] - large[:, 1], far * angle.sin()], -1)
    table = torch.cat(
        [solids(board[:, None], wide[:, None]), legs, solids(behind[:, None], large[:, None], draws.chance(0.6, 1))], 1
    )
    slots = (NUM_ITEMS - 1) * SLOTS_PER_ITEM
    objects = torch.cat([objects[:, :slots], table, objects[:, slots + SLOTS_PER_ITEM :]], 1)

    materials = draw_materials(draws, templates, indoors)
    surface = torch.arange(NUM_SURFACES).expand(B, -1)
    # walls and furniture have the textures of rooms, whatever the unit
    start = MaterialColumns.PATTERN_FREQUENCY
    frequencies = materials[..., start : start + 2] * unit[:, None, None]
    background = (surface >= FACE_X0) | ((surface > slots) & (surface < slots + SLOTS_PER_ITEM))
    materials = with_columns(materials, start, frequencies, background)
    return Scenes(half, indoors.float(), terrain, objects, materials, draw_lights(draws, indoors)), top


def table_pairs(draws: Draws, away: torch.Tensor) -> Shots:
    """Two cameras around the things on each of many tables."""
    lenses = draw_lenses(draws)
    width = draws.log_uniform(1.3, 4.0)
    distance = (0.5 * (width / lenses.tangent[:, 0])[:, None] * lenses.distance).clamp(min=1.3)
    unit = draws.log_uniform(MIN_UNIT, MAX_UNIT).maximum(NEAREST_M / distance.amin(1)).clamp(max=MAX_UNIT)
    scenes, top = compose_table(draws, unit)
    azimuth = draws.uniform(0, 2 * math.pi)
    angle = torch.where(draws.chance(0.65), draws.uniform(-40, 40), draws.uniform(-120, 120)) * (math.pi / 180)
    azimuth = torch.stack([azimuth, azimuth + angle], 1)
    elevation = (draws.uniform(8, 80, 1) + draws.uniform(-8, 8, 2)).clamp(5, 85) * (math.pi / 180)
    outward = torch.stack([elevation.cos() * azimuth.cos(), -elevation.sin(), elevation.cos() * azimuth.sin()], -1)
    middle = torch.stack([draws.uniform(-0.4, 0.4), top - draws.uniform(0.05, 0.7), draws.uniform(-0.4, 0.4)], -1)
    target = middle[:, None] + 0.05 * width[:, None, None] * draws.normal(2, 3)
    eye = clamp_to_hull(scenes, target + distance[..., None] * outward)
    eye = torch.stack([eye[..., 0], eye[..., 1].minimum(top[:, None] - CLEARANCE - 0.05), eye[..., 2]], -1)
    opposite = 2 * eye[:, 1] - target[:, 1]
    target = torch.stack([target[:, 0], torch.where(away[:, None], opposite, target[:, 1])], 1)
    rotation = look_at(eye, target, (0.1 * draws.normal(2)).clamp(-0.3, 0.3))
    return Shots(clear_view(scenes, eye, CLEARANCE), eye, rotation, lenses.focal, unit)
