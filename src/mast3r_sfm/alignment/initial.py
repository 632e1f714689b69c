"""Where the coarse stage starts: views placed one after the other by the matched points of their best pairs.

The published method starts with all views in one place. That takes the coarse stage most of its iterations to
resolve, and sometimes it does not; from here it starts next to its goal.

Source of the closed form: S. Umeyama, "Least-squares estimation of transformation parameters between two point
patterns", PAMI 13(4), 1991, made robust by iterative reweighting, and symmetric in the scale.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.spatial.transform import Rotation

from mast3r_sfm.alignment.execution.packing import MatchChunks
from mast3r_sfm.alignment.execution.segments import SegmentSum
from mast3r_sfm.alignment.execution.slabs import slabs
from mast3r_sfm.alignment.kinematic_tree import KinematicTree, span
from mast3r_sfm.alignment.parameters import SceneModel
from mast3r_sfm.errors import ReconstructionError

_ROUNDS = 6
_INLIER_SPREAD = 0.05  # residuals below this share of the points' spread weigh the same
_DISTRUST = 1e-6  # a pair without a good match joins two views only if nothing else does


@dataclass(frozen=True)
class Similarities:
    """Of k pairs (a, b), float64: a point of b's camera at `scale * rotation @ x + translation` in a's camera."""

    rotations: np.ndarray
    translations: np.ndarray
    scales: np.ndarray


def place_along_tree(model: SceneModel, points: torch.Tensor, theta: torch.Tensor) -> None:
    """Sets poses and sizes in the flat vector `theta`; intrinsics and normalised depths are those it holds.

    points  as of `CoarseLoss`, (C, 8, L): both ends of every match in their cameras, the second negated

    The views are joined along the spanning tree with the most matches. Raises ReconstructionError if the points
    of a match are not finite.
    """
    problem = model.problem
    matches = problem.matches
    pair_of = {(int(i), int(j)): p for p, (i, j) in enumerate(matches.pairs[:-1].tolist())}
    weights = np.where(_good(pair_of, problem.scores), problem.scores, _DISTRUST * problem.scores)
    tree = span(weights) if len(weights) > 1 else KinematicTree(0, ())
    joined = [pair_of.get((a, b), pair_of.get((b, a))) for a, b in tree.edges]
    found = _similarities(matches, points, sorted({p for p in joined if p is not None}), problem.view_indices)

    n = problem.num_views
    rotations, centres, sizes = np.tile(np.eye(3), (n, 1, 1)), np.zeros((n, 3)), np.ones(n)
    for (a, b), pair in zip(tree.edges, joined, strict=True):
        rotation, translation, scale = np.eye(3), np.zeros(3), 1.0
        if pair is not None:
            rotation, translation, scale = found[pair]
            if (a, b) not in pair_of:  # invert
                rotation, scale = rotation.T, 1 / scale
                translation = -scale * rotation @ translation
        rotations[b] = rotations[a] @ rotation
        centres[b] = centres[a] + sizes[a] * rotations[a] @ translation
        sizes[b] = sizes[a] * scale

    smallest = sizes.min()  # the global scaling of the model is then one
    sizes, centres = sizes / smallest, centres / smallest
    parameters = model.unpack(theta)
    levers = model.intrinsics(parameters.log_focals, parameters.principal_points).levers.cpu().double().numpy()
    positions = centres + sizes[:, None] * (rotations @ levers[:, :, None])[..., 0]
    relative_rotations, relative_positions = np.tile(np.eye(3), (n, 1, 1)), np.zeros((n, 3))
    for a, b in problem.tree.edges:
        relative_rotations[b] = rotations[a].T @ rotations[b]
        relative_positions[b] = rotations[a].T @ (positions[b] - positions[a])
    # roma gives the same float32 quaternions, but its import loads torch's compiler: two seconds and 150 MB
    parameters.quaternions.copy_(torch.from_numpy(Rotation.from_matrix(relative_rotations).as_quat()))
    parameters.translations.copy_(torch.from_numpy(relative_positions))
    parameters.log_sizes.copy_(torch.from_numpy(np.log(sizes)))


def _good(pair_of: dict[tuple[int, int], int], scores: np.ndarray) -> np.ndarray:
    good = np.zeros_like(scores, dtype=bool)
    for i, j in pair_of:
        good[i, j] = good[j, i] = True
    return good


def _similarities(
    matches: MatchChunks, points: torch.Tensor, pairs: list[int], view_indices: tuple[int, ...]
) -> dict[int, tuple[np.ndarray, np.ndarray, float]]:
    """Rotation, translation and scale between the cameras of each of `pairs`, keyed by pair."""
    if not pairs:
        return {}
    device = points.device
    position_of = torch.full((len(matches.pairs),), -1, device=device)
    position_of[torch.tensor(pairs, device=device)] = torch.arange(len(pairs), device=device)
    owner = position_of[matches.chunk_pair]
    chunks = (owner >= 0).nonzero()[:, 0]
    # the last row stays zero
    owner = torch.cat([owner[chunks], owner.new_tensor([-1])])
    sum_by_pair = SegmentSum(owner, len(pairs), zero_row=len(chunks))
    moments = points.new_zeros(len(chunks) + 1, 8, 8)
    residual_from_points: torch.Tensor | None = None
    for _ in range(_ROUNDS):
        for slab in slabs(len(chunks), points):
            own, weight = points[chunks[slab]], matches.weight[chunks[slab]]
            if residual_from_points is not None:
                of_chunk = residual_from_points[owner[slab]]
                residual = torch.linalg.vector_norm(of_chunk[:, :, :8] @ own, dim=1)
                weight = weight / (residual + of_chunk[:, :1, 8])
            torch.bmm(own * weight[:, None], own.transpose(1, 2), out=moments[slab])
        total = sum_by_pair(moments).cpu().double().numpy()
        for p in np.flatnonzero(~np.isfinite(total).all((1, 2)))[:1]:
            i, j = (view_indices[view] for view in matches.pairs[pairs[p]].tolist())
            raise ReconstructionError(f"the matched points of images {i} and {j} are not finite; leave out one of them")
        fit, spread = _fit(total)
        transform = np.zeros((len(pairs), 3, 9))
        transform[:, :, :3] = np.eye(3)
        transform[:, :, 3] = -fit.translations
        transform[:, :, 4:7] = fit.scales[:, None, None] * fit.rotations  # of points that are negated
        transform[:, :, 8] = _INLIER_SPREAD * spread[:, None]
        residual_from_points = torch.from_numpy(transform).to(device, points.dtype)
    return {p: (fit.rotations[k], fit.translations[k], float(fit.scales[k])) for k, p in enumerate(pairs)}


def _fit(moments: np.ndarray) -> tuple[Similarities, np.ndarray]:
    """Weighted least squares from moments (k, 8, 8) of (x_a, 1, -x_b, -1), and the spread of the points in a (k,)."""
    weight = np.maximum(moments[:, 3, 3], 1e-300)[:, None]
    mean_a, mean_b = moments[:, :3, 3] / weight, moments[:, 4:7, 7] / weight
    weight = weight[..., None]
    covariance = -moments[:, :3, 4:7] / weight - mean_a[:, :, None] * mean_b[:, None]
    spread_a, spread_b = (
        np.sqrt(np.maximum(np.trace(second, axis1=1, axis2=2), 1e-24))
        for second in (
            moments[:, :3, :3] / weight - mean_a[:, :, None] * mean_a[:, None],
            moments[:, 4:7, 4:7] / weight - mean_b[:, :, None] * mean_b[:, None],
        )
    )
    U, _, Vt = np.linalg.svd(covariance)
    U[:, :, 2] *= np.sign(np.linalg.det(U @ Vt))[:, None]
    rotations = U @ Vt
    scales = spread_a / spread_b
    translations = mean_a - scales[:, None] * (rotations @ mean_b[:, :, None])[..., 0]
    return Similarities(rotations, translations, scales), spread_a
