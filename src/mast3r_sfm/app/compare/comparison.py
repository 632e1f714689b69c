"""Do two engines agree on a scene? Compares what does not depend on the frame or the scale of either result."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch

from mast3r_sfm.errors import ReconstructionError
from mast3r_sfm.types import Correspondences, ReconstructedScene, ReconstructedView

MATCH_PX = 3.0
"""A match holds in a scene if its pixel, taken through the scene's depth and cameras, lands this close to its mate."""

_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Limits:
    """Largest differences of engines that agree, for every view.

    About four times what the published method differs from itself when its input is disturbed by 1e-7 (rotation
    0.17 degrees, position 0.9 % of the cameras' extent, focal 0.1 %, depth 0.4 %), and more for the focal, which is
    weakly bound in real scenes.
    """

    rotation_deg: float = 0.7
    position: float = 0.035
    focal: float = 0.01
    depth: float = 0.02


@dataclass(frozen=True)
class ViewDifference:
    """How far the engines are apart on one view.

    depth          median over the pixels of |native / upstream - 1|, after the common scale
    rotation_deg   median over the other views of the angle between the two relative rotations
    position       likewise of the distance between the two relative camera centres, over the cameras' RMS extent
    focal          |native / upstream - 1|
    matches        the view's matches in both directions
    held_native, held_upstream, held_both
                   share of them that lands within MATCH_PX in the scene of either engine, and in both; nan without
    """

    index: int
    file: str
    depth: float
    rotation_deg: float
    position: float
    focal: float
    matches: int
    held_native: float
    held_upstream: float
    held_both: float

    def within(self, limits: Limits) -> bool:
        return (
            self.depth <= limits.depth
            and self.rotation_deg <= limits.rotation_deg
            and self.position <= limits.position
            and self.focal <= limits.focal
        )


@dataclass(frozen=True)
class Comparison:
    """The views that both engines placed; `scale` is upstream's unit of length over ours. `alone` are files that only
    one engine placed."""

    views: tuple[ViewDifference, ...]
    alone: tuple[str, ...]
    scale: float
    limits: Limits

    @property
    def agrees(self) -> bool:
        return not self.alone and all(view.within(self.limits) for view in self.views)


@dataclass(frozen=True)
class Cost:
    """What an engine took: wall-clock seconds, and peak bytes on the GPU (None on a CPU) and in RAM (None: unknown)."""

    seconds: float
    gpu_bytes: int | None
    ram_bytes: int | None


def compare(native: ReconstructedScene, upstream: ReconstructedScene, limits: Limits | None = None) -> Comparison:
    """Compares two reconstructions of the same photos, view by view. The matches are the native ones.

    Raises ReconstructionError if fewer than two views are placed by both.
    """
    pairs = list(zip(native.views, upstream.views, strict=True))
    both = [(a, b) for a, b in pairs if a.registered and b.registered]
    if len(both) < 2:
        raise ReconstructionError(f"only {len(both)} of {len(pairs)} images were placed by both engines")
    ratios = [_ratios(a, b) for a, b in both]
    scale = float(np.median([np.median(ratio) for ratio in ratios]))
    poses = [np.stack([pair[side].world_from_cam for pair in both]) for side in (0, 1)]
    poses[0] = poses[0].copy()
    poses[0][:, :3, 3] *= scale
    rotation, position = _relative_differences(*poses)
    held = _held_matches(native, upstream)
    differences = []
    for k, (a, b) in enumerate(both):
        flags = held[a.index]
        differences.append(
            ViewDifference(
                index=a.index,
                file=a.file,
                depth=float(np.median(np.abs(scale / ratios[k] - 1))),
                rotation_deg=float(rotation[k]),
                position=float(position[k]),
                focal=abs(a.K[0, 0] / b.K[0, 0] - 1),
                matches=len(flags),
                held_native=_share(flags[:, 0]),
                held_upstream=_share(flags[:, 1]),
                held_both=_share(flags[:, 0] & flags[:, 1]),
            )
        )
    alone = tuple(a.file for a, b in pairs if a.registered != b.registered)
    return Comparison(tuple(differences), alone, scale, limits or Limits())


def measured(run: Callable[[], _Result], device: torch.device) -> tuple[_Result, Cost]:
    """Runs an engine and says what it took. Peaks are those of this run, not of what came before."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    resettable = _reset_peak_ram()
    start = time.perf_counter()
    result = run()
    gpu = None
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        gpu = torch.cuda.max_memory_allocated(device)
    seconds = time.perf_counter() - start
    return result, Cost(seconds, gpu, _peak_ram() if resettable else None)


def _ratios(native: ReconstructedView, upstream: ReconstructedView) -> np.ndarray:
    """Upstream's depth over ours where both are known, (k,) float64, k > 0."""
    a, b = native.depth.astype(np.float64), upstream.depth.astype(np.float64)
    known = np.isfinite(a) & np.isfinite(b) & (a > 0) & (b > 0)
    if not known.any():
        raise ReconstructionError(f"{native.file}: no pixel has a depth in both results")
    return b[known] / a[known]


def _relative_differences(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rotation (degrees) and position (over the RMS extent of the second's cameras) of every camera as the others see
    it: medians over the others, (n,) each. Relative poses make the two world frames irrelevant."""
    n = len(first)
    others = ~np.eye(n, dtype=bool)
    relative = [np.einsum("iab,jbc->ijac", np.linalg.inv(poses), poses) for poses in (first, second)]
    trace = np.einsum("ijab,ijab->ij", relative[0][..., :3, :3], relative[1][..., :3, :3])
    # the angle from the sine as well: arccos alone cannot resolve small angles
    product = np.swapaxes(relative[0][..., :3, :3], -1, -2) @ relative[1][..., :3, :3]
    skew = product - np.swapaxes(product, -1, -2)
    sine = np.linalg.norm(skew[..., [2, 0, 1], [1, 2, 0]], axis=-1) / 2
    angles = np.degrees(np.arctan2(sine, (trace - 1) / 2))
    distances = np.linalg.norm(relative[0][..., :3, 3] - relative[1][..., :3, 3], axis=-1)
    centres = second[:, :3, 3]
    extent = np.sqrt(((centres - centres.mean(0)) ** 2).sum(1).mean())
    distances = distances / max(extent, np.finfo(np.float64).tiny)
    return (
        np.array([np.median(angles[i, others[i]]) for i in range(n)]),
        np.array([np.median(distances[i, others[i]]) for i in range(n)]),
    )


def _held_matches(native: ReconstructedScene, upstream: ReconstructedScene) -> list[np.ndarray]:
    """Per view (m, 2) bool: whether each of its matches holds in the native and in the upstream scene."""
    flags: list[list[np.ndarray]] = [[] for _ in native.views]
    for match in native.matches:
        for i, j, back in ((match.i, match.j, False), (match.j, match.i, True)):
            columns = [_holds(scene.views[i], scene.views[j], match, back) for scene in (native, upstream)]
            flags[i].append(np.stack(columns, axis=1))
    empty = np.zeros((0, 2), dtype=bool)
    return [np.concatenate([empty, *per_view]) for per_view in flags]


def _holds(view: ReconstructedView, other: ReconstructedView, match: Correspondences, back: bool) -> np.ndarray:
    """(m,) bool: does the pixel of `view`, at its depth, land on its mate in `other`?"""
    if not (view.registered and other.registered):
        return np.zeros(len(match), dtype=bool)
    here, there = (match.xy_j, match.xy_i) if back else (match.xy_i, match.xy_j)
    xy, target = here.numpy(), there.numpy()
    depth = view.depth[xy[:, 1], xy[:, 0]].astype(np.float64)
    rays = (xy - view.K[:2, 2]) / np.diag(view.K)[:2]
    points = np.concatenate([rays * depth[:, None], depth[:, None], np.ones((len(xy), 1))], axis=1)
    cam = points @ (np.linalg.inv(other.world_from_cam) @ view.world_from_cam).T
    with np.errstate(divide="ignore", invalid="ignore"):
        landed = cam[:, :2] / cam[:, 2:3] * np.diag(other.K)[:2] + other.K[:2, 2]
        return (cam[:, 2] > 0) & (np.linalg.norm(landed - target, axis=1) <= MATCH_PX)


def _share(flags: np.ndarray) -> float:
    return float(flags.mean()) if len(flags) else float("nan")


def _reset_peak_ram() -> bool:
    """Starts the kernel's record of this process's peak anew; False where it cannot be (other systems than Linux)."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # glibc only: freed memory that it keeps would hide what is new
        ctypes.CDLL(None).malloc_trim(0)
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _peak_ram() -> int | None:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return None
