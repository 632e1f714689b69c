"""What matches and tracks say of the depth of single pixels, with all cameras fixed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from mast3r_sfm.canonical import nearest_pixels
from mast3r_sfm.dense.views import DenseView, cameras_from
from mast3r_sfm.types import Correspondences

STEPS = 4
MAX_STEP = 0.3  # of a log depth
PIXEL_SIGMA = 0.5  # of a match, network pixels
LEAST_SIGMA = 0.005  # of a log depth: no match says more, because a pixel is not a point
TRACK_SIGMA = 0.005
SPREAD = 0.03  # observations of one pixel that differ by more are not believed both
UNITS = 1 << 20  # of sums in integers


@dataclass(frozen=True)
class Sightings:
    """Pixels of one view and where another view sees their points.

    pixel  (M, 2) int64;  other  (M,) position of the other view;  seen_at  (M, 2) float32 its pixels;
    conf   (M,) relative to the usual
    """

    pixel: torch.Tensor
    other: torch.Tensor
    seen_at: torch.Tensor
    conf: torch.Tensor


@dataclass(frozen=True)
class TrackedPixels:
    """Pixels (M, 2) int64 of one view whose z-depth (M,) is that of a point of a track."""

    pixel: torch.Tensor
    depth: torch.Tensor

    def to(self, device: torch.device) -> TrackedPixels:
        return TrackedPixels(self.pixel.to(device), self.depth.to(device))


@dataclass(frozen=True)
class Observed:
    """Per pixel (H, W) float32: the log depth that is observed, and its weight, one over its variance; 0 without."""

    log_depth: torch.Tensor
    weight: torch.Tensor


def observe(views: Sequence[DenseView], i: int, seen: Sightings, tracked: TrackedPixels | None) -> Observed:
    """All observations of view i, one for every pixel; where several differ, those near their mean count."""
    view = views[i]
    H, W = view.shape
    x, weight = _triangulated(views, i, seen)
    index = seen.pixel[:, 1] * W + seen.pixel[:, 0]
    if tracked is not None:
        x = torch.cat([x, tracked.depth.log()])
        weight = torch.cat([weight, torch.full_like(tracked.depth, TRACK_SIGMA**-2)])
        index = torch.cat([index, tracked.pixel[:, 1] * W + tracked.pixel[:, 0]])
    # counted from the relief, so that the sums are of small numbers
    base = view.relief.reshape(-1)
    excess = (x - base[index]).clamp(-20, 20)
    mean = excess.new_zeros(H * W)
    total = mean
    robust = weight
    for _ in range(2):
        total = _sum_at(index, robust, H * W)
        mean = _sum_at(index, robust * excess, H * W) / total.clamp_min(1e-6)
        robust = weight / (1 + ((excess - mean[index]) / SPREAD) ** 2)
    total = _sum_at(index, robust, H * W)
    return Observed((base + mean).view(H, W), total.view(H, W))


def _triangulated(views: Sequence[DenseView], i: int, seen: Sightings) -> tuple[torch.Tensor, torch.Tensor]:
    """(M,) log depths at which the pixels lie nearest to where the other views see them, and their weights.

    Gauss-Newton in the one unknown of each; a match off its epipolar line, or seen from almost the same place, says
    little.
    """
    view = views[i]
    x = view.relief[seen.pixel[:, 1], seen.pixel[:, 0]]
    if not len(x):
        return x, x
    cameras, lens = cameras_from(view, views)
    matrices = cameras[seen.other]
    fx, fy, cx, cy, k1 = lens[seen.other].unbind(1)
    ray = torch.einsum("mab,mb->am", matrices[:, :3, :3], view.rays()[:, seen.pixel[:, 1], seen.pixel[:, 0]].T)
    offset = matrices[:, :3, 3].T

    def project(x: torch.Tensor) -> torch.Tensor:
        X, Y, Z = ray * x.exp() + offset
        X, Y = X / Z, Y / Z
        bend = 1 + k1 * (X * X + Y * Y)
        return torch.where(Z > 0, torch.stack([fx * X * bend + cx, fy * Y * bend + cy]), torch.nan)

    step = 1e-3
    target = seen.seen_at.T
    for _ in range(STEPS):
        at = project(x)
        slope = (project(x + step) - at) / step
        move = (slope * (target - at)).sum(0) / slope.square().sum(0).clamp_min(1e-6)
        x = x + move.nan_to_num().clamp(-MAX_STEP, MAX_STEP)
    at = project(x)
    slope_sq = ((project(x + step) - at) / step).square().sum(0)
    error_sq = (at - target).square().sum(0)
    weight = seen.conf * slope_sq / (PIXEL_SIGMA**2 + error_sq)
    return x, weight.nan_to_num(posinf=0.0).clamp(0, LEAST_SIGMA**-2)


def view_device(view: DenseView) -> torch.device:
    return view.relief.device


def _sum_at(index: torch.Tensor, values: torch.Tensor, size: int) -> torch.Tensor:
    """(size,) sums of the values at each index, in integers: the order in which a device adds cannot matter."""
    sums = torch.zeros(size, dtype=torch.int64, device=values.device)
    return sums.index_add_(0, index, (values.double() * UNITS).round().long()).double().div_(UNITS).float()


def sightings_of_matches(
    views: Sequence[DenseView], group: Sequence[int], matches: Sequence[Correspondences]
) -> list[Sightings]:
    """Of every view: its pixels in all matches.

    group  `Correspondences.i` and `.j` of the views, in their order
    """
    position_of = {index: k for k, index in enumerate(group)}
    parts: list[list[tuple[torch.Tensor, ...]]] = [[] for _ in views]
    for m in matches:
        if not len(m):
            continue
        conf = m.conf.float() / m.conf.float().median().clamp_min(1e-6)
        i, j = position_of[m.i], position_of[m.j]
        for own, other, xy, seen_at in ((i, j, m.xy_i, m.xy_j), (j, i, m.xy_j, m.xy_i)):
            pixel = nearest_pixels(xy)
            parts[own].append((pixel, torch.full_like(pixel[:, 0], other), seen_at.float(), conf))
    result = []
    for view, own_parts in zip(views, parts, strict=True):
        nothing = (torch.zeros(0, 2, dtype=torch.int64), torch.zeros(0, dtype=torch.int64))
        joined = [torch.cat(column) for column in zip(*own_parts, strict=True)] or [
            *nothing, torch.zeros(0, 2), torch.zeros(0)
        ]  # fmt: skip
        result.append(Sightings(*(one.to(view_device(view)) for one in joined)))
    return result


def tracked_pixels(
    points: np.ndarray, xy: np.ndarray, world_from_cam: np.ndarray, shape: tuple[int, int]
) -> TrackedPixels:
    """Points (M, 3) of the world that a view of `shape` (H, W) sees at pixels (M, 2), in main memory.

    Those that lie outside of the image or behind the camera are left out.
    """
    H, W = shape
    depth = ((points - world_from_cam[:3, 3]) @ world_from_cam[:3, :3])[:, 2]
    pixel = np.rint(xy).astype(np.int64)
    inside = ((pixel >= 0) & (pixel < [W, H])).all(1) & np.isfinite(depth) & (depth > 0)
    return TrackedPixels(torch.from_numpy(pixel[inside]), torch.from_numpy(depth[inside]).float())
