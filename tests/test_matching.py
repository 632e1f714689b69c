"""Reciprocal matching: small cases by hand, then the goldens, exactly."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from mast3r_sfm.errors import InputError, ReconstructionError
from mast3r_sfm.matching import match_pair
from mast3r_sfm.matching.maps import seed_grid
from mast3r_sfm.matching.nearest import nearest_neighbours
from mast3r_sfm.matching.pairs import _match_fused
from mast3r_sfm.matching.reciprocal import match_maps, merge_matches, reciprocal_matches
from mast3r_sfm.types import Correspondences, PairPrediction, ViewPrediction

DATA = Path(__file__).parent / "data"


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    with np.load(DATA / "matching.npz") as file:
        return dict(file)


def _map(golden: dict[str, np.ndarray], name: str) -> ViewPrediction:
    desc = torch.from_numpy(golden[f"d{name}"].astype(np.float32))
    conf = torch.from_numpy(golden[f"q{name}"])
    return ViewPrediction(torch.zeros(*desc.shape[:2], 3), torch.ones(desc.shape[:2]), desc, conf)


def _xy(flat: torch.Tensor, width: int = 128) -> np.ndarray:
    return torch.stack([flat % width, flat // width], -1).numpy()


def test_seeds_start_at_half_a_step() -> None:
    # 5 x 9 pixels, step 4: rows {2}, columns {2, 6}
    assert seed_grid(5, 9, 4).tolist() == [2 * 9 + 2, 2 * 9 + 6]
    assert seed_grid(2, 2, 8).tolist() == []


def test_nearest_neighbour_takes_the_lowest_index_of_ties() -> None:
    database = torch.zeros(1500, 2)
    database[[70, 700, 1400]] = torch.tensor([0.0, 1.0])
    assert nearest_neighbours(torch.tensor([[0.0, 1.0], [0.0, -1.0]]), database).tolist() == [70, 0]


@pytest.mark.parametrize("size", [1, 63, 64, 65, 511, 513, 5000])
def test_nearest_neighbour_equals_brute_force(size: int) -> None:
    generator = torch.Generator().manual_seed(size)
    queries = torch.randn(1100, 24, generator=generator)
    database = torch.randn(size, 24, generator=generator)
    assert torch.equal(nearest_neighbours(queries, database), (queries.double() @ database.double().T).argmax(1))


def test_seeds_slide_to_the_mutual_pair() -> None:
    # unit vectors by angle: A at 0, 10, 20 degrees, B at 18: every seed of A finds B0, which returns to A2
    a = torch.deg2rad(torch.tensor([0.0, 10.0, 20.0]))
    b = torch.deg2rad(torch.tensor([18.0]))
    unit = lambda angle: torch.stack([angle.cos(), angle.sin()], -1)  # noqa: E731
    p, q = reciprocal_matches(unit(a), unit(b), torch.arange(3))
    assert p.tolist() == [2] and q.tolist() == [0]


def test_merge_keeps_the_first_occurrence() -> None:
    p, q = torch.tensor([3, 1, 3]), torch.tensor([5, 9, 5])
    merged = merge_matches(p, q, 10, torch.tensor([0.1, 0.2, 0.3]))
    assert [m.tolist() for m in merged] == [[1, 3], [9, 5], pytest.approx([0.2, 0.1])]


def test_matches_are_mutual_nearest_neighbours(golden: dict[str, np.ndarray]) -> None:
    a, b = (_map(golden, name).desc for name in ("11", "22"))
    assert a is not None and b is not None
    p, q = match_maps(a, b)
    a, b = a.flatten(0, 1), b.flatten(0, 1)
    assert torch.equal((a[p] @ b.T).argmax(1), q)
    assert torch.equal((b[q] @ a.T).argmax(1), p)


@pytest.mark.parametrize(("first", "second", "key"), [("11", "21", "oneway"), ("21", "11", "oneway_rev")])
def test_golden_one_direction(golden: dict[str, np.ndarray], first: str, second: str, key: str) -> None:
    a, b = _map(golden, first).desc, _map(golden, second).desc
    assert a is not None and b is not None
    p, q = reciprocal_matches(a.flatten(0, 1), b.flatten(0, 1), seed_grid(96, 128, 8))
    np.testing.assert_array_equal(_xy(p), golden[f"{key}_xy1"])
    np.testing.assert_array_equal(_xy(q), golden[f"{key}_xy2"])


def test_golden_pair_of_maps(golden: dict[str, np.ndarray]) -> None:
    first, second = _map(golden, "11"), _map(golden, "21")
    assert first.desc is not None and second.desc is not None
    assert first.desc_conf is not None and second.desc_conf is not None
    p, q = match_maps(first.desc, second.desc)
    conf = torch.minimum(first.desc_conf.flatten()[p], second.desc_conf.flatten()[q])
    p, q, conf = merge_matches(p, q, 96 * 128, conf)
    np.testing.assert_array_equal(_xy(p), golden["pair_xy1"])
    np.testing.assert_array_equal(_xy(q), golden["pair_xy2"])
    np.testing.assert_allclose(conf.numpy(), golden["pair_conf_min"], rtol=1e-5)


@pytest.mark.parametrize(("subsample", "key"), [(8, "sym"), (4, "sym4")])
def test_golden_symmetric_pair(golden: dict[str, np.ndarray], subsample: int, key: str) -> None:
    maps = {name: _map(golden, name) for name in ("11", "21", "22", "12")}
    matches = match_pair(PairPrediction(0, 1, maps["11"], maps["21"], maps["22"], maps["12"]), subsample)
    np.testing.assert_array_equal(matches.xy_i.numpy(), golden[f"{key}_xy1"])
    np.testing.assert_array_equal(matches.xy_j.numpy(), golden[f"{key}_xy2"])
    np.testing.assert_allclose(matches.conf.numpy(), golden[f"{key}_conf"], rtol=1e-5)


def test_images_of_different_shapes() -> None:
    generator = torch.Generator().manual_seed(0)
    desc = torch.nn.functional.normalize(torch.randn(24, 40, 8, generator=generator), dim=-1)
    turned = desc.transpose(0, 1).contiguous()  # the same pixels, other layout
    ones = lambda d: ViewPrediction(torch.zeros(*d.shape[:2], 3), torch.ones(d.shape[:2]), d, torch.ones(d.shape[:2]))  # noqa: E731
    matches = match_pair(PairPrediction(0, 1, ones(desc), ones(turned), ones(turned), ones(desc)))
    assert len(matches) > 0
    np.testing.assert_array_equal(matches.xy_i.numpy(), matches.xy_j.numpy()[:, ::-1])


def test_too_small_for_seeds_gives_no_match() -> None:
    tiny = ViewPrediction(torch.zeros(4, 4, 3), torch.ones(4, 4), torch.ones(4, 4, 2), torch.ones(4, 4))
    matches = match_pair(PairPrediction(0, 1, tiny, tiny, tiny, tiny))
    assert len(matches) == 0 and matches.xy_i.shape == (0, 2)


def _bare(count: int) -> list[PairPrediction]:
    """Pairs (k, k + 1) without descriptors."""
    view = ViewPrediction(torch.zeros(16, 16, 3), torch.ones(16, 16))
    return [PairPrediction(k, k + 1, view, view, view, view) for k in range(count)]


def test_model_without_descriptors_is_refused() -> None:
    with pytest.raises(InputError, match="no descriptors"):
        match_pair(_bare(1)[0])


@pytest.mark.parametrize(("fits", "asked_for"), [(5, [5]), (2, [5, 2, 3, 1, 2]), (1, [5, 2, 1, 1, 3, 1, 2, 1, 1])])
def test_out_of_memory_matches_fewer_pairs_at_once(
    fits: int, asked_for: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []

    def tight(predictions: Sequence[PairPrediction], subsample: int) -> list[Correspondences]:
        assert subsample == 4
        sizes.append(len(predictions))
        if len(predictions) > fits:
            raise torch.cuda.OutOfMemoryError("stand-in")
        nowhere = torch.zeros(0, 2, dtype=torch.int32)
        return [Correspondences(pair.i, pair.j, nowhere, nowhere, torch.zeros(0)) for pair in predictions]

    monkeypatch.setitem(sys.modules, "mast3r_sfm.matching.reciprocal_cuda", SimpleNamespace(match_batch=tight))
    assert [(found.i, found.j) for found in _match_fused(_bare(5), 4)] == [(k, k + 1) for k in range(5)]
    assert sizes == asked_for


def test_out_of_memory_for_one_pair_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> None:
        raise torch.cuda.OutOfMemoryError("stand-in")

    monkeypatch.setitem(sys.modules, "mast3r_sfm.matching.reciprocal_cuda", SimpleNamespace(match_batch=never))
    with pytest.raises(ReconstructionError, match="`subsample`"):
        _match_fused(_bare(2), 8)
