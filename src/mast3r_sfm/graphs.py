"""Graphs of images that pairs connect."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from scipy.sparse import coo_matrix, csgraph


def connected_components(num_images: int, pairs: Iterable[tuple[int, int]]) -> list[list[int]]:
    """The groups of images that pairs connect, each ascending; the largest first, equal ones by their first image."""
    edges = np.array(list(pairs), dtype=np.int64).reshape(-1, 2)
    adjacency = coo_matrix((np.ones(len(edges)), edges.T), shape=(num_images, num_images))
    count, label = csgraph.connected_components(adjacency, directed=False)
    groups = [np.flatnonzero(label == k).tolist() for k in range(count)]
    return sorted(groups, key=lambda group: (-len(group), group[0]))
