"""Graphs of images that pairs connect, and groups of images by number."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence

import numpy as np
from scipy.sparse import coo_matrix, csgraph


def connected_components(num_images: int, pairs: Iterable[tuple[int, int]]) -> list[list[int]]:
    """The groups of images that pairs connect, each ascending; the largest first, equal ones by their first image."""
    edges = np.array(list(pairs), dtype=np.int64).reshape(-1, 2)
    adjacency = coo_matrix((np.ones(len(edges)), edges.T), shape=(num_images, num_images))
    count, label = csgraph.connected_components(adjacency, directed=False)
    groups = [np.flatnonzero(label == k).tolist() for k in range(count)]
    return sorted(groups, key=lambda group: (-len(group), group[0]))


def number_by_first(keys: Sequence[Hashable]) -> tuple[int, ...]:
    """A number for every key, equal for equal ones, counted from 0 by first appearance."""
    numbers: dict[Hashable, int] = {}
    return tuple(numbers.setdefault(key, len(numbers)) for key in keys)
