"""Tracks as an adjustment leaves them: cameras, points, and which features observe them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from mast3r_sfm.geometry import distort

MIN_OBSERVATIONS = 40
"""A view with fewer features in tracks keeps the camera that it has."""


@dataclass(frozen=True)
class AdjustedTracks:
    """Points of n views and their T observations.

    cam_from_world  (n, 4, 4)
    group_of        (n,) the camera of every view
    intrinsics      (groups, 4): f, cx, cy in pixels of the original photos, and k1
    points          (P, 3) in the world
    point_of, view_of, feature_of   (T,) of every observation: the point, the view, the view's feature
    seen_at         (T, 2) where that feature is, pixels of the original photo
    """

    cam_from_world: np.ndarray
    group_of: np.ndarray
    intrinsics: np.ndarray
    points: np.ndarray
    point_of: np.ndarray
    view_of: np.ndarray
    feature_of: np.ndarray
    seen_at: np.ndarray

    @cached_property
    def in_views(self) -> np.ndarray:
        """(T, 3) every observed point in the frame of the camera that observes it."""
        pose = self.cam_from_world[self.view_of]
        return np.einsum("tij,tj->ti", pose[:, :3, :3], self.points[self.point_of]) + pose[:, :3, 3]

    @cached_property
    def errors_px(self) -> np.ndarray:
        """(T,) reprojection errors, pixels of the original photo."""
        focal, x, y, k1 = self.intrinsics[self.group_of[self.view_of]].T
        ray = self.in_views[:, :2] / self.in_views[:, 2:]
        seen = distort(ray, k1[:, None]) * focal[:, None] + np.stack([x, y], axis=1)
        return np.asarray(np.linalg.norm(seen - self.seen_at, axis=1))

    @property
    def num_observations(self) -> np.ndarray:
        """(n,) features of every view that belong to a point."""
        return np.bincount(self.view_of, minlength=len(self.cam_from_world))

    @property
    def num_fitted(self) -> int:
        """Numbers that an adjustment finds: coordinates of points, and poses."""
        return 3 * len(self.points) + 6 * len(self.cam_from_world)

    @property
    def noise_px(self) -> float:
        """Standard deviation of a coordinate of an observation.

        Half of all errors are below 1.1774 times it, and they are smaller than those of the observations because every
        point and camera was fitted to them.
        """
        if not len(self.errors_px):
            return float("nan")
        left = max(0.1, 1 - self.num_fitted / (2 * len(self.errors_px)))
        return float(np.median(self.errors_px)) / 1.1774 / np.sqrt(left)

    def median_errors_px(self) -> np.ndarray:
        """(n,) of every view, nan without observations."""
        own = [self.errors_px[self.view_of == k] for k in range(len(self.cam_from_world))]
        return np.array([np.median(errors) if len(errors) else np.nan for errors in own])

    def robust_costs(self, loss_px: float) -> np.ndarray:
        """(groups, 2): sum of the robust squared errors of the observations of every camera, and their degrees of
        freedom. Cauchy's loss as in the adjustment: c^2 log(1 + e^2 / c^2)."""
        losses = loss_px**2 * np.log1p((self.errors_px / loss_px) ** 2)
        group, count = self.group_of[self.view_of], len(self.intrinsics)
        share = max(0.0, 1 - self.num_fitted / max(1, 2 * len(losses)))
        freedom = 2 * share * np.bincount(group, minlength=count)
        return np.stack([np.bincount(group, losses, count), freedom], axis=1)

    def depths(self, view: int, num_features: int) -> np.ndarray:
        """(num_features,) z-depth of the points that a view's features belong to, nan for features without one."""
        depths = np.full(num_features, np.nan)
        own = self.view_of == view
        depths[self.feature_of[own]] = self.in_views[own, 2]
        return depths

    def of_views(self, chosen: np.ndarray) -> AdjustedTracks:
        """The observations by the chosen views (n,) bool of points that at least two of them observe; views keep their
        numbers."""
        kept = chosen[self.view_of]
        shared = np.bincount(self.point_of[kept], minlength=len(self.points)) > 1
        kept &= shared[self.point_of]
        return replace(
            self,
            points=self.points[shared],
            point_of=(np.cumsum(shared) - 1)[self.point_of[kept]],
            view_of=self.view_of[kept],
            feature_of=self.feature_of[kept],
            seen_at=self.seen_at[kept],
        )
