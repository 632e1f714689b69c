"""What both searches share: how the maps of a pair are read, where the search starts and when it gives up."""

from __future__ import annotations

import torch

from mast3r_sfm.types import PairPrediction, ViewPrediction

MAX_ITERATIONS = 10
"""Trips to the other map and back after which a seed that still moves is dropped."""


def seed_grid(height: int, width: int, subsample: int, device: torch.device | None = None) -> torch.Tensor:
    """(n,) int64 flat indices of the pixels at S//2, S//2 + S, ... on both axes, row-major."""
    half = subsample // 2
    rows = torch.arange(half, max(height, half), subsample, device=device)
    columns = torch.arange(half, max(width, half), subsample, device=device)
    return (rows[:, None] * width + columns).flatten()


def passes(prediction: PairPrediction) -> tuple[tuple[ViewPrediction, ViewPrediction], ...]:
    """The two decodings of a pair, each as (view i, view j)."""
    return (prediction.i_in_i, prediction.j_in_i), (prediction.i_in_j, prediction.j_in_j)


def descriptors(view: ViewPrediction) -> tuple[torch.Tensor, torch.Tensor]:
    """Descriptors (H, W, D) and their confidence (H, W) of a MASt3R prediction."""
    assert view.desc is not None and view.desc_conf is not None  # checked where predictions come in
    return view.desc, view.desc_conf


def flat_to_xy(index: torch.Tensor, width: int) -> torch.Tensor:
    """Flat pixel indices (M,) -> (M, 2) int32 (x, y)."""
    return torch.stack([index % width, index // width], -1).to(torch.int32)


def xy_to_flat(xy: torch.Tensor, width: int) -> torch.Tensor:
    """(M, 2) pixels (x, y) -> (M,) int64 flat indices."""
    return xy[:, 1].long() * width + xy[:, 0].long()
