"""From what the last layers give to maps: tokens spread over their pixels, and the output activations."""

from __future__ import annotations

import torch
from einops import rearrange

from mast3r_sfm.model.config import Activation


def unpatchify(features: torch.Tensor, grid: tuple[int, int], side: int) -> torch.Tensor:
    """(B, N, C * side^2) token features -> (B, rows * side, columns * side, C), channels last.

    Channel c * side^2 + dy * side + dx of token (y, x) becomes feature c of pixel (y side + dy, x side + dx).
    """
    pattern = "b (rows columns) (c dy dx) -> b (rows dy) (columns dx) c"
    return rearrange(features, pattern, rows=grid[0], columns=grid[1], dy=side, dx=side)


def activate_points(raw: torch.Tensor, mode: Activation) -> torch.Tensor:
    """(..., 3) raw -> points; the norm is mapped, the direction kept."""
    if mode.name == "linear":
        return raw
    norm = raw.norm(dim=-1, keepdim=True)
    direction = raw / norm.clamp(min=1e-8)
    return direction * (torch.expm1(norm) if mode.name == "exp" else norm.square())


def activate_confidence(raw: torch.Tensor, mode: Activation) -> torch.Tensor:
    """Raw -> confidence in [low, high]."""
    if mode.name == "exp":
        return mode.low + raw.exp().clamp(max=mode.high - mode.low)
    return (mode.high - mode.low) * raw.sigmoid() + mode.low
