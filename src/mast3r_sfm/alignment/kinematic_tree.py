"""Which view's pose is expressed relative to which: a spanning tree over well connected pairs.

See docs/method.md, Kinematic tree. Ties are decided by SciPy's own order of traversal, so its functions are used as
they are.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.cluster.hierarchy import linkage
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import breadth_first_order, minimum_spanning_tree
from scipy.spatial.distance import squareform


@dataclass(frozen=True)
class KinematicTree:
    """The root view, and the edges (parent, child) such that a parent comes before its children."""

    root: int
    edges: tuple[tuple[int, int], ...]

    def parents(self) -> np.ndarray:
        """(n,) int64: the parent of every view; -1 for the root."""
        parents = np.full(len(self.edges) + 1, -1)
        for parent, child in self.edges:
            parents[child] = parent
        return parents


def build_tree(scores: np.ndarray, num_anchors: np.ndarray, mode: str) -> KinematicTree:
    """Spanning tree of a connected graph.

    scores       (n, n) symmetric number of matches of every pair
    num_anchors  (n,) whole blocks of every view: the matches that a view can be expected to have
    mode         "mst", or "hclust-" and a SciPy linkage name
    """
    if len(scores) == 1:
        return KinematicTree(0, ())
    if mode == "mst":
        return span(scores)
    affinity = np.minimum(scores / (3 * np.minimum.outer(num_anchors, num_anchors)), 1).astype(np.float32)
    np.fill_diagonal(affinity, 1)
    return span(_cluster(affinity, mode.removeprefix("hclust-")))


def _cluster(affinity: np.ndarray, method: str) -> np.ndarray:
    """(n, n) 0/1 adjacency: one edge per merge of the hierarchical clustering, between representatives."""
    n = len(affinity)
    distance = np.where(affinity != 0, 1 - affinity, 2)
    merges = linkage(squareform(distance, checks=False), method=method)[:, :2].astype(int)
    affinity = affinity.copy()
    representatives = list(range(n))
    adjacency = np.eye(n)
    for first, second in merges:
        a, b = representatives[first], representatives[second]
        adjacency[a, b] = adjacency[b, a] = 1
        best = a if affinity[a].sum() > affinity[b].sum() else b
        representatives.append(best)
        affinity[best] = np.maximum(affinity[a], affinity[b])
    return adjacency


def span(weights: np.ndarray) -> KinematicTree:
    """Maximum spanning tree of a connected graph (n, n), rooted near the middle of its longest path."""
    n = len(weights)
    tree = minimum_spanning_tree(csr_matrix(-weights))

    def rank_from(start: int) -> tuple[np.ndarray, int]:
        order = breadth_first_order(tree, start, directed=False, return_predecessors=False)
        rank = np.zeros(n, dtype=int)
        rank[order] = np.arange(len(order))
        return rank, int(order[-1])

    _, far = rank_from(0)
    rank_b, other_end = rank_from(far)
    rank_c, _ = rank_from(other_end)
    root = int(np.argmax(np.minimum(rank_b, rank_c)))
    order, predecessors = breadth_first_order(tree, root, directed=False)
    edges = tuple((int(predecessors[view]), int(view)) for view in order[1:])
    assert len(edges) == n - 1, "the graph was checked to be connected"
    return KinematicTree(root, edges)
