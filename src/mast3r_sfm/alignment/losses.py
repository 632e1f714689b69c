"""The losses of the alignment: what is minimised, as formulas.

Each loss is a mean of robust distances, weighted by the confidences of the matches. These are plain functions that
autograd can differentiate, to be read and to be tested against. With a million matches they would be slow, so an
iteration evaluates the same values and gradients by the code in `execution`.

All functions take M points, and what belongs to a view is given once per point: `cameras.of(views)`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

MIN_DEPTH = 1e-3
"""Points are projected as if they were at least this far in front of the camera, scene units."""

PIXEL_RANGE = (-1000.0, 2000.0)
"""Projections are clamped to this range, pixels."""


@dataclass(frozen=True)
class Cameras:
    """Pinhole cameras, one per view or one per point.

    K          (..., 3, 3) intrinsics, pixels
    rotations  (..., 3, 3) R, world from camera
    centres    (..., 3) c, world
    """

    K: torch.Tensor
    rotations: torch.Tensor
    centres: torch.Tensor

    def of(self, views: torch.Tensor) -> Cameras:
        """The cameras of `views` (M,), one per point."""
        return Cameras(self.K[views], self.rotations[views], self.centres[views])


def robust_offset(exponent: float) -> float:
    """b = (1/g)^(1/(g-1)) of the robust distance with exponent g; 0 for g = 1 (docs/method.md, Robust distance)."""
    return 0.0 if exponent == 1 else (1 / exponent) ** (1 / (exponent - 1))


def robust_distance(x: torch.Tensor, y: torch.Tensor, exponent: float) -> torch.Tensor:
    """(M, k), (M, k) -> (M,): a distance that grows like the power g for far points, for g < 1 ever more slowly.

        rho(x, y) = (|x - y| + b)^g - b^g,    b = (1/g)^(1/(g-1))

    b is chosen such that the slope at distance 0 is one for every g. (docs/method.md, Robust distance)
    """
    offset = robust_offset(exponent)
    distance = torch.linalg.vector_norm(x - y, dim=1)
    return (distance + offset) ** exponent - offset**exponent


def observed_depths(anchor_depths: torch.Tensor, offsets: torch.Tensor, inverse_zooms: torch.Tensor) -> torch.Tensor:
    """(M,) depths z of pixels, scene units: the depth of the pixel's anchor, corrected as predicted.

        z = d (1 + o fb/f)

    anchor_depths  (M,) d
    offsets        (M,) o: depth of the pixel / depth of the anchor - 1, as predicted
    inverse_zooms  (M,) fb/f: focal length of the prediction / focal length of the camera, because the longer the lens
                   that took an image, the flatter is the scene that it shows
    """
    return anchor_depths * (1 + offsets * inverse_zooms)


def world_points(pixels: torch.Tensor, depths: torch.Tensor, cameras: Cameras) -> torch.Tensor:
    """(M, 3) the points seen at `pixels` (M, 2) at `depths` (M,) by `cameras`, one per point.

    X = R z K^-1 (x, y, 1) + c
    """
    homogeneous = torch.cat([pixels, torch.ones_like(pixels[:, :1])], 1)
    in_camera = depths[:, None] * _times(torch.linalg.inv(cameras.K), homogeneous)
    return _times(cameras.rotations, in_camera) + cameras.centres


def project(points: torch.Tensor, cameras: Cameras) -> torch.Tensor:
    """(M, 3) world -> (M, 2) pixels of `cameras`, one per point. Points behind a camera stay finite.

    pi(X) = clamp(h_xy / max(h_z, MIN_DEPTH), PIXEL_RANGE),    h = K R^T (X - c)
    """
    h = _times(cameras.K @ cameras.rotations.transpose(1, 2), points - cameras.centres)
    return (h[:, :2] / h[:, 2:].clamp_min(MIN_DEPTH)).clamp(*PIXEL_RANGE)


def coarse_loss(
    points_i: torch.Tensor,
    points_j: torch.Tensor,
    conf: torch.Tensor,
    exponent: float,
    units: torch.Tensor | None = None,
) -> torch.Tensor:
    """How far apart in the world the two points of a match lie (docs/method.md, Coarse loss).

        L = sum_k c_k rho(X_k / u_k, Y_k / u_k) / sum_k c_k

    points_i, points_j  (M, 3) X and Y: the points of the two matched pixels, world
    conf                (M,) c: confidence of the match
    units               (M,) u: the unit of length of each match, see `relative_units`; None: scene units
    """
    if units is not None:
        points_i, points_j = points_i / units[:, None], points_j / units[:, None]
    return _weighted_mean(robust_distance(points_i, points_j, exponent), conf)


def relative_units(unit_depths_i: torch.Tensor, unit_depths_j: torch.Tensor) -> torch.Tensor:
    """(M,) the root mean square of the depths at which the two views of a match see it, if both views had size 1.

        u = sqrt((z_i^2 + z_j^2) / 2)

    Distances in these units are relative to the depth, as the errors of a prediction grow with it.
    """
    return ((unit_depths_i.square() + unit_depths_j.square()) / 2).sqrt()


def fine_loss(
    pixels: torch.Tensor, partners: torch.Tensor, cameras: Cameras, conf: torch.Tensor, exponent: float
) -> torch.Tensor:
    """How far a matched pixel is from where its partner's point appears in its view (docs/method.md, Fine loss).

        L = sum_k c_k rho(p_k, pi_k(Y_k)) / sum_k c_k

    Every match counts twice: once in either of its views.

    pixels    (M, 2) p: the matched pixel
    partners  (M, 3) Y: the point of the pixel that it is matched with, from the other view's depth, world
    cameras   of the view of each pixel; `project` is pi
    conf      (M,) c: confidence of the match
    """
    return _weighted_mean(robust_distance(pixels, project(partners, cameras), exponent), conf)


def fallback_loss(
    points: torch.Tensor, predicted: torch.Tensor, cameras: Cameras, conf: torch.Tensor, exponent: float
) -> torch.Tensor:
    """For pairs without a good match: how far the points of view a lie from where the network, asked for the pair
    of a and b, put them in the camera of b (docs/method.md, Fallback loss).

        L = sum_k c_k rho(X_k, R_b q_k + c_b) / sum_k c_k

    Both views of a pair take both roles. The predictions have no scale of their own: they are taken at scale 1.

    points     (M, 3) X: the points of all matched pixels of a, world
    predicted  (M, 3) q: the prediction for the block of each, in the camera of b
    cameras    of b, for each point
    conf       (M,) c: confidence of the prediction
    """
    in_world = _times(cameras.rotations, predicted) + cameras.centres
    return _weighted_mean(robust_distance(points, in_world, exponent), conf)


def principal_point_prior(
    principal_points: torch.Tensor, weight: float, shares: torch.Tensor | None = None
) -> torch.Tensor:
    """Keeps principal points near the image centres.

        L = weight * sum_i w_i |p_i - (1/2, 1/2)|^2

    principal_points  (m, 2) p in units of (W, H)
    shares            (m,) w: the share of the views that have it; None: equal ones
    """
    if shares is None:
        return weight / len(principal_points) * (principal_points - 0.5).square().sum()
    return weight * (shares * (principal_points - 0.5).square().sum(1)).sum()


def focal_prior(
    log_focals: torch.Tensor, stated_log_focals: torch.Tensor, weight: float, shares: torch.Tensor
) -> torch.Tensor:
    """Keeps focal lengths near those that are stated.

        L = weight * sum_i w_i (log f_i - log g_i)^2

    stated_log_focals  (m,) log g, nan where none is stated; such focal lengths are free
    shares             (m,) w: the share of the views that have it
    """
    difference = torch.nan_to_num(log_focals - stated_log_focals, nan=0.0)
    return weight * (shares * difference.square()).sum()


def _weighted_mean(values: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """The weighted mean of values (M,); 0 of nothing."""
    return (weights * values).sum() / weights.sum().clamp_min(1e-30)


def _times(matrices: torch.Tensor, vectors: torch.Tensor) -> torch.Tensor:
    """(M, 3, 3), (M, 3) -> (M, 3)"""
    return (matrices @ vectors[:, :, None])[..., 0]
