"""The linear system of an iteration, with the anchors eliminated, and its solution by conjugate gradients.

A step of the cameras is a flat vector: turn and shift of every view (n, 6), in its camera, then the changes of the log
focals (F,) and of the principal points (C, 2). With matrix H and gradient g of the cameras, diagonal C and gradient b
of the anchors, and E between the two,

    (H + lambda diag H - E C^-1 E^T) x = -(g - E C^-1 b),    step of the anchors  -C^-1 (b + E^T x)
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from mast3r_sfm.alignment.execution.normal_equations import NUM_OF_DIRECTION, Sums, Term
from mast3r_sfm.alignment.execution.segments import SegmentSum
from mast3r_sfm.alignment.parameters import SceneModel

_OF_VIEW = 9  # turn, shift, log focal, principal point
_TINY = 1e-30


class StepLayout:
    """Between the flat vector of a step and its nine numbers per view.

    size  of the flat vector;  num_poses  of its entries that are turns and shifts
    """

    def __init__(self, model: SceneModel) -> None:
        self._model = model
        self._num_focals, self._num_centres = model.shapes["log_focals"][0], model.shapes["principal_points"][0]
        self.num_poses = 6 * model.num_views
        self.size = self.num_poses + self._num_focals + 2 * self._num_centres

    def split(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Poses (n, 6), log focals (F,), principal points (C, 2)."""
        poses, focals, centres = x.split([self.num_poses, self._num_focals, 2 * self._num_centres])
        return poses.view(-1, 6), focals, centres.view(-1, 2)

    def per_view(self, x: torch.Tensor) -> torch.Tensor:
        """(size,) -> (n, 9)"""
        poses, focals, centres = self.split(x)
        n = len(poses)
        own = self._model.of_focals.per_view(focals)[:, None].expand(n, 1)
        return torch.cat([poses, own, self._model.of_centres.per_view(centres).expand(n, 2)], 1)

    def total(self, rows: torch.Tensor) -> torch.Tensor:
        """(n, 9) -> (size,): the sums over the views that share a number."""
        focals = self._model.of_focals.total(rows[:, 6])
        centres = self._model.of_centres.total(rows[:, 7:])
        return torch.cat([rows[:, :6].reshape(-1), focals, centres.reshape(-1)])


class DirectedTerm:
    """A term whose directions have become those of the unknowns of their two views.

    M = R | t and the zoom of a direction change with the nine numbers of its source and of its target as `_chain` (D,
    18, 13) says.
    """

    def __init__(self, term: Term, centre_units: torch.Tensor, num_views: int) -> None:
        self.term = term
        ends = term.ends
        self._ends = ends.reshape(-1)
        owner = self._ends.clone()
        owner[-2:] = -1  # the last direction is padding
        self._sum_by_view = SegmentSum(owner, num_views, zero_row=len(owner) - 1)
        self._units = centre_units.index_select(0, self._ends).view(-1, 2, 2)
        count = len(ends)
        self._chain = centre_units.new_zeros(count, 2 * _OF_VIEW, NUM_OF_DIRECTION)
        self._blocks = centre_units.new_zeros(count, 2 * _OF_VIEW, 2 * _OF_VIEW)
        self._turns = _generators().to(centre_units)
        motions = self._motions()
        for axis in range(3):
            motions[:, 12 + axis, axis, 3] = -1  # a shift of the target
        self._chain[:, 6, 12] = 1

    def _motions(self) -> torch.Tensor:
        """(D, 18, 3, 4) view of the part of the chain that changes the motions."""
        return self._chain[:, :, :12].unflatten(2, (3, 4))

    def update(self, motion: torch.Tensor, intrinsics: torch.Tensor, sums: Sums) -> tuple[torch.Tensor, torch.Tensor]:
        """Takes over a linearization; `intrinsics` (n, 4) as of `Numbers`.

        Returns the gradient (n, 9) by the views, and the part (n, 9, 9) of the matrix that each has to itself.
        """
        focals = intrinsics[:, 0].index_select(0, self._ends).view(-1, 2, 1)
        per_pixel = self._units / focals  # of the principal points, at focal length 1
        rotation, out = motion[:, :, :3], self._motions()
        out[:, 0:3, :, :3] = rotation[:, None] @ self._turns
        out[:, 3:6, :, 3] = rotation.transpose(1, 2)
        out[:, 6, :, :2] = -rotation[:, :, :2]
        out[:, 7:9, :, 2] = -rotation[:, :, :2].transpose(1, 2) * per_pixel[:, 0, :, None]
        out[:, 9:12] = -(self._turns @ motion[:, None])
        if self.term.projects:
            out[:, 15, :2] = motion[:, :2]
            for axis in (0, 1):
                out[:, 16 + axis, axis] = motion[:, 2] * per_pixel[:, 1, axis, None]
        self._blocks.copy_(self._chain @ sums.hessian @ self._chain.transpose(1, 2))
        both = torch.stack([self._blocks[:, :_OF_VIEW, :_OF_VIEW], self._blocks[:, _OF_VIEW:, _OF_VIEW:]], 1)
        gradient = torch.bmm(self._chain, sums.gradient[:, :, None])
        return self._by_view(gradient), self._sum_by_view(both.view(-1, _OF_VIEW, _OF_VIEW))

    def of_ends(self, views: torch.Tensor) -> torch.Tensor:
        """(n, 9) -> (D, 18, 1): of the two views of every direction."""
        return views.index_select(0, self._ends).view(-1, 2 * _OF_VIEW, 1)

    def _by_view(self, rows: torch.Tensor) -> torch.Tensor:
        """(D, 18, 1) -> (n, 9)"""
        return self._sum_by_view(rows.view(-1, _OF_VIEW))

    def to_anchors(self, ends: torch.Tensor) -> torch.Tensor:
        """E^T: (D, 18, 1) -> (n A,)"""
        return self.term.to_anchors(torch.bmm(ends.transpose(1, 2), self._chain)[:, 0])

    def from_anchors(self, anchors: torch.Tensor) -> torch.Tensor:
        """E: (n A,) -> (n, 9)"""
        return self._by_view(torch.bmm(self._chain, self.term.from_anchors(anchors)[:, :, None]))

    def product(self, ends: torch.Tensor, anchors: torch.Tensor) -> torch.Tensor:
        """H times the views at the `ends` (D, 18, 1), less E times the anchors (n A,): (n, 9)"""
        by_anchors = self.term.from_anchors(anchors)[:, :, None]
        return self._by_view(torch.bmm(self._blocks, ends).baddbmm_(self._chain, by_anchors, alpha=-1))


class ReducedSystem:
    """The system and the state of its solver.

    What `prepare` leaves lies at fixed places, so that `solver_step` can be recorded apart from it.

    """

    def __init__(
        self,
        terms: Sequence[DirectedTerm],
        layout: StepLayout,
        num_anchors: tuple[int, int],
        trained: torch.Tensor,
        shared_depths: bool = False,
    ) -> None:
        """num_anchors    views n, and anchors A of each
        trained        (size,) 1 for numbers that move, 0 for others
        shared_depths  the anchors of a view have one factor: sums over anchors are then sums over those of its view
        """
        self._terms, self._layout, self._trained = list(terms), layout, trained
        self._num_anchors, self._shared_depths = num_anchors, shared_depths
        new = trained.new_zeros
        self._inverse_curvature, self._slope = new(2, num_anchors[0] * num_anchors[1])
        self._added = new(layout.size)  # to the diagonal
        self._inverse_blocks, self._inverse_diagonal = new(num_anchors[0], 6, 6), new(layout.size - layout.num_poses)
        self.x, self._residual, self._direction = new(3, layout.size)
        self._product = new(1)

    def state(self) -> list[torch.Tensor]:
        """The tensors that `solver_step` changes."""
        return [self.x, self._residual, self._direction, self._product]

    def prepared(self) -> list[torch.Tensor]:
        """The tensors of `prepare` that `anchors` reads, and the step."""
        return [self._inverse_curvature, self._slope, self.x]

    def prepare(
        self,
        gradient: torch.Tensor,
        own: torch.Tensor,
        curvature: torch.Tensor,
        slope: torch.Tensor,
        prior: tuple[torch.Tensor, torch.Tensor],
        depth_prior: tuple[torch.Tensor, float],
        damping: torch.Tensor,
        usable: torch.Tensor,
    ) -> None:
        """The system at a place, and the start of its solution.

        gradient, own      (n, 9), (n, 9, 9) sums of `DirectedTerm.update`
        curvature, slope   (n A,) of the anchors
        prior              slope and curvature (F + 2C,) of the priors of the intrinsics
        depth_prior        slope (n A,) and curvature of that of the depths
        damping            (1,) lambda
        usable             (1,) bool; if false, the step will be zero
        """
        poses = self._layout.num_poses
        damped = self._of_depths(curvature) * (1 + damping)
        self._inverse_curvature.copy_(damped.add_(depth_prior[1]).reciprocal_())
        self._slope.copy_((self._of_depths(slope) + depth_prior[0]).masked_fill_(~usable, 0.0))
        eliminated = self._inverse_curvature * self._slope
        right = -self._layout.total(gradient - added([term.from_anchors(eliminated) for term in self._terms]))
        right[poses:] -= prior[0]
        diagonal = self._layout.total(own.diagonal(dim1=1, dim2=2))
        torch.mul(diagonal, damping, out=self._added).add_(_TINY)
        self._added[poses:] += prior[1]
        blocks = own[:, :6, :6] + torch.diag_embed(self._added[:poses].view(-1, 6))
        self._inverse_blocks.copy_(inverses(blocks))
        torch.add(diagonal[poses:], self._added[poses:], out=self._inverse_diagonal).reciprocal_()
        self.x.zero_()
        self._residual.copy_((right * self._trained).masked_fill_(~usable, 0.0))
        self._direction.copy_(self._preconditioned(self._residual))
        self._product.copy_(_dot(self._residual, self._direction))

    def solver_step(self) -> None:
        """A step of the conjugate gradients."""
        image = self._times(self._direction)
        length = self._product / _dot(self._direction, image).clamp_min_(_TINY)
        self.x.addcmul_(self._direction, length)
        self._residual.addcmul_(image, length, value=-1)
        preconditioned = self._preconditioned(self._residual)
        product = _dot(self._residual, preconditioned)
        self._direction.mul_(product / self._product.clamp_min(_TINY)).add_(preconditioned)
        self._product.copy_(product)

    def anchors(self) -> torch.Tensor:
        """(n A,) the step of the anchors that goes with `x`."""
        pulled, _ = self._pulled(self.x)
        return pulled.add_(self._slope).mul_(self._inverse_curvature).neg_()

    def _times(self, x: torch.Tensor) -> torch.Tensor:
        """The reduced matrix times a step."""
        pulled, ends = self._pulled(x)
        anchors = pulled.mul_(self._inverse_curvature)
        rows = added([term.product(own, anchors) for term, own in zip(self._terms, ends, strict=True)])
        return self._layout.total(rows).addcmul_(self._added, x).mul_(self._trained)

    def _pulled(self, x: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """E^T x (n A,), and the step at the ends of the directions of every term."""
        views = self._layout.per_view(x)
        ends = [term.of_ends(views) for term in self._terms]
        pulled = added([term.to_anchors(own) for term, own in zip(self._terms, ends, strict=True)])
        return self._of_depths(pulled), ends

    def _of_depths(self, anchors: torch.Tensor) -> torch.Tensor:
        """(n A,) sums over the observations of each anchor, or over all of its view if their factor is one."""
        if not self._shared_depths:
            return anchors
        return anchors.view(self._num_anchors).sum(1, keepdim=True).expand(self._num_anchors).reshape(-1)

    def _preconditioned(self, x: torch.Tensor) -> torch.Tensor:
        poses, rest = x.split([self._layout.num_poses, len(self._inverse_diagonal)])
        own = torch.bmm(self._inverse_blocks, poses.view(-1, 6, 1))
        return torch.cat([own.view(-1), rest * self._inverse_diagonal])


def added(values: Sequence[torch.Tensor]) -> torch.Tensor:
    """The sum of one or more tensors of equal shape."""
    return values[0] if len(values) == 1 else torch.stack(list(values)).sum(0)


def _dot(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """(1,)"""
    return (a * b).sum(0, keepdim=True)


def inverses(matrices: torch.Tensor) -> torch.Tensor:
    """(n, k, k) inverses of positive definite matrices, by sweeps: `torch.linalg` asks the host if there is one."""
    out = matrices.clone()
    for k in range(matrices.shape[1]):
        pivot = out[:, k, k].clamp_min(_TINY)[:, None]
        row, column = out[:, k] / pivot, out[:, :, k].clone()
        out -= column[:, :, None] * row[:, None]
        out[:, k] = row
        out[:, :, k] = -column / pivot
        out[:, k, k] = 1 / pivot[:, 0]
    return out


def _generators() -> torch.Tensor:
    """(3, 3, 3) matrices of the cross products with the three axes."""
    out = torch.zeros(3, 3, 3)
    for k in range(3):
        i, j = (k + 1) % 3, (k + 2) % 3
        out[k, j, i], out[k, i, j] = 1, -1
    return out
