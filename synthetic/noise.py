"""Integer hashes and value noise: the same numbers on every device, with no state."""

from __future__ import annotations

import math

import torch


def hash3(x: torch.Tensor, y: torch.Tensor, z: torch.Tensor, seed: torch.Tensor | int) -> torch.Tensor:
    """Mixes three int32 lattice coordinates and a seed into int32 bits (wrapping arithmetic)."""
    h = (x * 73856093) ^ (y * 19349663) ^ (z * 83492791) ^ (seed * 668265263)
    h = (h ^ (h >> 15)) * 739982445
    h = (h ^ (h >> 12)) * 695872825
    return h ^ (h >> 15)


def hash_unit(bits: torch.Tensor, part: int) -> torch.Tensor:
    """One of three independent numbers in [0, 1] from hashed bits; part is 0, 1 or 2."""
    return ((bits >> (10 * part)) & 1023).float() * (1 / 1023)


def value_noise(
    q: torch.Tensor,
    frequency: torch.Tensor,
    decay: torch.Tensor,
    footprint: torch.Tensor,
    seed: torch.Tensor,
    octaves: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Three channels of fractal value noise, each about in [-0.5, 0.5] for its first octave.

    q (..., 3) metres; frequency (...) cells per metre of the first octave, each further one 2.8 times finer;
    decay (...) amplitude from octave to octave; footprint (...) metres a pixel, octaves finer than that fade
    out; seed (...) int32. All octaves and cell corners go into one reduction over the last axis.
    """
    lane = torch.arange(octaves * 8, device=q.device, dtype=torch.int32)
    octave, corner = lane // 8, lane % 8
    f = frequency[..., None] * torch.exp(math.log(2.8) * octave.float())
    weight = torch.exp(decay.log()[..., None] * octave.float()) * (1.6 - 2.4 * f * footprint[..., None]).clamp(0, 1)
    index: list[torch.Tensor] = []
    for k in range(3):
        up = (corner >> k) & 1
        x = q[..., k, None] * f
        floor = x.floor()
        s = x - floor
        s = s * s * (3 - 2 * s)
        weight = weight * torch.where(up > 0, s, 1 - s)
        index.append(floor.to(torch.int32) + up)
    bits = hash3(index[0], index[1], index[2], seed[..., None] + octave)
    channels = [(weight * (hash_unit(bits, c) - 0.5)).sum(-1) for c in range(3)]
    return channels[0], channels[1], channels[2]
