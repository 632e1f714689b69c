"""Adam over one flat vector, free of host synchronisation, so that an iteration can be a CUDA graph."""

from __future__ import annotations

import math

import torch

BETAS = (0.9, 0.9)
EPS = 1e-8


class CosineAdam:
    """Adam (betas 0.9, 0.9, bias corrected) whose learning rate falls from `lr` to 0 over `niter` iterations.

    The iteration count and the schedule live on the device. `values` is changed in place.
    """

    def __init__(self, values: torch.Tensor, lr: float, niter: int) -> None:
        self.values = values
        self.iteration = torch.zeros(1, dtype=torch.int64, device=values.device)
        self._mean = torch.zeros_like(values)
        self._square = torch.zeros_like(values)
        self._schedule = torch.tensor([_schedule_row(lr, it, niter) for it in range(niter)], device=values.device)

    def step(self, gradient: torch.Tensor) -> None:
        """One iteration; `gradient` has the shape of `values`."""
        minus_rate, root_correction = self._schedule.index_select(0, self.iteration)[0].unbind()
        self._mean.lerp_(gradient, 1 - BETAS[0])
        self._square.mul_(BETAS[1]).addcmul_(gradient, gradient, value=1 - BETAS[1])
        denominator = self._square.sqrt().mul_(root_correction).add_(EPS)
        self.values.add_((self._mean * minus_rate).div_(denominator))
        self.iteration += 1

    def state(self) -> list[torch.Tensor]:
        """The tensors that `step` changes."""
        return [self.values, self.iteration, self._mean, self._square]


def _schedule_row(lr: float, iteration: int, niter: int) -> tuple[float, float]:
    """-(learning rate) / (1 - beta1^t) and 1 / sqrt(1 - beta2^t)."""
    rate = lr * (1 + math.cos(math.pi * iteration / niter)) / 2
    t = iteration + 1
    return -rate / (1 - BETAS[0] ** t), 1 / math.sqrt(1 - BETAS[1] ** t)
