"""Fused kernels of the network's inference in half precision on CUDA devices: one pass over the memory each.

Sums and activations are computed in float32. A value that is not finite stays so: comparisons are written such
that NaN passes through them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import nn

from mast3r_sfm.model.config import Activation

_CHANNELS_LAST = torch.channels_last


# ------------------------------------------------------------------ residual stream
@triton.jit
def _add_norm_kernel(  # type: ignore[no-untyped-def]  # triton's own types
    x, delta, weight, bias, total, out, width, eps,
    ADD: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    lane = tl.arange(0, BLOCK)
    valid = lane < width
    at = tl.program_id(0).to(tl.int64) * width + lane
    value = tl.load(x + at, mask=valid, other=0.0)
    if ADD:
        value += tl.load(delta + at, mask=valid, other=0.0).to(tl.float32)
        tl.store(total + at, value, mask=valid)
    centred = tl.where(valid, value - tl.sum(value, 0) / width, 0.0)
    scale = 1.0 / tl.sqrt(tl.sum(centred * centred, 0) / width + eps)
    w = tl.load(weight + lane, mask=valid, other=0.0)
    b = tl.load(bias + lane, mask=valid, other=0.0)
    tl.store(out + at, (centred * scale * w + b).to(out.dtype.element_ty), mask=valid)


def normalise(x: torch.Tensor, norm: nn.LayerNorm, dtype: torch.dtype) -> torch.Tensor:
    """norm(x) in `dtype`; x (..., width) float32, of any width."""
    x = x.contiguous()
    out = torch.empty_like(x, dtype=dtype)
    width = x.shape[-1]
    _add_norm_kernel[(x.numel() // width,)](
        x, x, norm.weight, norm.bias, x, out, width, norm.eps,
        ADD=False, BLOCK=triton.next_power_of_2(width), num_warps=4,
    )  # fmt: skip
    return out


def add_and_normalise(
    x: torch.Tensor, delta: torch.Tensor, norm: nn.LayerNorm, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """(x + delta, norm(x + delta) in `dtype`), the sum in memory of its own; x (..., width) float32, delta half."""
    x, delta = x.contiguous(), delta.contiguous()
    total, out = torch.empty_like(x), torch.empty_like(x, dtype=dtype)
    width = x.shape[-1]
    _add_norm_kernel[(x.numel() // width,)](
        x, delta, norm.weight, norm.bias, total, out, width, norm.eps,
        ADD=True, BLOCK=triton.next_power_of_2(width), num_warps=4,
    )  # fmt: skip
    return total, out


# ------------------------------------------------------------------ convolutions
@triton.jit
def _bias_kernel(  # type: ignore[no-untyped-def]
    x, bias, first, second, count,
    CHANNELS: tl.constexpr, RESIDUALS: tl.constexpr, RELU: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    valid = at < count
    value = tl.load(x + at, mask=valid, other=0.0).to(tl.float32)
    value += tl.load(bias + at % CHANNELS, mask=valid, other=0.0).to(tl.float32)
    if RESIDUALS > 0:
        value += tl.load(first + at, mask=valid, other=0.0).to(tl.float32)
    if RESIDUALS > 1:
        value += tl.load(second + at, mask=valid, other=0.0).to(tl.float32)
    if RELU:
        value = tl.where(value < 0.0, 0.0, value)
    tl.store(x + at, value.to(x.dtype.element_ty), mask=valid)


def add_bias(x: torch.Tensor, bias: torch.Tensor, residuals: Sequence[torch.Tensor], relu: bool) -> torch.Tensor:
    """x + bias of its channel + up to two residuals, then ReLU if asked; x (B, C, H, W) is overwritten.

    Tensors that are not channels-last in memory are copied first.
    """
    assert len(residuals) <= 2
    x = x.contiguous(memory_format=_CHANNELS_LAST)
    dense = [r.contiguous(memory_format=_CHANNELS_LAST) for r in residuals]
    first, second = [*dense, x, x][:2]
    block = 2048
    _bias_kernel[(triton.cdiv(x.numel(), block),)](
        x, bias, first, second, x.numel(),
        CHANNELS=x.shape[1], RESIDUALS=len(residuals), RELU=relu, BLOCK=block, num_warps=8,
    )  # fmt: skip
    return x


@triton.jit(do_not_specialize=["rows", "columns", "out_columns"])
def _upsample_kernel(  # type: ignore[no-untyped-def]
    x, out, rows, columns, out_columns, row_step, column_step,
    CHANNELS: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_X: tl.constexpr,
):  # fmt: skip
    """One output row of one image, BLOCK_X pixels of it."""
    out_row, image = tl.program_id(1), tl.program_id(2).to(tl.int64)
    pixel = tl.program_id(0) * BLOCK_X + tl.arange(0, BLOCK_X)
    channel = tl.arange(0, BLOCK_C)[None, :]
    valid = (pixel < out_columns)[:, None] & (channel < CHANNELS)
    y = out_row.to(tl.float32) * row_step
    top = tl.minimum(y.to(tl.int32), rows - 1)
    bottom = tl.minimum(top + 1, rows - 1)
    lower = y - top.to(tl.float32)
    x_position = pixel.to(tl.float32) * column_step
    left = tl.minimum(x_position.to(tl.int32), columns - 1)
    right = tl.minimum(left + 1, columns - 1)
    righter = (x_position - left.to(tl.float32))[:, None]
    above = x + (image * rows + top) * columns * CHANNELS + channel
    below = x + (image * rows + bottom) * columns * CHANNELS + channel
    left, right = left[:, None] * CHANNELS, right[:, None] * CHANNELS
    a = tl.load(above + left, mask=valid, other=0.0).to(tl.float32)
    b = tl.load(above + right, mask=valid, other=0.0).to(tl.float32)
    c = tl.load(below + left, mask=valid, other=0.0).to(tl.float32)
    d = tl.load(below + right, mask=valid, other=0.0).to(tl.float32)
    value = (a + (b - a) * righter) * (1.0 - lower) + (c + (d - c) * righter) * lower
    at = ((image * tl.num_programs(1) + out_row) * out_columns + pixel[:, None]) * CHANNELS + channel
    tl.store(out + at, value.to(out.dtype.element_ty), mask=valid)


def upsample(x: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Bilinear upsampling of (B, C, h, w) to `size` (H, W), corners aligned; the result is channels-last in memory."""
    x = x.contiguous(memory_format=_CHANNELS_LAST)
    batch, channels, rows, columns = x.shape
    out = torch.empty((batch, channels, *size), dtype=x.dtype, device=x.device, memory_format=_CHANNELS_LAST)
    block_c = triton.next_power_of_2(channels)
    block_x = max(1, 2048 // block_c)
    _upsample_kernel[(triton.cdiv(size[1], block_x), size[0], batch)](
        x, out, rows, columns, size[1], (rows - 1) / max(size[0] - 1, 1), (columns - 1) / max(size[1] - 1, 1),
        CHANNELS=channels, BLOCK_C=block_c, BLOCK_X=block_x, num_warps=4,
    )  # fmt: skip
    return out


# ------------------------------------------------------------------ heads
@triton.jit
def _confidence(raw, low, span, SIGMOID: tl.constexpr):  # type: ignore[no-untyped-def]
    if SIGMOID:
        value = span / (1.0 + tl.exp(-raw))
    else:
        value = tl.exp(raw)
        value = tl.where(value > span, span, value)
    return value + low


@triton.jit(do_not_specialize=["count"])
def _points_kernel(  # type: ignore[no-untyped-def]
    x, hidden_bias, weight, bias, points, conf, count, low, span,
    CHANNELS: tl.constexpr, DEPTH: tl.constexpr, SIGMOID: tl.constexpr, BLOCK: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """ReLU, four dot products per pixel, the activations."""
    pixel = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    channel = tl.arange(0, BLOCK_C)
    valid, known = pixel < count, channel < CHANNELS
    at = pixel[:, None] * CHANNELS + channel[None, :]
    hidden = tl.load(x + at, mask=valid[:, None] & known[None, :], other=0.0).to(tl.float32)
    hidden += tl.load(hidden_bias + channel, mask=known, other=0.0).to(tl.float32)[None, :]
    hidden = tl.where(hidden < 0.0, 0.0, hidden)
    w_x = tl.load(weight + channel, mask=known, other=0.0).to(tl.float32)
    w_y = tl.load(weight + CHANNELS + channel, mask=known, other=0.0).to(tl.float32)
    w_z = tl.load(weight + 2 * CHANNELS + channel, mask=known, other=0.0).to(tl.float32)
    w_conf = tl.load(weight + 3 * CHANNELS + channel, mask=known, other=0.0).to(tl.float32)
    raw_x = tl.sum(hidden * w_x[None, :], 1) + tl.load(bias).to(tl.float32)
    raw_y = tl.sum(hidden * w_y[None, :], 1) + tl.load(bias + 1).to(tl.float32)
    raw_z = tl.sum(hidden * w_z[None, :], 1) + tl.load(bias + 2).to(tl.float32)
    raw_conf = tl.sum(hidden * w_conf[None, :], 1) + tl.load(bias + 3).to(tl.float32)
    if DEPTH != 0:
        norm = tl.sqrt(raw_x * raw_x + raw_y * raw_y + raw_z * raw_z)
        factor = norm
        if DEPTH == 1:  # (exp(n) - 1) / n, near zero by its series, where the difference would cancel
            series = 1 + norm / 2 * (1 + norm / 3 * (1 + norm / 4 * (1 + norm / 5 * (1 + norm / 6))))
            near = norm < 0.125
            factor = tl.where(near, series, (tl.exp(norm) - 1.0) / tl.where(near, 1.0, norm))
        raw_x, raw_y, raw_z = raw_x * factor, raw_y * factor, raw_z * factor
    tl.store(points + pixel * 3, raw_x, mask=valid)
    tl.store(points + pixel * 3 + 1, raw_y, mask=valid)
    tl.store(points + pixel * 3 + 2, raw_z, mask=valid)
    tl.store(conf + pixel, _confidence(raw_conf, low, span, SIGMOID), mask=valid)


_DEPTH_MODES = {"linear": 0, "exp": 1, "square": 2}


def write_points(
    hidden: torch.Tensor,
    hidden_bias: torch.Tensor,
    last: nn.Conv2d,
    depth_mode: Activation,
    conf_mode: Activation,
    points: torch.Tensor,
    conf: torch.Tensor,
) -> None:
    """The activated outputs of last(relu(hidden + hidden_bias)), a 1x1 convolution to (x, y, z, confidence).

    hidden (B, C, H, W) channels-last in memory; points (B, H, W, 3) and conf (B, H, W) float32, dense, are written.
    """
    assert last.bias is not None
    hidden = hidden.contiguous(memory_format=_CHANNELS_LAST)
    channels, count, block = hidden.shape[1], conf.numel(), 32
    _points_kernel[(triton.cdiv(count, block),)](
        hidden, hidden_bias, last.weight.flatten(1).contiguous(), last.bias, points, conf, count,
        conf_mode.low, conf_mode.high - conf_mode.low,
        CHANNELS=channels, DEPTH=_DEPTH_MODES[depth_mode.name], SIGMOID=conf_mode.name == "sigmoid",
        BLOCK=block, BLOCK_C=triton.next_power_of_2(channels), num_warps=4,
    )  # fmt: skip


@triton.jit(do_not_specialize=["columns"])
def _descriptors_kernel(  # type: ignore[no-untyped-def]
    local, desc, conf, columns, low, span,
    DESC_DIM: tl.constexpr, CHANNELS: tl.constexpr, SIDE: tl.constexpr, SIGMOID: tl.constexpr,
    BLOCK: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """BLOCK pixels of one token; its features are (CHANNELS, SIDE, SIDE), the confidence behind DESC_DIM others."""
    area: tl.constexpr = SIDE * SIDE
    token = tl.program_id(0).to(tl.int64)
    pixel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    channel = tl.arange(0, BLOCK_C)[:, None]
    valid = pixel < area
    inside = valid[None, :] & (channel < DESC_DIM)
    features = local + token * CHANNELS * area + pixel
    value = tl.load(features[None, :] + channel * area, mask=inside, other=0.0).to(tl.float32)
    norm = tl.sqrt(tl.sum(value * value, 0))
    row = token // columns * SIDE + pixel // SIDE  # counted through all images
    place = row * (columns * SIDE) + token % columns * SIDE + pixel % SIDE
    tl.store(desc + place[None, :] * DESC_DIM + channel, value / norm[None, :], mask=inside)
    if CHANNELS > DESC_DIM:
        raw = tl.load(features + DESC_DIM * area, mask=valid, other=0.0).to(tl.float32)
        tl.store(conf + place, _confidence(raw, low, span, SIGMOID), mask=valid)


def descriptors(
    local: torch.Tensor, grid: tuple[int, int], side: int, desc_dim: int, conf_mode: Activation | None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Token features (B, N, C * side^2) -> unit descriptors (B, H, W, desc_dim) and, with a `conf_mode`, their
    confidence (B, H, W) from channel `desc_dim`; both float32."""
    local = local.contiguous()
    batch, tokens, _ = local.shape
    shape = (batch, grid[0] * side, grid[1] * side)
    desc = torch.empty((*shape, desc_dim), dtype=torch.float32, device=local.device)
    conf = None if conf_mode is None else torch.empty(shape, dtype=torch.float32, device=local.device)
    mode = conf_mode or Activation("exp", 0.0, 0.0)
    block = 64
    _descriptors_kernel[(batch * tokens, triton.cdiv(side * side, block))](
        local, desc, desc if conf is None else conf, grid[1], mode.low, mode.high - mode.low,
        DESC_DIM=desc_dim, CHANNELS=desc_dim + (conf is not None), SIDE=side, SIGMOID=mode.name == "sigmoid",
        BLOCK=block, BLOCK_C=triton.next_power_of_2(desc_dim), num_warps=4,
    )  # fmt: skip
    return desc, conf
