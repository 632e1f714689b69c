"""Heads: token list of one view -> points, confidence, descriptors (docs/method.md, Heads)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn

from mast3r_sfm.model.config import ModelConfig
from mast3r_sfm.model.network.blocks import Mlp
from mast3r_sfm.model.network.dpt import DPT, Tokens
from mast3r_sfm.model.network.maps import activate_confidence, activate_points, unpatchify
from mast3r_sfm.model.network.operations import Operations

_POINT_CHANNELS = 4  # x, y, z, confidence
_CATCONV_CHANNELS = 25


class HeadOutput(NamedTuple):
    """Maps of a batch of views, float32: points (B, H, W, 3), conf (B, H, W), desc (B, H, W, D) and
    desc_conf (B, H, W), the last two None for DUSt3R."""

    points: torch.Tensor
    conf: torch.Tensor
    desc: torch.Tensor | None
    desc_conf: torch.Tensor | None


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

    def forward(self, tokens: torch.Tensor, grid: tuple[int, int], ops: Operations) -> torch.Tensor:
        half = unpatchify(self.mlp(tokens, ops), grid, self.side)
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

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers whose tokens this head reads."""
        config = self.config
        ends = () if config.head_type in ("linear", "dpt") else (0,)
        hooks = self.dpt.hooks if hasattr(self, "dpt") else ()
        return tuple(sorted({*ends, *hooks, config.dec_depth}))

    def _ends(self, tokens: Tokens) -> torch.Tensor:
        """(B, N, enc + dec) tokens of the encoder and of the last decoder block."""
        return torch.cat([tokens[0], tokens[self.config.dec_depth]], -1)

    def points_and_conf(
        self, tokens: Tokens, grid: tuple[int, int], ops: Operations
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, H, W, 3) points and (B, H, W) confidence, float32."""
        config = self.config
        patch = config.patch_size
        if config.head_type in ("dpt", "catmlp+dpt"):
            size = (grid[0] * patch, grid[1] * patch)
            features, (hidden, last) = self.dpt(tokens, grid, ops), self.dpt.last_convs
            return ops.points_and_conf(features, size, hidden, last, config.depth_mode, config.conf_mode)
        if config.head_type == "catconv":
            raw = self.head_pts3d(self._ends(tokens), grid, ops).permute(0, 2, 3, 1).float()
        else:
            decoded = tokens[config.dec_depth].to(self.proj.weight.dtype)
            raw = unpatchify(ops.linear(self.proj, decoded), grid, patch).float()
        return activate_points(raw[..., :3], config.depth_mode), activate_confidence(raw[..., 3], config.conf_mode)

    def descriptors(
        self, tokens: Tokens, grid: tuple[int, int], ops: Operations
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(B, H, W, D) unit descriptors and their confidence (B, H, W), if they have one of their own; float32."""
        config = self.config
        assert config.desc_dim is not None
        conf_mode = (config.desc_conf_mode or config.conf_mode) if config.two_confs else None
        local = self.head_local_features(self._ends(tokens), ops)
        return ops.descriptors(local, grid, config.patch_size, config.desc_dim, conf_mode)

    def forward(self, tokens: Tokens, grid: tuple[int, int], ops: Operations) -> HeadOutput:
        """`tokens`: at least those of `layers`; `grid` (rows, columns)."""
        points, conf = self.points_and_conf(tokens, grid, ops)
        if self.config.desc_dim is None:
            return HeadOutput(points, conf, None, None)
        desc, desc_conf = self.descriptors(tokens, grid, ops)
        return HeadOutput(points, conf, desc, conf if desc_conf is None else desc_conf)
