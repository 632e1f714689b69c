"""Views of a slanted plane with their matches and exact depth."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import torch
from scipy.spatial.transform import Rotation

from mast3r_sfm.geometry import project, to_world
from mast3r_sfm.types import CanonicalView, Correspondences

S, H, W = 8, 64, 96
K = np.array([[90.0, 0, 47.5], [0, 90, 31.5], [0, 0, 1]])


def pose_of(turn_deg: float, centre: tuple[float, float, float]) -> np.ndarray:
    pose = np.eye(4)
    pose[:3, :3] = Rotation.from_euler("y", turn_deg, degrees=True).as_matrix()
    pose[:3, 3] = centre
    return pose


def views_of_wall(
    poses: Sequence[np.ndarray], slope: float = 0.5
) -> tuple[dict[int, CanonicalView], tuple[Correspondences, ...]]:
    """Views of a slanted plane, z = 4 + slope X, and the matches of all pairs."""
    x, y = np.meshgrid(np.arange(W), np.arange(H))
    direction = np.stack([(x - 47.5) / 90, (y - 31.5) / 90, np.ones_like(x, dtype=float)], -1)
    views, depths = {}, []
    for k, pose in enumerate(poses):
        in_world = direction @ pose[:3, :3].T
        # c + d r on the plane
        depth = (4 + slope * pose[0, 3] - pose[2, 3]) / (in_world[..., 2] - slope * in_world[..., 0])
        core = depth[S // 2 :: S, S // 2 :: S]
        relative = depth / core.repeat(S, 0).repeat(S, 1)
        views[k] = CanonicalView(
            k, torch.from_numpy(relative).float(), torch.ones(H, W), torch.from_numpy(core).float(), 90.0
        )
        depths.append(depth)
    pixel = np.stack(np.meshgrid(np.arange(4, W, 8), np.arange(4, H, 8)), -1).reshape(-1, 2)
    matches = []
    for i, j in itertools.combinations(range(len(poses)), 2):
        points = to_world(direction[pixel[:, 1], pixel[:, 0]] * depths[i][pixel[:, 1], pixel[:, 0], None], poses[i])
        seen = project((points - poses[j][:3, 3]) @ poses[j][:3, :3], K)
        inside = ((seen > 0) & (seen < [W - 1, H - 1])).all(1)
        xy_i, xy_j = torch.from_numpy(pixel[inside]).float(), torch.from_numpy(seen[inside]).float()
        matches.append(Correspondences(i, j, xy_i, xy_j, torch.ones(len(xy_i))))
    return views, tuple(matches)
