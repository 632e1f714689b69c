"""The dense stage: its parts on hand-made walls and steps, then whole on a rendered scene with noisy predictions."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from mast3r_sfm.dense.agreement import OTHER_SIGMA, OWN_SIGMA, Surfaces, opinions
from mast3r_sfm.dense.edges import sharpen_edges
from mast3r_sfm.dense.field import Stiffness, solve_field
from mast3r_sfm.dense.observations import Sightings, TrackedPixels, observe, tracked_pixels
from mast3r_sfm.dense.stage import agreed_depth
from mast3r_sfm.dense.trust import CONFIRMED, CONTRADICTED, OFFSET, UNCONFIRMED, Trust, judge
from mast3r_sfm.dense.views import Atlas, DenseView, Sights, look
from mast3r_sfm.geometry import rays
from mast3r_sfm.types import CanonicalView

K = np.array([[20.0, 0, 8], [0, 20, 6], [0, 0, 1]])
SHAPE = (12, 16)


def view_at(
    centre: tuple[float, float, float],
    neighbours: tuple[int, ...],
    depth: float = 4.0,
    shape: tuple[int, int] = SHAPE,
    distortion: float = 0.0,
) -> DenseView:
    """A camera that looks along +z at a wall at this depth."""
    pose = np.eye(4)
    pose[:3, 3] = centre
    relief = torch.full(shape, float(np.log(depth)))
    return DenseView(
        relief, torch.full(shape, 2.0), torch.zeros(*shape, 3, dtype=torch.uint8), K, distortion, pose, neighbours
    )


# ------------------------------------------------------------------ views
@pytest.mark.parametrize("distortion", [0.0, -0.1, 0.05])
def test_rays_are_those_of_the_lens(distortion: float) -> None:
    pixels = np.stack(np.meshgrid(np.arange(SHAPE[1]), np.arange(SHAPE[0])), -1)
    expected = rays(pixels, K, distortion).transpose(2, 0, 1)
    np.testing.assert_allclose(view_at((0, 0, 0), (), distortion=distortion).rays().numpy(), expected, atol=1e-6)


def test_pixels_are_found_in_a_neighbour() -> None:
    # at depth 4 a step of 0.4 to the right moves everything 20 * 0.4 / 4 = 2 pixels to the left
    views = [view_at((0, 0, 0), (1,)), view_at((0.4, 0, 0), (0,))]
    at = look(views, 0, torch.full(SHAPE, 4.0))
    columns = torch.arange(SHAPE[1]).expand(SHAPE)
    torch.testing.assert_close(at.x[0], columns - 2.0)
    torch.testing.assert_close(at.depth[0], torch.full(SHAPE, 4.0))
    inside = Atlas(views).inside((1,), at)[0]
    assert torch.equal(inside, columns >= 2)


def test_maps_of_different_size_are_read_between_pixels() -> None:
    views = [view_at((0, 0, 0), (1,)), view_at((0, 0, 0), (0,), shape=(5, 7))]
    packed = Atlas.pack([torch.zeros(SHAPE), torch.arange(35.0).view(5, 7)])
    at = Sights(torch.tensor([[[1.25]]]), torch.tensor([[[2.5]]]), torch.ones(1, 1, 1))
    assert float(Atlas(views).between(packed, (1,), at)) == 2.5 * 7 + 1.25
    assert float(Atlas(views).nearest(packed, (1,), at)) == 2 * 7 + 1  # half to even


def test_the_relief_is_flatter_for_a_longer_lens() -> None:
    depth = torch.tensor([[1.0, 2.0, 4.0]])
    canonical = CanonicalView(0, depth, torch.ones(1, 3), torch.ones(1, 1), focal_px=10.0)
    view = DenseView.of(canonical, np.zeros((1, 3, 3), np.uint8), K, 0.0, np.eye(4), (), subsample=8)
    # a lens of 20 for 10: half of the logarithms, counted from the median 2
    torch.testing.assert_close(view.relief.exp(), torch.tensor([[2 / 2**0.5, 2.0, 2 * 2**0.5]]))


def test_a_depth_that_is_not_positive_is_not_believed() -> None:
    canonical = CanonicalView(0, torch.tensor([[1.0, -3.0, 1.0]]), torch.ones(1, 3), torch.ones(1, 1), focal_px=20.0)
    view = DenseView.of(canonical, np.zeros((1, 3, 3), np.uint8), K, 0.0, np.eye(4), (), subsample=8)
    assert view.conf.tolist() == [[1, 0, 1]] and bool(view.relief.isfinite().all())


# ------------------------------------------------------------------ field
def test_the_field_fills_a_surface_and_stops_at_its_edge() -> None:
    relief = torch.zeros(1, 8, 16)
    relief[..., 8:] = 1.0  # another surface
    weight, observed = torch.zeros(1, 8, 16), torch.zeros(1, 8, 16)
    weight[0, 4, 2], observed[0, 4, 2] = 1e6, 0.3
    weight[0, 4, 13], observed[0, 4, 13] = 1e6, -0.2
    field = solve_field(Stiffness.of(relief), weight, observed, torch.zeros_like(weight), 200)
    assert float((field[..., :8] - 0.3).abs().max()) < 0.02
    assert float((field[..., 8:] + 0.2).abs().max()) < 0.02


def test_the_field_solves_its_equations() -> None:
    generator = torch.Generator().manual_seed(0)
    relief, observed = (0.05 * torch.randn(2, 5, 6, generator=generator) for _ in range(2))
    weight = 1e4 * torch.rand(2, 5, 6, generator=generator)
    stiffness = Stiffness.of(relief)
    field = solve_field(stiffness, weight, observed, torch.full_like(weight, 0.1), 100)
    left = (weight + 1) * field + stiffness.times(field)
    torch.testing.assert_close(left, weight * observed + 0.1, rtol=1e-3, atol=0.1)


# ------------------------------------------------------------------ observations
def sightings(pixels: list[tuple[int, int]], seen_at: list[tuple[float, float]]) -> Sightings:
    return Sightings(
        torch.tensor(pixels), torch.ones(len(pixels), dtype=torch.int64), torch.tensor(seen_at), torch.ones(len(pixels))
    )


def test_a_match_tells_the_depth_of_its_pixel() -> None:
    views = [view_at((0, 0, 0), (1,)), view_at((0.5, 0, 0), (0,))]
    # 20 * 0.5 / 5 = 2 pixels to the left: depth 5, though 4 was predicted; the second is 3 pixels off its line
    seen = sightings([(10, 3), (7, 7)], [(8.0, 3.0), (5.0, 10.0)])
    found = observe(views, 0, seen, None)
    assert float(found.log_depth[3, 10].exp()) == pytest.approx(5, rel=1e-4)
    assert float(found.weight[7, 7]) < 0.05 * float(found.weight[3, 10])
    assert int((found.weight > 0).sum()) == 2


def test_a_point_of_a_track_outweighs_a_match_that_differs() -> None:
    views = [view_at((0, 0, 0), (1,)), view_at((0.5, 0, 0), (0,))]
    tracked = TrackedPixels(torch.tensor([[10, 3]]), torch.tensor([4.4]))
    found = observe(views, 0, sightings([(10, 3)], [(8.0, 3.0)]), tracked)
    assert float(found.log_depth[3, 10].exp()) == pytest.approx(4.4, rel=0.01)


def test_the_order_of_observations_does_not_matter() -> None:
    views = [view_at((0, 0, 0), (1,)), view_at((0.5, 0, 0), (0,))]
    generator = torch.Generator().manual_seed(0)
    pixel = torch.randint(0, 12, (500, 2), generator=generator)
    seen_at = pixel - torch.tensor([2.5, 0]) + 0.5 * torch.randn(500, 2, generator=generator)
    seen = Sightings(pixel, torch.ones(500, dtype=torch.int64), seen_at, torch.rand(500, generator=generator))
    order = torch.randperm(500, generator=generator)
    shuffled = Sightings(*(getattr(seen, field.name)[order] for field in dataclasses.fields(seen)))
    a, b = observe(views, 0, seen, None), observe(views, 0, shuffled, None)
    assert torch.equal(a.log_depth, b.log_depth) and torch.equal(a.weight, b.weight)


def test_points_behind_and_outside_are_no_tracked_pixels() -> None:
    pose = view_at((0, 0, -1), ()).world_from_cam
    points = np.array([[0.0, 0, 3], [0, 0, -2], [0, 0, 3]])
    found = tracked_pixels(points, np.array([[8.2, 5.9], [8, 6], [16.4, 6]]), pose, SHAPE)
    assert found.pixel.tolist() == [[8, 6]] and found.depth.tolist() == [4.0]


# ------------------------------------------------------------------ agreement
def test_views_that_differ_a_little_meet_and_others_do_not() -> None:
    same = [view_at((0, 0, 0), (1,)), view_at((0, 0, 0), (0,), depth=4.04)]
    heard = opinions(same, 0, Surfaces.of(same, [view.relief for view in same]))
    # the two opinions weigh as 1 / OWN^2 and 1 / OTHER^2, the latter less by the difference of 1 % itself
    difference = np.log(4.04 / 4)
    other = 1 / (1 + (difference / OTHER_SIGMA) ** 2) / OTHER_SIGMA**2
    expected = difference * other / (other + OWN_SIGMA**-2)
    assert float(heard.log_depth[5, 5]) - np.log(4) == pytest.approx(expected, rel=1e-3)
    far = [view_at((0, 0, 0), (1,)), view_at((0, 0, 0), (0,), depth=5.0)]
    heard = opinions(far, 0, Surfaces.of(far, [view.relief for view in far]))
    assert torch.equal(heard.log_depth, far[0].relief)


def test_a_view_without_neighbours_keeps_its_opinion() -> None:
    alone = [view_at((0, 0, 0), ())]
    heard = opinions(alone, 0, Surfaces.of(alone, [alone[0].relief]))
    assert torch.equal(heard.log_depth, alone[0].relief)


# ------------------------------------------------------------------ edges
def test_a_blurred_depth_edge_moves_onto_that_of_the_photo() -> None:
    rgb = torch.zeros(12, 20, 3, dtype=torch.uint8)
    rgb[:, 9:] = 200
    log_depth = torch.zeros(12, 20)
    log_depth[:, 11:] = 1.0
    log_depth[:, 7:11] = torch.tensor([0.2, 0.4, 0.6, 0.8])  # from one surface to the other over the edge
    conf = torch.full((12, 20), 5.0)
    conf[:, 6:12] = 1.0  # where the network blurs, it is not sure
    sharp = sharpen_edges(log_depth, rgb, conf)
    assert float(sharp[:, :9].abs().max()) < 0.01 and float((sharp[:, 9:] - 1).abs().max()) < 0.01


def test_surfaces_without_edges_stay() -> None:
    slanted = 0.002 * torch.arange(20.0).expand(12, 20)
    assert torch.equal(sharpen_edges(slanted, torch.zeros(12, 20, 3, dtype=torch.uint8), torch.ones(12, 20)), slanted)


# ------------------------------------------------------------------ trust
def judged(views: list[DenseView]) -> Trust:
    return judge(views, Surfaces.of(views, [view.relief for view in views]))


def test_views_that_agree_within_their_error_keep_all_pixels() -> None:
    # the published cleaning removes what lies 0.1 % in front
    views = [view_at((0, 0, 0), (1,)), view_at((0, 0, 0), (0,), depth=4.04)]
    views[1] = dataclasses.replace(views[1], conf=torch.full(SHAPE, 9.0))
    trust = judged(views)
    assert bool((trust.clean[0] > 0).all()) and torch.equal(trust.clean[0], trust.conf[0])
    torch.testing.assert_close(trust.conf[0], torch.full(SHAPE, 2.0 * float(np.exp(OFFSET + CONFIRMED))))


@pytest.mark.parametrize(("conf", "stays"), [(1.0, False), (20.0, True)])
def test_of_two_that_contradict_each_other_the_more_confident_stays(conf: float, stays: bool) -> None:
    views = [view_at((0, 0, 0), (1,)), view_at((0, 0, -1), (0,), depth=5.0)]
    relief, own = views[0].relief.clone(), views[0].conf.clone()
    relief[6, 8], own[6, 8] = np.log(2.0), conf  # floats at 3 before the wall at 5 that the other camera sees
    views[0] = dataclasses.replace(views[0], relief=relief, conf=own)
    trust = judged(views)
    assert bool(trust.clean[0][6, 8] > 0) == stays
    assert int((trust.clean[0] == 0).sum()) == int(not stays) and bool((trust.clean[1] > 0).all())
    assert float(trust.conf[0][6, 8]) == pytest.approx(conf * np.exp(OFFSET + UNCONFIRMED + CONTRADICTED), rel=1e-5)
    assert float(trust.conf[0][2, 8]) == pytest.approx(2 * np.exp(OFFSET + CONFIRMED), rel=1e-5)


def test_a_single_view_keeps_the_confidence_of_the_network() -> None:
    trust = judged([view_at((0, 0, 0), ())])
    torch.testing.assert_close(trust.conf[0], torch.full(SHAPE, 2.0 * float(np.exp(OFFSET))))


# ------------------------------------------------------------------ all together
def wall_of_two_views(shape: tuple[int, int]) -> tuple[list[DenseView], list[torch.Tensor]]:
    """Two views of a slanted wall whose predicted depth is off by a factor that varies, and the truth."""
    views, truth = [], []
    for k, height in enumerate((shape[0], shape[0] - 4)):
        view = view_at((0.5 * k, 0, 0), (1 - k,), shape=(height, shape[1]))
        x, y = (view.rays()[a] for a in (0, 1))
        depth = (4 + 0.2 * 0.5 * k) / (1 - 0.2 * x)  # z = 4 + 0.2 x in the world
        wave = 0.04 * torch.sin(x + 2 * y + k)
        truth.append(depth.log())
        views.append(dataclasses.replace(view, relief=truth[-1] + wave + 0.3))
    return views, truth


def test_depth_of_a_wall_follows_few_observations() -> None:
    views, truth = wall_of_two_views((24, 32))
    observed = []
    for k, view in enumerate(views):
        rows, columns = (
            one.reshape(-1) for one in torch.meshgrid(*(torch.arange(2, n, 6) for n in view.shape), indexing="ij")
        )
        pixel = torch.stack([columns, rows], 1)
        nothing = Sightings(pixel[:0], pixel[:0, 0], torch.zeros(0, 2), torch.zeros(0))
        observed.append(observe(views, k, nothing, TrackedPixels(pixel, truth[k][rows, columns].exp())))
    found = agreed_depth(views, observed, [0.0, 0.0])
    for depth, true in zip(found.depths, truth, strict=True):
        assert float((depth.log() - true).abs().median()) < 0.01
        assert float((depth.log() - true).abs()[4:-4, 4:-4].max()) < 0.02
    again = agreed_depth(views, observed, [0.0, 0.0])
    assert all(torch.equal(a, b) for a, b in zip(found.depths + found.clean, again.depths + again.clean, strict=True))
