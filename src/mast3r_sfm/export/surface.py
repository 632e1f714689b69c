"""Which pixels of a view become points of the scene, and which neighbouring pixels a triangle may join."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mast3r_sfm.types import ReconstructedView


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


def kept_pixels(view: ReconstructedView, min_conf_thr: float, clean_depth: bool) -> np.ndarray:
    """(H, W) bool: confidence above the threshold (strictly), opaque, finite and in front of the camera."""
    conf = view.conf_clean if clean_depth else view.conf
    with np.errstate(invalid="ignore"):
        kept = (conf > min_conf_thr) & (view.depth > 0) & np.isfinite(view.depth)
    return kept if view.mask is None else kept & view.mask


def thinned_surface(kept: np.ndarray, depth: np.ndarray, depth_jump: float, stride: float) -> Surface:
    """Triangles of the quads of every `stride`-th pixel; the first and last row and column always take part.

    A triangle needs its three corners in `kept` and no depth jump along its two sides of the quad. A jump lies
    between two neighbouring *pixels* whose depths differ by more than `depth_jump` of the smaller one. It is looked
    for at full resolution: over a wider step a slanted floor changes as much as a real edge does.

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
    with np.errstate(invalid="ignore"):
        smaller = np.minimum(depth[:, 1:], depth[:, :-1])
        smooth = np.abs(np.diff(depth, axis=1)) <= depth_jump * smaller  # False where a depth is missing
    jumps_before = np.concatenate([np.zeros((len(depth), 1), dtype=int), np.cumsum(~smooth, axis=1)], axis=1)
    return jumps_before[:, lines[1:]] == jumps_before[:, lines[:-1]]
