"""Cameras: where they may stand, how they look at something, and the rays of their pixels."""

from __future__ import annotations

import torch

from .layout import Scenes, terrain_height

WALL_CLEARANCE = 0.25
GROUND_CLEARANCE = 0.3


def look_at(eye: torch.Tensor, target: torch.Tensor, roll: torch.Tensor) -> torch.Tensor:
    """World-from-camera rotations (..., 3, 3) of cameras at `eye` that look at `target`, rolled by radians."""
    z = torch.nn.functional.normalize(target - eye, dim=-1)
    down = torch.zeros_like(z)
    down[..., 1] = 1.0
    x = torch.nn.functional.normalize(torch.linalg.cross(down, z), dim=-1)
    y = torch.linalg.cross(z, x)
    c, s = roll.cos()[..., None], roll.sin()[..., None]
    return torch.stack([c * x + s * y, -s * x + c * y, z], -1)


def aim(heading: torch.Tensor, pitch: torch.Tensor, roll: torch.Tensor) -> torch.Tensor:
    """World-from-camera rotations (..., 3, 3) of cameras that look `pitch` radians down; straight down is allowed.

    heading  radians about the vertical axis: 0 looks along z, a quarter turn along x
    """
    zero = torch.zeros_like(heading)
    x = torch.stack([heading.cos(), zero, -heading.sin()], -1)
    z = torch.stack([pitch.cos() * heading.sin(), pitch.sin(), pitch.cos() * heading.cos()], -1)
    y = torch.linalg.cross(z, x)
    c, s = roll.cos()[..., None], roll.sin()[..., None]
    return torch.stack([c * x + s * y, -s * x + c * y, z], -1)


def pixel_rays(focal: torch.Tensor, shape: tuple[int, int]) -> torch.Tensor:
    """Camera-frame rays of unit z-depth (..., H * W, 3) of centred cameras with focal (...) pixels; shape (H, W)."""
    H, W = shape
    y, x = torch.meshgrid(
        torch.arange(H, device=focal.device, dtype=focal.dtype) - (H - 1) / 2,
        torch.arange(W, device=focal.device, dtype=focal.dtype) - (W - 1) / 2,
        indexing="ij",
    )
    xy = torch.stack([x.flatten(), y.flatten()], -1) / focal[..., None, None]
    return torch.cat([xy, torch.ones_like(xy[..., :1])], -1)


def clamp_to_hull(scenes: Scenes, eye: torch.Tensor) -> torch.Tensor:
    """Camera centres (B, V, 3) moved inside the room and above the ground."""
    limit = scenes.half[:, None] - WALL_CLEARANCE
    eye = torch.minimum(torch.maximum(eye, -limit), limit)
    ground = scenes.half[:, 1:2] - terrain_height(scenes.terrain, eye[..., 0], eye[..., 2])
    lowest = torch.minimum(eye[..., 1], ground - GROUND_CLEARANCE)
    outdoor = scenes.outdoor[:, None] > 0.5
    return torch.stack([eye[..., 0], torch.where(outdoor, lowest, eye[..., 1]), eye[..., 2]], -1)
