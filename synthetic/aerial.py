"""Towns and hills from the air, obliquely to straight down, from 5 to 150 m: pairs, grids and rings of views."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from .cameras import GROUND_CLEARANCE, aim, look_at
from .compose import clear_view, draw_lights, draw_terrain
from .draws import Draws
from .layout import (
    BOX,
    FACE_FLOOR,
    NUM_ITEMS,
    NUM_LEAVES,
    NUM_SOLIDS,
    NUM_SURFACES,
    ROUND,
    MaterialColumns,
    Scenes,
    terrain_height,
)
from .materials import NOISE, WINDOWS, draw_materials
from .orbit import RenderedScene, render_views
from .photo import draw_effects
from .shading import OCTAVES
from .shots import (
    CONE,
    CUBE,
    CYLINDER,
    HIP,
    RIDGE_Z,
    Shots,
    draw_lenses,
    leaves,
    share_materials,
    solids,
    stone,
    with_columns,
)
from .templates import CLUTTER_INDEX

HOUSE_ROWS, HOUSE_COLUMNS = 3, 4
NUM_HOUSES = HOUSE_ROWS * HOUSE_COLUMNS
NUM_EXTRAS = NUM_SOLIDS - 2 * NUM_HOUSES
NUM_ROADS = 2
MIN_UNIT, MAX_UNIT = 3.0, 28.0
"""Metres a unit: from garden sheds to halls, as a house is about one unit wide."""

FLOOR = 1.4
"""Ground level; y points down."""

LOWEST = 0.85
"""Units that a camera is above the ground, at the least: about as high as most roofs."""


def compose_aerial(draws: Draws) -> Scenes:
    """A village or town of twelve houses in rows or scattered, two roads, sheds and conifers, six trees, hills."""
    B = draws.batch
    outdoor = torch.ones(B, dtype=torch.bool)
    terrain = draw_terrain(draws, outdoor, torch.full((B,), 2.0))
    half = torch.tensor([120.0, FLOOR, 120.0]).expand(B, 3)
    town = draws.uniform(0, 2 * math.pi, 1)
    spacing = draws.uniform(1.5, 2.3, 1, 2)

    def into_town(x: torch.Tensor, z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return town.cos() * x + town.sin() * z, -town.sin() * x + town.cos() * z

    def on_ground(x: torch.Tensor, z: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        """World points `up` above the ground at places (B, n) of the town's own axes."""
        x, z = into_town(x, z)
        return torch.stack([x, FLOOR - terrain_height(terrain, x, z) - up, z], -1)

    # houses: equal ones in rows, or each as it likes
    k = torch.arange(NUM_HOUSES)
    scatter = torch.where(draws.chance(0.4, 1), 0.05, draws.uniform(0.1, 0.42, 1))
    column = (k % HOUSE_COLUMNS - (HOUSE_COLUMNS - 1) / 2) + scatter * draws.uniform(-1, 1, NUM_HOUSES)
    row = (k // HOUSE_COLUMNS - (HOUSE_ROWS - 1) / 2) + scatter * draws.uniform(-1, 1, NUM_HOUSES)
    x, z = column * spacing[..., 0], row * spacing[..., 1]
    alike = draws.chance(0.4, 1, 1)
    low, high = torch.tensor([0.3, 0.18, 0.26]), torch.tensor([0.72, 0.5, 0.58])
    size = torch.where(alike, draws.uniform(0, 1, 1, 3), draws.uniform(0, 1, NUM_HOUSES, 3)) * (high - low) + low
    tower = draws.chance(0.12, NUM_HOUSES) & ~alike[..., 0]
    size = size * torch.stack([torch.ones_like(x), torch.where(tower, 1.9, 1.0), torch.ones_like(x)], -1)
    turned = torch.where(draws.chance(0.5, NUM_HOUSES), math.pi / 2, 0.0) + scatter * draws.uniform(-1, 1, NUM_HOUSES)
    yaw = town + turned
    hx, hy, hz = size.unbind(-1)
    sunk = 0.25  # foundations, so that no house floats on a slope
    standing = draws.chance(0.92, NUM_HOUSES)
    walls = solids(on_ground(x, z, hy / 2), torch.stack([hx, hy / 2 + sunk, hz], -1), standing, yaw)
    style = torch.where(draws.chance(0.7, 1), draws.integers(0, 4, 1), draws.integers(0, 4, NUM_HOUSES))
    flat = (style == 3) | tower
    pitch = torch.where(flat, 0.04, draws.uniform(0.1, 0.26, 1) + draws.uniform(-0.03, 0.03, NUM_HOUSES))
    profiles = torch.tensor([RIDGE_Z, RIDGE_Z, HIP, CUBE])
    profile = torch.where(flat[..., None], torch.tensor(CUBE), profiles[style])
    overhang = torch.where(flat, draws.uniform(0.35, 1.03, NUM_HOUSES), 1.1)  # a flat roof carries a smaller block
    roof_half = torch.stack([hx * overhang, pitch, hz * torch.where(flat, overhang, 1.06)], -1)
    roofs = solids(on_ground(x, z, hy + pitch), roof_half, standing, yaw, BOX, profile)

    # roads between the rows, where the ground is flat; sheds, tanks, cars and conifers
    level = (terrain[:, :, 0].abs().sum(1) < 1e-6)[:, None]
    zero, long = torch.zeros(B, 1), torch.full((B, 1), 14.0)
    broad = draws.uniform(0.12, 0.3, NUM_ROADS)
    road_x = torch.cat([zero, draws.uniform(-0.2, 0.2, 1)], 1)
    road_z = torch.cat([0.5 * spacing[..., 1], zero], 1)
    thin = torch.full((B, NUM_ROADS), 0.01)
    road_half = torch.stack([torch.cat([long, broad[:, 1:]], 1), thin, torch.cat([broad[:, :1], long], 1)], -1)
    roads = solids(on_ground(road_x, road_z, 0.5 * thin), road_half, level & draws.chance(0.85, NUM_ROADS), town)
    n = NUM_EXTRAS - NUM_ROADS
    kind = draws.integers(0, 4, n)
    extra_x, extra_z = draws.uniform(-1.9, 1.9, n) * spacing[..., 0], draws.uniform(-1.4, 1.4, n) * spacing[..., 1]
    sizes = torch.tensor([[0.16, 0.4, 0.16], [0.3, 0.16, 0.3], [0.2, 0.07, 0.09], [0.3, 0.14, 0.16]])
    extra_half = sizes[kind] * draws.log_uniform(0.7, 1.4, n, 1)
    extra_shape = torch.where(kind < 2, ROUND, BOX)
    extra_profile = torch.tensor([CONE, CYLINDER, CUBE, CUBE])[kind]
    up = extra_half[..., 1]
    extras = solids(
        on_ground(extra_x, extra_z, up), extra_half, draws.chance(0.85, n), town, extra_shape, extra_profile
    )

    tree_x, tree_z = (
        draws.uniform(-2, 2, NUM_LEAVES) * spacing[..., 0],
        draws.uniform(-1.6, 1.6, NUM_LEAVES) * spacing[..., 1],
    )
    crown = draws.log_uniform(0.14, 0.42, NUM_LEAVES, 1) * draws.log_uniform(0.8, 1.3, NUM_LEAVES, 3)
    crown_up = crown[..., 1] * draws.uniform(0.9, 1.5, NUM_LEAVES)
    trees = leaves(draws, on_ground(tree_x, tree_z, crown_up), crown, draws.chance(0.85, NUM_LEAVES))
    objects = torch.cat([walls, roofs, roads, extras, trees], 1)

    clutter = torch.full((B, NUM_ITEMS), CLUTTER_INDEX)
    materials = _town_materials(draws, draw_materials(draws, clutter, outdoor), conifer=kind == 0)
    return Scenes(half, outdoor.float(), terrain, objects, materials, draw_lights(draws, outdoor))


def _town_materials(draws: Draws, materials: torch.Tensor, conifer: torch.Tensor) -> torch.Tensor:
    """Houses of a town share a few walls and roofs; roads are grey, conifers green."""
    B, H, S = draws.batch, NUM_HOUSES, NUM_SOLIDS
    several = torch.where(draws.chance(0.5, 1), 1, 4)
    wall = draws.integers(0, 4, H) % several
    roof = H + draws.integers(0, 4, H) % several
    own = torch.arange(2 * H, S).expand(B, -1)
    surface = torch.arange(NUM_SURFACES).expand(B, -1)
    columns = MaterialColumns
    plain = (surface < 2 * H) & draws.chance(0.6, 1)
    materials = with_columns(materials, columns.COLOUR, stone(draws, NUM_SURFACES), plain)
    windows = (surface < H) & draws.chance(0.5, 1)
    materials = with_columns(materials, columns.PATTERN, torch.tensor([float(WINDOWS)]), windows)
    frequency = draws.log_uniform(3.0, 6.0, 1, 1).expand(-1, NUM_SURFACES, 1)
    materials = with_columns(materials, columns.PATTERN_FREQUENCY, frequency, windows)
    tiles = torch.tensor([0.42, 0.24, 0.17]) * draws.log_uniform(0.6, 1.5, NUM_SURFACES, 3, 1)
    tiled = (surface >= H) & (surface < 2 * H) & draws.chance(0.4, 1)
    materials = with_columns(materials, columns.COLOUR, tiles.flatten(-2).clamp(0.02, 0.95), tiled)
    road = (surface >= 2 * H) & (surface < 2 * H + NUM_ROADS)
    asphalt = draws.uniform(0.12, 0.4, 1, 1) * draws.log_uniform(0.85, 1.15, NUM_SURFACES, 9)
    materials = with_columns(materials, columns.COLOUR, asphalt, road)
    green = torch.zeros(B, NUM_SURFACES, dtype=torch.bool)
    green[:, 2 * H + NUM_ROADS : S] = conifer
    needles = torch.tensor([0.08, 0.2, 0.06]) * draws.log_uniform(0.6, 1.7, NUM_SURFACES, 3, 1)
    materials = with_columns(materials, columns.COLOUR, needles.flatten(-2), green)
    materials = with_columns(materials, columns.PATTERN, torch.tensor([float(NOISE)]), road | green)
    # fields and lawns are larger than what is on a table, but no less fine
    coarser = torch.cat([draws.log_uniform(0.15, 0.7, 1), draws.log_uniform(0.5, 1.4, 1)], 1)[:, None]
    start = columns.PATTERN_FREQUENCY
    frequencies = materials[..., start : start + 2] * coarser
    materials = with_columns(materials, start, frequencies, surface == FACE_FLOOR)
    return share_materials(materials, torch.cat([wall, roof, own], 1))


def aerial_pairs(draws: Draws, away: torch.Tensor) -> Shots:
    """Two cameras above each of many towns; their footprints share 50 to 90 % where `away` (B,) is False."""
    scenes = compose_aerial(draws)
    lenses = draw_lenses(draws)
    straight = draws.chance(0.4, 1)
    pitch = torch.where(straight, draws.uniform(74, 90, 1), draws.uniform(25, 74, 1))
    pitch = (pitch + draws.uniform(-8, 8, 2)).clamp(20, 90) * (math.pi / 180)
    heading = draws.uniform(0, 2 * math.pi)
    turn = torch.where(draws.chance(0.6), draws.uniform(-0.2, 0.2), draws.uniform(-math.pi, math.pi))
    oblique_turn = torch.where(draws.chance(0.6), draws.uniform(-0.2, 0.2), draws.uniform(-1.0, 1.0))
    turn = torch.where(straight[:, 0], turn, oblique_turn)
    heading = torch.stack([heading, heading + turn], 1)
    width = draws.log_uniform(2.0, 9.0)
    distance = 0.5 * (width / lenses.tangent[:, 0])[:, None] * lenses.distance
    distance = torch.maximum(distance, LOWEST / pitch.sin())
    width = (2 * distance * lenses.tangent).amin(1)
    shift = (1 - draws.uniform(0.5, 0.9)) * width * torch.where(away, 8.0, 1.0)
    direction = draws.uniform(0, 2 * math.pi)
    first = draws.uniform(-2.2, 2.2, 2)
    step = shift[:, None] * torch.stack([direction.cos(), direction.sin()], 1)
    place = torch.stack([first, torch.where((first * step).sum(1, keepdim=True) > 0, first - step, first + step)], 1)
    rotation = aim(heading, pitch, (0.06 * draws.normal(2)).clamp(-0.2, 0.2))
    eye = _above(scenes, place, rotation, distance)
    height = (FLOOR - eye[..., 1]).amin(1)
    height_m = torch.where(draws.chance(0.3), draws.log_uniform(5, 150), draws.log_uniform(20, 150))
    unit = (height_m / height).clamp(MIN_UNIT, MAX_UNIT)
    return Shots(clear_view(scenes, eye), eye, rotation, lenses.focal, unit)


def _above(scenes: Scenes, place: torch.Tensor, rotation: torch.Tensor, distance: torch.Tensor) -> torch.Tensor:
    """Centres (B, V, 3) of cameras that see the ground at `place` (B, V, 2) in the middle, from a distance (B, V)."""
    x, z = place.unbind(-1)
    target = torch.stack([x, FLOOR - terrain_height(scenes.terrain, x, z), z], -1)
    eye = target - distance[..., None] * rotation[..., 2]
    ground = FLOOR - terrain_height(scenes.terrain, eye[..., 0], eye[..., 2])
    return torch.stack([eye[..., 0], torch.minimum(eye[..., 1], ground - 2 * GROUND_CLEARANCE), eye[..., 2]], -1)


def render_aerial(
    seed: int,
    size: tuple[int, int],
    device: torch.device | str = "cpu",
    *,
    rows: int = 4,
    columns: int = 4,
    height_m: float = 60.0,
    pitch_deg: float = 80.0,
    overlap: float = 0.75,
    fov_deg: float = 62.0,
    unit: float = 12.0,
    samples: int = 1,
    effects: float = 0.4,
    octaves: int = OCTAVES,
    views: Sequence[int] | None = None,
) -> RenderedScene:
    """Renders a random town from a grid of cameras, row by row as a drone flies (every other row backwards).

    size       (W, H) in pixels, multiples of 8
    height_m   of the cameras above the ground, metres, give or take 4 %
    pitch_deg  how far the cameras look down, 90 is straight; all head the same way, give or take a few degrees
    overlap    of the footprints of neighbours in a row and of neighbouring rows, as a share of each image
    fov_deg    field of view along the longer side, the same for all views
    unit       metres that a unit of the scene stands for: houses are about as wide
    The other arguments are those of `render_orbit`. Depth and poses are in metres.
    """
    draws = Draws(seed, 1)
    scenes = compose_aerial(draws)
    n = rows * columns
    tangent = math.tan(math.radians(fov_deg) / 2)
    pitch = torch.deg2rad(pitch_deg + draws.uniform(-2, 2, n)).clamp(max=math.pi / 2)
    height = height_m / unit * torch.exp(draws.uniform(-0.04, 0.04, n))
    heading = draws.uniform(0, 2 * math.pi, 1)
    rotation = aim(heading + draws.uniform(-0.06, 0.06, n), pitch, 0.03 * draws.normal(n).clamp(-2, 2))
    distance = height / pitch.sin()
    W, H = size
    long = 2 * tangent * height_m / unit / math.sin(math.radians(pitch_deg))
    step_x, step_z = ((1 - overlap) * long * side / max(W, H) for side in (W, H))
    k = torch.arange(n)
    row = k // columns
    column = torch.where(row % 2 == 0, k % columns, columns - 1 - k % columns)
    x = (column - (columns - 1) / 2 + draws.uniform(-0.1, 0.1, n)) * step_x
    z = (row - (rows - 1) / 2 + draws.uniform(-0.1, 0.1, n)) * step_z
    c, s = heading.cos(), heading.sin()
    place = torch.stack([c * x + s * z, -s * x + c * z], -1)
    eye = _above(scenes, place, rotation, distance)
    scenes, photo = clear_view(scenes, eye), draw_effects(draws, n, effects)
    return render_views(
        scenes, eye, rotation, 0.5 * max(W, H) / tangent, photo, size, device, unit=unit, samples=samples,
        octaves=octaves, views=views,
    )  # fmt: skip


def render_rings(
    seed: int,
    size: tuple[int, int],
    device: torch.device | str = "cpu",
    *,
    rings: int = 5,
    views_per_ring: int = 40,
    fov_deg: float = 62.0,
    unit: float = 12.0,
    samples: int = 1,
    effects: float = 0.4,
    octaves: int = OCTAVES,
    views: Sequence[int] | None = None,
) -> RenderedScene:
    """Renders a random town from closed rings around it, the wider the higher: from 3.2 units away and 1.4 above the
    ground to 7 away and 4.2 above. Ring by ring; the arguments are those of `render_aerial`."""
    draws = Draws(seed, 1)
    scenes = compose_aerial(draws)
    n = rings * views_per_ring
    k = torch.arange(n)
    ring = (k // views_per_ring) / max(rings - 1, 1)
    azimuth = draws.uniform(0, 2 * math.pi, 1) + 2 * math.pi / views_per_ring * (k + draws.uniform(-0.2, 0.2, n))
    radius = (3.2 + 3.8 * ring) * torch.exp(draws.uniform(-0.04, 0.04, n))
    x, z = radius * azimuth.cos(), radius * azimuth.sin()
    up = (1.4 + 2.8 * ring) * torch.exp(draws.uniform(-0.04, 0.04, n))
    eye = torch.stack([x, FLOOR - terrain_height(scenes.terrain, x, z) - up, z], -1)
    target = torch.tensor([0.0, FLOOR - 0.2, 0.0]) + 0.3 * draws.normal(n, 3) * torch.tensor([1.0, 0.3, 1.0])
    rotation = look_at(eye, target, 0.03 * draws.normal(n).clamp(-2, 2))
    focal = 0.5 * max(size) / math.tan(math.radians(fov_deg) / 2)
    return render_views(
        clear_view(scenes, eye), eye, rotation, focal, draw_effects(draws, n, effects), size, device, unit=unit,
        samples=samples, octaves=octaves, views=views,
    )  # fmt: skip
