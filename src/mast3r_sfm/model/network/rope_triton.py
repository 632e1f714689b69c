"""Rotary position embedding in one pass over the queries and keys, for inference on CUDA devices."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from mast3r_sfm.model.network.rope import RopeTable


@triton.jit
def _rotate_kernel(  # type: ignore[no-untyped-def]  # triton's own types
    x, cos, sin, tokens, row_stride, num_pairs,
    HEAD_DIM: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    token = row % tokens
    lane = tl.arange(0, BLOCK)
    valid = lane < num_pairs
    half: tl.constexpr = HEAD_DIM // 2
    quarter: tl.constexpr = HEAD_DIM // 4
    within = lane % half
    u_in_head = within // quarter * half + within % quarter
    at = x + row * row_stride + lane // half * HEAD_DIM + u_in_head
    table = token * HEAD_DIM + u_in_head
    u = tl.load(at, mask=valid).to(tl.float32)
    v = tl.load(at + quarter, mask=valid).to(tl.float32)
    c = tl.load(cos + table, mask=valid)
    s = tl.load(sin + table + quarter, mask=valid)
    tl.store(at, (u * c - v * s).to(x.dtype.element_ty), mask=valid)
    tl.store(at + quarter, (v * c + u * s).to(x.dtype.element_ty), mask=valid)


def rotate_in_place(heads: torch.Tensor, table: RopeTable) -> None:
    """Rotates (B, N, heads, head_dim); tokens may lie apart in memory, a token's heads must be contiguous."""
    batch, tokens, count, head_dim = heads.shape
    pairs = count * head_dim // 2
    _rotate_kernel[(batch * tokens,)](
        heads, table.cos, table.sin, tokens, heads.stride(1), pairs,
        HEAD_DIM=head_dim, BLOCK=triton.next_power_of_2(pairs), num_warps=4,
    )  # fmt: skip
