"""The cut that divides the photos of a scene into two sets that agree least with each other.

Two rooms with the same furniture connect as if they were one, and every photo agrees with those of its own room. What
tells them apart is that pairs across agree less, for what they should share, than pairs within.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components, minimum_spanning_tree

from mast3r_sfm.verdict.evidence import PairEvidence


@dataclass(frozen=True)
class Rift:
    """side are the indices of the smaller of the two sets, likeness that of pairs across over that of pairs within.

    The likeness of several pairs is the sum of their confirmed shares over the sum of their covisible shares.
    """

    side: tuple[int, ...]
    likeness: float


def find_rift(
    pairs: Sequence[PairEvidence], min_covisible: float, max_apart_deg: float, least: float, sure_features: int
) -> Rift | None:
    """The least like of the cuts that take one link out of the tree of the best confirmed pairs; None without any.

    min_covisible, max_apart_deg  pairs that share fewer of their pixels, or look further apart, say nothing
    least                         sum of the covisible shares of the pairs across that a cut needs to be judged
    sure_features                 a pair across with as many matches of features proves that a cut is none
    """
    views, places = np.unique([(p.i, p.j) for p in pairs], return_inverse=True)
    places = places.reshape(-1, 2)
    telling = np.array(
        [p.covisible >= min_covisible and p.apart_deg <= max_apart_deg and np.isfinite(p.confirmed) for p in pairs],
        dtype=bool,
    )
    confirmed, covisible = (np.array([getattr(p, name) for p in pairs])[telling] for name in ("confirmed", "covisible"))
    sure = np.array([p.num_features >= sure_features for p in pairs], dtype=bool)
    found: Rift | None = None
    for second in _sides(pairs, places, len(views)):
        across = second[places[:, 0]] != second[places[:, 1]]
        out = across[telling]
        if min(second.sum(), (~second).sum()) < 2 or (across & sure).any() or not (~out).any() or covisible[out].sum() < least:
            continue
        within = confirmed[~out].sum() / covisible[~out].sum()
        likeness = float(confirmed[out].sum() / covisible[out].sum() / within) if within > 0 else np.inf
        if found is None or likeness < found.likeness:
            smaller = second if 2 * second.sum() <= len(second) else ~second
            found = Rift(tuple(views[smaller].tolist()), likeness)
    return found


def _sides(pairs: Sequence[PairEvidence], places: np.ndarray, num_views: int) -> list[np.ndarray]:
    """For every link of the tree of the best confirmed pairs: (num_views,) bool, what hangs on one end of it."""
    took_part = [k for k, p in enumerate(pairs) if p.num_matches]
    weights = [2.0 - float(np.nan_to_num(pairs[k].confirmed)) for k in took_part]
    first, second = places[took_part].T if took_part else np.zeros((2, 0), dtype=int)
    tree = minimum_spanning_tree(coo_matrix((weights, (first, second)), shape=(num_views, num_views))).tocoo()
    sides = []
    for link in range(tree.nnz):
        rest = np.arange(tree.nnz) != link
        left = coo_matrix((tree.data[rest], (tree.row[rest], tree.col[rest])), shape=tree.shape)
        part = connected_components(left, directed=False)[1]
        sides.append(part == part[tree.row[link]])
    return sides
