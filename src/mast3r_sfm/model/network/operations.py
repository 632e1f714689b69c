"""The operations of the network that have more than one implementation, and the choice between these.

`PlainOperations` is torch alone, for every device and for training. In inference `OneDnnOperations` replaces it on CPUs
and `operations_triton` on CUDA devices. The network chooses once per call and hands the choice down to its layers.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import nn

from mast3r_sfm.cpu import has_onednn
from mast3r_sfm.device import has_triton
from mast3r_sfm.model.config import Activation
from mast3r_sfm.model.network.operations_plain import OneDnnOperations, PlainOperations
from mast3r_sfm.model.network.rope import RopeTable


class Operations(Protocol):
    """What the layers leave to the implementation that was chosen. Maps are (B, C, H, W)."""

    def linear(self, layer: nn.Linear, x: torch.Tensor, gelu: bool = False) -> torch.Tensor:
        """layer(x), then exact GELU if asked; x (..., in) in the type of the weights."""
        ...

    def attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """softmax(q k^T / sqrt(head_dim)) v over (B, N, heads, head_dim) -> (B, N, heads * head_dim)."""
        ...

    def normalise(self, x: torch.Tensor, norm: nn.LayerNorm, dtype: torch.dtype) -> torch.Tensor:
        """norm(x) in `dtype`, that of the weights it goes to; x (..., width) float32."""
        ...

    def add_and_normalise(
        self, x: torch.Tensor, delta: torch.Tensor, norm: nn.LayerNorm, dtype: torch.dtype
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """A residual junction: (x + delta, norm(x + delta) in `dtype`); x (..., width) float32 is not changed."""
        ...

    def rotate(self, heads: torch.Tensor, table: RopeTable) -> torch.Tensor:
        """Rotary embedding of head vectors (B, N, heads, head_dim) in their own dtype; they may be overwritten."""
        ...

    def convolve(
        self, conv: nn.Conv2d | nn.ConvTranspose2d, x: torch.Tensor, *residuals: torch.Tensor, relu: bool = False
    ) -> torch.Tensor:
        """conv(x), plus up to two residuals, then ReLU if asked. Patches of a transposed one must not overlap."""
        ...

    def upsample(self, x: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        """Bilinear upsampling of (B, C, h, w) to `size` (H, W), corners aligned."""
        ...

    def points_and_conf(
        self,
        features: torch.Tensor,
        size: tuple[int, int],
        hidden: nn.Conv2d,
        last: nn.Conv2d,
        depth_mode: Activation,
        conf_mode: Activation,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The end of a DPT: features (B, C, h, w) -> points (B, H, W, 3) and confidence (B, H, W), float32.

        Upsampling to `size` (H, W), `hidden`, ReLU, `last` to (x, y, z, confidence), the activations.
        """
        ...

    def descriptors(
        self, local: torch.Tensor, grid: tuple[int, int], side: int, desc_dim: int, conf_mode: Activation | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Token features (B, N, C * side^2) -> unit descriptors (B, H, W, desc_dim) and, with a `conf_mode`, their
        confidence (B, H, W) from channel `desc_dim`; both float32."""
        ...


def choose_operations(device: torch.device, dtype: torch.dtype) -> Operations:
    """The implementation for weights of `dtype` on `device`, as things stand at the call.

    Fused kernels have no gradients, and torch.compile fuses by itself. Float32 results stay those of torch's own
    operations, except that the rotary embedding is computed in one pass there too.
    """
    in_inference = not torch.is_grad_enabled() and not torch.compiler.is_compiling()
    if device.type == "cpu" and dtype == torch.float32 and in_inference and has_onednn():
        return OneDnnOperations()
    if device.type != "cuda" or not in_inference or not has_triton():
        return PlainOperations()
    from mast3r_sfm.model.network.operations_triton import FusedOperations, FusedRotation

    return FusedOperations() if dtype in (torch.float16, torch.bfloat16) else FusedRotation()
