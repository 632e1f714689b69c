"""The second-order steps of the alignment: against dense algebra, against autograd, and what they find."""

import dataclasses
import math

import pytest
import torch
from golden_scene import load_scene
from random_problem import Scene, Seen, matched, random_problem, with_dtype
from test_alignment import HostQuestions, hilly_scene, photos_of_one_camera, problem_of

from mast3r_sfm.alignment import AlignmentConfig, CameraLayout, align, build_problem, losses, reprojection_errors
from mast3r_sfm.alignment.execution.normal_equations import FallbackTerm, MatchTerm, Numbers, Term, motions
from mast3r_sfm.alignment.execution.reduced_system import DirectedTerm, ReducedSystem, StepLayout, inverses
from mast3r_sfm.alignment.gauss_newton import GaussNewton
from mast3r_sfm.alignment.initial import place_along_tree
from mast3r_sfm.alignment.objectives import CoarseObjective
from mast3r_sfm.alignment.parameters import SceneModel
from mast3r_sfm.alignment.problem import AlignmentProblem
from mast3r_sfm.alignment.solver import num_iterations
from mast3r_sfm.types import ImageTransform

WEIGHT = 0.3  # of the fallback


def test_inverses() -> None:
    generator = torch.Generator().manual_seed(0)
    factor = torch.randn(5, 6, 6, generator=generator, dtype=torch.float64)
    matrices = factor @ factor.transpose(1, 2) + 0.1 * torch.eye(6, dtype=torch.float64)
    torch.testing.assert_close(inverses(matrices) @ matrices, torch.eye(6).double().expand(5, 6, 6))


# --- against dense algebra ----------------------------------------------------------------------------------------


class Dense:
    """Residuals of a problem as a function of a step, by the definitions, for autograd. float64.

    A step is the flat vector of `StepLayout`, followed by the logarithms of the depth factors of all anchors.
    """

    def __init__(self, problem: AlignmentProblem, scene: Scene, layout: StepLayout) -> None:
        self.problem, self.scene, self.layout = problem, scene, layout
        self.size = layout.size + scene.depths.numel()

    def moved(self, step: torch.Tensor) -> Scene:
        scene, n = self.scene, self.problem.num_views
        views = self.layout.per_view(step[: self.layout.size])
        turn = torch.linalg.matrix_exp(torch.stack([_cross(v) for v in views[:, :3]]))
        K = scene.K.detach().clone()
        focals = K[:, 0, 0] * views[:, 6].exp()
        zero, one = torch.zeros(n).double(), torch.ones(n).double()
        centres = K[:, :2, 2] + self.problem.layout.centre_units * views[:, 7:]
        rows = [focals, zero, centres[:, 0], zero, focals, centres[:, 1], zero, zero, one]
        return Scene(
            K=torch.stack(rows, 1).view(n, 3, 3),
            rotations=scene.rotations.detach() @ turn,
            centres=scene.centres.detach() + (scene.rotations.detach() @ views[:, 3:6, None])[:, :, 0],
            inverse_zooms=scene.inverse_zooms.detach() / views[:, 6].exp(),
            depths=scene.depths.detach() * step[self.layout.size :].view_as(scene.depths).exp(),
        )

    def matches(self, step: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Residuals (M, 2) pixels, and the weights (M,) of their distances."""
        scene = self.moved(step)
        first, second, conf = matched(self.problem)
        cameras = scene.cameras.of(torch.cat([first.view, second.view]))
        partners = torch.cat([scene.points_of(second), scene.points_of(first)])
        projected = losses.project(partners, cameras)
        assert bool(((projected > losses.PIXEL_RANGE[0]) & (projected < losses.PIXEL_RANGE[1])).all())
        return projected - torch.cat([first.pixel, second.pixel]), torch.cat([conf, conf]) / 2

    def fallback(self, step: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Residuals (M, 3) in the cameras of the predictions, scene units, and the weights (M,) of their distances."""
        scene, chunks = self.moved(step), self.problem.fallback
        assert chunks is not None
        real = chunks.weight > 0
        a, b = chunks.entries[chunks.chunk_entry].unbind(1)
        points = scene.points_of(Seen.unpack(chunks.observed, a, real))
        target = b[:, None].expand_as(real)[real]
        in_camera = (scene.rotations[target].mT @ (points - scene.centres[target])[:, :, None])[..., 0]
        return in_camera - chunks.target.movedim(1, 2)[real], chunks.weight[real] * WEIGHT

    def normal_equations(self) -> tuple[float, torch.Tensor, torch.Tensor]:
        """The loss, its gradient and the matrix of the weighted squares at a step of zero."""
        value, gradient, matrix = 0.0, torch.zeros(self.size).double(), torch.zeros(self.size, self.size).double()
        for residuals, exponent in ((self.matches, 0.5), (self.fallback, 1.1)):
            start = torch.zeros(self.size).double()
            found, weight = residuals(start)
            jacobian = torch.autograd.functional.jacobian(lambda step, of=residuals: of(step)[0], start)
            found = found.detach()
            distance = found.norm(dim=1).requires_grad_()
            rho = losses.robust_distance(distance[:, None], torch.zeros_like(distance)[:, None], exponent)
            (slope,) = torch.autograd.grad(rho.sum(), distance)
            assert distance.min() > 0.02
            value += float((weight * rho).sum().detach())
            weight = weight.detach() * slope / distance.detach()
            gradient += torch.einsum("m,mk,mku->u", weight, found, jacobian)
            matrix += torch.einsum("m,mku,mkv->uv", weight, jacobian, jacobian)
        return value, gradient, matrix


def _cross(vector: torch.Tensor) -> torch.Tensor:
    x, y, z = vector
    zero = torch.zeros_like(x)
    return torch.stack([zero, -z, y, z, zero, -x, -y, x, zero]).view(3, 3)


@pytest.mark.parametrize("shared", [False, True], ids=["each view its own intrinsics", "shared"])
def test_the_solver_solves_the_normal_equations_of_the_losses(shared: bool) -> None:
    problem = random_problem()
    if shared:  # three landscape views of four share a focal length, and two of these the offset of the centre
        transforms = [ImageTransform((2 * W, 2 * H), (W, H), (0, 0), (W, H)) for W, H in problem.sizes.int().tolist()]
        cameras = with_dtype(CameraLayout.of_photos(transforms, (0, 0, 1, 0)), torch.float64)
        problem = dataclasses.replace(problem, layout=cameras)
    scene = Scene.random(problem, turned=False)
    layout = StepLayout(SceneModel(problem))
    dense = Dense(problem, scene, layout)
    value, gradient, matrix = dense.normal_equations()

    assert problem.fallback is not None
    terms: list[Term] = [MatchTerm(problem.matches, 0.5), FallbackTerm(problem.fallback, 1.1, WEIGHT)]
    directed = [DirectedTerm(term, problem.layout.centre_units, 4) for term in terms]
    K = scene.K.detach()
    numbers = Numbers(
        torch.cat([K[:, 0, :1], K[:, :2, 2], scene.inverse_zooms.detach()[:, None]], 1),
        scene.rotations.detach(),
        scene.centres.detach(),
        scene.depths.detach().view(-1),
    )
    here = [motions(term.ends, numbers.rotations, numbers.centres) for term in terms]
    sums = [term.linearize(numbers, motion) for term, motion in zip(terms, here, strict=True)]
    assert float(sums[0].loss + sums[1].loss) == pytest.approx(value, rel=1e-10)
    updates = [one.update(motion, numbers.intrinsics, s) for one, motion, s in zip(directed, here, sums, strict=True)]
    size, damping, prior = layout.size, torch.tensor([0.01]).double(), 1e-4
    own = layout.total(updates[0][0] + updates[1][0])
    torch.testing.assert_close(own, gradient[:size], rtol=1e-9, atol=1e-12)
    slope = sums[0].slope + sums[1].slope
    torch.testing.assert_close(slope, gradient[size:], rtol=1e-9, atol=1e-12)

    system = ReducedSystem(directed, layout, (4, scene.depths.shape[1]), torch.ones(size).double())
    nothing = torch.zeros(size - layout.num_poses).double()
    system.prepare(
        gradient=updates[0][0] + updates[1][0],
        own=updates[0][1] + updates[1][1],
        curvature=sums[0].curvature + sums[1].curvature,
        slope=slope,
        prior=(nothing, nothing),
        depth_prior=(torch.zeros_like(slope), prior),
        damping=damping,
        usable=torch.tensor([True]),
    )
    for _ in range(4 * size):
        system.solver_step()
    # the damping of numbers that views share is that of the views' own, without what they have in common
    diagonal = matrix.diagonal().clone()
    diagonal[:size] = layout.total((updates[0][1] + updates[1][1]).diagonal(dim1=1, dim2=2))
    if not shared:
        torch.testing.assert_close(diagonal, matrix.diagonal())
    matrix += torch.diag(damping * diagonal)
    matrix[size:, size:] += prior * torch.eye(len(slope)).double()
    expected = torch.linalg.solve(matrix, -gradient)
    torch.testing.assert_close(system.x, expected[:size], rtol=1e-5, atol=1e-8)
    torch.testing.assert_close(system.anchors(), expected[size:], rtol=1e-5, atol=1e-8)


# --- the stage ----------------------------------------------------------------------------------------------------


def placed(problem: AlignmentProblem, config: AlignmentConfig, niter: int) -> GaussNewton:
    """The stage at its start, as `align` makes it."""
    model = SceneModel(problem)
    theta = model.initial()
    place_along_tree(model, CoarseObjective(problem, config, theta).points, theta)
    return GaussNewton(problem, config, model.scene(theta), niter)


@pytest.mark.parametrize("name", ["fallback4", "shared4", "mixed4"])
def test_an_iteration_asks_the_host_nothing(name: str) -> None:
    """So it can be recorded as CUDA graphs."""
    scene = load_scene(name)
    config = AlignmentConfig(matching_conf_thr=scene.options["matching_conf_thr"], shared_intrinsics=name == "shared4")
    stage = placed(problem_of(scene, config), config, 3)
    with HostQuestions() as questions:
        for _ in range(3):
            stage.step()
    assert questions.seen == []
    assert stage.losses[2] < stage.losses[0]


@pytest.mark.parametrize("name", ["orbit5", "mixed4", "swin6", "shared4", "fallback4"])
def test_fifteen_iterations_fit_the_matches_better_than_six_hundred_of_first_order(name: str) -> None:
    scene = load_scene(name)
    config = AlignmentConfig(matching_conf_thr=scene.options["matching_conf_thr"], shared_intrinsics=name == "shared4")
    problem = problem_of(scene, config)
    first_order = align(problem, dataclasses.replace(config, second_order=False, niter_fine=300))
    second_order = align(problem, config)
    assert len(second_order.losses_coarse) == (config.niter_coarse if name == "fallback4" else 0)
    assert len(second_order.losses_coarse) + 15 == num_iterations(config, all_good=problem.fallback is None)
    assert second_order.losses_fine[-1] <= first_order.losses_fine[-1] * 1.01
    errors = [reprojection_errors(problem, result).median() for result in (second_order, first_order)]
    assert errors[0] <= errors[1] * 1.1


def test_what_is_not_trained_does_not_move() -> None:
    scene = load_scene("mixed4")
    config = AlignmentConfig(optimize_principal_point=False, optimize_depth=False)
    problem = problem_of(scene, config)
    result = align(problem, config)
    assert (result.K[:, :2, 2] == problem.sizes.double() / 2).all()
    start = align(problem, AlignmentConfig(niter_coarse=0, niter_fine=0)).core_depths
    for k, depth in enumerate(result.core_depths):  # one factor for a view
        factors = depth / start[k]
        torch.testing.assert_close(factors, factors.mean().expand_as(factors), rtol=1e-5, atol=0)
    assert result.losses_fine[-1] < result.losses_fine[0]
    moved = align(problem, AlignmentConfig())
    assert (moved.K[:, :2, 2] - problem.sizes.double() / 2).norm(dim=1).min() > 1e-3


def test_photos_of_one_camera_share_a_focal_length() -> None:
    transforms, cameras = photos_of_one_camera()
    views, matches = hilly_scene(5, cameras=cameras)
    guesses = [1.1, 0.95, 1.0, 0.9, 1.1]
    views = [dataclasses.replace(v, focal_px=v.focal_px * g) for v, g in zip(views, guesses, strict=True)]
    layout = CameraLayout.of_photos(transforms, [7] * 5, [300.0] * 5)
    focals = []
    for weight in (0.0, 1000.0):  # of the prior for a stated focal length, which is wrong here
        config = AlignmentConfig(focal_prior=weight)
        result = align(build_problem(views, matches, {}, config, layout), config)
        own = [float(f) / t.network_per_original for f, t in zip(result.K[:, 0, 0], transforms, strict=True)]
        assert own == pytest.approx([own[0]] * 5, rel=1e-5)
        focals.append(own[0])
    assert focals == pytest.approx([220, 300], rel=0.01)


def test_the_root_stays_and_rotations_are_rotations() -> None:
    config = AlignmentConfig()
    problem = problem_of(load_scene("orbit5"), config)
    start = placed(problem, config, 1).scene()
    result = align(problem, config)
    root = problem.tree.root
    torch.testing.assert_close(result.world_from_cam[root, :3, 3], start.centres[root])
    torch.testing.assert_close(result.world_from_cam[root, :3, :3], start.rotations[root], rtol=0, atol=1e-6)
    rotations = result.world_from_cam[:, :3, :3]
    torch.testing.assert_close(rotations @ rotations.mT, torch.eye(3).double().expand_as(rotations), rtol=0, atol=1e-9)


def test_a_step_that_raises_the_loss_is_taken_back_and_shortened() -> None:
    config = AlignmentConfig()
    stage = placed(problem_of(load_scene("mixed4"), config), config, 4)
    stage.step()
    stage.step()
    before = stage.scene()
    stage._system.x.mul_(100)  # far beyond what was found
    stage.step()
    assert stage.losses[2] == stage.losses[1]
    assert all(torch.equal(a, b) for a, b in zip(vars(stage.scene()).values(), vars(before).values(), strict=True))
    stage.step()  # looks at the same place again, with more damping
    assert stage.losses[3] == stage.losses[1]
    assert float(stage._system.x.abs().max()) > 0


def test_a_first_loss_that_is_not_finite_is_an_error() -> None:
    config = AlignmentConfig()
    problem = problem_of(load_scene("mixed4"), config)
    stage = placed(problem, config, 2)
    stage._accepted.centres[1] = math.nan
    stage.step()
    stage.step()
    assert stage.losses.isnan().all()
