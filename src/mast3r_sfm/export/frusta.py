"""Cameras as shapes: a coloured wire frustum with the photo on its base."""

from __future__ import annotations

import numpy as np

COLOURS = (
    (255, 0, 0),
    (0, 0, 255),
    (0, 255, 0),
    (255, 0, 255),
    (255, 204, 0),
    (0, 204, 204),
    (128, 255, 255),
    (255, 128, 255),
    (255, 255, 128),
    (0, 0, 0),
    (128, 128, 128),
)
"""sRGB of the wires, repeated from camera to camera."""

_WIRE_RADIUS = 0.015
"""Share of the size of a frustum."""


def frustum_corners(K: np.ndarray, shape: tuple[int, int], size: float) -> np.ndarray:
    """Corners of the image in the camera frame: what the camera sees of a plane in front of it.

    K      (3, 3) intrinsics of the image, pixels
    shape  (H, W) of the image
    size   height of the base in scene units. The base lies at depth f size / H, but no nearer than size / 10.

    Returns (4, 3): top left, top right, bottom right, bottom left.
    """
    H, W = shape
    depth = max(size / 10, K[1, 1] * size / H)
    # pixel centres are integers, so the image ends half a pixel outside of them
    corners = np.array([[0, 0], [W, 0], [W, H], [0, H]]) - 0.5
    homogeneous = np.concatenate([corners, np.ones((4, 1))], axis=1)
    return homogeneous @ np.linalg.inv(K).T * depth


def frustum_wires(corners: np.ndarray, apex: np.ndarray, size: float) -> tuple[np.ndarray, np.ndarray]:
    """The eight edges of a frustum as thin three-sided tubes (a line of glTF is one pixel wide everywhere).

    corners  (4, 3) of the base
    apex     (3,)

    Returns vertices (48, 3) and faces (48, 3).
    """
    starts = np.concatenate([np.broadcast_to(apex, (4, 3)), corners])
    ends = np.concatenate([corners, np.roll(corners, -1, axis=0)])
    along = ends - starts
    along /= np.linalg.norm(along, axis=1, keepdims=True)
    # any direction that is not along the edge gives a frame around it
    helper = np.eye(3)[np.argmin(np.abs(along), axis=1)]
    side = np.cross(along, helper)
    side /= np.linalg.norm(side, axis=1, keepdims=True)
    up = np.cross(along, side)
    angle = np.arange(3) * (2 * np.pi / 3)
    ring = np.cos(angle)[:, None] * side[:, None] + np.sin(angle)[:, None] * up[:, None]  # edge, corner, xyz
    ring *= _WIRE_RADIUS * size
    vertices = np.concatenate([starts[:, None] + ring, ends[:, None] + ring], axis=1)
    tube = np.array([[a, b, b + 3] for a, b in ((0, 1), (1, 2), (2, 0))] + [[0, 4, 3], [1, 5, 4], [2, 3, 5]])
    faces = tube + 6 * np.arange(8)[:, None, None]
    return vertices.reshape(-1, 3), faces.reshape(-1, 3)


def default_camera_size(centres: np.ndarray, typical_depth: float) -> float:
    """A size at which frusta neither hide the scene nor vanish: 0.4 of the median distance to the nearest camera,
    within 2 to 10 % of `typical_depth`.

    centres        (n, 3) camera centres
    typical_depth  median depth of what the cameras see
    """
    if len(centres) < 2:
        return 0.1 * typical_depth
    distance = np.linalg.norm(centres[:, None] - centres, axis=-1)
    np.fill_diagonal(distance, np.inf)
    return float(np.clip(0.4 * np.median(distance.min(axis=1)), 0.02 * typical_depth, 0.1 * typical_depth))
