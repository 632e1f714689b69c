"""The fine loss with its gradient, over chunks of matches."""

from __future__ import annotations

import torch

from mast3r_sfm.alignment.execution.cameras import CameraMatrices
from mast3r_sfm.alignment.execution.packing import MatchChunks
from mast3r_sfm.alignment.execution.slabs import norm, robust_value_and_slope, slab_size, slabs, total
from mast3r_sfm.alignment.losses import MIN_DEPTH, PIXEL_RANGE


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


class FineLoss:
    """Value and gradient of `losses.fine_loss` over all matches, in both directions.

    The pixel (x, y) of a source view at depth d appears in the target view at the homogeneous pixel
    d M (x, y, 1) + m, so each direction of a pair has one (3, 4) matrix M | m, see `directions`.
    """

    def __init__(self, matches: MatchChunks, exponent: float) -> None:
        self._matches = matches
        self._exponent = exponent
        num_chunks, length = matches.weight.shape
        self._slabs = slabs(num_chunks, matches.weight)
        # temporaries are kept: a new one of this size costs more in page faults than its arithmetic
        directed = 2 * slab_size(self._slabs)
        empty = matches.weight.new_empty
        self._planes = empty(8, directed, length)
        self._point = torch.ones(directed, 4, length, dtype=matches.weight.dtype, device=matches.weight.device)
        self._h = empty(directed, 3, length)
        self._uv, self._residual, self._inside = empty(3, directed, 2, length)
        self._rows = empty(directed, 4, length)
        self._gradient = empty(num_chunks, 2, 4, 4)
        self._anchor_gradient = empty(num_chunks, 2, length)

    def __call__(self, cameras: CameraMatrices) -> tuple[torch.Tensor, CameraMatrices]:
        """Loss (0-d) and its gradient."""
        n, matches = len(cameras.centres), self._matches
        of_direction, from_source, into_target = directions(matches, cameras)
        depths = cameras.depths.reshape(-1)
        loss = total([self._slab(slab, of_direction, depths) for slab in self._slabs])

        by_pair = matches.sum_by_pair(self._gradient)
        grad_matrix = by_pair[:, :, :3]
        grad_target = (grad_matrix @ from_source.transpose(2, 3)).flip(1)
        grad_source = into_target.transpose(2, 3) @ grad_matrix
        grad_baseline = grad_source[..., 3]
        rows = torch.cat(
            [
                grad_source[..., :3].flatten(2),
                grad_baseline - grad_baseline.flip(1),
                grad_target.flatten(2),
                by_pair[:, :, 3, 3:],
            ],
            2,
        )
        # each match counts in two directions: half of its weight in either
        by_view = matches.sum_by_view(rows.view(-1, 22)).mul_(0.5)
        return loss * 0.5, CameraMatrices(
            world_from_pixel=by_view[:, :9].view(n, 3, 3),
            centres=by_view[:, 9:12],
            pixel_from_world=by_view[:, 12:21].view(n, 3, 3),
            inverse_zooms=by_view[:, 21],
            rotations=None,
            depths=matches.sum_by_anchor(self._anchor_gradient.view(-1)).view(n, -1).mul_(0.5),
        )

    def _slab(self, slab: slice, of_direction: torch.Tensor, depths: torch.Tensor) -> torch.Tensor:
        """Loss of some chunks; writes the gradient of each direction and of every observed anchor's depth.

        The gradient of a direction is the product of four rows with (depth x, depth y, depth, 1): three for the
        matrix M | m, and one whose last entry is that of the source's inverse zoom.
        """
        matches, observed = self._matches, self._matches.observed
        pixel, weight = observed.pixel[slab], matches.weight[slab, None]
        xy = pixel.flatten(0, 1)
        size, length = len(xy), xy.shape[2]
        anchor, flattening, inverse, in_front, distance, slope, value, scratch = self._planes[:, :size]
        point, h, uv, residual = self._point[:size], self._h[:size], self._uv[:size], self._residual[:size]
        inside, rows = self._inside[:size], self._rows[:size]

        of_chunk = of_direction.index_select(0, matches.chunk_pair[slab]).view(size, 13)
        matrix = of_chunk[:, :12].view(-1, 3, 4)
        offset = observed.offset[slab].flatten(0, 1)
        torch.index_select(depths, 0, observed.anchor[slab].reshape(-1), out=anchor.view(-1))
        torch.mul(offset, of_chunk[:, 12:], out=flattening).add_(1)
        depth = torch.mul(anchor, flattening, out=point[:, 2])
        torch.mul(xy, depth[:, None], out=point[:, :2])  # the fourth row is one

        # homogeneous pixels, projections, residuals
        torch.bmm(matrix, point, out=h)
        torch.ge(h[:, 2], MIN_DEPTH, out=in_front)
        torch.clamp_min(h[:, 2], MIN_DEPTH, out=inverse).reciprocal_()
        torch.mul(h[:, :2], inverse[:, None], out=uv)
        torch.clamp(uv, *PIXEL_RANGE, out=residual)
        torch.eq(residual, uv, out=inside)
        by_side = residual.view(-1, 2, 2, length)
        by_side[:, 0] -= pixel[:, 1]
        by_side[:, 1] -= pixel[:, 0]

        # robust distances, and the gradient by the homogeneous pixels in the first three rows
        norm(residual, out=distance, scratch=scratch)
        robust_value_and_slope(distance, self._exponent, value=value, slope=slope)
        value.view(-1, 2, length).mul_(weight)
        slope.view(-1, 2, length).mul_(weight)
        slope *= inverse
        residual *= inside
        torch.mul(residual, slope[:, None], out=rows[:, :2])
        uv *= rows[:, :2]
        torch.add(uv[:, 0], uv[:, 1], out=scratch).mul_(in_front)
        torch.neg(scratch, out=rows[:, 2])

        # the gradients by the depths, by the zooms (the fourth row), and by the matrices
        grad_point = torch.bmm(matrix[:, :, :3].transpose(1, 2), rows[:, :3], out=h)
        grad_point[:, :2] *= xy
        grad_depth = torch.add(grad_point[:, 0], grad_point[:, 1], out=scratch).add_(grad_point[:, 2])
        torch.mul(grad_depth, flattening, out=self._anchor_gradient[slab].flatten(0, 1))
        torch.mul(grad_depth, anchor.mul_(offset), out=rows[:, 3])
        torch.bmm(rows, point.transpose(1, 2), out=self._gradient[slab].flatten(0, 1))
        return value.sum()
