"""Draws pairs that look like photos taken on different days with different cameras, from drawn pairs."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

from .cameras import WALL_CLEARANCE, clamp_to_hull
from .compose import clear_view, draw_lights
from .draws import Draws
from .layout import (
    FACE_FLOOR,
    FACE_X0,
    NUM_ITEMS,
    NUM_LEAVES,
    NUM_OBJECTS,
    NUM_SOLIDS,
    NUM_SURFACES,
    SLOTS_PER_ITEM,
    LightColumns,
    MaterialColumns,
    Scenes,
)
from .look import LUMA, Look, PatchColumns
from .materials import MIRROR, PICTURE
from .photo import PhotoEffects
from .shots import MAX_FOV_DEG, MIN_FOV_DEG
from .statues import raise_statues

SEED_OFFSET = 1 << 61
"""Added to the seed of a batch: the photographs of a scene do not depend on how the scene was drawn."""

OTHER_LIGHT_SHARE = 0.5
MISSING_SHARE = 0.3
"""Share of rooms and open grounds in which each item may be missing in one of the views."""
STATUES_SHARE = 0.12
"""Share of the things in rooms and on open ground that a statue takes the place of."""
PATCH_SHARE = 0.3
HAZE_SHARE = 0.25
DUSK_SHARE = 0.1
"""Share of views that are dark, cold and noisy."""
COLOURLESS_SHARE = 0.04
COMPRESSED_SHARE = 0.65
PICTURES_SHARE = 0.45
"""Share of surfaces with a picture for a texture."""
MIRRORS_SHARE = 0.3
"""Share of scenes where some surfaces are mirrors: windows, polished metal, water."""
OTHER_LENS_SHARE = 0.5
ZOOM_SHARE = 0.25
MAX_ZOOM = 4.0
ROLLED_SHARE = 0.5
TURNED_SHARE = 0.06
"""Share of views turned by a quarter to either side, as when a photo's orientation is lost; a fifth as many by half."""

LUMA_STEPS = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)
"""Quantisation of JPEG at quality 50 (ITU-T T.81, annex K), brightness; colour below."""
CHROMA_STEPS = ((17, 18, 24, 47), (18, 21, 26, 66), (24, 26, 56, 99), (47, 66, 99, 99))


class Cameras(NamedTuple):
    """Centres (B, V, 3), rotations (B, V, 3, 3) world from camera and focal lengths (B, V) in longer sides."""

    eye: torch.Tensor
    rotation: torch.Tensor
    focal: torch.Tensor


def draw_cameras(draws: Draws, cameras: Cameras, scenes: Scenes, chosen: torch.Tensor, usual: torch.Tensor) -> Cameras:
    """Rolls chosen cameras (B,) and, in usual scenes (B,), gives them other lenses, from telephoto to very wide.

    With a longer lens the cameras step back, as far as the scene allows, with a wider one they come nearer.
    """
    eye, rotation, focal = cameras
    V = eye.shape[1]
    low, high = (math.tan(math.radians(fov) / 2) for fov in (MIN_FOV_DEG, MAX_FOV_DEG))
    lens = torch.tan(draws.log_uniform(MIN_FOV_DEG, MAX_FOV_DEG, 1) * (math.pi / 360))
    old = 0.5 / focal
    other = draws.chance(OTHER_LENS_SHARE, 1) & (chosen & usual)[:, None]
    tangent = torch.where(other, (old / old[:, :1] * lens).clamp(low, high), old)
    centre = torch.zeros_like(eye)
    centre[..., 1] = scenes.half[:, 1:2] - 0.5
    distance = (eye - centre).norm(dim=-1)
    back = distance * ((old / tangent) ** 0.7 - 1).clamp(min=-0.4)
    axis = rotation[..., 2]
    room = (scenes.half[:, None] - WALL_CLEARANCE - eye * -axis.sign()) / axis.abs().clamp(min=1e-3)
    back = torch.minimum(back, room.amin(-1).clamp(min=0))
    moved = torch.where(other[..., None], clamp_to_hull(scenes, eye - back[..., None] * axis), eye)

    zoom = draws.uniform(-math.log(MAX_ZOOM), math.log(MAX_ZOOM), 1) * torch.nn.functional.one_hot(
        draws.integers(0, V), V
    )
    zoomed = draws.chance(ZOOM_SHARE, 1) & (chosen & usual)[:, None]
    tangent = torch.where(zoomed, (tangent * zoom.exp()).clamp(low, high), tangent)

    roll = draws.normal(V).clamp(-2.5, 2.5) * (draws.chance(ROLLED_SHARE, 1) * math.radians(10))
    which = draws.uniform(0, 1, V)
    turn = torch.where(which < TURNED_SHARE, torch.where(draws.chance(0.5, V), 0.5, -0.5), 0.0)
    turn = torch.where((which >= TURNED_SHARE) & (which < 1.2 * TURNED_SHARE), 1.0, turn) * math.pi
    angle = torch.where(chosen[:, None], roll + turn, 0.0)
    c, s = angle.cos()[..., None], angle.sin()[..., None]
    x, y, z = rotation.unbind(-1)
    rolled = torch.stack([c * x + s * y, c * y - s * x, z], -1)
    rotation = torch.where(chosen[:, None, None, None], rolled, rotation)
    return Cameras(moved, rotation, torch.where(other | zoomed, 0.5 / tangent, focal))


def draw_surfaces(draws: Draws, materials: torch.Tensor, chosen: torch.Tensor, usual: torch.Tensor) -> torch.Tensor:
    """Material table in which some surfaces of chosen scenes (B,) wear pictures, and in usual ones are mirrors."""
    M = NUM_SURFACES
    materials = materials.clone()
    surface = torch.arange(M)
    leafy = (surface >= NUM_SOLIDS) & (surface < NUM_SOLIDS + NUM_LEAVES)
    share = (PICTURES_SHARE * draws.uniform(0.3, 1.7)).clamp(max=1)[:, None]
    pictured = (draws.uniform(0, 1, M) < share) & ~leafy & chosen[:, None]
    likely = torch.where(surface == FACE_FLOOR, 0.12, torch.where(surface >= FACE_X0, 0.04, 0.05))
    mirror = (draws.uniform(0, 1, M) < likely) & draws.chance(MIRRORS_SHARE, 1) & ~leafy & (chosen & usual)[:, None]
    either = pictured | mirror

    # the first colour is the darker one, as the pictures' brightness goes from it to the second
    first, second = (materials[..., MaterialColumns.COLOUR + 3 * k :][..., :3] for k in range(2))
    swapped = (first.sum(-1) > second.sum(-1))[..., None]
    dark, bright = torch.where(swapped, second, first), torch.where(swapped, first, second)
    spread = draws.uniform(0.4, 1.0, M, 1)
    dark, bright = dark * spread, bright + (1 - spread) * (0.85 - bright).clamp(min=0)
    pattern = torch.where(mirror, MIRROR, PICTURE).float()
    frequency = materials[..., MaterialColumns.PATTERN_FREQUENCY] * draws.log_uniform(0.08, 0.35, M)
    contrast = draws.uniform(0.3, 1.0, M)
    gloss = torch.where(mirror, draws.uniform(0.3, 0.9, M), materials[..., MaterialColumns.GLOSS])
    for column, values in (
        (MaterialColumns.COLOUR, dark),
        (MaterialColumns.COLOUR + 3, bright),
        (MaterialColumns.PATTERN, pattern[..., None]),
        (MaterialColumns.PATTERN_FREQUENCY, frequency[..., None]),
        (MaterialColumns.NOISE_CONTRAST, contrast[..., None]),
        (MaterialColumns.GLOSS, gloss[..., None]),
    ):
        own = materials[..., column : column + values.shape[-1]]
        own.copy_(torch.where(either[..., None], values, own))
    return materials


def draw_photo_effects(draws: Draws, num_views: int) -> PhotoEffects:
    """Exposure, white balance, tone and noise as different cameras and hours have them; JPEG is in the look."""
    V = num_views
    warm = torch.tensor([1.0, 0.0, -1.0])
    balance = 0.15 * draws.normal(V, 1).clamp(-2.5, 2.5) * warm + 0.035 * draws.normal(V, 3)
    exposure = 0.15 * draws.normal(1, 1) + 0.38 * draws.normal(V, 1)
    dusk = draws.chance(DUSK_SHARE, V)
    cold = draws.uniform(0, 1, V, 1) * torch.tensor([-0.35, -0.1, 0.3])
    exposure = (exposure + draws.uniform(-1.5, -0.7, V, 1) * dusk[..., None]).clamp(-1.7, 0.75)
    gain = exposure + balance + cold * dusk[..., None]
    noise = draws.log_uniform(0.002, 0.04, V) * torch.where(dusk, 1.8, 1.0)
    return PhotoEffects(
        gain=1.15 * gain.exp(),
        gamma=0.7 * (0.22 * draws.normal(V).clamp(-2, 2)).exp(),
        blur=torch.where(draws.chance(0.6, V), draws.uniform(-0.5, 0.9, V), 0.0),  # below zero it sharpens
        noise=noise,
        vignette=torch.where(draws.chance(0.6, V), draws.uniform(0, 0.55, V), 0.0),
        jpeg=torch.zeros(draws.batch, V),
        seed=draws.integers(0, 1 << 20, V).float(),
    )


def _draw_patches(draws: Draws, num_views: int) -> torch.Tensor:
    """(B, V, PatchColumns.WIDTH): in most pairs that have one, one view has it."""
    V = num_views
    has = draws.chance(PATCH_SHARE, 1) & (
        torch.nn.functional.one_hot(draws.integers(0, V), V).bool() | draws.chance(0.2, 1)
    )
    centre = draws.uniform(-0.5, 0.5, V, 2)
    half = draws.log_uniform(0.04, 0.28, V, 1) * draws.log_uniform(0.5, 2.0, V, 2)
    power = torch.where(draws.chance(0.4, V), draws.uniform(4, 10, V), 2.0)
    waves = torch.where(draws.chance(0.6, V), draws.uniform(0.1, 0.45, V), 0.0)
    plain = torch.where(draws.chance(0.4, V), draws.uniform(0.7, 1.0, V), draws.uniform(0, 0.3, V))
    numbers = [draws.uniform(0, 6.28, V), power, waves, draws.uniform(0, 6.28, V), plain]
    row = torch.cat([has.float()[..., None], centre, half, torch.stack(numbers, -1), draws.uniform(0, 0.9, V, 3)], -1)
    assert row.shape[-1] == PatchColumns.WIDTH
    return row


def _draw_colours(draws: Draws, num_views: int) -> torch.Tensor:
    """(B, V, 3, 4) maps: contrast about the middle, saturation, a veil of stray light, at times no colour or sepia."""
    V = num_views
    contrast = (0.22 * draws.normal(V)).clamp(-0.5, 0.5).exp()[..., None, None]
    saturation = (0.3 * draws.normal(V)).clamp(-0.8, 0.6).exp()
    colourless = draws.chance(COLOURLESS_SHARE, V)
    saturation = torch.where(colourless, 0.0, saturation)[..., None, None]
    grey = torch.tensor(LUMA).expand(3, 3)
    sepia = torch.tensor([0.08, 0.0, -0.12]) * (colourless & draws.chance(0.4, V))[..., None]
    tint = 1 + sepia + 0.03 * draws.normal(V, 3)
    matrix = contrast * tint[..., None] * (saturation * torch.eye(3) + (1 - saturation) * grey)
    veil = torch.where(draws.chance(0.3, V), draws.uniform(0, 0.12, V), draws.uniform(-0.03, 0.02, V))
    offset = 0.5 * (1 - contrast) + veil[..., None, None]
    return torch.cat([matrix, offset.expand(-1, -1, 3, 1)], -1)


def _draw_quality(draws: Draws, num_views: int) -> torch.Tensor:
    """(B, V, 2, 8, 8) quantisation steps between those of quality 97 and 17, most often about 85."""
    scale = draws.log_uniform(0.06, 1.0, num_views) * torch.where(draws.chance(0.25, num_views), 3.0, 1.0)
    scale = scale * draws.chance(COMPRESSED_SHARE, num_views)
    chroma = torch.full((8, 8), 99.0)
    chroma[:4, :4] = torch.tensor(CHROMA_STEPS, dtype=torch.float32)
    return scale[..., None, None, None] * torch.stack([torch.tensor(LUMA_STEPS), chroma]) / 255


def draw_look(draws: Draws, scenes: Scenes, chosen: torch.Tensor, usual: torch.Tensor, jpeg: torch.Tensor) -> Look:
    """Differences between the views of chosen pairs (B,), none in others; in usual scenes (B,) things are missing.

    jpeg  (B, V) `PhotoEffects.jpeg` of the pairs that are not chosen
    """
    V = jpeg.shape[1]
    fresh = draw_lights(draws, scenes.outdoor > 0.5)
    relit = draws.chance(OTHER_LIGHT_SHARE) & chosen
    second = torch.where(relit[:, None], fresh, scenes.lights)
    lights = torch.stack([scenes.lights] + (V - 1) * [second], 1)

    gone = draws.chance(0.3, V, NUM_ITEMS) & (draws.chance(MISSING_SHARE) & chosen & usual)[:, None, None]
    gone[:, 1:] &= ~gone[:, :1]
    present = torch.ones(draws.batch, V, NUM_OBJECTS)
    present[..., :NUM_SOLIDS] -= gone.repeat_interleave(SLOTS_PER_ITEM, -1).float()

    hazy = (draws.chance(HAZE_SHARE) & chosen)[:, None]
    hazy = hazy * torch.where(scenes.outdoor > 0.5, 1.0, 0.3)[:, None]
    haze = draws.log_uniform(0.003, 0.03, 1) * draws.log_uniform(0.5, 2.0, V) * hazy
    white = draws.uniform(0.45, 0.95, V, 1) * torch.exp(0.05 * draws.normal(V, 3))
    horizon = lights[..., LightColumns.HORIZON : LightColumns.HORIZON + 3]

    patch = _draw_patches(draws, V)
    patch[..., PatchColumns.ACTIVE] *= chosen[:, None]
    blurred = draws.uniform(0, 1, V, 2) ** 2 * draws.chance(0.2, V, 1)
    soft = torch.where(draws.chance(0.5, V, 1), blurred, blurred.amax(-1, keepdim=True)) * chosen[:, None, None]
    same = torch.cat([torch.eye(3), torch.zeros(3, 1)], -1)
    k = torch.arange(8.0)
    plain = jpeg[..., None, None, None] * (1 + 0.5 * (k[:, None] + k))
    pick = chosen[:, None, None, None]
    return Look(
        lights=lights,
        present=present,
        haze=haze,
        haze_colour=0.5 * (horizon + white),
        patch=patch,
        soft=soft,
        colour=torch.where(pick, _draw_colours(draws, V), same),
        quality=torch.where(pick[..., None], _draw_quality(draws, V), plain),
    )


def with_statues(draws: Draws, scenes: Scenes, where: torch.Tensor) -> Scenes:
    """The scenes with some statues in those `where` (B,)."""
    return raise_statues(draws, scenes, draws.chance(STATUES_SHARE, NUM_ITEMS) & where[:, None])


def cleared(scenes: Scenes, eye: torch.Tensor, where: torch.Tensor) -> Scenes:
    """`clear_view` of the scenes `where` (B,)."""
    objects = torch.where(where[:, None, None], clear_view(scenes, eye).objects, scenes.objects)
    return scenes._replace(objects=objects)
