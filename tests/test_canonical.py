"""Canonical views: known surfaces first, then the goldens."""

import logging
import math

import numpy as np
import pytest
import torch
from golden_scene import ALIGNMENT_SCENES, DATA, load_scene

from mast3r_sfm.canonical import (
    CanonicalAccumulator,
    anchor_index,
    block_centres,
    block_grid,
    depth_offsets,
    estimate_focal,
    spread_blocks,
)
from mast3r_sfm.errors import ReconstructionError
from mast3r_sfm.types import CanonicalView


def pointmap(depth: torch.Tensor, focal: float) -> torch.Tensor:
    """(H, W, 3) of a pinhole camera with its principal point at (W/2, H/2)."""
    H, W = depth.shape
    x = (torch.arange(W) - W / 2).expand(H, W) / focal
    y = (torch.arange(H)[:, None] - H / 2).expand(H, W) / focal
    return torch.stack([x * depth, y * depth, depth], -1)


def slanted_plane(H: int, W: int, focal: float) -> torch.Tensor:
    """Depth of the plane Z = 4 + 0.3 X - 0.2 Y."""
    ray = pointmap(torch.ones(H, W), focal)
    return 4 / (1 - 0.3 * ray[..., 0] + 0.2 * ray[..., 1])


def finish(points: torch.Tensor, conf: torch.Tensor) -> CanonicalView:
    accumulator = CanonicalAccumulator(*conf.shape)
    accumulator.add(points, conf)
    return accumulator.finish(0)


def close(actual: torch.Tensor, expected: np.ndarray, tolerance: float) -> None:
    """Largest difference relative to the largest expected value."""
    wanted = torch.as_tensor(expected).double()
    difference = (actual.double() - wanted).abs().max() / wanted.abs().max()
    assert difference <= tolerance, f"{float(difference):.2e} > {tolerance:.0e}"


def test_block_centres_and_anchors_of_a_whole_and_a_partial_grid() -> None:
    assert block_centres(24, 8).tolist() == [4, 12, 20]
    # 5 pixels are left for the last block: its centre 16 + 4 is the last pixel; of 3 pixels it is clamped
    assert block_centres(21, 8).tolist() == [4, 12, 20]
    assert block_centres(19, 8).tolist() == [4, 12, 18]
    assert block_grid((19, 24), 8) == (3, 3)
    xy = torch.tensor([[0, 0], [7, 7], [8, 0], [18, 23]])
    assert anchor_index(xy, (24, 19), 8).tolist() == [0, 0, 1, 8]
    assert spread_blocks(torch.tensor([[1, 2], [3, 4]]), (3, 3), 2).tolist() == [[1, 1, 2], [1, 1, 2], [3, 3, 4]]


@pytest.mark.parametrize("shape", [(48, 64), (42, 70)])
def test_one_exact_pointmap_gives_back_its_depth_and_focal(shape: tuple[int, int]) -> None:
    focal = 60.0
    depth = slanted_plane(*shape, focal)
    view = finish(pointmap(depth, focal), torch.full(shape, 3.0))
    rows, columns = block_centres(shape[0], 8), block_centres(shape[1], 8)
    torch.testing.assert_close(view.core_depth, depth[rows][:, columns])
    torch.testing.assert_close(view.relative_depth, depth / spread_blocks(view.core_depth, shape, 8))
    assert view.focal_px == pytest.approx(focal, rel=1e-5)
    # a single map has w^2 / w = C - 0.999
    torch.testing.assert_close(view.conf, torch.full(shape, 2.001))
    xy = torch.tensor([[0, 0], [shape[1] - 1, shape[0] - 1], [9, 30]])
    x, y = xy.unbind(1)
    anchors = anchor_index(xy, shape, 8)
    torch.testing.assert_close(
        depth_offsets(view.relative_depth, xy, 8) * view.core_depth.view(-1)[anchors], depth[y, x]
    )


def test_two_maps_are_averaged_with_their_weights() -> None:
    shape = (16, 16)
    near, far = (pointmap(torch.full(shape, depth), 20.0) for depth in (1.0, 3.0))
    accumulator = CanonicalAccumulator(*shape)
    accumulator.add(near, torch.full(shape, 1.999))  # weight 1
    accumulator.add(far, torch.full(shape, 3.999))  # weight 3
    view = accumulator.finish(0)
    # (1 * 1 + 3 * 3) / 4 and (1 + 9) / 4
    torch.testing.assert_close(view.core_depth, torch.full((2, 2), 2.5))
    torch.testing.assert_close(view.conf, torch.full(shape, 2.5))
    torch.testing.assert_close(view.relative_depth, torch.ones(shape))


def test_angles_not_depths_are_averaged() -> None:
    # one row of a block: dz = 1 over a radius of 1 in one map (45 degrees), 0 in the other: tan(22.5 degrees)
    shape = (2, 2)
    flat = torch.tensor([[[-1.0, -1, 2], [0, -1, 2]], [[-1, 0, 2], [0, 0, 2]]])
    steep = flat.clone()
    steep[1, 0, 2] = 3.0
    accumulator = CanonicalAccumulator(*shape, subsample=2)
    for points in (flat, steep):
        accumulator.add(points, torch.full(shape, 2.0))
    view = accumulator.finish(0)
    assert view.relative_depth[1, 0] == pytest.approx(1 + math.tan(math.radians(22.5)) / 2)
    assert view.relative_depth[1, 1] == 1


def test_order_and_repetition_change_nothing() -> None:
    scene = load_scene("mixed4")
    maps = [scene.prediction(1, other, 1) for other in (0, 2, 3)]
    views = []
    for order in ((0, 1, 2), (2, 0, 1), (0, 1, 2, 2, 1, 0)):
        accumulator = CanonicalAccumulator(*maps[0].conf.shape)
        for k in order:
            accumulator.add(maps[k].points, maps[k].conf)
        views.append(accumulator.finish(1))
    for view in views[1:]:
        torch.testing.assert_close(view.relative_depth, views[0].relative_depth, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(view.conf, views[0].conf)
        assert view.focal_px == pytest.approx(views[0].focal_px, rel=1e-6)


def test_few_bad_blocks_become_flat_at_the_median_depth(caplog: pytest.LogCaptureFixture) -> None:
    shape = (64, 64)
    depth = slanted_plane(*shape, 60.0)
    depth[8:16, 16:24] = -1.0
    with caplog.at_level(logging.WARNING):
        view = finish(pointmap(depth, 60.0), torch.full(shape, 2.0))
    assert "1 of 64 blocks" in caplog.text
    good = torch.ones(8, 8, dtype=torch.bool)
    good[1, 2] = False
    assert view.core_depth[1, 2] == view.core_depth[good].median()
    assert (view.relative_depth[8:16, 16:24] == 1).all()
    assert (view.core_depth > 0).all()


def test_many_bad_blocks_are_an_error_that_names_the_image() -> None:
    depth = torch.full((64, 64), 2.0)
    depth[:, :32] = 0.0
    accumulator = CanonicalAccumulator(64, 64)
    accumulator.add(pointmap(depth, 60.0), torch.full((64, 64), 2.0))
    with pytest.raises(ReconstructionError, match=r"garden\.jpg.* 50%"):
        accumulator.finish(3, name="garden.jpg")


def test_nothing_added_and_non_finite_predictions_are_errors() -> None:
    accumulator = CanonicalAccumulator(16, 16)
    with pytest.raises(ReconstructionError, match="image 7"):
        accumulator.finish(7)
    points = pointmap(torch.ones(16, 16), 10.0)
    accumulator.add(points, torch.full((16, 16), 2.0), pair=(4, 7))
    points[3, 3, 0] = torch.nan
    accumulator.add(points, torch.full((16, 16), 2.0), pair=(7, 5))
    with pytest.raises(ReconstructionError, match="pair 7-5 is not finite"):
        accumulator.finish(7)


def test_golden_canonical() -> None:
    with np.load(DATA / "canonical.npz") as golden:
        X, C = torch.from_numpy(golden["X"]), torch.from_numpy(golden["C"])
        accumulator = CanonicalAccumulator(96, 128)
        for points, conf in zip(X, C, strict=True):
            accumulator.add(points, conf)
        view = accumulator.finish(0)
        canon = accumulator.mean_points()
        close(canon, golden["canon"], 5e-6)
        close(view.relative_depth, golden["canon2"], 5e-6)
        close(view.conf, golden["conf"], 5e-6)
        close(torch.tensor([view.focal_px]), golden["focal"], 5e-6)
        close(estimate_focal(canon * torch.tensor([9.0, 9.0, 1.0]))[None], golden["focal_clipped_low"], 5e-6)
        close(estimate_focal(canon[:, :64])[None], golden["focal_left_half"], 5e-6)
        holes = canon.clone()
        holes[::7, ::5, 2] = 0
        close(estimate_focal(holes)[None], golden["focal_holes"], 5e-6)
        single = finish(X[0], C[0])
        close(single.relative_depth[::3, ::3], golden["single_canon2_sample"], 5e-6)
        close(single.conf[::3, ::3], golden["single_conf_sample"], 5e-6)


@pytest.mark.parametrize("name", ALIGNMENT_SCENES)
def test_golden_scenes(name: str) -> None:
    scene = load_scene(name)
    golden = scene.golden
    for i, j in scene.pairs[:2]:
        for tag in ((i, j, i), (i, j, j), (j, i, j), (j, i, i)):
            prediction, key = scene.prediction(*tag), "_".join(map(str, tag))
            close(prediction.points[5::24, 3::24], golden[f"check_X_{key}"], 1e-6)
            close(prediction.conf[5::24, 3::24], golden[f"check_C_{key}"], 1e-6)
    views = scene.canonical_views
    close(torch.tensor([view.focal_px for view in views]), golden["base_focals"], 1e-5)
    for i, (view, accumulator) in enumerate(zip(views, scene.accumulators(), strict=True)):
        close(accumulator.mean_points()[2::7, 3::7], golden[f"canon{i}_sample"], 1e-5)
        close(view.relative_depth[2::7, 3::7], golden[f"canon2{i}_sample"], 1e-5)
        close(view.conf[2::7, 3::7], golden[f"canon_conf{i}_sample"], 1e-5)
        close(view.conf.mean(), golden[f"canon_conf{i}_mean"], 1e-5)
        close(view.core_depth, golden[f"core_depth{i}"], 1e-5)
        xy = scene.tensor(f"anchor_pix{i}")
        H, W = view.conf.shape
        assert torch.equal(anchor_index(xy, (H, W), 8), scene.tensor(f"anchor_idx{i}").long())
        close(depth_offsets(view.relative_depth, xy, 8), golden[f"anchor_off{i}"], 1e-5)
