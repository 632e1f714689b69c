"""Which photos were taken by one camera with one zoom, and so share a focal length.

A start, and rather one group too few than too many: a focal length that all photos of a camera agree on is better than
each photo's own, because a network's focal lengths scatter by 6 to 9 per cent over the photos of one camera.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence

import numpy as np

from mast3r_sfm.graphs import connected_components, number_by_first
from mast3r_sfm.options import IntrinsicsGroups
from mast3r_sfm.types import View

MAX_SPREAD = 1.4
"""Predicted focal lengths of one zoom differ from their median by less than this factor. Those of the bundled model
reach 1.23 over the photos of one camera (benchmarks/RESULTS.md, Camera groups)."""

MAX_EXIF_LACK = 1.6
"""A predicted focal length that is longer than EXIF's by more than this factor is believed instead: the photo was
cropped, and its tags are those of the whole. In the other direction EXIF is right, however large the difference: a
network mistakes a long lens for a normal one (the bundled model by a factor of up to 2.8; too long by 1.4 at most)."""


def group_cameras(
    images: Sequence[View], choice: IntrinsicsGroups, base_focals: Sequence[float | None]
) -> tuple[int, ...]:
    """The group of every image, numbered from 0 by first appearance.

    base_focals  predicted focal lengths in pixels of the original images, None where there is no prediction

    `auto` makes one group of
    - photos with EXIF that agree in camera, lens and focal length, and whose sizes have their short or their long side
      in common, directly or through others: these are crops at one scale (4:3, 16:9, 1:1), turned upright or not. Sizes
      with neither in common are taken for resized copies.
    - the frames of one clip.
    - photos without EXIF of one size, upright or not. Nothing tells these from photos of other cameras, or of another
      zoom, but their predicted focal lengths: one that is `MAX_SPREAD` times the median of its group, or less than
      that part of it, is a group of its own, or with others like it. The same holds if EXIF names no focal length.
    """
    if choice is IntrinsicsGroups.SHARED:
        return (0,) * len(images)
    if choice is IntrinsicsGroups.PER_IMAGE:
        return tuple(range(len(images)))
    cameras: dict[Hashable, list[int]] = {}
    for k, image in enumerate(images):
        key = image.frame.clip if image.frame else image.camera or _sides(image)
        cameras.setdefault(key, []).append(k)
    group_of = [0] * len(images)
    count = 0
    for members in cameras.values():
        camera, frame = images[members[0]].camera, images[members[0]].frame
        same_scale = [members] if camera is None or frame else _joined_by_a_side(images, members)
        for some in same_scale:
            one_zoom = [some] if frame or (camera and camera.knows_zoom) else _split_by_zoom(some, base_focals)
            for group in one_zoom:
                for k in group:
                    group_of[k] = count
                count += 1
    return number_by_first(group_of)


def stated_focals(
    images: Sequence[View], group_of: Sequence[int], base_focals: Sequence[float | None]
) -> tuple[float | None, ...]:
    """The focal length that EXIF states for each group, pixels of the original images; None for none.

    It is that of the group's largest photo (the median, of several): tags stay as they are when a photo is cropped,
    and are then read as if the crop had the angle of view of the whole. None as well if the median of the group's
    predictions is longer by more than `MAX_EXIF_LACK`.
    """
    return tuple(_stated_focal(images, base_focals, members) for members in _members(group_of))


def _stated_focal(images: Sequence[View], base_focals: Sequence[float | None], members: Sequence[int]) -> float | None:
    known = [
        (math.prod(images[k].transform.original_size), focal)
        for k in members
        if (focal := images[k].focal_exif_px) is not None
    ]
    if not known:
        return None
    largest = max(area for area, _ in known)
    stated = float(np.median([focal for area, focal in known if area == largest]))
    predicted = [base for k in members if (base := base_focals[k]) is not None]
    cropped = bool(predicted) and float(np.median(predicted)) > MAX_EXIF_LACK * stated
    return None if cropped else stated


def _members(group_of: Sequence[int]) -> list[list[int]]:
    members: list[list[int]] = [[] for _ in range(max(group_of, default=-1) + 1)]
    for k, group in enumerate(group_of):
        members[group].append(k)
    return members


def _sides(image: View) -> tuple[int, int]:
    """The short and the long side of the original image, pixels."""
    width, height = image.transform.original_size
    return min(width, height), max(width, height)


def _joined_by_a_side(images: Sequence[View], members: Sequence[int]) -> list[list[int]]:
    """Groups of `members` whose sizes have the short or the long side in common, directly or through others."""
    sides = [_sides(images[k]) for k in members]
    edges = []
    for axis in (0, 1):
        first: dict[int, int] = {}
        edges += [(first.setdefault(side[axis], position), position) for position, side in enumerate(sides)]
    return [[members[position] for position in group] for group in connected_components(len(members), edges)]


def _split_by_zoom(members: Sequence[int], base_focals: Sequence[float | None]) -> list[list[int]]:
    """Groups of `members` of like predicted focal lengths: near the median, near the median of the rest, ...

    Members without a prediction go with the first of them.
    """
    unknown = [k for k in members if base_focals[k] is None]
    left = sorted((focal, k) for k in members if (focal := base_focals[k]) is not None)
    groups = []
    while left:
        median = left[(len(left) - 1) // 2][0]
        groups.append([k for focal, k in left if _within(focal, median, MAX_SPREAD)])
        left = [(focal, k) for focal, k in left if not _within(focal, median, MAX_SPREAD)]
    if unknown:
        groups = [[*unknown, *(groups[0] if groups else [])], *groups[1:]]
    return groups


def _within(a: float, b: float, factor: float) -> bool:
    return max(a, b) < factor * min(a, b)
