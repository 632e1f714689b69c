"""What a perfect or slightly noisy network and matcher would say of a rendered scene: for tests and limits."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from mast3r_sfm.types import Correspondences, PairPrediction, ViewPrediction

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
    """`ideal_pair_predictions` of one pair."""
    return ideal_pair_predictions(scene, [(i, j)], depth_noise, [seed], noise_grid)[0]


def ideal_pair_predictions(
    scene: RenderedScene,
    pairs: Sequence[tuple[int, int]],
    depth_noise: float = 0.02,
    seeds: Sequence[int] | None = None,
    noise_grid: int = 9,
    device: torch.device | str | None = None,
) -> list[PairPrediction]:
    """The exact pointmaps of pairs (i, j) in both cameras, with smooth multiplicative noise on every depth.

    depth_noise  standard deviation of the relative error, independent in each of the four predictions: a random
                 grid of `noise_grid` x `noise_grid` values, bilinearly enlarged; 0 for exact pointmaps
    seeds        of the noise, one per pair; None: 0 for all
    device       where the predictions are made, None: where the scene is
    Confidences are 10 where the other view sees the point, 2 where it does not, 1 in the sky. No descriptors.
    All pairs are made at once, in float32.
    """
    device = scene.depth.device if device is None else torch.device(device)
    views = [[pair[side] for pair in pairs] for side in (0, 1)]
    noise = depth_noise * _smooth_noise(scene.shape, seeds or [0] * len(pairs), noise_grid, device)
    depth = [scene.depth[own].to(device) for own in views]
    points = [pointmaps(scene, own, device) for own in views]
    moves = [_rigid(scene, views[side], views[1 - side], device) for side in (0, 1)]
    conf = [
        _confidences(scene, views[1 - side], points[side], depth[side], depth[1 - side], moves[side]) for side in (0, 1)
    ]
    maps = []
    for number, (side, moved) in enumerate(((0, False), (1, True), (1, False), (0, True))):
        noisy = points[side] * torch.exp(noise[:, number, ..., None])
        noisy = _move(noisy, *moves[side]) if moved else noisy
        maps.append([ViewPrediction(p, c) for p, c in zip(noisy, conf[side], strict=True)])
    return [PairPrediction(i, j, *four) for (i, j), *four in zip(pairs, *maps, strict=True)]


def pointmaps(scene: RenderedScene, views: Sequence[int], device: torch.device | str) -> torch.Tensor:
    """`camera_points` of several views on `device`: (B, H, W, 3) float32."""
    depth = scene.depth[views].to(device)
    depth = torch.where(depth > 0, depth, SKY_DISTANCE * depth.amax((1, 2), keepdim=True))
    rays = pixel_rays(scene.K[views, 0, 0].to(device), scene.shape).float()
    return rays.reshape(len(views), *scene.shape, 3) * depth[..., None]


def _smooth_noise(shape: tuple[int, int], seeds: Sequence[int], grid: int, device: torch.device) -> torch.Tensor:
    """(B, 4, H, W) float32 of unit variance at the grid's points; the same on every device and in every batch."""
    rows = []
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        rows.append(torch.randn(4, grid, grid, generator=generator, dtype=torch.float64))
    return F.interpolate(torch.stack(rows).float().to(device), shape, mode="bilinear", align_corners=True)


def _rigid(
    scene: RenderedScene, source: Sequence[int], target: Sequence[int], device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rotations (B, 3, 3) and translations (B, 3) from the cameras `source` to the cameras `target`, float32."""
    target_from_source = torch.linalg.inv(scene.world_from_cam[target]) @ scene.world_from_cam[source]
    moved = target_from_source.float().to(device)
    return moved[:, :3, :3], moved[:, :3, 3]


def _move(points: torch.Tensor, rotation: torch.Tensor, translation: torch.Tensor) -> torch.Tensor:
    """Points (B, H, W, 3) by B rigid motions."""
    return (points.flatten(1, 2) @ rotation.mT + translation[:, None]).view(points.shape)


def _confidences(
    scene: RenderedScene,
    others: Sequence[int],
    own: torch.Tensor,
    own_depth: torch.Tensor,
    other_depth: torch.Tensor,
    other_from_own: tuple[torch.Tensor, torch.Tensor],
) -> torch.Tensor:
    """(B, H, W) float32: by whether the other view sees each point, the test of `reproject`."""
    H, W = scene.shape
    in_other = _move(own, *other_from_own).flatten(1, 2)
    z = in_other[..., 2]
    projected = in_other @ scene.K[others].float().to(own.device).mT
    xy = projected[..., :2] / projected[..., 2:].clamp(min=1e-9)
    x, y = xy.nan_to_num(0.0).clamp(-1, max(H, W)).round().long().unbind(-1)
    inside = (z > 1e-3) & (x >= 0) & (y >= 0) & (x < W) & (y < H)
    seen_at = other_depth.flatten(1).gather(1, y.clamp(0, H - 1) * W + x.clamp(0, W - 1))
    seen = inside & ((seen_at - z).abs() < VISIBLE_TOLERANCE * z)
    surface = torch.where(seen.view(own_depth.shape), CONF_VISIBLE, CONF_HIDDEN)
    return torch.where(own_depth > 0, surface, CONF_SKY)


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
