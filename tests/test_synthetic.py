"""The renderer: hand-worked intersections, geometry that agrees between views, determinism."""

import math

import numpy as np
import pytest
import torch

from synthetic import (
    RenderedScene,
    correspond,
    ideal_correspondences,
    ideal_pair_prediction,
    ideal_pair_predictions,
    orbit,
    render_aerial,
    render_orbit,
    render_pairs,
    reproject,
    visible_in,
)
from synthetic.cameras import aim, look_at
from synthetic.compose import compose
from synthetic.draws import Draws
from synthetic.layout import BOX, FACE_FLOOR, FACE_X0, ROUND, SKY, ObjectColumns, Scenes
from synthetic.pairs import NEW_KINDS, PairPlan, plan_kind, plan_mixed, plan_pairs, render_plan
from synthetic.photo import develop, draw_effects
from synthetic.raycast import MISS, cast, cast_to_ground, normals, shortlist
from synthetic.rendering import render_rays, render_rays_culled
from synthetic.shots import draw_lenses

BALL = (1.0, 0.0, -1.0, 0.0)
CYLINDER = (1.0, 0.0, 0.0, 0.0)
CONE = (0.25, 0.5, 0.25, 0.0)
CUBE = (1.0, 0.0, 1.0, 0.0)
GABLE = (0.5, 0.5, 1.0, 0.0)

Profile = tuple[float, float, float, float]
Triple = tuple[float, float, float]


@pytest.fixture(scope="module")
def room() -> RenderedScene:
    return render_orbit(3, 3, (96, 72), 40, outdoor=False, effects=0)


@pytest.fixture(scope="module")
def open_ground() -> RenderedScene:
    return render_orbit(13, 2, (96, 72), 25, outdoor=True, effects=0)


def scene_of(
    shape: float, profile: Profile, centre: Triple = (0.0, 0.0, 5.0), half: Triple = (1.0, 1.0, 1.0)
) -> Scenes:
    """One primitive in a room of 20 m, nothing else."""
    scenes = compose(Draws(0, 1), torch.tensor([False]))
    objects = torch.zeros_like(scenes.objects)
    objects[..., ObjectColumns.A] = objects[..., ObjectColumns.A + 4] = objects[..., ObjectColumns.A + 8] = 1.0
    row = objects[0, 0]
    row[ObjectColumns.A], row[ObjectColumns.A + 4], row[ObjectColumns.A + 8] = (1 / h for h in half)
    row[ObjectColumns.CENTRE : ObjectColumns.CENTRE + 3] = torch.tensor(centre)
    row[ObjectColumns.HALF_SIZE : ObjectColumns.HALF_SIZE + 3] = torch.tensor(half)
    row[ObjectColumns.SHAPE], row[ObjectColumns.ACTIVE] = shape, 1.0
    row[ObjectColumns.PROFILE : ObjectColumns.PROFILE + 4] = torch.tensor(profile)
    return scenes._replace(objects=objects, half=torch.full((1, 3), 10.0))


def hit(scenes: Scenes, origin: Triple, direction: Triple) -> tuple[float, int, list[float]]:
    """Distance, surface and normal of one ray."""
    o, d = (torch.tensor(x, dtype=torch.float32).reshape(1, 1, 3) for x in (origin, direction))
    t, surface = cast(scenes, o, d, cast_to_ground(scenes, o, d))
    row = scenes.objects[:, surface[0].clamp(max=35)]
    return float(t), int(surface), normals(scenes, o + t[..., None] * d, surface, row)[0, 0].tolist()


@pytest.mark.parametrize(
    ("shape", "profile", "origin", "direction", "t", "normal"),
    [
        (BOX, CUBE, (0, 0, 0), (0, 0, 1), 4.0, (0, 0, -1)),
        (BOX, CUBE, (0.5, -5, 5.2), (0, 1, 0), 4.0, (0, -1, 0)),
        (ROUND, BALL, (0, 0, 0), (0, 0, 2), 2.0, (0, 0, -1)),
        # off by 0.6 from the centre: sqrt(1 - 0.36) = 0.8 before it
        (ROUND, BALL, (0.6, 0, 0), (0, 0, 1), 4.2, (0.6, 0, -0.8)),
        (ROUND, CYLINDER, (0, 0.9, 0), (0, 0, 1), 4.0, (0, 0, -1)),
        (ROUND, CYLINDER, (0.3, -5, 5.0), (0, 1, 0), 4.0, (0, -1, 0)),
        # apex up at y = -1, half a metre wide at y = 0; slope: 2 down for 1 out, normal (-1, . , .) / sqrt(5) * 2
        (ROUND, CONE, (0, 0, 0), (0, 0, 1), 4.5, (0, -1 / math.sqrt(5), -2 / math.sqrt(5))),
        (ROUND, CONE, (0, -5, 5), (0, 1, 0), 4.0, None),
        # steeper than the cone: at x = 0.25 its surface lies at y = -0.5
        (ROUND, CONE, (0.25, -5, 5), (0, 1, 0), 4.5, (2 / math.sqrt(5), -1 / math.sqrt(5), 0)),
        # the roof: half as wide at mid-height
        (BOX, GABLE, (5, 0, 5), (-1, 0, 0), 4.5, (2 / math.sqrt(5), -1 / math.sqrt(5), 0)),
    ],
)
def test_hits_worked_by_hand(
    shape: float, profile: Profile, origin: Triple, direction: Triple, t: float, normal: Triple | None
) -> None:
    found_t, surface, found_normal = hit(scene_of(shape, profile), origin, direction)
    assert surface == 0
    assert found_t == pytest.approx(t, abs=1e-4)
    if normal is not None:
        assert found_normal == pytest.approx(normal, abs=1e-3)


def test_rays_that_miss_reach_the_wall_and_the_floor() -> None:
    scenes = scene_of(ROUND, CONE)
    t, surface, _ = hit(scenes, (0.3, -0.9, 0), (0, 0, 1))
    assert t == pytest.approx(10.0) and surface == FACE_X0 + 5
    t, surface, normal = hit(scenes, (3, 0, 0), (0, 1, 0))
    assert t == pytest.approx(10.0) and surface == FACE_FLOOR
    assert normal == pytest.approx((0, -1, 0))


def test_ground_hits_lie_on_the_ground() -> None:
    from synthetic.layout import terrain_height

    scenes = compose(Draws(5, 4), torch.ones(4, dtype=torch.bool))
    scenes = scenes._replace(objects=torch.zeros_like(scenes.objects))
    generator = torch.Generator().manual_seed(0)
    d = torch.nn.functional.normalize(torch.randn(4, 500, 3, generator=generator), dim=-1)
    o = torch.tensor([0.5, -1.0, 0.3]).expand_as(d)
    t, surface = cast(scenes, o, d, cast_to_ground(scenes, o, d))
    ground = surface == FACE_FLOOR
    assert torch.equal(surface == SKY, t >= MISS)
    assert ground[d[..., 1] > 0.2].all()
    assert not ground[d[..., 1] < -0.3].any()
    p = o + t[..., None] * d
    off = scenes.half[:, 1:2] - terrain_height(scenes.terrain, p[..., 0], p[..., 2]) - p[..., 1]
    near = ground & (t < 30)
    assert off[near].abs().max() < 5e-3


def test_a_shortlist_changes_nothing() -> None:
    scenes = compose(Draws(8, 1), torch.tensor([True]))
    d = torch.nn.functional.normalize(
        torch.randn(1, 200, 3, generator=torch.Generator().manual_seed(1)) * 0.1 + torch.tensor([0.0, 0.1, 1.0]), dim=-1
    )
    o = torch.tensor([0.0, 0.0, -6.0]).expand_as(d)
    near = shortlist(scenes, o, d)
    assert len(near.solids) + len(near.leaves) < 36
    ground = cast_to_ground(scenes, o, d)
    for a, b in zip(cast(scenes, o, d, ground), cast(scenes, o, d, ground, near), strict=True):
        assert torch.equal(a, b)
    angle = torch.full_like(d[..., 0], 0.01)
    for a, b in zip(render_rays(scenes, o, d, angle), render_rays_culled(scenes, o, d, angle, chunk=70), strict=True):
        assert torch.allclose(a, b, atol=1e-6)


@pytest.mark.parametrize(("name", "seed", "outdoor"), [("room", 3, False), ("open_ground", 13, True)])
def test_other_devices_trace_the_same_image_without_culling(
    name: str, seed: int, outdoor: bool, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    culled = request.getfixturevalue(name)
    monkeypatch.setattr(orbit, "renderer_for", lambda device: render_rays)
    monkeypatch.setattr(orbit, "RAYS_AT_ONCE", 96 * 50)  # the last tile is smaller
    degrees = 40 if name == "room" else 25
    whole = render_orbit(seed, culled.num_views, (96, 72), degrees, outdoor=outdoor, effects=0)
    assert torch.allclose(whole.depth, culled.depth, rtol=1e-5, atol=1e-5)
    assert (whole.rgb.int() - culled.rgb.int()).abs().max() <= 1


def test_same_seed_same_scene_and_other_seed_another(room: RenderedScene) -> None:
    again = render_orbit(3, 3, (96, 72), 40, outdoor=False, effects=0, views=[1])
    assert torch.equal(again.rgb[0], room.rgb[1])
    assert torch.equal(again.depth[0], room.depth[1])
    assert torch.equal(again.world_from_cam[0], room.world_from_cam[1])
    other = render_orbit(5, 1, (96, 72), 40, outdoor=False, effects=0)
    assert (other.depth[0] - room.depth[0]).abs().mean() > 0.05


def test_rooms_are_closed_and_the_sky_has_no_depth(room: RenderedScene, open_ground: RenderedScene) -> None:
    assert room.depth.min() > 0
    assert (open_ground.depth == 0).any()
    assert (open_ground.depth > 0).float().mean() > 0.3


def test_cameras_are_rigid_and_go_round() -> None:
    scene = render_orbit(11, 6, (32, 24), 360, outdoor=False)
    R = scene.world_from_cam[:, :3, :3]
    assert torch.allclose(R @ R.transpose(1, 2), torch.eye(3, dtype=torch.float64).expand(6, 3, 3), atol=1e-5)
    assert torch.allclose(torch.linalg.det(R), torch.ones(6, dtype=torch.float64), atol=1e-5)
    forward = R[:, :, 2]
    azimuth = torch.rad2deg(torch.atan2(forward[:, 2], forward[:, 0]))
    steps = torch.remainder(azimuth.roll(-1) - azimuth, 360)
    assert float(steps.sum()) == pytest.approx(360.0, abs=1e-3)
    assert steps.min() > 35 and steps.max() < 85


def _lift(scene: RenderedScene, view: int, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """World points (M, 3) of pixels, in numpy and straight from the definitions."""
    K, pose = scene.K[view].numpy(), scene.world_from_cam[view].numpy()
    z = scene.depth[view].numpy()[y, x].astype(np.float64)
    cam = (np.linalg.inv(K) @ np.stack([x, y, np.ones_like(x)]).astype(np.float64)).T * z[:, None]
    return cam @ pose[:3, :3].T + pose[:3, 3]


@pytest.mark.parametrize("name", ["room", "open_ground"])
def test_correspondences_are_the_same_point_seen_twice(name: str, request: pytest.FixtureRequest) -> None:
    scene = request.getfixturevalue(name)
    found = ideal_correspondences(scene, 0, 1, subsample=4)
    assert len(found) > 60
    xi, yi, xj, yj = (t.numpy() for t in (*found.xy_i.T.long(), *found.xy_j.T.long()))
    a, b = _lift(scene, 0, xi, yi), _lift(scene, 1, xj, yj)
    gap = np.linalg.norm(a - b, axis=1) / scene.depth[0].numpy()[yi, xi]
    # half a pixel is 0.6 % of the depth at this focal length, more on slanted surfaces
    assert np.median(gap) < 0.012
    colour_i = scene.rgb[0].numpy()[yi, xi].astype(float)
    colour_j = scene.rgb[1].numpy()[yj, xj].astype(float)
    shuffled = np.abs(colour_i - colour_j[::-1]).mean()
    assert np.abs(colour_i - colour_j).mean() < 0.5 * shuffled
    key = yi * 96 * 10**6 + xi * 10**6 + yj * 96 + xj
    assert (np.diff(key) > 0).all()


def test_occluded_pixels_are_not_visible(room: RenderedScene) -> None:
    seen = visible_in(room, 0, 2)
    assert 0.1 < seen.float().mean() < 0.98
    H, W = room.shape
    y, x = (~seen).nonzero().T
    xy, _ = reproject(room, 0, 2, torch.stack([x, y], 1))
    inside = ((xy >= 0) & (xy < torch.tensor([W - 1, H - 1]))).all(1)
    assert inside.any()  # some are hidden, not only outside the image


def test_ideal_prediction_without_noise_is_exact_in_both_cameras(room: RenderedScene) -> None:
    exact = ideal_pair_prediction(room, 0, 1, depth_noise=0.0)
    assert torch.allclose(exact.i_in_i.points[..., 2], room.depth[0], atol=1e-4)
    one_from_zero = torch.linalg.inv(room.world_from_cam[1]) @ room.world_from_cam[0]
    moved = exact.i_in_i.points.double() @ one_from_zero[:3, :3].T + one_from_zero[:3, 3]
    assert torch.allclose(moved.float(), exact.i_in_j.points, atol=1e-4)
    seen = visible_in(room, 0, 1)
    assert exact.i_in_i.conf[seen].min() > exact.i_in_i.conf[~seen].max()


def test_ideal_noise_has_the_asked_size_and_is_smooth(room: RenderedScene) -> None:
    noisy = ideal_pair_prediction(room, 0, 1, depth_noise=0.05, seed=1)
    error = torch.log(noisy.i_in_i.points[..., 2] / room.depth[0])
    assert 0.02 < error.std() < 0.07
    assert (error[:, 1:] - error[:, :-1]).abs().max() < 0.03
    other = torch.log(noisy.j_in_j.points[..., 2] / room.depth[1])
    assert not torch.allclose(error, other, atol=1e-3)


@pytest.mark.parametrize("name", ["room", "open_ground"])
def test_ideal_predictions_of_a_batch_are_those_of_its_pairs(name: str, request: pytest.FixtureRequest) -> None:
    scene = request.getfixturevalue(name)
    pairs, seeds = [(0, 1), (1, 0), (scene.num_views - 1, 0)], [5, 6, 7]
    batch = ideal_pair_predictions(scene, pairs, 0.03, seeds)
    for (i, j), seed, found in zip(pairs, seeds, batch, strict=True):
        alone = ideal_pair_prediction(scene, i, j, 0.03, seed)
        assert (found.i, found.j) == (i, j)
        for a, b in ((found.i_in_i, alone.i_in_i), (found.j_in_i, alone.j_in_i),
                     (found.j_in_j, alone.j_in_j), (found.i_in_j, alone.i_in_j)):  # fmt: skip
            assert torch.allclose(a.points, b.points, rtol=1e-5, atol=1e-5) and torch.equal(a.conf, b.conf)


@pytest.mark.parametrize("name", ["room", "open_ground"])
def test_ideal_confidences_tell_what_is_seen_in_double_precision(name: str, request: pytest.FixtureRequest) -> None:
    scene = request.getfixturevalue(name)
    found = ideal_pair_prediction(scene, 0, 1)
    for conf, view, other in ((found.i_in_i.conf, 0, 1), (found.j_in_i.conf, 1, 0)):
        sky = scene.depth[view] == 0
        assert (conf[sky] == 1).all()
        # float32 may round a point on the border of a pixel, or of the tolerance, to the other side
        assert ((conf == 10) == visible_in(scene, view, other)).float().mean() > 0.999


def test_pairs_correspond_in_space_and_colour() -> None:
    shapes = ((48, 64), (48, 64))
    pairs = render_pairs(21, 6, (64, 48), unrelated=False, max_angle_deg=40)
    pixels = torch.arange(0, 48 * 64, 7).expand(6, -1)
    target, ok = correspond(pairs, 0, pixels, shapes)
    assert 0.2 < ok.float().mean() < 0.95
    batch = torch.arange(6)[:, None]
    a, b = pairs.points[batch, 0, pixels], pairs.points[batch, 1, target]
    gap = ((a - b).norm(dim=-1) / pairs.depth[batch, 0, pixels].clamp(min=0.1))[ok]
    assert gap.median() < 0.015
    # the way back: the nearest pixel of the nearest pixel, up to the difference in scale
    back, ok_back = correspond(pairs, 1, target, shapes)
    both = ok & ok_back
    apart = torch.stack([back % 64 - pixels % 64, back // 64 - pixels // 64]).float().norm(dim=0)
    assert (apart[both] <= 2).float().mean() > 0.95


def test_pairs_hold_pairs_without_overlap() -> None:
    pairs = render_pairs(3, 60, (16, 16))
    strangers = ~pairs.related
    assert 0 < strangers.sum() < 15
    pixels = torch.arange(256).expand(60, -1)
    ok = correspond(pairs, 0, pixels, ((16, 16), (16, 16)))[1]
    assert not ok[strangers].any()
    assert ok[~strangers].any()
    assert pairs.images1.min() >= -1 and pairs.images1.max() <= 1


def test_photo_effects_keep_a_clean_image_and_change_a_noisy_one() -> None:
    colour = torch.rand(1, 2, 256, 3, generator=torch.Generator().manual_seed(0)) * 0.5 + 0.02
    clean, noisy = (draw_effects(Draws(1, 1), 2, strength) for strength in (0.0, 1.0))
    a, b = develop(colour, clean, (16, 16)), develop(colour, noisy, (16, 16))
    expected = (1 - torch.exp(-1.6 * 1.15 * colour)) ** 0.7
    assert torch.allclose(a.flatten(3).transpose(2, 3), expected, atol=1e-5)
    assert (a - b).abs().mean() > 0.01
    # quantisation alone: with a tiny step nothing is lost
    fine = develop(colour, clean._replace(jpeg=torch.full_like(clean.jpeg, 1e-4)), (16, 16))
    assert torch.allclose(a, fine, atol=2e-3)
    coarse = develop(colour, clean._replace(jpeg=torch.full_like(clean.jpeg, 0.2)), (16, 16))
    assert (a - coarse).abs().mean() > 0.02


def tensors_of(plan: PairPlan) -> list[torch.Tensor]:
    return [*plan.scenes, *plan[1:6], *plan.effects]


@pytest.mark.parametrize("kind", NEW_KINDS)
def test_new_kinds_show_surfaces_that_both_views_share(kind: str) -> None:
    count, shapes = 16, ((48, 64), (48, 64))
    plan = plan_kind(31, count, kind, unrelated=False)
    assert all(table.isfinite().all() for table in tensors_of(plan))
    pairs = render_plan(plan, shapes)
    assert pairs.depth.isfinite().all() and pairs.points.isfinite().all()
    solid = (pairs.depth > 0).float().mean(2)
    assert solid.mean() > 0.7 and solid.min() > 0.15
    assert all(len(view.unique()) >= 2 for view in pairs.surface.flatten(0, 1))  # no camera inside anything
    assert pairs.images1.flatten(1).std(1).min() > 0.02
    pixels = torch.arange(0, 48 * 64, 7).expand(count, -1)
    target, ok = correspond(pairs, 0, pixels, shapes)
    back = correspond(pairs, 1, pixels, shapes)[1]
    overlap = torch.maximum(ok.float().mean(1), back.float().mean(1))
    assert overlap.median() > 0.4 and (overlap > 0.15).float().mean() > 0.85
    batch = torch.arange(count)[:, None]
    a, b = pairs.points[batch, 0, pixels], pairs.points[batch, 1, target]
    gap = ((a - b).norm(dim=-1) / pairs.depth[batch, 0, pixels].clamp(min=0.01))[ok]
    assert gap.median() < 0.015


@pytest.mark.parametrize(
    ("kind", "nearest_m", "farthest_m"), [("aerial", 4, 260), ("facade", 1, 80), ("table", 0.06, 4)]
)
def test_new_kinds_lie_at_the_distances_they_are_named_after(kind: str, nearest_m: float, farthest_m: float) -> None:
    pairs = render_plan(plan_kind(5, 32, kind, unrelated=False), ((16, 24), (16, 24)))
    middle = torch.stack([view[view > 0].median() for view in pairs.depth.flatten(0, 1)])
    assert (middle > nearest_m).all() and (middle < farthest_m).all()
    assert (pairs.far >= 40).all()


@pytest.mark.parametrize("kind", NEW_KINDS)
def test_new_kinds_are_the_same_for_the_same_seed(kind: str) -> None:
    once, again, other = (tensors_of(plan_kind(seed, 3, kind)) for seed in (4, 4, 5))
    assert all(torch.equal(a, b) for a, b in zip(once, again, strict=True))
    assert not torch.equal(once[4], other[4])


def test_lenses_reach_from_telephoto_to_wide_and_change_the_scale_up_to_three_times() -> None:
    lenses = draw_lenses(Draws(0, 2000))
    fov = torch.rad2deg(2 * torch.atan(lenses.tangent))
    assert 14.9 < float(fov.min()) < 20 and 100 < float(fov.max()) < 110.1
    # things appear smaller in view 2 by what it is farther away and wider
    change = (lenses.distance * lenses.tangent / lenses.tangent[:, :1])[:, 1]
    assert 2.5 < float(change.max()) < 3.001 and 1 / 3.001 < float(change.min()) < 1 / 2.5


def test_mixed_pairs_are_the_usual_ones_and_some_of_a_new_kind() -> None:
    none, usual = (tensors_of(plan) for plan in (plan_mixed(9, 6, 0.0), plan_pairs(9, 6)))
    assert all(torch.equal(a, b) for a, b in zip(none, usual, strict=True))
    half = tensors_of(plan_mixed(9, 6, 0.5))
    assert all(torch.equal(a[:3], b) for a, b in zip(half, tensors_of(plan_pairs(9, 3)), strict=True))
    kinds = set()
    for seed in range(12):
        last = [rows[3:] for rows in tensors_of(plan_mixed(seed, 6, 0.5))]
        for kind in NEW_KINDS:
            if all(torch.equal(a, b) for a, b in zip(last, tensors_of(plan_kind(seed, 3, kind)), strict=True)):
                kinds.add(kind)
    assert kinds == set(NEW_KINDS)


def test_aimed_cameras_look_where_look_at_does_and_straight_down() -> None:
    heading, pitch, roll = torch.tensor([0.3, 2.0, -1.0]), torch.tensor([0.2, 0.8, 1.4]), torch.tensor([0.0, 0.1, -0.2])
    R = aim(heading, pitch, roll)
    assert torch.allclose(look_at(torch.zeros(3, 3), 5 * R[..., 2], roll), R, atol=1e-5)
    down = aim(torch.zeros(1), torch.full((1,), math.pi / 2), torch.zeros(1))[0]
    assert torch.allclose(down, torch.tensor([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]]).T, atol=1e-6)


def test_aerial_grid_is_in_metres_and_neighbours_overlap() -> None:
    scene = render_aerial(3, (64, 48), rows=2, columns=3, height_m=60, effects=0)
    assert scene.num_views == 6 and scene.depth.min() > 0
    up = -scene.world_from_cam[:, 1, 3]
    assert up.max() - up.min() < 30
    assert 40 < float(scene.depth.median()) < 80
    seen = [float(visible_in(scene, i, i + 1).float().mean()) for i in (0, 1, 3, 4)]
    assert min(seen) > 0.5 and max(seen) < 0.9
    # rows are flown to and fro: the last view of the first row is beside the first one of the second
    assert visible_in(scene, 2, 3).float().mean() > 0.5
    again = render_aerial(3, (64, 48), rows=2, columns=3, height_m=60, effects=0, views=[4])
    assert torch.equal(again.rgb[0], scene.rgb[4]) and torch.equal(again.depth[0], scene.depth[4])
    found = ideal_correspondences(scene, 0, 1, subsample=4)
    xi, yi, xj, yj = (t.numpy() for t in (*found.xy_i.T.long(), *found.xy_j.T.long()))
    gap = np.linalg.norm(_lift(scene, 0, xi, yi) - _lift(scene, 1, xj, yj), axis=1) / scene.depth[0].numpy()[yi, xi]
    assert len(xi) > 60 and np.median(gap) < 0.015
