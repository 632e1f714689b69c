"""The same network, faster to train on a GPU: compiled regions, upsampling as matrix products."""

from __future__ import annotations

from collections.abc import Callable
from types import MethodType
from typing import Any

import torch
import torch.fx.experimental._config
import torch.nn.functional as F
from torch import nn

from mast3r_sfm.model.network import TwoViewNetwork
from mast3r_sfm.model.network.blocks import DecoderBlock, EncoderBlock
from mast3r_sfm.model.network.heads import HalfResolutionPoints
from mast3r_sfm.model.network.maps import unpatchify
from mast3r_sfm.model.network.operations import Operations
from mast3r_sfm.model.network.operations_plain import PlainOperations
from mast3r_sfm.model.network.rope import RopeTable


def _upsampling_matrix(size: int, device: torch.device) -> torch.Tensor:
    """(2 size, size) float32: bilinear enlargement of a line of pixels, corners aligned."""
    position = torch.arange(2 * size, device=device) * ((size - 1) / (2 * size - 1))
    return (1 - (position[:, None] - torch.arange(size, device=device)).abs()).clamp(min=0)


def _pad(x: torch.Tensor, size: int, dim: int) -> torch.Tensor:
    padding = [0, 0] * (x.dim() - 1 - dim) + [0, size - x.shape[dim]]
    return F.pad(x, padding)


def _ceil8(n: int) -> int:
    return -(-n // 8) * 8


class FastHalfResolutionPoints(HalfResolutionPoints):
    """`HalfResolutionPoints` with the same parameters: the interpolation is two matrix products, since the backward
    pass of the ordinary one adds atomically; channels are padded to multiples of 8, which tensor cores need; and the
    biases are weights of a channel that is one everywhere, which spares passes over maps of full resolution."""

    def forward(self, tokens: torch.Tensor, grid: tuple[int, int], ops: Operations) -> torch.Tensor:
        half = unpatchify(self.mlp(tokens, ops), grid, self.side)
        conv, last = self.head[1], self.head[3]
        assert isinstance(conv, nn.Conv2d) and isinstance(last, nn.Conv2d)
        assert conv.bias is not None and last.bias is not None
        channels, features = _ceil8(conv.in_channels + 1), _ceil8(conv.out_channels + 1)
        x = _pad(F.pad(half.float(), (0, 1), value=1.0), channels, 3)
        B, h, w, _ = x.shape
        with torch.autocast(x.device.type, enabled=False):  # rows of bfloat16 weights would not sum to one
            rows, columns = _upsampling_matrix(h, x.device), _upsampling_matrix(w, x.device)
            x = rows @ (columns @ x).reshape(B, h, 2 * w * channels)
        x = x.reshape(B, 2 * h, 2 * w, channels).permute(0, 3, 1, 2)  # channels last in memory
        bias = F.pad(conv.bias[:, None, None, None], (1, 1, 1, 1))  # seen by the centre of the kernel alone
        one = F.pad(x.new_ones(1, 1, 1, 1), (1, 1, 1, 1, conv.in_channels, 0))
        weight = torch.cat([torch.cat([conv.weight, bias], 1), one])
        weight = _pad(_pad(weight, channels, 1), features, 0).contiguous(memory_format=torch.channels_last)
        x = F.relu(F.conv2d(x, weight, padding=1))
        weight = torch.cat([last.weight.flatten(1), last.bias[:, None]], 1)
        x = F.linear(x.permute(0, 2, 3, 1), _pad(_pad(weight, features, 1), _ceil8(last.out_channels), 0))
        return x[..., : last.out_channels].permute(0, 3, 1, 2)


def use_fast_heads(network: TwoViewNetwork) -> None:
    """Swaps the classes of the point heads; the state dict and, up to rounding, the outputs stay the same."""
    for module in network.modules():
        if type(module) is HalfResolutionPoints:
            module.__class__ = FastHalfResolutionPoints


def allow_any_shape() -> None:
    """Settings of torch.compile for functions that see many batch and image sizes, once a process.

    By default two sizes that happen to be equal count as one (a square image), and the next call compiles again.
    Too many versions end the run instead of going on slowly.
    """
    torch.fx.experimental._config.use_duck_shape = False
    torch._dynamo.config.recompile_limit = 16
    torch._dynamo.config.fail_on_recompile_limit_hit = True


def compile_regions(network: TwoViewNetwork) -> None:
    """Compiles the transformer blocks, each kind once for all layers and for all image shapes.

    The compiler fuses torch's own operations by itself, so a compiled block gets these whatever the network chose.
    The heads stay as they are: their reshapes of unknown sizes are more than the compiler can order.
    """
    encoder = torch.compile(EncoderBlock.forward, dynamic=True)
    decoder = torch.compile(DecoderBlock.forward, dynamic=True)
    plain = PlainOperations()
    twins: dict[int, RopeTable] = {}

    def encode(block: EncoderBlock, x: torch.Tensor, rope: RopeTable, ops: Operations) -> torch.Tensor:
        # the first block's tokens come transposed: made contiguous, they need no second version
        return encoder(block, x.contiguous(), rope, plain)

    def decode(
        block: DecoderBlock, x: torch.Tensor, y: torch.Tensor, rope_x: RopeTable, rope_y: RopeTable, ops: Operations
    ) -> torch.Tensor:
        if rope_x.cos is rope_y.cos:  # one table for both views would be another version than two tables
            key = id(rope_x.cos)
            if key not in twins:
                twins[key] = RopeTable(rope_x.cos.clone(), rope_x.sin.clone())
            rope_y = twins[key]
        return decoder(block, x, y, rope_x, rope_y, plain)

    compiled: dict[type, Callable[..., Any]] = {EncoderBlock: encode, DecoderBlock: decode}
    for module in network.modules():
        if type(module) in compiled:
            module.forward = MethodType(compiled[type(module)], module)
