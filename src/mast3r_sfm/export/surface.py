"""Which pixels of a view become points of the scene, where they lie, and which neighbours a triangle may join."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from mast3r_sfm.geometry import project
from mast3r_sfm.options import SceneOptions
from mast3r_sfm.types import ReconstructedView

_FAR = 4.0
"""Points further from the middle of the scene than this many times the distance that 80 % of them keep are not shown: a
few that are far out, sky or a mistaken depth, would shrink everything else to a dot in a viewer."""

_SLANTED, _UNEVEN, _SLANT_REACH = 2.0, 3.0, 6
"""A step up to so many times what counts as a jump elsewhere is none if it is up to so many times the mean step within
so many pixels: a surface seen edge on, a little uneven."""

_MOST_PIXELS = 20_000_000
"""Of all views together, before rows and columns are left out: 100 of 512 x 384."""

_SAMPLES = 50_000
"""Points that this distance is measured on."""


@dataclass(frozen=True)
class PlacedView:
    """A registered view and what of it the scene shows.

    view  of every `step`-th row and column only: its maps are smaller then, and its K is that of the smaller image
    kept  (H, W) bool: the pixels that the scene shows
    step  1 unless there are very many views
    """

    view: ReconstructedView
    kept: np.ndarray
    step: int = 1

    @cached_property
    def points(self) -> np.ndarray:
        """(H, W, 3) float32 world; not finite where the depth is not."""
        with np.errstate(invalid="ignore"):
            return self.view.points_world()

    @cached_property
    def normals(self) -> np.ndarray:
        """(H, W, 3) float32 unit normals in the world on the side of the camera, across a few kept pixels; else nan."""
        return normals(self.points, self.kept, reach=2)

    @cached_property
    def facing(self) -> np.ndarray:
        """(H, W) float32 cosine of the angle of normal and line of sight: 1 seen straight on, 0 edge on; or nan."""
        rays = self.points - self.centre.astype(np.float32)
        with np.errstate(invalid="ignore", divide="ignore"):
            return -np.sum(rays * self.normals, axis=-1) / np.linalg.norm(rays, axis=-1)

    @property
    def centre(self) -> np.ndarray:
        """(3,) of the camera, world."""
        return self.view.world_from_cam[:3, 3]

    def look_up(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """z-depth (n,) of points (n, 3) of the world, the flat pixel (n,) that shows each, (n,) bool: it has one."""
        view = self.view
        H, W = view.depth.shape
        local = (points - self.centre) @ view.world_from_cam[:3, :3]
        xy = project(local, view.K, view.distortion)
        with np.errstate(invalid="ignore"):
            seen = np.all((xy > -0.5) & (xy < np.array([W, H]) - 0.5), axis=1)
        x, y = np.round(np.where(seen[:, None], xy, 0)).astype(np.int64).T
        return local[:, 2], y * W + x, seen


@dataclass(frozen=True)
class PhotoMesh:
    """A surface that one photo covers.

    vertices  (N, 3) world
    faces     (F, 3) int, counter-clockwise seen from the front, the side of the cameras
    xy        (N, 2) pixels of the network's image of the photo, at which it shows the vertices
    position  of the photo's view among those that have a place in the scene
    """

    vertices: np.ndarray
    faces: np.ndarray
    xy: np.ndarray
    position: int


def placed_views(views: Sequence[ReconstructedView], options: SceneOptions) -> list[PlacedView]:
    """The views with the pixels that `options` keep, without those far outside of the scene.

    Of very many views only every second or third row and column is looked at: a scene file has no room for more.
    """
    step = math.ceil(math.sqrt(sum(view.depth.size for view in views) / _MOST_PIXELS))
    smaller = [_every_pixel_of(view, max(1, step)) for view in views]
    placed = [
        PlacedView(view, kept_pixels(view, options.threshold, options.clean_depth), max(1, step)) for view in smaller
    ]
    step = max(1, sum(int(np.count_nonzero(one.kept)) for one in placed) // _SAMPLES)
    samples = np.concatenate([np.zeros((0, 3)), *(one.points[one.kept][::step] for one in placed)])
    if not len(samples):
        return placed
    middle = np.median(samples, axis=0)
    limit = _FAR * float(np.quantile(np.linalg.norm(samples - middle, axis=1), 0.8))
    for one in placed:
        with np.errstate(invalid="ignore"):
            one.kept[~(np.linalg.norm(one.points - middle, axis=-1) <= limit)] = False
    return placed


@dataclass(frozen=True)
class Surface:
    """The triangles of one view on a grid of its pixels.

    rows, cols  (h,), (w,) ascending pixel rows and columns of the grid
    upper       (h - 1, w - 1) bool: triangle top left, bottom left, top right of the quad is kept
    lower       (h - 1, w - 1) bool: triangle top right, bottom left, bottom right is kept
    """

    rows: np.ndarray
    cols: np.ndarray
    upper: np.ndarray
    lower: np.ndarray

    @property
    def num_faces(self) -> int:
        return int(np.count_nonzero(self.upper)) + int(np.count_nonzero(self.lower))

    def indexed(self) -> tuple[np.ndarray, np.ndarray]:
        """The vertices that the triangles use, and the triangles.

        Returns (N, 2) int pixels (x, y) and (F, 3) int indices into them, row by row, counter-clockwise seen from
        the camera.
        """
        ids = np.arange(len(self.rows) * len(self.cols)).reshape(len(self.rows), len(self.cols))
        top_left, top_right, bottom_left, bottom_right = ids[:-1, :-1], ids[:-1, 1:], ids[1:, :-1], ids[1:, 1:]
        corners = np.stack(
            [
                np.stack([top_left, bottom_left, top_right], axis=-1),
                np.stack([top_right, bottom_left, bottom_right], axis=-1),
            ],
            axis=2,
        )
        faces = corners[np.stack([self.upper, self.lower], axis=2)]
        used = np.zeros(ids.size, dtype=bool)
        used[faces] = True
        y, x = np.nonzero(used.reshape(ids.shape))
        return np.stack([self.cols[x], self.rows[y]], axis=-1), (np.cumsum(used) - 1)[faces]


def _every_pixel_of(view: ReconstructedView, step: int) -> ReconstructedView:
    """The view of every `step`-th row and column from the first."""
    if step == 1:
        return view
    K = view.K.copy()
    K[:2] /= step  # pixel centres are integers, so that of column 2 step becomes 2
    names = ("rgb", "depth", "conf", "conf_clean", "mask")
    maps: dict[str, Any] = {
        name: None if (values := getattr(view, name)) is None else values[::step, ::step] for name in names
    }
    return replace(view, K=K, **maps)


def chosen_pixels(placed: Sequence[PlacedView], max_points: int) -> list[np.ndarray]:
    """Flat indices of the kept pixels of every view, or of a random subset of all (always the same one)."""
    kept = [np.flatnonzero(one.kept) for one in placed]
    ends = np.cumsum([len(pixels) for pixels in kept])
    if ends[-1] <= max_points:
        return kept
    # a random subset, because a regular one shows up as stripes
    chosen = np.zeros(ends[-1], dtype=bool)
    chosen[np.random.default_rng(0).choice(ends[-1], max_points, replace=False, shuffle=False)] = True
    return [pixels[part] for pixels, part in zip(kept, np.split(chosen, ends[:-1]), strict=True)]


def kept_pixels(view: ReconstructedView, min_conf_thr: float, clean_depth: bool) -> np.ndarray:
    """(H, W) bool: confidence above the threshold (strictly), opaque, finite and in front of the camera."""
    conf = view.conf_clean if clean_depth else view.conf
    with np.errstate(invalid="ignore"):
        kept = (conf > min_conf_thr) & (view.depth > 0) & np.isfinite(view.depth)
    return kept if view.mask is None else kept & view.mask


def thinned_surface(kept: np.ndarray, depth: np.ndarray, depth_jump: float, stride: float) -> Surface:
    """Triangles of the quads of every `stride`-th pixel; the first and last row and column always take part.

    A triangle needs its three corners in `kept` and no depth jump along its two sides of the quad. A jump lies
    between two neighbouring *pixels* whose depths differ by more than `depth_jump` of the smaller one; twice that
    where the surface slants as much on the whole, as a floor far away does. It is looked for at full resolution: over
    a wider step a slanted floor changes as much as a real edge does.

    kept    (H, W) bool
    depth   (H, W) z-depth
    stride  >= 1, need not be an integer
    """
    rows, cols = _grid_lines(depth.shape[0], stride), _grid_lines(depth.shape[1], stride)
    joined_across = _joined(depth[rows], cols, depth_jump)
    joined_down = _joined(depth[:, cols].T, rows, depth_jump).T
    corner = kept[np.ix_(rows, cols)]
    diagonal = corner[:-1, 1:] & corner[1:, :-1]
    return Surface(
        rows=rows,
        cols=cols,
        upper=diagonal & corner[:-1, :-1] & joined_across[:-1] & joined_down[:, :-1],
        lower=diagonal & corner[1:, 1:] & joined_across[1:] & joined_down[:, 1:],
    )


def _grid_lines(size: int, stride: float) -> np.ndarray:
    """Evenly spread integers from 0 to size - 1, at most about `stride` apart."""
    steps = max(1, int(np.ceil((size - 1) / stride)))
    return np.unique(np.round(np.linspace(0, size - 1, steps + 1)).astype(int))


def _joined(depth: np.ndarray, lines: np.ndarray, depth_jump: float) -> np.ndarray:
    """(n, len(lines) - 1) bool: no jump along a row of `depth` (n, size) from one of the `lines` to the next."""
    with np.errstate(invalid="ignore", divide="ignore"):
        step = np.abs(np.diff(depth, axis=1)) / np.minimum(depth[:, 1:], depth[:, :-1])
        smooth = (step <= depth_jump) | ((step <= _SLANTED * depth_jump) & (step <= _UNEVEN * _slanted(depth)))
    # a missing depth is a jump: comparisons with nan are False
    jumps_before = np.concatenate([np.zeros((len(depth), 1), dtype=int), np.cumsum(~smooth, axis=1)], axis=1)
    return jumps_before[:, lines[1:]] == jumps_before[:, lines[:-1]]


def _slanted(depth: np.ndarray) -> np.ndarray:
    """(n, size - 1) mean relative step from pixel to pixel of a row, around every step: large on a far floor."""
    steps = np.diff(np.log(depth), axis=1)
    reach = min(_SLANT_REACH, (steps.shape[1] - 1) // 2)
    sums = np.cumsum(np.pad(steps, ((0, 0), (reach + 1, reach)), mode="edge"), axis=1)
    return np.abs(sums[:, 2 * reach + 1 :] - sums[:, : -2 * reach - 1]) / (2 * reach + 1)


def normals(points: np.ndarray, kept: np.ndarray, reach: int) -> np.ndarray:
    """(H, W, 3) float32 unit normals of the surface through the points (H, W, 3) of a view, on the side of its camera.

    Across the pixels `reach` to either side, or to the one side that is kept; nan where there is none.
    """
    valid = np.where(kept[..., None], points, np.nan).astype(np.float32)
    down = _difference(valid, reach)
    across = _difference(valid.swapaxes(0, 1), reach).swapaxes(0, 1)
    found = np.cross(down, across)  # y down, x right: their product points to the camera
    length = np.linalg.norm(found, axis=-1, keepdims=True)
    return np.divide(found, length, out=np.full(points.shape, np.nan, dtype=np.float32), where=length > 0)


def _difference(points: np.ndarray, reach: int) -> np.ndarray:
    """Along the first axis, of the points `reach` after and before every one, or of those of them that exist."""
    missing = np.full((reach, *points.shape[1:]), np.nan, dtype=points.dtype)
    after, before = (
        np.concatenate([points[reach:], missing])[: len(points)],
        np.concatenate([missing, points])[: len(points)],
    )
    after, before = np.where(np.isnan(after), points, after), np.where(np.isnan(before), points, before)
    return after - before
