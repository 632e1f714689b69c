"""The optimisation: a coarse stage that places the views, a fine stage that also refines cameras and depths.

Spec: alignment, section 10. An iteration is a fixed sequence of device operations without a question back to
the host; on a GPU it is recorded once as a CUDA graph and replayed.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any

import torch

from mast3r_sfm.alignment.adam import CosineAdam
from mast3r_sfm.alignment.initial import place_along_tree
from mast3r_sfm.alignment.losses import (
    CameraMatrices,
    PointLoss,
    constant_points,
    fallback_loss,
)
from mast3r_sfm.alignment.parameters import Extrinsics, Intrinsics, Parameters, SceneModel
from mast3r_sfm.alignment.problem import AlignmentProblem
from mast3r_sfm.alignment.projection import ProjectionLoss
from mast3r_sfm.device import current, matmul_precision
from mast3r_sfm.errors import ReconstructionError
from mast3r_sfm.options import AlignmentConfig
from mast3r_sfm.progress import Advance

logger = logging.getLogger(__name__)

_CHECK_EVERY = 10  # iterations between two looks at the loss, which make the host wait for the device
_WARM_UP = 3  # iterations before the recording of a CUDA graph


@dataclass(frozen=True)
class AlignmentResult:
    """Cameras and depths of n views after the last stage.

    K               (n, 3, 3) float64 pixels
    world_from_cam  (n, 4, 4) float64; the frame is that of the tree's root, up to its lever
    core_depths     n tensors (rows, columns) float32: depth of the anchors, scene units
    losses_coarse, losses_fine  (niter,) float32, before each step
    """

    K: torch.Tensor
    world_from_cam: torch.Tensor
    core_depths: tuple[torch.Tensor, ...]
    losses_coarse: torch.Tensor
    losses_fine: torch.Tensor


class Objective(ABC):
    """Loss and gradient of one stage as a function of the flat parameter vector."""

    name: str
    trained: tuple[str, ...]

    def __init__(self, problem: AlignmentProblem, config: AlignmentConfig) -> None:
        self.problem = problem
        self.config = config
        self.model = SceneModel(problem, config.shared_intrinsics)

    @abstractmethod
    def __call__(self, theta: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The loss (0-d) and its gradient with respect to every trained parameter."""

    def _leaves(self, theta: torch.Tensor) -> tuple[Parameters, dict[str, torch.Tensor]]:
        parameters = self.model.unpack(theta.detach())
        leaves = {name: getattr(parameters, name).requires_grad_() for name in self.trained}
        return parameters, leaves

    def _cameras(self, intrinsics: Intrinsics, extrinsics: Extrinsics, relief: torch.Tensor) -> CameraMatrices:
        return CameraMatrices(
            world_from_pixel=extrinsics.rotations @ intrinsics.K_inverse,
            pixel_from_world=intrinsics.K @ extrinsics.rotations.transpose(1, 2),
            rotations=extrinsics.rotations,
            centres=extrinsics.centres,
            inverse_zooms=intrinsics.zooms.reciprocal(),
            depths=self.model.depths(extrinsics.scales, intrinsics.zooms, relief),
        )

    def _add_fallback(
        self, cameras: CameraMatrices, outputs: list[torch.Tensor], gradients: list[torch.Tensor]
    ) -> torch.Tensor:
        assert self.problem.fallback is not None
        with torch.no_grad():
            loss, gradient = fallback_loss(self.problem.fallback, cameras, self.config.exponent_fallback)
        _pair_up(cameras, gradient, self.config.fallback_weight, outputs, gradients)
        return loss * self.config.fallback_weight

    @staticmethod
    def _pull_back(
        outputs: list[torch.Tensor], gradients: list[torch.Tensor], leaves: dict[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        """Gradients with respect to `outputs` -> gradients with respect to the parameters they depend on."""
        with torch.enable_grad():
            stand_in = _WithGradients.apply(gradients, *outputs)
        pulled = torch.autograd.grad(stand_in, list(leaves.values()))
        return dict(zip(leaves, pulled, strict=True))


class _WithGradients(torch.autograd.Function):
    """A scalar of given gradients. `autograd.grad` takes them as an argument too, but imports sympy to check them."""

    @staticmethod
    def forward(ctx: Any, gradients: list[torch.Tensor], *outputs: torch.Tensor) -> torch.Tensor:
        ctx.gradients = gradients
        return outputs[0].new_zeros(())

    @staticmethod
    def backward(ctx: Any, _: torch.Tensor) -> Any:
        return None, *ctx.gradients


def _pair_up(
    cameras: CameraMatrices,
    gradient: CameraMatrices,
    weight: float,
    outputs: list[torch.Tensor],
    gradients: list[torch.Tensor],
) -> None:
    """Appends the matrices that have a gradient, and that gradient times `weight`."""
    for field in fields(CameraMatrices):
        output, wanted = getattr(cameras, field.name), getattr(gradient, field.name)
        if wanted is not None and output.requires_grad:
            outputs.append(output)
            gradients.append(wanted if weight == 1 else wanted * weight)


class CoarseObjective(Objective):
    """Distance of the matched points in the world; only poses and sizes move.

    The cameras' intrinsics and the relief are constants, so a matched point is a constant of its view, scaled
    by one number.
    """

    name = "coarse"
    trained = ("quaternions", "translations", "log_sizes")

    def __init__(self, problem: AlignmentProblem, config: AlignmentConfig, theta: torch.Tensor) -> None:
        super().__init__(problem, config)
        parameters = self.model.unpack(theta)
        self._intrinsics = self.model.intrinsics(parameters.log_focals, parameters.principal_points)
        self.points = constant_points(
            problem.matches,
            rays=self._intrinsics.K_inverse,
            unit_depths=self.model.depths(torch.ones_like(problem.base_focals), self._intrinsics.zooms, problem.relief),
            inverse_zooms=self._intrinsics.zooms.reciprocal(),
            relative=config.relative_distances,
        )
        self._point_loss = PointLoss(problem.matches, self.points, config.exponent_coarse)

    def __call__(self, theta: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        parameters, leaves = self._leaves(theta)
        with torch.enable_grad():
            extrinsics = self.model.extrinsics(
                parameters.quaternions, parameters.translations, parameters.log_sizes, self._intrinsics.levers
            )
            scaled = extrinsics.rotations * extrinsics.scales[:, None, None]
        with torch.no_grad():
            loss, *gradient = self._point_loss(scaled, extrinsics.centres)
        outputs, gradients = [scaled, extrinsics.centres], list(gradient)
        if self.problem.fallback is not None:
            with torch.enable_grad():
                cameras = self._cameras(self._intrinsics, extrinsics, parameters.relief)
            loss = loss + self._add_fallback(cameras, outputs, gradients)
        return loss, self._pull_back(outputs, gradients, leaves)


class FineObjective(Objective):
    """Distance of the reprojected matches in the images; poses, sizes, cameras and depths move."""

    name = "fine"

    def __init__(self, problem: AlignmentProblem, config: AlignmentConfig) -> None:
        super().__init__(problem, config)
        trained = ["quaternions", "translations", "log_sizes", "log_focals"]
        if config.optimize_principal_point:
            trained.append("principal_points")
        if config.optimize_depth:
            trained.append("relief")
        self.trained = tuple(trained)
        self._projection_loss = ProjectionLoss(problem.matches, config.exponent_fine)

    def __call__(self, theta: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        parameters, leaves = self._leaves(theta)
        with torch.enable_grad():
            intrinsics = self.model.intrinsics(parameters.log_focals, parameters.principal_points)
            extrinsics = self.model.extrinsics(
                parameters.quaternions, parameters.translations, parameters.log_sizes, intrinsics.levers
            )
            cameras = self._cameras(intrinsics, extrinsics, parameters.relief)
        outputs: list[torch.Tensor] = []
        gradients: list[torch.Tensor] = []
        with torch.no_grad():
            loss, gradient = self._projection_loss(cameras)
        _pair_up(cameras, gradient, 1.0, outputs, gradients)
        if self.problem.fallback is not None:
            loss = loss + self._add_fallback(cameras, outputs, gradients)
        pulled = self._pull_back(outputs, gradients, leaves)
        if "principal_points" in pulled and self.config.principal_point_prior:
            shift = parameters.principal_points.detach() - 0.5
            weight = self.config.principal_point_prior / len(shift)
            loss = loss + weight * shift.square().sum()
            pulled["principal_points"] = pulled["principal_points"] + 2 * weight * shift
        return loss, pulled


def align(problem: AlignmentProblem, config: AlignmentConfig, advance: Advance | None = None) -> AlignmentResult:
    """Cameras and depths that agree with the matches; runs on the device of `problem`.

    The result is that of the last forward pass of the last stage, before its step (spec: alignment, section 10).
    Raises ReconstructionError when the loss stops being finite.
    """
    with matmul_precision("fp32"), current(problem.device):
        model = SceneModel(problem, config.shared_intrinsics)
        theta = model.initial()
        coarse = CoarseObjective(problem, config, theta)
        if config.place_along_tree:
            place_along_tree(model, coarse.points, theta)
        evaluated, losses_coarse = run_stage(coarse, theta, config.lr_coarse, config.niter_coarse, advance)
        del coarse  # its points are the largest tensor of a large problem
        losses_fine = theta.new_empty(0)
        if config.niter_fine:
            fine = FineObjective(problem, config)
            evaluated, losses_fine = run_stage(fine, theta, config.lr_fine, config.niter_fine, advance)
        return _result(model, evaluated, losses_coarse, losses_fine)


def run_stage(
    objective: Objective, theta: torch.Tensor, lr: float, niter: int, advance: Advance | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Optimises `theta` in place over `niter` iterations with a new Adam.

    Returns the parameters of the last forward pass and the losses (niter,) before every step.
    """
    if niter == 0 or (objective.problem.matches.num_pairs == 0 and objective.problem.fallback is None):
        return theta.clone(), theta.new_zeros(niter)
    stage = Stage(objective, theta, lr, niter)
    step = record(stage) if theta.is_cuda and niter > _WARM_UP else stage.step
    evaluated = theta
    reported = 0
    for iteration in range(niter):
        if iteration == niter - 1:
            evaluated = theta.clone()
        step()
        done = iteration + 1
        if done % _CHECK_EVERY == 0 or done == niter:
            _require_finite(stage.losses[:done], objective.name)
            if advance is not None:
                advance(done - reported)
                reported = done
    return evaluated, stage.losses


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


@lru_cache(maxsize=8)
def _recording_stream(device: torch.device) -> torch.cuda.Stream:
    """One for all recordings: torch keeps workspaces of 64 MB for every stream that ever multiplied matrices."""
    return torch.cuda.Stream(device)


def record(stage: Stage) -> Callable[[], None]:
    """The step of `stage` as a CUDA graph; the stage is left as it was.

    `torch.cuda.graph` would also empty the allocator's cache, which costs more than this recording.
    """
    before = [tensor.clone() for tensor in stage.state()]
    graph = torch.cuda.CUDAGraph()
    stream = _recording_stream(stage.losses.device)
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(_WARM_UP):
            stage.step()
        for tensor, value in zip(stage.state(), before, strict=True):
            tensor.copy_(value)
        torch.cuda.synchronize()
        graph.capture_begin(capture_error_mode="thread_local")
        try:
            stage.step()
        finally:
            graph.capture_end()
    torch.cuda.current_stream().wait_stream(stream)
    return graph.replay


def _require_finite(losses: torch.Tensor, stage: str) -> None:
    finite = losses.isfinite()
    if not bool(finite.all()):
        first = int((~finite).nonzero()[0])
        raise ReconstructionError(
            f"the {stage} stage of the alignment diverged at iteration {first}: its loss is not finite; "
            "leave out the images with the fewest matches, or raise the confidence threshold of the matches"
        )


def _result(
    model: SceneModel, theta: torch.Tensor, losses_coarse: torch.Tensor, losses_fine: torch.Tensor
) -> AlignmentResult:
    parameters = model.unpack(theta)
    intrinsics = model.intrinsics(parameters.log_focals, parameters.principal_points)
    extrinsics = model.extrinsics(
        parameters.quaternions, parameters.translations, parameters.log_sizes, intrinsics.levers
    )
    depths = model.depths(extrinsics.scales, intrinsics.zooms, parameters.relief)
    world_from_cam = torch.eye(4, dtype=torch.float64, device=theta.device).repeat(len(depths), 1, 1)
    world_from_cam[:, :3, :3] = extrinsics.rotations
    world_from_cam[:, :3, 3] = extrinsics.centres
    return AlignmentResult(
        K=intrinsics.K.double(),
        world_from_cam=world_from_cam,
        core_depths=tuple(
            depth[: rows * columns].view(rows, columns)
            for depth, (rows, columns) in zip(depths, model.problem.grids, strict=True)
        ),
        losses_coarse=losses_coarse,
        losses_fine=losses_fine,
    )
