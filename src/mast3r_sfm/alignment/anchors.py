"""Depth of a view's anchors once the cameras are known: by its matches, by points of tracks, smooth in between.

With fixed cameras the depths of different views have nothing to do with each other, and a view's matches say each
where one of its anchors lies. The unknowns of a view are the logarithms of its anchors' depths x; minimised is

    sum_matches w_k |q_k - pi_j(X_k(x))|^2 / s^2   pixels: the point of pixel p at its anchor's depth, seen in view j
  + sum_tracks  w_t (x + log o_t - log z_t)^2 / t^2   features of the view whose depth z_t triangulation gives
  + sum_neighbours (g_a - g_b)^2 / u_ab^2             g = x - x0 changes little over a surface
  + sum_anchors g_a^2 / v^2

with robust weights w (Cauchy). It is solved by Gauss-Newton steps; their matrix has few bands.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.linalg import solveh_banded
from scipy.sparse import coo_matrix, csr_matrix, diags

from mast3r_sfm.canonical import anchor_index, depth_offsets
from mast3r_sfm.geometry import distort, rays
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
class MatchedPixels:
    """M matched pixels of one view: where other views see the points behind them, and how sure that is.

    sightings        what the pixels say of the view's anchors
    towards, origin  (M, 3) the point at depth d of a pixel's ray is d * towards + origin in the other camera
    K, distortion    (M, 3, 3) and (M,) of the other camera
    seen_at          (M, 2) pixels of the other view
    conf             (M,)
    """

    sightings: Sightings
    towards: np.ndarray
    origin: np.ndarray
    K: np.ndarray
    distortion: np.ndarray
    seen_at: np.ndarray
    conf: np.ndarray

    @classmethod
    def of_pair(
        cls, sightings: Sightings, own: FixedCamera, other: FixedCamera, seen_at: np.ndarray, conf: np.ndarray
    ) -> MatchedPixels:
        other_from_own = np.linalg.inv(other.world_from_cam) @ own.world_from_cam
        count = len(conf)
        return cls(
            sightings,
            sightings.rays @ other_from_own[:3, :3].T,
            np.tile(other_from_own[:3, 3], (count, 1)),
            np.tile(other.K, (count, 1, 1)),
            np.full(count, other.distortion),
            seen_at,
            conf,
        )

    @classmethod
    def joined(cls, parts: Sequence[MatchedPixels]) -> MatchedPixels:
        """All of one view; at least one part."""
        names = ("towards", "origin", "K", "distortion", "seen_at", "conf")
        return cls(
            Sightings(
                *(np.concatenate([getattr(one.sightings, n) for one in parts]) for n in ("anchor", "factor", "rays"))
            ),
            *(np.concatenate([getattr(one, name) for one in parts]) for name in names),
        )

    def errors(self, depth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Reprojection errors (M, 2) of the points at z-depths (M,), pixels, and their change (M, 2) with the logarithm
        of the depth; nan behind a camera."""
        points = depth[:, None] * self.towards + self.origin
        z = np.where(points[:, 2:] > 0, points[:, 2:], np.nan)
        x = points[:, :2] / z
        change = depth[:, None] * (self.towards[:, :2] - x * self.towards[:, 2:]) / z
        focal = np.stack([self.K[:, 0, 0], self.K[:, 1, 1]], axis=1)
        k1, r2 = self.distortion[:, None], (x**2).sum(1, keepdims=True)
        pixel = focal * distort(x, k1) + self.K[:, :2, 2]
        slope = focal * (change * (1 + k1 * r2) + 2 * k1 * x * (x * change).sum(1, keepdims=True))
        return pixel - self.seen_at, slope


def match_sides(
    views: dict[int, CanonicalView],
    cameras: dict[int, FixedCamera],
    matches: tuple[Correspondences, ...],
    subsample: int,
) -> dict[int, MatchedPixels]:
    """Both sides of all matches, by view, if it has any; views are named by `CanonicalView.index`."""
    sides: dict[int, list[MatchedPixels]] = {index: [] for index in views}
    for m in matches:
        conf = m.conf.double().cpu().numpy()
        for own, other, xy, seen in ((m.i, m.j, m.xy_i, m.xy_j), (m.j, m.i, m.xy_j, m.xy_i)):
            sightings = Sightings.of(views[own], xy, cameras[own], subsample)
            seen_at = seen.double().cpu().numpy()
            sides[own].append(MatchedPixels.of_pair(sightings, cameras[own], cameras[other], seen_at, conf))
    return {index: MatchedPixels.joined(parts) for index, parts in sides.items() if parts}


def solve_anchors(
    start: np.ndarray,
    matched: MatchedPixels | None,
    tracked: tuple[Sightings, np.ndarray] | None = None,
) -> np.ndarray:
    """(rows, columns) float32 depth of the anchors of one view, scene units.

    start         (rows, columns) depths to begin with; those that are not positive begin with the median of the others
    matched       the view's matches, None: it has none
    tracked       pixels of the view whose z-depth (M,) is known
    """
    grid = start.shape
    known = np.isfinite(start) & (start > 0)
    usual = np.median(start[known]) if known.any() else 1.0
    x0 = np.log(np.where(known, start, usual).astype(np.float64).ravel())
    regular = csr_matrix(_smoothness(x0.reshape(grid)) + diags(np.full(len(x0), _FREE_SIGMA**-2)))
    bands = np.zeros((grid[1] + 1, len(x0)))  # of the matrix: an anchor, its neighbour on the right, the one below
    for offset in (0, 1, grid[1]):
        bands[grid[1] - offset, offset:] = regular.diagonal(offset)
    x = x0.copy()
    for _ in range(_STEPS):
        weight, pull = np.zeros(len(x)), np.zeros(len(x))
        if matched is not None:
            anchor = matched.sightings.anchor
            residual, slope = matched.errors(np.exp(x[anchor]) * matched.sightings.factor)
            robust = matched.conf / np.median(matched.conf) / (_PIXEL_SIGMA**2 + (residual**2).sum(1))
            seen = np.isfinite(residual).all(1) & np.isfinite(slope).all(1)
            weight += np.bincount(anchor[seen], (robust * (slope**2).sum(1))[seen], len(x))
            pull -= np.bincount(anchor[seen], (robust * (slope * residual).sum(1))[seen], len(x))
        if tracked is not None:
            sightings, depths = tracked
            error = x[sightings.anchor] + np.log(sightings.factor) - np.log(depths)
            robust = 1 / (_TRACK_SIGMA**2 + error**2)
            weight += np.bincount(sightings.anchor, robust, len(x))
            pull -= np.bincount(sightings.anchor, robust * error, len(x))
        matrix = bands.copy()
        matrix[-1] += weight
        step = solveh_banded(matrix, pull - regular @ (x - x0))
        x = x + np.clip(step, -_MAX_STEP, _MAX_STEP)
    return np.exp(x).reshape(grid).astype(np.float32)


def errors_of(start: np.ndarray, matched: MatchedPixels | None) -> np.ndarray:
    """(M,) reprojection errors of a view's matches with anchors at depths `start`, pixels; infinite behind a camera."""
    if matched is None:
        return np.zeros(0)
    residual, _ = matched.errors(start.ravel()[matched.sightings.anchor] * matched.sightings.factor)
    distance = np.linalg.norm(residual, axis=1)
    return np.where(np.isfinite(distance), distance, np.inf)


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
