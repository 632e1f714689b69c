"""Pure functions of cameras and rotations: pixels to points, points to pixels, angles between poses."""

from __future__ import annotations

import numpy as np
import torch


def invert(matrices: torch.Tensor) -> torch.Tensor:
    """Inverses (..., k, k) of a few small matrices, computed on the CPU: CUDA would load a solver library for them."""
    return torch.linalg.inv(matrices.cpu()).to(matrices.device)


def points_of_depth(depth: np.ndarray, K: np.ndarray) -> np.ndarray:
    """(H, W, 3) float64 points in the camera's frame of every pixel of z-depth (H, W), for intrinsics K (3, 3)."""
    H, W = depth.shape
    rays = (np.stack(np.meshgrid(np.arange(W), np.arange(H)), -1) - K[:2, 2]) / np.diag(K)[:2]
    return np.concatenate([rays * depth[..., None], depth[..., None]], -1)


def to_world(points: np.ndarray, world_from_cam: np.ndarray) -> np.ndarray:
    """Points (..., 3) of a camera's frame in the world's, for a pose (4, 4)."""
    return points @ world_from_cam[:3, :3].T + world_from_cam[:3, 3]
