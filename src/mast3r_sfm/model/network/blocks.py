"""Transformer blocks of the encoder and of the decoders (docs/method.md, Transformer blocks).

The residual stream and the norms are float32 whatever the precision of the matrix products: that
costs little and keeps most of the accuracy of a half-precision trunk.
"""

from __future__ import annotations

import torch
from einops import rearrange
from torch import nn

from mast3r_sfm.model.network.operations import Operations
from mast3r_sfm.model.network.rope import RopeTable


class LayerNorm(nn.LayerNorm):
    """LayerNorm of the float32 residual stream, eps 1e-6."""

    def __init__(self, width: int) -> None:
        super().__init__(width, eps=1e-6)


class Mlp(nn.Module):
    """Linear, exact GELU, linear."""

    def __init__(self, width: int, hidden: int, out: int | None = None) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width if out is None else out)

    def forward(self, x: torch.Tensor, ops: Operations) -> torch.Tensor:
        return ops.linear(self.fc2, ops.linear(self.fc1, x.to(self.fc1.weight.dtype), gelu=True))


def _split_heads(x: torch.Tensor, count: int) -> torch.Tensor:
    """(B, N, heads * head_dim) -> (B, N, heads, head_dim), a view."""
    return rearrange(x, "b n (heads d) -> b n heads d", heads=count)


class SelfAttention(nn.Module):
    """Multi-head self-attention with rotary positions on queries and keys."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: torch.Tensor, rope: RopeTable, ops: Operations) -> torch.Tensor:
        qkv = _split_heads(ops.linear(self.qkv, x), 3 * self.num_heads)
        q, k = ops.rotate(qkv[:, :, : 2 * self.num_heads], rope).chunk(2, 2)
        return ops.linear(self.proj, ops.attend(q, k, qkv[:, :, 2 * self.num_heads :]))


class CrossAttention(nn.Module):
    """Queries of one view, keys and values of the other, each with its own grid's rotary positions."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.projq = nn.Linear(width, width)
        self.projk = nn.Linear(width, width)
        self.projv = nn.Linear(width, width)
        self.proj = nn.Linear(width, width)

    def forward(
        self, x: torch.Tensor, y: torch.Tensor, rope_x: RopeTable, rope_y: RopeTable, ops: Operations
    ) -> torch.Tensor:
        projected = ((self.projq, x), (self.projk, y), (self.projv, y))
        q, k, v = (_split_heads(ops.linear(layer, tokens), self.num_heads) for layer, tokens in projected)
        return ops.linear(self.proj, ops.attend(ops.rotate(q, rope_x), ops.rotate(k, rope_y), v))


class EncoderBlock(nn.Module):
    """x + attention, x + MLP, pre-norm."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.norm1 = LayerNorm(width)
        self.attn = SelfAttention(width, num_heads)
        self.norm2 = LayerNorm(width)
        self.mlp = Mlp(width, 4 * width)

    def forward(self, x: torch.Tensor, rope: RopeTable, ops: Operations) -> torch.Tensor:
        dtype = self.attn.qkv.weight.dtype
        attended = self.attn(ops.normalise(x, self.norm1, dtype), rope, ops)
        x, h = ops.add_and_normalise(x, attended, self.norm2, dtype)
        return x + self.mlp(h, ops)


class DecoderBlock(nn.Module):
    """Self-attention, cross-attention to the other view, MLP; the other view's tokens are not changed."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.norm1 = LayerNorm(width)
        self.attn = SelfAttention(width, num_heads)
        self.norm_y = LayerNorm(width)
        self.norm2 = LayerNorm(width)
        self.cross_attn = CrossAttention(width, num_heads)
        self.norm3 = LayerNorm(width)
        self.mlp = Mlp(width, 4 * width)

    def forward(
        self, x: torch.Tensor, y: torch.Tensor, rope_x: RopeTable, rope_y: RopeTable, ops: Operations
    ) -> torch.Tensor:
        dtype = self.attn.qkv.weight.dtype
        attended = self.attn(ops.normalise(x, self.norm1, dtype), rope_x, ops)
        x, h = ops.add_and_normalise(x, attended, self.norm2, dtype)
        attended = self.cross_attn(h, ops.normalise(y, self.norm_y, dtype), rope_x, rope_y, ops)
        x, h = ops.add_and_normalise(x, attended, self.norm3, dtype)
        return x + self.mlp(h, ops)
