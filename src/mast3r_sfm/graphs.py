"""Graphs of images that pairs connect, and groups of images by number."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Sequence

import numpy as np
from scipy.sparse import coo_matrix, csgraph


def connected_components(num_images: int, pairs: Iterable[tuple[int, int]]) -> list[list[int]]:
    """The groups of images that pairs connect, each ascending; the largest first, equal ones by their first image."""
    label = component_labels(num_images, np.array(list(pairs), dtype=np.int64).reshape(-1, 2))
    groups = [np.flatnonzero(label == k).tolist() for k in range(label.max(initial=-1) + 1)]
    return sorted(groups, key=lambda group: (-len(group), group[0]))


def component_labels(num_nodes: int, edges: np.ndarray) -> np.ndarray:
    """(num_nodes,) number, from 0, of the connected component of every node; edges (E, 2) of nodes."""
    adjacency = coo_matrix((np.ones(len(edges), dtype=bool), edges.T), shape=(num_nodes, num_nodes))
    return np.asarray(csgraph.connected_components(adjacency, directed=False)[1])


def strongest_neighbours(num_nodes: int, edges: Iterable[tuple[int, int, int]], most: int) -> list[list[int]]:
    """For every node the `most` others with the largest weight, those first; of equal ones, the lower numbers.

    edges  (a, b, weight), counted for both; the weights of one pair add up
    """
    weights: list[Counter[int]] = [Counter() for _ in range(num_nodes)]
    for a, b, weight in edges:
        weights[a][b] += weight
        weights[b][a] += weight
    return [sorted(own, key=lambda k: (-own[k], k))[:most] for own in weights]


def number_by_first(keys: Sequence[Hashable]) -> tuple[int, ...]:
    """A number for every key, equal for equal ones, counted from 0 by first appearance."""
    numbers: dict[Hashable, int] = {}
    return tuple(numbers.setdefault(key, len(numbers)) for key in keys)
