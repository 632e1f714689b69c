"""Which matches enter the alignment, where a pair has more than its budget."""

import dataclasses

import numpy as np
import pytest
import torch
from test_alignment import hilly_scene

from mast3r_sfm.alignment import AlignmentConfig, build_problem, thinning
from mast3r_sfm.alignment.thinning import CELL, thin_matches
from mast3r_sfm.errors import InputError
from mast3r_sfm.types import Correspondences


def matches_of(i: int, xy: list[tuple[int, int]], conf: list[float]) -> Correspondences:
    pixels = torch.tensor(xy, dtype=torch.int32)
    return Correspondences(i, i + 1, pixels, pixels + i, torch.tensor(conf))


def test_cells_take_turns_and_each_gives_its_surest_first() -> None:
    # cells of 32 pixels: the first three matches are of one cell, then come two of the next, one below
    xy = [(0, 0), (31, 0), (5, 31), (32, 0), (63, 31), (0, 32)]
    conf = [1.0, 3.0, 2.0, 4.0, 5.0, 0.5]
    kept = {budget: thin_matches([matches_of(0, xy, conf)], budget, "cpu")[0].conf.tolist() for budget in range(1, 8)}
    assert kept[1] == [5.0]  # the surest of the surest
    assert kept[2] == [3.0, 5.0]
    assert kept[3] == [3.0, 5.0, 0.5]  # one of every cell, in the order of the pixels
    assert kept[4] == [3.0, 4.0, 5.0, 0.5]  # seconds: 4 before 2
    assert kept[5] == [3.0, 2.0, 4.0, 5.0, 0.5]
    assert kept[6] == kept[7] == conf


@pytest.mark.parametrize("at_once", [1 << 22, 1000, 1])
def test_pairs_are_thinned_each_by_itself_and_evenly(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(thinning, "_AT_ONCE", at_once)
    rng = np.random.default_rng(0)
    pairs = []
    for k, count in enumerate((900, 40, 2500, 300)):
        xy = rng.integers(0, (256, 192), (count, 2))
        xy[: count // 2] //= 4  # half of them in a corner
        pairs.append(matches_of(k, xy.tolist(), rng.random(count).tolist()))
    pairs[2] = dataclasses.replace(pairs[2], conf=torch.ones(2500))  # ties are no matter
    thinned = thin_matches(pairs, 300, "cpu")
    assert [len(matches) for matches in thinned] == [300, 40, 300, 300]
    for before, after in zip(pairs, thinned, strict=True):
        assert (after.i, after.j) == (before.i, before.j)
        rows = {tuple(row) for row in torch.cat([before.xy_i, before.xy_j], 1).tolist()}
        assert all(tuple(row) in rows for row in torch.cat([after.xy_i, after.xy_j], 1).tolist())
        cells = [torch.unique((one.xy_i // CELL), dim=0, return_counts=True) for one in (before, after)]
        assert torch.equal(cells[0][0], cells[1][0])  # no cell is left without a match
        # a cell that gave fewer than another by more than one has nothing left to give
        given, most = cells[1][1], int(cells[1][1].max())
        assert bool(((given >= most - 1) | (given == cells[0][1])).all())
    again = thin_matches(pairs, 300, "cpu")
    alone = [thin_matches([one], 300, "cpu")[0] for one in pairs]
    for one, two, three in zip(thinned, again, alone, strict=True):
        assert torch.equal(one.xy_i, two.xy_i) and torch.equal(one.conf, three.conf)


def test_the_budget_acts_on_the_problem_only() -> None:
    views, matches = hilly_scene(3)
    full = build_problem(views, matches, {}, AlignmentConfig(matches_per_pair=None))
    thin = build_problem(views, matches, {}, AlignmentConfig(matches_per_pair=100))
    assert min(len(m) for m in matches) > 100
    assert int((thin.matches.weight > 0).sum()) == 300
    assert int((full.matches.weight > 0).sum()) == sum(map(len, matches))
    assert np.array_equal(thin.scores, full.scores) and thin.tree == full.tree
    assert AlignmentConfig.published().matches_per_pair is None
    with pytest.raises(InputError, match="matches_per_pair"):
        AlignmentConfig(matches_per_pair=0)
