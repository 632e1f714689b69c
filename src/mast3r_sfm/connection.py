"""Which photos of a scene no local feature connects with the others, and how well the network connects them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np
import torch

from mast3r_sfm.alignment import AlignedGroup
from mast3r_sfm.alignment.anchors import FixedCamera, errors_of, match_sides
from mast3r_sfm.graphs import connected_components
from mast3r_sfm.pairwise import PairwiseData


def parts_by_features(members: Sequence[int], pairs: Iterable[tuple[int, int]]) -> np.ndarray:
    """(n,) part of every member: pairs of images that features confirm connect those of one part; 0 is the largest."""
    position_of = {index: k for k, index in enumerate(members)}
    inside = [(position_of[i], position_of[j]) for i, j in pairs if i in position_of and j in position_of]
    part = np.zeros(len(members), dtype=np.int64)
    for number, own in enumerate(connected_components(len(members), inside)):
        part[own] = number
    return part


def with_apart_errors(
    aligned: AlignedGroup, data: PairwiseData, pairs: Iterable[tuple[int, int]], subsample: int
) -> AlignedGroup:
    """The group with `apart_errors_px`; `pairs` are those that features confirm, of indices of images."""
    part = parts_by_features(aligned.group, pairs)
    part_of = dict(zip(aligned.group, part.tolist(), strict=True))
    matches = tuple(m for m in aligned.matches if part_of[m.i] != part_of[m.j])
    needed = {index for m in matches for index in (m.i, m.j)}  # mostly none
    K, world_from_cam = (value.cpu().numpy() for value in (aligned.cameras.K, aligned.cameras.world_from_cam))
    views = {index: data.usable(index).in_main_memory() for index in needed}
    cameras = {
        index: FixedCamera(K[k].astype(np.float64), float(aligned.distortion[k]), world_from_cam[k].astype(np.float64))
        for k, index in enumerate(aligned.group)
        if index in needed
    }
    sides = match_sides(views, cameras, matches, subsample)
    joined = (part == 0) & (np.sum(part == 0) > 1)  # a part of one photo connects nothing
    found = np.full(len(aligned.group), np.nan)
    for k, index in enumerate(aligned.group):
        errors = errors_of(aligned.cameras.core_depths[k].cpu().numpy(), sides.get(index))
        if len(errors) and not joined[k]:
            found[k] = np.median(errors)
    return dataclasses.replace(aligned, apart_errors_px=torch.from_numpy(found))
