"""Which matches of a pair enter the alignment: no more than a budget, evenly over the image, the surest first.

A pair of 512 x 384 pixels has 5,000 to 12,000 matches. The time and memory of the alignment are theirs, and beyond some
thousands they make the cameras no more exact.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from mast3r_sfm.types import Correspondences

CELL = 32
"""Side of the cells that take turns, pixels of the first view."""

_AT_ONCE = 1 << 22  # matches that are sorted together


def thin_matches(pairs: Sequence[Correspondences], budget: int, device: torch.device | str) -> list[Correspondences]:
    """Of each pair at most `budget` matches: the surest of every cell, then the second of every cell, and so on, until
    there are as many. Within the last round the surest are taken. Order is kept; all come back on `device`.
    """
    return [thinned for group in _groups(pairs) for thinned in _thinned(group, budget, device)]


def _thinned(pairs: Sequence[Correspondences], budget: int, device: torch.device | str) -> Iterator[Correspondences]:
    """`thin_matches` of pairs that go to the device together."""
    counts = torch.tensor([len(matches) for matches in pairs])
    columns = [torch.cat([getattr(matches, name) for matches in pairs]).to(device) for name in ("xy_i", "xy_j", "conf")]
    if bool((counts > budget).any()):
        kept = _kept(columns[0], columns[2], counts.to(device), budget).nonzero()[:, 0]
        columns = [column.index_select(0, kept) for column in columns]
    parts = [column.split(counts.clamp_max(budget).tolist()) for column in columns]
    for matches, xy_i, xy_j, conf in zip(pairs, *parts, strict=True):
        yield Correspondences(matches.i, matches.j, xy_i, xy_j, conf)


def _groups(pairs: Sequence[Correspondences]) -> Iterator[list[Correspondences]]:
    """Pairs in groups of about `_AT_ONCE` matches."""
    group: list[Correspondences] = []
    size = 0
    for matches in pairs:
        group.append(matches)
        size += len(matches)
        if size >= _AT_ONCE:
            yield group
            group, size = [], 0
    if group:
        yield group


def _kept(xy: torch.Tensor, conf: torch.Tensor, counts: torch.Tensor, budget: int) -> torch.Tensor:
    """(M,) bool: at most `budget` matches of each pair; `counts` are those of the pairs, which follow each other."""
    pair = torch.arange(len(counts), device=xy.device).repeat_interleave(counts)
    column, row = (xy // CELL).long().unbind(1)
    cell = (pair * (row.max() + 1) + row) * (column.max() + 1) + column
    surest_first = conf.argsort(descending=True, stable=True)
    order, place = _ordered(cell, surest_first)
    turn = torch.empty_like(cell)
    turn[order] = place
    order, _ = _ordered(pair * (turn.max() + 1) + turn, surest_first)
    first = (counts.cumsum(0) - counts)[pair[order]]
    kept = torch.empty(len(xy), dtype=torch.bool, device=xy.device)
    kept[order] = torch.arange(len(xy), device=xy.device) - first < budget
    return kept


def _ordered(key: torch.Tensor, order: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """`order` sorted by `key`, equal keys as they were, and the place of each among those of its key."""
    order = order[key[order].argsort(stable=True)]
    sorted_key = key[order]
    number = torch.arange(len(key), device=key.device)
    begins = torch.ones_like(sorted_key, dtype=torch.bool)
    begins[1:] = sorted_key[1:] != sorted_key[:-1]
    return order, number - torch.where(begins, number, 0).cummax(0).values
