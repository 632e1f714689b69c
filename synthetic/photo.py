"""From linear colours to a photo: exposure, vignette, lens blur, tone curve, sensor noise, JPEG blocks."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F

from .draws import Draws
from .noise import hash3, hash_unit


class PhotoEffects(NamedTuple):
    """Effects of a batch of images, float32 (B, V) unless said.

    gain (B, V, 3) exposure times white balance; gamma; blur 0 to 1 (share of a 3-tap binomial, applied twice);
    noise standard deviation; vignette loss in the corners; jpeg quantisation step (0: none); seed of the noise.
    """

    gain: torch.Tensor
    gamma: torch.Tensor
    blur: torch.Tensor
    noise: torch.Tensor
    vignette: torch.Tensor
    jpeg: torch.Tensor
    seed: torch.Tensor

    def to(self, device: torch.device | str) -> PhotoEffects:
        return PhotoEffects(*(tensor.to(device, non_blocking=True) for tensor in self))


def draw_effects(draws: Draws, num_views: int, strength: float = 1.0) -> PhotoEffects:
    """Random effects; `strength` scales how far exposure, blur and noise go (0: the same clean camera in all views)."""
    s, V = strength, num_views
    shared = torch.exp(0.15 * s * draws.normal(1, 1) + 0.04 * s * draws.normal(1, 3))
    exposure = torch.exp(0.15 * s * draws.normal(V, 1) + 0.04 * s * draws.normal(V, 3))
    return PhotoEffects(
        gain=1.15 * shared * exposure,
        gamma=0.7 * torch.exp(0.12 * s * draws.normal(V)),
        blur=torch.where(draws.chance(0.5, V), draws.uniform(0, 0.9, V), 0.0) * s,
        noise=draws.uniform(0.001, 0.03, V) * s,
        vignette=torch.where(draws.chance(0.5, V), draws.uniform(0, 0.35, V), 0.0) * s,
        jpeg=torch.where(draws.chance(0.4, V), draws.uniform(0.01, 0.07, V), 0.0) * s,
        seed=draws.integers(0, 1 << 20, V).float(),
    )


def draw_strong_effects(draws: Draws, num_views: int, share: float = 0.5) -> PhotoEffects:
    """`draw_effects` with strong changes of exposure and of white balance between the views of a `share` of scenes."""
    effects = draw_effects(draws, num_views)
    change = 0.35 * draws.normal(num_views, 1) + 0.15 * draws.normal(num_views, 3)
    return effects._replace(gain=effects.gain * torch.exp(change.clamp(-0.9, 0.9) * draws.chance(share, 1, 1)))


def cosine_basis(device: torch.device) -> torch.Tensor:
    """(8, 8): each row one cosine of the transform of JPEG, of unit length."""
    k = torch.arange(8, device=device, dtype=torch.float32)
    basis = torch.cos((2 * k[None] + 1) * k[:, None] * math.pi / 16) * 0.5
    return basis * torch.where(k[:, None] == 0, math.sqrt(0.5), 1.0)


def _jpeg(x: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
    """Rounds the 8 x 8 cosine coefficients of images (N, 3, H, W), more coarsely the finer they are; step (N,)."""
    N, C, H, W = x.shape
    basis = cosine_basis(x.device)
    blocks = x.reshape(N, C, H // 8, 8, W // 8, 8).transpose(3, 4)
    coefficients = basis @ blocks @ basis.T
    k = torch.arange(8, device=x.device, dtype=torch.float32)
    size = step.clamp(min=1e-4)[:, None, None, None, None, None] * (1 + 0.5 * (k[:, None] + k))
    rounded = basis.T @ (torch.round(coefficients / size) * size) @ basis
    rounded = rounded.transpose(3, 4).reshape(N, C, H, W)
    return torch.where((step > 0)[:, None, None, None], rounded, x)


def expose(colour: torch.Tensor, effects: PhotoEffects, shape: tuple[int, int]) -> torch.Tensor:
    """Images (B * V, 3, H, W) after vignette and tone curve, from linear colours (B, V, H * W, 3)."""
    B, V = colour.shape[:2]
    H, W = shape
    gain, gamma, vignette = (x.flatten(0, 1) for x in (effects.gain, effects.gamma, effects.vignette))
    x = colour.reshape(B * V, H, W, 3).permute(0, 3, 1, 2)
    row = torch.arange(H, device=x.device, dtype=torch.float32)
    column = torch.arange(W, device=x.device, dtype=torch.float32)
    radius2 = ((row[:, None] - (H - 1) / 2) ** 2 + (column - (W - 1) / 2) ** 2) * (4 / (H * H + W * W))
    x = x * gain[:, :, None, None] * (1 - vignette[:, None, None, None] * radius2)
    x = 1 - torch.exp(-1.6 * x.clamp(min=0))  # a film-like shoulder instead of hard clipping
    return x.clamp(min=1e-4) ** gamma[:, None, None, None]


def blurred(x: torch.Tensor, effects: PhotoEffects) -> torch.Tensor:
    """Images (B * V, 3, H, W) blurred, or sharpened where `effects.blur` is below zero."""
    share = 0.25 * effects.blur.flatten(0, 1)[:, None, None, None]
    for _ in range(2):
        p = F.pad(x, (1, 1, 1, 1), mode="replicate")
        p = (p[..., :-2] + p[..., 2:]) * share + p[..., 1:-1] * (1 - 2 * share)
        x = (p[..., :-2, :] + p[..., 2:, :]) * share + p[..., 1:-1, :] * (1 - 2 * share)
    return x


def with_grain(x: torch.Tensor, effects: PhotoEffects) -> torch.Tensor:
    """Images (B * V, 3, H, W) with the noise of a sensor."""
    H, W = x.shape[-2:]
    r = torch.arange(H, device=x.device, dtype=torch.int32)[:, None]
    c = torch.arange(W, device=x.device, dtype=torch.int32)
    seed = effects.seed.flatten(0, 1).to(torch.int32)[:, None, None]
    bits = (
        hash3(c + 0 * r, r + 0 * c, torch.zeros_like(seed), seed),
        hash3(c + 0 * r, r + 0 * c, torch.ones_like(seed), seed),
    )
    grain = torch.stack([hash_unit(bits[0], k) + hash_unit(bits[1], k) - 1 for k in range(3)], 1)
    noise = effects.noise.flatten(0, 1)[:, None, None, None]
    return x + grain * (2.45 * noise) * (0.6 + 0.8 * x)  # 2.45: unit variance


def develop(colour: torch.Tensor, effects: PhotoEffects, shape: tuple[int, int]) -> torch.Tensor:
    """Images (B, V, 3, H, W) in [0, 1] from linear colours (B, V, H * W, 3); shape is (H, W), multiples of 8."""
    x = with_grain(blurred(expose(colour, effects, shape), effects), effects)
    return _jpeg(x, effects.jpeg.flatten(0, 1)).clamp(0, 1).unflatten(0, colour.shape[:2])
