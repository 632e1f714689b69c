"""The figures of `benchmarks.dense` on results whose figures are known."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import pytest

from benchmarks.dense import Scene, draw, grid_steps, measure
from mast3r_sfm.types import ImageTransform, ReconstructedView

SHAPE = (16, 32)
K = np.array([[40.0, 0, 15.5], [0, 40, 7.5], [0, 0, 1]])


def view_of(index: int, depth: np.ndarray, centre: float, conf: float = 2.0, **changes: Any) -> ReconstructedView:
    H, W = SHAPE
    pose = np.eye(4)
    pose[0, 3] = centre
    confs = np.full(SHAPE, conf, np.float32)
    fields: dict[str, Any] = {
        "index": index, "file": "", "transform": ImageTransform((W, H), (W, H), (0, 0), (W, H)),
        "rgb": np.zeros((*SHAPE, 3), np.uint8), "registered": True, "K": K, "world_from_cam": pose,
        "depth": depth.astype(np.float32), "conf": confs, "conf_clean": confs, "median_reprojection_error_px": 0.0,
        "num_matches": 1,
    }  # fmt: skip
    return ReconstructedView(**(fields | changes))


def scene_of(depth: float) -> Scene:
    """Cameras 0, 2 and 4 units to the right of each other before a wall."""
    poses = np.tile(np.eye(4), (3, 1, 1))
    poses[:, 0, 3] = 0, 2, 4
    return Scene((), cast(Any, None), cast(Any, None), np.full((3, *SHAPE), depth, np.float32), poses)


def test_the_truth_in_another_unit_is_right_everywhere() -> None:
    views = [view_of(k, np.full(SHAPE, 5.0), centre=float(k)) for k in range(3)]
    found = measure(views, scene_of(10.0), threshold=1.0, seconds=0.0)
    assert (found.covered, found.right, found.floating) == (100, 100, 0)
    assert (found.own_right, found.own_wrong, found.kept, found.precise, found.right_kept) == (100, 0, 100, 100, 100)


def test_what_floats_and_what_is_left_out_is_counted() -> None:
    depth = np.full(SHAPE, 5.0)
    depth[:, :8] = 4.0  # a quarter floats 20 % in front
    depths = [depth, np.full(SHAPE, 5.0), np.full(SHAPE, np.nan)]
    views = [view_of(k, one, centre=float(k)) for k, one in enumerate(depths)]
    conf = np.full(SHAPE, 2.0, np.float32)
    conf[:, 24:] = 0.5  # a quarter is not kept, all of it right
    views[0] = view_of(0, depth, 0.0, conf_clean=conf)
    found = measure(views, scene_of(10.0), threshold=1.0, seconds=0.0)
    assert found.own_right == pytest.approx(100 * (0.75 + 1) / 3)
    assert found.own_wrong == pytest.approx(100 * (0.25 + 0 + 1) / 3)
    assert found.kept == pytest.approx(100 * (0.75 + 1) / 3)
    assert found.precise == pytest.approx(100 * (0.5 + 1) / 1.75)
    assert found.right_kept == pytest.approx(100 * (0.5 + 1) / 1.75)
    assert found.floating >= 100 * 0.25 / 3 - 1e-9


def test_a_view_that_is_not_registered_counts_as_wrong() -> None:
    views = [view_of(k, np.full(SHAPE, 5.0), float(k), registered=k < 2) for k in range(3)]
    found = measure(views, scene_of(10.0), threshold=1.0, seconds=0.0)
    assert found.own_right == pytest.approx(200 / 3) and found.covered == pytest.approx(200 / 3)


def test_points_are_drawn_with_a_depth_buffer() -> None:
    points = np.array([[0.0, 0, 4], [0, 0, 2], [0, 0, -1], [100, 0, 1]])
    drawn = draw(points, view_of(0, np.full(SHAPE, 5.0), 0.0))
    assert drawn[8, 16] == 2 and np.isinf(drawn).sum() == drawn.size - 1  # 15.5 and 7.5, halves to even


def test_steps_across_the_grid_are_told_from_others() -> None:
    error = np.zeros((1, 24))
    error[:, 8:] += 0.1  # across a line of the grid
    error[:, 12:] += 0.5  # inside, and cut off at 0.2
    across, inside = grid_steps(error)
    assert across.tolist() == pytest.approx([0.1, 0.0]) and inside.sum() == pytest.approx(0.2) and len(inside) == 21
