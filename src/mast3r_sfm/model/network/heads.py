"""Heads: token list of one view -> points, confidence, descriptors (spec: network, section 6)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from mast3r_sfm.model.config import Activation, ModelConfig
from mast3r_sfm.model.network import fused
from mast3r_sfm.model.network.blocks import Mlp
from mast3r_sfm.model.network.dpt import DPT, Tokens, upsample

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

    @property
    def depths(self) -> tuple[int, ...]:
        """The depths of the tokens that this head reads."""
        config = self.config
        ends = () if config.head_type in ("linear", "dpt") else (0,)
        hooks = self.dpt.hooks if hasattr(self, "dpt") else ()
        return tuple(sorted({*ends, *hooks, config.dec_depth}))

    def _ends(self, tokens: Tokens) -> torch.Tensor:
        """(B, N, enc + dec) tokens of the encoder and of the last decoder block."""
        return torch.cat([tokens[0], tokens[self.config.dec_depth]], -1)

    def raw_points(self, tokens: Tokens, grid: tuple[int, int]) -> torch.Tensor:
        """(B, H, W, 4) float32: x, y, z and confidence before the activations."""
        patch = self.config.patch_size
        if self.config.head_type in ("dpt", "catmlp+dpt"):
            maps = self.dpt(tokens, grid, (grid[0] * patch, grid[1] * patch)).permute(0, 2, 3, 1)
        elif self.config.head_type == "catconv":
            maps = self.head_pts3d(self._ends(tokens), grid).permute(0, 2, 3, 1)
        else:
            last = tokens[self.config.dec_depth]
            maps = unpatchify(self.proj(last.to(self.proj.weight.dtype)), grid, patch)
        return maps.float()

    def points_and_conf(self, tokens: Tokens, grid: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, H, W, 3) points and (B, H, W) confidence, float32."""
        config = self.config
        if hasattr(self, "dpt") and fused.enabled(tokens[0], self.dpt.last_convs[1].weight.dtype):
            return self._fused_points_and_conf(tokens, grid)
        raw = self.raw_points(tokens, grid)
        return activate_points(raw[..., :3], config.depth_mode), activate_confidence(raw[..., 3], config.conf_mode)

    def _fused_points_and_conf(self, tokens: Tokens, grid: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
        """The last layers of the DPT and the activations in one pass, into maps of the whole batch."""
        from mast3r_sfm.model.network import fused_triton

        config, dpt = self.config, self.dpt
        size = (grid[0] * config.patch_size, grid[1] * config.patch_size)
        features = dpt.features(tokens, grid)
        points = features.new_empty((len(features), *size, 3), dtype=torch.float32)
        conf = features.new_empty((len(features), *size), dtype=torch.float32)
        hidden_conv, last = dpt.last_convs
        assert hidden_conv.bias is not None
        start = 0
        for chunk in dpt.chunks(features, size):
            part = slice(start, start + len(chunk))
            hidden = F.conv2d(upsample(chunk, size), hidden_conv.weight, None, padding=1)
            fused_triton.write_points(
                hidden, hidden_conv.bias, last, config.depth_mode, config.conf_mode, points[part], conf[part]
            )
            start = part.stop
        return points, conf

    def descriptors(self, tokens: Tokens, grid: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(B, H, W, D) unit descriptors and their confidence (B, H, W), if they have one of their own; float32."""
        config = self.config
        assert config.desc_dim is not None
        conf_mode = (config.desc_conf_mode or config.conf_mode) if config.two_confs else None
        local = self.head_local_features(self._ends(tokens))
        if fused.enabled(local, local.dtype):
            from mast3r_sfm.model.network import fused_triton

            return fused_triton.descriptors(local, grid, config.patch_size, config.desc_dim, conf_mode)
        local = unpatchify(local, grid, config.patch_size).float()
        desc = F.normalize(local[..., : config.desc_dim], dim=-1, eps=0.0)
        return desc, None if conf_mode is None else activate_confidence(local[..., config.desc_dim], conf_mode)

    def forward(self, tokens: Tokens, grid: tuple[int, int]) -> HeadOutput:
        """`tokens`: at least those of `depths`; `grid` (rows, columns)."""
        points, conf = self.points_and_conf(tokens, grid)
        if self.config.desc_dim is None:
            return HeadOutput(points, conf, None, None)
        desc, desc_conf = self.descriptors(tokens, grid)
        return HeadOutput(points, conf, desc, conf if desc_conf is None else desc_conf)
