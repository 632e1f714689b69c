"""Exact nearest neighbour by dot product, without ever holding the full product."""

from __future__ import annotations

import torch

from mast3r_sfm.cpu import linear

_QUERIES = 1024  # a tile of the product, 2 MB in float32, stays in a core's cache
_DATABASE = 512
_BLOCK = 256  # the product is reduced to one maximum per block; only the winning block is looked into


def nearest_neighbours(queries: torch.Tensor, database: torch.Tensor) -> torch.Tensor:
    """Index of the row of `database` (N, D) with the largest dot product, for each of `queries` (m, D).

    float32 products; the lowest index wins ties. Returns (m,) int64. A maximum without its index is
    several times cheaper to reduce than one with it, so the search finds the best block of rows first.
    """
    found = torch.empty(len(queries), dtype=torch.int64, device=queries.device)
    for start in range(0, len(queries), _QUERIES):
        some = queries[start : start + _QUERIES]
        block = _best_block(some, database)
        found[start : start + _QUERIES] = _best_in_block(some, database, block)
    return found


def _best_block(queries: torch.Tensor, database: torch.Tensor) -> torch.Tensor:
    """(m,) index of the first block of the database that holds each query's largest product."""
    m, total = len(queries), len(database)
    maxima = queries.new_empty(m, -(-total // _BLOCK))
    for start in range(0, total, _DATABASE):
        rows = database[start : start + _DATABASE]
        product = linear(queries, rows)
        for offset in range(0, len(rows), _BLOCK):
            torch.amax(product[:, offset : offset + _BLOCK], 1, out=maxima[:, (start + offset) // _BLOCK])
    return maxima.argmax(1)  # argmax returns the first of equal maxima


def _best_in_block(queries: torch.Tensor, database: torch.Tensor, block: torch.Tensor) -> torch.Tensor:
    rows = block[:, None] * _BLOCK + torch.arange(_BLOCK, device=block.device)
    inside = rows < len(database)
    product = torch.bmm(database[rows.clamp(max=len(database) - 1)], queries[:, :, None])[:, :, 0]
    return rows[:, 0] + product.masked_fill(~inside, -torch.inf).argmax(1)
