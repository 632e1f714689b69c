"""What a run will need and what it took, for the user's eyes."""

from __future__ import annotations

import contextlib
import resource
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from mast3r_sfm.inference import auto_batch_size, bytes_per_pair
from mast3r_sfm.model.checkpoint import Model
from mast3r_sfm.options import RefinementOptions
from mast3r_sfm.types import View

_MATCHES_PER_ANCHOR = 1.6  # verified ones of photos that overlap well; exact predictions give up to 3.5
_BYTES_PER_MATCH = 120  # both sides' observations and the gradients on them
_CANONICAL_BYTES = 32  # per pixel: the running sums


def estimate_matches(views: Sequence[View], num_pairs: int, subsample: int) -> float:
    """Matches that a run keeps if all of `num_pairs` overlap well, estimated before it starts."""
    return num_pairs * max(view.shape[0] * view.shape[1] for view in views) / subsample**2 * _MATCHES_PER_ANCHOR


def estimate_memory(
    model: Model,
    views: Sequence[View],
    num_pairs: int,
    subsample: int,
    batch_size: int | None = None,
    refinement: RefinementOptions | None = None,
) -> float:
    """Rough bytes that a run holds on the model's device at its peak, estimated before it starts.

    The pairs' stage (weights, features, canonical views, one batch) and the alignment follow each other. On a CPU the
    process as it is, and the local features of the refinement, are in the same memory.
    """
    pixels = [view.shape[0] * view.shape[1] for view in views]
    element = model.network.decoder_embed.weight.element_size()
    weights = sum(p.numel() * p.element_size() for p in model.network.parameters())
    features = sum(pixels) / model.config.patch_size**2 * model.config.enc_embed_dim * element
    canonical = _CANONICAL_BYTES * sum(pixels)
    shape = max((view.shape for view in views), key=lambda shape: shape[0] * shape[1])
    batch = min(batch_size or auto_batch_size(model, shape), max(1, num_pairs)) * bytes_per_pair(model, shape)
    alignment = estimate_matches(views, num_pairs, subsample) * _BYTES_PER_MATCH
    if model.device.type != "cpu":
        return weights + canonical + max(features + batch, alignment)
    local = 0.0
    if refinement is not None:
        from mast3r_sfm.local_features import memory_of_features  # a run without refinement need not load its libraries

        local = memory_of_features(views, refinement)
    return _resident() + canonical + max(features + batch, local, alignment)


def peak_memory(device: torch.device) -> dict[str, float]:
    """Peak bytes so far, or since `forget_peak`: `ram` of this process, and `gpu` if the device is one."""
    peak = {"ram": _peak_ram()}
    if device.type == "cuda":
        peak["gpu"] = float(torch.cuda.max_memory_allocated(device))
    return peak


def forget_peak() -> None:
    """Peaks count from here on: of the GPU, and where the system can do it (Linux) of this process's RAM."""
    if torch.cuda.is_initialized():
        for index in range(torch.cuda.device_count()):
            torch.cuda.reset_peak_memory_stats(index)
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _resident() -> float:
    """Bytes of RAM that this process holds, weights included; where the system does not say, the most it has held."""
    return _of_status("VmRSS") or _peak_ram()


def _of_status(name: str) -> float | None:
    """Bytes that Linux states of this process."""
    try:
        return 1024.0 * int(Path("/proc/self/status").read_text().split(f"{name}:")[1].split()[0])
    except (OSError, IndexError):
        return None


def _peak_ram() -> float:
    peak = _of_status("VmHWM")  # unlike getrusage it does not count what the process was forked from
    if peak is not None:
        return peak
    unit = 1 if sys.platform == "darwin" else 1024
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)
