"""Stand-in for the network."""

from __future__ import annotations

import torch

from mast3r_sfm.checkpoint import Model, load_model


class AsymmetricMASt3R(torch.nn.Module):
    """Carries a model of this project."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.inner = model

    @classmethod
    def from_pretrained(cls, name: str) -> AsymmetricMASt3R:
        return cls(load_model(name, device="cpu", precision="fp32"))
