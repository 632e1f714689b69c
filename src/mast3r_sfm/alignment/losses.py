"""The losses between points of the alignment with their gradients, over chunks of matches.

Spec: alignment, section 9; the loss between pixels is in `projection`. Each returns the loss and its gradient
with respect to per-view matrices and per-anchor depths; how those follow from the parameters is left to
autograd, which then sees no tensor with as many rows as there are matches. All sums run in a fixed order, so
results repeat on every device.

Symmetrised pair lists contain every pair twice with the same terms; here every pair occurs once, which leaves
the normalised losses as they are.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from mast3r_sfm.alignment.packing import CHUNK, FallbackChunks, MatchChunks

_TINY = 1e-20
# matches in flight; the projection loss has temporaries of 200 bytes a match
_SLAB = {"cpu": 1 << 16, "cuda": 1 << 21}


@dataclass(frozen=True)
class CameraMatrices:
    """What the losses read of n views with A anchors each; also the form of their gradients.

    world_from_pixel  (n, 3, 3) R K^-1, of directions
    pixel_from_world  (n, 3, 3) K R^T, of directions
    rotations         (n, 3, 3) R, world from camera; None in a gradient that does not depend on it
    centres           (n, 3) camera centres, world
    inverse_zooms     (n,) base focal / focal
    depths            (n, A) of the anchors, scene units
    """

    world_from_pixel: torch.Tensor
    pixel_from_world: torch.Tensor | None
    rotations: torch.Tensor | None
    centres: torch.Tensor
    inverse_zooms: torch.Tensor
    depths: torch.Tensor


def robust_offset(exponent: float) -> float:
    """b of the robust distance (d + b)^g - b^g with unit slope at d = 0."""
    return 0.0 if exponent == 1 else (1 / exponent) ** (1 / (exponent - 1))


def robust_distance(distance: torch.Tensor, exponent: float, value: torch.Tensor, slope: torch.Tensor) -> None:
    """Writes rho(d) to `value` and rho'(d) / d, which is finite at 0, to `slope`; overwrites `distance`."""
    offset = robust_offset(exponent)
    inverse = torch.clamp_min(distance, _TINY, out=value).reciprocal_().mul_(exponent)
    distance += offset
    torch.pow(distance, exponent - 1, out=slope)  # +-0.5 are a square root
    distance *= slope
    slope *= inverse
    torch.sub(distance, offset**exponent, out=value)


class PointLoss:
    """3-D loss: robust distance between the two world points of every match.

    points  (C, 8, L): the matched points of side 0 in its camera and 1, then the same of side 1, negated
            (see `constant_points`)
    """

    def __init__(self, matches: MatchChunks, points: torch.Tensor, exponent: float) -> None:
        self._matches = matches
        self._points = points
        self._exponent = exponent
        self._slabs = slabs(len(points), points)
        chunks = slab_size(self._slabs)
        # temporaries are kept: a new one of this size costs more in page faults than its arithmetic
        self._residual = points.new_empty(chunks, 3, points.shape[2])
        self._planes = points.new_empty(4, chunks, points.shape[2])
        self._gradient = points.new_empty(len(points), 8, 3)

    def __call__(
        self, rotations: torch.Tensor, centres: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Loss (0-d), and its gradients with respect to the arguments.

        rotations  (n, 3, 3) world from camera, times the scale of the view
        centres    (n, 3)
        """
        n, matches = len(centres), self._matches
        # a row vector times this is a world point: R^T above c^T
        transforms = torch.cat([rotations.transpose(1, 2), centres[:, None]], 1).view(n, 12)
        of_pair = transforms.index_select(0, matches.pairs.view(-1)).view(-1, 8, 3)
        losses = []
        for slab in self._slabs:
            points, weight = self._points[slab], matches.weight[slab]
            residual, (square, distance, slope, value) = self._residual[: len(points)], self._planes[:, : len(points)]
            of_chunk = of_pair.index_select(0, matches.chunk_pair[slab])
            torch.bmm(of_chunk.transpose(1, 2), points, out=residual)
            norm(residual, out=distance, scratch=square)
            robust_distance(distance, self._exponent, value=value, slope=slope)
            losses.append(value.mul_(weight).sum())
            residual *= slope.mul_(weight)[:, None]
            torch.bmm(points, residual.transpose(1, 2), out=self._gradient[slab])
        by_pair = matches.sum_by_pair(self._gradient)
        by_view = matches.sum_by_view(by_pair.view(-1, 12)).view(n, 4, 3)
        return total(losses), by_view[:, :3].transpose(1, 2), by_view[:, 3]


def constant_points(
    matches: MatchChunks, rays: torch.Tensor, unit_depths: torch.Tensor, inverse_zooms: torch.Tensor, relative: bool
) -> torch.Tensor:
    """The `points` of a `PointLoss`: matched points in their cameras, for views of scale 1.

    rays           (n, 3, 3) K^-1
    unit_depths    (n, A) depths of the anchors at scale 1
    inverse_zooms  (n,)
    relative       divide both ends of a match, and the 1, by the root mean square of their depths: the loss then
                   measures distances relative to the depth, as the errors of a prediction grow with it
    """
    observed = matches.observed
    num_chunks, _, length = observed.anchor.shape
    points = unit_depths.new_empty(num_chunks, 2, 4, length)
    for slab in slabs(num_chunks, points):
        views = matches.pairs.index_select(0, matches.chunk_pair[slab])  # (chunks, 2)
        of_side = rays[views]
        offset = observed.offset[slab] * inverse_zooms[views][..., None] + 1
        depth = unit_depths.view(-1)[observed.anchor[slab].long()].mul_(offset)
        own = points[slab]
        torch.matmul(of_side[..., :2], observed.pixel[slab], out=own[:, :, :3])
        own[:, :, :3].add_(of_side[..., 2:]).mul_(depth[:, :, None])
        own[:, :, 3] = 1
        own[:, 1].neg_()
        if relative:
            own *= depth.square().mean(1).clamp_min_(_TINY).rsqrt_()[:, None, None]
    return points.view(num_chunks, 8, -1)


def fallback_loss(
    chunks: FallbackChunks, cameras: CameraMatrices, exponent: float
) -> tuple[torch.Tensor, CameraMatrices]:
    """Robust distance between the observed points of view a and where the prediction of view b puts them.

    Returns the loss (0-d) and its gradients. The predictions are taken at scale 1.
    """
    assert cameras.rotations is not None
    n = len(cameras.centres)
    centres = cameras.centres[:, None]
    observing = torch.cat([cameras.world_from_pixel.transpose(1, 2), centres], 1).view(n, 12)
    predicting = torch.cat([cameras.rotations.transpose(1, 2), centres], 1).view(n, 12)
    a, b = chunks.entries.unbind(1)
    zooms = cameras.inverse_zooms.index_select(0, a)[:, None]
    of_entry = torch.cat([observing.index_select(0, a), predicting.index_select(0, b), zooms], 1)

    num_chunks, length = chunks.weight.shape
    gradient = centres.new_empty(num_chunks, 25)
    anchor_gradient = centres.new_empty(num_chunks, length)
    losses = []
    for slab in slabs(num_chunks, centres):
        pixel, offset = chunks.observed.pixel[slab], chunks.observed.offset[slab]
        of_chunk = of_entry.index_select(0, chunks.chunk_entry[slab])
        transform = of_chunk[:, :24].view(-1, 8, 3)
        anchor = cameras.depths.view(-1).index_select(0, chunks.observed.anchor[slab].reshape(-1)).view_as(offset)
        flattening = (offset * of_chunk[:, 24:]).add_(1)
        depth, one = (anchor * flattening)[:, None], torch.ones_like(anchor)[:, None]
        points = torch.cat([pixel * depth, depth, one, -chunks.target[slab], -one], 1)
        residual = torch.bmm(transform.transpose(1, 2), points)
        distance, slope, value = torch.empty(3, *anchor.shape, device=anchor.device, dtype=anchor.dtype)
        norm(residual, out=distance, scratch=value)
        robust_distance(distance, exponent, value=value, slope=slope)
        weight = chunks.weight[slab]
        losses.append(value.mul_(weight).sum())
        residual *= slope.mul_(weight)[:, None]
        gradient[slab, :24] = torch.bmm(points, residual.transpose(1, 2)).view(-1, 24)
        grad_ray = torch.bmm(transform[:, :3], residual)
        grad_depth = (grad_ray[:, :2] * pixel).sum(1) + grad_ray[:, 2]
        torch.mul(grad_depth, flattening, out=anchor_gradient[slab])
        gradient[slab, 24] = (grad_depth * anchor * offset).sum(1)
    by_entry = chunks.sum_by_entry(gradient)
    rows = by_entry.new_zeros(len(by_entry), 2, 25)
    rows[:, 0, :12], rows[:, 0, 24] = by_entry[:, :12], by_entry[:, 24]
    rows[:, 1, 12:24] = by_entry[:, 12:24]
    by_view = chunks.sum_by_view(rows.view(-1, 25))
    transforms = by_view[:, :24].view(n, 2, 4, 3)
    return total(losses), CameraMatrices(
        world_from_pixel=transforms[:, 0, :3].transpose(1, 2),
        pixel_from_world=None,
        rotations=transforms[:, 1, :3].transpose(1, 2),
        centres=transforms[:, :, 3].sum(1),
        inverse_zooms=by_view[:, 24],
        depths=chunks.sum_by_anchor(anchor_gradient.view(-1)).view(n, -1),
    )


def norm(residual: torch.Tensor, out: torch.Tensor, scratch: torch.Tensor) -> None:
    """(C, k, L) -> (C, L); plane by plane, because a sum over a short middle dimension is slow on a CPU."""
    torch.mul(residual[:, 0], residual[:, 0], out=out)
    for k in range(1, residual.shape[1]):
        out += torch.mul(residual[:, k], residual[:, k], out=scratch)
    out.sqrt_()


def total(losses: list[torch.Tensor]) -> torch.Tensor:
    return losses[0] if len(losses) == 1 else torch.stack(losses).sum()


def slabs(num_chunks: int, like: torch.Tensor) -> list[slice]:
    """Consecutive ranges of chunks, so that the temporaries stay small: in cache on a CPU, in memory on a GPU."""
    step = max(1, _SLAB.get(like.device.type, _SLAB["cpu"]) // CHUNK)
    return [slice(first, min(first + step, num_chunks)) for first in range(0, num_chunks, step)]


def slab_size(ranges: list[slice]) -> int:
    return max(part.stop - part.start for part in ranges)
