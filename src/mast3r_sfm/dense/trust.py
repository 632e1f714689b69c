"""How far each pixel's depth is to be believed, and which points contradict a better one.

The network's confidence says how sure it was of one view. Other views say more: one that sees the pixel's point on its
own surface confirms it, one that sees past the point to a surface behind it contradicts it, and a point that many
should see and none confirms is suspect. The weights of these are those of a logistic regression of "right within 3 %"
on rendered scenes (`benchmarks.dense`), in units of the logarithm of the network's confidence. The result is a
confidence on the network's scale: the threshold that suits the network's own is where six of ten pixels are right.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from mast3r_sfm.dense.agreement import Surfaces
from mast3r_sfm.dense.views import DenseView, look

CONFIRMED, CONTRADICTED, UNCONFIRMED, OFFSET = 0.63, -0.13, -0.29, -0.1
"""Added to the logarithm of the confidence: if any view confirms a pixel, by each that contradicts it, by each that
should see it and does not confirm it, and always."""

MOST_UNCONFIRMED = 4

LEAST_TOLERANCE, MOST_TOLERANCE = 0.02, 0.06
"""Log depths that differ by less than this agree. In between, three times the median difference decides: views agree
within the error that they have."""

SAMPLED = 7  # one of so many pixels tells that error
SAME_SURFACE = 0.15  # log depths that differ by more say nothing of that error
SLANT = 0.5  # of the range of log depths around the pixel, at most `MOST_RANGE`, is added to the tolerance
MOST_RANGE = 0.1
IN_FRONT = 1.5
"""How many tolerances a point must lie in front of a surface to contradict it."""


@dataclass(frozen=True)
class Trust:
    """Per view (H, W): confidence, and the same with 0 for points that contradict a more confident surface."""

    conf: tuple[torch.Tensor, ...]
    clean: tuple[torch.Tensor, ...]


@dataclass(frozen=True)
class _Comparison:
    """Pixels of one view beside what its J neighbours see there; (J, H, W) each.

    excess     log depth of the point over that of the surface
    tolerance  within which they agree
    seen       the place lies in the neighbour's image, at a pixel that has a confidence: no mask hides it
    index      of the neighbour's pixel in packed maps
    """

    excess: torch.Tensor
    tolerance: torch.Tensor
    seen: torch.Tensor
    index: torch.Tensor

    @property
    def in_front(self) -> torch.Tensor:
        """(J, H, W) bool: the neighbour sees past the point, to a surface behind it."""
        return self.seen & (self.excess < -IN_FRONT * self.tolerance)


def judge(views: Sequence[DenseView], surfaces: Surfaces) -> Trust:
    """Confidence of all pixels, and the contradictions between them decided."""
    atlas, everyone = surfaces.atlas, range(len(views))
    ranges = atlas.pack([_range(atlas.map_of(surfaces.log_depth, i)) for i in everyone])
    tolerance = _tolerance(views, surfaces, ranges)
    confs = []
    for i in everyone:
        gain = torch.full_like(views[i].conf, OFFSET)
        if views[i].neighbours:
            one = _compare(views, i, surfaces, ranges, tolerance)
            agrees = (one.seen & (one.excess.abs() < one.tolerance)).sum(0)
            unconfirmed = (one.seen.sum(0) - agrees).clamp_max(MOST_UNCONFIRMED)
            gain = gain + CONFIRMED * (agrees > 0)
            gain = gain + CONTRADICTED * one.in_front.sum(0) + UNCONFIRMED * unconfirmed
        confs.append(views[i].conf * gain.exp())
    packed = atlas.pack(confs)
    clean = []
    for i, conf in enumerate(confs):
        if views[i].neighbours:
            one = _compare(views, i, surfaces, ranges, tolerance)
            conf = torch.where((one.in_front & (conf < packed[one.index])).any(0), 0.0, conf)
        clean.append(conf)
    return Trust(tuple(confs), tuple(clean))


def _compare(
    views: Sequence[DenseView], i: int, surfaces: Surfaces, ranges: torch.Tensor, tolerance: float
) -> _Comparison:
    """`tolerance` is that of surfaces without slant; `ranges` packed, of the log depths around each pixel."""
    atlas, others = surfaces.atlas, views[i].neighbours
    at = look(views, i, atlas.map_of(surfaces.log_depth, i).exp())
    index = atlas.index(others, at)
    return _Comparison(
        excess=at.depth.clamp_min(1e-6).log() - surfaces.log_depth[index],
        tolerance=tolerance + SLANT * ranges[index].clamp_max(MOST_RANGE),
        seen=atlas.inside(others, at) & (surfaces.belief[index] > 0),
        index=index,
    )


def _tolerance(views: Sequence[DenseView], surfaces: Surfaces, ranges: torch.Tensor) -> float:
    """Three times the median difference of log depths that may be of one surface, within limits."""
    differences = []
    for i in range(len(views)):
        if views[i].neighbours:
            one = _compare(views, i, surfaces, ranges, 0.0)
            size, seen = (field.flatten(1)[:, ::SAMPLED] for field in (one.excess.abs(), one.seen))
            differences.append(size[seen & (size < SAME_SURFACE)])
    if not differences or not len(found := torch.cat(differences)):
        return LEAST_TOLERANCE
    return min(max(3 * float(found.median()), LEAST_TOLERANCE), MOST_TOLERANCE)


def _range(log_depth: torch.Tensor) -> torch.Tensor:
    """(H, W): largest minus smallest of the 3 x 3 pixels around each."""
    padded = F.pad(log_depth[None, None], (1, 1, 1, 1), mode="replicate")
    return (F.max_pool2d(padded, 3, 1) + F.max_pool2d(-padded, 3, 1))[0, 0]
