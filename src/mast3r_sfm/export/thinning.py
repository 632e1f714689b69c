"""Of a surface that several photos show, the photo that shows it best is kept; the others lose what they show twice.

Without this a place that ten photos see is drawn ten times: ten layers that pierce each other, and ten times the bytes.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from mast3r_sfm.export.surface import PlacedView, thinned_surface
from mast3r_sfm.graphs import component_labels, strongest_neighbours
from mast3r_sfm.types import Correspondences, ReconstructedView

_SAME_DEPTH = 0.02
"""Two views show the same place if their depths differ by no more than this share."""

_LEVELS_PER_OCTAVE = 1.0
"""Steps of quality in twice the resolution. Coarse, so that the photos share the scene in few large patches."""

_COMPARED = 16
"""Other views that a view is compared with, those with the most matches."""

_COMPARED_PX = 224
"""Long edge, about, of the grid of pixels that are compared; the patches are much larger than its cells."""

_OVERLAP = 3
"""Pixels by which patches reach below their neighbours, so that no gap shows between them."""

_LEAST_ISLAND = 1e-3
"""Connected pieces of a view's surface below this share of its pixels are left out: specks that float in the scene."""

_STEEP, _BEHIND, _FRINGE = 0.4, 1.2, 4
"""Pixels that are seen at a smaller cosine of the angle, and have something so much further away within so many pixels,
are left out: there the predicted depth slides from an object to what is behind it."""

_LARGEST_HOLE = 3e-3
"""Holes in a view's surface up to this share of its pixels are closed with the depth that is there."""


def best_view_masks(
    placed: Sequence[PlacedView], matches: Sequence[Correspondences], depth_jump: float
) -> list[np.ndarray]:
    """(H, W) bool for every view: the kept pixels but for those that another view shows better.

    matches     of the scene; only views with matches are compared
    depth_jump  as for `thinned_surface`: a pixel without a triangle stands in for nothing
    """
    surfaces = whole_surfaces(placed, depth_jump)
    order = np.argsort([-np.count_nonzero(surface) for surface in surfaces], kind="stable")
    rank = np.empty(len(placed), dtype=np.int64)
    rank[order] = np.arange(len(placed))
    # views of one level of quality never tie: the larger one has the place
    with _pool() as pool:
        scores = [level * len(placed) - rank[k] for k, level in enumerate(pool.map(_levels, placed))]
    solid = [_eroded(surface) for surface in surfaces]
    others = _most_matched(placed, matches)

    def shown(k: int, pixels: np.ndarray, masks: Sequence[np.ndarray], better: bool) -> np.ndarray:
        """Which of `pixels` (H, W) bool the `masks` of other views show (if asked, better), on a coarse grid."""
        H, W = pixels.shape
        step = max(1, round(max(H, W) / _COMPARED_PX))
        y, x = np.nonzero(pixels[::step, ::step])
        left = step * (y * W + x)
        found = np.zeros((H, W), dtype=bool)
        for other in others[k]:
            place, same = _same_place(placed[k], left, placed[other])
            same &= masks[other].flat[place]
            if better:
                same &= scores[other].flat[place] > scores[k].flat[left]
            found.flat[left[same]] = True
            left = left[~same]
        return found[::step, ::step].repeat(step, 0).repeat(step, 1)[:H, :W]

    def best(k: int) -> np.ndarray:
        return surfaces[k] & ~_smoothed(shown(k, surfaces[k], solid, better=True), surfaces[k])

    def completed(k: int) -> np.ndarray:
        """What another view showed better, and lost in its turn to a third that does not quite show it, comes back."""
        gone = surfaces[k] & ~masks[k]
        return masks[k] | (surfaces[k] & _grown(gone & ~shown(k, gone, solid_masks, better=False)))

    with _pool() as pool:
        masks = list(pool.map(best, range(len(placed))))
        solid_masks = [_eroded(mask) for mask in masks]
        return list(pool.map(completed, range(len(placed))))


def _most_matched(placed: Sequence[PlacedView], matches: Sequence[Correspondences]) -> list[list[int]]:
    """For every view the positions of those that it has the most matches with, at most `_COMPARED`, ascending."""
    position_of = {one.view.index: k for k, one in enumerate(placed)}
    shared = (
        (position_of[m.i], position_of[m.j], len(m)) for m in matches if m.i in position_of and m.j in position_of
    )
    return [sorted(others) for others in strongest_neighbours(len(placed), shared, _COMPARED)]


def whole_surfaces(placed: Sequence[PlacedView], depth_jump: float) -> list[np.ndarray]:
    """(H, W) bool for every view: the kept pixels without islands and fringes, and with the small holes in them."""
    with _pool() as pool:
        return list(pool.map(lambda one: _whole_surface(one, depth_jump), placed))


def _pool() -> ThreadPoolExecutor:
    """Of threads for one view each; NumPy and OpenCV let them work side by side."""
    return ThreadPoolExecutor(min(16, os.cpu_count() or 1))


def _same_place(one: PlacedView, pixels: np.ndarray, other: PlacedView) -> tuple[np.ndarray, np.ndarray]:
    """Where another view sees the places of flat `pixels` (n,): its flat pixels (n,), and (n,) bool whether it does.

    It does if it is at the same depth there and looks at the same side.
    """
    depth, places, inside = other.look_up(one.points.reshape(-1, 3)[pixels])
    with np.errstate(invalid="ignore"):
        same = np.abs(other.view.depth.flat[places] - depth) <= _SAME_DEPTH * depth
        # a missing normal is at an edge, where the depth decides alone
        turned = np.sum(one.normals.reshape(-1, 3)[pixels] * other.normals.reshape(-1, 3)[places], axis=1) < 0
    return places, inside & same & ~turned


def _levels(one: PlacedView) -> np.ndarray:
    """(H, W) int64 level of quality: how finely the photo resolves the surface, and how sure its depth is."""
    import cv2

    view = one.view
    with np.errstate(invalid="ignore", divide="ignore"):
        quality = view.K[0, 0] / view.depth * np.clip(np.nan_to_num(one.facing, nan=0.1), 0.1, 1)
        quality = np.where(one.kept, quality * np.sqrt(view.conf_clean), 0).astype(np.float32)
    size = 2 * (max(view.depth.shape) // 32) + 1
    weight = cv2.blur(one.kept.astype(np.float32), (size, size))
    mean = cv2.blur(quality, (size, size)) / np.maximum(weight, 1e-6)
    return np.floor(_LEVELS_PER_OCTAVE * np.log2(np.maximum(mean, 1e-9))).astype(np.int64)


def _smoothed(shown_better: np.ndarray, surface: np.ndarray) -> np.ndarray:
    """The pixels that go: without specks, and `_OVERLAP` pixels away from those that stay."""
    import cv2

    stays = (surface & ~shown_better).astype(np.uint8)
    stays = cv2.morphologyEx(stays, cv2.MORPH_OPEN, np.ones((2, 2), np.uint8))
    return ~_grown(stays.astype(bool))


def _grown(mask: np.ndarray) -> np.ndarray:
    """The mask and `_OVERLAP` pixels around it."""
    import cv2

    reach = 2 * _OVERLAP + 1
    return cv2.dilate(mask.astype(np.uint8), np.ones((reach, reach), np.uint8)).astype(bool)


def _eroded(surface: np.ndarray) -> np.ndarray:
    """Pixels whose neighbours all belong to the surface: those that triangles surround."""
    import cv2

    return cv2.erode(surface.astype(np.uint8), np.ones((3, 3), np.uint8)).astype(bool)


def _whole_surface(one: PlacedView, depth_jump: float) -> np.ndarray:
    """(H, W) bool: the kept pixels without islands, and with the small holes between them."""
    filled = _with_small_holes(_without_fringe(one), one.view)
    pixels, faces = thinned_surface(filled, one.view.depth, depth_jump, 1.0).indexed()
    result = np.zeros(filled.shape, dtype=bool)
    if not len(faces):
        return result
    label = component_labels(len(pixels), np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]]]))
    x, y = pixels[(np.bincount(label) >= _LEAST_ISLAND * filled.size)[label]].T
    result[y, x] = True
    return result


def _without_fringe(one: PlacedView) -> np.ndarray:
    """(H, W) bool: the kept pixels but for those that slide from the outline of an object to what is behind it."""
    import cv2

    depth = one.view.depth
    with np.errstate(invalid="ignore"):
        filled = np.where(np.isfinite(depth) & (depth > 0), depth, np.inf).astype(np.float32)
        furthest = cv2.dilate(filled, np.ones((2 * _FRINGE + 1, 2 * _FRINGE + 1), np.uint8))
        return one.kept & ~((one.facing < _STEEP) & (furthest > _BEHIND * depth))


def _with_small_holes(kept: np.ndarray, view: ReconstructedView) -> np.ndarray:
    """The pixels `kept`, and those of small holes that they enclose: too unsure by themselves, but in good company."""
    import cv2

    _, label, stats, _ = cv2.connectedComponentsWithStats((~kept).astype(np.uint8), connectivity=4)
    small = stats[:, cv2.CC_STAT_AREA] <= _LARGEST_HOLE * kept.size
    border = np.concatenate([label[0], label[-1], label[:, 0], label[:, -1]])
    small[border] = False
    small[0] = False  # the label of the kept pixels
    with np.errstate(invalid="ignore"):
        valid = (view.depth > 0) & np.isfinite(view.depth)
    return kept | (small[label] & (valid if view.mask is None else valid & view.mask))
