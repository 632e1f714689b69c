"""Reciprocal matching of a batch of pairs on a CUDA device: the results of `reciprocal`, without waiting for the host.

All 10 iterations are issued for the seeds of every pair, pass and direction at once; an iteration lists the seeds
that are still moving for the next one, so those that have converged cost nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from mast3r_sfm.matching.maps import MAX_ITERATIONS, descriptors, flat_to_xy, passes, seed_grid
from mast3r_sfm.matching.nearest_triton import DescriptorMaps, SeedList, make_workspace, nearest, pack_maps, to_device
from mast3r_sfm.types import Correspondences, PairPrediction

_MAPS = 4  # of a pair: i and j, in two passes
_DIRECTIONS = ((0, 1), (1, 0), (2, 3), (3, 2))  # (source, database) maps in the order in which candidates win


def match_batch(predictions: Sequence[PairPrediction], subsample: int) -> list[Correspondences]:
    """Matches of pairs whose first views share one shape, and their second views too."""
    count = len(predictions)
    (height_i, width_i), (height_j, width_j) = predictions[0].i_in_i.conf.shape, predictions[0].j_in_j.conf.shape
    views = [view for prediction in predictions for one_pass in passes(prediction) for view in one_pass]
    maps = pack_maps([descriptors(view)[0] for view in views])
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

    sizes = first.sum(1).tolist()  # the first wait for the device; `nonzero` finds it idle
    kept = first.flatten().nonzero()[:, 0]
    chosen, conf_chosen = key.flatten()[kept], values.flatten()[kept]
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
    device = maps.half.device
    seeds_i, seeds_j = (seed_grid(*shape, subsample, device) for shape in (shape_i, shape_j))
    jobs, width = _MAPS * count, max(len(seeds_i), len(seeds_j))
    seeds = torch.zeros(_MAPS, width, dtype=torch.int32, device=device)
    for k, own in enumerate((seeds_i, seeds_j, seeds_i, seeds_j)):
        seeds[k, : len(own)] = own
    directions = [[_MAPS * pair + number for number in one] for pair in range(count) for one in _DIRECTIONS]
    source, database = to_device(list(zip(*directions, strict=True)), torch.int32, device)

    # Half an iteration takes the seeds listed to the other map, and lists those that moved for the next half.
    # Every list has lengths of its own, zeroed once; two arrays of slots take turns.
    lengths = torch.zeros(2 * MAX_ITERATIONS + 1, jobs, dtype=torch.int32, device=device)
    lengths[0, 0::2], lengths[0, 1::2] = len(seeds_i), len(seeds_j)
    place = torch.arange(width, dtype=torch.int32, device=device)
    slots = place.repeat(2, jobs, 1)
    lists = [SeedList(slots[k % 2], length) for k, length in enumerate(lengths)]
    here = seeds.repeat(count, 1)
    there = torch.full_like(here, -1)
    workspace = make_workspace(maps, jobs, width)
    for k in range(0, 2 * MAX_ITERATIONS, 2):
        nearest(maps, workspace, source, database, here, lists[k], there, lists[k + 1])
        nearest(maps, workspace, database, source, there, lists[k + 1], here, lists[k + 2])

    searched = place < lengths[0][:, None]
    left = torch.where(place < lengths[-1][:, None], lists[-1].slot, width).long()
    moving = torch.zeros(jobs, width + 1, dtype=torch.bool, device=device).scatter_(1, left, True)[:, :width]
    ends = here.long(), there.clamp(min=0).long(), searched & ~moving  # of seeds that are not one, any pixel
    here, there, converged = (t.unflatten(0, (count, _MAPS)) for t in ends)
    backward = torch.arange(_MAPS, device=device)[:, None] % 2 == 1
    return torch.where(backward, there, here), torch.where(backward, here, there), converged
