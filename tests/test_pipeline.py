"""Whole reconstructions with the bundled model on small rendered scenes: what must hold whatever the accuracy."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from mast3r_sfm import pipeline
from mast3r_sfm.alignment import AlignmentConfig
from mast3r_sfm.errors import InputError, ReconstructionError
from mast3r_sfm.model.checkpoint import Model, load_model
from mast3r_sfm.options import ReconstructionOptions, SceneGraph, SceneOptions
from mast3r_sfm.pipeline import reconstruct
from mast3r_sfm.reconstruction import Reconstruction
from mast3r_sfm.types import ImageTransform, Level, PairSummary, View
from synthetic import RenderedScene, render_orbit

FAST = ReconstructionOptions(alignment=AlignmentConfig(niter_coarse=60, niter_fine=60))


@pytest.fixture(scope="module")
def model() -> Model:
    return load_model("small", "cpu")


@pytest.fixture(scope="module")
def scene() -> RenderedScene:
    return render_orbit(900_100, 4, (128, 96), 45, effects=0)


def view_of(image: np.ndarray, index: int, alpha: np.ndarray | None = None) -> View:
    H, W = image.shape[:2]
    transform = ImageTransform((W, H), (W, H), (0, 0), (W, H))
    return View(index, Path(f"view_{index}.png"), image, transform, alpha)


@pytest.fixture(scope="module")
def views(scene: RenderedScene) -> list[View]:
    return [view_of(image.numpy(), k) for k, image in enumerate(scene.rgb)]


@pytest.fixture(scope="module")
def result(model: Model, views: list[View]) -> Reconstruction:
    return reconstruct(views, model, FAST)


def test_all_views_register_and_are_finite(result: Reconstruction, views: list[View]) -> None:
    assert [view.index for view in result.registered] == [0, 1, 2, 3]
    for view in result.views:
        assert view.depth.shape == (96, 128) and view.depth.dtype == np.float32
        assert np.isfinite(view.depth).all() and np.isfinite(view.K).all() and np.isfinite(view.world_from_cam).all()
        rotation = view.world_from_cam[:3, :3]
        np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-5)
        assert view.num_matches > 100 and view.median_reprojection_error_px < 3
        assert ((view.conf_clean == view.conf) | (view.conf_clean == 0)).all()


def test_first_camera_is_the_origin(result: Reconstruction) -> None:
    np.testing.assert_allclose(result.views[0].world_from_cam, np.eye(4), atol=1e-12)


def test_poses_are_near_the_truth(result: Reconstruction, scene: RenderedScene) -> None:
    truth = scene.world_from_cam.numpy()
    for k in (1, 2, 3):
        true = np.linalg.inv(truth[0]) @ truth[k]
        found = result.views[k].world_from_cam
        cosine = (np.trace(found[:3, :3].T @ true[:3, :3]) - 1) / 2
        assert np.degrees(np.arccos(np.clip(cosine, -1, 1))) < 6
        direction = found[:3, 3] @ true[:3, 3] / np.linalg.norm(found[:3, 3]) / np.linalg.norm(true[:3, 3])
        assert np.degrees(np.arccos(direction)) < 15


def test_matches_reproject_where_the_report_says(result: Reconstruction) -> None:
    """Lifting matches of one view by its depth and projecting them into the other lands near their partners."""
    errors = []
    for m in result.matches:
        a, b = result.views[m.i], result.views[m.j]
        x, y = m.xy_i.numpy().T
        world = a.points_world()[y, x]
        cam = (world - b.world_from_cam[:3, 3]) @ b.world_from_cam[:3, :3]
        uv = (cam @ b.K.T)[:, :2] / cam[:, 2:]
        errors.append(np.linalg.norm(uv - m.xy_j.numpy(), axis=1))
    median = np.median(np.concatenate(errors))
    assert median < 2 * max(view.median_reprojection_error_px for view in result.views) + 0.1


def test_same_input_gives_the_same_result(model: Model, views: list[View], result: Reconstruction) -> None:
    again = reconstruct(views, model, FAST)
    for a, b in zip(result.views, again.views, strict=True):
        assert np.array_equal(a.depth, b.depth) and np.array_equal(a.world_from_cam, b.world_from_cam)


@pytest.mark.parametrize("graph", ["swin-9", "oneref-1", "retrieval-2-2", "logwin-2-noncyclic"])
def test_other_graphs(model: Model, views: list[View], graph: str) -> None:
    found = reconstruct(views, model, dataclasses.replace(FAST, scene_graph=SceneGraph.parse(graph)))
    assert len(found.registered) == 4 and all(pair.i != pair.j for pair in found.pairs)


def test_one_image(model: Model, views: list[View]) -> None:
    (view,) = reconstruct(views[:1], model, FAST).views
    assert view.registered and view.num_matches == 0 and np.isnan(view.median_reprojection_error_px)
    assert (view.depth > 0).mean() > 0.9 and np.array_equal(view.world_from_cam, np.eye(4))


def test_two_images_and_the_same_image_twice(model: Model, views: list[View]) -> None:
    assert len(reconstruct(views[:2], model, FAST).registered) == 2
    twin = view_of(views[0].rgb, 1)
    first, second = reconstruct([views[0], twin], model, FAST).registered
    assert np.linalg.norm(second.world_from_cam[:3, 3]) < 0.1 * np.median(first.depth)


def test_mixed_orientations(model: Model, views: list[View]) -> None:
    upright = view_of(np.ascontiguousarray(views[1].rgb[:, 28:100]), 1)
    found = reconstruct([views[0], upright], model, FAST)
    assert [view.depth.shape for view in found.registered] == [(96, 128), (96, 72)]


def test_image_that_does_not_connect_is_named_and_kept(
    model: Model, views: list[View], caplog: pytest.LogCaptureFixture
) -> None:
    stranger = view_of(np.random.default_rng(0).integers(0, 255, (96, 128, 3), dtype=np.uint8), 2)
    found = reconstruct([views[0], views[1], stranger], model, FAST)
    assert [view.registered for view in found.views] == [True, True, False]
    assert found.groups == ((0, 1), (2,)) and "view_2.png" in caplog.text
    assert all({m.i, m.j} == {0, 1} for m in found.matches)
    assert found.views[2].depth.shape == (96, 128) and found.views[2].num_matches == 0


def test_a_second_group_is_a_scene_of_its_own(model: Model, views: list[View], tmp_path: Path) -> None:
    other = [view_of(image.numpy(), 4 + k) for k, image in enumerate(render_orbit(900_103, 3, (128, 96), 24).rgb)]
    result = reconstruct([*views, *other], model, FAST)
    assert result.groups == ((0, 1, 2, 3), (4, 5, 6)) and [view.index for view in result.registered] == [0, 1, 2, 3]
    assert result.verdict is not None and result.verdict.overall.level is not Level.GOOD
    assert all(verdict.level is Level.POOR for verdict in result.verdict.views[4:])
    (further,) = result.others
    assert [Path(view.file).name for view in further.registered] == ["view_4.png", "view_5.png", "view_6.png"]
    alone = reconstruct(other, model, FAST)
    for one, same in zip(further.views, alone.views, strict=True):
        np.testing.assert_allclose(one.world_from_cam, same.world_from_cam, atol=2e-3)

    result.save(tmp_path / "out", SceneOptions(min_conf_thr=0.5))
    listed = json.loads((tmp_path / "out" / "cameras.json").read_text())["images"]
    assert [one["group"] for one in listed] == [0, 0, 0, 0, 1, 1, 1]
    assert [one["scene"] for one in listed] == [None] * 4 + ["scene_1"] * 3
    assert listed[5]["verdict"]["level"] == "poor" and not listed[5]["registered"]
    stored = Reconstruction.load(tmp_path / "out" / "scene_1")
    assert len(stored.registered) == 3 and stored.groups == ((0, 1, 2),) and stored.verdict == further.verdict
    for name in ("scene.glb", "report.html", "run.json", "matches.npz"):
        assert (tmp_path / "out" / "scene_1" / name).stat().st_size > 100
    assert Reconstruction.load(tmp_path / "out").groups == result.groups
    (tmp_path / "out" / "scene_1" / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match=r"scene_1/thesis\.txt"):
        result.save(tmp_path / "out", SceneOptions(min_conf_thr=0.5), overwrite=True)


def test_nothing_connects(model: Model, views: list[View]) -> None:
    noise = np.random.default_rng(1)
    strangers = [view_of(noise.integers(0, 255, (96, 128, 3), dtype=np.uint8), k) for k in range(2)]
    with pytest.raises(ReconstructionError, match="no two of the 2 images connect"):
        reconstruct(strangers, model, FAST)


def test_transparent_pixels_have_no_matches(model: Model, views: list[View]) -> None:
    alpha = np.full((96, 128), 255, np.uint8)
    alpha[:, :40] = 0
    masked = view_of(views[1].rgb, 1, alpha)
    found = reconstruct([views[0], masked], model, FAST)
    (m,) = found.matches
    side = m.xy_i if m.i == 1 else m.xy_j
    assert int(side[:, 0].min()) >= 40
    mask = found.views[1].mask
    assert mask is not None and not mask[:, :40].any() and mask[:, 40:].all()


def test_published_behaviour_keeps_every_match(model: Model, views: list[View]) -> None:
    found = reconstruct(views, model, dataclasses.replace(FAST, verification=None, dense=None))
    assert all(pair.num_verified == pair.num_matches and pair.kept for pair in found.pairs)


def test_progress_reaches_the_total_of_every_stage(model: Model, views: list[View]) -> None:
    calls: list[tuple[str, int, int]] = []
    reconstruct(views[:2], model, FAST, lambda *call: calls.append(call))
    stages = dict.fromkeys(stage for stage, _, _ in calls)
    assert list(stages) == [
        "Encode images",
        "Predict and match pairs",
        "Find features",
        "Match features",
        "Align cameras",
        "Refine cameras",
        "Dense depth",
    ]
    for stage in stages:
        done = [call[1] for call in calls if call[0] == stage]
        total = {call[2] for call in calls if call[0] == stage}
        assert done == sorted(done) and done[0] == 0 and {done[-1]} == total, stage


def test_no_images() -> None:
    with pytest.raises(InputError, match="no images"):
        reconstruct([], load_model("small", "cpu"))


def test_exhausted_gpu_memory_is_explained(model: Model, scene: RenderedScene, monkeypatch: pytest.MonkeyPatch) -> None:
    def exhausted(*_: object) -> None:
        raise torch.cuda.OutOfMemoryError

    monkeypatch.setattr(pipeline, "align_group", exhausted)
    with pytest.raises(ReconstructionError, match="use a `scene_graph` with fewer pairs"):
        reconstruct([view_of(image.numpy(), k) for k, image in enumerate(scene.rgb[:2])], model)


def test_photos_left_out_are_named_with_their_best_number(caplog: pytest.LogCaptureFixture) -> None:
    images = [view_of(np.zeros((96, 128, 3), np.uint8), k) for k in range(4)]
    pairs = [
        PairSummary(0, 1, 900, 800, True),
        PairSummary(0, 2, 900, 7, False),
        PairSummary(2, 1, 900, 12, False),
        PairSummary(3, 2, 900, 600, True),  # not with the largest group
    ]
    pipeline._warn_of_left_out(images, [[0, 1], [2, 3]], pairs)
    assert "2 of 4 images" in caplog.text and "view_2.png (12), view_3.png (0)" in caplog.text
    caplog.clear()
    pipeline._warn_of_left_out(images[:2], [[0, 1]], pairs[:1])
    assert not caplog.text


def test_a_single_photo_needs_no_features(
    model: Model, views: list[View], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(pipeline, "_find_evidence", lambda *_: pytest.fail("looked for features of one photo"))
    assert reconstruct(views[:1], model, FAST).views[0].registered and not caplog.text
