"""Reciprocal matching of a batch of pairs on a CUDA device: the results of `reciprocal`, without waiting for the host.

All 10 iterations are issued for the seeds of every pair, pass and direction at once; an iteration lists the seeds
that are still moving for the next one, so those that have converged cost nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from mast3r_sfm.cuda_graphs import capture
from mast3r_sfm.matching.maps import MAX_ITERATIONS, descriptors, flat_to_xy, passes, seed_grid
from mast3r_sfm.matching.nearest_triton import (
    DescriptorMaps,
    SeedList,
    make_workspace,
    nearest,
    pack_anew,
    pack_maps,
    to_device,
)
from mast3r_sfm.types import Correspondences, PairPrediction

_MAPS = 4  # of a pair: i and j, in two passes
_DIRECTIONS = ((0, 1), (1, 0), (2, 3), (3, 2))  # (source, database) maps in the order in which candidates win


class Converged(NamedTuple):
    """Where the seeds of n pairs ended: p in i, q in j, (n, 4, S) int64 flat pixels, and whether they came to rest."""

    p: torch.Tensor
    q: torch.Tensor
    converged: torch.Tensor


def match_batch(predictions: Sequence[PairPrediction], subsample: int) -> list[Correspondences]:
    """Matches of pairs whose first views share one shape, and their second views too."""
    maps = pack_maps(_descriptor_maps(predictions))
    shape_i, shape_j = _shapes(predictions)
    return _gathered(
        predictions, reciprocal_batch(maps, Course.of(len(predictions), shape_i, shape_j, subsample, maps))
    )


class _Recorded(NamedTuple):
    """A search that was recorded: for batches of which kind, what it reads, what does it, where its result lies."""

    kind: object
    maps: DescriptorMaps
    course: Course
    replay: Callable[[], None]
    found: Converged


class RecordedMatching:
    """`match_batch` for many batches: the search is recorded for a kind of batch that comes twice in a row.

    A search is forty small launches, which take a host as long as the device needs for half of them.
    """

    def __init__(self) -> None:
        self._last_kind: object = None
        self._recorded: _Recorded | None = None

    def __call__(self, predictions: Sequence[PairPrediction], subsample: int) -> list[Correspondences]:
        maps = _descriptor_maps(predictions)
        shapes = _shapes(predictions)
        kind = (len(predictions), shapes, maps[0].shape[2], subsample)
        recorded, last_kind = self._recorded, self._last_kind
        self._last_kind = kind
        if recorded is not None and recorded.kind == kind:
            recorded = recorded._replace(maps=pack_anew(recorded.maps, maps))
        elif last_kind == kind:
            packed = pack_maps(maps)
            course = Course.of(len(predictions), *shapes, subsample, packed)
            recorded = _Recorded(
                kind, packed, course, *capture(lambda: reciprocal_batch(packed, course), packed.half.device)
            )
        else:
            return match_batch(predictions, subsample)
        self._recorded = recorded  # holds the maps while they are searched
        recorded.replay()
        return _gathered(predictions, recorded.found)


def _descriptor_maps(predictions: Sequence[PairPrediction]) -> list[torch.Tensor]:
    views = [view for prediction in predictions for one_pass in passes(prediction) for view in one_pass]
    return [descriptors(view)[0] for view in views]


def _shapes(predictions: Sequence[PairPrediction]) -> tuple[tuple[int, int], tuple[int, int]]:
    """(H, W) of the first and of the second views."""
    (height_i, width_i), (height_j, width_j) = predictions[0].i_in_i.conf.shape, predictions[0].j_in_j.conf.shape
    return (height_i, width_i), (height_j, width_j)


def _gathered(predictions: Sequence[PairPrediction], found: Converged) -> list[Correspondences]:
    """Converged seeds as matches: sorted, each once, with their confidences."""
    p, q, converged = found
    (_, width_i), (height_j, width_j) = _shapes(predictions)
    views = [view for prediction in predictions for one_pass in passes(prediction) for view in one_pass]
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


class Course(NamedTuple):
    """Between which maps the seeds of a batch of pairs move; J jobs of S seeds, all int32.

    seeds             (J, S) pixels where they start, those of short lists 0
    lengths           (J,) how many are seeds
    source, database  (J,) numbers of maps
    """

    seeds: torch.Tensor
    lengths: torch.Tensor
    source: torch.Tensor
    database: torch.Tensor

    @classmethod
    def of(
        cls, count: int, shape_i: tuple[int, int], shape_j: tuple[int, int], subsample: int, maps: DescriptorMaps
    ) -> Course:
        """Of `count` pairs of four maps each."""
        device = maps.half.device
        seeds_i, seeds_j = (seed_grid(*shape, subsample, device) for shape in (shape_i, shape_j))
        seeds = torch.zeros(_MAPS, max(len(seeds_i), len(seeds_j)), dtype=torch.int32, device=device)
        for k, own in enumerate((seeds_i, seeds_j, seeds_i, seeds_j)):
            seeds[k, : len(own)] = own
        directions = [[_MAPS * pair + number for number in one] for pair in range(count) for one in _DIRECTIONS]
        source, database = to_device(list(zip(*directions, strict=True)), torch.int32, device)
        lengths = to_device([len(seeds_i), len(seeds_j)] * (2 * count), torch.int32, device)
        return cls(seeds.repeat(count, 1), lengths, source, database)


def reciprocal_batch(maps: DescriptorMaps, course: Course) -> Converged:
    """Converged seeds of all pairs. Neither asks the host nor is told anything by it."""
    device = maps.half.device
    jobs, width = course.seeds.shape
    count = jobs // _MAPS

    # Half an iteration takes the seeds listed to the other map, and lists those that moved for the next half.
    # Every list has lengths of its own, zeroed once; two arrays of slots take turns.
    lengths = torch.zeros(2 * MAX_ITERATIONS + 1, jobs, dtype=torch.int32, device=device)
    lengths[0] = course.lengths
    place = torch.arange(width, dtype=torch.int32, device=device)
    slots = place.repeat(2, jobs, 1)
    lists = [SeedList(slots[k % 2], length) for k, length in enumerate(lengths)]
    here = course.seeds.clone()
    there = torch.full_like(here, -1)
    workspace = make_workspace(maps, jobs, width)
    for k in range(0, 2 * MAX_ITERATIONS, 2):
        nearest(maps, workspace, course.source, course.database, here, lists[k], there, lists[k + 1])
        nearest(maps, workspace, course.database, course.source, there, lists[k + 1], here, lists[k + 2])

    searched = place < lengths[0][:, None]
    left = torch.where(place < lengths[-1][:, None], lists[-1].slot, width).long()
    moving = torch.zeros(jobs, width + 1, dtype=torch.bool, device=device).scatter_(1, left, True)[:, :width]
    ends = here.long(), there.clamp(min=0).long(), searched & ~moving  # of seeds that are not one, any pixel
    here, there, converged = (t.unflatten(0, (count, _MAPS)) for t in ends)
    backward = torch.arange(_MAPS, device=device)[:, None] % 2 == 1
    return Converged(torch.where(backward, there, here), torch.where(backward, here, there), converged)
