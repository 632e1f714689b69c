"""The canonical view of an image: all its own pointmaps merged into one depth relief and one focal length.

Every pair that an image takes part in predicts the image's points in its own camera. Only running sums of
these maps are kept (docs/method.md, Canonical view), so no dense prediction outlives its pair.

The image is cut into blocks of S x S pixels. The pixel at (S // 2, S // 2) of a block is its centre and
carries an *anchor*: the depth that the alignment later moves. All other pixels follow their anchor by a fixed
ratio of depths. Where S does not divide the image, the last block of a row or column is partial, and its
centre is clamped to the last pixel inside the image.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, NoReturn

import torch

from mast3r_sfm.device import has_triton
from mast3r_sfm.errors import ReconstructionError
from mast3r_sfm.types import CanonicalView

logger = logging.getLogger(__name__)

MAX_BAD_BLOCKS = 0.05
"""Share of blocks without a positive depth that is repaired; above it the image is refused."""

_EPS32 = 2.0**-23
_CONF_OFFSET = 0.999  # confidences start at 1, so weights start at 0.001
_MIN_RADIUS = 1e-8
_ROUNDS = 10  # of Weiszfeld's algorithm


def block_centres(size: int, subsample: int, device: torch.device | str | None = None) -> torch.Tensor:
    """(ceil(size / S),) int64: the centre pixel of every block along an axis of `size` pixels."""
    centres = torch.arange(subsample // 2, size + subsample // 2, subsample, device=device)
    return centres.clamp_max(size - 1)


def block_grid(shape: tuple[int, int], subsample: int) -> tuple[int, int]:
    """(rows, columns) of blocks of an image of `shape` (H, W), partial ones included."""
    return -(-shape[0] // subsample), -(-shape[1] // subsample)


def nearest_pixels(xy: torch.Tensor) -> torch.Tensor:
    """(M, 2) int64 pixels of places (M, 2) that may lie between pixels."""
    return (xy.round() if xy.is_floating_point() else xy).long()


def anchor_index(xy: torch.Tensor, shape: tuple[int, int], subsample: int) -> torch.Tensor:
    """(M,) int64: the anchor (row-major index of the block) of each pixel of `xy` (M, 2), (x, y)."""
    columns = block_grid(shape, subsample)[1]
    blocks = nearest_pixels(xy) // subsample
    return blocks[:, 1] * columns + blocks[:, 0]


def depth_offsets(relative_depth: torch.Tensor, xy: torch.Tensor, subsample: int) -> torch.Tensor:
    """(M,) float32: depth of each pixel of `xy` (M, 2) divided by the depth of its anchor.

    `relative_depth` (H, W) is that of a `CanonicalView` (docs/method.md, Anchors and offsets).
    """
    H, W = relative_depth.shape
    x, y = nearest_pixels(xy).unbind(1)
    centre_x = block_centres(W, subsample, xy.device)[x // subsample]
    centre_y = block_centres(H, subsample, xy.device)[y // subsample]
    return relative_depth[y, x] / relative_depth[centre_y, centre_x]


def spread_blocks(values: torch.Tensor, shape: tuple[int, int], subsample: int) -> torch.Tensor:
    """(rows, columns, ...) values of blocks -> (H, W, ...), the value of its block at every pixel."""
    rows = torch.arange(shape[0], device=values.device) // subsample
    columns = torch.arange(shape[1], device=values.device) // subsample
    return values.index_select(0, rows).index_select(1, columns)


def estimate_focal(points: torch.Tensor) -> torch.Tensor:
    """Focal length in pixels, 0-d, of a pointmap (H, W, 3) in its own camera, principal point at (W/2, H/2).

    Ten rounds of Weiszfeld's algorithm for the geometric median of the reprojection errors
    (docs/method.md, Focal length of a pointmap), limited to half and 3.5 times the focal length of a 60 degree lens.
    """
    H, W = points.shape[:2]
    low, high = _focal_limits(H, W)
    x = torch.arange(W, device=points.device, dtype=points.dtype) - W / 2
    y = torch.arange(H, device=points.device, dtype=points.dtype) - H / 2
    u = torch.stack([x.expand(H, W), y[:, None].expand(H, W)])
    a = torch.stack([points[..., 0], points[..., 1]]) / points[..., 2]
    a = torch.nan_to_num(a, nan=0.0, posinf=0.0, neginf=0.0)
    along_ray = (a * u).sum(0)
    ray_sq = (a * a).sum(0)
    focal = along_ray.mean() / ray_sq.mean()
    for _ in range(_ROUNDS):
        # the sum of squares, because vector_norm over a leading dimension is 200 times slower on a CPU
        weight = (u - focal * a).square_().sum(0).sqrt_().clamp_min_(1e-8).reciprocal_()
        focal = (weight * along_ray).mean() / (weight * ray_sq).mean()
    return focal.clamp(low, high)


def _focal_limits(height: int, width: int) -> tuple[float, float]:
    focal_60_deg = max(height, width) / 1.1547005  # 2 tan(30 deg)
    return 0.5 * focal_60_deg, 3.5 * focal_60_deg


class CanonicalAccumulator:
    """Running sums over the own pointmaps of one image of H x W pixels.

    `add` once per pair (or `add_pointmaps`), then `finish` (or `finish_views`). The sums are float32 (7 numbers per
    pixel) on `device`, and adding does not wait for the device.

    checks  for every pointmap a number that is not finite if a value of it is not, and the pair that it is of
    """

    def __init__(
        self,
        height: int,
        width: int,
        subsample: int = 8,
        device: torch.device | str | None = None,
        sums: torch.Tensor | None = None,
        checks: Sequence[tuple[torch.Tensor, tuple[int, int] | None]] = (),
    ) -> None:
        """Empty sums on `device`, or those (7, H, W) of other pointmaps with their checks."""
        self.shape = (height, width)
        self.subsample = subsample
        self.checks = list(checks)
        # one tensor, views of which have names
        self.sums = torch.zeros(7, height, width, device=device) if sums is None else sums
        self._weight, *_, self._weight_sq, self._weighted_angle, self._radius = self.sums.unbind(0)
        self._weighted_points = self.sums[1:4]

    def add(self, points: torch.Tensor, conf: torch.Tensor, pair: tuple[int, int] | None = None) -> None:
        """Adds one pair's own pointmap (H, W, 3) in the image's camera with its confidence (H, W), >= 1.

        `pair` names the pair in the error that `finish` raises for non-finite predictions.
        """
        points, conf = points.float(), conf.float()
        x, y, z = points.unbind(-1)
        at_centres = _at_centres(points.movedim(-1, 0), self.subsample)
        centre_x, centre_y, centre_z = spread_blocks(at_centres.movedim(0, -1), self.shape, self.subsample).unbind(-1)
        weight = (conf - _CONF_OFFSET).clamp_min(1 - _CONF_OFFSET)
        radius = ((x - centre_x).square_() + (y - centre_y).square_()).sqrt_().clamp_min_(_MIN_RADIUS)
        angle = (z - centre_z.clamp_min(_EPS32)).div_(radius).atan_()

        self._weight += weight
        self._weighted_points.addcmul_(weight, points.movedim(-1, 0))
        self._weight_sq.addcmul_(weight, weight)
        self._weighted_angle.addcmul_(weight, angle)
        self._radius += radius
        self.checks.append((points.sum() + conf.sum(), pair))  # inf and nan survive a sum

    def merged(self, other: CanonicalAccumulator) -> CanonicalAccumulator:
        """The sums over the pointmaps of both, of one image; neither of the two changes."""
        return CanonicalAccumulator(
            *self.shape, self.subsample, sums=self.sums + other.sums, checks=[*self.checks, *other.checks]
        )

    def mean_points(self) -> torch.Tensor:
        """(H, W, 3) float32: the weighted mean of the pointmaps added so far."""
        return (self._weighted_points / self._weight).movedim(0, -1)

    def finish(self, index: int, name: str | None = None) -> CanonicalView:
        """`finish_views` of this one; raises its error."""
        (view,) = finish_views([Finished(index, f"image {index}" if name is None else name, self)])
        if isinstance(view, ReconstructionError):
            raise view
        return view


class Addition(NamedTuple):
    """A pointmap (H, W, 3) of a pair with its confidence (H, W) that goes to the sums of an image."""

    sums: CanonicalAccumulator
    points: torch.Tensor
    conf: torch.Tensor
    pair: tuple[int, int]


def add_pointmaps(additions: Sequence[Addition]) -> None:
    """`CanonicalAccumulator.add` of many, in their order; on a CUDA device in one pass for all images of one shape."""
    if not additions or not (additions[0].points.is_cuda and has_triton()):
        for one in additions:
            one.sums.add(one.points, one.conf, one.pair)
        return
    from mast3r_sfm.canonical_triton import add_pointmaps as add_fused

    by_shape: dict[tuple[int, int], dict[int, list[Addition]]] = {}
    for one in additions:
        by_shape.setdefault(one.sums.shape, {}).setdefault(id(one.sums), []).append(one)
    for of_shape in by_shape.values():
        images = list(of_shape.values())
        maps = [[(one.points.float().contiguous(), one.conf.float().contiguous()) for one in own] for own in images]
        sums, subsample = [own[0].sums.sums for own in images], images[0][0].sums.subsample
        flags = add_fused(sums, maps, subsample, _CONF_OFFSET, _MIN_RADIUS, _EPS32)
        flat = (one for own in images for one in own)
        for one, flag in zip(flat, flags.unbind(0), strict=True):
            one.sums.checks.append((flag, one.pair))


@dataclass(frozen=True)
class Finished:
    """An image to which nothing is added any more; its number, its name in messages, its sums."""

    index: int
    name: str
    sums: CanonicalAccumulator


def finish_views(images: Sequence[Finished]) -> list[CanonicalView | ReconstructionError]:
    """The merged views of images of one shape, or what is wrong with them.

    Up to `MAX_BAD_BLOCKS` of the blocks may have no positive depth: they are treated as flat at the median
    depth of the others, with a warning (docs/method.md, Damaged predictions).

    An error says that nothing was added, that a prediction was not finite, or that too many blocks have no positive
    depth. The device is asked once for all images.
    """
    shape, subsample = images[0].sums.shape, images[0].sums.subsample
    sums = torch.stack([image.sums.sums for image in images])
    weight = sums[:, 0]
    points = sums[:, 1:4] / weight[:, None]
    core_depth = _at_centres(points[:, 2], subsample)
    angle = (sums[:, 5] / weight).tan_()
    count = torch.tensor([max(1, len(image.sums.checks)) for image in images]).to(sums.device)
    spread = spread_blocks(core_depth.permute(1, 2, 0), shape, subsample).permute(2, 0, 1)
    relative_depth = 1 + sums[:, 6] / count[:, None, None] * angle / spread
    conf = sums[:, 4] / weight
    good = (core_depth > 0) & (_at_centres(relative_depth, subsample) > 0)
    numbers = torch.stack([points.flatten(1).sum(1), (~good).flatten(1).sum(1).float(), _estimate_focals(points)], 1)
    result: list[CanonicalView | ReconstructionError] = []
    for k, (image, (total, num_bad, focal_px)) in enumerate(zip(images, numbers.tolist(), strict=True)):
        try:
            if not image.sums.checks:
                message = f"{image.name}: no pair predicts its points; leave it out or add pairs with it."
                raise ReconstructionError(message)
            if not math.isfinite(total):
                _raise_not_finite(image)
            maps = core_depth[k], relative_depth[k]
            if num_bad:
                maps = _repair(*maps, good[k], subsample, image.name)
        except ReconstructionError as error:
            result.append(error)
            continue
        result.append(
            CanonicalView(
                index=image.index,
                relative_depth=maps[1].clone(),  # of its own, so that it outlives no other view's
                conf=conf[k].clone(),
                core_depth=maps[0].clone(),
                focal_px=focal_px,
            )
        )
    return result


def _estimate_focals(points: torch.Tensor) -> torch.Tensor:
    """`estimate_focal` (n,) of pointmaps (n, 3, H, W)."""
    if points.is_cuda and has_triton():
        from mast3r_sfm.canonical_triton import focals_of_planes

        height, width = points.shape[2:]
        return focals_of_planes(points.contiguous(), *_focal_limits(height, width), _ROUNDS)
    return torch.stack([estimate_focal(one.movedim(0, -1)) for one in points])


def _at_centres(planes: torch.Tensor, subsample: int) -> torch.Tensor:
    """(n, H, W) -> (n, rows, columns): the values at the blocks' centres."""
    y, x = (block_centres(size, subsample, planes.device) for size in planes.shape[1:])
    return planes.index_select(1, y).index_select(2, x)


def _repair(
    core_depth: torch.Tensor, relative_depth: torch.Tensor, good: torch.Tensor, subsample: int, name: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Core and relative depth with bad blocks flat; `good` (rows, columns)."""
    num_bad = int((~good).sum())
    share = num_bad / good.numel()
    if share > MAX_BAD_BLOCKS:
        raise ReconstructionError(
            f"{name}: the predicted depth is not positive in {share:.0%} of its blocks "
            f"(at most {MAX_BAD_BLOCKS:.0%} can be repaired); leave this image out."
        )
    logger.warning("%s: no positive depth in %d of %d blocks, taken as flat", name, num_bad, good.numel())
    core_depth = torch.where(good, core_depth, core_depth[good].median())
    shape = (int(relative_depth.shape[0]), int(relative_depth.shape[1]))
    return core_depth, torch.where(spread_blocks(good, shape, subsample), relative_depth, 1.0)


def _raise_not_finite(image: Finished) -> NoReturn:
    pairs = [pair for total, pair in image.sums.checks if pair is not None and not bool(total.isfinite())]
    where = f" in pair {pairs[0][0]}-{pairs[0][1]}" if pairs else ""
    raise ReconstructionError(
        f"{image.name}: the network's prediction{where} is not finite; run with float32 precision or leave it out."
    )
