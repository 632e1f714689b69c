"""The dense stage by the kernels for CUDA devices, run by Triton's interpreter on the CPU, against the plain one."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from triton_interpreter import interpreted, outside, run_interpreted

from mast3r_sfm.dense import DenseCameras, DenseScene, agree
from mast3r_sfm.dense.agreement import Surfaces, opinions
from mast3r_sfm.dense.edges import sharpen_edges
from mast3r_sfm.dense.field import Stiffness, solve_field
from mast3r_sfm.dense.observations import TrackedPixels, observe, sightings_of_matches
from mast3r_sfm.dense.trust import judge
from mast3r_sfm.dense.views import DenseView
from mast3r_sfm.geometry import distort, project, rays, to_world
from mast3r_sfm.types import CanonicalView, Correspondences

pytest.importorskip("triton", reason="Triton comes with torch's CUDA builds")

SUBSAMPLE = 4
SHAPES = ((36, 44), (36, 44), (28, 52), (36, 44), (36, 44))
DISTORTION = (0.0, -0.12, 0.06, 0.0, -0.2)
CENTRES = ((0.0, 0, 0), (0.4, 0.1, 0), (-0.5, 0, 0.2), (0.2, 0, 6.5), (0.1, -0.3, -0.4))  # the fourth behind the wall
NEIGHBOURS = ((1, 2, 4), (0, 4, 3), (0, 1, 3, 4), (0,), ())
GROUP = (7, 3, 5, 0, 9)


@outside
def test_in_the_interpreter() -> None:
    run_interpreted(__file__)


@outside
def test_the_host_does_little_for_another_view(monkeypatch: pytest.MonkeyPatch) -> None:
    # it takes longer to launch work than a GPU takes to do it: 1,700 operations a view were nine tenths of the time
    from triton.runtime.jit import JITFunction

    from mast3r_sfm.dense.stage_cuda import agree_fused

    launched: Counter[str] = Counter()
    monkeypatch.setattr(JITFunction, "run", lambda kernel, *_, **__: launched.update([kernel.fn.__name__]))

    class Count(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            launched["torch"] += 1
            return func(*args, **(kwargs or {}))

    one, counts = make_scene(), []
    for n in (4, 24):
        cameras = (
            np.repeat(field[:1], n, 0) for field in (one.cameras.K, one.cameras.distortion, one.cameras.world_from_cam)
        )
        scene = replace(
            one, canonical=[one.canonical[0]] * n, photos=[one.photos[0]] * n, cameras=DenseCameras(*cameras),
            core_depths=[one.core_depths[0]] * n, neighbours=[[j for j in range(4) if j != k] for k in range(n)],
            group=range(n), matches=[replace(one.matches[0], i=k, j=k - 1) for k in range(1, n)], tracked=None,
        )  # fmt: skip
        launched.clear()
        with Count():
            agree_fused(scene, 2)
        counts.append(launched.total())
    assert 0 < counts[1] - counts[0] < 20 * 15, counts  # iterations are not replayed here, but all views share them


def make_scene(num_views: int = 5, tracks: bool = True) -> DenseScene:
    """Cameras before a slanted wall, one beyond it; predictions with noise, masks and steps; matches off by a pixel."""
    generator = np.random.default_rng(0)
    K = np.array([[[40.0 + k, 0, W / 2 - 0.3 * k], [0, 41.0, H / 2], [0, 0, 1]] for k, (H, W) in enumerate(SHAPES)])
    poses = np.tile(np.eye(4), (len(SHAPES), 1, 1))
    poses[:, :3, 3] = CENTRES
    poses[1, :3, :3] = [[np.cos(0.1), 0, -np.sin(0.1)], [0, 1, 0], [np.sin(0.1), 0, np.cos(0.1)]]
    canonical, photos, points, tracked = [], [], [], []
    for k, (H, W) in enumerate(SHAPES):
        pixel = np.stack(np.meshgrid(np.arange(W), np.arange(H)), -1)
        ray = rays(pixel, K[k], DISTORTION[k])
        turned = ray @ poses[k, :3, :3].T
        depth = (4 + 0.2 * CENTRES[k][0] - CENTRES[k][2]) / (turned[..., 2] - 0.2 * turned[..., 0])
        depth = np.abs(depth)
        points.append(to_world(ray * depth[..., None], poses[k]))
        x, y = pixel[..., 0], pixel[..., 1]
        predicted = depth * np.exp(0.03 * np.sin(x / 5 + k) + 0.01 * generator.normal(size=(H, W)) + 0.2)
        predicted[8:16, 10:18] *= 0.8  # floats before the wall
        core = predicted[2::SUBSAMPLE, 2::SUBSAMPLE]
        relative = predicted / core.repeat(SUBSAMPLE, 0).repeat(SUBSAMPLE, 1)
        relative[3, 4] = -1.0
        conf = 1 + 3 * generator.random((H, W))
        conf[:3] = 0
        photo = (60 * (x // 9 % 3) + 40 * (y // 8 % 2) + generator.integers(0, 9, (H, W))).astype(np.uint8)
        photos.append(np.repeat(photo[..., None], 3, -1))
        canonical.append(
            CanonicalView(
                GROUP[k], torch.from_numpy(relative).float(), torch.from_numpy(conf).float(),
                torch.from_numpy(core).float(), 42.0,
            )
        )  # fmt: skip
        some = generator.integers(0, [W, H], (9, 2))
        tracked.append(TrackedPixels(torch.from_numpy(some), torch.from_numpy(depth[some[:, 1], some[:, 0]]).float()))
    matches = []
    for i, j in ((0, 1), (2, 0), (1, 4), (3, 2), (0, 3)):
        H, W = SHAPES[i]
        own = generator.integers(0, [W, H], (150, 2))
        there = points[i][own[:, 1], own[:, 0]]
        in_j = (there - poses[j, :3, 3]) @ poses[j, :3, :3]
        in_j[:, 2] = np.where(in_j[:, 2] > 0.1, in_j[:, 2], 0.1)
        seen = project(in_j, K[j]) if not DISTORTION[j] else distort(in_j[:, :2] / in_j[:, 2:], DISTORTION[j])
        if DISTORTION[j]:
            seen = seen * np.diag(K[j])[:2] + K[j, :2, 2]
        seen = np.rint(seen + generator.normal(size=seen.shape) * 0.5)
        seen[:5] = 3  # wrong ones
        kept = np.all((seen >= 0) & (seen < [SHAPES[j][1], SHAPES[j][0]]), axis=1)
        xy_i, xy_j = (torch.from_numpy(one[kept]).int() for one in (own, seen))
        matches.append(
            Correspondences(GROUP[i], GROUP[j], xy_i, xy_j, torch.from_numpy(generator.random(len(xy_i)) + 0.1).float())
        )
    n = num_views
    return DenseScene(
        canonical=canonical[:n],
        photos=photos[:n],
        cameras=DenseCameras(K[:n], np.array(DISTORTION[:n]), poses[:n]),
        core_depths=[0.8 * one.core_depth for one in canonical[:n]],
        neighbours=[[j for j in others if j < n] for others in NEIGHBOURS[:n]],
        group=GROUP[:n],
        matches=[m for m in matches if m.i in GROUP[:n] and m.j in GROUP[:n]],
        tracked=tracked[:n] if tracks else None,
        subsample=SUBSAMPLE,
    )


def plain_views(scene: DenseScene) -> list[DenseView]:
    cameras = scene.cameras
    return [
        DenseView.of(
            one, scene.photos[k], cameras.K[k], float(cameras.distortion[k]), cameras.world_from_cam[k],
            scene.neighbours[k], scene.subsample,
        )
        for k, one in enumerate(scene.canonical)
    ]  # fmt: skip


@pytest.fixture
def few_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter takes longer for many small blocks than for few large ones."""
    for name in ("agreement", "edges", "field", "trust"):
        monkeypatch.setattr(f"mast3r_sfm.dense.{name}_triton._BLOCK", 2048)


def packed_views(scene: DenseScene) -> Any:
    from mast3r_sfm.dense.packed import PackedViews

    return PackedViews.of(scene.canonical, scene.cameras, scene.neighbours, scene.subsample)


def packed(maps: Any) -> torch.Tensor:
    return torch.cat([one.reshape(-1) for one in maps])


def nearly_all_close(found: torch.Tensor, expected: torch.Tensor, atol: float, share: float = 1.0) -> None:
    close = (found - expected).abs() <= atol
    assert float(close.float().mean()) >= share, float((~close).float().mean())


@interpreted
def test_packed_views_are_the_views() -> None:
    scene = make_scene()
    views, found = plain_views(scene), packed_views(scene)
    torch.testing.assert_close(found.relief, packed(view.relief for view in views), rtol=1e-6, atol=1e-6)
    assert torch.equal(found.conf, packed(view.conf for view in views))
    assert [one.shape for one in found.maps_of(found.relief)] == [view.shape for view in views]
    assert found.first.tolist() == [0, 3, 6, 10, 11, 11] and found.neighbour.tolist()[:3] == [1, 2, 4]


@interpreted
@pytest.mark.parametrize("count", [1, 2, 301, 5000])
def test_medians_are_those_of_torch(count: int) -> None:
    from mast3r_sfm.dense.median_triton import median, segment_medians

    generator = torch.Generator().manual_seed(count)
    values = torch.rand(count, generator=generator)
    values[count // 2 :] *= 1e-3
    noisy = torch.cat([values, torch.tensor([-1.0, -0.5, torch.nan])])[torch.randperm(count + 3, generator=generator)]
    assert float(median(noisy)) == float(values.median())
    assert bool(median(torch.tensor([-1.0])).isnan())
    bounds = [0, count // 3 or 1, count] if count > 2 else [0, count]
    expected = [float(values[a:b].median()) for a, b in itertools.pairwise(bounds)]
    assert segment_medians(values, torch.tensor(bounds)).tolist() == expected


@interpreted
@pytest.mark.parametrize("tracks", [True, False])
@pytest.mark.parametrize("at_once", [1 << 23, 2000])
def test_observations_equal_the_plain_ones(tracks: bool, at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from mast3r_sfm.dense import observations_triton

    monkeypatch.setattr(observations_triton, "_PIXELS_AT_ONCE", at_once)
    scene = make_scene(tracks=tracks)
    views = plain_views(scene)
    sightings = sightings_of_matches(views, scene.group, scene.matches)
    expected = [
        observe(views, k, seen, scene.tracked[k] if scene.tracked else None) for k, seen in enumerate(sightings)
    ]
    found = observations_triton.observe_packed(
        packed_views(scene), scene.cameras, scene.group, scene.matches, scene.tracked
    )
    weight = packed(one.weight for one in expected)
    factor = packed(one.log_depth - view.relief for one, view in zip(expected, views, strict=True))
    assert 500 < int((weight > 0).sum()) < len(weight) / 2
    # slopes are differences of pixels that are a thousandth of a log depth apart, in float32
    torch.testing.assert_close(found.weight, weight, rtol=0.02, atol=1.0)
    # which also moves the result, by a small share of its standard deviation
    nearly_all_close(found.factor * weight.sqrt(), factor * weight.sqrt(), 0.02, 0.999)
    assert int((weight > 100).sum()) > 50
    nearly_all_close(found.factor[weight > 100], factor[weight > 100], 2e-4, 0.99)


@interpreted
def test_without_matches_and_tracks_nothing_is_observed() -> None:
    from mast3r_sfm.dense.observations_triton import observe_packed

    scene = replace(make_scene(tracks=False), matches=[])
    found = observe_packed(packed_views(scene), scene.cameras, scene.group, scene.matches, None)
    assert not bool(found.weight.any()) and not bool(found.factor.any())


@interpreted
def test_opinions_equal_the_plain_ones() -> None:
    from mast3r_sfm.dense.agreement_triton import write_opinions
    from mast3r_sfm.dense.stage_cuda import usual_confidence

    scene = make_scene()
    views, table = plain_views(scene), packed_views(scene)
    surfaces = Surfaces.of(views, [view.relief for view in views])
    heard = 0
    for shape, members in ((SHAPES[0], [4, 0, -1, 1, 3]), (SHAPES[2], [2])):
        log_depth, weight = torch.zeros(len(members), *shape), torch.zeros(len(members), *shape)
        numbers = torch.tensor(members, dtype=torch.int32)
        write_opinions(table, table.relief, usual_confidence(table), numbers, log_depth, weight)
        for slot, k in enumerate(members):
            if k < 0:
                assert not bool(weight[slot].any())
                continue
            expected = opinions(views, k, surfaces)
            nearly_all_close(log_depth[slot], expected.log_depth, 1e-5, 0.999)
            weighed = expected.weight > 1
            nearly_all_close(weight[slot][weighed] / expected.weight[weighed], torch.ones(()), 1e-3, 0.999)
            heard += int((expected.log_depth != views[k].relief).sum())
    assert heard > 2000


@interpreted
@pytest.mark.parametrize("iterations", [20, 7])
def test_the_field_is_the_plain_one(iterations: int) -> None:
    from mast3r_sfm.dense.field_triton import FieldSolver

    table = packed_views(make_scene())
    generator = torch.Generator().manual_seed(0)
    factor = 0.2 + 0.02 * torch.randn(table.relief.shape, generator=generator)
    weight = 4e4 * (torch.rand(table.relief.shape, generator=generator) < 0.1).float()
    field = torch.full_like(table.relief, 0.15)
    starts = table.maps_of(field.clone())
    solver = FieldSolver(table, field, factor, weight, SHAPES[0], 3)
    solver.heard.copy_(table.relief[: SHAPES[0][0] * SHAPES[0][1]].view(SHAPES[0]) + 0.1)
    solver.heard_weight.fill_(2500.0)
    members = [3, -1, 0]
    solver.choose(torch.tensor(members, dtype=torch.int32))
    solver.solve(0.05, iterations, heard=True)
    for k, found in enumerate(table.maps_of(field)):
        if k not in members:
            assert torch.equal(found, starts[k])
            continue
        relief, o, w = (table.maps_of(one)[k] for one in (table.relief, factor, weight))
        w = w / (1 + ((o - starts[k]) / 0.05) ** 2)
        total, pull = w + 2500, w * o + 2500 * (solver.heard[0] - relief)
        expected = solve_field(
            Stiffness.of(relief[None]), total[None], (pull / total)[None], starts[k][None], iterations
        )
        torch.testing.assert_close(found, expected[0], rtol=0, atol=2e-5)
        assert float((found - starts[k]).abs().mean()) > 0.01


@interpreted
@pytest.mark.usefixtures("few_programs")
def test_edges_equal_the_plain_ones() -> None:
    from mast3r_sfm.dense.edges_triton import sharpen_packed

    scene = make_scene()
    views, table = plain_views(scene), packed_views(scene)
    sharp = torch.full_like(table.relief, torch.nan)
    for which in (range(2), range(2, 5)):
        rgb = packed(views[k].rgb for k in which).view(-1, 3)
        sharpen_packed(table, which, table.relief, rgb, sharp)
    expected = packed(sharpen_edges(view.relief, view.rgb, view.conf) for view in views)
    nearly_all_close(sharp, expected, 1e-6, 0.999)
    assert int((expected != table.relief).sum()) > 300


@interpreted
def test_trust_equals_the_plain_one() -> None:
    from mast3r_sfm.dense.trust_triton import judge_packed

    scene = make_scene()
    views, table = plain_views(scene), packed_views(scene)
    conf, clean = judge_packed(table, table.relief)
    expected = judge(views, Surfaces.of(views, [view.relief for view in views]))
    nearly_all_close(conf, packed(expected.conf), 1e-4, 0.999)
    nearly_all_close(clean, packed(expected.clean), 1e-4, 0.999)
    assert int((packed(expected.clean) != packed(expected.conf)).sum()) > 50
    gain = (packed(expected.conf) / table.conf)[table.conf > 0]
    assert len(gain.mul(1000).round().unique()) > 5


@interpreted
@pytest.mark.usefixtures("few_programs")
@pytest.mark.parametrize("count", [5, 2, 1])
def test_the_stage_equals_the_plain_one(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from mast3r_sfm.dense import stage, stage_cuda

    for module in (stage, stage_cuda):
        monkeypatch.setattr(module, "FIRST_ITERATIONS", 12)
        monkeypatch.setattr(module, "ITERATIONS", 8)
    monkeypatch.setattr(stage_cuda, "_PIXELS_AT_ONCE", 4000)  # two views
    monkeypatch.setattr(stage_cuda, "_PHOTO_PIXELS_AT_ONCE", 3500)
    scene = make_scene(count, tracks=count > 1)
    expected, found = agree(scene), stage_cuda.agree_fused(scene, 2)
    for a, b in ((found.depths, expected.depths), (found.confs, expected.confs), (found.clean, expected.clean)):
        assert [one.shape for one in a] == [one.shape for one in b]
    nearly_all_close(packed(found.depths) / packed(expected.depths), torch.ones(()), 1e-4, 0.995)
    nearly_all_close(packed(found.confs), packed(expected.confs), 1e-3, 0.995)
    nearly_all_close(packed(found.clean), packed(expected.clean), 1e-3, 0.995)


@outside
@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("at_once", [1 << 20, 4000])  # one recording of all views of a size, or one used twice
def test_the_stage_on_a_gpu_equals_that_on_the_cpu(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from mast3r_sfm.dense import stage_cuda

    monkeypatch.setattr(stage_cuda, "_PIXELS_AT_ONCE", at_once)
    scene = make_scene()
    there = [
        replace(one, **{name: getattr(one, name).cuda() for name in ("relative_depth", "conf", "core_depth")})
        for one in scene.canonical
    ]
    expected = agree(scene)
    found, again = (agree(replace(scene, canonical=there)) for _ in range(2))
    nearly_all_close(packed(found.depths).cpu() / packed(expected.depths), torch.ones(()), 1e-4, 0.995)
    nearly_all_close(packed(found.confs).cpu(), packed(expected.confs), 1e-3, 0.995)
    nearly_all_close(packed(found.clean).cpu(), packed(expected.clean), 1e-3, 0.995)
    for a, b in zip(found.depths + found.confs + found.clean, again.depths + again.confs + again.clean, strict=True):
        assert torch.equal(a, b)
