"""The three losses of the alignment with their gradients, over chunks of matches.

Spec: alignment, section 9. Each function returns the loss and its gradient with respect to per-view matrices
and per-anchor depths; how those follow from the parameters is left to autograd, which then sees no tensor
with as many rows as there are matches. All sums run in a fixed order, so results repeat on every device.

Symmetrised pair lists contain every pair twice with the same terms; here every pair occurs once, which leaves
the normalised losses as they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from mast3r_sfm.alignment.packing import CHUNK, FallbackChunks, MatchChunks

MIN_PROJECTION_DEPTH = 1e-3
PIXEL_RANGE = (-1000.0, 2000.0)
_TINY = 1e-20
# matches in flight: the temporaries of a slab are about 100 bytes a match
_SLAB = {"cpu": 1 << 17, "cuda": 1 << 22}


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


def robust_distance_(distance: torch.Tensor, exponent: float) -> tuple[torch.Tensor, torch.Tensor]:
    """rho(d) and rho'(d) / d, where the latter is finite at 0; overwrites `distance`."""
    offset = robust_offset(exponent)
    inverse = distance.clamp_min(_TINY).reciprocal_()
    shifted = distance.add_(offset)
    slope = shifted.pow(exponent - 1)  # +-0.5 are a square root
    value = (shifted * slope).sub_(offset**exponent)
    return value, slope.mul_(inverse).mul_(exponent)


def point_loss(
    matches: MatchChunks, points: torch.Tensor, rotations: torch.Tensor, centres: torch.Tensor, exponent: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """3-D loss: robust distance between the two world points of every match.

    points     (C, 8, L): the matched points of side 0 in its camera and 1, then the same of side 1, negated
    rotations  (n, 3, 3) world from camera, times the scale of the view
    centres    (n, 3)

    Returns the loss (0-d) and its gradients with respect to `rotations` and `centres`.
    """
    n = len(centres)
    # a row vector times this is a world point: R^T above c^T
    transforms = torch.cat([rotations.transpose(1, 2), centres[:, None]], 1).view(n, 12)
    of_pair = transforms.index_select(0, matches.pairs.view(-1)).view(-1, 8, 3)
    gradient = points.new_empty(len(points), 8, 3)
    losses = []
    for slab in slabs(len(points), points):
        of_chunk = of_pair.index_select(0, matches.chunk_pair[slab])
        residual = torch.bmm(of_chunk.transpose(1, 2), points[slab])
        value, slope = robust_distance_(_norm(residual), exponent)
        weight = matches.weight[slab]
        losses.append(value.mul_(weight).sum())
        residual *= slope.mul_(weight)[:, None]
        torch.bmm(points[slab], residual.transpose(1, 2), out=gradient[slab])
    by_view = matches.sum_by_view(matches.sum_by_pair(gradient).view(-1, 12)).view(n, 4, 3)
    return _total(losses), by_view[:, :3].transpose(1, 2), by_view[:, 3]


def constant_points(
    matches: MatchChunks, rays: torch.Tensor, unit_depths: torch.Tensor, inverse_zooms: torch.Tensor
) -> torch.Tensor:
    """The `points` of `point_loss`: matched points in their cameras, for views of scale 1.

    rays           (n, 3, 3) K^-1
    unit_depths    (n, A) depths of the anchors at scale 1
    inverse_zooms  (n,)
    """
    observed = matches.observed
    views = matches.pairs.index_select(0, matches.chunk_pair)  # (C, 2)
    offset = observed.offset * inverse_zooms[views][..., None] + 1
    depth = unit_depths.view(-1)[observed.anchor.long()].mul_(offset)
    points = depth.new_ones(*observed.anchor.shape[:2], 4, observed.anchor.shape[2])
    points[:, :, :3] = (rays[views] @ observed.pixel).mul_(depth[:, :, None])
    points[:, 1].neg_()
    return points.view(len(points), 8, -1)


def projection_loss(
    matches: MatchChunks, cameras: CameraMatrices, exponent: float
) -> tuple[torch.Tensor, CameraMatrices]:
    """2-D loss: robust distance in pixels between every matched pixel and its partner, projected into its view.

    Both directions of every match count. A point is the source view's pixel at the depth of its anchor times
    `1 + offset * inverse zoom`; in the target view it is projected with a depth of at least
    `MIN_PROJECTION_DEPTH` and clamped to `PIXEL_RANGE`.

    Returns the loss (0-d) and its gradients.
    """
    n = len(cameras.centres)
    of_direction, from_source, into_target = directions(matches, cameras)
    loss, gradient, anchor_gradient = _project(matches, of_direction, cameras.depths, exponent)

    by_pair = matches.sum_by_pair(gradient.view(len(gradient), -1)).view(-1, 2, 7, 3)
    grad_matrix = torch.cat([by_pair[:, :, :3], by_pair[:, :, 3:6, 2:]], 3)
    grad_target = (grad_matrix @ from_source.transpose(2, 3)).flip(1)
    grad_source = into_target.transpose(2, 3) @ grad_matrix
    grad_baseline = grad_source[..., 3]
    rows = torch.cat(
        [
            grad_source[..., :3].flatten(2),
            grad_baseline - grad_baseline.flip(1),
            grad_target.flatten(2),
            by_pair[:, :, 6, 2:],
        ],
        2,
    )
    by_view = matches.sum_by_view(rows.view(-1, 22))
    return loss, CameraMatrices(
        world_from_pixel=by_view[:, :9].view(n, 3, 3),
        centres=by_view[:, 9:12],
        pixel_from_world=by_view[:, 12:21].view(n, 3, 3),
        inverse_zooms=by_view[:, 21],
        rotations=None,
        depths=matches.sum_by_anchor(anchor_gradient).view(n, -1),
    )


def directions(matches: MatchChunks, cameras: CameraMatrices) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What projects the points of one view of a pair into the other, for both directions of every pair.

    Returns, with [p, side] the direction from view `side` of the pair to the other one,
    (P + 1, 2, 13): M | m row by row, then the source's inverse zoom; a pixel (x, y, 1) of the source at depth d has
        the homogeneous pixel d M (x, y, 1) + m in the target;
    (P + 1, 2, 3, 4) and (P + 1, 2, 3, 3): the two factors of M | m, from the source and into the target.
    """
    assert cameras.pixel_from_world is not None
    n = len(cameras.centres)
    packed = torch.cat(
        [
            cameras.world_from_pixel.reshape(n, 9),
            cameras.centres,
            cameras.pixel_from_world.reshape(n, 9),
            cameras.inverse_zooms[:, None],
        ],
        1,
    )
    of_side = packed.index_select(0, matches.pairs.view(-1)).view(-1, 2, 22)
    baseline = (of_side[:, :, 9:12] - of_side[:, :, 9:12].flip(1))[..., None]
    from_source = torch.cat([of_side[:, :, :9].unflatten(2, (3, 3)), baseline], 3)
    into_target = of_side[:, :, 12:21].flip(1).unflatten(2, (3, 3))
    return torch.cat([(into_target @ from_source).flatten(2), of_side[:, :, 21:]], 2), from_source, into_target


def _project(
    matches: MatchChunks, of_direction: torch.Tensor, depths: torch.Tensor, exponent: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The part of `projection_loss` that touches every match.

    of_direction is the first result of `directions`.

    Returns the loss, rows (C, 2, 7, 3) and the gradient (2CL,) with respect to the depth of the observed
    anchors. The first three of seven rows are the gradient with respect to M; the last column of the other four
    is that with respect to m and to the inverse zoom. (One product with (x, y, 1) yields all of them.)
    """
    observed = matches.observed
    num_chunks, length = matches.weight.shape
    gradient = depths.new_empty(num_chunks, 2, 7, 3)
    anchor_gradient = depths.new_empty(num_chunks, 2, length)
    losses = []
    for slab in slabs(num_chunks, depths):
        pixel = observed.pixel[slab]
        flat_pixel = pixel.flatten(0, 1)
        of_chunk = of_direction.index_select(0, matches.chunk_pair[slab]).flatten(0, 1)
        matrix = of_chunk[:, :12].view(-1, 3, 4)
        offset = observed.offset[slab].flatten(0, 1)
        anchor = depths.view(-1).index_select(0, observed.anchor[slab].reshape(-1)).view_as(offset)
        flattening = (offset * of_chunk[:, 12:]).add_(1)
        depth = anchor * flattening

        direction = torch.bmm(matrix[:, :, :3], flat_pixel)
        h = torch.addcmul(matrix[:, :, 3:], direction, depth[:, None])
        in_front = h[:, 2] >= MIN_PROJECTION_DEPTH
        inverse = h[:, 2].clamp_min(MIN_PROJECTION_DEPTH).reciprocal_()
        uv = h[:, :2] * inverse[:, None]
        residual = uv.clamp(*PIXEL_RANGE)
        inside = residual == uv
        by_side = residual.view(-1, 2, 2, length)
        by_side[:, 0] -= pixel[:, 1, :2]
        by_side[:, 1] -= pixel[:, 0, :2]

        value, slope = robust_distance_(_norm(residual), exponent)
        weight = matches.weight[slab, None]
        losses.append(value.view(-1, 2, length).mul_(weight).sum())
        slope.view(-1, 2, length).mul_(weight)

        rows = h.new_empty(len(h), 7, length)
        grad_h = rows[:, 3:6]
        # each match counts in two directions: half of its weight in either
        torch.mul(residual.mul_(inside), slope.mul_(inverse).mul_(0.5)[:, None], out=grad_h[:, :2])
        uv *= grad_h[:, :2]
        torch.add(uv[:, 0], uv[:, 1], out=grad_h[:, 2]).mul_(in_front).neg_()
        torch.mul(grad_h, depth[:, None], out=rows[:, :3])
        direction *= grad_h
        grad_depth = direction[:, 0].add_(direction[:, 1]).add_(direction[:, 2])
        torch.mul(grad_depth, flattening, out=anchor_gradient[slab].flatten(0, 1))
        torch.mul(grad_depth, anchor.mul_(offset), out=rows[:, 6])
        torch.bmm(rows, flat_pixel.transpose(1, 2), out=gradient[slab].flatten(0, 1))
    return _total(losses) * 0.5, gradient, anchor_gradient.view(-1)


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
        one = torch.ones_like(anchor)[:, None]
        points = torch.cat([pixel * (anchor * flattening)[:, None], one, -chunks.target[slab], -one], 1)
        residual = torch.bmm(transform.transpose(1, 2), points)
        value, slope = robust_distance_(_norm(residual), exponent)
        weight = chunks.weight[slab]
        losses.append(value.mul_(weight).sum())
        residual *= slope.mul_(weight)[:, None]
        gradient[slab, :24] = torch.bmm(points, residual.transpose(1, 2)).view(-1, 24)
        grad_depth = (torch.bmm(transform[:, :3], residual) * pixel).sum(1)
        torch.mul(grad_depth, flattening, out=anchor_gradient[slab])
        gradient[slab, 24] = (grad_depth * anchor * offset).sum(1)
    by_entry = chunks.sum_by_entry(gradient)
    rows = by_entry.new_zeros(len(by_entry), 2, 25)
    rows[:, 0, :12], rows[:, 0, 24] = by_entry[:, :12], by_entry[:, 24]
    rows[:, 1, 12:24] = by_entry[:, 12:24]
    by_view = chunks.sum_by_view(rows.view(-1, 25))
    transforms = by_view[:, :24].view(n, 2, 4, 3)
    return _total(losses), CameraMatrices(
        world_from_pixel=transforms[:, 0, :3].transpose(1, 2),
        pixel_from_world=None,
        rotations=transforms[:, 1, :3].transpose(1, 2),
        centres=transforms[:, :, 3].sum(1),
        inverse_zooms=by_view[:, 24],
        depths=chunks.sum_by_anchor(anchor_gradient.view(-1)).view(n, -1),
    )


def _norm(residual: torch.Tensor) -> torch.Tensor:
    """(C, k, L) -> (C, L); sums of planes, because a reduction over a short middle dimension is slow on a CPU."""
    squares = residual.square()
    total = squares[:, 0]
    for k in range(1, squares.shape[1]):
        total += squares[:, k]
    return total.sqrt_()


def _total(losses: list[torch.Tensor]) -> torch.Tensor:
    return losses[0] if len(losses) == 1 else torch.stack(losses).sum()


def slabs(num_chunks: int, like: torch.Tensor) -> Iterator[slice]:
    """Consecutive ranges of chunks, so that the temporaries of large problems stay small."""
    step = max(1, _SLAB.get(like.device.type, _SLAB["cpu"]) // CHUNK)
    for first in range(0, num_chunks, step):
        yield slice(first, min(first + step, num_chunks))
