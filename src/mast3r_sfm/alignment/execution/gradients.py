"""From the gradients that the evaluators return to those of the parameters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import torch

from mast3r_sfm.alignment.execution.cameras import CameraMatrices


class PullBack:
    """Collects tensors that autograd has followed from the parameters, with the gradient of the loss by each.

    `to` lets autograd take those gradients back to the parameters, all in one pass.
    """

    def __init__(self) -> None:
        self._outputs: list[torch.Tensor] = []
        self._gradients: list[torch.Tensor] = []

    def add(self, output: torch.Tensor, gradient: torch.Tensor) -> None:
        """`gradient` has the shape of `output`; an output that no parameter moves is left out."""
        if output.requires_grad:
            self._outputs.append(output)
            self._gradients.append(gradient)

    def add_cameras(self, cameras: CameraMatrices, gradient: CameraMatrices, weight: float = 1.0) -> None:
        """The matrices that have a gradient, with that gradient times `weight`."""
        for field in fields(CameraMatrices):
            output, own = getattr(cameras, field.name), getattr(gradient, field.name)
            if own is not None and output.requires_grad:
                self.add(output, own if weight == 1 else own * weight)

    def to(self, leaves: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The gradient of the loss by each of `leaves`."""
        with torch.enable_grad():
            stand_in = _WithGradients.apply(self._gradients, *self._outputs)
        return dict(zip(leaves, torch.autograd.grad(stand_in, list(leaves.values())), strict=True))


class _WithGradients(torch.autograd.Function):
    """A scalar of given gradients. `autograd.grad` takes them as an argument too, but imports sympy to check them."""

    @staticmethod
    def forward(ctx: Any, gradients: list[torch.Tensor], *outputs: torch.Tensor) -> torch.Tensor:
        ctx.gradients = gradients
        return outputs[0].new_zeros(())

    @staticmethod
    def backward(ctx: Any, _: torch.Tensor) -> Any:
        return None, *ctx.gradients
