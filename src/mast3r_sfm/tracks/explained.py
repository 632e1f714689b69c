"""What matches say of a set of cameras: how many lie on each other's epipolar lines, and how far their rays turn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from mast3r_sfm.geometry import cross_matrices, rays
from mast3r_sfm.tracks.cameras import CameraGroup

_MAX_ERROR_PX = 4.0  # at 1,600 pixels
_REFERENCE_PX = 1600.0


def count_explained(
    cam_from_world: np.ndarray,
    cameras: Sequence[CameraGroup],
    features: Sequence[np.ndarray],
    matches: Mapping[tuple[int, int], np.ndarray],
) -> np.ndarray:
    """(n,) int64 matches of every photo, over all pairs, with a Sampson error below four pixels (of a photo of 1,600).

    cam_from_world  (n, 4, 4)
    cameras         of every photo
    features        n arrays (N, 2) of pixels
    matches         by pair of photos: (M, 2) indices of features

    Source of the error: R. Hartley, A. Zisserman, Multiple View Geometry, 2004, 11.4.3.
    """
    directions = [rays(xy, camera.K, camera.distortion) for xy, camera in zip(features, cameras, strict=True)]
    counts = np.zeros(len(cameras), dtype=np.int64)
    for (i, j), index in matches.items():
        j_from_i = cam_from_world[j] @ np.linalg.inv(cam_from_world[i])
        E = cross_matrices(j_from_i[:3, 3]) @ j_from_i[:3, :3]
        a, b = directions[i][index[:, 0]], directions[j][index[:, 1]]
        line_j, line_i = a @ E.T, b @ E
        # a line's distance in the units of each photo: pixels over its focal length
        squares = (line_j[:, :2] ** 2).sum(1) / cameras[j].focal_px ** 2
        squares += (line_i[:, :2] ** 2).sum(1) / cameras[i].focal_px ** 2
        error_px = np.abs((b * line_j).sum(1)) / np.sqrt(squares + 1e-300)
        size = max(*cameras[i].size, *cameras[j].size)
        counts[[i, j]] += int((error_px < _MAX_ERROR_PX * max(1.0, size / _REFERENCE_PX)).sum())
    return counts


def parallax_deg(
    cam_from_world: np.ndarray,
    cameras: Sequence[CameraGroup],
    features: Sequence[np.ndarray],
    matches: Mapping[tuple[int, int], np.ndarray],
) -> np.ndarray:
    """(n,) median angle in degrees between the two rays of every photo's matches, nan without; see `count_explained`.

    Photos from one place have next to none, wherever they look.
    """
    directions = []
    for pose, xy, camera in zip(cam_from_world, features, cameras, strict=True):
        in_world = rays(xy, camera.K, camera.distortion) @ pose[:3, :3]
        directions.append(in_world / np.linalg.norm(in_world, axis=1, keepdims=True))
    angles: list[list[np.ndarray]] = [[] for _ in directions]
    for (i, j), index in matches.items():
        chord = np.linalg.norm(directions[i][index[:, 0]] - directions[j][index[:, 1]], axis=1)
        angle = np.degrees(2 * np.arcsin(np.clip(chord / 2, 0, 1)))
        angles[i].append(angle)
        angles[j].append(angle)
    return np.array([np.median(np.concatenate(own)) if own else np.nan for own in angles])
