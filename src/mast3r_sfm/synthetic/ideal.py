"""What a perfect or slightly noisy network and matcher would say of a rendered scene: for tests and limits."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from ..types import Correspondences, PairPrediction, ViewPrediction
from .cameras import pixel_rays
from .orbit import RenderedScene

VISIBLE_TOLERANCE = 0.01
"""A point is visible in another view if its depth there agrees with that view's depth map to this share."""

CONF_VISIBLE, CONF_HIDDEN, CONF_SKY = 10.0, 2.0, 1.0
SKY_DISTANCE = 8.0
"""Where the sky is put in a pointmap: this many times the farthest depth of the view."""


def camera_points(scene: RenderedScene, i: int) -> torch.Tensor:
    """Exact pointmap (H, W, 3) float64 of view i in its own camera; the sky lies at `SKY_DISTANCE`."""
    H, W = scene.shape
    depth = scene.depth[i].double()
    depth = torch.where(depth > 0, depth, SKY_DISTANCE * depth.max())
    return pixel_rays(scene.K[i, 0, 0], (H, W)).reshape(H, W, 3) * depth[..., None]


def reproject(scene: RenderedScene, i: int, j: int, xy_i: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Where pixels of view i appear in view j.

    xy_i  (M, 2) integer pixels (x, y) of view i
    Returns pixels (M, 2) float64 of view j and whether the points are visible there (M,) bool: in front of the
    camera, inside the image and not occluded.
    """
    H, W = scene.shape
    points = camera_points(scene, i)[xy_i[:, 1], xy_i[:, 0]]
    j_from_i = torch.linalg.inv(scene.world_from_cam[j]) @ scene.world_from_cam[i]
    in_j = points @ j_from_i[:3, :3].T + j_from_i[:3, 3]
    z = in_j[:, 2]
    projected = in_j @ scene.K[j].T
    xy_j = projected[:, :2] / projected[:, 2:].clamp(min=1e-9)
    nearest = xy_j.nan_to_num(0.0).clamp(-1, max(H, W)).round().long()
    inside = (z > 1e-3) & (nearest >= 0).all(1) & (nearest[:, 0] < W) & (nearest[:, 1] < H)
    x, y = nearest[:, 0].clamp(0, W - 1), nearest[:, 1].clamp(0, H - 1)
    seen_at = scene.depth[j, y, x].double()
    agrees = (seen_at - z).abs() < VISIBLE_TOLERANCE * z
    surface = scene.depth[i, xy_i[:, 1], xy_i[:, 0]] > 0
    return xy_j, inside & agrees & surface


def visible_in(scene: RenderedScene, i: int, j: int) -> torch.Tensor:
    """(H, W) bool: pixels of view i whose point is also seen by view j."""
    H, W = scene.shape
    return reproject(scene, i, j, _grid(H, W, 1, scene.rgb.device))[1].reshape(H, W)


def ideal_pair_prediction(
    scene: RenderedScene, i: int, j: int, depth_noise: float = 0.02, seed: int = 0, noise_grid: int = 9
) -> PairPrediction:
    """The exact pointmaps of the pair (i, j) in both cameras, with smooth multiplicative noise on every depth.

    depth_noise  standard deviation of the relative error, independent in each of the four predictions: a random
                 grid of `noise_grid` x `noise_grid` values, bilinearly enlarged; 0 for exact pointmaps
    Confidences are 10 where the other view sees the point, 2 where it does not, 1 in the sky. No descriptors.
    """
    generator = torch.Generator().manual_seed(seed)
    H, W = scene.shape

    def predict(view: int, frame: int) -> ViewPrediction:
        grid = torch.randn(1, 1, noise_grid, noise_grid, generator=generator, dtype=torch.float64)
        noise = F.interpolate(grid, (H, W), mode="bilinear", align_corners=True)[0, 0].to(scene.depth.device)
        points = camera_points(scene, view) * torch.exp(depth_noise * noise)[..., None]
        frame_from_view = torch.linalg.inv(scene.world_from_cam[frame]) @ scene.world_from_cam[view]
        points = points @ frame_from_view[:3, :3].T + frame_from_view[:3, 3]
        seen = visible_in(scene, view, j if view == i else i)
        conf = torch.where(scene.depth[view] > 0, torch.where(seen, CONF_VISIBLE, CONF_HIDDEN), CONF_SKY)
        return ViewPrediction(points.float(), conf.float())

    return PairPrediction(i, j, predict(i, i), predict(j, i), predict(j, j), predict(i, j))


def ideal_correspondences(scene: RenderedScene, i: int, j: int, subsample: int = 8) -> Correspondences:
    """True matches of the pair (i, j), found by reprojecting a grid of pixels of either view into the other.

    Both ends are integer pixels, so a match is exact to half a pixel. Confidences are all `CONF_VISIBLE`.
    """
    H, W = scene.shape
    seeds = _grid(H, W, subsample, scene.rgb.device)
    ends = []
    for first, second in ((i, j), (j, i)):
        xy, visible = reproject(scene, first, second, seeds)
        pair = torch.stack([seeds[visible], xy[visible].round().long()])
        ends.append(pair if first == i else pair.flip(0))
    xy_i, xy_j = torch.cat(ends, 1)
    key = torch.stack([xy_i[:, 1] * W + xy_i[:, 0], xy_j[:, 1] * W + xy_j[:, 0]], 1).unique(dim=0)
    xy_i, xy_j = (torch.stack([key[:, k] % W, key[:, k] // W], 1).int() for k in range(2))
    return Correspondences(i, j, xy_i, xy_j, torch.full((len(key),), CONF_VISIBLE, device=key.device))


def _grid(H: int, W: int, step: int, device: torch.device) -> torch.Tensor:
    """Pixels (M, 2) int64 (x, y) at the centres of step x step blocks, row-major."""
    y, x = torch.meshgrid(
        torch.arange(step // 2, H, step, device=device), torch.arange(step // 2, W, step, device=device), indexing="ij"
    )
    return torch.stack([x.flatten(), y.flatten()], 1)
