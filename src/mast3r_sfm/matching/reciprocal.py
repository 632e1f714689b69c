"""Dense descriptors of a pair -> reciprocal nearest neighbours (docs/method.md, Reciprocal matching)."""

from __future__ import annotations

import torch

from mast3r_sfm.matching.maps import MAX_ITERATIONS, descriptors, flat_to_xy, passes, seed_grid
from mast3r_sfm.matching.nearest import nearest_neighbours
from mast3r_sfm.types import Correspondences, PairPrediction


def reciprocal_matches(
    desc_a: torch.Tensor, desc_b: torch.Tensor, seeds: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Follows nearest neighbours from A to B and back until they return (docs/method.md, Reciprocal matching).

    desc_a (NA, D), desc_b (NB, D) float32, one row per pixel; seeds (n,) int64 rows of A, sorted.
    Returns int64 (p, q) of equal length, rows of A and of B that are each other's nearest neighbours,
    unique, sorted by p, then q. Seeds still moving after 10 iterations are dropped.
    """
    p, q = seeds.clone(), torch.full_like(seeds, -1)
    active = torch.arange(len(seeds), device=seeds.device)
    for _ in range(MAX_ITERATIONS):
        if not len(active):
            break
        found_q = _nearest_of_unique(desc_a, p[active], desc_b)
        moving = found_q != q[active]
        q[active] = found_q
        active = active[moving]
        found_p = _nearest_of_unique(desc_b, q[active], desc_a)
        moving = found_p != p[active]
        p[active] = found_p
        active = active[moving]
    converged = torch.ones_like(p, dtype=torch.bool)
    converged[active] = False
    key = torch.unique(p[converged] * len(desc_b) + q[converged])
    return key // len(desc_b), key % len(desc_b)


def _nearest_of_unique(source: torch.Tensor, rows: torch.Tensor, database: torch.Tensor) -> torch.Tensor:
    """Nearest row of `database` for every row listed; seeds that have met are searched once."""
    unique, inverse = torch.unique(rows, return_inverse=True)
    return nearest_neighbours(source[unique], database)[inverse]


def match_maps(desc_a: torch.Tensor, desc_b: torch.Tensor, subsample: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    """Matches of two maps (HA, WA, D), (HB, WB, D), seeds in both: flat (p, q), forward ones first, not merged."""
    (ha, wa), (hb, wb) = desc_a.shape[:2], desc_b.shape[:2]
    a, b = desc_a.flatten(0, 1), desc_b.flatten(0, 1)
    p, q = reciprocal_matches(a, b, seed_grid(ha, wa, subsample, a.device))
    back_q, back_p = reciprocal_matches(b, a, seed_grid(hb, wb, subsample, a.device))
    return torch.cat([p, back_p]), torch.cat([q, back_q])


def merge_matches(p: torch.Tensor, q: torch.Tensor, size_b: int, *values: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Unique (p, q), sorted by p, then q, with the `values` of each pair's first occurrence."""
    key, order = torch.sort(p * size_b + q, stable=True)
    first = torch.ones_like(key, dtype=torch.bool)
    first[1:] = key[1:] != key[:-1]
    chosen = order[first]
    return tuple(value[chosen] for value in (p, q, *values))


def match_plain(prediction: PairPrediction, subsample: int) -> Correspondences:
    """`matching.match_pair` with plain torch functions, on any device."""
    parts: list[list[torch.Tensor]] = [[], [], [], []]
    for view_i, view_j in passes(prediction):
        (desc_i, conf_i), (desc_j, conf_j) = descriptors(view_i), descriptors(view_j)
        p, q = match_maps(desc_i, desc_j, subsample)
        for part, value in zip(parts, (p, q, conf_i.flatten()[p], conf_j.flatten()[q]), strict=True):
            part.append(value)
    (_, width_i), (height_j, width_j) = prediction.i_in_i.conf.shape, prediction.j_in_j.conf.shape
    p, q, *confs = (torch.cat(part) for part in parts)
    p, q, qi, qj = merge_matches(p, q, height_j * width_j, *confs)
    return Correspondences(prediction.i, prediction.j, flat_to_xy(p, width_i), flat_to_xy(q, width_j), (qi * qj).sqrt())
