"""What tells the weights of two networks apart, wherever they came from."""

from __future__ import annotations

import hashlib

import torch
from torch import nn

_CHUNK = 1 << 20  # numbers that one factor each is kept for


@torch.inference_mode()
def weights_fingerprint(network: nn.Module) -> str:
    """32 hex digits of the names, types and bits of all parameters, the same on every device.

    The bits are read as whole numbers and summed with odd factors of 64 bits, modulo 2^64, where they lie: milliseconds
    on a GPU, a second for the published network on a CPU. It tells weights apart, but is no defence against forgery.
    """
    totals, names = [], []
    factors: dict[torch.device, torch.Tensor] = {}
    for name, parameter in network.named_parameters():
        if parameter.device not in factors:
            factors[parameter.device] = _factors(parameter.device)
        factor = factors[parameter.device]
        integer = torch.int16 if parameter.element_size() == 2 else torch.int32
        bits = parameter.detach().contiguous().view(-1).view(integer)
        sums = [(part.long() * factor[: len(part)]).sum() for part in bits.split(_CHUNK)]
        totals.append(torch.stack(sums).cpu())
        names.append(f"{name} {parameter.dtype} {tuple(parameter.shape)}")
    digest = hashlib.blake2b("\n".join(names).encode(), digest_size=16)
    digest.update(torch.cat(totals).numpy().tobytes())
    return digest.hexdigest()


def _factors(device: torch.device) -> torch.Tensor:
    """(_CHUNK,) int64: odd numbers without a pattern (the mixing of splitmix64)."""
    x = torch.arange(1, _CHUNK + 1, device=device) * -7046029254386353131
    x = (x ^ (x >> 30)) * -4658895280553007687
    x = (x ^ (x >> 27)) * -7723592293110705685
    return (x ^ (x >> 31)) | 1
