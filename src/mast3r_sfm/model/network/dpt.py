"""Dense prediction from tokens of four layers of the network (docs/method.md, Dense prediction head)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from einops import rearrange
from torch import nn
from torch.nn import functional as F

from mast3r_sfm.model.network.operations import Operations

Tokens = Mapping[int, torch.Tensor]
"""Tokens (B, N, width) of one view by layer: 0 the encoder's, k those after decoder block k, the last normalised."""

LAYER_DIMS = (96, 192, 384, 768)
FEATURES = 256
LAST = 128


class ResidualConvUnit(nn.Module):
    """x + conv(relu(conv(relu(x))))."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(FEATURES, FEATURES, 3, padding=1)
        self.conv2 = nn.Conv2d(FEATURES, FEATURES, 3, padding=1)

    def forward(self, x: torch.Tensor, ops: Operations, *others: torch.Tensor) -> torch.Tensor:
        """`others` (at most one) are added too."""
        return ops.convolve(self.conv2, ops.convolve(self.conv1, F.relu(x), relu=True), x, *others)


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

    def forward(self, coarse: torch.Tensor, ops: Operations, fine: torch.Tensor | None = None) -> torch.Tensor:
        x = coarse if fine is None else self.resConfUnit1(fine, ops, coarse)
        x = ops.convolve(self.out_conv, self.resConfUnit2(x, ops))
        return ops.upsample(x, (2 * x.shape[2], 2 * x.shape[3]))


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
    """Tokens of the hooked layers -> features of 8 x 8 pixels a token.

    What follows at the image's own resolution, `last_convs` and the activations, is `Operations.points_and_conf`.
    """

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
            nn.Identity(),  # the last upsampling, to the image's own size
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

    def forward(self, tokens: Tokens, grid: tuple[int, int], ops: Operations) -> torch.Tensor:
        """Tokens, `grid` (rows, columns) -> (B, LAST, 8 rows, 8 columns)."""
        rows, columns = grid
        dtype = self.scratch.layer1_rn.weight.dtype
        levels = []
        for hook, post, conv in zip(self.hooks, self.act_postprocess, self.scratch.layer_rn, strict=True):
            pattern = "b (rows columns) c -> b c rows columns"  # a view: channels-last in memory
            level = rearrange(tokens[hook].to(dtype), pattern, rows=rows, columns=columns)
            for layer in post.children():
                assert isinstance(layer, nn.Conv2d | nn.ConvTranspose2d)
                level = ops.convolve(layer, level)
            levels.append(conv(level))
        scratch = self.scratch
        x = scratch.refinenet4(levels.pop(), ops)[:, :, :rows, :columns]  # an odd grid was rounded up
        x = scratch.refinenet3(x, ops, levels.pop())
        x = scratch.refinenet2(x, ops, levels.pop())
        x = scratch.refinenet1(x, ops, levels.pop())
        first = self.head[0]
        assert isinstance(first, nn.Conv2d)
        return ops.convolve(first, x)
