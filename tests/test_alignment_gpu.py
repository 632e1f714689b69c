"""The alignment on a CUDA device, where an iteration is a recorded graph, against the CPU."""

import dataclasses
import math

import pytest
import torch
from golden_scene import load_scene

from mast3r_sfm.alignment import (
    AlignmentConfig,
    AlignmentProblem,
    AlignmentResult,
    align,
    build_problem,
    gauss_newton,
    reprojection_errors,
    solver,
)
from mast3r_sfm.densify import clean_confidences, dense_depth
from mast3r_sfm.pairwise import sample_fallback
from mast3r_sfm.types import CanonicalView, FallbackPrediction

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


def solve(
    name: str, config: AlignmentConfig, device: str
) -> tuple[list[CanonicalView], AlignmentProblem, AlignmentResult]:
    scene = load_scene(name)
    fallback: dict[tuple[int, int], FallbackPrediction] = {}
    for pair in scene.pair_predictions():
        fallback |= sample_fallback(pair, config.subsample)
    views = [
        CanonicalView(
            view.index, view.relative_depth.to(device), view.conf.to(device), view.core_depth.to(device), view.focal_px
        )
        for view in scene.canonical_views
    ]
    problem = build_problem(views, scene.correspondences, fallback, config)
    assert problem.device.type == torch.device(device).type
    return views, problem, align(problem, config)


FIRST_ORDER = AlignmentConfig(second_order=False, niter_fine=300)


@pytest.mark.parametrize("name", ["orbit5", "fallback4"])
def test_stages_equal_those_of_the_cpu(name: str) -> None:
    config = dataclasses.replace(FIRST_ORDER, matching_conf_thr=load_scene(name).options["matching_conf_thr"])
    (_, problem, cpu), (_, _, gpu) = solve(name, config, "cpu"), solve(name, config, "cuda")
    torch.testing.assert_close(gpu.losses_coarse[:30].cpu(), cpu.losses_coarse[:30], rtol=1e-3, atol=0)
    torch.testing.assert_close(gpu.losses_coarse[-1].cpu(), cpu.losses_coarse[-1], rtol=2e-4, atol=0)
    torch.testing.assert_close(gpu.losses_fine[-1].cpu(), cpu.losses_fine[-1], rtol=3e-2, atol=0)
    require_equal_cameras(problem, cpu, gpu)


@pytest.mark.parametrize("name", ["orbit5", "mixed4", "swin6", "shared4", "fallback4"])
def test_second_order_steps_equal_those_of_the_cpu(name: str) -> None:
    config = AlignmentConfig(
        matching_conf_thr=load_scene(name).options["matching_conf_thr"], shared_intrinsics=name == "shared4"
    )
    (_, problem, cpu), (_, _, gpu) = solve(name, config, "cpu"), solve(name, config, "cuda")
    torch.testing.assert_close(gpu.losses_fine.cpu(), cpu.losses_fine, rtol=1e-2, atol=0)
    require_equal_cameras(problem, cpu, gpu)


def require_equal_cameras(problem: AlignmentProblem, cpu: AlignmentResult, gpu: AlignmentResult) -> None:
    for root in range(problem.num_views):
        a, b = (torch.linalg.inv(poses[root]) @ poses for poses in (gpu.world_from_cam.cpu(), cpu.world_from_cam))
        cosine = ((a[:, :3, :3] * b[:, :3, :3]).sum((1, 2)) - 1) / 2
        assert math.degrees(float(cosine.clamp(-1, 1).arccos().max())) <= 0.3


@pytest.mark.parametrize("config", [FIRST_ORDER, AlignmentConfig(), AlignmentConfig(matches_per_pair=50)])
def test_runs_repeat_to_the_bit(config: AlignmentConfig) -> None:
    first, second = (solve("mixed4", config, "cuda")[2] for _ in range(2))
    assert torch.equal(first.world_from_cam, second.world_from_cam)
    assert torch.equal(first.K, second.K)
    assert torch.equal(first.losses_fine, second.losses_fine)
    assert all(torch.equal(a, b) for a, b in zip(first.core_depths, second.core_depths, strict=True))


@pytest.mark.parametrize("second_order", [False, True])
def test_the_recorded_graph_equals_the_plain_iterations(second_order: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    config = AlignmentConfig(niter_coarse=20, niter_fine=20, second_order=second_order)
    recorded = solve("mixed4", config, "cuda")[2]
    for module in (solver, gauss_newton):
        monkeypatch.setattr(module, "record", lambda stage: stage.step)
    plain = solve("mixed4", config, "cuda")[2]
    assert torch.equal(recorded.losses_coarse, plain.losses_coarse)
    assert torch.equal(recorded.losses_fine, plain.losses_fine)
    assert torch.equal(recorded.world_from_cam, plain.world_from_cam)


def test_few_iterations_run_without_a_graph() -> None:
    result = solve("mixed4", AlignmentConfig(niter_coarse=2, niter_fine=1), "cuda")[2]
    assert result.losses_coarse.isfinite().all() and result.losses_fine.isfinite().all()


def test_dense_depth_cleaning_and_errors_equal_those_of_the_cpu() -> None:
    config = AlignmentConfig(niter_coarse=50, niter_fine=0)
    views, problem, result = solve("mixed4", config, "cuda")
    K, poses = result.K, result.world_from_cam
    depths = [dense_depth(v, d, float(k[0, 0])) for v, d, k in zip(views, result.core_depths, K, strict=True)]
    cleaned = clean_confidences(depths, [view.conf for view in views], K, poses)
    on_cpu = clean_confidences([d.cpu() for d in depths], [view.conf.cpu() for view in views], K.cpu(), poses.cpu())
    for a, b in zip(cleaned, on_cpu, strict=True):
        assert int((a.cpu() != b).sum()) <= 20
    assert reprojection_errors(problem, result).isfinite().all()
