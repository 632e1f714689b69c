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
_FLAGS = 64  # that are allocated together
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
    focal_60_deg = max(H, W) / 1.1547005  # 2 tan(30 deg)
    low, high = 0.5 * focal_60_deg, 3.5 * focal_60_deg
    if points.is_cuda and has_triton():
        from mast3r_sfm.canonical_triton import focal_of_planes

        return focal_of_planes(points.movedim(-1, 0).float().contiguous(), low, high, _ROUNDS)[0]
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


class CanonicalAccumulator:
    """Running sums over the own pointmaps of one image of H x W pixels.

    `add` once per pair, then `finish`. The sums are float32 (7 numbers per pixel) on `device`, and neither
    `add` nor the sums wait for the device.
    """

    def __init__(self, height: int, width: int, subsample: int = 8, device: torch.device | str | None = None) -> None:
        self.shape = (height, width)
        self.subsample = subsample
        self.count = 0
        self._centre_y = block_centres(height, subsample, device)
        self._centre_x = block_centres(width, subsample, device)
        # one tensor, views of which have names
        self._sums = torch.zeros(7, height, width, device=device)
        self._weighted_points = self._sums[1:4]
        self._weight, *_, self._weight_sq, self._weighted_angle, self._radius = self._sums.unbind(0)
        self._flags = torch.zeros(0, device=device)
        self._checks: list[tuple[torch.Tensor, tuple[int, int] | None]] = []

    def add(self, points: torch.Tensor, conf: torch.Tensor, pair: tuple[int, int] | None = None) -> None:
        """Adds one pair's own pointmap (H, W, 3) in the image's camera with its confidence (H, W), >= 1.

        `pair` names the pair in the error that `finish` raises for non-finite predictions.
        """
        points, conf = points.float(), conf.float()
        self.count += 1
        if points.is_cuda and has_triton():
            self._add_fused(points.contiguous(), conf.contiguous(), pair)
            return
        x, y, z = points.unbind(-1)
        centre_x, centre_y, centre_z = self._spread(self._at_centres(points)).unbind(-1)
        weight = (conf - _CONF_OFFSET).clamp_min(1 - _CONF_OFFSET)
        radius = ((x - centre_x).square_() + (y - centre_y).square_()).sqrt_().clamp_min_(_MIN_RADIUS)
        angle = (z - centre_z.clamp_min(_EPS32)).div_(radius).atan_()

        self._weight += weight
        self._weighted_points.addcmul_(weight, points.movedim(-1, 0))
        self._weight_sq.addcmul_(weight, weight)
        self._weighted_angle.addcmul_(weight, angle)
        self._radius += radius
        self._checks.append((points.sum() + conf.sum(), pair))  # inf and nan survive a sum

    def _add_fused(self, points: torch.Tensor, conf: torch.Tensor, pair: tuple[int, int] | None) -> None:
        from mast3r_sfm.canonical_triton import add_pointmap

        number = (self.count - 1) % _FLAGS
        if number == 0:
            self._flags = torch.zeros(_FLAGS, device=points.device)
        flag = self._flags[number : number + 1]
        add_pointmap(points, conf, self._sums, flag, self.subsample, _CONF_OFFSET, _MIN_RADIUS, _EPS32)
        self._checks.append((flag, pair))

    def mean_points(self) -> torch.Tensor:
        """(H, W, 3) float32: the weighted mean of the pointmaps added so far."""
        return (self._weighted_points / self._weight).movedim(0, -1)

    def finish(self, index: int, name: str | None = None) -> CanonicalView:
        """The merged view; `index` identifies the image, `name` (default: its index) appears in messages.

        Up to `MAX_BAD_BLOCKS` of the blocks may have no positive depth: they are treated as flat at the median
        depth of the others, with a warning (docs/method.md, Damaged predictions).

        Raises ReconstructionError if nothing was added, if a prediction was not finite, or if too many blocks
        have no positive depth.
        """
        name = f"image {index}" if name is None else name
        if self.count == 0:
            raise ReconstructionError(f"{name}: no pair predicts its points; leave it out or add pairs with it.")
        points = self.mean_points()
        core_depth = self._at_centres(points[..., 2])
        angle = self._weighted_angle / self._weight
        relative_depth = 1 + (self._radius / self.count) * angle.tan_() / self._spread(core_depth)
        good = (core_depth > 0) & (self._at_centres(relative_depth) > 0)
        # all that the host asks, in one question
        numbers = torch.stack([points.sum(), (~good).sum().float(), estimate_focal(points).reshape(())]).tolist()
        total, num_bad, focal_px = numbers
        if not math.isfinite(total):
            self._raise_not_finite(name)
        if num_bad:
            core_depth, relative_depth = self._repair(core_depth, relative_depth, good, int(num_bad), name)
        return CanonicalView(
            index=index,
            relative_depth=relative_depth,
            conf=self._weight_sq / self._weight,
            core_depth=core_depth,
            focal_px=focal_px,
        )

    def _at_centres(self, plane: torch.Tensor) -> torch.Tensor:
        return plane.index_select(0, self._centre_y).index_select(1, self._centre_x)

    def _spread(self, values: torch.Tensor) -> torch.Tensor:
        return spread_blocks(values, self.shape, self.subsample)

    def _repair(
        self, core_depth: torch.Tensor, relative_depth: torch.Tensor, good: torch.Tensor, num_bad: int, name: str
    ) -> tuple[torch.Tensor, torch.Tensor]:
        share = num_bad / good.numel()
        if share > MAX_BAD_BLOCKS:
            raise ReconstructionError(
                f"{name}: the predicted depth is not positive in {share:.0%} of its blocks "
                f"(at most {MAX_BAD_BLOCKS:.0%} can be repaired); leave this image out."
            )
        logger.warning("%s: no positive depth in %d of %d blocks, taken as flat", name, num_bad, good.numel())
        core_depth = torch.where(good, core_depth, core_depth[good].median())
        return core_depth, torch.where(self._spread(good), relative_depth, 1.0)

    def _raise_not_finite(self, name: str) -> None:
        pairs = [pair for total, pair in self._checks if pair is not None and not bool(total.isfinite())]
        where = f" in pair {pairs[0][0]}-{pairs[0][1]}" if pairs else ""
        raise ReconstructionError(
            f"{name}: the network's prediction{where} is not finite; run with float32 precision or leave it out."
        )
