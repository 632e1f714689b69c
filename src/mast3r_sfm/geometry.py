"""Pure functions of cameras and rotations: pixels to points, points to pixels, angles between poses."""

from __future__ import annotations

import numpy as np
import torch

OPENGL_FROM_OPENCV = np.diag([1.0, -1.0, -1.0, 1.0])
"""(4, 4) of cameras: x right, y up, looking along -z, as glTF and nerfstudio have them."""


def invert(matrices: torch.Tensor) -> torch.Tensor:
    """Inverses (..., k, k) of a few small matrices, computed on the CPU: CUDA would load a solver library for them."""
    return torch.linalg.inv(matrices.cpu()).to(matrices.device)


def points_of_depth(depth: np.ndarray, K: np.ndarray, distortion: float = 0.0) -> np.ndarray:
    """(H, W, 3) float64 points in the camera's frame of every pixel of z-depth (H, W), see `rays`."""
    H, W = depth.shape
    return rays(np.stack(np.meshgrid(np.arange(W), np.arange(H)), -1), K, distortion) * depth[..., None]


def pixels_without_distortion(shape: tuple[int, int], K: np.ndarray, distortion: float) -> np.ndarray:
    """(H, W, 2) float64 where a camera without distortion would show what each pixel of a (H, W) image shows."""
    H, W = shape
    seen = rays(np.stack(np.meshgrid(np.arange(W), np.arange(H)), -1), K, distortion)
    return seen[..., :2] * np.diag(K)[:2] + K[:2, 2]


def rays(xy: np.ndarray, K: np.ndarray, distortion: float = 0.0) -> np.ndarray:
    """(..., 3) points at depth 1 in the camera's frame that are seen at pixels (..., 2), for intrinsics K (3, 3).

    distortion  k1 of a point x = (X / Z, Y / Z), which is seen at x (1 + k1 |x|^2)
    """
    seen = (xy - K[:2, 2]) / np.diag(K)[:2]
    if distortion:
        seen = undistort(seen, distortion)
    return np.concatenate([seen, np.ones_like(seen[..., :1])], -1)


def project(points: np.ndarray, K: np.ndarray, distortion: float = 0.0) -> np.ndarray:
    """(..., 2) pixels of points (..., 3) of the camera's frame; nan for points that are not in front of the camera."""
    depth = np.where(points[..., 2:] > 0, points[..., 2:], np.nan)
    x = points[..., :2] / depth
    if distortion:
        x = distort(x, distortion)
    return x * np.diag(K)[:2] + K[:2, 2]


def undistort(seen: np.ndarray, distortion: float) -> np.ndarray:
    """Points (..., 2) in units of the focal length from where a lens of radial distortion k1 shows them.

    Solves x (1 + k1 |x|^2) = x_seen along the radius by Newton's method. Where there is no solution, far outside of
    what a lens of negative k1 can show, the radius is the largest that has one.
    """
    largest = 1 / np.sqrt(-3 * distortion) if distortion < 0 else np.inf  # where x (1 + k1 x^2) turns back
    radius = np.linalg.norm(seen, axis=-1, keepdims=True)
    found = radius.copy()
    for _ in range(8):
        slope = np.maximum(1 + 3 * distortion * found**2, 0.1)
        found = np.minimum(found - (found * (1 + distortion * found**2) - radius) / slope, largest)
    return seen * np.divide(found, radius, out=np.ones_like(radius), where=radius > 0)


def distort(rays: np.ndarray, distortion: float | np.ndarray) -> np.ndarray:
    """Where a lens of radial distortion k1 shows points (..., 2) in units of the focal length: x (1 + k1 |x|^2).

    distortion  of all points, or of each (..., 1)
    """
    return rays * (1 + distortion * (rays**2).sum(-1, keepdims=True))


def cross_matrices(vectors: np.ndarray) -> np.ndarray:
    """(..., 3, 3) matrices whose product with a vector is the cross product of `vectors` (..., 3) with it."""
    x, y, z = np.moveaxis(vectors, -1, 0)
    zero = np.zeros_like(x)
    return np.stack([zero, -z, y, z, zero, -x, -y, x, zero], axis=-1).reshape(*vectors.shape, 3)


def to_world(points: np.ndarray, world_from_cam: np.ndarray) -> np.ndarray:
    """Points (..., 3) of a camera's frame in the world's, for a pose (4, 4)."""
    return points @ world_from_cam[:3, :3].T + world_from_cam[:3, 3]


def rotation_angles_deg(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(n,) angles in degrees between rotation matrices (n, 3, 3), exact for small ones.

    From the chord, ||a - b|| = 2 sqrt(2) sin(angle / 2): the arc cosine of the trace cannot resolve small angles.
    """
    chord = np.linalg.norm(a - b, axis=(-2, -1)) / (2 * np.sqrt(2))
    return np.degrees(2 * np.arcsin(np.clip(chord, 0, 1)))


def similarity_transform(source: np.ndarray, target: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
    """Scale, rotation (3, 3) and translation (3,) that map points (n, 3) onto others best.

    Source: S. Umeyama, "Least-squares estimation of transformation parameters between two point patterns", PAMI 13(4).
    """
    a, b = source - source.mean(0), target - target.mean(0)
    u, s, vt = np.linalg.svd(b.T @ a)
    sign = np.array([1.0, 1.0, np.sign(np.linalg.det(u @ vt))])
    rotation = (u * sign) @ vt
    scale = float((s * sign).sum() / max((a**2).sum(), 1e-300))
    return scale, rotation, target.mean(0) - scale * rotation @ source.mean(0)
