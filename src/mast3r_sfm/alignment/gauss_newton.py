"""The fine stage by second-order steps: Gauss-Newton with robust weights, a dozen instead of hundreds of iterations.

An iteration turns the losses into weighted squares where it is (`execution.normal_equations`), eliminates the depths
of the anchors, solves for the cameras (`execution.reduced_system`), and goes there. docs/method.md, Second-order steps,
has the formulas and the reasons. As in `solver`, an iteration is a fixed sequence of device operations without a
question back to the host; on a GPU its parts are recorded once as CUDA graphs and replayed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from mast3r_sfm.alignment.execution.normal_equations import FallbackTerm, MatchTerm, Numbers, Term, motions
from mast3r_sfm.alignment.execution.recording import record
from mast3r_sfm.alignment.execution.reduced_system import DirectedTerm, ReducedSystem, StepLayout, added
from mast3r_sfm.alignment.parameters import Scene, SceneModel
from mast3r_sfm.alignment.problem import AlignmentProblem
from mast3r_sfm.options import AlignmentConfig

SOLVER_STEPS = (20, 5, 40)
"""Steps of the conjugate gradients in an iteration: for few views, more views for one step more, and at most."""

DEPTH_PRIOR = 0.1
"""Weight, in pixels of the loss, of half the mean squared distance of the log factors of depth from those of their
views. It keeps anchors that the matches leave open near what was predicted."""

_LENGTHENED = 1.3  # of a step: the squares lie above the robust distances that they touch, so their minimum is too near
_LONGEST = 0.3  # change of the logarithm of a depth in an iteration
_RISE = 1.01  # of the loss, by which a step is taken back
_FIRST_DAMPING, _LEAST_DAMPING = 5e-3, 1e-6
_SUCCESS, _FAILURE = 0.2, 50.0  # what the damping is multiplied by


@dataclass(frozen=True)
class _Place:
    """What the stage moves.

    rotations         (n, 3, 3) world from camera
    centres           (n, 3)
    log_focals        (F,)
    principal_points  (C, 2) in units of (W, H)
    log_factors       (n, A) logarithm of the depth of each anchor over that at the start
    """

    rotations: torch.Tensor
    centres: torch.Tensor
    log_focals: torch.Tensor
    principal_points: torch.Tensor
    log_factors: torch.Tensor

    def tensors(self) -> list[torch.Tensor]:
        return [self.rotations, self.centres, self.log_focals, self.principal_points, self.log_factors]

    @classmethod
    def of(cls, scene: Scene) -> _Place:
        """Where the scene is; its tensors stay as they are."""
        return cls(
            scene.rotations.clone(),
            scene.centres.clone(),
            scene.log_focals.clone(),
            scene.principal_points.clone(),
            torch.zeros_like(scene.depths),
        )


class GaussNewton:
    """The stage; an iteration looks at a place, and finds the step to the next one.

    losses  (niter,) of the forward passes; where the loss rose, that of the place before
    """

    def __init__(self, problem: AlignmentProblem, config: AlignmentConfig, start: Scene, niter: int) -> None:
        n, num_anchors = start.depths.shape
        device = start.depths.device
        self._model, self._root = SceneModel(problem), problem.tree.root
        self._start = start
        self._accepted, self._trial = _Place.of(start), _Place.of(start)
        terms: list[Term] = [MatchTerm(problem.matches, config.exponent_fine)]
        if problem.fallback is not None:
            terms.append(FallbackTerm(problem.fallback, config.exponent_fallback, config.fallback_weight))
        units = problem.layout.centre_units.to(device)
        self._terms = [DirectedTerm(term, units, n) for term in terms]
        self._observed = added([term.observed_anchors() for term in terms]).view(n, num_anchors) > 0
        self._num_observed = self._observed.sum(1, keepdim=True).clamp_min(1)
        self._layout = StepLayout(self._model)
        trained = torch.ones(self._layout.size, device=device)
        if not config.optimize_principal_point:
            trained[-start.principal_points.numel() :] = 0
        self._system = ReducedSystem(
            self._terms, self._layout, (n, num_anchors), trained, shared_depths=not config.optimize_depth
        )
        few, views_a_step, most = SOLVER_STEPS
        self._solver_steps = min(few + n // views_a_step, most)
        self._prior_curvature, self._prior_centre = _priors(self._model, config)
        self._depth_prior = DEPTH_PRIOR / start.depths.numel()
        self.losses = torch.zeros(niter, device=device)
        self._iteration = torch.zeros(1, dtype=torch.int64, device=device)
        self._loss = torch.full((1,), torch.inf, device=device)
        self._damping = torch.full((1,), _FIRST_DAMPING, device=device)

    def scene(self) -> Scene:
        """Where the last forward pass was whose loss did not rise, in the frame in which the tree's root is at rest."""
        found, root = self._accepted, self._root
        rotations = found.rotations.double()
        # products of rotations drift from rotations by rounding: one step of Newton's iteration for the nearest
        rotations = 0.5 * rotations @ (3 * torch.eye(3).to(rotations) - rotations.transpose(1, 2) @ rotations)
        turn = self._start.rotations[root].double() @ rotations[root].T
        centres = (found.centres.double() - found.centres[root].double()) @ turn.T
        return Scene(
            log_focals=found.log_focals,
            principal_points=found.principal_points,
            rotations=turn @ rotations,
            centres=centres + self._start.centres[root].double(),
            depths=self._start.depths * found.log_factors.exp(),
        )

    def step(self) -> None:
        """Goes where the last iteration points to, looks at that place, and finds the next step."""
        self._linearize()
        for _ in range(self._solver_steps):
            self._system.solver_step()

    def recorded(self) -> Callable[[], None]:
        """`step` with its two parts as CUDA graphs; the stage is left as it was."""
        own = [self.losses, self._iteration, self._loss, self._damping]
        changed = [*self._accepted.tensors(), *self._trial.tensors(), *own, *self._system.prepared()]
        linearize = record(_Part(self._linearize, changed))
        solve = record(_Part(self._system.solver_step, self._system.state()))

        def step() -> None:
            linearize()
            for _ in range(self._solver_steps):
                solve()

        return step

    def _linearize(self) -> None:
        self._move()
        trial = self._trial
        found = self._model.intrinsics(trial.log_focals, trial.principal_points)
        intrinsics = torch.cat([found.K[:, 0, :1], found.K[:, :2, 2], found.zooms.reciprocal()[:, None]], 1)
        depths = (self._start.depths * trial.log_factors.exp()).view(-1)
        numbers = Numbers(intrinsics, trial.rotations, trial.centres, depths)
        here = [motions(one.term.ends, trial.rotations, trial.centres) for one in self._terms]
        sums = [one.term.linearize(numbers, motion) for one, motion in zip(self._terms, here, strict=True)]

        off_prior = torch.cat([trial.log_focals, trial.principal_points.reshape(-1)]) - self._prior_centre
        prior_slope = self._prior_curvature * off_prior
        off_mean = (trial.log_factors - self._mean_factors(trial.log_factors)).mul_(self._observed).view(-1)
        priors = 0.5 * ((prior_slope * off_prior).sum() + self._depth_prior * off_mean.square().sum())
        taken = self._judge((added([one.loss for one in sums]) + priors).view(1))

        updates = [one.update(motion, intrinsics, s) for one, motion, s in zip(self._terms, here, sums, strict=True)]
        self._system.prepare(
            gradient=added([gradient for gradient, _ in updates]),
            own=added([own for _, own in updates]),
            curvature=added([one.curvature for one in sums]),
            slope=added([one.slope for one in sums]),
            prior=(prior_slope, self._prior_curvature),
            depth_prior=(off_mean * self._depth_prior, self._depth_prior),
            damping=self._damping,
            usable=taken,
        )

    def _move(self) -> None:
        """Writes to the trial where the solver's step leads from the accepted place."""
        here, there = self._accepted, self._trial
        poses, focals, centres = self._layout.split(self._system.x * _LENGTHENED)
        half_turns = torch.cat([0.5 * poses[:, :3], torch.ones_like(poses[:, :1])], 1)  # as quaternions
        there.rotations.copy_(here.rotations @ self._model.rotations(half_turns))
        there.centres.copy_(here.centres + (here.rotations @ poses[:, 3:, None])[:, :, 0])
        there.log_focals.copy_(here.log_focals + focals)
        there.principal_points.copy_(here.principal_points + centres)
        change = self._system.anchors().view_as(self._start.depths).mul_(_LENGTHENED).clamp_(-_LONGEST, _LONGEST)
        factors = here.log_factors + change
        # an anchor that nothing observes follows the others of its view
        there.log_factors.copy_(torch.where(self._observed, factors, self._mean_factors(factors)))

    def _judge(self, loss: torch.Tensor) -> torch.Tensor:
        """(1,) bool: whether the trial is accepted. If not, the next step is a shorter one from the place before."""
        taken = loss <= self._loss * _RISE
        for kept, tried in zip(self._accepted.tensors(), self._trial.tensors(), strict=True):
            kept.copy_(torch.where(taken.view((1,) * kept.dim()), tried, kept))
        # a first loss that is not finite is kept, and found by who looks at the losses
        self._loss.copy_(torch.where(taken | self._loss.isinf(), loss, self._loss))
        self.losses.index_copy_(0, self._iteration, self._loss)
        smaller = (self._damping * _SUCCESS).clamp_min_(_LEAST_DAMPING)
        self._damping.copy_(torch.where(taken, smaller, self._damping * _FAILURE))
        self._iteration += 1
        return taken

    def _mean_factors(self, log_factors: torch.Tensor) -> torch.Tensor:
        """(n, 1) over the observed anchors of each view."""
        return (log_factors * self._observed).sum(1, keepdim=True) / self._num_observed


@dataclass(frozen=True)
class _Part:
    """A part of an iteration, with the tensors that it changes, for `record`."""

    step: Callable[[], None]
    changed: list[torch.Tensor]

    def state(self) -> list[torch.Tensor]:
        return self.changed


def _priors(model: SceneModel, config: AlignmentConfig) -> tuple[torch.Tensor, torch.Tensor]:
    """Curvatures and centres (F + 2C,) of `losses.focal_prior` and `losses.principal_point_prior`."""
    stated = model.stated_focals.log()
    known = stated.isfinite()
    num_centres = model.shapes["principal_points"][0]
    shares = model.centre_shares
    if shares is None:
        shares = torch.full((num_centres,), 1 / num_centres, device=stated.device)
    curvature = torch.cat(
        [
            torch.where(known, 2 * config.focal_prior * model.focal_shares, 0.0),
            (2 * config.principal_point_prior * shares)[:, None].expand(-1, 2).reshape(-1),
        ]
    )
    centre = torch.cat([torch.where(known, stated, 0.0), torch.full((2 * num_centres,), 0.5, device=stated.device)])
    return curvature, centre
