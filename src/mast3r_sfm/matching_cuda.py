"""Reciprocal matching of a batch of pairs on a CUDA device: the results of `matching`, without waiting for the host.

Every seed of every pair, pass and direction takes all 10 iterations, masked; those that have converged
are sorted behind the others and cost nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from mast3r_sfm.matching import MAX_ITERATIONS, descriptors, flat_to_xy, passes, seed_grid
from mast3r_sfm.nearest_triton import DescriptorMaps, nearest, pack_maps
from mast3r_sfm.types import Correspondences, PairPrediction

_MAPS = 4  # of a pair: i and j, in two passes
_DIRECTIONS = ((0, 1), (1, 0), (2, 3), (3, 2))  # (source, database) maps in the order in which candidates win


def match_batch(predictions: Sequence[PairPrediction], subsample: int) -> list[Correspondences]:
    """Matches of pairs whose first views share one shape, and their second views too."""
    count = len(predictions)
    (height_i, width_i), (height_j, width_j) = predictions[0].i_in_i.conf.shape, predictions[0].j_in_j.conf.shape
    views = [view for prediction in predictions for one_pass in passes(prediction) for view in one_pass]
    maps = pack_maps([descriptors(view)[0].flatten(0, 1) for view in views])
    p, q, converged = reciprocal_batch(maps, count, (height_i, width_i), (height_j, width_j), subsample)

    conf = [torch.stack([descriptors(view)[1].flatten() for view in views[k::_MAPS]]) for k in range(_MAPS)]
    in_i = torch.cat([conf[0].gather(1, p[:, 0]), conf[0].gather(1, p[:, 1]),
                      conf[2].gather(1, p[:, 2]), conf[2].gather(1, p[:, 3])], 1)  # fmt: skip
    in_j = torch.cat([conf[1].gather(1, q[:, 0]), conf[1].gather(1, q[:, 1]),
                      conf[3].gather(1, q[:, 2]), conf[3].gather(1, q[:, 3])], 1)  # fmt: skip
    key = torch.where(converged, p * (height_j * width_j) + q, torch.iinfo(torch.int64).max).flatten(1)
    key, order = torch.sort(key, dim=1, stable=True)
    first = key != torch.iinfo(torch.int64).max
    first[:, 1:] &= key[:, 1:] != key[:, :-1]
    values = (in_i * in_j).sqrt().gather(1, order)

    sizes = first.sum(1).tolist()  # the only wait for the device
    chosen, conf_chosen = key[first], values[first]
    xy_i = flat_to_xy(chosen // (height_j * width_j), width_i)
    xy_j = flat_to_xy(chosen % (height_j * width_j), width_j)
    return [
        Correspondences(prediction.i, prediction.j, a, b, c)
        for prediction, a, b, c in zip(
            predictions, xy_i.split(sizes), xy_j.split(sizes), conf_chosen.split(sizes), strict=True
        )
    ]


def reciprocal_batch(
    maps: DescriptorMaps, count: int, shape_i: tuple[int, int], shape_j: tuple[int, int], subsample: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Converged seeds of `count` pairs of four maps each: p in i, q in j, (count, 4, S) int64, and a mask."""
    device = maps.exact.device
    seeds_i, seeds_j = (seed_grid(*shape, subsample, device) for shape in (shape_i, shape_j))
    width = max(len(seeds_i), len(seeds_j))
    seeds = torch.zeros(_MAPS, width, dtype=torch.int64, device=device)
    active = torch.zeros(_MAPS, width, dtype=torch.bool, device=device)
    for k, own in enumerate((seeds_i, seeds_j, seeds_i, seeds_j)):
        seeds[k, : len(own)] = own
        active[k, : len(own)] = True
    first_map = _MAPS * torch.arange(count, dtype=torch.int32, device=device)[:, None]
    pattern = torch.tensor(_DIRECTIONS, dtype=torch.int32, device=device)
    source, database = ((first_map + pattern[:, k]).flatten() for k in (0, 1))

    here = seeds.repeat(count, 1)
    there = torch.full_like(here, -1)
    active = active.repeat(count, 1)
    searched = active
    for _ in range(MAX_ITERATIONS):
        here, there, active = _step(maps, source, database, here, there, active)
    converged = searched & ~active
    here, there, converged = (t.unflatten(0, (count, _MAPS)) for t in (here, there, converged))
    backward = torch.tensor([False, True, False, True], device=device)[:, None]
    return torch.where(backward, there, here), torch.where(backward, here, there), converged


def _step(
    maps: DescriptorMaps,
    source: torch.Tensor,
    database: torch.Tensor,
    here: torch.Tensor,
    there: torch.Tensor,
    active: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """One iteration: to the other map and back; a seed that did not move on either way is done."""
    found = nearest(maps, source, database, here, active)
    moving = active & (found != there)
    there = torch.where(active, found, there)
    found = nearest(maps, database, source, there.clamp(min=0), moving)
    still = moving & (found != here)
    here = torch.where(moving, found, here)
    return here, there, still
