"""Views as the dense stage sees them, and where the pixels of one lie in others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import torch

from mast3r_sfm.canonical import spread_blocks
from mast3r_sfm.types import CanonicalView

LEAST_SHARE_OF_MEDIAN = 1e-3
"""Predicted depths below this share of a view's median depth are taken for it."""


@dataclass(frozen=True)
class DenseCameras:
    """The cameras of n registered views, all float64.

    K               (n, 3, 3) network pixels
    distortion      (n,) k1 (`geometry.rays`)
    world_from_cam  (n, 4, 4)
    """

    K: np.ndarray
    distortion: np.ndarray
    world_from_cam: np.ndarray

    def lens(self) -> np.ndarray:
        """(n, 5) fx, fy, cx, cy and k1."""
        K = self.K
        return np.column_stack([K[:, 0, 0], K[:, 1, 1], K[:, 0, 2], K[:, 1, 2], self.distortion])

    def between(self, own: np.ndarray, other: np.ndarray) -> np.ndarray:
        """(E, 4, 4) of the cameras `other` (E,) from those `own` (E,)."""
        return np.linalg.inv(self.world_from_cam)[other] @ self.world_from_cam[own]


@dataclass(frozen=True)
class DenseView:
    """One registered view. H and W are those of the network's image; tensors float32 on one device.

    relief          (H, W) logarithm of the predicted depth, for the lens the view turned out to have
    conf            (H, W) merged confidence of the network, 0 where a mask hides the photo
    rgb             (H, W, 3) uint8
    K               (3, 3) float64 network pixels
    distortion      k1 (`geometry.rays`)
    world_from_cam  (4, 4) float64
    neighbours      other views by position in the group, those with the most matches first
    """

    relief: torch.Tensor
    conf: torch.Tensor
    rgb: torch.Tensor
    K: np.ndarray
    distortion: float
    world_from_cam: np.ndarray
    neighbours: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, int]:
        return int(self.relief.shape[0]), int(self.relief.shape[1])

    @classmethod
    def of(
        cls,
        canonical: CanonicalView,
        rgb: np.ndarray,
        K: np.ndarray,
        distortion: float,
        world_from_cam: np.ndarray,
        neighbours: Sequence[int],
        subsample: int,
    ) -> DenseView:
        """The view of a group.

        The relief of a lens of focal length f that the network took for one of fb is flatter by fb / f: the logarithm
        of its depth, counted from the median, shrinks by that factor.
        """
        device = canonical.conf.device
        H, W = (int(size) for size in canonical.conf.shape)
        depth = spread_blocks(canonical.core_depth, (H, W), subsample) * canonical.relative_depth
        known = depth.isfinite() & (depth > 0)
        median = depth[known].median() if bool(known.any()) else depth.new_ones(())
        depth = torch.where(known, depth, median).clamp_min(LEAST_SHARE_OF_MEDIAN * median)
        return cls(
            relief=(canonical.focal_px / float(K[0, 0])) * (depth / median).log() + median.log(),
            conf=torch.where(known, canonical.conf, 0.0),
            rgb=torch.from_numpy(rgb).to(device),
            K=K,
            distortion=distortion,
            world_from_cam=world_from_cam,
            neighbours=tuple(neighbours),
        )

    def rays(self) -> torch.Tensor:
        """(3, H, W) points at depth 1 that the pixels see, in the camera's frame; as `geometry.rays`."""
        H, W = self.shape
        device = self.relief.device
        x = ((torch.arange(W, device=device, dtype=torch.float64) - self.K[0, 2]) / self.K[0, 0]).expand(H, W)
        y = ((torch.arange(H, device=device, dtype=torch.float64) - self.K[1, 2]) / self.K[1, 1])[:, None].expand(H, W)
        if self.distortion:
            seen = (x * x + y * y).sqrt()
            largest = (-3 * self.distortion) ** -0.5 if self.distortion < 0 else float("inf")
            radius = seen
            for _ in range(8):
                slope = (1 + 3 * self.distortion * radius**2).clamp_min(0.1)
                radius = (radius - (radius * (1 + self.distortion * radius**2) - seen) / slope).clamp_max(largest)
            shrink = torch.where(seen > 0, radius / seen, 1.0)
            x, y = x * shrink, y * shrink
        return torch.stack([x, y, torch.ones_like(x)]).float()


@dataclass(frozen=True)
class Sights:
    """Where pixels of one view at given depths lie in J other views; each (J, ..., H, W).

    x, y   pixels
    depth  z-depth, not positive behind the camera
    """

    x: torch.Tensor
    y: torch.Tensor
    depth: torch.Tensor

    def first(self) -> Sights:
        """At the first of several depths."""
        return Sights(self.x[:, 0], self.y[:, 0], self.depth[:, 0])


def cameras_from(view: DenseView, others: Sequence[DenseView]) -> tuple[torch.Tensor, torch.Tensor]:
    """(J, 4, 4) of the cameras of other views from that of a view, and (J, 5) their fx, fy, cx, cy and k1."""
    other_from_view = np.linalg.inv(np.stack([other.world_from_cam for other in others])) @ view.world_from_cam
    lens = np.array([[v.K[0, 0], v.K[1, 1], v.K[0, 2], v.K[1, 2], v.distortion] for v in others])
    device = view.relief.device
    return torch.from_numpy(other_from_view).float().to(device), torch.from_numpy(lens).float().to(device)


def look(views: Sequence[DenseView], i: int, depth: torch.Tensor) -> Sights:
    """The pixels of view i at `depth` (..., H, W), as its neighbours see them."""
    others = [views[j] for j in views[i].neighbours]
    matrices, lens = cameras_from(views[i], others)
    # J first, then one dimension for every one of `depth`
    ones = (1,) * depth.dim()
    fx, fy, cx, cy, k1 = (column.view(-1, *ones) for column in lens.unbind(1))
    turned = torch.einsum("jab,bhw->jahw", matrices[:, :3, :3], views[i].rays())
    turned = turned.view(len(others), 3, *ones[2:], *views[i].shape)
    X, Y, Z = (turned[:, a] * depth + matrices[:, a, 3].view(-1, *ones) for a in range(3))
    X, Y = X / Z, Y / Z
    if any(other.distortion for other in others):
        bend = 1 + k1 * (X * X + Y * Y)
        X, Y = X * bend, Y * bend
    return Sights(fx * X + cx, fy * Y + cy, Z)


class Atlas:
    """Maps of all views end to end, read at pixels of several views at once; sizes may differ between views."""

    def __init__(self, views: Sequence[DenseView]) -> None:
        device = views[0].relief.device
        sizes = [view.shape for view in views]
        self._shapes = sizes
        self._bounds = [0, *accumulate(H * W for H, W in sizes)]
        self._starts = torch.tensor(self._bounds[:-1], device=device)
        self._sizes = torch.tensor(sizes, device=device)

    @staticmethod
    def pack(maps: Sequence[torch.Tensor]) -> torch.Tensor:
        """(N,) values of maps (H, W), one per view."""
        return torch.cat([one.reshape(-1) for one in maps])

    def map_of(self, packed: torch.Tensor, i: int) -> torch.Tensor:
        """(H, W) of view i."""
        return packed[self._bounds[i] : self._bounds[i + 1]].view(self._shapes[i])

    def inside(self, of: Sequence[int], at: Sights) -> torch.Tensor:
        """(J, ..., H, W) bool: in front of the camera of views `of` (J,) and within their images."""
        height, width = self._of(self._sizes.float(), of, at)
        near = (at.x > -0.5) & (at.x < width - 0.5) & (at.y > -0.5) & (at.y < height - 0.5)
        return near & (at.depth > 0)

    def nearest(self, packed: torch.Tensor, of: Sequence[int], at: Sights) -> torch.Tensor:
        """Values of the nearest pixels, of those at the border for places outside."""
        return packed[self.index(of, at)]

    def index(self, of: Sequence[int], at: Sights) -> torch.Tensor:
        """(J, ..., H, W) places in packed maps of the nearest pixels."""
        height, width = self._of(self._sizes, of, at)
        column, row = _limited(at.x.round(), width).long(), _limited(at.y.round(), height).long()
        return self._of(self._starts[:, None], of, at)[0].addcmul(row, width).add_(column)

    def between(self, packed: torch.Tensor, of: Sequence[int], at: Sights) -> torch.Tensor:
        """Values between pixels, bilinear."""
        height, width = self._of(self._sizes, of, at)
        x, y = _limited(at.x, width), _limited(at.y, height)
        left, top = x.long(), y.long()
        right, lower = (left + 1 < width).long(), (top + 1 < height).long().mul_(width)  # steps to the next pixels
        corner = self._of(self._starts[:, None], of, at)[0].addcmul(top, width).add_(left)
        x, y = x - left, y - top
        upper_row = torch.lerp(packed[corner], packed[corner + right], x)
        corner += lower
        return torch.lerp(upper_row, torch.lerp(packed[corner], packed[corner + right], x), y)

    @staticmethod
    def _of(values: torch.Tensor, of: Sequence[int], at: Sights) -> tuple[torch.Tensor, ...]:
        """Columns of `values` (n, k) of the views `of`, each (J, 1, ...) as the places have it."""
        return values[list(of)].view(len(of), -1, *(1,) * (at.x.dim() - 1)).unbind(1)


def _limited(x: torch.Tensor, size: torch.Tensor) -> torch.Tensor:
    """Places moved into [0, size - 1], nan to 0."""
    return torch.minimum(x.nan_to_num(0.0).clamp_min(0), size - 1.0)
