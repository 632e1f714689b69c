"""The fallback loss with its gradient, over chunks of observations."""

from __future__ import annotations

import torch

from mast3r_sfm.alignment.execution.cameras import CameraMatrices
from mast3r_sfm.alignment.execution.packing import FallbackChunks
from mast3r_sfm.alignment.execution.slabs import norm, robust_value_and_slope, slabs, total


class FallbackLoss:
    """Value and gradient of `losses.fallback_loss` over all observations of the views of bad pairs."""

    def __init__(self, chunks: FallbackChunks, exponent: float) -> None:
        self._chunks = chunks
        self._exponent = exponent

    def __call__(self, cameras: CameraMatrices) -> tuple[torch.Tensor, CameraMatrices]:
        """Loss (0-d) and its gradient."""
        assert cameras.rotations is not None
        n, chunks = len(cameras.centres), self._chunks
        centres = cameras.centres[:, None]
        observing = torch.cat([cameras.world_from_pixel.transpose(1, 2), centres], 1).view(n, 12)
        predicting = torch.cat([cameras.rotations.transpose(1, 2), centres], 1).view(n, 12)
        a, b = chunks.entries.unbind(1)
        zooms = cameras.inverse_zooms.index_select(0, a)[:, None]
        of_entry = torch.cat([observing.index_select(0, a), predicting.index_select(0, b), zooms], 1)

        num_chunks, length = chunks.weight.shape
        gradient = centres.new_empty(num_chunks, 25)
        anchor_gradient = centres.new_empty(num_chunks, length)
        values = []
        for slab in slabs(num_chunks, centres):
            pixel, offset = chunks.observed.pixel[slab], chunks.observed.offset[slab]
            of_chunk = of_entry.index_select(0, chunks.chunk_entry[slab])
            transform = of_chunk[:, :24].view(-1, 8, 3)
            anchor = cameras.depths.view(-1).index_select(0, chunks.observed.anchor[slab].reshape(-1)).view_as(offset)
            flattening = (offset * of_chunk[:, 24:]).add_(1)
            depth, one = (anchor * flattening)[:, None], torch.ones_like(anchor)[:, None]
            # as in the coarse loss, one product gives the residual: with rays of a instead of points in its camera
            points = torch.cat([pixel * depth, depth, one, -chunks.target[slab], -one], 1)
            residual = torch.bmm(transform.transpose(1, 2), points)
            distance, slope, value = torch.empty(3, *anchor.shape, device=anchor.device, dtype=anchor.dtype)
            norm(residual, out=distance, scratch=value)
            robust_value_and_slope(distance, self._exponent, value=value, slope=slope)
            weight = chunks.weight[slab]
            values.append(value.mul_(weight).sum())
            residual *= slope.mul_(weight)[:, None]
            gradient[slab, :24] = torch.bmm(points, residual.transpose(1, 2)).view(-1, 24)
            # the depth of a point depends on its anchor's depth and on the zoom of a
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
        return total(values), CameraMatrices(
            world_from_pixel=transforms[:, 0, :3].transpose(1, 2),
            pixel_from_world=None,
            rotations=transforms[:, 1, :3].transpose(1, 2),
            centres=transforms[:, :, 3].sum(1),
            inverse_zooms=by_view[:, 24],
            depths=chunks.sum_by_anchor(anchor_gradient.view(-1)).view(n, -1),
        )
