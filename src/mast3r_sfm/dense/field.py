"""The factor of the predicted depth as a smooth field: minimised is

    sum_pixels w_p (h_p - o_p)^2 + sum_neighbours s_pq (h_p - h_q)^2 + sum_pixels (h_p - h0_p)^2

over the logarithm h of the factor, with observations o of weight w, and s_pq small where the predicted depth jumps.
Conjugate gradients on the pixels, for all views of one size at once.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

SMOOTH_SIGMA = 0.01
"""Spread of the factor's logarithm between neighbouring pixels of one surface."""

EDGE = 0.05
"""Neighbours whose predicted log depths differ by more lie on two surfaces."""


@dataclass(frozen=True)
class Stiffness:
    """s between neighbours in rows (B, H, W - 1) and in columns (B, H - 1, W)."""

    across: torch.Tensor
    down: torch.Tensor

    @classmethod
    def of(cls, relief: torch.Tensor) -> Stiffness:
        """Of predicted log depths (B, H, W)."""

        def between(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
            return torch.exp(-(((a - b) / EDGE) ** 2)) / SMOOTH_SIGMA**2

        return cls(between(relief[..., 1:], relief[..., :-1]), between(relief[:, 1:], relief[:, :-1]))

    def times(self, h: torch.Tensor) -> torch.Tensor:
        """Half the gradient of the second sum."""
        across, down = self.across * (h[..., 1:] - h[..., :-1]), self.down * (h[:, 1:] - h[:, :-1])
        result = torch.zeros_like(h)
        result[..., 1:] += across
        result[..., :-1] -= across
        result[:, 1:] += down
        result[:, :-1] -= down
        return result

    def diagonal(self) -> torch.Tensor:
        """(B, H, W)"""
        B, H = self.across.shape[:2]
        result = self.across.new_zeros(B, H, self.down.shape[2])
        result[..., 1:] += self.across
        result[..., :-1] += self.across
        result[:, 1:] += self.down
        result[:, :-1] += self.down
        return result


def solve_field(
    stiffness: Stiffness, weight: torch.Tensor, observed: torch.Tensor, start: torch.Tensor, iterations: int
) -> torch.Tensor:
    """(B, H, W): the field, by `iterations` steps from `start`, to which pixels that nothing observes are drawn.

    weight, observed  (B, H, W) w and o, finite
    """
    weight_and_prior = weight + 1
    scale = 1 / (weight_and_prior + stiffness.diagonal())
    h = start
    residual = weight * (observed - h) - stiffness.times(h)
    direction = scale * residual
    size = _dot(residual, direction)
    for _ in range(iterations):
        changed = weight_and_prior * direction + stiffness.times(direction)
        step = size / _dot(direction, changed).clamp_min(1e-20)
        h = h + step * direction
        residual = residual - step * changed
        scaled = scale * residual
        size, before = _dot(residual, scaled), size
        direction = scaled + (size / before.clamp_min(1e-20)) * direction
    return h


def _dot(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return (a * b).sum((1, 2), keepdim=True)
