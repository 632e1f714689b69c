"""The scene as points for the browser: view by view, each in the box of its own points, ten bytes a point.

A chunk is the positions (n, 3) uint16, then the colours (n, 3) uint8, then the confidences (n,) uint8, little-endian. A
position is `offset + scale * stored` in the axes of `scene.glb`, exact to half a 65,535th of the box of the view's
points. A confidence is the logarithm between the two ends of `PointCloud.confidence`, from 0 to 255.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from mast3r_sfm.export.depth import ColourScale, confidence_scale
from mast3r_sfm.export.orientation import SceneFrame, ShownScene, shown_scene
from mast3r_sfm.export.surface import PlacedView
from mast3r_sfm.options import SceneOptions
from mast3r_sfm.types import ReconstructedScene

BYTES_PER_POINT = 10
_LEVELS = 65535


@dataclass(frozen=True)
class PointChunk:
    """The points of one view.

    view    `ReconstructedView.index`
    count   number of points n
    offset, scale   (3,) of the positions, axes of the scene file
    eye     (3,) the centre of the camera there
    pitch   diameter of a point that meets its neighbours, at a distance of 1 from the camera
    data    the bytes of this module's docstring
    """

    view: int
    count: int
    offset: np.ndarray
    scale: np.ndarray
    eye: np.ndarray
    pitch: float
    data: bytes

    def described(self) -> dict[str, Any]:
        """All but the bytes, for the page."""
        return {name: value for name, value in vars(self).items() if name != "data"}


@dataclass(frozen=True)
class PointCloud:
    """What the page shows of the registered views, and in which axes.

    placed  the views with the pixels that the scene shows
    counts  (views,) points to take of each, in the order of `placed`
    frame   of the scene file
    confidence  the confidences at levels 0 and 255
    """

    placed: tuple[PlacedView, ...]
    counts: tuple[int, ...]
    frame: SceneFrame
    confidence: ColourScale

    @classmethod
    def of_scene(
        cls, scene: ReconstructedScene, options: SceneOptions, shown: ShownScene | None = None
    ) -> PointCloud | None:
        """With all pixels that the scene file shows (`shown`, if known); None if no view is registered."""
        shown = shown or shown_scene(scene, options)
        if shown is None:
            return None
        placed = shown.placed
        confidence = confidence_scale([np.where(one.kept, one.view.conf, 0) for one in placed])
        counts = tuple(int(np.count_nonzero(one.kept)) for one in placed)
        return cls(placed, counts, shown.frame, confidence)

    def thinned(self, budget: int) -> PointCloud:
        """With at most `budget` points, evenly over the views."""
        return PointCloud(self.placed, tuple(even_shares(self.counts, budget)), self.frame, self.confidence)

    @cached_property
    def num_points(self) -> int:
        return sum(self.counts)

    def chunk(self, position: int) -> PointChunk:
        """The points of the view at a position in `placed`.

        They stand in a random order, always the same one, so that the first part of them is a thinner picture of all.
        """
        one, count = self.placed[position], self.counts[position]
        kept = np.flatnonzero(one.kept)
        pixels = np.random.default_rng(one.view.index).permutation(kept)[:count]
        points = self.frame.apply(one.points.reshape(-1, 3)[pixels])
        offset = points.min(axis=0) if count else np.zeros(3)
        # a box without extent along an axis still needs a scale
        scale = np.maximum(np.ptp(points, axis=0) if count else np.zeros(3), 1e-12) / _LEVELS
        stored = np.round((points - offset) / scale).astype("<u2")
        low, high = np.log([self.confidence.low, self.confidence.high])
        level = (np.log(one.view.conf.reshape(-1)[pixels].astype(np.float64)) - low) / max(high - low, 1e-12)
        levels = np.round(np.clip(level, 0, 1) * 255).astype(np.uint8)
        data = stored.tobytes() + one.view.rgb.reshape(-1, 3)[pixels].tobytes() + levels.tobytes()
        # discs on a square grid leave no gap if they are larger than their distance by the root of two
        pitch = float(np.sqrt(2 * len(kept) / max(count, 1)) / one.view.K[0, 0])
        return PointChunk(one.view.index, count, offset, scale, self.frame.apply(one.centre), pitch, data)


def even_shares(available: Sequence[int], budget: int) -> list[int]:
    """How many to take of each, at most `budget` in all: the same of each, as far as each has so many."""
    taken = [0] * len(available)
    left = budget
    for rank, position in enumerate(sorted(range(len(available)), key=available.__getitem__)):
        taken[position] = min(available[position], left // (len(available) - rank))
        left -= taken[position]
    return taken
