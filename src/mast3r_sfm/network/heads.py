"""Heads: token list of one view -> points, confidence, descriptors (spec: network, section 6)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from mast3r_sfm.config import Activation, ModelConfig
from mast3r_sfm.network.blocks import Mlp
from mast3r_sfm.network.dpt import DPT

_POINT_CHANNELS = 4  # x, y, z, confidence
_CATCONV_CHANNELS = 25


class HeadOutput(NamedTuple):
    """Maps of a batch of views, float32: points (B, H, W, 3), conf (B, H, W), desc (B, H, W, D) and
    desc_conf (B, H, W), the last two None for DUSt3R."""

    points: torch.Tensor
    conf: torch.Tensor
    desc: torch.Tensor | None
    desc_conf: torch.Tensor | None


def unpatchify(features: torch.Tensor, grid: tuple[int, int], side: int) -> torch.Tensor:
    """(B, N, C * side^2) token features -> (B, rows * side, columns * side, C), channels last.

    Channel c * side^2 + dy * side + dx of token (y, x) becomes feature c of pixel (y side + dy, x side + dx).
    """
    rows, columns = grid
    blocks = features.reshape(features.shape[0], rows, columns, -1, side, side)
    return blocks.permute(0, 1, 4, 2, 5, 3).reshape(features.shape[0], rows * side, columns * side, -1)


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


class HalfResolutionPoints(nn.Module):
    """Points of the `catconv` head: an MLP to half resolution, then a small convolutional upsampling."""

    def __init__(self, width: int, patch_size: int) -> None:
        super().__init__()
        self.side = patch_size // 2
        self.mlp = Mlp(width, 4 * width, _CATCONV_CHANNELS * self.side**2)
        channels = 4 * _CATCONV_CHANNELS
        self.head = nn.Sequential(
            nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True),
            nn.Conv2d(_CATCONV_CHANNELS, channels, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(channels, _POINT_CHANNELS, 1),
        )

    def forward(self, tokens: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
        half = unpatchify(self.mlp(tokens), grid, self.side)
        return self.head(half.permute(0, 3, 1, 2))


class Head(nn.Module):
    """One view's head. Its parts depend on `config.head_type`; the names are those of the published weights."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        width = config.enc_embed_dim + config.dec_embed_dim
        if config.head_type in ("dpt", "catmlp+dpt"):
            self.dpt = DPT(config.enc_embed_dim, config.dec_embed_dim, config.dec_depth, _POINT_CHANNELS)
        elif config.head_type == "catconv":
            self.head_pts3d = HalfResolutionPoints(width, config.patch_size)
        else:
            self.proj = nn.Linear(config.dec_embed_dim, _POINT_CHANNELS * config.patch_size**2)
        if config.desc_dim is not None:
            channels = config.desc_dim + config.two_confs
            self.head_local_features = Mlp(width, 4 * width, channels * config.patch_size**2)

    def raw_points(self, tokens: list[torch.Tensor], grid: tuple[int, int]) -> torch.Tensor:
        """(B, H, W, 4) float32: x, y, z and confidence before the activations."""
        patch = self.config.patch_size
        if self.config.head_type in ("dpt", "catmlp+dpt"):
            maps = self.dpt(tokens, grid, (grid[0] * patch, grid[1] * patch)).permute(0, 2, 3, 1)
        elif self.config.head_type == "catconv":
            maps = self.head_pts3d(torch.cat([tokens[0], tokens[-1]], -1), grid).permute(0, 2, 3, 1)
        else:
            maps = unpatchify(self.proj(tokens[-1].to(self.proj.weight.dtype)), grid, patch)
        return maps.float()

    def forward(self, tokens: list[torch.Tensor], grid: tuple[int, int]) -> HeadOutput:
        """`tokens`: (B, N, width) each, index 0 the encoder's, then one per decoder block; `grid` (rows, columns)."""
        config = self.config
        raw = self.raw_points(tokens, grid)
        points = activate_points(raw[..., :3], config.depth_mode)
        conf = activate_confidence(raw[..., 3], config.conf_mode)
        if config.desc_dim is None:
            return HeadOutput(points, conf, None, None)
        both = torch.cat([tokens[0], tokens[-1]], -1)
        local = unpatchify(self.head_local_features(both), grid, config.patch_size).float()
        desc = F.normalize(local[..., : config.desc_dim], dim=-1, eps=0.0)
        if not config.two_confs:
            return HeadOutput(points, conf, desc, conf)
        desc_conf = activate_confidence(local[..., config.desc_dim], config.desc_conf_mode or config.conf_mode)
        return HeadOutput(points, conf, desc, desc_conf)
