"""Transformer blocks of the encoder and of the decoders (spec: network, section 4).

The residual stream and the norms are float32 whatever the precision of the matrix products: that
costs little and keeps most of the accuracy of a half-precision trunk.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from mast3r_sfm.model.network import fused
from mast3r_sfm.model.network.rope import RopeTable, rotate


class LayerNorm(nn.LayerNorm):
    """LayerNorm of the float32 residual stream, eps 1e-6."""

    def __init__(self, width: int) -> None:
        super().__init__(width, eps=1e-6)


def normalise(x: torch.Tensor, norm: LayerNorm, dtype: torch.dtype) -> torch.Tensor:
    """norm(x) in `dtype`, that of the weights it goes to."""
    if fused.enabled(x, dtype):
        from mast3r_sfm.model.network import fused_triton

        return fused_triton.normalise(x, norm, dtype)
    return norm(x).to(dtype)


def add_and_normalise(
    x: torch.Tensor, delta: torch.Tensor, norm: LayerNorm, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """A residual junction: (x + delta, norm(x + delta) in `dtype`); x itself is not changed."""
    if fused.enabled(x, dtype):
        from mast3r_sfm.model.network import fused_triton

        return fused_triton.add_and_normalise(x, delta, norm, dtype)
    x = x + delta
    return x, norm(x).to(dtype)


class Mlp(nn.Module):
    """Linear, exact GELU, linear."""

    def __init__(self, width: int, hidden: int, out: int | None = None) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width if out is None else out)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(F.gelu(self.fc1(x.to(self.fc1.weight.dtype))))


def _attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """softmax(q k^T / sqrt(head_dim)) v over (B, N, heads, head_dim) -> (B, N, heads * head_dim)."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


class SelfAttention(nn.Module):
    """Multi-head self-attention with rotary positions on queries and keys."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: torch.Tensor, rope: RopeTable) -> torch.Tensor:
        qkv = self.qkv(x).unflatten(-1, (3 * self.num_heads, -1))
        q, k = rotate(qkv[:, :, : 2 * self.num_heads], rope).chunk(2, 2)
        return self.proj(_attend(q, k, qkv[:, :, 2 * self.num_heads :]))


class CrossAttention(nn.Module):
    """Queries of one view, keys and values of the other, each with its own grid's rotary positions."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.projq = nn.Linear(width, width)
        self.projk = nn.Linear(width, width)
        self.projv = nn.Linear(width, width)
        self.proj = nn.Linear(width, width)

    def _heads(self, x: torch.Tensor) -> torch.Tensor:
        return x.unflatten(-1, (self.num_heads, -1))

    def forward(self, x: torch.Tensor, y: torch.Tensor, rope_x: RopeTable, rope_y: RopeTable) -> torch.Tensor:
        q = rotate(self._heads(self.projq(x)), rope_x)
        k = rotate(self._heads(self.projk(y)), rope_y)
        return self.proj(_attend(q, k, self._heads(self.projv(y))))


class EncoderBlock(nn.Module):
    """x + attention, x + MLP, pre-norm."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.norm1 = LayerNorm(width)
        self.attn = SelfAttention(width, num_heads)
        self.norm2 = LayerNorm(width)
        self.mlp = Mlp(width, 4 * width)

    def forward(self, x: torch.Tensor, rope: RopeTable) -> torch.Tensor:
        dtype = self.attn.qkv.weight.dtype
        attended = self.attn(normalise(x, self.norm1, dtype), rope)
        x, h = add_and_normalise(x, attended, self.norm2, dtype)
        return x + self.mlp(h)


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

    def forward(self, x: torch.Tensor, y: torch.Tensor, rope_x: RopeTable, rope_y: RopeTable) -> torch.Tensor:
        dtype = self.attn.qkv.weight.dtype
        attended = self.attn(normalise(x, self.norm1, dtype), rope_x)
        x, h = add_and_normalise(x, attended, self.norm2, dtype)
        attended = self.cross_attn(h, normalise(y, self.norm_y, dtype), rope_x, rope_y)
        x, h = add_and_normalise(x, attended, self.norm3, dtype)
        return x + self.mlp(h)
