"""Convolutions of the dense heads, with what follows them in the same pass over memory where that is possible."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from mast3r_sfm.model.network import fused


def convolve(conv: nn.Module, x: torch.Tensor, *residuals: torch.Tensor, relu: bool = False) -> torch.Tensor:
    """conv(x) of (B, C, H, W), plus up to two residuals, then ReLU if asked.

    `conv` is a Conv2d, or a ConvTranspose2d whose patches do not overlap. In fused inference 1x1 convolutions and
    such transposed ones are matrix products, which add the bias themselves; cuDNN's other convolutions add it in a
    pass of their own, so that is done here together with the rest.
    """
    assert isinstance(conv, nn.Conv2d | nn.ConvTranspose2d)
    if fused.enabled(x, conv.weight.dtype) and conv.bias is not None:
        return _convolve_fused(conv, conv.bias, x, residuals, relu)
    out = conv(x)
    for residual in residuals:
        out = residual + out
    return F.relu(out) if relu else out


def _convolve_fused(
    conv: nn.Conv2d | nn.ConvTranspose2d,
    bias: torch.Tensor,
    x: torch.Tensor,
    residuals: tuple[torch.Tensor, ...],
    relu: bool,
) -> torch.Tensor:
    from mast3r_sfm.model.network import fused_triton

    plain = not residuals and not relu
    if isinstance(conv, nn.ConvTranspose2d):
        assert plain and conv.stride == conv.kernel_size and conv.padding == (0, 0)
        return _enlarge(conv, bias, x)
    if plain and conv.kernel_size == (1, 1) and conv.stride == (1, 1):
        pixels = x.permute(0, 2, 3, 1)
        out = F.linear(pixels.flatten(0, 2), conv.weight.flatten(1), bias)
        return out.unflatten(0, pixels.shape[:3]).permute(0, 3, 1, 2)
    assert isinstance(conv.padding, tuple)
    out = F.conv2d(x, conv.weight, None, conv.stride, conv.padding)
    return fused_triton.add_bias(out, bias, residuals, relu)


def _enlarge(conv: nn.ConvTranspose2d, bias: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Every pixel becomes a patch of the kernel's size: (pixels, in) x (in, side * side * out), then rearranged."""
    side_y, side_x = conv.kernel_size
    batch, _, rows, columns = x.shape
    weight = conv.weight.permute(0, 2, 3, 1).flatten(1)
    patches = torch.addmm(bias.repeat(side_y * side_x), x.permute(0, 2, 3, 1).flatten(0, 2), weight)
    patches = patches.reshape(batch, rows, columns, side_y, side_x, -1).transpose(2, 3)
    return patches.reshape(batch, rows * side_y, columns * side_x, -1).permute(0, 3, 1, 2)
