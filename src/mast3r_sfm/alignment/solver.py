"""The optimisation: a coarse stage that places the views, a fine stage that also refines cameras and depths.

By default the fine stage takes second-order steps (`gauss_newton`), and starts where the tree places the views. What
the stages of first-order steps minimise is in `objectives`. An iteration is a fixed sequence of device operations
without a question back to the host; on a GPU it is recorded once as a CUDA graph and replayed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from mast3r_sfm.alignment.execution.adam import CosineAdam
from mast3r_sfm.alignment.execution.recording import WARM_UP, record
from mast3r_sfm.alignment.gauss_newton import GaussNewton
from mast3r_sfm.alignment.initial import place_along_tree
from mast3r_sfm.alignment.objectives import CoarseObjective, FineObjective, Objective
from mast3r_sfm.alignment.parameters import Scene, SceneModel
from mast3r_sfm.alignment.problem import AlignmentProblem
from mast3r_sfm.device import current, matmul_precision
from mast3r_sfm.errors import ReconstructionError
from mast3r_sfm.options import AlignmentConfig
from mast3r_sfm.progress import Advance

_CHECK_EVERY = 10  # iterations between two looks at the loss, which make the host wait for the device


@dataclass(frozen=True)
class AlignmentResult:
    """Cameras and depths of n views after the last stage.

    K               (n, 3, 3) float64 pixels
    world_from_cam  (n, 4, 4) float64; the frame is that of the tree's root, up to its lever
    core_depths     n tensors (rows, columns) float32: depth of the anchors, scene units
    losses_coarse, losses_fine  (niter,) float32, before each step; empty for a stage that was left out
    """

    K: torch.Tensor
    world_from_cam: torch.Tensor
    core_depths: tuple[torch.Tensor, ...]
    losses_coarse: torch.Tensor
    losses_fine: torch.Tensor


def align(problem: AlignmentProblem, config: AlignmentConfig, advance: Advance | None = None) -> AlignmentResult:
    """Cameras and depths that agree with the matches; runs on the device of `problem`.

    The result is that of the last forward pass of the last stage, before its step (docs/method.md, First-order steps).
    Raises ReconstructionError when the loss stops being finite.
    """
    with matmul_precision("fp32"), current(problem.device):
        model = SceneModel(problem)
        theta = model.initial()
        coarse = CoarseObjective(problem, config, theta)
        if config.place_along_tree:
            place_along_tree(model, coarse.points, theta)
        placed, losses_coarse = theta, theta.new_empty(0)
        if _needs_coarse_stage(config, all_good=problem.fallback is None):
            placed, losses_coarse = run_stage(coarse, theta, config.lr_coarse, config.niter_coarse, advance)
        del coarse  # its points are the largest tensor of a large problem
        if not config.niter_fine:
            return _result(model, model.scene(placed), losses_coarse, theta.new_empty(0))
        if config.second_order:
            scene, losses_fine = run_gauss_newton(problem, config, model.scene(theta), advance)
        else:
            fine = FineObjective(problem, config)
            evaluated, losses_fine = run_stage(fine, theta, config.lr_fine, config.niter_fine, advance)
            scene = model.scene(evaluated)
        return _result(model, scene, losses_coarse, losses_fine)


def num_iterations(config: AlignmentConfig, all_good: bool) -> int:
    """Of both stages; `all_good` says whether every pair has a good match."""
    return config.niter_fine + (config.niter_coarse if _needs_coarse_stage(config, all_good) else 0)


def _needs_coarse_stage(config: AlignmentConfig, all_good: bool) -> bool:
    """Not where second-order steps follow, and the tree has placed all views: they start there as well."""
    placed = config.place_along_tree and all_good
    return not (placed and config.second_order and config.niter_fine)


def run_stage(
    objective: Objective, theta: torch.Tensor, lr: float, niter: int, advance: Advance | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Optimises `theta` in place over `niter` iterations with a new Adam.

    Returns the parameters of the last forward pass and the losses (niter,) before every step.
    """
    if niter == 0 or _is_empty(objective.problem):
        return theta.clone(), theta.new_zeros(niter)
    stage = Stage(objective, theta, lr, niter)
    step = record(stage) if theta.is_cuda and niter > WARM_UP else stage.step
    evaluated = torch.empty_like(theta)
    _iterate(step, stage.losses, objective.name, advance, before_last=lambda: evaluated.copy_(theta))
    return evaluated, stage.losses


def run_gauss_newton(
    problem: AlignmentProblem, config: AlignmentConfig, start: Scene, advance: Advance | None = None
) -> tuple[Scene, torch.Tensor]:
    """The fine stage by second-order steps from `start`, which is left as it is.

    Returns the scene of the last forward pass that was accepted, and the losses (niter,).
    """
    if _is_empty(problem):
        return start, start.depths.new_zeros(config.niter_fine)
    stage = GaussNewton(problem, config, start, config.niter_fine)
    step = stage.recorded() if problem.device.type == "cuda" and config.niter_fine > WARM_UP else stage.step
    _iterate(step, stage.losses, "fine", advance)
    return stage.scene(), stage.losses


class Stage:
    """One iteration of a stage as a function without arguments that changes tensors in place."""

    def __init__(self, objective: Objective, theta: torch.Tensor, lr: float, niter: int) -> None:
        slices = objective.model.slices
        self.losses = theta.new_zeros(niter)
        self._objective = objective
        self._theta = theta
        names = list(slices)
        self._names = names[: names.index(objective.trained[-1]) + 1]
        self._frozen = {
            name: theta.new_zeros(slices[name].stop - slices[name].start)
            for name in self._names
            if name not in objective.trained
        }
        self._adam = CosineAdam(theta[: slices[self._names[-1]].stop], lr, niter)
        self._quaternions = objective.model.unpack(theta).quaternions
        self._free = torch.ones(objective.problem.num_views, 1, device=theta.device)
        if not objective.config.train_root:
            self._free[objective.problem.tree.root] = 0

    def step(self) -> None:
        loss, gradients = self._objective(self._theta)
        self.losses.index_copy_(0, self._adam.iteration, loss.view(1))
        gradients["quaternions"] = gradients["quaternions"] * self._free
        gradients["translations"] = gradients["translations"] * self._free
        gradients |= self._frozen
        self._adam.step(torch.cat([gradients[name].reshape(-1) for name in self._names]))
        self._quaternions.div_(torch.linalg.vector_norm(self._quaternions, dim=1, keepdim=True))

    def state(self) -> list[torch.Tensor]:
        """The tensors that `step` changes."""
        return [*self._adam.state(), self.losses]


def _is_empty(problem: AlignmentProblem) -> bool:
    """Whether there is nothing to minimise."""
    return problem.matches.num_pairs == 0 and problem.fallback is None


def _iterate(
    step: Callable[[], None],
    losses: torch.Tensor,
    stage: str,
    advance: Advance | None,
    before_last: Callable[[], object] | None = None,
) -> None:
    """Runs as many iterations as there are `losses`, which they write."""
    niter, reported = len(losses), 0
    for iteration in range(niter):
        if before_last is not None and iteration == niter - 1:
            before_last()
        step()
        done = iteration + 1
        if done % _CHECK_EVERY == 0 or done == niter:
            _require_finite(losses[:done], stage)
            if advance is not None:
                advance(done - reported)
                reported = done


def _require_finite(losses: torch.Tensor, stage: str) -> None:
    finite = losses.isfinite()
    if not bool(finite.all()):
        first = int((~finite).nonzero()[0])
        raise ReconstructionError(
            f"the {stage} stage of the alignment diverged at iteration {first}: its loss is not finite; "
            "leave out the images with the fewest matches, or raise the confidence threshold of the matches"
        )


def _result(model: SceneModel, scene: Scene, losses_coarse: torch.Tensor, losses_fine: torch.Tensor) -> AlignmentResult:
    world_from_cam = torch.eye(4, dtype=torch.float64, device=scene.depths.device).repeat(len(scene.depths), 1, 1)
    world_from_cam[:, :3, :3] = scene.rotations
    world_from_cam[:, :3, 3] = scene.centres
    return AlignmentResult(
        K=model.intrinsics(scene.log_focals, scene.principal_points).K.double(),
        world_from_cam=world_from_cam,
        core_depths=tuple(
            depth[: rows * columns].view(rows, columns)
            for depth, (rows, columns) in zip(scene.depths, model.problem.grids, strict=True)
        ),
        losses_coarse=losses_coarse,
        losses_fine=losses_fine,
    )
