"""Stand-in for the network."""

from __future__ import annotations

from typing import Any

import torch


class AsymmetricMASt3R(torch.nn.Module):
    """Carries a model of this project."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.inner = model

    @classmethod
    def from_pretrained(cls, name: str) -> AsymmetricMASt3R:
        from mast3r_sfm.model.checkpoint import load_model

        return cls(load_model(name, device="cpu", precision="fp32"))
