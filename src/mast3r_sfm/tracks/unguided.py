"""Matches of local features without any idea of the geometry: what two photos share by the looks of it alone.

They say whether photos connect where the network denies it, and whether cameras that came from elsewhere are right.
"""

from __future__ import annotations

import numpy as np
import torch

from mast3r_sfm.tracks.features import LocalFeatures

_MAX_ANGLE = 0.8  # of two descriptors, radians
_RATIO = 0.85  # of that angle to the angle of the next candidate


def match_everywhere(first: LocalFeatures, second: LocalFeatures, max_features: int) -> np.ndarray:
    """(M, 2) int64 indices of features that are each other's best match by far, ascending.

    max_features  of each photo take part, the strongest; the time grows with their square
    """
    if not len(first) or not len(second):
        return np.zeros((0, 2), dtype=np.int64)
    own, other = first.strongest(max_features), second.strongest(max_features)
    cosine = torch.from_numpy(first.descriptors[own]) @ torch.from_numpy(second.descriptors[other]).T
    forth, back = _best(cosine), _best(cosine.T.contiguous())
    mutual = np.flatnonzero(forth >= 0)
    mutual = mutual[back[forth[mutual]] == mutual]
    return np.stack([own[mutual], other[forth[mutual]]], axis=1)


def _best(cosine: torch.Tensor) -> np.ndarray:
    """(N,) column of the distinctive best of every row of (N, M), -1 without one. Changes `cosine`."""
    best, column = cosine.max(1)
    cosine.scatter_(1, column[:, None], -1.0)
    angle, next_angle = (value.clamp(-1, 1).arccos() for value in (best, cosine.amax(1)))
    cosine.scatter_(1, column[:, None], best[:, None])
    return torch.where((angle < _MAX_ANGLE) & (angle < _RATIO * next_angle), column, -1).numpy()
