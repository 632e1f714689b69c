"""Cuts through a scene: two sets of its photos that agree little with each other, or that a single pair holds together.

Two rooms with the same furniture connect as if they were one, and every photo agrees with those of its own room. What
tells them apart is that pairs across agree less, for what they should share, than pairs within.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.sparse import coo_matrix, csr_matrix
from scipy.sparse.csgraph import depth_first_order, minimum_spanning_tree

from mast3r_sfm.verdict.evidence import PARTNER_MATCHES, PairEvidence


@dataclass(frozen=True)
class Cut:
    """Two sets of views, of at least two each, that hang together by one link of the tree of the best confirmed pairs.

    side    indices of the smaller set
    across  (number of pairs,) bool: one view is of this set, the other is not
    """

    side: tuple[int, ...]
    across: np.ndarray


@dataclass(frozen=True)
class Rift:
    """side are the indices of the smaller of the two sets, likeness that of pairs across over that of pairs within.

    The likeness of several pairs is the sum of their confirmed shares over the sum of their covisible shares.
    """

    side: tuple[int, ...]
    likeness: float


def cuts_of(pairs: Sequence[PairEvidence]) -> list[Cut]:
    """Every cut that takes one link out of the tree of the best confirmed pairs; those that leave one view are not."""
    views, places = np.unique([(p.i, p.j) for p in pairs], return_inverse=True)
    places = places.reshape(-1, 2)
    took_part = [k for k, p in enumerate(pairs) if p.num_matches]
    if not took_part:
        return []
    weights = [2.0 - float(np.nan_to_num(pairs[k].confirmed)) for k in took_part]  # none is 0, which would be no link
    first, second = places[took_part].T
    tree = minimum_spanning_tree(coo_matrix((weights, (first, second)), shape=(len(views),) * 2))
    cuts = []
    for side in _branches(tree):
        smaller = side if 2 * side.sum() <= len(side) else ~side
        if smaller.sum() >= 2:
            cuts.append(Cut(tuple(views[smaller].tolist()), smaller[places[:, 0]] != smaller[places[:, 1]]))
    return cuts


def _branches(tree: csr_matrix) -> Iterator[np.ndarray]:
    """For every link of a forest of n nodes: (n,) bool, what hangs on its end away from the root."""
    num_nodes = tree.shape[0]
    reached = np.zeros(num_nodes, dtype=bool)
    for root in range(num_nodes):
        if reached[root]:
            continue
        order, parent = depth_first_order(tree, root, directed=False)
        reached[order] = True
        sizes = np.ones(num_nodes, dtype=int)
        for place in range(len(order) - 1, 0, -1):  # a branch stands in one piece in this order, its first node ahead
            sizes[parent[order[place]]] += sizes[order[place]]
        for place in range(1, len(order)):
            branch = np.zeros(num_nodes, dtype=bool)
            branch[order[place : place + sizes[order[place]]]] = True
            yield branch


def find_rift(
    pairs: Sequence[PairEvidence],
    cuts: Sequence[Cut],
    min_covisible: float,
    max_apart_deg: float,
    coverage: float,
    sure_features: int,
) -> Rift | None:
    """The cut whose pairs across are the least like; None if no cut can be judged.

    min_covisible, max_apart_deg  pairs that share fewer of their pixels, or look further apart, say nothing
    coverage                      sum of the covisible shares of the pairs across that a cut needs to be judged
    sure_features                 a pair across with as many matches of features proves that there is no rift
    """
    telling = np.array(
        [p.covisible >= min_covisible and p.apart_deg <= max_apart_deg and np.isfinite(p.confirmed) for p in pairs],
        dtype=bool,
    )
    confirmed, covisible = (np.array([getattr(p, name) for p in pairs]) for name in ("confirmed", "covisible"))
    sure = np.array([p.num_features >= sure_features for p in pairs], dtype=bool)
    rifts = []
    for cut in cuts:
        across, within = telling & cut.across, telling & ~cut.across
        if (sure & cut.across).any() or covisible[across].sum() < coverage or not confirmed[within].sum() > 0:
            continue
        inside = confirmed[within].sum() / covisible[within].sum()
        rifts.append(Rift(cut.side, float(confirmed[across].sum() / covisible[across].sum() / inside)))
    return min(rifts, key=lambda rift: rift.likeness, default=None)


def find_bridge(pairs: Sequence[PairEvidence], cuts: Sequence[Cut], least_looked_at: int) -> Cut | None:
    """A cut with at most one pair of `PARTNER_MATCHES` explained matches across, of `least_looked_at` pairs or more.

    Of several the one that leaves most photos on its smaller side.
    """
    partners = np.array([p.num_explained >= PARTNER_MATCHES for p in pairs], dtype=bool)
    found = [c for c in cuts if (partners & c.across).sum() <= 1 and c.across.sum() >= least_looked_at]
    return max(found, key=lambda cut: len(cut.side), default=None)
