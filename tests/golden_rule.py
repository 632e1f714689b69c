"""The rule by which the golden weights and inputs were drawn: every tensor from the CRC-32 of its name."""

from __future__ import annotations

import math
import zlib

import numpy as np
import torch


def normal(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Standard normal float64 numbers seeded by `name`."""
    return np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)


def weight(key: str, shape: tuple[int, ...]) -> torch.Tensor:
    """The golden value of the state-dict entry `key`."""
    parts = key.split(".")
    if "layer_rn" in parts:  # alias of the convolution of the same level
        level = int(parts[parts.index("layer_rn") + 1])
        parts = [*parts[: parts.index("layer_rn")], f"layer{level + 1}_rn", parts[-1]]
        key = ".".join(parts)
    n = normal(key, shape)
    if key == "mask_token":
        n = 0.02 * n
    elif len(shape) >= 2:
        n = n / math.sqrt(math.prod(shape[1:]))
        if key.endswith("dpt.head.4.weight"):
            n = 0.25 * n
    elif parts[-1] == "weight":
        n = 1 + 0.1 * n
    elif "norm" in parts[-2]:
        n = 0.1 * n
    else:
        n = 0.02 * n
    return torch.from_numpy(n.astype(np.float32))


def image(case: str, view: int, shape: tuple[int, ...]) -> torch.Tensor:
    """The golden input of a case, already normalised."""
    n = normal(f"input.{case}.view{view}", shape)
    return torch.from_numpy(np.clip(0.5 * n, -1, 1).astype(np.float32))
