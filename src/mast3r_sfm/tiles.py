"""The pairs in tiles: fixed parts that are predicted, kept and merged one by one (docs/state.md).

A tile is a block of the matrix of pairs, or several small ones: few images that are paired among each other. What it
leaves depends on its own pairs alone, so tiles may be missing, done elsewhere, or done again.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import reverse_cuthill_mckee

from mast3r_sfm.canonical import CanonicalAccumulator
from mast3r_sfm.types import Correspondences, FallbackPrediction, PairSummary

Pair = tuple[int, int]
Tile = tuple[Pair, ...]

_ON_CUDA = 512  # pairs of a tile; some seconds of a fast GPU
_ON_CPU = 32
_ON_CPU_OF_LARGE = 8  # networks, one pair of which takes seconds
_LARGE = 100_000_000  # parameters
_OVERFULL = 1.25  # times the pairs of a tile that it may have before it is cut


class ImageSums(NamedTuple):
    """The sums over an image's own pointmaps in a tile: of believed pairs, or for want of any of denied ones."""

    sums: CanonicalAccumulator
    believed: bool


@dataclass(frozen=True)
class TileResult:
    """What a tile leaves.

    summaries  one of every pair, in the tile's order
    matches    of the pairs that take part, in that order, in main memory
    fallback   as of `PairwiseData`
    sums       one of every image of the tile; not to be changed
    """

    summaries: tuple[PairSummary, ...]
    matches: tuple[Correspondences, ...]
    fallback: Mapping[Pair, FallbackPrediction]
    sums: Mapping[int, ImageSums]


def images_of(tile: Sequence[Pair]) -> list[int]:
    """The images of a tile, in the order of their first appearance."""
    return list(dict.fromkeys(index for pair in tile for index in pair))


def pairs_per_tile(device_type: str, num_parameters: int) -> int:
    """About how many pairs a tile should have, for a network of this size: some seconds' work, as a rule."""
    if device_type == "cuda":
        return _ON_CUDA
    return _ON_CPU if num_parameters < _LARGE else _ON_CPU_OF_LARGE


def plan_tiles(pairs: Sequence[Pair], target: int, kept: Sequence[Tile] = ()) -> list[Tile]:
    """Tiles of about `target` pairs that together hold every pair once, in the order in which they are merged.

    The same pairs give the same tiles. Up to `target` pairs are one tile, in the order given. In larger sets images are
    so ordered that pairs lie near the diagonal of their matrix: as they are, or by the reverse Cuthill-McKee algorithm
    where that leaves fewer images to a tile.

    kept  tiles of an earlier plan; those whose pairs are all asked for come first, the others are forgotten
    """
    wanted = set(pairs)
    tiles: list[Tile] = []
    for tile in kept:
        if wanted.issuperset(tile):
            tiles.append(tile)
            wanted.difference_update(tile)
    left = [pair for pair in pairs if pair in wanted]
    if len(left) <= target:
        return [*tiles, tuple(left)] if left else tiles
    count = 1 + max(max(pair) for pair in left)
    plans = [_cut(left, rank, target) for rank in (np.arange(count), _rank_near_diagonal(left, count))]
    return [*tiles, *min(plans, key=lambda plan: sum(len(images_of(tile)) for tile in plan))]


def _rank_near_diagonal(pairs: Sequence[Pair], count: int) -> np.ndarray:
    """(count,) places of the images in an order in which the images of a pair are near each other."""
    ends = np.array([*pairs, *(pair[::-1] for pair in pairs)])
    matrix = coo_array((np.ones(len(ends), bool), (ends[:, 0], ends[:, 1])), shape=(count, count)).tocsr()
    return np.argsort(reverse_cuthill_mckee(matrix, symmetric_mode=True))


def _cut(pairs: Sequence[Pair], rank: np.ndarray, target: int) -> list[Tile]:
    """Blocks of the matrix of pairs, row by row, as many to a tile as it takes."""
    side = max(1, round(math.sqrt(target / 2)))
    blocks: dict[Pair, list[int]] = {}
    for k, (i, j) in enumerate(pairs):
        a, b = sorted((int(rank[i]) // side, int(rank[j]) // side))
        blocks.setdefault((a, b), []).append(k)
    most = round(_OVERFULL * target)
    parts: list[list[int]] = [[]]
    for _, block in sorted(blocks.items()):
        if len(parts[-1]) + len(block) > most:
            parts.append([])
        parts[-1] += block
        while len(parts[-1]) > most:
            parts[-1:] = [parts[-1][:target], parts[-1][target:]]
    return [tuple(pairs[k] for k in sorted(part)) for part in parts if part]
