"""Conformance of the alignment with the reference, step by step (tolerances: the goldens' description, 8.4).

World frames of the reference drift by rounding noise, so poses are compared relative to each other.
"""

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from golden_scene import ALIGNMENT_SCENES, GoldenScene, load_scene

from mast3r_sfm.alignment import (
    AlignmentConfig,
    AlignmentProblem,
    AlignmentResult,
    align,
    build_problem,
)
from mast3r_sfm.alignment.objectives import CoarseObjective, FineObjective
from mast3r_sfm.alignment.parameters import SceneModel
from mast3r_sfm.alignment.solver import run_stage
from mast3r_sfm.pairwise import sample_fallback
from mast3r_sfm.types import FallbackPrediction

PARAMETERS = {
    "quaternions": "quats",
    "translations": "trans",
    "log_sizes": "log_sizes",
    "log_focals": "log_focals",
    "principal_points": "pps",
    "normalized_core_depths": "core",
}


def config_of(scene: GoldenScene, **changes: Any) -> AlignmentConfig:
    """The published method with the golden's options."""
    options = scene.options
    config = AlignmentConfig.published(
        lr_coarse=options["lr1"],
        lr_fine=options["lr2"],
        niter_coarse=options["niter1"],
        niter_fine=options["niter2"],
        matching_conf_thr=options["matching_conf_thr"],
        tree=options.get("kinematic_mode", "hclust-ward"),
        optimize_depth=options.get("opt_depth", True),
        shared_intrinsics=options.get("shared_intrinsics", False),
    )
    return dataclasses.replace(config, **changes)


def problem_of(scene: GoldenScene, config: AlignmentConfig) -> AlignmentProblem:
    fallback: dict[tuple[int, int], FallbackPrediction] = {}
    for pair in scene.pair_predictions():
        fallback |= sample_fallback(pair, config.subsample)
    return build_problem(scene.canonical_views, scene.correspondences, fallback, config)


def parameters_of(scene: GoldenScene, model: SceneModel, prefix: str) -> torch.Tensor:
    """The flat vector of the golden's parameters."""
    theta = model.initial()
    for name, key in PARAMETERS.items():
        stored = scene.tensor(f"{prefix}_{key}").reshape(-1)
        part = theta[model.slices[name]]
        part.copy_(stored[: len(part)])  # shared intrinsics are stored once per view
    return theta


def relative_error(actual: torch.Tensor, expected: np.ndarray) -> float:
    """Largest difference relative to the largest expected value."""
    wanted = torch.as_tensor(expected).double().reshape(-1)
    return float((actual.double().reshape(-1) - wanted).abs().max() / wanted.abs().max())


def compare_losses(actual: torch.Tensor, expected: np.ndarray, limits: list[tuple[slice, float]]) -> None:
    for part, limit in limits:
        error = (actual[part] / torch.as_tensor(expected)[part] - 1).abs().max()
        assert error <= limit, f"iterations {part}: {float(error):.1e} > {limit:.0e}"


def compare_gradients(scene: GoldenScene, gradients: dict[str, torch.Tensor], stage: str, tolerance: float) -> None:
    for name, gradient in gradients.items():
        expected = scene.golden[f"{stage}_start_grad_{PARAMETERS[name]}"].reshape(-1)
        # shared intrinsics are stored once per view, all with the same gradient
        error = relative_error(gradient, expected[: gradient.numel()])
        assert error <= tolerance, f"{name}: {error:.1e}"


def compare_result(
    scene: GoldenScene, result: AlignmentResult, prefix: str, limits: dict[str, float], fixed_cameras: bool = False
) -> None:
    """Relative rotation (degrees), relative translation over the extent of the cameras, focal, pp, core depth."""
    expected = scene.tensor(f"{prefix}_cam2w").double()
    actual = result.world_from_cam
    n = len(expected)
    centres = expected[:, :3, 3]
    extent = (centres - centres.mean(0)).square().sum(1).mean().sqrt()
    for i in range(n):
        for j in range(n):
            relative = [torch.linalg.inv(poses[i]) @ poses[j] for poses in (actual, expected)]
            cosine = ((relative[0][:3, :3] * relative[1][:3, :3]).sum() - 1) / 2
            assert torch.rad2deg(torch.arccos(cosine.clamp(-1, 1))) <= limits["rotation"]
            assert (relative[0][:3, 3] - relative[1][:3, 3]).norm() / extent <= limits["translation"]
    K = scene.tensor(f"{prefix}_intrinsics").double()
    if fixed_cameras:
        torch.testing.assert_close(result.K, K, rtol=1e-5, atol=1e-4)
    else:
        assert (result.K[:, 0, 0] / K[:, 0, 0] - 1).abs().max() <= limits["focal"]
        assert (result.K[:, :2, 2] - K[:, :2, 2]).abs().max() <= limits["principal_point"]
    depth = torch.cat([core.reshape(-1) for core in result.core_depths])
    error = (depth / scene.tensor(f"{prefix}_depthmaps") - 1).abs()
    assert error.median() <= limits["depth_median"]
    assert error.quantile(0.95) <= limits["depth_95"]


COARSE_LIMITS = {"rotation": 0.25, "translation": 1e-2, "depth_median": 2e-3, "depth_95": 2e-3}
FINE_LIMITS = {
    "rotation": 0.4,
    "translation": 3e-2,
    "focal": 4e-3,
    "principal_point": 0.5,
    "depth_median": 1.2e-2,
    "depth_95": 1.5e-2,
}


@pytest.mark.parametrize("name", ALIGNMENT_SCENES)
def test_problem(name: str) -> None:
    scene = load_scene(name)
    golden = scene.golden
    config = config_of(scene)
    problem = problem_of(scene, config)
    assert np.array_equal(problem.scores, golden["pairwise_scores"])
    assert np.array_equal(problem.sizes.numpy(), golden["imsizes"])
    assert relative_error(problem.base_focals, golden["base_focals"]) <= 1e-5
    # observations of a view, pair by pair in the order of first appearance
    matches, per_view = problem.matches, problem.normalized_core_depths.shape[1]
    for view in range(scene.num_views):
        order = golden[f"anchor_order{view}"].tolist()
        pixels: list[torch.Tensor | None] = []
        anchors, offsets = [], []
        good = {tuple(pair): p for p, pair in enumerate(matches.pairs[:-1].tolist())}
        for other in order:
            pair, side = ((view, other), 0) if (view, other) in scene.pairs else ((other, view), 1)
            length = int(golden["pairwise_scores"][view, other])
            if pair not in good:  # below the threshold: the fallback's observations are tested by its loss
                pixels.append(None)
                continue
            rows = matches.chunk_pair == good[pair]
            pixels.append(matches.observed.pixel[rows][:, side, :2].transpose(1, 2).reshape(-1, 2)[:length])
            anchors.append(matches.observed.anchor[rows][:, side].reshape(-1)[:length] - view * per_view)
            offsets.append(matches.observed.offset[rows][:, side].reshape(-1)[:length] + 1)
        counts = [int(golden["pairwise_scores"][view, other]) for other in order]
        kept = np.repeat([pixel is not None for pixel in pixels], counts)
        stored = torch.cat([pixel for pixel in pixels if pixel is not None])
        assert np.array_equal(stored.numpy(), golden[f"anchor_pix{view}"][kept])
        assert np.array_equal(torch.cat(anchors).numpy(), golden[f"anchor_idx{view}"][kept])
        assert relative_error(torch.cat(offsets), golden[f"anchor_off{view}"][kept]) <= 1e-5


@pytest.mark.parametrize("name", ALIGNMENT_SCENES)
def test_coarse_stage(name: str) -> None:
    scene = load_scene(name)
    golden = scene.golden
    config = config_of(scene, niter_fine=0)
    problem = problem_of(scene, config)
    model = SceneModel(problem)
    theta = model.initial()
    start = parameters_of(scene, model, "coarse_start")
    torch.testing.assert_close(theta, start, rtol=1e-5, atol=1e-5)
    loss, gradients = CoarseObjective(problem, config, theta)(theta)
    assert abs(float(loss) / golden["loss_coarse"][0] - 1) <= 2e-6
    compare_gradients(scene, gradients, "coarse", 1e-5)

    result = align(problem, config)
    limits = [(slice(1, 2), 1e-5), (slice(-1, None), 2e-4)]
    if name not in ("swin6", "shared4"):  # near ties of the sizes decide these between equal implementations
        limits.append((slice(2, 30), 1e-4))
    compare_losses(result.losses_coarse, golden["loss_coarse"], limits)
    compare_result(scene, result, "coarse", COARSE_LIMITS, fixed_cameras=True)


@pytest.mark.parametrize("name", ALIGNMENT_SCENES)
def test_fine_stage_from_the_stored_start(name: str) -> None:
    scene = load_scene(name)
    golden = scene.golden
    config = config_of(scene)
    problem = problem_of(scene, config)
    objective = FineObjective(problem, config)
    theta = parameters_of(scene, objective.model, "fine_start")
    loss, gradients = objective(theta)
    assert abs(float(loss) / golden["loss_fine"][0] - 1) <= 2e-5
    compare_gradients(scene, gradients, "fine", 1e-3)
    if config.shared_intrinsics:
        return  # the reference steps shared intrinsics n times an iteration; here, once
    _, losses = run_stage(objective, theta, config.lr_fine, config.niter_fine)
    limits = [(slice(1, 2), 2e-5), (slice(2, 10), 4e-4), (slice(10, 30), 4e-2), (slice(-1, None), 1e-2)]
    compare_losses(losses, golden["loss_fine"], limits)


@pytest.mark.parametrize(
    "name",
    ["fallback4", *(pytest.param(name, marks=pytest.mark.slow) for name in ("orbit5", "mixed4", "swin6"))],
)
def test_result(name: str) -> None:
    scene = load_scene(name)
    config = config_of(scene)
    result = align(problem_of(scene, config), config)
    compare_losses(result.losses_fine, scene.golden["loss_fine"], [(slice(-1, None), 3e-2)])
    compare_result(scene, result, "fine", FINE_LIMITS)


VARIANTS: list[Any] = [
    ("shared4", "dedup", {}),
    pytest.param("swin6", "hclust", {"tree": "hclust-ward"}, marks=pytest.mark.slow),
    pytest.param("swin6", "nopp", {"optimize_principal_point": False, "optimize_depth": True}, marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("name", "variant", "changes"), VARIANTS)
def test_variants(name: str, variant: str, changes: dict[str, Any]) -> None:
    scene = load_scene(name)
    config = config_of(scene, **changes)
    problem = problem_of(scene, config)
    assert problem.tree.root == scene.golden[f"{variant}_mst_root"]
    result = align(problem, config)
    limits = [(slice(0, 2), 1e-5), (slice(-1, None), 2e-4)]
    compare_losses(result.losses_coarse, scene.golden[f"{variant}_loss_coarse"], limits)
    compare_losses(result.losses_fine, scene.golden[f"{variant}_loss_fine"], [(slice(-1, None), 3e-2)])
    compare_result(scene, result, variant, FINE_LIMITS)
