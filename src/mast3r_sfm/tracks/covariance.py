"""How exactly tracks tell cameras: the covariance of a bundle adjustment.

The points are eliminated from the normal equations (the Schur complement), which leaves one dense symmetric matrix of
poses and intrinsics. The adjustment cannot tell where the world's origin is, how the world is turned, or its unit. The
covariances of positions are therefore those in the frame in which the camera centres fit the true ones best: by
similarity, as an evaluation aligns them.

Sources: B. Triggs and others, "Bundle Adjustment - A Modern Synthesis", 2000 (6.1 and 9: the complement, gauges).
"""

from __future__ import annotations

import numpy as np
import scipy.linalg
import scipy.sparse

from mast3r_sfm.geometry import cross_matrices
from mast3r_sfm.tracks.adjusted import AdjustedTracks

_INTRINSICS = 4  # f, cx, cy, k1 of every camera


def standard_deviations(tracks: AdjustedTracks, free: np.ndarray, loss_px: float) -> tuple[np.ndarray, np.ndarray]:
    """Standard deviations of intrinsics and camera centres, for the errors that the tracks have.

    free     (groups, 4) bool: the intrinsics that the adjustment finds
    loss_px  scale of its Cauchy loss

    Returns those of the intrinsics (groups, 4), 0 where they are held, and of the centres (n,) in the world's unit, the
    root of the trace of their covariance; infinite where the tracks leave them open. A view with hardly an
    observation makes those of all others large, because the frame is that of all centres.
    """
    n = len(tracks.cam_from_world)
    by_camera, by_point = _jacobians(tracks, free, loss_px)
    S = _schur_complement(by_camera, by_point, tracks.point_of, len(tracks.points))
    told = np.diag(S) > 0  # of the others no observation tells anything
    seen = told[: 6 * n].reshape(n, 6).all(1)
    used = np.concatenate([np.repeat(seen, 6), told[6 * n :] & free.ravel()])
    variances = np.full(len(S), np.inf)
    variances[used] = _variances(S[np.ix_(used, used)], _gauge(tracks)[used], 6 * int(seen.sum()))
    intrinsics = np.where(free, variances[6 * n :].reshape(-1, _INTRINSICS), 0.0)
    centres = variances[: 6 * n].reshape(n, 6)[:, 3:].sum(1)
    return tracks.noise_px * np.sqrt(np.maximum(intrinsics, 0)), tracks.noise_px * np.sqrt(np.maximum(centres, 0))


def _jacobians(tracks: AdjustedTracks, free: np.ndarray, loss_px: float) -> tuple[scipy.sparse.csr_array, np.ndarray]:
    """Derivatives of the observations by cameras, sparse (2 T, 6 n + 4 groups), and each by its point, (T, 2, 3).

    A pose changes by a small turn w and a shift v in the camera's frame, X_cam + w x X_cam + v, so that its centre
    moves by -R^T v. Rows are weighted as the Cauchy loss weights them.
    """
    n, count = len(tracks.cam_from_world), len(tracks.view_of)
    R = tracks.cam_from_world[tracks.view_of, :3, :3]
    X = tracks.in_views
    group = tracks.group_of[tracks.view_of]
    f, k1 = tracks.intrinsics[group, 0], tracks.intrinsics[group, 3]
    x = X[:, :2] / X[:, 2:]
    r2 = (x**2).sum(1)
    by_x = (1 + k1 * r2)[:, None, None] * np.eye(2) + 2 * k1[:, None, None] * x[:, :, None] * x[:, None]
    by_x *= f[:, None, None]
    x_by_X = np.concatenate([np.tile(np.eye(2), (count, 1, 1)), -x[:, :, None]], axis=2) / X[:, 2, None, None]
    by_X = by_x @ x_by_X
    turn = np.cross(X[:, None], by_X)  # of w x X by w: row . (w x X) = w . (X x row)
    by_intrinsics = np.zeros((count, 2, _INTRINSICS))
    by_intrinsics[:, :, 0] = x * (1 + k1 * r2)[:, None]
    by_intrinsics[:, 0, 1] = by_intrinsics[:, 1, 2] = 1
    by_intrinsics[:, :, 3] = f[:, None] * x * r2[:, None]
    by_intrinsics *= free[group][:, None]
    weight = 1 / np.sqrt(1 + (tracks.errors_px / loss_px) ** 2)
    values = np.concatenate([turn, by_X, by_intrinsics], axis=2) * weight[:, None, None]
    columns = np.concatenate(
        [
            6 * tracks.view_of[:, None] + np.arange(6),
            6 * n + _INTRINSICS * group[:, None] + np.arange(_INTRINSICS),
        ],
        axis=1,
    )
    width = columns.shape[1]
    by_camera = scipy.sparse.csr_array(
        (values.ravel(), np.repeat(columns, 2, axis=0).ravel(), np.arange(0, 2 * count * width + 1, width)),
        shape=(2 * count, 6 * n + _INTRINSICS * len(tracks.intrinsics)),
    )
    return by_camera, (by_X @ R) * weight[:, None, None]


def _schur_complement(
    by_camera: scipy.sparse.csr_array, by_point: np.ndarray, point_of: np.ndarray, num_points: int
) -> np.ndarray:
    """Normal matrix of the cameras once the best points are taken for them."""
    V = np.zeros((num_points, 3, 3))
    np.add.at(V, point_of, by_point.transpose(0, 2, 1) @ by_point)
    scale = np.trace(V, axis1=1, axis2=2)[:, None, None] + 1e-300
    root = np.linalg.cholesky(np.linalg.inv(V / scale + 1e-12 * np.eye(3)) / scale)  # root root^T = V^-1
    count = len(point_of)
    B = scipy.sparse.csr_array(
        (
            (by_point @ root[point_of]).ravel(),
            np.repeat(3 * point_of[:, None] + np.arange(3), 2, axis=0).ravel(),
            np.arange(0, 6 * count + 1, 3),
        ),
        shape=(2 * count, 3 * num_points),
    )
    W = by_camera.T @ B
    return np.asarray((by_camera.T @ by_camera - W @ W.T).todense())


def _gauge(tracks: AdjustedTracks) -> np.ndarray:
    """(6 n + 4 groups, 7): how the cameras change when the world is shifted, turned and scaled about its cameras."""
    n = len(tracks.cam_from_world)
    R, t = tracks.cam_from_world[:, :3, :3], tracks.cam_from_world[:, :3, 3]
    centres = -np.einsum("nji,nj->ni", R, t)
    own = centres - centres.mean(0)
    basis = np.zeros((n, 6, 7))
    basis[:, 3:, :3] = -R
    basis[:, :3, 3:6] = -R
    # a centre moves by d = a x own when the world turns by a, and by own when it grows: v = -R d
    basis[:, 3:, 3:6] = R @ cross_matrices(own)
    basis[:, 3:, 6] = -np.einsum("nij,nj->ni", R, own)
    return np.concatenate([basis.reshape(6 * n, 7), np.zeros((_INTRINSICS * len(tracks.intrinsics), 7))])


def _variances(S: np.ndarray, gauge: np.ndarray, num_pose_rows: int) -> np.ndarray:
    """Diagonal of the covariance for a normal matrix with the null space `gauge`, poses first, in the frame that keeps
    the centres in place as a whole."""
    scale = 1 / np.sqrt(np.maximum(np.diag(S), 1e-300))
    null, _ = np.linalg.qr(gauge / scale[:, None])
    try:
        factor = scipy.linalg.cho_factor(S * scale[:, None] * scale + null @ null.T)
    except np.linalg.LinAlgError:
        return np.full(len(S), np.inf)
    covariance = scipy.linalg.cho_solve(factor, np.eye(len(S))) * scale[:, None] * scale
    positions = gauge.copy()
    positions[:num_pose_rows].reshape(-1, 6, 7)[:, :3] = 0  # turns of cameras do not count for the frame
    # what the frame takes out: (1 - gauge shifts) covariance (1 - gauge shifts)^T, of which the diagonal is needed
    shifts = np.linalg.pinv(positions)
    moved = shifts @ covariance
    crossed = (gauge * moved.T).sum(1)
    return np.asarray(np.diag(covariance) - 2 * crossed + ((gauge @ (moved @ shifts.T)) * gauge).sum(1))
