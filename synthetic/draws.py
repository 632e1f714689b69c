"""Random numbers of the generator: drawn on the CPU, so that a seed gives the same scene on every device."""

from __future__ import annotations

import math

import torch

RESERVED_SEEDS = 1_000_000
"""Seeds below this number belong to tests, evaluation and the demo scene; training starts here."""


class Draws:
    """A stream of random numbers for a batch of scenes.

    All draws have the shape (batch, *shape), float32, on the CPU. The order of the calls matters.
    """

    def __init__(self, seed: int, batch: int) -> None:
        self.batch = batch
        self._generator = torch.Generator().manual_seed(seed)

    def uniform(self, low: float, high: float, *shape: int) -> torch.Tensor:
        """Uniform in [low, high)."""
        return low + (high - low) * torch.rand(self.batch, *shape, generator=self._generator)

    def log_uniform(self, low: float, high: float, *shape: int) -> torch.Tensor:
        """Uniform on a logarithmic scale between two positive bounds."""
        return torch.exp(self.uniform(math.log(low), math.log(high), *shape))

    def normal(self, *shape: int) -> torch.Tensor:
        """Standard normal."""
        return torch.randn(self.batch, *shape, generator=self._generator)

    def chance(self, probability: float, *shape: int) -> torch.Tensor:
        """Booleans, True with the given probability."""
        return torch.rand(self.batch, *shape, generator=self._generator) < probability

    def integers(self, low: int, high: int, *shape: int) -> torch.Tensor:
        """int64 in [low, high)."""
        return torch.randint(low, high, (self.batch, *shape), generator=self._generator)

    def directions(self, *shape: int) -> torch.Tensor:
        """Unit vectors (batch, *shape, 3), uniform on the sphere."""
        return torch.nn.functional.normalize(self.normal(*shape, 3), dim=-1)
