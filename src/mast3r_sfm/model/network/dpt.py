"""Dense prediction from tokens of four depths of the network (spec: network, section 6.1)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache

import torch
from torch import nn
from torch.nn import functional as F

from mast3r_sfm.model.network import fused
from mast3r_sfm.model.network.convolution import convolve

Tokens = Mapping[int, torch.Tensor]
"""Tokens (B, N, width) of one view by depth: 0 the encoder's, k those after decoder block k, the last normalised."""

LAYER_DIMS = (96, 192, 384, 768)
FEATURES = 256
LAST = 128
_PIXEL_BYTES = 256 * 2**20  # of activations at the image's own resolution that inference holds at once


@lru_cache(maxsize=64)
def _interpolation(size: int, source: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """(size, source): linear interpolation with aligned corners along one axis, as a matrix."""
    unit = torch.eye(source)[None]
    return F.interpolate(unit, size=size, mode="linear", align_corners=True)[0].T.to(device, dtype).contiguous()


def upsample(x: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Bilinear upsampling of (B, C, h, w) to `size` (H, W), corners aligned.

    In half precision on CUDA over channels-last memory: one fused kernel, or two matrix products without Triton,
    both several times faster there.
    """
    if fused.enabled(x, x.dtype):
        from mast3r_sfm.model.network import fused_triton

        return fused_triton.upsample(x, size)
    if not x.is_cuda or x.dtype == torch.float32:
        return F.interpolate(x, size=size, mode="bilinear", align_corners=True)
    batch, channels, rows, columns = x.shape
    vertical = _interpolation(size[0], rows, x.dtype, x.device)
    horizontal = _interpolation(size[1], columns, x.dtype, x.device)
    x = x.permute(0, 2, 3, 1).reshape(batch, rows, columns * channels)
    x = torch.matmul(vertical, x).reshape(batch * size[0], columns, channels)
    return torch.matmul(horizontal, x).reshape(batch, *size, channels).permute(0, 3, 1, 2)


class ResidualConvUnit(nn.Module):
    """x + conv(relu(conv(relu(x))))."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(FEATURES, FEATURES, 3, padding=1)
        self.conv2 = nn.Conv2d(FEATURES, FEATURES, 3, padding=1)

    def forward(self, x: torch.Tensor, *others: torch.Tensor) -> torch.Tensor:
        """`others` (at most one) are added too."""
        return convolve(self.conv2, convolve(self.conv1, F.relu(x), relu=True), x, *others)


class FusionBlock(nn.Module):
    """Adds a finer level to the coarser one, refines, doubles the resolution.

    `out_conv` comes after the upsampling in the published network; a 1x1 convolution commutes with
    bilinear interpolation, so it is done before, at a quarter of the cost.
    """

    def __init__(self) -> None:
        super().__init__()
        self.out_conv = nn.Conv2d(FEATURES, FEATURES, 1)
        self.resConfUnit1 = ResidualConvUnit()  # without effect in the coarsest block, which has one input
        self.resConfUnit2 = ResidualConvUnit()

    def forward(self, coarse: torch.Tensor, fine: torch.Tensor | None = None) -> torch.Tensor:
        x = coarse if fine is None else self.resConfUnit1(fine, coarse)
        x = convolve(self.out_conv, self.resConfUnit2(x))
        return upsample(x, (2 * x.shape[2], 2 * x.shape[3]))


class Scratch(nn.Module):
    """The fusion path; named as in the published state dict, which lists the four convolutions twice."""

    def __init__(self) -> None:
        super().__init__()
        convs = [nn.Conv2d(width, FEATURES, 3, padding=1, bias=False) for width in LAYER_DIMS]
        self.layer1_rn, self.layer2_rn, self.layer3_rn, self.layer4_rn = convs
        self.layer_rn = nn.ModuleList(convs)
        self.refinenet1 = FusionBlock()
        self.refinenet2 = FusionBlock()
        self.refinenet3 = FusionBlock()
        self.refinenet4 = FusionBlock()


class DPT(nn.Module):
    """Tokens of the hooked layers -> (B, channels, H, W) raw maps."""

    def __init__(self, enc_width: int, dec_width: int, dec_depth: int, channels: int) -> None:
        super().__init__()
        self.hooks = (0, dec_depth * 2 // 4, dec_depth * 3 // 4, dec_depth)
        d0, d1, d2, d3 = LAYER_DIMS
        self.act_postprocess = nn.ModuleList(
            [
                nn.Sequential(nn.Conv2d(enc_width, d0, 1), nn.ConvTranspose2d(d0, d0, 4, stride=4)),
                nn.Sequential(nn.Conv2d(dec_width, d1, 1), nn.ConvTranspose2d(d1, d1, 2, stride=2)),
                nn.Sequential(nn.Conv2d(dec_width, d2, 1)),
                nn.Sequential(nn.Conv2d(dec_width, d3, 1), nn.Conv2d(d3, d3, 3, stride=2, padding=1)),
            ]
        )
        self.scratch = Scratch()
        self.head = nn.Sequential(
            nn.Conv2d(FEATURES, LAST, 3, padding=1),
            nn.Identity(),  # the last upsampling: to the image's own size, see forward
            nn.Conv2d(LAST, LAST, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(LAST, channels, 1),
        )

    @property
    def last_convs(self) -> tuple[nn.Conv2d, nn.Conv2d]:
        """The two convolutions at the image's own resolution, with a ReLU between them."""
        hidden, last = self.head[2], self.head[4]
        assert isinstance(hidden, nn.Conv2d) and isinstance(last, nn.Conv2d)
        return hidden, last

    def features(self, tokens: Tokens, grid: tuple[int, int]) -> torch.Tensor:
        """Tokens, `grid` (rows, columns) -> (B, LAST, 8 rows, 8 columns)."""
        dtype = self.scratch.layer1_rn.weight.dtype
        levels = []
        for hook, post, conv in zip(self.hooks, self.act_postprocess, self.scratch.layer_rn, strict=True):
            level = tokens[hook].to(dtype).unflatten(1, grid).permute(0, 3, 1, 2)  # channels-last in memory
            for layer in post.children():
                level = convolve(layer, level)
            levels.append(conv(level))
        scratch = self.scratch
        x = scratch.refinenet4(levels.pop())[:, :, : grid[0], : grid[1]]  # an odd grid was rounded up
        x = scratch.refinenet3(x, levels.pop())
        x = scratch.refinenet2(x, levels.pop())
        x = scratch.refinenet1(x, levels.pop())
        return convolve(self.head[0], x)

    def chunks(self, features: torch.Tensor, size: tuple[int, int]) -> Sequence[torch.Tensor]:
        """The features of a few images at a time: in inference, so that their full-size maps fit in `_PIXEL_BYTES`."""
        if torch.is_grad_enabled():
            return [features]
        per_image = 2 * LAST * size[0] * size[1] * features.element_size()  # what a convolution reads and writes
        return features.split(max(1, _PIXEL_BYTES // per_image))

    def forward(self, tokens: Tokens, grid: tuple[int, int], size: tuple[int, int]) -> torch.Tensor:
        """`grid` (rows, columns), `size` (H, W) pixels."""
        hidden, last = self.last_convs
        chunks = self.chunks(self.features(tokens, grid), size)
        maps = [last(convolve(hidden, upsample(chunk, size), relu=True)) for chunk in chunks]
        return maps[0] if len(maps) == 1 else torch.cat(maps)
