"""Long fronts of buildings with repeated windows, cornices, columns and relief, seen from the street."""

from __future__ import annotations

import math

import torch

from .cameras import look_at
from .compose import clear_view, draw_lights
from .draws import Draws
from .layout import BOX, NUM_ITEMS, NUM_LEAVES, NUM_SOLIDS, NUM_SURFACES, ROUND, MaterialColumns, Scenes
from .materials import BRICKS, NOISE, PLANKS, WINDOWS, draw_materials
from .shots import (
    BALL,
    CONE,
    CUBE,
    CYLINDER,
    RIDGE_X,
    Shots,
    draw_lenses,
    leaves,
    share_materials,
    solids,
    stone,
    with_columns,
)
from .templates import CLUTTER_INDEX

NUM_PARTS = 6
"""The wall, a second building, roof, cornice, plinth and a moulding."""
NUM_WINDOWS = 14
NUM_COLUMNS = 5
NUM_ORNAMENTS = NUM_SOLIDS - NUM_PARTS - NUM_WINDOWS - NUM_COLUMNS
WINDOW_GRIDS = ((1, 8), (2, 7), (2, 6), (2, 5), (3, 4), (2, 4), (3, 3), (4, 3))
"""Storeys and bays of the windows in relief; a texture may add more."""

MIN_UNIT, MAX_UNIT = 2.0, 5.0
"""Metres a unit; a storey is about one unit high."""

FLOOR = 1.4
DEPTH = 1.5
"""Of the building, units; its front lies in the plane z = 0 and faces -z."""

NEAREST_CAMERA = 0.7
"""Units between a camera and the front, at the least."""


def _at(x: torch.Tensor, up: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
    """World points (B, n, 3) from x, height above the ground and z, which broadcast."""
    x, up, z = torch.broadcast_tensors(x, up, z)
    return torch.stack([x, FLOOR - up, z], -1)


def _size(x: torch.Tensor, y: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
    return torch.stack(torch.broadcast_tensors(x, y, z), -1)


def compose_facade(draws: Draws) -> tuple[Scenes, torch.Tensor]:
    """Scenes with a front each, and half its length and its height in units, (B, 2)."""
    B = draws.batch
    outdoor = torch.ones(B, dtype=torch.bool)
    terrain = torch.zeros(B, 4, 4)
    hull = torch.tensor([120.0, FLOOR, 120.0]).expand(B, 3)
    grid = torch.tensor(WINDOW_GRIDS)[draws.integers(0, len(WINDOW_GRIDS), 1)]
    storeys, bays = grid[..., 0], grid[..., 1]
    bay, storey = draws.uniform(0.55, 1.1, 1), draws.uniform(0.8, 1.3, 1)
    base = draws.uniform(0.05, 0.7, 1)
    tall = base + storey * (storeys + draws.uniform(0.0, 1.2, 1))
    long = 0.5 * bay * bays * draws.uniform(1.05, 1.7, 1)
    zero = torch.zeros(B, 1)

    def bars(up: torch.Tensor, half_height: torch.Tensor, out: torch.Tensor, probability: float) -> torch.Tensor:
        """A moulding along the whole front that stands out by `out`."""
        return solids(_at(zero, up, zero), _size(long * 1.01, half_height, out), draws.chance(probability, 1))

    wall = solids(_at(zero, tall / 2 - 0.1, zero + DEPTH), _size(long, tall / 2 + 0.1, zero + DEPTH))
    side = torch.where(draws.chance(0.5, 1), 1.0, -1.0)
    wing_long, wing_tall = draws.uniform(0.8, 2.2, 1), tall * draws.uniform(0.55, 1.25, 1)
    wing_front = torch.where(draws.chance(0.5, 1), draws.uniform(-1.5, -0.15, 1), draws.uniform(0.1, 1.0, 1))
    wing_at = _at(side * (long + wing_long), wing_tall / 2 - 0.1, wing_front + DEPTH)
    wing = solids(wing_at, _size(wing_long, wing_tall / 2 + 0.1, zero + DEPTH), draws.chance(0.7, 1))
    rise = draws.uniform(0.15, 0.5, 1)
    roof = solids(
        _at(zero, tall + rise, zero + DEPTH), _size(long * 1.02, rise, zero + 1.08 * DEPTH), draws.chance(0.7, 1),
        profile=RIDGE_X,
    )  # fmt: skip
    cornice = bars(tall - 0.05, draws.uniform(0.03, 0.1, 1), draws.uniform(0.05, 0.22, 1), 0.75)
    plinth = bars(0.5 * base, 0.5 * base, draws.uniform(0.02, 0.08, 1), 0.6)
    moulding = bars(base + storey, draws.uniform(0.015, 0.05, 1), draws.uniform(0.02, 0.1, 1), 0.6)

    # windows, niches or medallions in a grid, all alike
    k = torch.arange(NUM_WINDOWS)
    x = (k % bays - (bays - 1) / 2) * bay
    up = base + storey * (k // bays + 0.5)
    in_grid = (k < storeys * bays) & draws.chance(0.96, NUM_WINDOWS)
    medallion = draws.chance(0.2, 1)
    half = _size(bay * draws.uniform(0.2, 0.36, 1), storey * draws.uniform(0.22, 0.38, 1), draws.uniform(0.02, 0.1, 1))
    flat = torch.minimum(half[..., :1], half[..., 1:2]).expand(-1, -1, 2)
    half = torch.where(medallion[..., None], torch.cat([flat, half[..., 2:]], -1), half)
    window_profile = torch.where(medallion[..., None], torch.tensor(BALL), torch.tensor(CUBE))
    windows = solids(_at(x, up, zero), half, in_grid, 0.0, torch.where(medallion, ROUND, BOX), window_profile)

    # columns or pilasters between the bays
    c = torch.arange(NUM_COLUMNS)
    between = torch.where(bays > 4, 2.0, 1.0)
    column_x = (c - (NUM_COLUMNS - 1) / 2) * bay * between + torch.where(bays % 2 == 0, 0.0, 0.5) * bay
    is_round = draws.chance(0.5, 1)
    thick = draws.uniform(0.05, 0.13, 1)
    free = torch.where(is_round & draws.chance(0.4, 1), draws.uniform(-0.5, -0.2, 1), 0.0)
    column_tall = torch.where(draws.chance(0.5, 1), tall, base + storey)
    columns = solids(
        _at(column_x, column_tall / 2, free), _size(thick, column_tall / 2, thick),
        draws.chance(0.65, 1) & (column_x.abs() < long), 0.0, torch.where(is_round, ROUND, BOX),
        torch.where(is_round[..., None], torch.tensor(CYLINDER), torch.tensor(CUBE)),
    )  # fmt: skip

    # a door, reliefs on the wall, and what stands in the street
    N = NUM_ORNAMENTS
    street = torch.arange(N) >= N - 2
    kind = draws.integers(0, 4, N)
    sizes = torch.tensor([[0.14, 0.14, 0.1], [0.12, 0.2, 0.12], [0.2, 0.1, 0.06], [0.06, 0.3, 0.06]])
    ornament_half = sizes[kind] * draws.log_uniform(0.7, 1.8, N, 1)
    ornament_up = torch.where(street, ornament_half[..., 1], draws.uniform(0.1, 1.0, N) * tall)
    ornament_z = torch.where(street, draws.uniform(-1.6, -0.5, N), -0.3 * ornament_half[..., 2])
    door_half, door_up = torch.cat([0.3 * bay, 0.42 * storey, zero + 0.04], 1), 0.42 * storey[:, 0]
    ornament_half = torch.cat([door_half[:, None], ornament_half[:, 1:]], 1)
    ornament_up, ornament_z = (
        torch.cat([door_up[:, None], ornament_up[:, 1:]], 1),
        torch.cat([zero, ornament_z[:, 1:]], 1),
    )
    shape = torch.where((kind == 2) | (torch.arange(N) == 0), BOX, ROUND)
    profile = torch.where(
        (shape == BOX)[..., None], torch.tensor(CUBE), torch.tensor([BALL, CONE, CUBE, CYLINDER])[kind]
    )
    ornament_x = draws.uniform(-0.9, 0.9, N) * long
    ornaments = solids(
        _at(ornament_x, ornament_up, ornament_z), ornament_half, draws.chance(0.8, N), 0.0, shape, profile
    )

    # up to two trees of three crowns each
    trunk_x, trunk_z = draws.uniform(-1.1, 1.1, 2) * long, draws.uniform(-2.2, -0.8, 2)
    blob = torch.arange(NUM_LEAVES) // 3
    size = draws.log_uniform(0.18, 0.5, 2)
    at = _at(
        trunk_x[:, blob] + 0.5 * size[:, blob] * draws.normal(NUM_LEAVES),
        draws.uniform(0.6, 1.6, 2)[:, blob] + 0.5 * size[:, blob] * draws.normal(NUM_LEAVES),
        trunk_z[:, blob] + 0.4 * size[:, blob] * draws.normal(NUM_LEAVES).clamp(-1, 1),
    )
    crown = size[:, blob, None] * draws.log_uniform(0.7, 1.3, NUM_LEAVES, 3)
    trees = leaves(draws, at, crown, draws.chance(0.4, 2)[:, blob])
    parts = [wall, wing, roof, cornice, plinth, moulding, windows, columns, ornaments, trees]

    clutter = torch.full((B, NUM_ITEMS), CLUTTER_INDEX)
    materials = _front_materials(draws, draw_materials(draws, clutter, outdoor))
    scenes = Scenes(hull, outdoor.float(), terrain, torch.cat(parts, 1), materials, draw_lights(draws, outdoor))
    return scenes, torch.cat([long, tall], 1)


def _front_materials(draws: Draws, materials: torch.Tensor) -> torch.Tensor:
    """Windows are alike, and so are columns; mouldings are of the stone of the wall or of one other."""
    B, S = draws.batch, NUM_SOLIDS
    trim = torch.where(draws.chance(0.3, 1), 0, 3)
    first = torch.cat([torch.tensor([[0, 1, 2]]).expand(B, -1), trim.expand(-1, 3)], 1)
    windows = torch.full((B, NUM_WINDOWS), NUM_PARTS)
    columns = trim.expand(-1, NUM_COLUMNS)
    ornaments = torch.arange(S - NUM_ORNAMENTS, S).expand(B, -1)
    of_trim = draws.chance(0.5, NUM_ORNAMENTS) & (torch.arange(NUM_ORNAMENTS) < NUM_ORNAMENTS - 2)
    ornaments = torch.where(of_trim, trim, ornaments)
    surface = torch.arange(NUM_SURFACES).expand(B, -1)
    walls, glass = surface < 2, surface == NUM_PARTS
    patterns = torch.tensor([WINDOWS, WINDOWS, BRICKS, BRICKS, PLANKS, NOISE, NOISE]).float()
    plain = (surface < NUM_PARTS) & draws.chance(0.65, 1)
    materials = with_columns(materials, MaterialColumns.COLOUR, stone(draws, NUM_SURFACES), plain)
    pattern = patterns[draws.integers(0, len(patterns), NUM_SURFACES)][..., None]
    materials = with_columns(materials, MaterialColumns.PATTERN, pattern, walls)
    courses = draws.log_uniform(2.0, 8.0, NUM_SURFACES, 1)
    frequency = torch.where(pattern == WINDOWS, draws.log_uniform(0.6, 2.2, NUM_SURFACES, 1), courses)
    materials = with_columns(materials, MaterialColumns.PATTERN_FREQUENCY, frequency, walls)
    dark = draws.uniform(0.02, 0.25, 1, 1).expand(-1, NUM_SURFACES, 3)
    materials = with_columns(materials, MaterialColumns.COLOUR, dark, glass & draws.chance(0.7, 1))
    paned = torch.where(draws.chance(0.6, 1, 1), float(WINDOWS), float(NOISE))
    materials = with_columns(materials, MaterialColumns.PATTERN, paned, glass)
    panes = draws.log_uniform(2.0, 5.0, 1, 1)
    materials = with_columns(materials, MaterialColumns.PATTERN_FREQUENCY, panes, glass)
    shiny = torch.where(draws.chance(0.4, 1, 1), draws.uniform(0.2, 0.6, 1, 1), 0.03)
    materials = with_columns(materials, MaterialColumns.GLOSS, shiny, glass)
    return share_materials(materials, torch.cat([first, windows, columns, ornaments], 1))


def facade_pairs(draws: Draws, away: torch.Tensor) -> Shots:
    """Two cameras before each of many fronts: beside each other or around a point, level or looking up."""
    scenes, extent = compose_facade(draws)
    long, tall = extent.unbind(1)
    lenses = draw_lenses(draws)
    width = torch.minimum(draws.log_uniform(1.7, 10.0), 2.4 * long)
    distance = 0.5 * (width / lenses.tangent[:, 0])[:, None] * lenses.distance
    distance = distance.clamp(min=NEAREST_CAMERA)
    width = (2 * distance * lenses.tangent).amin(1)
    azimuth = draws.uniform(-55, 55) * (math.pi / 180)
    swing = torch.where(draws.chance(0.5), draws.uniform(-12, 12), draws.uniform(-60, 60)) * (math.pi / 180)
    azimuth = torch.stack([azimuth, (azimuth + swing).clamp(-1.1, 1.1)], 1)
    # along the front, back towards its middle where it would end
    centre = draws.uniform(-0.7, 0.7) * long
    shift = (1 - draws.uniform(0.5, 0.95)) * width * torch.where(away, 10.0, 1.0)
    x = torch.stack([centre, centre - shift * torch.where(centre > 0, 1.0, -1.0)], 1)
    up = draws.uniform(0.15, 0.85) * tall
    up = torch.stack([up, (up + 0.15 * width * draws.normal()).clamp(min=0.1).minimum(tall)], 1)
    target = _at(x, up, torch.zeros(draws.batch, 1))
    level = draws.uniform(0.35, 0.75, 2)  # eye height of someone in the street
    lifted = draws.uniform(0.2, 1.0, 1) * tall[:, None] * torch.exp(draws.uniform(-0.2, 0.2, 2))
    raised = draws.chance(0.3, 1)
    eye_up = torch.where(raised, lifted, level)
    # who looks up steps back
    climb = (up - eye_up).abs()
    out = (distance**2 - climb**2).clamp(min=0).sqrt().maximum(0.8 * climb).clamp(min=NEAREST_CAMERA)
    eye = _at(x + out * azimuth.sin(), eye_up, (-out * azimuth.cos()).clamp(max=-NEAREST_CAMERA))
    rotation = look_at(eye, target, (0.06 * draws.normal(2)).clamp(-0.2, 0.2))
    unit = draws.log_uniform(MIN_UNIT, MAX_UNIT)
    return Shots(clear_view(scenes, eye), eye, rotation, lenses.focal, unit)
