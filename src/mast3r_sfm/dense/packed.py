"""All views of the dense stage end to end on one device, with tables of their cameras: what fused kernels read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import torch

from mast3r_sfm.dense.views import LEAST_SHARE_OF_MEDIAN, DenseCameras
from mast3r_sfm.types import CanonicalView

_PIXELS_AT_ONCE = 1 << 22  # of which the relief is computed together


@dataclass(frozen=True)
class PackedViews:
    """n registered views; packed maps (N,) hold the rows of their (H, W) maps one view after the other.

    relief, conf  (N,) float32 as `DenseView`'s
    bounds        n + 1 places in packed maps where the views begin and end
    shapes        (H, W) of each
    neighbours    of each, by position
    sizes         (n, 3) int64 of each: where it begins in packed maps, H, W
    lens          (n, 5) float32 fx, fy, cx, cy, k1
    first         (n + 1,) int32: edges first[i] to first[i + 1] - 1 lead from view i to its neighbours
    neighbour     (E,) int32 that view
    pose          (E, 12) float32: the rows of the 3x4 matrix from the camera of the view to its neighbour's
    """

    relief: torch.Tensor
    conf: torch.Tensor
    bounds: tuple[int, ...]
    shapes: tuple[tuple[int, int], ...]
    neighbours: tuple[tuple[int, ...], ...]
    sizes: torch.Tensor
    lens: torch.Tensor
    first: torch.Tensor
    neighbour: torch.Tensor
    pose: torch.Tensor

    @classmethod
    def of(
        cls, canonical: Sequence[CanonicalView], cameras: DenseCameras, neighbours: Sequence[Sequence[int]],
        subsample: int,
    ) -> PackedViews:  # fmt: skip
        """The views of a group, `DenseView.of` of all; `neighbours` by their positions in the group."""
        device = canonical[0].conf.device
        shapes = [(int(one.conf.shape[0]), int(one.conf.shape[1])) for one in canonical]
        bounds = (0, *accumulate(H * W for H, W in shapes))
        relief, conf = (torch.empty(bounds[-1], device=device) for _ in range(2))
        zoom = torch.from_numpy(np.array([one.focal_px for one in canonical]) / cameras.K[:, 0, 0]).float().to(device)
        for run in runs_of_size(shapes, _PIXELS_AT_ONCE, one_shape=True):
            part = slice(bounds[run.start], bounds[run.stop])
            found = _reliefs([canonical[k] for k in run], zoom[run.start : run.stop], subsample)
            relief[part], conf[part] = (one.reshape(-1) for one in found)
        own = np.repeat(np.arange(len(shapes)), [len(others) for others in neighbours])
        other = np.array([j for others in neighbours for j in others], dtype=np.int64)
        sizes = [(start, H, W) for start, (H, W) in zip(bounds, shapes, strict=False)]
        return cls(
            relief=relief,
            conf=conf,
            bounds=bounds,
            shapes=tuple(shapes),
            neighbours=tuple(map(tuple, neighbours)),
            sizes=torch.tensor(sizes, dtype=torch.int64).to(device),
            lens=torch.from_numpy(cameras.lens()).float().to(device),
            first=torch.tensor([0, *accumulate(map(len, neighbours))], dtype=torch.int32).to(device),
            neighbour=torch.from_numpy(other).int().to(device),
            pose=pose_rows(cameras, own, other).to(device),
        )

    def __len__(self) -> int:
        return len(self.shapes)

    @property
    def most_pixels(self) -> int:
        """Of any view."""
        return max(H * W for H, W in self.shapes)

    def maps_of(self, packed: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """(H, W) of every view."""
        return tuple(
            packed[start : start + H * W].view(H, W) for start, (H, W) in zip(self.bounds, self.shapes, strict=False)
        )

    def spread(self, values: torch.Tensor) -> torch.Tensor:
        """(N,) packed: values (n,) of the views at all their pixels."""
        return values.repeat_interleave(self.sizes[:, 1] * self.sizes[:, 2], output_size=self.bounds[-1])


def pose_rows(cameras: DenseCameras, own: np.ndarray, other: np.ndarray) -> torch.Tensor:
    """(E, 12) float32 of `PackedViews.pose`, from views `own` to views `other` (E,)."""
    return torch.from_numpy(cameras.between(own, other)[:, :3].reshape(-1, 12)).float()


def runs_of_size(shapes: Sequence[tuple[int, int]], most_pixels: int, one_shape: bool = False) -> Iterator[range]:
    """Views that follow each other, as many as have so many pixels, at least one; of one size, if so asked."""
    begin, pixels = 0, 0
    for k, (H, W) in enumerate(shapes):
        if k > begin and (pixels + H * W > most_pixels or (one_shape and shapes[begin] != (H, W))):
            yield range(begin, k)
            begin, pixels = k, 0
        pixels += H * W
    if shapes:
        yield range(begin, len(shapes))


def _reliefs(
    canonical: Sequence[CanonicalView], zoom: torch.Tensor, subsample: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """(B, H, W) relief and confidence of views of one size; `zoom` (B,) predicted over found focal length."""
    B, H, W = len(canonical), *(int(size) for size in canonical[0].conf.shape)
    device = zoom.device
    rows, columns = (torch.arange(size, device=device) // subsample for size in (H, W))
    depth = torch.stack([one.core_depth for one in canonical]).index_select(1, rows).index_select(2, columns)
    depth = depth.mul_(torch.stack([one.relative_depth for one in canonical]))
    known = depth.isfinite() & (depth > 0)
    median = torch.where(known, depth, torch.nan).view(B, -1).nanmedian(1).values[:, None, None]
    median = torch.where(median.isnan(), 1.0, median)
    depth = torch.maximum(torch.where(known, depth, median), LEAST_SHARE_OF_MEDIAN * median)
    relief = (depth / median).log_().mul_(zoom[:, None, None]).add_(median.log())
    return relief, torch.where(known, torch.stack([one.conf for one in canonical]), 0.0)
