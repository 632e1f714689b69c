"""Random materials: colours, patterns and gloss of every surface."""

from __future__ import annotations

import torch

from .draws import Draws
from .layout import (
    FACE_CEILING,
    FACE_FLOOR,
    FACE_X0,
    NUM_ITEMS,
    NUM_LEAVES,
    NUM_SOLIDS,
    NUM_SURFACES,
    SLOTS_PER_ITEM,
    MaterialColumns,
)
from .templates import CLUTTER_INDEX

NOISE, STRIPES, CHECKER, BRICKS, DOTS, PATCHES, WINDOWS, PLANKS, PICTURE, MIRROR = range(10)
"""Patterns. `PICTURE` is one of the `pictures`, whose tiles a metre the pattern's frequency gives; `MIRROR` shows one
as a surrounding that it reflects. `draw_materials` gives out the others, `photograph.draw_surfaces` these two."""


def draw_materials(draws: Draws, templates: torch.Tensor, outdoor: torch.Tensor) -> torch.Tensor:
    """(B, NUM_SURFACES, MaterialColumns.WIDTH) for items of the given templates (B, NUM_ITEMS)."""
    M = NUM_SURFACES
    surface = torch.arange(M)
    hull = surface >= FACE_X0
    colours = draws.uniform(0.06, 0.92, M, 3, 3)
    grey = colours.mean(-1, keepdim=True)
    saturation = torch.where(draws.chance(0.5, M, 1, 1), 0.25, draws.uniform(0.4, 1.0, M, 1, 1))
    colours = grey + saturation * (colours - grey)
    # most materials are shades of one colour, warm more often than cold
    warm = torch.tensor([1.12, 1.0, 0.84]) ** draws.uniform(-0.5, 2.0, M, 1, 1)
    shades = colours[:, :, :1] * warm * draws.log_uniform(0.55, 1.6, M, 3, 1) * torch.exp(0.06 * draws.normal(M, 3, 3))
    colours = torch.where(draws.chance(0.65, M, 1, 1), shades, colours).clamp(0.03, 0.95)

    pattern = torch.where(draws.chance(0.4, M), NOISE, draws.integers(1, 8, M))
    pattern_frequency = draws.log_uniform(1.5, 14.0, M) * torch.where(hull, 0.6, 1.0)
    noise_frequency = draws.log_uniform(0.8, 5.0, M) * torch.where(hull, 0.7, 1.0)
    # equal contrast in every octave is the 1/f amplitude spectrum of photographs
    decay = draws.uniform(0.45, 1.0, M)
    contrast = draws.uniform(0.2, 0.9, M)
    cell_contrast = draws.uniform(0.15, 0.9, M)
    glossy = draws.chance(0.35, M) & ~hull
    gloss = torch.where(glossy, draws.uniform(0.15, 0.9, M), draws.uniform(0.0, 0.06, M))
    gloss = torch.where((surface == FACE_FLOOR) & draws.chance(0.25, M) & ~outdoor[:, None], 0.3, gloss)
    shininess = draws.log_uniform(6.0, 120.0, M)

    # ceilings and some walls are plain paint; foliage is green to brown; the ground is not glossy
    plain = draws.chance(0.3, M) & (hull & (surface != FACE_FLOOR)) | ((surface == FACE_CEILING) & draws.chance(0.6, M))
    pattern = torch.where(plain, NOISE, pattern)
    contrast = torch.where(plain, 0.12, contrast)
    leafy = (surface >= NUM_SOLIDS) & (surface < NUM_SOLIDS + NUM_LEAVES)
    green = (
        torch.tensor([0.16, 0.34, 0.08])
        * draws.log_uniform(0.6, 1.9, M, 3, 1)
        * torch.exp(0.22 * draws.normal(M, 3, 3))
    )
    natural = leafy | ((surface == FACE_FLOOR) & outdoor[:, None] & draws.chance(0.5, 1))
    earth = (
        torch.tensor([0.42, 0.33, 0.2]) * draws.log_uniform(0.6, 1.6, M, 3, 1) * torch.exp(0.12 * draws.normal(M, 3, 3))
    )
    growth = torch.where(draws.chance(0.8, M, 1, 1), green, earth).clamp(0.02, 0.95)
    colours = torch.where(natural[..., None, None], growth, colours)
    pattern = torch.where(natural, torch.where(draws.chance(0.5, M), NOISE, PATCHES), pattern)
    noise_frequency = torch.where(leafy, draws.log_uniform(5.0, 14.0, M), noise_frequency)
    pattern_frequency = torch.where(natural, noise_frequency, pattern_frequency)

    rows = torch.cat(
        [
            colours.flatten(-2),
            torch.stack([pattern.float(), pattern_frequency, noise_frequency, decay, contrast], -1),
            draws.directions(M),
            draws.uniform(5, 60, M, 3),
            torch.stack([draws.integers(0, 1 << 20, M).float(), cell_contrast, gloss, shininess], -1),
        ],
        -1,
    )
    assert rows.shape[-1] == MaterialColumns.WIDTH
    # the parts of a piece of furniture often share a material with its first part
    shares = draws.chance(0.55, NUM_ITEMS, SLOTS_PER_ITEM) & (templates != CLUTTER_INDEX)[..., None]
    items = rows[:, :NUM_SOLIDS].unflatten(1, (NUM_ITEMS, SLOTS_PER_ITEM))
    items = torch.where(shares[..., None], items[:, :, :1], items)
    return torch.cat([items.flatten(1, 2), rows[:, NUM_SOLIDS:]], 1)


def faded(materials: torch.Tensor, contrast: float) -> torch.Tensor:
    """The materials with `contrast` times the differences within each surface; its mean colour about stays.

    materials  (B, NUM_SURFACES, MaterialColumns.WIDTH); surfaces still differ from each other as before
    """
    rows = materials.clone()
    shades = rows[..., MaterialColumns.COLOUR : MaterialColumns.COLOUR + 6].unflatten(-1, (2, 3))
    mean = shades.mean(-2, keepdim=True)
    rows[..., MaterialColumns.COLOUR : MaterialColumns.COLOUR + 6] = (mean + contrast * (shades - mean)).flatten(-2)
    rows[..., MaterialColumns.NOISE_CONTRAST] *= contrast
    rows[..., MaterialColumns.CELL_CONTRAST] *= contrast
    return rows
