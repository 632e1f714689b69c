"""What the two stages minimise: loss and gradient as functions of the flat parameter vector.

    coarse  L = coarse_loss + fallback_weight * fallback_loss
    fine    L = fine_loss   + fallback_weight * fallback_loss + principal_point_prior + focal_prior

The terms are defined in `losses`; all but the priors are evaluated by their counterparts in `execution`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch

from mast3r_sfm.alignment.execution.cameras import CameraMatrices
from mast3r_sfm.alignment.execution.coarse_loss import CoarseLoss, constant_points
from mast3r_sfm.alignment.execution.fallback_loss import FallbackLoss
from mast3r_sfm.alignment.execution.fine_loss import FineLoss
from mast3r_sfm.alignment.execution.gradients import PullBack
from mast3r_sfm.alignment.losses import focal_prior, principal_point_prior
from mast3r_sfm.alignment.parameters import Extrinsics, Intrinsics, Parameters, SceneModel
from mast3r_sfm.alignment.problem import AlignmentProblem
from mast3r_sfm.options import AlignmentConfig


class Objective(ABC):
    """Loss and gradient of one stage as a function of the flat parameter vector.

    name     of the stage, for messages
    trained  the parameters that the stage moves, in the order of the flat vector
    """

    name: str
    trained: tuple[str, ...]

    def __init__(self, problem: AlignmentProblem, config: AlignmentConfig) -> None:
        self.problem = problem
        self.config = config
        self.model = SceneModel(problem)
        self._fallback_loss = FallbackLoss(problem.fallback, config.exponent_fallback) if problem.fallback else None

    @abstractmethod
    def __call__(self, theta: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The loss (0-d) and its gradient with respect to every trained parameter."""

    def _leaves(self, theta: torch.Tensor) -> tuple[Parameters, dict[str, torch.Tensor]]:
        """The parameters, and those that are trained, which autograd follows from here."""
        parameters = self.model.unpack(theta.detach())
        leaves = {name: getattr(parameters, name).requires_grad_() for name in self.trained}
        return parameters, leaves

    def _cameras(
        self, intrinsics: Intrinsics, extrinsics: Extrinsics, normalized_core_depths: torch.Tensor
    ) -> CameraMatrices:
        return CameraMatrices.of(
            K=intrinsics.K,
            K_inverse=intrinsics.K_inverse,
            rotations=extrinsics.rotations,
            centres=extrinsics.centres,
            inverse_zooms=intrinsics.zooms.reciprocal(),
            depths=self.model.depths(extrinsics.scales, intrinsics.zooms, normalized_core_depths),
        )


class CoarseObjective(Objective):
    """Distance of the matched points in the world; only poses and sizes move.

    The cameras' intrinsics and the normalised depths are constants, so a matched point is a constant of its view,
    scaled by one number.
    """

    name = "coarse"
    trained = ("quaternions", "translations", "log_sizes")

    def __init__(self, problem: AlignmentProblem, config: AlignmentConfig, theta: torch.Tensor) -> None:
        super().__init__(problem, config)
        parameters = self.model.unpack(theta)
        self._intrinsics = self.model.intrinsics(parameters.log_focals, parameters.principal_points)
        unit_scales = torch.ones_like(problem.base_focals)
        self.points = constant_points(
            problem.matches,
            rays=self._intrinsics.K_inverse,
            unit_depths=self.model.depths(unit_scales, self._intrinsics.zooms, problem.normalized_core_depths),
            inverse_zooms=self._intrinsics.zooms.reciprocal(),
            relative=config.relative_distances,
        )
        self._coarse_loss = CoarseLoss(problem.matches, self.points, config.exponent_coarse)

    def __call__(self, theta: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        parameters, leaves = self._leaves(theta)
        with torch.enable_grad():
            extrinsics = self.model.extrinsics(
                parameters.quaternions, parameters.translations, parameters.log_sizes, self._intrinsics.levers
            )
            scaled_rotations = extrinsics.rotations * extrinsics.scales[:, None, None]
        pull_back = PullBack()
        with torch.no_grad():
            loss, by_rotations, by_centres = self._coarse_loss(scaled_rotations, extrinsics.centres)
        pull_back.add(scaled_rotations, by_rotations)
        pull_back.add(extrinsics.centres, by_centres)

        if self._fallback_loss is not None:
            with torch.enable_grad():
                cameras = self._cameras(self._intrinsics, extrinsics, parameters.normalized_core_depths)
            with torch.no_grad():
                fallback, gradient = self._fallback_loss(cameras)
            pull_back.add_cameras(cameras, gradient, self.config.fallback_weight)
            loss = loss + self.config.fallback_weight * fallback
        return loss, pull_back.to(leaves)


class FineObjective(Objective):
    """Distance of the reprojected matches in the images; poses, sizes, cameras and depths move."""

    name = "fine"

    def __init__(self, problem: AlignmentProblem, config: AlignmentConfig) -> None:
        super().__init__(problem, config)
        trained = ["quaternions", "translations", "log_sizes", "log_focals"]
        if config.optimize_principal_point:
            trained.append("principal_points")
        if config.optimize_depth:
            trained.append("normalized_core_depths")
        self.trained = tuple(trained)
        self._fine_loss = FineLoss(problem.matches, config.exponent_fine)
        stated = self.model.stated_focals
        self._stated_log_focals = stated.log() if config.focal_prior and bool(stated.isfinite().any()) else None

    def __call__(self, theta: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        parameters, leaves = self._leaves(theta)
        with torch.enable_grad():
            intrinsics = self.model.intrinsics(parameters.log_focals, parameters.principal_points)
            extrinsics = self.model.extrinsics(
                parameters.quaternions, parameters.translations, parameters.log_sizes, intrinsics.levers
            )
            cameras = self._cameras(intrinsics, extrinsics, parameters.normalized_core_depths)
        pull_back = PullBack()
        with torch.no_grad():
            loss, gradient = self._fine_loss(cameras)
        pull_back.add_cameras(cameras, gradient)

        if self._fallback_loss is not None:
            with torch.no_grad():
                fallback, gradient = self._fallback_loss(cameras)
            pull_back.add_cameras(cameras, gradient, self.config.fallback_weight)
            loss = loss + self.config.fallback_weight * fallback

        if "principal_points" in self.trained and self.config.principal_point_prior:
            with torch.enable_grad():
                prior = principal_point_prior(
                    parameters.principal_points, self.config.principal_point_prior, self.model.centre_shares
                )
            pull_back.add(prior, torch.ones_like(prior))
            loss = loss + prior.detach()

        if self._stated_log_focals is not None:
            with torch.enable_grad():
                prior = focal_prior(
                    parameters.log_focals, self._stated_log_focals, self.config.focal_prior, self.model.focal_shares
                )
            pull_back.add(prior, torch.ones_like(prior))
            loss = loss + prior.detach()
        return loss, pull_back.to(leaves)
