"""The coarse loss with its gradient, over chunks of matches."""

from __future__ import annotations

import torch

from mast3r_sfm.alignment.execution.packing import MatchChunks
from mast3r_sfm.alignment.execution.slabs import TINY, norm, robust_value_and_slope, slab_size, slabs, total


class CoarseLoss:
    """Value and gradient of `losses.coarse_loss` over all matches.

    The points of a match in their cameras do not change, so its residual, the difference of its two world points, is
    one product: of a (3, 8) matrix of the pair, R_i | c_i | R_j | c_j, with a constant column (X, 1, -Y, -1).

    points  (C, 8, L) those columns, see `constant_points`
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
        values = []
        for slab in self._slabs:
            points, weight = self._points[slab], matches.weight[slab]
            residual, (square, distance, slope, value) = self._residual[: len(points)], self._planes[:, : len(points)]
            of_chunk = of_pair.index_select(0, matches.chunk_pair[slab])
            torch.bmm(of_chunk.transpose(1, 2), points, out=residual)
            norm(residual, out=distance, scratch=square)
            robust_value_and_slope(distance, self._exponent, value=value, slope=slope)
            values.append(value.mul_(weight).sum())
            residual *= slope.mul_(weight)[:, None]
            torch.bmm(points, residual.transpose(1, 2), out=self._gradient[slab])
        by_pair = matches.sum_by_pair(self._gradient)
        by_view = matches.sum_by_view(by_pair.view(-1, 12)).view(n, 4, 3)
        return total(values), by_view[:, :3].transpose(1, 2), by_view[:, 3]


def constant_points(
    matches: MatchChunks, rays: torch.Tensor, unit_depths: torch.Tensor, inverse_zooms: torch.Tensor, relative: bool
) -> torch.Tensor:
    """The `points` of a `CoarseLoss`: matched points in their cameras, for views of scale 1.

    rays           (n, 3, 3) K^-1
    unit_depths    (n, A) depths of the anchors at scale 1
    inverse_zooms  (n,)
    relative       divide both ends of a match, and the 1, by `losses.relative_units` of their depths
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
            own *= depth.square().mean(1).clamp_min_(TINY).rsqrt_()[:, None, None]
    return points.view(num_chunks, 8, -1)
