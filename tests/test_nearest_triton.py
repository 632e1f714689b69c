"""The CUDA search and matching, run by Triton's interpreter on the CPU, against the plain ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest
import torch
import torch.nn.functional as F
from triton_interpreter import interpreted, outside, run_interpreted

from mast3r_sfm.matching.reciprocal import match_plain
from mast3r_sfm.types import PairPrediction, ViewPrediction

if TYPE_CHECKING:
    from mast3r_sfm.matching.nearest_triton import SeedList

pytest.importorskip("triton", reason="Triton comes with torch's CUDA builds")


@outside
def test_in_the_interpreter() -> None:
    run_interpreted(__file__)


def _random(height: int, width: int, depth: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(height, width, depth, generator=generator), dim=-1)


def _flat(height: int, width: int, depth: int, seed: int) -> torch.Tensor:
    """All pixels nearly alike: float16 products are in another order than float32 ones, and every tile competes."""
    generator = torch.Generator().manual_seed(seed)
    noise = 2e-3 * torch.randn(height, width, depth, generator=generator)
    return F.normalize(_random(1, 1, depth, 0) + noise, dim=-1)


def _search(
    maps: list[torch.Tensor], rows: torch.Tensor, lengths: list[int], queries: int = 16
) -> tuple[torch.Tensor, SeedList]:
    """Nearest pixels of `rows` (2, S), from map 0 in map 1 and from 1 in 0: found (2, S) and the list of moved."""
    from mast3r_sfm.matching import nearest_triton as search

    packed = search.pack_maps(maps, search.SearchTuning(tile=(4, 8), queries=queries, tiles_per_program=4))
    listed = search.SeedList(torch.arange(rows.shape[1]).repeat(2, 1).int(), torch.tensor(lengths).int())
    moved = search.SeedList(torch.zeros_like(listed.slot), torch.zeros_like(listed.length))
    source, database = torch.tensor([0, 1]).int(), torch.tensor([1, 0]).int()
    found = torch.full_like(rows, -1)
    workspace = search.make_workspace(packed, *rows.shape)
    search.nearest(packed, workspace, source, database, rows, listed, found, moved)
    return found, moved


@interpreted
@pytest.mark.parametrize("depth", [6, 24, 32, 100])
@pytest.mark.parametrize("make", [_random, _flat])
def test_search_equals_brute_force(make: Callable[[int, int, int, int], torch.Tensor], depth: int) -> None:
    maps = [make(11, 17, depth, depth), make(20, 13, depth, depth + 1)]
    generator = torch.Generator().manual_seed(3)
    rows = torch.stack([torch.randint(11 * 17, (12,), generator=generator) for _ in maps]).int()
    found, moved = _search(maps, rows, [12, 5])
    flat = [m.flatten(0, 1).double() for m in maps]
    for job, length in enumerate([12, 5]):
        product = flat[job][rows[job, :length].long()] @ flat[1 - job].T
        attained = product.gather(1, found[job, :length, None].long())[:, 0]
        # the exact maximum, but for products that float32 sums cannot tell apart
        assert (product.amax(1) - attained).max() < 2e-7
        assert (product.argmax(1) == found[job, :length]).float().mean() >= 0.9
        assert sorted(moved.slot[job, :length].tolist()) == list(range(length))
    assert moved.length.tolist() == [12, 5]
    assert (found[1, 5:] == -1).all()


@interpreted
def test_lowest_pixel_wins_ties_although_tiles_come_in_another_order() -> None:
    # tiles of 4 x 8: pixel (0, 9) is in the second tile, (1, 0) in the first, yet (0, 9) is the lower of the two
    database = torch.zeros(5, 12, 16)
    database[..., 1] = 1.0
    database[0, 9] = database[1, 0] = torch.eye(16)[0]
    found, _ = _search([torch.eye(16)[:2].reshape(1, 2, 16), database], torch.tensor([[0, 1], [0, 0]]).int(), [2, 0])
    assert found.tolist() == [[9, 0], [-1, -1]]


@interpreted
def test_a_seed_that_finds_the_same_pixel_is_not_listed_again() -> None:
    from mast3r_sfm.matching import nearest_triton as search

    maps = [_random(6, 9, 24, 0), _random(7, 5, 24, 1)]
    rows = torch.arange(8).repeat(2, 1).int()
    found, _ = _search(maps, rows, [8, 8])
    packed = search.pack_maps(maps, search.SearchTuning(tile=(4, 8), queries=16, tiles_per_program=4))
    there = found.clone()
    there[0, 3] = -1
    listed = search.SeedList(rows.clone(), torch.tensor([8, 0]).int())
    moved = search.SeedList(torch.zeros_like(rows), torch.zeros(2, dtype=torch.int32))
    source, database = torch.tensor([0, 1]).int(), torch.tensor([1, 0]).int()
    search.nearest(packed, search.make_workspace(packed, 2, 8), source, database, rows, listed, there, moved)
    assert torch.equal(there, found)
    assert moved.length.tolist() == [1, 0] and moved.slot[0, 0] == 3


@interpreted
def test_views_of_a_batch_are_searched_where_they_lie() -> None:
    from mast3r_sfm.matching import nearest_triton as search

    batch = torch.stack([_random(5, 7, 24, seed) for seed in range(3)])
    assert [m.data_ptr() for m in search.pack_maps(list(batch)).exact] == [m.data_ptr() for m in batch]
    odd = torch.empty(5 * 7 * 24 + 1)[1:].view(5, 7, 24).copy_(batch[0])  # not aligned to 16 bytes
    turned = batch[1].transpose(0, 1)
    packed = search.pack_maps([odd, turned])
    assert all(m.data_ptr() % 16 == 0 and m.is_contiguous() for m in packed.exact)
    assert torch.equal(packed.exact[0], batch[0]) and torch.equal(packed.exact[1], turned)


def _pair(i: int, j: int, maps: list[torch.Tensor]) -> PairPrediction:
    def view(desc: torch.Tensor) -> ViewPrediction:
        conf = desc[..., 0].abs() + 1
        return ViewPrediction(torch.zeros(*desc.shape[:2], 3), torch.ones(desc.shape[:2]), desc, conf)

    return PairPrediction(i, j, *(view(m) for m in maps))


@interpreted
@pytest.mark.parametrize(
    ("shape_i", "shape_j", "count"),
    [((16, 16), (16, 16), 2), ((13, 22), (21, 15), 1), ((16, 16), (4, 16), 1), ((4, 4), (4, 4), 1)],
)
def test_batch_of_pairs_equals_the_plain_matching(
    shape_i: tuple[int, int], shape_j: tuple[int, int], count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mast3r_sfm.matching import nearest_triton as search
    from mast3r_sfm.matching.reciprocal_cuda import match_batch

    monkeypatch.setattr(search, "TUNING", search.SearchTuning(queries=16, tiles_per_program=8))
    pairs = []
    for number in range(count):
        maps = [_random(*shape, 24, 10 * number + k) for k, shape in enumerate((shape_i, shape_j, shape_j, shape_i))]
        pairs.append(_pair(0, number + 1, maps))
    fast = match_batch(pairs, 8)
    for found, pair in zip(fast, pairs, strict=True):
        plain = match_plain(pair, 8)
        assert torch.equal(found.xy_i, plain.xy_i) and torch.equal(found.xy_j, plain.xy_j)
        torch.testing.assert_close(found.conf, plain.conf)
        assert (found.i, found.j) == (pair.i, pair.j)
    assert (len(fast[0]) > 0) == (min(*shape_i) > 4)
