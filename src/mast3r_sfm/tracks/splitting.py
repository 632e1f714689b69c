"""Photos of one group whose tracks say that they have different focal lengths: another zoom, another camera."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import pycolmap

from mast3r_sfm.graphs import number_by_first
from mast3r_sfm.tracks.adjusted import MIN_OBSERVATIONS
from mast3r_sfm.tracks.bundle import Bundle
from mast3r_sfm.tracks.cameras import CameraGroup, free_intrinsics
from mast3r_sfm.tracks.covariance import standard_deviations

FOCAL_TOLERANCE = 0.005
"""By how much the focal lengths of one camera may differ without a reason to split them, as a share: the zoom creeps a
little when the lens focuses, and what the lens model leaves out looks like a little zoom."""

MAX_FOCAL_STD = 0.02
"""Largest standard deviation of a focal length that is adjusted, as a share of it."""

_ALONE_ITERATIONS, _ALONE_TOLERANCE = 10, 1e-4  # of the adjustment with a camera for every view, which need not end
_ITERATIONS = 300  # of the adjustments that are compared, at most: flat scenes take many


def split_cameras(
    bundle: Bundle,
    group_of: Sequence[int],
    confirmed: Mapping[tuple[int, int], pycolmap.TwoViewGeometry],
    max_error_px: float,
    loss_px: float,
) -> tuple[list[CameraGroup], list[int]] | None:
    """New groups and their numbers, if the tracks deny that the views of a group share a focal length; else None.

    confirmed     matches by pair of views, which become tracks if they reproject better than `max_error_px`
    loss_px       of the adjustments

    For that the tracks are adjusted once with a camera for every view of a group of several. What follows from the
    focal lengths must hold in an adjustment as well: their standard deviations are too small where little tells them.
    """
    if len(set(group_of)) == len(group_of):
        return None
    start = [bundle.group(own) for own in group_of]
    alone = bundle.without_points(start, range(len(group_of)))
    alone.triangulate(confirmed, max_error_px)
    if alone.num_points < MIN_OBSERVATIONS:
        return None
    alone.adjust(loss_px, iterations=_ALONE_ITERATIONS, tolerance=_ALONE_TOLERANCE)
    focals = np.array([alone.group(k).focal_px for k in range(len(group_of))])
    tracks = alone.tracks()
    std = standard_deviations(tracks, free_intrinsics(start, centre=False), loss_px)[0][:, 0]
    numbers = split_groups(focals, std, group_of, tracks.num_observations)
    if list(numbers) == list(group_of):
        return None
    started = {number: k for k, number in reversed(list(enumerate(numbers)))}
    found = []
    for number in range(max(numbers) + 1):
        members = np.flatnonzero(np.array(numbers) == number)
        found.append(dataclasses.replace(start[started[number]], focal_px=float(np.median(focals[members]))))
    together = [bundle.group(k) for k in range(max(group_of) + 1)]
    return (found, list(numbers)) if _pays(alone, (together, group_of), (found, numbers), loss_px) else None


def _pays(
    tracked: Bundle,
    together: tuple[Sequence[CameraGroup], Sequence[int]],
    apart: tuple[Sequence[CameraGroup], Sequence[int]],
    loss_px: float,
) -> bool:
    """Whether the tracks, adjusted with either groups of cameras, give the larger number of them the better BIC."""
    costs = []
    for groups, group_of in (together, apart):
        bundle = tracked.with_cameras(groups, group_of)
        bundle.adjust(loss_px, iterations=_ITERATIONS)
        costs.append(bundle.tracks().robust_costs(loss_px)[:, 0].sum())
    freedom = tracked.tracks().robust_costs(loss_px)[:, 1].sum()
    spared = (costs[0] - costs[1]) / max(costs[1], 1e-300) * freedom
    return bool(spared > (len(apart[0]) - len(together[0])) * np.log(max(2.0, freedom)))


def split_groups(
    focals: np.ndarray, std: np.ndarray, group_of: Sequence[int], num_observations: np.ndarray
) -> tuple[int, ...]:
    """Groups in which every view's own focal length agrees with that of its group, numbered by first appearance.

    focals, std       (n,) of every view adjusted alone, pixels
    num_observations  (n,)

    A group is split where that lowers the Bayesian information criterion: one more focal length costs ln N for N
    observations, and spares the squared difference over its variance. The standard deviation is twice
    that of the adjustment, whose errors are not all independent, and `FOCAL_TOLERANCE`. Views whose own focal length
    the tracks do not tell to half of `MAX_FOCAL_STD` stay together.
    """
    result = [-1] * len(focals)
    count = 0
    for group in sorted(set(group_of), key=list(group_of).index):
        members = np.flatnonzero(np.array(group_of) == group)
        known = members[std[members] <= MAX_FOCAL_STD / 2 * focals[members]]
        left = known[np.argsort(focals[known], kind="stable")]
        first = True
        while len(left):
            middle = focals[left[(len(left) - 1) // 2]]
            variance = (2 * std[left]) ** 2 + (FOCAL_TOLERANCE * middle) ** 2
            price = np.log(max(2, int(num_observations[members].sum())))
            agrees = (focals[left] - middle) ** 2 / variance <= price
            for k in left[agrees]:
                result[k] = count
            if first:
                for k in np.setdiff1d(members, known):
                    result[k] = count
            left, first, count = left[~agrees], False, count + 1
        if first:
            for k in members:
                result[k] = count
            count += 1
    return number_by_first(result)
