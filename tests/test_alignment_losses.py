"""The losses of the alignment: their definitions by hand, and their fast evaluation against the definitions."""

import dataclasses
import math

import pytest
import torch
from random_problem import Scene, Seen, matched, random_problem, with_dtype

from mast3r_sfm.alignment import losses
from mast3r_sfm.alignment.execution import slabs
from mast3r_sfm.alignment.execution.coarse_loss import CoarseLoss, constant_points
from mast3r_sfm.alignment.execution.fallback_loss import FallbackLoss
from mast3r_sfm.alignment.execution.fine_loss import FineLoss
from mast3r_sfm.alignment.execution.gradients import PullBack
from mast3r_sfm.alignment.losses import Cameras

# --- definitions by hand ------------------------------------------------------------------------------------------


def pinhole(count: int = 1) -> Cameras:
    """`count` times a camera of focal length 100 and principal point (30, 20) at the origin."""
    K = torch.tensor([[100.0, 0, 30], [0, 100, 20], [0, 0, 1]]).expand(count, 3, 3)
    return Cameras(K, torch.eye(3).expand(count, 3, 3), torch.zeros(count, 3))


@pytest.mark.parametrize(("exponent", "offset"), [(1.5, 0.444444), (0.5, 0.25), (1.1, 0.385543), (1.0, 0.0)])
def test_robust_distance_has_unit_slope_at_zero(exponent: float, offset: float) -> None:
    assert losses.robust_offset(exponent) == pytest.approx(offset, abs=1e-6)
    x = torch.tensor([[0.0, 0], [3, 4], [1e-6, 0]], dtype=torch.float64)
    value = losses.robust_distance(x, torch.zeros_like(x), exponent)
    assert value[0] == pytest.approx(0)
    assert value[1] == pytest.approx((5 + offset) ** exponent - offset**exponent, abs=1e-5)
    assert value[2] == pytest.approx(1e-6, rel=1e-4)


def test_robust_distance_of_equal_points_has_no_gradient() -> None:
    x = torch.ones(1, 3, requires_grad=True)
    losses.robust_distance(x, torch.ones(1, 3), 0.5).sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, torch.zeros(1, 3))


def test_a_longer_lens_flattens_what_was_predicted() -> None:
    # predicted: 20 % behind the anchor; at twice the focal length: 10 %
    depth = losses.observed_depths(torch.tensor([5.0]), torch.tensor([0.2]), torch.tensor([0.5]))
    assert float(depth) == pytest.approx(5.5)


def test_projection_undoes_lifting() -> None:
    # 50 pixels right of the principal point at depth 4: x = 4 * 50 / 100; turned by 90 degrees about y: z becomes x
    turned = torch.tensor([[[0.0, 0, 1], [0, 1, 0], [-1, 0, 0]]])
    cameras = Cameras(pinhole().K, turned, torch.tensor([[10.0, 0, 0]]))
    pixels = torch.tensor([[80.0, 20]])
    points = losses.world_points(pixels, torch.tensor([4.0]), cameras)
    torch.testing.assert_close(points, torch.tensor([[14.0, 0, -2]]))
    torch.testing.assert_close(losses.project(points, cameras), pixels)


def test_projections_behind_the_camera_and_far_outside_stay_finite() -> None:
    points = torch.tensor([[0.001, 0, 0], [1, 0, -5], [-50, 1, 1]])
    # beside the camera: h_x = 0.1 is divided by 0.001; behind: so are h_x = 100 - 150 and h_y = -100; far left: -4970
    expected = torch.tensor([[100.0, 0], [-1000, -1000], [-1000, 120]])
    torch.testing.assert_close(losses.project(points, pinhole(3)), expected)


def test_losses_are_weighted_means_of_robust_distances() -> None:
    x = torch.tensor([[0.0, 0, 2], [0, 0, 3]])
    y = torch.tensor([[0.0, 0, 2], [0, 4, 6]])
    conf = torch.tensor([1.0, 3.0])  # distances 0 and 5
    assert float(losses.coarse_loss(x, y, conf, 1.0)) == pytest.approx(3 / 4 * 5)
    units = losses.relative_units(x[:, 2], y[:, 2])
    torch.testing.assert_close(units, torch.tensor([2.0, math.sqrt(22.5)]))
    assert float(losses.coarse_loss(x, y, conf, 1.0, units)) == pytest.approx(3 / 4 * 5 / math.sqrt(22.5))

    pixels = torch.tensor([[30.0, 20], [30, 20]])  # y projects to (30, 20) and (30, 20 + 100 * 4 / 6)
    assert float(losses.fine_loss(pixels, y, pinhole(2), conf, 1.0)) == pytest.approx(3 / 4 * 400 / 6)

    moved = dataclasses.replace(pinhole(2), centres=torch.tensor([[0.0, 0, 1], [0, 0, 1]]))
    # predictions in a camera at (0, 0, 1): distances 1 and |(0, 4, 4)|
    expected = (1 + 3 * math.sqrt(32)) / 4
    assert float(losses.fallback_loss(x, y, moved, conf, 1.0)) == pytest.approx(expected)
    nothing = torch.zeros(0, 3)
    assert float(losses.coarse_loss(nothing, nothing, torch.zeros(0), 1.5)) == 0


def test_prior_is_the_mean_squared_distance_from_the_centre() -> None:
    points = torch.tensor([[0.5, 0.5], [0.6, 0.3]])
    assert float(losses.principal_point_prior(points, 40.0)) == pytest.approx(40 * (0.1**2 + 0.2**2) / 2)
    # if nine views of ten have the second one
    shares = torch.tensor([0.1, 0.9])
    assert float(losses.principal_point_prior(points, 40.0, shares)) == pytest.approx(40 * 0.9 * (0.1**2 + 0.2**2))


def test_prior_of_focal_lengths_is_relative_and_leaves_the_unknown_free() -> None:
    # 110 where 100 is stated, 50 where nothing is; three views of four have the first
    focals = torch.tensor([110.0, 50.0]).log().requires_grad_()
    stated, shares = torch.tensor([100.0, torch.nan]).log(), torch.tensor([0.75, 0.25])
    loss = losses.focal_prior(focals, stated, 2.0, shares)
    assert loss.item() == pytest.approx(2 * 0.75 * math.log(1.1) ** 2, rel=1e-5)
    gradient = torch.autograd.grad(loss, focals)[0]
    torch.testing.assert_close(gradient, torch.tensor([2 * 0.75 * 2 * math.log(1.1), 0.0]))


# --- evaluation against the definitions ---------------------------------------------------------------------------


def require_equal(
    evaluated: torch.Tensor, pull_back: PullBack, leaves: Scene, definition: torch.Tensor, scene: Scene, names: str
) -> None:
    """Value, and gradients by the fields `names`: of the evaluation at `leaves`, of the definition at `scene`."""
    tolerance = 1e-11 if evaluated.dtype == torch.float64 else 2e-5
    assert float(evaluated) == pytest.approx(float(definition.detach()), rel=tolerance)
    actual = pull_back.to({name: getattr(leaves, name) for name in names.split()})
    expected = torch.autograd.grad(definition, [getattr(scene, name) for name in names.split()])
    for (name, gradient), wanted in zip(actual.items(), expected, strict=True):
        assert wanted.abs().max() > 0
        assert (gradient - wanted).abs().max() <= tolerance * wanted.abs().max(), name


@pytest.fixture(params=[None, 1], ids=["one slab", "slabs of one chunk"])
def chunks_at_once(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param:
        monkeypatch.setattr(slabs, "_SLAB", {"cpu": 256 * request.param})


# in float32 a point beside a camera has a projection that is mostly rounding
each_dtype = pytest.mark.parametrize(
    ("dtype", "turned"),
    [(torch.float64, False), (torch.float64, True), (torch.float32, False)],
    ids=["float64", "float64, one view turned round", "float32"],
)
each_exponent = pytest.mark.parametrize("exponent", [0.5, 1.0, 1.5])


@each_dtype
@each_exponent
@pytest.mark.parametrize("relative", [False, True])
@pytest.mark.usefixtures("chunks_at_once")
def test_coarse_loss_is_evaluated_as_defined(dtype: torch.dtype, turned: bool, exponent: float, relative: bool) -> None:
    problem = random_problem()
    scene = Scene.random(problem, turned)
    first, second, conf = matched(problem)
    units = losses.relative_units(scene.depths_of(first), scene.depths_of(second)).detach() if relative else None
    definition = losses.coarse_loss(scene.points_of(first), scene.points_of(second), conf, exponent, units)

    leaves, problem = scene.leaves(dtype), with_dtype(problem, dtype)
    with torch.no_grad():
        points = constant_points(
            problem.matches, torch.linalg.inv(leaves.K), leaves.depths, leaves.inverse_zooms, relative
        )
        value, by_rotations, by_centres = CoarseLoss(problem.matches, points, exponent)(
            leaves.rotations, leaves.centres
        )
    pull_back = PullBack()
    pull_back.add(leaves.rotations, by_rotations)
    pull_back.add(leaves.centres, by_centres)
    require_equal(value, pull_back, leaves, definition, scene, "rotations centres")


@each_dtype
@each_exponent
@pytest.mark.usefixtures("chunks_at_once")
def test_fine_loss_is_evaluated_as_defined(dtype: torch.dtype, turned: bool, exponent: float) -> None:
    problem = random_problem()
    scene = Scene.random(problem, turned)
    first, second, conf = matched(problem)
    pixels = torch.cat([first.pixel, second.pixel])
    partners = torch.cat([scene.points_of(second), scene.points_of(first)])
    cameras = scene.cameras.of(torch.cat([first.view, second.view]))
    definition = losses.fine_loss(pixels, partners, cameras, torch.cat([conf, conf]), exponent)
    projected = losses.project(partners, cameras)
    assert bool((projected == losses.PIXEL_RANGE[0]).any()) == turned  # the limits act

    leaves, problem = scene.leaves(dtype), with_dtype(problem, dtype)
    matrices, pull_back = leaves.matrices, PullBack()
    with torch.no_grad():
        value, gradient = FineLoss(problem.matches, exponent)(matrices)
    pull_back.add_cameras(matrices, gradient)
    require_equal(value, pull_back, leaves, definition, scene, "K rotations centres inverse_zooms depths")


@each_dtype
@each_exponent
@pytest.mark.usefixtures("chunks_at_once")
def test_fallback_loss_is_evaluated_as_defined(dtype: torch.dtype, turned: bool, exponent: float) -> None:
    problem = random_problem()
    scene = Scene.random(problem, turned)
    chunks = problem.fallback
    assert chunks is not None
    real = chunks.weight > 0
    a, b = chunks.entries[chunks.chunk_entry].unbind(1)
    points = scene.points_of(Seen.unpack(chunks.observed, a, real))
    predicted = chunks.target.movedim(1, 2)[real]
    cameras = scene.cameras.of(b[:, None].expand_as(real)[real])
    definition = losses.fallback_loss(points, predicted, cameras, chunks.weight[real], exponent)

    leaves, problem = scene.leaves(dtype), with_dtype(problem, dtype)
    matrices, pull_back = leaves.matrices, PullBack()
    with torch.no_grad():
        value, gradient = FallbackLoss(problem.fallback, exponent)(matrices)
    pull_back.add_cameras(matrices, gradient)
    require_equal(value, pull_back, leaves, definition, scene, "K rotations centres inverse_zooms depths")


@pytest.mark.parametrize("exponent", [1.0, 0.5, 1.1, 1.5])
def test_slope_in_place_is_the_derivative_of_the_robust_distance(exponent: float) -> None:
    x = torch.tensor([0.0, 1e-3, 0.3, 2.0, 50.0], dtype=torch.float64)[:, None].requires_grad_()
    expected = losses.robust_distance(x, torch.zeros_like(x), exponent)
    distance = x.detach()[:, 0].clone()
    value, slope = torch.empty(2, 5, dtype=torch.float64)
    slabs.robust_value_and_slope(distance, exponent, value=value, slope=slope)
    torch.testing.assert_close(value, expected.detach(), rtol=1e-9, atol=1e-12)
    (derivative,) = torch.autograd.grad(expected.sum(), x)
    torch.testing.assert_close(slope * x.detach()[:, 0], derivative[:, 0])
    assert slope[0].isfinite()
