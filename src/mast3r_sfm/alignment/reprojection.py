"""How well the aligned cameras agree with the matches, in pixels."""

from __future__ import annotations

import torch

from mast3r_sfm.alignment.execution.cameras import CameraMatrices
from mast3r_sfm.alignment.execution.fine_loss import directions
from mast3r_sfm.alignment.execution.slabs import slabs
from mast3r_sfm.alignment.problem import AlignmentProblem
from mast3r_sfm.alignment.solver import AlignmentResult
from mast3r_sfm.device import matmul_precision
from mast3r_sfm.geometry import invert


def reprojection_errors(problem: AlignmentProblem, result: AlignmentResult) -> torch.Tensor:
    """(n,) float64: median distance in pixels between a view's matched pixels and their partners' projections.

    A partner is its own pixel at its own aligned depth. One behind the camera is infinitely far; a view without
    a match has nan. Matches of pairs below the confidence threshold do not count.
    """
    with matmul_precision("fp32"):
        errors = _errors(problem, result)  # (C, 2, L) of the direction from each side
    matches = problem.matches
    target = matches.pairs.flip(1)[matches.chunk_pair].view(-1)
    real = (matches.weight > 0)[:, None].expand_as(errors).reshape(len(target), -1)
    errors = errors.view(len(target), -1)
    order = target.argsort(stable=True)
    rows = order.split(target.bincount(minlength=problem.num_views).tolist())
    medians = [errors[own][real[own]].median() if real[own].any() else errors.new_tensor(torch.nan) for own in rows]
    return torch.stack(medians).double()


def _errors(problem: AlignmentProblem, result: AlignmentResult) -> torch.Tensor:
    matches = problem.matches
    rotations, centres = result.world_from_cam[:, :3, :3], result.world_from_cam[:, :3, 3]
    depths = torch.ones_like(problem.normalized_core_depths)
    for row, depth in zip(depths, result.core_depths, strict=True):
        row[: depth.numel()] = depth.reshape(-1)
    cameras = CameraMatrices(
        world_from_pixel=(rotations @ invert(result.K)).float(),
        pixel_from_world=(result.K @ rotations.transpose(1, 2)).float(),
        rotations=None,
        centres=centres.float(),
        inverse_zooms=(problem.base_focals / result.K[:, 0, 0]).float(),
        depths=depths,
    )
    of_direction = directions(matches, cameras)[0]
    errors = torch.empty_like(matches.observed.offset)
    for slab in slabs(len(errors), errors):
        of_chunk = of_direction[matches.chunk_pair[slab]]
        pixel, anchor, offset = (getattr(matches.observed, name)[slab] for name in ("pixel", "anchor", "offset"))
        depth = depths.view(-1)[anchor.long()] * (1 + offset * of_chunk[..., 12:])
        matrix = of_chunk[..., :12].unflatten(2, (3, 4))
        ray = matrix[..., :2] @ pixel + matrix[..., 2:3]
        h = ray * depth[:, :, None] + matrix[..., 3:]
        distance = torch.linalg.vector_norm(h[:, :, :2] / h[:, :, 2:] - pixel.flip(1), dim=2)
        errors[slab] = torch.where(h[:, :, 2] > 0, distance, torch.inf)
    return errors
