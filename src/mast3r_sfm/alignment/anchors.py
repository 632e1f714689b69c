"""Depth of a view's anchors once the cameras are known: by its matches, by points of tracks, smooth in between.

With fixed cameras the depths of different views have nothing to do with each other, and a view's matches say each
where one of its anchors lies. The unknowns of a view are the logarithms of its anchors' depths x; minimised is

    sum_matches w_k |q_k - pi_j(X_k(x))|^2 / s^2   pixels: the point of pixel p at its anchor's depth, seen in view j
  + sum_tracks  w_t (x + log o_t - log z_t)^2 / t^2   features of the view whose depth z_t triangulation gives
  + sum_neighbours (g_a - g_b)^2 / u_ab^2             g = x - x0 changes little over a surface
  + sum_anchors g_a^2 / v^2

with robust weights w (Cauchy). It is solved by Gauss-Newton steps; their matrix is sparse.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.sparse import coo_matrix, csr_matrix, diags
from scipy.sparse.linalg import spsolve

from mast3r_sfm.canonical import anchor_index, depth_offsets
from mast3r_sfm.geometry import project, rays, to_world
from mast3r_sfm.types import CanonicalView, Correspondences

_STEPS = 6
_PIXEL_SIGMA = 0.5  # s: spread of a right match, network pixels
_TRACK_SIGMA = 0.01  # t: of the predicted depth inside of a block, relative
_SMOOTH_SIGMA = 0.03  # u: of the factor between two neighbouring anchors on one surface
_EDGE = 0.1  # neighbours whose depths differ by more than this share lie on two surfaces
_FREE_SIGMA = 0.5  # v: of an anchor that nothing observes
_MAX_STEP = 0.2  # of a logarithm, in one Gauss-Newton step


@dataclass(frozen=True)
class FixedCamera:
    """A camera that is known.

    K  (3, 3) network pixels;  distortion  k1;  world_from_cam  (4, 4)
    """

    K: np.ndarray
    distortion: float
    world_from_cam: np.ndarray

    def project(self, points: np.ndarray) -> np.ndarray:
        """(M, 2) pixels of points (M, 3) of the world, nan behind the camera."""
        R, c = self.world_from_cam[:3, :3], self.world_from_cam[:3, 3]
        return project((points - c) @ R, self.K, self.distortion)


@dataclass(frozen=True)
class Sightings:
    """Pixels of one view, what they say of its anchors.

    anchor  (M,) row-major index;  factor  (M,) depth of the pixel over that of its anchor;  rays  (M, 3) at depth 1
    """

    anchor: np.ndarray
    factor: np.ndarray
    rays: np.ndarray

    @classmethod
    def of(cls, view: CanonicalView, xy: torch.Tensor, camera: FixedCamera, subsample: int) -> Sightings:
        """Of pixels (M, 2)."""
        shape = (int(view.conf.shape[0]), int(view.conf.shape[1]))
        on_device = xy.to(view.conf.device)
        anchor = anchor_index(on_device, shape, subsample).cpu().numpy()
        offset = depth_offsets(view.relative_depth, on_device, subsample).cpu().double().numpy() - 1
        # a longer lens flattens the relief that was predicted for another one
        factor = np.maximum(1 + offset * view.focal_px / camera.K[0, 0], 1e-3)
        return cls(anchor, factor, rays(xy.double().cpu().numpy(), camera.K, camera.distortion))


@dataclass(frozen=True)
class Side:
    """One view's side of the matches with another: where the other view sees the points, and how sure that is."""

    sightings: Sightings
    other: FixedCamera
    seen_at: np.ndarray
    conf: np.ndarray


def match_sides(
    views: dict[int, CanonicalView],
    cameras: dict[int, FixedCamera],
    matches: tuple[Correspondences, ...],
    subsample: int,
) -> dict[int, list[Side]]:
    """Both sides of all matches, by view; views are named by `CanonicalView.index`."""
    sides: dict[int, list[Side]] = {index: [] for index in views}
    for m in matches:
        conf = m.conf.double().cpu().numpy()
        for own, other, xy, seen in ((m.i, m.j, m.xy_i, m.xy_j), (m.j, m.i, m.xy_j, m.xy_i)):
            sightings = Sightings.of(views[own], xy, cameras[own], subsample)
            sides[own].append(Side(sightings, cameras[other], seen.double().cpu().numpy(), conf))
    return sides


def solve_anchors(
    start: np.ndarray,
    camera: FixedCamera,
    sides: list[Side],
    tracked: tuple[Sightings, np.ndarray] | None = None,
) -> np.ndarray:
    """(rows, columns) float32 depth of the anchors of one view, scene units.

    start         (rows, columns) depths to begin with, positive
    sides         the view's matches
    tracked       pixels of the view whose z-depth (M,) is known
    """
    grid = start.shape
    x0 = np.log(start.astype(np.float64).ravel())
    smoothness = _smoothness(x0.reshape(grid))
    regular = smoothness + diags(np.full(len(x0), _FREE_SIGMA**-2))
    usual_conf = float(np.median(np.concatenate([side.conf for side in sides]))) if sides else 1.0
    x = x0.copy()
    for _ in range(_STEPS):
        weight, pull = np.zeros(len(x)), np.zeros(len(x))
        for side in sides:
            _add_matches(side, camera, x, usual_conf, weight, pull)
        if tracked is not None:
            sightings, depths = tracked
            residual = x[sightings.anchor] + np.log(sightings.factor) - np.log(depths)
            robust = 1 / (_TRACK_SIGMA**2 + residual**2)
            np.add.at(weight, sightings.anchor, robust)
            np.add.at(pull, sightings.anchor, -robust * residual)
        step = spsolve((regular + diags(weight)).tocsc(), pull - regular @ (x - x0))
        x = x + np.clip(step, -_MAX_STEP, _MAX_STEP)
    return np.exp(x).reshape(grid).astype(np.float32)


def _add_matches(
    side: Side, camera: FixedCamera, x: np.ndarray, usual_conf: float, weight: np.ndarray, pull: np.ndarray
) -> None:
    """Adds the Gauss-Newton terms of one side's matches to those of the anchors."""
    own = side.sightings
    depth = np.exp(x[own.anchor]) * own.factor
    pixel = side.other.project(to_world(own.rays * depth[:, None], camera.world_from_cam))
    further = side.other.project(to_world(own.rays * (1.001 * depth)[:, None], camera.world_from_cam))
    slope = (further - pixel) / np.log(1.001)  # pixels per unit of the logarithm
    residual = pixel - side.seen_at
    known = np.isfinite(residual).all(1) & np.isfinite(slope).all(1)
    robust = side.conf[known] / usual_conf / (_PIXEL_SIGMA**2 + (residual[known] ** 2).sum(1))
    np.add.at(weight, own.anchor[known], robust * (slope[known] ** 2).sum(1))
    np.add.at(pull, own.anchor[known], -robust * (slope[known] * residual[known]).sum(1))


def errors_of(start: np.ndarray, camera: FixedCamera, sides: list[Side]) -> np.ndarray:
    """Reprojection errors of all matches of a view with anchors at depths `start`, pixels; infinite behind a camera."""
    errors = [np.zeros(0)]
    for side in sides:
        depth = start.ravel()[side.sightings.anchor] * side.sightings.factor
        pixel = side.other.project(to_world(side.sightings.rays * depth[:, None], camera.world_from_cam))
        distance = np.linalg.norm(pixel - side.seen_at, axis=1)
        errors.append(np.where(np.isfinite(distance), distance, np.inf))
    return np.concatenate(errors)


def _smoothness(x0: np.ndarray) -> csr_matrix:
    """The matrix of sum_neighbours (g_a - g_b)^2 / u_ab^2 over the grid of x0; edges of surfaces are not crossed."""
    index = np.arange(x0.size).reshape(x0.shape)
    pairs = [(index[:, :-1], index[:, 1:]), (index[:-1], index[1:])]
    a, b = (np.concatenate([pair[k].ravel() for pair in pairs]) for k in (0, 1))
    jump = x0.ravel()[a] - x0.ravel()[b]
    stiffness = np.exp(-((jump / _EDGE) ** 2)) / _SMOOTH_SIGMA**2
    off = coo_matrix((-stiffness, (a, b)), shape=(x0.size, x0.size))
    off = off + off.T
    return csr_matrix(off - diags(np.asarray(off.sum(1)).ravel()))
