"""What the losses read of the cameras."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class CameraMatrices:
    """What the losses read of n views with A anchors each; also the form of their gradients.

    world_from_pixel  (n, 3, 3) R K^-1, of directions
    pixel_from_world  (n, 3, 3) K R^T, of directions; None in a gradient that does not depend on it
    rotations         (n, 3, 3) R, world from camera; None likewise
    centres           (n, 3) camera centres, world
    inverse_zooms     (n,) base focal / focal
    depths            (n, A) of the anchors, scene units
    """

    world_from_pixel: torch.Tensor
    pixel_from_world: torch.Tensor | None
    rotations: torch.Tensor | None
    centres: torch.Tensor
    inverse_zooms: torch.Tensor
    depths: torch.Tensor

    @classmethod
    def of(
        cls,
        K: torch.Tensor,
        K_inverse: torch.Tensor,
        rotations: torch.Tensor,
        centres: torch.Tensor,
        inverse_zooms: torch.Tensor,
        depths: torch.Tensor,
    ) -> CameraMatrices:
        """From intrinsics (n, 3, 3) in pixels and their inverses; the rest as above."""
        return cls(
            world_from_pixel=rotations @ K_inverse,
            pixel_from_world=K @ rotations.transpose(1, 2),
            rotations=rotations,
            centres=centres,
            inverse_zooms=inverse_zooms,
            depths=depths,
        )
