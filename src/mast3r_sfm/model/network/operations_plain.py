"""`Operations` in plain torch: for every device, every precision and for training."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from einops import rearrange
from torch import nn
from torch.nn import functional as F

from mast3r_sfm.cpu import linear
from mast3r_sfm.model.config import Activation
from mast3r_sfm.model.network.maps import activate_confidence, activate_points, unpatchify
from mast3r_sfm.model.network.rope import RopeTable, rotate

_SCORES = 1 << 20  # of an attention that a CPU holds at once
_PIXEL_BYTES = 256 * 2**20  # of activations at the image's own resolution that inference holds at once


def few_images_at_a_time(features: torch.Tensor, size: tuple[int, int]) -> Sequence[torch.Tensor]:
    """(B, C, h, w) in parts along B: in inference, so that a part's maps of `size` (H, W) fit in `_PIXEL_BYTES`."""
    if torch.is_grad_enabled():
        return [features]
    # a convolution reads and writes as many channels
    per_image = 2 * features.shape[1] * size[0] * size[1] * features.element_size()
    return features.split(max(1, _PIXEL_BYTES // per_image))


@lru_cache(maxsize=64)
def _interpolation(size: int, source: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """(size, source): linear interpolation with aligned corners along one axis, as a matrix."""
    unit = torch.eye(source)[None]
    return F.interpolate(unit, size=size, mode="linear", align_corners=True)[0].T.to(device, dtype).contiguous()


class PlainOperations:
    """See `Operations` for what each of them computes."""

    def linear(self, layer: nn.Linear, x: torch.Tensor, gelu: bool = False) -> torch.Tensor:
        return F.gelu(layer(x)) if gelu else layer(x)

    def attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        q, k, v = (rearrange(x, "b n heads d -> b heads n d") for x in (q, k, v))
        return rearrange(F.scaled_dot_product_attention(q, k, v), "b heads n d -> b n (heads d)")

    def normalise(self, x: torch.Tensor, norm: nn.LayerNorm, dtype: torch.dtype) -> torch.Tensor:
        return norm(x).to(dtype)

    def add_and_normalise(
        self, x: torch.Tensor, delta: torch.Tensor, norm: nn.LayerNorm, dtype: torch.dtype
    ) -> tuple[torch.Tensor, torch.Tensor]:
        x = x + delta
        return x, norm(x).to(dtype)

    def rotate(self, heads: torch.Tensor, table: RopeTable) -> torch.Tensor:
        return rotate(heads, table)

    def convolve(
        self, conv: nn.Conv2d | nn.ConvTranspose2d, x: torch.Tensor, *residuals: torch.Tensor, relu: bool = False
    ) -> torch.Tensor:
        out = conv(x)
        for residual in residuals:
            out = residual + out
        return F.relu(out) if relu else out

    def upsample(self, x: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        """In half precision on CUDA two matrix products over channels-last memory, several times faster there."""
        if not x.is_cuda or x.dtype == torch.float32:
            return F.interpolate(x, size=size, mode="bilinear", align_corners=True)
        batch, channels, rows, columns = x.shape
        vertical = _interpolation(size[0], rows, x.dtype, x.device)
        horizontal = _interpolation(size[1], columns, x.dtype, x.device)
        x = torch.matmul(vertical, rearrange(x, "b c rows columns -> b rows (columns c)"))
        x = torch.matmul(horizontal, rearrange(x, "b y (columns c) -> (b y) columns c", c=channels))
        return rearrange(x, "(b y) x c -> b c y x", b=batch)

    def points_and_conf(
        self,
        features: torch.Tensor,
        size: tuple[int, int],
        hidden: nn.Conv2d,
        last: nn.Conv2d,
        depth_mode: Activation,
        conf_mode: Activation,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        raw = self.raw_points(features, size, hidden, last)
        return activate_points(raw[..., :3], depth_mode), activate_confidence(raw[..., 3], conf_mode)

    def raw_points(
        self, features: torch.Tensor, size: tuple[int, int], hidden: nn.Conv2d, last: nn.Conv2d
    ) -> torch.Tensor:
        """(B, H, W, 4) float32: x, y, z and confidence before the activations."""
        maps = [
            last(self.convolve(hidden, self.upsample(part, size), relu=True))
            for part in few_images_at_a_time(features, size)
        ]
        raw = maps[0] if len(maps) == 1 else torch.cat(maps)
        return rearrange(raw, "b c y x -> b y x c").float()

    def descriptors(
        self, local: torch.Tensor, grid: tuple[int, int], side: int, desc_dim: int, conf_mode: Activation | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        maps = unpatchify(local, grid, side).float()
        desc = F.normalize(maps[..., :desc_dim], dim=-1, eps=0.0)
        return desc, None if conf_mode is None else activate_confidence(maps[..., desc_dim], conf_mode)


class OneDnnOperations(PlainOperations):
    """For inference in float32 on CPUs."""

    def linear(self, layer: nn.Linear, x: torch.Tensor, gelu: bool = False) -> torch.Tensor:
        return linear(x, layer.weight, layer.bias, gelu)

    def attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """Head by head, whose scores stay in the cache: oneDNN's products make up for what is written and read."""
        batch, count, heads, width = q.shape
        out = q.new_empty(batch, count, heads, width)
        rows = max(64, _SCORES // k.shape[1])
        for b in range(batch):
            for head in range(heads):
                queries, keys = q[b, :, head] * width**-0.5, k[b, :, head].contiguous()
                values = v[b, :, head].T.contiguous()
                for start in range(0, count, rows):
                    part = slice(start, start + rows)
                    out[b, part, head] = linear(linear(queries[part], keys).softmax(-1), values)
        return out.flatten(2)
