"""What photos of one place differ in: light, weather, camera processing, and things that are in one of them only.

`photograph.py` draws it; the functions here apply it to rendered views on the device that they lie on.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import torch
import torch.nn.functional as F

from .layout import ObjectColumns, Scenes
from .photo import PhotoEffects, blurred, cosine_basis, expose, with_grain

SKY_DISTANCE = 300.0
"""Units of length of the scene through which the sky is seen, as far as haze goes."""

LUMA = (0.299, 0.587, 0.114)
_TO_YCC = ((0.299, 0.587, 0.114), (-0.168736, -0.331264, 0.5), (0.5, -0.418688, -0.081312))
_FROM_YCC = ((1.0, 0.0, 1.402), (1.0, -0.344136, -0.714136), (1.0, 1.772, 0.0))


class PatchColumns:
    """Columns of `Look.patch`: an outline in longer sides of the image, from its centre, and what is in it."""

    ACTIVE = 0
    CENTRE = 1  # 2
    HALF_SIZE = 3  # 2
    ANGLE = 5
    POWER = 6  # 2: an ellipse, larger: a rounded box
    WAVES = 7  # how far its outline goes in and out
    PHASE = 8
    PLAIN = 9  # share of the plain colour; the rest is a piece of the next pair's view
    COLOUR = 10  # 3
    WIDTH = 13


class Look(NamedTuple):
    """Differences between the views of B pairs, float32, V = 2. Beside them `PhotoEffects` has what all photos have.

    lights       (B, V, LightColumns.WIDTH) instead of those of the scene
    present      (B, V, NUM_OBJECTS) 0 for what is not there in a view
    haze         (B, V) share of light that a unit of length takes away, as exp(-haze x distance)
    haze_colour  (B, V, 3) linear
    patch        (B, V, PatchColumns.WIDTH) something before the scene
    soft         (B, V, 2) 0 to 1: blur of two pixels across and down, on top of that of the effects
    colour       (B, V, 3, 4) affine map of the colours after the tone curve: contrast, saturation, tint
    quality      (B, V, 2, 8, 8) quantisation steps of brightness and of the two colour differences; 0: none
    """

    lights: torch.Tensor
    present: torch.Tensor
    haze: torch.Tensor
    haze_colour: torch.Tensor
    patch: torch.Tensor
    soft: torch.Tensor
    colour: torch.Tensor
    quality: torch.Tensor

    def to(self, device: torch.device | str) -> Look:
        return Look(*(tensor.to(device, non_blocking=True) for tensor in self))

    def of_view(self, view: int) -> Look:
        """The look of one of the views, with V = 1."""
        return Look(*(tensor[:, view : view + 1] for tensor in self))


def scenes_of(scenes: Scenes, look: Look) -> Scenes:
    """The scenes as they are in the one view of a look."""
    objects = scenes.objects.clone()
    objects[..., ObjectColumns.ACTIVE] *= look.present[:, 0]
    return scenes._replace(objects=objects, lights=look.lights[:, 0])


def add_haze(colour: torch.Tensor, t: torch.Tensor, look: Look) -> torch.Tensor:
    """Linear colours (B, P, 3) of one view through haze, at ray parameters t (B, P), 0 for the sky."""
    distance = torch.where(t > 0, t, SKY_DISTANCE)
    share = 1 - torch.exp(-look.haze * distance)
    return colour + (look.haze_colour - colour) * share[..., None]


def hide_behind_patch(colour: torch.Tensor, look: Look, shape: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Linear colours (B, P, 3) of one view with its patch, and where that is, (B, P) bool."""
    H, W = shape
    patch = look.patch[:, 0]
    row = (torch.arange(H, device=colour.device) - (H - 1) / 2) / max(H, W)
    column = (torch.arange(W, device=colour.device) - (W - 1) / 2) / max(H, W)
    x = (column - patch[:, PatchColumns.CENTRE, None])[:, None, :]
    y = (row - patch[:, PatchColumns.CENTRE + 1, None])[:, :, None]
    c, s = patch[:, PatchColumns.ANGLE].cos()[:, None, None], patch[:, PatchColumns.ANGLE].sin()[:, None, None]
    half = patch[:, PatchColumns.HALF_SIZE : PatchColumns.HALF_SIZE + 2].clamp(min=1e-3)[..., None, None]
    u, v = (c * x + s * y) / half[:, 0], (c * y - s * x) / half[:, 1]
    power, waves = patch[:, PatchColumns.POWER, None, None], patch[:, PatchColumns.WAVES, None, None]
    around = torch.atan2(v, u)
    phase = patch[:, PatchColumns.PHASE, None, None]
    reach = 1 + waves * (torch.sin(3 * around + phase) + 0.5 * torch.sin(7 * around + 3 * phase))
    inside = u.abs().clamp(min=1e-3) ** power + v.abs().clamp(min=1e-3) ** power < reach
    inside = (inside & (patch[:, PatchColumns.ACTIVE, None, None] > 0.5)).flatten(1)
    plain = patch[:, PatchColumns.PLAIN, None, None]
    painted = patch[:, None, PatchColumns.COLOUR : PatchColumns.COLOUR + 3]
    content = colour.roll(1, 0) * (1 - plain) + painted * plain
    return torch.where(inside[..., None], content, colour), inside


def develop_as(colour: torch.Tensor, effects: PhotoEffects, look: Look, shape: tuple[int, int]) -> torch.Tensor:
    """`photo.develop` for one view, with its look: images (B, 1, 3, H, W) from linear colours (B, 1, H * W, 3)."""
    x = map_colours(expose(colour, effects, shape), look.colour.flatten(0, 1))
    x = with_grain(soften(blurred(x, effects), look.soft.flatten(0, 1)), effects)
    # a camera has no other values to compress
    return compress(x.clamp(0, 1), look.quality.flatten(0, 1)).clamp(0, 1).unflatten(0, colour.shape[:2])


def soften(x: torch.Tensor, soft: torch.Tensor) -> torch.Tensor:
    """Images (N, 3, H, W) blurred by soft (N, 2): more across than down looks like motion, both like bad focus."""
    across, down = (0.33 * soft[:, k, None, None, None] for k in range(2))
    p = F.pad(x, (2, 2, 2, 2), mode="replicate")
    p = (p[..., :-4] + p[..., 4:]) * across + p[..., 2:-2] * (1 - 2 * across)
    return (p[..., :-4, :] + p[..., 4:, :]) * down + p[..., 2:-2, :] * (1 - 2 * down)


def map_colours(x: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Images (N, 3, H, W) under affine maps of their colours, rows (N, 3, 4) or (3, 4)."""
    rows = rows.expand(x.shape[0], 3, 4)
    return torch.baddbmm(rows[..., 3:], rows[..., :3], x.flatten(2)).view_as(x)


def compress(x: torch.Tensor, quality: torch.Tensor) -> torch.Tensor:
    """Images (N, 3, H, W) as JPEG would keep them: quantised cosine coefficients of 8 x 8 blocks, in YCbCr.

    quality  (N, 2, 8, 8) steps of brightness and colour; where both are 0 the image stays as it is
    """
    N, C, H, W = x.shape
    basis = cosine_basis(x.device)
    blocks = map_colours(x, _affine(_TO_YCC, x.device)).reshape(N, C, H // 8, 8, W // 8, 8).transpose(3, 4)
    step = torch.stack([quality[:, 0], quality[:, 1], quality[:, 1]], 1).clamp(min=1e-4)[:, :, None, None]
    rounded = basis.T @ (torch.round(basis @ blocks @ basis.T / step) * step) @ basis
    rounded = map_colours(rounded.transpose(3, 4).reshape(N, C, H, W), _affine(_FROM_YCC, x.device))
    return torch.where((quality.amax((1, 2, 3)) > 0)[:, None, None, None], rounded, x)


@cache
def _affine(rows: tuple[tuple[float, float, float], ...], device: torch.device) -> torch.Tensor:
    """(3, 4) map without an offset. Kept, because a CUDA graph cannot record a copy from the host's pageable memory."""
    return F.pad(torch.tensor(rows, device=device), (0, 1))
