"""Tiles hold every pair once, are the same for the same pairs, and touch few images."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from mast3r_sfm.scene_graph import make_pairs
from mast3r_sfm.tiles import images_of, pairs_per_tile, plan_tiles

Pair = tuple[int, int]


def neighbours(num_images: int, num_nearest: int) -> list[Pair]:
    """Pairs of the nearest of random places, whose numbers say nothing of where they are."""
    places = np.random.default_rng(0).uniform(size=(num_images, 2))
    distance = np.linalg.norm(places[:, None] - places[None], axis=-1)
    nearest = np.argsort(distance, axis=1)[:, 1 : num_nearest + 1]
    return sorted({(min(i, int(j)), max(i, int(j))) for i in range(num_images) for j in nearest[i]})


def test_a_small_set_is_one_tile_in_its_own_order() -> None:
    pairs = [(2, 0), (1, 0), (3, 1), (2, 3)]
    assert plan_tiles(pairs, 4) == [tuple(pairs)]
    assert images_of(pairs) == [2, 0, 1, 3]


@pytest.mark.parametrize("pairs", [make_pairs("complete", 40), make_pairs("logwin-5", 200), neighbours(300, 6)])
@pytest.mark.parametrize("target", [8, 32, 512])
def test_tiles_hold_every_pair_once(pairs: list[Pair], target: int) -> None:
    tiles = plan_tiles(pairs, target)
    assert sorted(pair for tile in tiles for pair in tile) == sorted(pairs)
    assert max(map(len, tiles)) <= 1.25 * target
    assert len(tiles) <= 2 * len(pairs) / target + 1
    assert plan_tiles(pairs, target) == tiles


def test_tiles_of_a_graph_without_order_touch_few_images() -> None:
    """In the order of the pairs, images would be in 3.8 tiles each."""
    pairs = neighbours(1000, 8)
    tiles = plan_tiles(pairs, 512)
    in_order = [pairs[start : start + 512] for start in range(0, len(pairs), 512)]
    assert sum(len(images_of(tile)) for tile in in_order) > 3700
    assert sum(len(images_of(tile)) for tile in tiles) < 1800


def test_tiles_of_a_complete_graph_are_blocks() -> None:
    """A tile of 8 x 8 pairs and more touches some 20 images, not all 64."""
    tiles = plan_tiles(list(combinations(range(64), 2)), 128)
    assert np.mean([len(images_of(tile)) for tile in tiles]) < 33


def test_tiles_of_an_earlier_plan_stay_where_all_their_pairs_are_wanted() -> None:
    old = plan_tiles(list(combinations(range(8), 2)), 6)
    pairs = [pair for pair in combinations(range(10), 2) if pair != old[1][0]]
    new = plan_tiles(pairs, 6, kept=old)
    assert new[: len(old) - 1] == [old[0], *old[2:]]
    assert sorted(pair for tile in new for pair in tile) == sorted(pairs)


def test_a_tile_is_larger_where_pairs_are_fast() -> None:
    assert pairs_per_tile("cuda", 700_000_000) > pairs_per_tile("cpu", 20_000_000) > pairs_per_tile("cpu", 700_000_000)
