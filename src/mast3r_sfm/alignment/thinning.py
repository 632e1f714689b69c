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


def thin_matches(
    pairs: Sequence[Correspondences], budget: int | None, device: torch.device | str
) -> list[Correspondences]:
    """Of each pair at most `budget` matches: the surest of every cell, then the second of every cell, and so on, until
    there are as many. Within the last round the surest are taken. Order is kept; None: all.

    With a budget all come back on `device`.
    """
    if budget is None:
        return list(pairs)
    out = [
        matches
        if len(matches) > budget
        else Correspondences(matches.i, matches.j, *(t.to(device) for t in (matches.xy_i, matches.xy_j, matches.conf)))
        for matches in pairs
    ]
    for group in _groups(pairs, [p for p, matches in enumerate(pairs) if len(matches) > budget]):
        counts = torch.tensor([len(pairs[p]) for p in group])
        xy_i, xy_j, conf = (
            torch.cat([getattr(pairs[p], name) for p in group]).to(device) for name in ("xy_i", "xy_j", "conf")
        )
        kept = _kept(xy_i, conf, counts.to(device), budget).nonzero()[:, 0]
        parts = [tensor.index_select(0, kept).split(budget) for tensor in (xy_i, xy_j, conf)]
        for p, own_i, own_j, own_conf in zip(group, *parts, strict=True):
            out[p] = Correspondences(pairs[p].i, pairs[p].j, own_i, own_j, own_conf)
    return out


def _groups(pairs: Sequence[Correspondences], which: Sequence[int]) -> Iterator[list[int]]:
    """The numbers `which` of pairs in groups of about `_AT_ONCE` matches."""
    group: list[int] = []
    size = 0
    for p in which:
        group.append(p)
        size += len(pairs[p])
        if size >= _AT_ONCE:
            yield group
            group, size = [], 0
    if group:
        yield group


def _kept(xy: torch.Tensor, conf: torch.Tensor, counts: torch.Tensor, budget: int) -> torch.Tensor:
    """(M,) bool: `budget` matches of each pair; `counts` are the matches of the pairs, which follow each other."""
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
