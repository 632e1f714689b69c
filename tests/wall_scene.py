"""Two views of a slanted plane with their matches and exact depth."""

from __future__ import annotations

import numpy as np
import torch
from scipy.spatial.transform import Rotation

from mast3r_sfm.alignment.anchors import FixedCamera
from mast3r_sfm.types import CanonicalView, Correspondences

S, H, W = 8, 64, 96
Wall = tuple[dict[int, CanonicalView], dict[int, FixedCamera], tuple[Correspondences, ...], np.ndarray]


def make_wall() -> Wall:
    """Two views of a slanted plane, z = 4 + 0.5 X, their matches, and the true depth of the anchors of the first."""
    K = np.array([[90.0, 0, 47.5], [0, 90, 31.5], [0, 0, 1]])
    poses = [np.eye(4), np.eye(4)]
    poses[1][:3, :3] = Rotation.from_euler("y", -8, degrees=True).as_matrix()
    poses[1][:3, 3] = [0.8, 0.05, 0.1]
    cameras = {k: FixedCamera(K, 0.0, pose) for k, pose in enumerate(poses)}
    x, y = np.meshgrid(np.arange(W), np.arange(H))
    direction = np.stack([(x - 47.5) / 90, (y - 31.5) / 90, np.ones_like(x, dtype=float)], -1)
    depths = []
    for pose in poses:
        in_world = direction @ pose[:3, :3].T
        # c + d r on the plane z = 4 + 0.5 x
        depths.append((4 + 0.5 * pose[0, 3] - pose[2, 3]) / (in_world[..., 2] - 0.5 * in_world[..., 0]))
    views = {}
    for k, depth in enumerate(depths):
        core = depth[S // 2 :: S, S // 2 :: S]
        relative = depth / core.repeat(S, 0).repeat(S, 1)
        views[k] = CanonicalView(
            k, torch.from_numpy(relative).float(), torch.ones(H, W), torch.from_numpy(core).float(), 90.0
        )
    pixel = np.stack(np.meshgrid(np.arange(4, W, 8), np.arange(4, H, 8)), -1).reshape(-1, 2)
    points = direction[pixel[:, 1], pixel[:, 0]] * depths[0][pixel[:, 1], pixel[:, 0], None]
    seen = cameras[1].project(points)
    inside = ((seen > 0) & (seen < [W - 1, H - 1])).all(1)
    xy_i, xy_j = torch.from_numpy(pixel[inside]).float(), torch.from_numpy(seen[inside]).float()
    matches = Correspondences(0, 1, xy_i, xy_j, torch.ones(len(xy_i)))
    return views, cameras, (matches,), views[0].core_depth.numpy()
