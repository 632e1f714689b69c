"""What the evaluators of the losses share: a loop over slabs of chunks, and arithmetic in place."""

from __future__ import annotations

import torch

from mast3r_sfm.alignment.execution.packing import CHUNK
from mast3r_sfm.alignment.losses import robust_offset

TINY = 1e-20
"""Smallest divisor."""

# matches in flight; the fine loss has temporaries of 200 bytes a match
_SLAB = {"cpu": 1 << 16, "cuda": 1 << 21}


def slabs(num_chunks: int, like: torch.Tensor, divided_by: int = 1) -> list[slice]:
    """Consecutive ranges of chunks, so that the temporaries stay small: in cache on a CPU, in memory on a GPU.

    divided_by  makes them smaller, for more temporaries a match than usual
    """
    step = max(1, _SLAB.get(like.device.type, _SLAB["cpu"]) // CHUNK // divided_by)
    return [slice(first, min(first + step, num_chunks)) for first in range(0, num_chunks, step)]


def slab_size(ranges: list[slice]) -> int:
    """Chunks of the largest slab."""
    return max(part.stop - part.start for part in ranges)


def total(losses: list[torch.Tensor]) -> torch.Tensor:
    """The sum of the slabs' losses, 0-d."""
    return losses[0] if len(losses) == 1 else torch.stack(losses).sum()


def norm(residual: torch.Tensor, out: torch.Tensor, scratch: torch.Tensor) -> None:
    """(C, k, L) -> (C, L); plane by plane, because a sum over a short middle dimension is slow on a CPU."""
    torch.mul(residual[:, 0], residual[:, 0], out=out)
    for k in range(1, residual.shape[1]):
        out += torch.mul(residual[:, k], residual[:, k], out=scratch)
    out.sqrt_()


def robust_value_and_slope(distance: torch.Tensor, exponent: float, value: torch.Tensor, slope: torch.Tensor) -> None:
    """`losses.robust_distance` of distances d: writes rho(d) to `value`, and rho'(d) / d, which is finite at 0, to
    `slope`. Overwrites `distance`.

    slope * residual is the gradient of rho(|residual|) by the residual.
    """
    offset = robust_offset(exponent)
    inverse = torch.clamp_min(distance, TINY, out=value).reciprocal_().mul_(exponent)
    distance += offset
    torch.pow(distance, exponent - 1, out=slope)  # +-0.5 are a square root
    distance *= slope
    slope *= inverse
    torch.sub(distance, offset**exponent, out=value)
