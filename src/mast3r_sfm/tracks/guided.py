"""Matches of local features, looked for only where the geometry predicts them.

A radius around the predicted place leaves a dozen candidates instead of thousands, so that weak texture and repeated
patterns still match rightly, and the search costs little.
"""

from __future__ import annotations

import numpy as np
from scipy.spatial import cKDTree

from mast3r_sfm.tracks.features import LocalFeatures

_CANDIDATES = 12
_MAX_ANGLE = 0.7  # of two descriptors, radians
_RATIO = 0.85  # of that angle to the angle of the next candidate that lies elsewhere
_ELSEWHERE_PX = 5.0


def match_guided(
    first: LocalFeatures,
    second: LocalFeatures,
    tree_first: cKDTree,
    tree_second: cKDTree,
    in_second: np.ndarray,
    in_first: np.ndarray,
    radius_px: float,
) -> np.ndarray:
    """(M, 2) int64 indices of features that are each other's best match within the radius, ascending.

    tree_*     of the features' places
    in_second  (N1, 2) predicted place in the second photo of every feature of the first, nan where unknown; pixels
    in_first   (N2, 2) likewise
    """
    forth = _best(first, second, tree_second, in_second, radius_px)
    back = _best(second, first, tree_first, in_first, radius_px)
    own = np.flatnonzero(forth >= 0)
    mutual = own[back[forth[own]] == own]
    return np.stack([mutual, forth[mutual]], axis=1)


def _best(
    source: LocalFeatures, target: LocalFeatures, tree: cKDTree, predicted: np.ndarray, radius_px: float
) -> np.ndarray:
    """(N,) index of the best feature of the target for every one of the source, -1 without a distinctive one."""
    best = np.full(len(source), -1)
    known = np.flatnonzero(np.isfinite(predicted).all(1))
    if not len(known) or not len(target):
        return best
    count = min(_CANDIDATES, len(target))
    distance, candidate = tree.query(predicted[known], k=[*range(1, count + 1)], distance_upper_bound=radius_px)
    nearest = max(1, int(np.isfinite(distance).any(0).sum()))  # the radius seldom holds all that there is room for
    found, candidate = np.isfinite(distance[:, :nearest]), candidate[:, :nearest]
    candidate = np.where(found, candidate, 0)
    cosine = np.einsum("nd,nkd->nk", source.descriptors[known], target.descriptors[candidate])
    angle = np.where(found, np.arccos(np.clip(cosine, -1, 1)), np.inf)
    winner = angle.argmin(1)
    rows = np.arange(len(known))
    place = target.xy[candidate]
    elsewhere = np.linalg.norm(place - place[rows, winner][:, None], axis=2) > _ELSEWHERE_PX
    rival = np.where(elsewhere, angle, np.inf).min(1)
    good = (angle[rows, winner] < _MAX_ANGLE) & (angle[rows, winner] < _RATIO * rival)
    best[known[good]] = candidate[rows, winner][good]
    return best
