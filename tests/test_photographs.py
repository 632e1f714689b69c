"""Pairs that differ like photos: the same geometry, other light, cameras and things; what counts as unknown."""

from __future__ import annotations

import math

import pytest
import torch

from synthetic.draws import Draws
from synthetic.layout import NUM_ITEMS, NUM_SOLIDS, SKY, UNKNOWN, MaterialColumns, ObjectColumns, terrain_height
from synthetic.look import PatchColumns, compress, hide_behind_patch, map_colours, soften
from synthetic.materials import MIRROR, PICTURE
from synthetic.pairs import PairBatch, PairPlan, correspond, photograph, plan_mixed, plan_pairs, render_plan
from synthetic.pictures import LEVELS, NUM_PICTURES, SIZE, look_up, picture_bank
from synthetic.statues import raise_statues

SHAPE = (32, 48)
SHAPES = (SHAPE, SHAPE)


@pytest.fixture(scope="module")
def plan() -> PairPlan:
    return photograph(plan_pairs(5, 24, 60.0, unrelated=False), 5)


@pytest.fixture(scope="module")
def pairs(plan: PairPlan) -> PairBatch:
    return render_plan(plan, SHAPES)


def test_a_seed_decides_the_photographs_and_no_share_changes_nothing(plan: PairPlan) -> None:
    again = photograph(plan_pairs(5, 24, 60.0, unrelated=False), 5)
    assert all(torch.equal(a, b) for a, b in zip(plan.tensors, again.tensors, strict=True))
    other = photograph(plan_pairs(5, 24, 60.0, unrelated=False), 6)
    assert not torch.equal(plan.effects.gain, other.effects.gain)
    usual = plan_pairs(5, 4)
    kept = photograph(usual, 5, 0.0)
    assert all(torch.equal(a, b) for a, b in zip(usual.tensors, kept._replace(look=None).tensors, strict=True))
    plain, looked = render_plan(usual, SHAPES), render_plan(kept, SHAPES)
    assert torch.equal(plain.points, looked.points) and torch.equal(plain.surface, looked.surface)
    assert (plain.images1 - looked.images1).abs().mean() < 0.02  # blocks are rounded in other colours


def test_mixed_pairs_are_photographed_in_their_share_and_facades_keep_their_cameras() -> None:
    before, after = (plan_mixed(3, 40, 0.5, photo_share=share) for share in (0.0, 0.5))
    assert before.look is None and after.look is not None
    changed = (after.effects.gain != before.effects.gain).flatten(1).any(1)
    assert 8 < changed.sum() < 32
    assert torch.equal(after.eye[20:], before.eye[20:]) and torch.equal(after.focal[20:], before.focal[20:])
    assert not torch.equal(after.focal[:20], before.focal[:20])
    mirrors = after.scenes.materials[..., MaterialColumns.PATTERN] == MIRROR
    assert not mirrors[20:].any()


def test_cameras_stay_rigid_and_their_fields_of_view_in_range() -> None:
    plan = photograph(plan_pairs(8, 400), 8)
    R = plan.rotation
    assert torch.allclose(R @ R.transpose(-1, -2), torch.eye(3).expand_as(R), atol=1e-5)
    assert torch.allclose(torch.linalg.det(R), torch.ones(400, 2), atol=1e-5)
    fov = torch.rad2deg(2 * torch.atan(0.5 / plan.focal))
    assert 14.9 < fov.min() < 20 and 100 < fov.max() < 110.1
    change = (plan.focal[:, 1] / plan.focal[:, 0]).log()
    assert 1.2 < change.abs().max() < math.log(4 * 1.36)
    level = R[..., 1, 0].abs()  # how far the image's rows rise
    assert 0.03 < (level > 0.62).float().mean() < 0.09
    room = plan.scenes.outdoor < 0.5
    assert (plan.eye[room].abs() <= plan.scenes.half[room][:, None]).all()


def test_photographed_views_still_show_the_same_points(pairs: PairBatch) -> None:
    pixels = torch.arange(SHAPE[0] * SHAPE[1]).expand(24, -1)
    target, ok = correspond(pairs, 0, pixels, SHAPES)
    assert pairs.points.isfinite().all() and pairs.images1.isfinite().all() and pairs.images2.isfinite().all()
    assert ok.float().mean() > 0.2
    batch = torch.arange(24)[:, None]
    gap = (pairs.points[:, 0] - pairs.points[batch, 1, target]).norm(dim=-1)
    pixel = pairs.depth[batch, 1, target] / pairs.focal[:, 1:]
    assert (gap[ok] / pixel[ok]).median() < 1.5
    assert pairs.images1.flatten(1).std(1).median() > 0.1


def test_the_unknown_is_never_matched(plan: PairPlan, pairs: PairBatch) -> None:
    unknown = pairs.surface == UNKNOWN
    assert plan.look is not None
    patched = plan.look.patch[..., PatchColumns.ACTIVE] > 0.5
    assert unknown[patched].any() and 0.005 < unknown.float().mean() < 0.15
    pixels = torch.arange(SHAPE[0] * SHAPE[1]).expand(24, -1)
    batch = torch.arange(24)[:, None]
    for source in range(2):
        target, ok = correspond(pairs, source, pixels, SHAPES)
        assert not (ok & unknown[:, source]).any()
        assert not (ok & unknown[batch, 1 - source, target]).any()


def test_mirrors_are_unknown_and_look_different_from_elsewhere() -> None:
    plan = photograph(plan_pairs(4, 2, 30.0, unrelated=False), 4, 0.0)
    pattern = plan.scenes.materials[..., MaterialColumns.PATTERN]
    pattern[:] = MIRROR
    pairs = render_plan(plan, SHAPES)
    assert ((pairs.surface == UNKNOWN) | (pairs.surface == SKY)).all()
    pattern[:] = PICTURE
    assert not (render_plan(plan, SHAPES).surface == UNKNOWN).any()


def test_things_are_missing_in_one_view_only() -> None:
    plan = photograph(plan_pairs(6, 50), 6)
    assert plan.look is not None
    present = plan.look.present
    assert 0.02 < (present < 0.5).float().mean() < 0.2
    assert (present.sum(1) >= 1).all() and (present[..., NUM_SOLIDS:] == 1).all()
    drawn = plan.scenes.objects[..., ObjectColumns.ACTIVE]
    k = int(((present[:, 0] < 0.5) & (drawn > 0.5)).any(1).nonzero()[0])
    seen = render_plan(plan, ((16, 24), (16, 24))).surface[k, 0].unique()
    missing = (present[k, 0] < 0.5).nonzero()[:, 0]
    assert not torch.isin(seen, missing).any()


def test_statues_stand_on_the_ground_in_the_place_of_things() -> None:
    plan = plan_pairs(2, 30)
    none, all_items = (torch.full((30, NUM_ITEMS), given) for given in (False, True))
    same = raise_statues(Draws(1, 30), plan.scenes, none)
    assert all(torch.equal(a, b) for a, b in zip(same, plan.scenes, strict=True))
    scenes = raise_statues(Draws(1, 30), plan.scenes, all_items)
    items = scenes.objects[:, :NUM_SOLIDS].unflatten(1, (NUM_ITEMS, -1))
    centre = items[..., ObjectColumns.CENTRE : ObjectColumns.CENTRE + 3]
    half = items[..., ObjectColumns.HALF_SIZE + 1]
    ground = scenes.half[:, 1:2] - terrain_height(scenes.terrain, centre[:, :, 0, 0], centre[:, :, 0, 2])
    assert torch.allclose(centre[:, :, 0, 1] + half[..., 0], ground, atol=0.05)
    rises = -centre[..., 1].diff(dim=-1)[..., :3]  # pedestal, legs, body, head
    assert (rises > 0).all()
    assert torch.equal(scenes.objects[:, NUM_SOLIDS:], plan.scenes.objects[:, NUM_SOLIDS:])


def test_a_patch_is_where_its_numbers_say() -> None:
    plan = photograph(plan_pairs(1, 2), 1)
    assert plan.look is not None
    look = plan.look.of_view(0)
    row = look.patch.zero_()[0, 0]
    row[PatchColumns.ACTIVE], row[PatchColumns.POWER], row[PatchColumns.PLAIN] = 1, 2, 1
    row[PatchColumns.CENTRE], row[PatchColumns.HALF_SIZE], row[PatchColumns.HALF_SIZE + 1] = 0.25, 0.125, 0.0625
    row[PatchColumns.COLOUR] = 0.8
    colour, inside = hide_behind_patch(torch.full((2, 64 * 64, 3), 0.3), look, (64, 64))
    assert not inside[1].any()
    rows, columns = torch.where(inside[0].unflatten(0, (64, 64)))
    # an ellipse of 8 by 4 pixels about column 31.5 + 16, row 31.5
    assert [int(x) for x in (columns.min(), columns.max(), rows.min(), rows.max())] == [40, 55, 28, 35]
    assert inside.sum() == pytest.approx(math.pi * 8 * 4, rel=0.05)
    assert torch.allclose(colour[0, inside[0]], torch.tensor([0.8, 0.0, 0.0]))
    assert (colour[~inside] == 0.3).all()


def test_compression_keeps_a_flat_image_and_loses_detail_with_coarse_steps() -> None:
    x = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    fine, coarse, none = (torch.full((2, 2, 8, 8), step) for step in (1e-4, 0.5, 0.0))
    assert torch.allclose(compress(x, fine), x, atol=2e-3)
    assert torch.equal(compress(x, none), x)
    assert (compress(x, coarse) - x).abs().mean() > 0.05
    flat = torch.full((2, 3, 16, 16), 0.5)
    assert torch.allclose(compress(flat, coarse), flat, atol=1e-2)  # 0.5 is 8 steps of 0.5 in the mean's coefficient


def test_blur_keeps_the_mean_and_colour_maps_are_affine() -> None:
    x = torch.zeros(1, 3, 9, 9)
    x[..., 4, 4] = 1
    across = soften(x, torch.tensor([[1.0, 0.0]]))
    assert torch.allclose(across[0, 0, 4, [2, 4, 6]], torch.tensor([0.33, 0.34, 0.33]), atol=1e-6)
    assert float(across.sum()) == pytest.approx(3)
    rows = torch.tensor([[0.0, 1, 0, 0], [0, 0, 1, 0], [1, 0, 0, 0.5]])
    mapped = map_colours(torch.tensor([0.1, 0.2, 0.3]).reshape(1, 3, 1, 1), rows)
    assert torch.allclose(mapped.flatten(), torch.tensor([0.2, 0.3, 0.6]))


def test_pictures_tile_and_fade_to_their_mean_from_afar() -> None:
    bank = picture_bank(torch.device("cpu"))
    assert len(bank) == sum(NUM_PICTURES * (SIZE >> level) ** 2 for level in range(LEVELS))
    generator = torch.Generator().manual_seed(0)
    u, v = torch.rand(2, 500, generator=generator)
    picture = torch.arange(500, dtype=torch.int32) % NUM_PICTURES
    near, far = torch.full((500,), 0.1 / SIZE), torch.ones(500)
    once, next_tile = (torch.stack(look_up(bank, picture, u + k, v - k, near)) for k in (0.0, 3.0))
    assert torch.allclose(once, next_tile, atol=2e-2)
    mean = torch.stack(look_up(bank, picture, u, v, far))
    assert once.std() > 0.2 and mean.std() < 0.12
    assert float(once.mean()) == pytest.approx(0.5, abs=0.03)
