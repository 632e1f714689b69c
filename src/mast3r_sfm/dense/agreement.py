"""What the neighbours of a view say of the depth of its pixels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from mast3r_sfm.dense.observations import Observed
from mast3r_sfm.dense.views import Atlas, DenseView, look

OWN_SIGMA = 0.02
"""Of a view's own log depth at the usual confidence."""

OTHER_SIGMA = 0.03
"""Of another view's; also the difference from which on that one counts less."""

FARTHEST = 0.12  # log depths further apart are two surfaces
LEAST_SLOPE, MOST_SLOPE = 0.3, 1.5  # how the difference changes with the own depth; 1 for surfaces seen head-on
STEP = 0.01  # of a log depth, to measure that
MOST_CONF = 20.0


@dataclass(frozen=True)
class Surfaces:
    """The depth of all views as it stands, and how far each pixel is believed.

    log_depth, belief  (N,) `Atlas.pack` of maps; the belief is the confidence over the usual one
    """

    atlas: Atlas
    log_depth: torch.Tensor
    belief: torch.Tensor

    @classmethod
    def of(cls, views: Sequence[DenseView], log_depths: Sequence[torch.Tensor]) -> Surfaces:
        conf = Atlas.pack([view.conf for view in views])
        usual = conf[conf > 0].median() if bool((conf > 0).any()) else conf.new_ones(())
        return cls(Atlas(views), Atlas.pack(log_depths), conf.clamp_max(MOST_CONF) / usual.clamp_min(1e-3))

    def moved(self, log_depths: Sequence[torch.Tensor]) -> Surfaces:
        """The same views with other depths."""
        return replace(self, log_depth=Atlas.pack(log_depths))


def opinions(views: Sequence[DenseView], i: int, surfaces: Surfaces) -> Observed:
    """What view i and its neighbours say of its log depth, together.

    The point of a pixel lies behind or in front of the surface that a neighbour sees there. One step of Newton's method
    moves it along its ray onto that surface. A neighbour that sees another surface (one that hides the point, or lies
    far behind it) says nothing.
    """
    atlas, others = surfaces.atlas, views[i].neighbours
    own, belief = atlas.map_of(surfaces.log_depth, i), atlas.map_of(surfaces.belief, i)
    own_weight = belief / OWN_SIGMA**2
    if not others:
        return Observed(own, own_weight)
    at = look(views, i, torch.stack([own, own + STEP]).exp())
    difference = at.depth.clamp_min(1e-6).log() - atlas.between(surfaces.log_depth, others, at)
    slope = (difference[:, 1] - difference[:, 0]) / STEP
    move = -difference[:, 0] / torch.where(slope > LEAST_SLOPE, slope, torch.inf)
    valid = atlas.inside(others, at).all(1) & (slope > LEAST_SLOPE) & (move.abs() < FARTHEST)
    weight = atlas.nearest(surfaces.belief, others, at.first()) * (slope.clamp(0, MOST_SLOPE) / OTHER_SIGMA) ** 2
    weight = torch.where(valid, weight / (1 + (move / OTHER_SIGMA) ** 2), 0.0)
    total = own_weight + weight.sum(0) + 1e-6
    return Observed(own + torch.where(valid, weight * move, 0.0).sum(0) / total, total)
