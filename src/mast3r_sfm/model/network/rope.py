"""2-D rotary position embedding (docs/method.md, Rotary positions)."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch


class RopeTable(NamedTuple):
    """Rotation of every token of a grid: `cos` and `sin`, (N, head_dim) float32.

    A head vector reads [u_y | v_y | u_x | v_x]; (u, v) is rotated by position * frequency. The signs
    of u' = u cos - v sin and v' = v cos + u sin are folded into `sin`.
    """

    cos: torch.Tensor
    sin: torch.Tensor


@lru_cache(maxsize=64)
def rope_table(grid: tuple[int, int], head_dim: int, base: float, device: torch.device) -> RopeTable:
    """Table for the tokens of a `grid` of (rows, columns), row-major, positions starting at (0, 0)."""
    rows, columns = grid
    quarter = head_dim // 4
    frequency = 1.0 / base ** (torch.arange(quarter, dtype=torch.float32) / quarter)
    y = torch.arange(rows, dtype=torch.float32).repeat_interleave(columns)
    x = torch.arange(columns, dtype=torch.float32).repeat(rows)
    angles = torch.stack([torch.outer(y, frequency), torch.outer(x, frequency)], 1)  # (N, axis, quarter)
    cos = angles.cos()[:, :, None].expand(-1, -1, 2, -1)
    sin = torch.stack([-angles.sin(), angles.sin()], 2)
    return RopeTable(cos.reshape(-1, head_dim).to(device), sin.reshape(-1, head_dim).to(device))


def rotate(heads: torch.Tensor, table: RopeTable) -> torch.Tensor:
    """Rotates the vectors of heads (B, N, heads, head_dim); angles in float32, result in the vectors' own dtype."""
    swapped = heads.unflatten(-1, (2, 2, -1)).flip(-2).flatten(-3)
    cos, sin = table.cos[:, None], table.sin[:, None]
    return torch.addcmul(heads * cos, swapped.to(sin.dtype), sin).to(heads.dtype)
