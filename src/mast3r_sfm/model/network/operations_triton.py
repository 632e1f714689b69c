"""`Operations` of inference on CUDA devices, with the fused kernels of `fused_triton` and `rope_triton`."""

from __future__ import annotations

import torch
from einops import rearrange
from torch import nn
from torch.nn import functional as F

from mast3r_sfm.model.config import Activation
from mast3r_sfm.model.network import fused_triton
from mast3r_sfm.model.network.operations_plain import PlainOperations, few_images_at_a_time
from mast3r_sfm.model.network.rope import RopeTable
from mast3r_sfm.model.network.rope_triton import rotate_in_place


class FusedRotation(PlainOperations):
    """For float32: torch's own operations, but the rotary embedding in one pass over memory."""

    def rotate(self, heads: torch.Tensor, table: RopeTable) -> torch.Tensor:
        """Overwrites the vectors themselves."""
        rotate_in_place(heads, table)
        return heads


class FusedOperations(FusedRotation):
    """For half precision: one pass over memory each. See `Operations` for what each of them computes."""

    def normalise(self, x: torch.Tensor, norm: nn.LayerNorm, dtype: torch.dtype) -> torch.Tensor:
        return fused_triton.normalise(x, norm, dtype)

    def add_and_normalise(
        self, x: torch.Tensor, delta: torch.Tensor, norm: nn.LayerNorm, dtype: torch.dtype
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return fused_triton.add_and_normalise(x, delta, norm, dtype)

    def convolve(
        self, conv: nn.Conv2d | nn.ConvTranspose2d, x: torch.Tensor, *residuals: torch.Tensor, relu: bool = False
    ) -> torch.Tensor:
        """1x1 convolutions and transposed ones are matrix products, which add the bias themselves; cuDNN's other
        convolutions add it in a pass of their own, so that is done here together with the rest."""
        if conv.bias is None:
            return super().convolve(conv, x, *residuals, relu=relu)
        alone = not residuals and not relu
        if isinstance(conv, nn.ConvTranspose2d):
            assert alone and conv.stride == conv.kernel_size and conv.padding == (0, 0)
            return _enlarge(conv, conv.bias, x)
        if alone and conv.kernel_size == (1, 1) and conv.stride == (1, 1):
            return _convolve_pixels(conv, conv.bias, x)
        assert isinstance(conv.padding, tuple)
        out = F.conv2d(x, conv.weight, None, conv.stride, conv.padding)
        return fused_triton.add_bias(out, conv.bias, residuals, relu)

    def upsample(self, x: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        return fused_triton.upsample(x, size)

    def points_and_conf(
        self,
        features: torch.Tensor,
        size: tuple[int, int],
        hidden: nn.Conv2d,
        last: nn.Conv2d,
        depth_mode: Activation,
        conf_mode: Activation,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Everything behind the hidden convolution is one pass, into maps of the whole batch."""
        assert hidden.bias is not None and isinstance(hidden.padding, tuple)
        points = features.new_empty((len(features), *size, 3), dtype=torch.float32)
        conf = features.new_empty((len(features), *size), dtype=torch.float32)
        start = 0
        for part in few_images_at_a_time(features, size):
            images = slice(start, start + len(part))
            x = F.conv2d(self.upsample(part, size), hidden.weight, None, hidden.stride, hidden.padding)
            fused_triton.write_points(x, hidden.bias, last, depth_mode, conf_mode, points[images], conf[images])
            start = images.stop
        return points, conf

    def descriptors(
        self, local: torch.Tensor, grid: tuple[int, int], side: int, desc_dim: int, conf_mode: Activation | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        return fused_triton.descriptors(local, grid, side, desc_dim, conf_mode)


def _convolve_pixels(conv: nn.Conv2d, bias: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """A 1x1 convolution: (pixels, in) x (in, out). The result is channels-last in memory."""
    batch, _, rows, columns = x.shape
    weight = rearrange(conv.weight, "c_out c_in 1 1 -> c_out c_in")
    pixels = F.linear(rearrange(x, "b c rows columns -> (b rows columns) c"), weight, bias)
    return rearrange(pixels, "(b rows columns) c -> b c rows columns", b=batch, rows=rows, columns=columns)


def _enlarge(conv: nn.ConvTranspose2d, bias: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Every pixel becomes a patch of the kernel's size: (pixels, in) x (in, side * side * out), then rearranged.

    The result is channels-last in memory: the last axis stays where it is until all values are placed.
    """
    dy, dx = conv.kernel_size
    batch, _, rows, columns = x.shape
    pixels = rearrange(x, "b c rows columns -> (b rows columns) c")
    weight = rearrange(conv.weight, "c_in c_out dy dx -> c_in (dy dx c_out)")
    patches = torch.addmm(bias.repeat(dy * dx), pixels, weight)
    pattern = "(b rows columns) (dy dx c) -> b (rows dy) (columns dx) c"
    enlarged = rearrange(patches, pattern, b=batch, rows=rows, columns=columns, dy=dy, dx=dx)
    return rearrange(enlarged, "b y x c -> b c y x")
