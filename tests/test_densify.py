"""Dense depth and cleaning: two cameras by hand first, then the goldens."""

from typing import Any

import numpy as np
import pytest
import torch
from golden_scene import ALIGNMENT_SCENES, load_scene

from mast3r_sfm.dense import DenseResult
from mast3r_sfm.densify import _known_maps, clean_confidences, dense_depth
from mast3r_sfm.geometry import points_of_depth, project, to_world
from mast3r_sfm.types import CanonicalView

K = torch.tensor([[20.0, 0, 8], [0, 20, 6], [0, 0, 1]])
SHAPE = (12, 16)


def poses(*centres: tuple[float, float, float]) -> torch.Tensor:
    """Cameras at the given centres, all looking along +z."""
    world_from_cam = torch.eye(4).repeat(len(centres), 1, 1)
    world_from_cam[:, :3, 3] = torch.tensor(centres)
    return world_from_cam


def clean(
    depths: list[torch.Tensor], confs: list[torch.Tensor], world_from_cam: torch.Tensor, **kwargs: Any
) -> list[torch.Tensor]:
    return clean_confidences(depths, confs, K.expand(len(depths), 3, 3), world_from_cam, **kwargs)


def test_dense_depth_scales_the_relief_by_the_change_of_focal() -> None:
    relative = torch.ones(4, 4)
    relative[:2, 0] = 1.4  # S = 2: block centres are (1, 1), (1, 3), (3, 1), (3, 3)
    relative[0, 3] = 0.9
    canonical = CanonicalView(0, relative, torch.ones(4, 4), torch.ones(2, 2), focal_px=100.0)
    depth = dense_depth(canonical, torch.tensor([[2.0, 3.0], [4.0, 5.0]]), focal_px=200.0, subsample=2)
    # twice the focal length: offsets 1.4 -> 1.2, 0.9 -> 0.95
    expected = torch.tensor([[2.4, 2, 3, 2.85], [2.4, 2, 3, 3], [4, 4, 5, 5], [4, 4, 5, 5]])
    torch.testing.assert_close(depth, expected)


def test_a_floating_point_in_front_of_a_more_confident_surface_is_removed() -> None:
    # camera 1 stands one unit behind camera 0 and sees the wall at depth 5; camera 0 has one pixel at 2
    depths = [torch.full(SHAPE, 4.0), torch.full(SHAPE, 5.0)]
    depths[0][6, 8] = 2.0  # the principal point: projects to (8, 6) of camera 1 at depth 3 < 5
    confs = [torch.full(SHAPE, 2.0), torch.full(SHAPE, 3.0)]
    cleaned = clean(depths, confs, poses((0, 0, 0), (0, 0, -1)))
    expected = confs[0].clone()
    expected[6, 8] = 0
    assert torch.equal(cleaned[0], expected)
    assert torch.equal(cleaned[1], confs[1])
    assert float(confs[0][6, 8]) == 2.0, "the inputs are not changed"


def test_the_more_confident_point_stays() -> None:
    depths = [torch.full(SHAPE, 4.0), torch.full(SHAPE, 5.0)]
    depths[0][6, 8] = 2.0
    confs = [torch.full(SHAPE, 2.0), torch.full(SHAPE, 2.0)]  # equal is not less
    cleaned = clean(depths, confs, poses((0, 0, 0), (0, 0, -1)))
    assert torch.equal(cleaned[0], confs[0])


def test_points_within_the_tolerance_behind_or_outside_stay() -> None:
    same = poses((0, 0, 0), (0, 0, 0))
    for depth, removed in ((4.0, False), (3.9961, False), (3.9959, True), (4.1, False), (-1.0, False)):
        cleaned = clean(
            [torch.full(SHAPE, depth), torch.full(SHAPE, 4.0)], [torch.ones(SHAPE), 2 * torch.ones(SHAPE)], same
        )
        assert bool((cleaned[0] == 0).all()) == removed, depth
    aside = poses((0, 0, 0), (100, 0, 0))
    cleaned = clean([torch.full(SHAPE, 1.0), torch.full(SHAPE, 4.0)], [torch.ones(SHAPE), 2 * torch.ones(SHAPE)], aside)
    assert (cleaned[0] == 1).all()


@pytest.mark.parametrize("unknown", [0.0, torch.nan, torch.inf])
def test_unknown_depth_neither_tests_nor_is_tested(unknown: float) -> None:
    same = poses((0, 0, 0), (0, 0, -1))
    confs = [torch.ones(SHAPE), 2 * torch.ones(SHAPE)]
    for depths in (
        [torch.full(SHAPE, 1.0), torch.full(SHAPE, unknown)],
        [torch.full(SHAPE, unknown), torch.full(SHAPE, 4.0)],
    ):
        cleaned = clean(depths, confs, same)
        assert all(torch.equal(after, before) for after, before in zip(cleaned, confs, strict=True))


def test_views_are_cleaned_in_turn() -> None:
    # same camera three times; 0 floats before 1, 1 before 2. 0 goes first, so the later fall of 1 does not save it
    depths = [torch.full(SHAPE, d) for d in (1.0, 2.0, 3.0)]
    confs = [torch.full(SHAPE, c) for c in (1.0, 2.0, 3.0)]
    same = poses(*[(0, 0, 0)] * 3)
    assert [float(c.max()) for c in clean(depths, confs, same)] == [0, 0, 3]
    # other order: the middle surface falls first (its confidence is 0 then) and no longer removes the front one
    depths, confs = [depths[k] for k in (1, 0, 2)], [torch.full(SHAPE, c) for c in (2.0, 1.0, 3.0)]
    cleaned = clean(depths, confs, same, neighbours=[[2], [0], [0, 1]])
    assert [float(c.max()) for c in cleaned] == [0, 1, 3]


def test_brute_force_agrees_on_views_of_different_size() -> None:
    rng = np.random.default_rng(0)
    shapes = [(12, 16), (16, 12), (10, 14)]
    depths = [torch.from_numpy(rng.uniform(2, 3, shape).astype(np.float32)) for shape in shapes]
    confs = [torch.from_numpy(rng.uniform(1, 3, shape).astype(np.float32)) for shape in shapes]
    world_from_cam = poses((0, 0, 0), (0.3, 0, -0.2), (-0.2, 0.1, 0.1))
    cleaned = clean(depths, confs, world_from_cam)
    expected = [conf.clone() for conf in confs]
    for i in range(3):
        for j in range(3):
            if i == j:
                continue
            for y in range(shapes[i][0]):
                for x in range(shapes[i][1]):
                    z = depths[i][y, x]
                    cam = torch.stack([(x - K[0, 2]) / 20 * z, (y - K[1, 2]) / 20 * z, z])
                    p = cam + world_from_cam[i, :3, 3] - world_from_cam[j, :3, 3]
                    u = int(torch.round(20 * p[0] / p[2] + K[0, 2]))
                    v = int(torch.round(20 * p[1] / p[2] + K[1, 2]))
                    if p[2] > 0 and 0 <= v < shapes[j][0] and 0 <= u < shapes[j][1]:
                        hides = p[2] < 0.999 * depths[j][v, u] and expected[i][y, x] < expected[j][v, u]
                        if hides:
                            expected[i][y, x] = min(float(expected[i][y, x]), 0.0)
    assert sum(int((c == 0).sum()) for c in expected) > 20
    assert all(torch.equal(actual, wanted) for actual, wanted in zip(cleaned, expected, strict=True))


@pytest.mark.parametrize("distortion", [(0.0, 0.0, 0.0), (-0.3, 0.25, 0.0), (0.2, -0.35, -0.1)])
def test_lenses_bend_what_is_compared(distortion: tuple[float, float, float]) -> None:
    """Against the projection of every point, one by one, with the distortion of either camera."""
    rng = np.random.default_rng(1)
    depths = [torch.from_numpy(rng.uniform(2, 3, SHAPE).astype(np.float32)) for _ in range(3)]
    confs = [torch.from_numpy(rng.uniform(1, 3, SHAPE).astype(np.float32)) for _ in range(3)]
    world_from_cam = poses((0, 0, 0), (0.3, 0, -0.2), (-0.2, 0.1, 0.1))
    cleaned = clean(depths, confs, world_from_cam, distortion=distortion)
    expected = [conf.clone() for conf in confs]
    for i in range(3):
        points = to_world(points_of_depth(depths[i].numpy(), K.numpy(), distortion[i]), world_from_cam[i].numpy())
        for j in {0, 1, 2} - {i}:
            in_j = points - world_from_cam[j, :3, 3].numpy()
            pixel = np.rint(project(in_j, K.numpy(), distortion[j])).astype(int)
            inside = ((pixel >= 0) & (pixel < [16, 12])).all(-1)
            u, v = np.clip(pixel, 0, [15, 11]).transpose(2, 0, 1)
            bad = inside & (in_j[..., 2] < 0.999 * depths[j].numpy()[v, u])
            bad &= expected[i].numpy() < expected[j].numpy()[v, u]
            expected[i][torch.from_numpy(bad)] = 0
    assert sum(int((c == 0).sum()) for c in expected) > 20
    assert all(torch.equal(actual, wanted) for actual, wanted in zip(cleaned, expected, strict=True))
    straight = clean(depths, confs, world_from_cam)
    assert any(distortion) != all(torch.equal(a, b) for a, b in zip(cleaned, straight, strict=True))


def test_a_lens_does_not_show_what_its_distortion_would_fold_back() -> None:
    # k1 = -0.3 turns back at |x| = 1.05; the point at x = 1.6 would come back to pixel 8 + 20 * 1.6 * 0.232 = 15.4
    depths = [torch.zeros(SHAPE), torch.full(SHAPE, 5.0)]
    depths[0][6, 8] = 2.0
    confs = [torch.ones(SHAPE), 2 * torch.ones(SHAPE)]
    beside = poses((3.2, 0, 0), (0, 0, 0))
    assert clean(depths, confs, beside, distortion=(0.0, -0.3))[0][6, 8] == 1
    assert clean(depths, confs, poses((0.6, 0, 0), (0, 0, 0)), distortion=(0.0, -0.3))[0][6, 8] == 0


@pytest.mark.parametrize("at_once", [1 << 23, 5])
def test_a_depth_that_is_none_is_nan_without_confidence(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mast3r_sfm.densify._COPIED_AT_ONCE", at_once)
    ones = torch.ones(1, 5)
    depths = (torch.tensor([[1.0, 0.0, -13.6, torch.inf, torch.nan]]), torch.full((3, 2), 2.0))
    made = DenseResult(depths, (ones, torch.full((3, 2), 7.0)), (ones, torch.full((3, 2), 6.0)))
    (depth, conf, clean), other = _known_maps(made)
    assert [one.shape for one in other] == [(3, 2)] * 3 and [float(one[2, 1]) for one in other] == [2, 7, 6]
    assert depth[0, 0] == 1 and np.isnan(depth[0, 1:]).all()
    assert conf.tolist() == clean.tolist() == [[1, 0, 0, 0, 0]]


@pytest.mark.parametrize("name", ALIGNMENT_SCENES)
def test_golden_dense_points_and_cleaning(name: str) -> None:
    scene = load_scene(name)
    golden = scene.golden
    K_fine, world_from_cam = scene.tensor("fine_intrinsics"), scene.tensor("fine_cam2w")
    views = scene.canonical_views
    cores = scene.tensor("fine_depthmaps").split([view.core_depth.numel() for view in views])
    depths = [dense_depth(view, core, float(K_i[0, 0])) for view, core, K_i in zip(views, cores, K_fine, strict=True)]

    expected = golden["dense_depth0"]
    assert np.abs(depths[0][1::2, 1::2].numpy() - expected).max() <= 5e-5 * np.abs(expected).max()
    H, W = depths[0].shape
    x, y = torch.meshgrid(torch.arange(W), torch.arange(H), indexing="xy")
    rays = torch.stack([x, y, torch.ones_like(x)], -1).float() @ torch.linalg.inv(K_fine[0]).T
    points = (rays * depths[0][..., None]) @ world_from_cam[0, :3, :3].T + world_from_cam[0, :3, 3]
    expected = golden["dense_pts0"]
    assert np.abs(points[1::2, 1::2].numpy() - expected).max() <= 5e-5 * np.abs(expected).max()

    confs = [view.conf for view in views]
    cleaned = clean_confidences(depths, confs, K_fine, world_from_cam)
    for i, (before, after) in enumerate(zip(confs, cleaned, strict=True)):
        removed = (before != after).numpy().ravel()
        expected_removed = np.unpackbits(golden[f"dense_removed{i}"])[: removed.size].astype(bool)
        assert (removed != expected_removed).sum() <= 20
    different = np.abs(cleaned[0].numpy() - golden["dense_conf0_clean"]) > 1e-4
    assert different.sum() <= 20
