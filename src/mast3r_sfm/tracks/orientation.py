"""Whether matches keep their order in the plane: a photo and its mirror image agree with one homography as well."""

from __future__ import annotations

import numpy as np
from scipy.spatial import Delaunay, QhullError

_ENOUGH = 100  # matches that tell


def upright_share(xy_i: np.ndarray, xy_j: np.ndarray) -> float:
    """Share of the triangles between neighbouring places (M, 2) of one photo that are not turned over in the other.

    Nearly all of right matches, because neighbours mostly lie on one surface, which is seen from its front in both
    photos; half of arbitrary ones; none of a mirror image. nan if there is no triangle.
    """
    chosen = np.linspace(0, max(0, len(xy_i) - 1), min(len(xy_i), _ENOUGH)).astype(int)
    first, index = np.unique(np.round(xy_i[chosen]), axis=0, return_index=True)
    second = xy_j[chosen][index]
    if len(first) < 3:
        return float("nan")
    try:
        corners = Delaunay(first).simplices
    except QhullError:  # all on one line
        return float("nan")
    return float((_doubled_areas(first[corners]) * _doubled_areas(second[corners]) > 0).mean())


def _doubled_areas(corners: np.ndarray) -> np.ndarray:
    """(T,) of triangles (T, 3, 2), negative for those that run the other way round."""
    a, b = corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
    return a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]
