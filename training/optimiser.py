"""Muon for the matrices of the transformer blocks, AdamW for everything else.

Muon (Jordan et al. 2024): momentum, then an orthogonalised update by five Newton-Schulz steps. The query, key
and value parts of a joint projection are matrices of their own. Matrices of one shape are stacked, so that a
step takes a few batched products instead of thousands of small ones.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
ADAM_EPS = 1e-8


@dataclass(frozen=True)
class OptimiserOptions:
    weight_decay: float = 0.05
    momentum: float = 0.95
    betas: tuple[float, float] = (0.9, 0.95)
    clip: float = 1.0
    newton_schulz_steps: int = 5


def orthogonalise(matrices: torch.Tensor, steps: int) -> torch.Tensor:
    """Approximately U V^T of the singular value decompositions of a stack (n, rows, columns), rows <= columns."""
    a, b, c = NEWTON_SCHULZ
    x = matrices.bfloat16() if matrices.is_cuda else matrices
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.transpose(-1, -2)
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.to(matrices.dtype)


@dataclass(frozen=True)
class _Stack:
    """Matrices of one shape: views of the parameters and of their gradients, and the momentum (n, rows, columns)."""

    weights: list[torch.Tensor]
    gradients: list[torch.Tensor]
    momentum: torch.Tensor
    transposed: bool


class Optimiser:
    """Steps all parameters of a network.

    Parameters and gradients become views of two flat buffers: several GPUs average the gradients at once, and AdamW
    is a handful of operations on a slice. Order: matrices and kernels of AdamW, its vectors, matrices of Muon.
    """

    def __init__(self, network: nn.Module, options: OptimiserOptions) -> None:
        self.options = options
        named = [(name, p) for name, p in network.named_parameters() if p.requires_grad]
        muon = [(name, p) for name, p in named if "_blocks" in name and p.dim() == 2]
        taken = {name for name, _ in muon}
        rest = [(name, p) for name, p in named if name not in taken]
        decayed = [(name, p) for name, p in rest if p.dim() >= 2]
        vectors = [(name, p) for name, p in rest if p.dim() < 2]
        device = named[0][1].device
        self._weights = torch.empty(sum(p.numel() for _, p in named), device=device)
        self.gradient = torch.zeros_like(self._weights)
        offset = 0
        for _, parameter in decayed + vectors + muon:
            own = slice(offset, offset + parameter.numel())
            self._weights[own] = parameter.detach().flatten()
            parameter.data = self._weights[own].view(parameter.shape)
            parameter.grad = self.gradient[own].view(parameter.shape)
            offset += parameter.numel()
        self._num_decayed = sum(p.numel() for _, p in decayed)
        self._num_adamw = self._num_decayed + sum(p.numel() for _, p in vectors)
        self._mean = torch.zeros(self._num_adamw, device=device)
        self._square = torch.zeros(self._num_adamw, device=device)
        self._steps = 0
        self._stacks = _stack(muon)

    def zero_grad(self) -> None:
        self.gradient.zero_()

    @torch.no_grad()
    def step(self, lr: float) -> torch.Tensor:
        """One step; returns the gradient's norm before clipping. A gradient that is not finite counts as zero."""
        norm = self.gradient.norm()
        factor = torch.where(norm.isfinite(), (self.options.clip / (norm + 1e-6)).clamp(max=1.0), 0.0)
        self.gradient.nan_to_num_(0.0, 0.0, 0.0).mul_(factor)
        self._steps += 1
        self._step_adamw(lr)
        for stack in self._stacks:
            self._step_stack(stack, lr)
        return norm

    def _step_adamw(self, lr: float) -> None:
        first, second = self.options.betas
        gradient = self.gradient[: self._num_adamw]
        self._mean.lerp_(gradient, 1 - first)
        self._square.mul_(second).addcmul_(gradient, gradient, value=1 - second)
        spread = (self._square / (1 - second**self._steps)).sqrt_().add_(ADAM_EPS)
        self._weights[: self._num_decayed].mul_(1 - lr * self.options.weight_decay)
        self._weights[: self._num_adamw].addcdiv_(self._mean, spread, value=-lr / (1 - first**self._steps))

    def _step_stack(self, stack: _Stack, lr: float) -> None:
        gradient = torch.stack(stack.gradients)
        if stack.transposed:
            gradient = gradient.transpose(-1, -2)
        momentum = self.options.momentum
        stack.momentum.lerp_(gradient, 1 - momentum)
        update = orthogonalise(gradient.lerp(stack.momentum, momentum), self.options.newton_schulz_steps)
        update = update * (0.2 * math.sqrt(max(update.shape[-2:])))
        if stack.transposed:
            update = update.transpose(-1, -2)
        torch._foreach_mul_(stack.weights, 1 - lr * self.options.weight_decay)
        torch._foreach_add_(stack.weights, list(update.unbind(0)), alpha=-lr)


def _stack(matrices: list[tuple[str, nn.Parameter]]) -> list[_Stack]:
    by_shape: dict[tuple[int, int], tuple[list[torch.Tensor], list[torch.Tensor]]] = {}
    for name, parameter in matrices:
        parts = 3 if name.endswith("qkv.weight") else 1
        assert parameter.grad is not None
        for weight, gradient in zip(parameter.detach().chunk(parts), parameter.grad.chunk(parts), strict=True):
            weights, gradients = by_shape.setdefault((weight.shape[0], weight.shape[1]), ([], []))
            weights.append(weight)
            gradients.append(gradient)
    stacks = []
    for (rows, columns), (weights, gradients) in by_shape.items():
        shape = (len(weights), min(rows, columns), max(rows, columns))
        stacks.append(_Stack(weights, gradients, torch.zeros(shape, device=weights[0].device), rows > columns))
    return stacks
