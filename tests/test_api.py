"""What a person types after `pip install`: the front door, its examples, and messages in its own terms."""

from __future__ import annotations

import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import mast3r_sfm
from mast3r_sfm import (
    AlignmentConfig,
    InputError,
    Reconstruction,
    ReconstructionOptions,
    SceneOptions,
    load_images,
    load_model,
    match_images,
    reconstruct,
)
from mast3r_sfm.app.flags import as_flags
from mast3r_sfm.errors import NotFiniteError
from mast3r_sfm.model.checkpoint import Model
from mast3r_sfm.options import Device, Precision, SceneGraph
from mast3r_sfm.pipeline import without_overflow
from synthetic import render_orbit

ROOT = Path(__file__).parents[1]
FAST = ReconstructionOptions(alignment=AlignmentConfig(niter_coarse=40, niter_fine=40))


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for k, image in enumerate(render_orbit(900_100, 3, (160, 120), 30, effects=0).rgb):
        Image.fromarray(image.numpy()).save(folder / f"photo {k}.png")
    return folder


@pytest.fixture(scope="module")
def model() -> Model:
    return load_model("small", "cpu")


@pytest.fixture(scope="module")
def result(photos: Path, model: Model) -> Reconstruction:
    return reconstruct(load_images(photos, model, image_size=160), model, FAST)


def test_import_loads_nothing_heavy_and_lists_what_there_is() -> None:
    code = "import sys, mast3r_sfm, mast3r_sfm.options; print('torch' in sys.modules or 'numpy' in sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert shown.strip() == "False"
    assert {"load_model", "load_images", "reconstruct", "Reconstruction", "InputError"} <= set(dir(mast3r_sfm))
    for name in mast3r_sfm.__all__:
        assert getattr(mast3r_sfm, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'reconstrukt'"):
        mast3r_sfm.reconstrukt  # noqa: B018


def test_nothing_is_printed_or_written(
    photos: Path, model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    reconstruct(load_images([photos / "photo 0.png", photos / "photo 1.png"], model, image_size=96), model, FAST)
    assert capfd.readouterr() == ("", "") and not list(tmp_path.iterdir())


def test_a_result_says_how_it_came_about(result: Reconstruction) -> None:
    assert result.model is not None and result.model.name == "small" and result.model.licence == "Apache-2.0"
    assert result.options == FAST and len(result.pairs) == 3 and result.groups == ((0, 1, 2),)
    assert all(len(sha256) == 64 for sha256 in result.image_hashes)


def test_save_and_load(result: Reconstruction, tmp_path: Path) -> None:
    statistics = result.save(tmp_path / "out", SceneOptions(min_conf_thr=1.2))
    assert statistics.num_faces > 0 and (tmp_path / "out" / "scene.glb").stat().st_size == statistics.file_bytes
    again = Reconstruction.load(tmp_path / "out")
    for a, b in zip(result.views, again.views, strict=True):
        assert np.array_equal(a.depth, b.depth) and np.array_equal(a.world_from_cam, b.world_from_cam)
    with pytest.raises(InputError, match=r"already holds a result.*`overwrite=True`"):
        result.save(tmp_path / "out")
    result.save(tmp_path / "out", SceneOptions(min_conf_thr=1.2), overwrite=True)


def test_the_threshold_is_the_models_own_unless_one_is_named(result: Reconstruction, tmp_path: Path) -> None:
    assert result.model is not None and result.model.min_conf_thr is not None
    result.export("glb", tmp_path / "own.glb")
    result.export("glb", tmp_path / "named.glb", SceneOptions(min_conf_thr=result.model.min_conf_thr))
    assert (tmp_path / "own.glb").read_bytes() == (tmp_path / "named.glb").read_bytes()


def test_views_are_numbered_by_their_place(photos: Path, model: Model, result: Reconstruction) -> None:
    """Whatever the order, and from several calls of `load_images`: a photo keeps its own camera and depth."""
    images = [load_images(photos / f"photo {k}.png", model, image_size=160)[0] for k in (2, 1, 0)]
    turned = reconstruct(images, model, FAST)
    for a, b in zip(result.views, turned.views[::-1], strict=True):
        assert a.file == b.file and np.array_equal(a.rgb, b.rgb)
        assert np.median(np.abs(a.depth / b.depth / np.median(a.depth / b.depth) - 1)) < 0.02
    assert [view.index for view in turned.views] == [0, 1, 2]
    assert len(reconstruct(images[1:], model, FAST).registered) == 2


@pytest.mark.parametrize("pairs", [[(0, 3)], [(-1, 0)], [(1, 1)], [(0, 1), (1, 0)], [(0, 1, 2)]])
def test_pairs_that_are_none(photos: Path, model: Model, pairs: list[tuple[int, int]]) -> None:
    images = load_images(photos, model, image_size=96)
    with pytest.raises(InputError, match="`pairs`"):
        reconstruct(images, model, FAST, pairs=pairs)


def test_a_result_that_was_read_keeps_its_threshold(result: Reconstruction, tmp_path: Path) -> None:
    result.save(tmp_path / "out")
    Reconstruction.load(tmp_path / "out").export("glb", tmp_path / "again.glb")
    assert (tmp_path / "again.glb").read_bytes() == (tmp_path / "out" / "scene.glb").read_bytes()


def test_wrong_values_are_told_in_one_line(result: Reconstruction, model: Model, photos: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="`image_size` 0"):
        load_images(photos, model, image_size=0)
    with pytest.raises(InputError, match="matching_conf_thr"):
        AlignmentConfig(matching_conf_thr=float("nan"))
    with pytest.raises(InputError, match="allowed: auto, cuda"):
        load_model("small", device=0)  # type: ignore[arg-type]
    assert load_model("small", device=torch.device("cpu")).device.type == "cpu"  # type: ignore[arg-type]
    for path in (tmp_path / "no" / "x.glb", tmp_path):
        with pytest.raises(InputError):
            result.export("glb", path)


def test_other_formats(result: Reconstruction, tmp_path: Path) -> None:
    result.export("cameras", tmp_path / "cameras.json")
    result.export("matches", tmp_path / "matches.npz")
    result.export("depth", tmp_path / "new folder")
    assert np.load(tmp_path / "new folder" / "depth_002.npy").shape == (120, 160)
    with pytest.raises(InputError, match="allowed: glb, cameras"):
        result.export("obj", tmp_path / "scene.obj")


def test_match_images(photos: Path, model: Model) -> None:
    first, second = load_images([photos / "photo 0.png", photos / "photo 1.png"], model, image_size=160)
    found = match_images(first, second, model)
    assert found.matches is not None and 100 < len(found.matches) <= found.num_found


def test_half_precision_that_overflows_is_replaced_once(model: Model, caplog: pytest.LogCaptureFixture) -> None:
    import dataclasses

    half = dataclasses.replace(model, precision=Precision.FP16, may_change_precision=True)

    def overflows_in_half(usable: Model) -> str:
        if usable.precision is Precision.FP16:
            raise NotFiniteError("not finite")
        return str(usable.precision)

    assert without_overflow(half, overflows_in_half) == "bf16"
    assert "runs again in bf16" in caplog.text
    with pytest.raises(NotFiniteError):
        without_overflow(dataclasses.replace(half, may_change_precision=False), overflows_in_half)


def test_values_are_parsed_once() -> None:
    assert Device.parse("cuda:1") == Device("cuda", 1) and str(Device.parse("cuda:1")) == "cuda:1"
    assert ReconstructionOptions(scene_graph="swin-2").scene_graph == SceneGraph("swin", window=2)  # type: ignore[arg-type]
    for wrong in ("tpu", "cuda:", "cuda:-1", "CPU", ""):
        with pytest.raises(InputError, match="allowed: auto, cuda, cuda:N, cpu, mps"):
            Device.parse(wrong)
    with pytest.raises(InputError, match="allowed: auto, fp32, tf32, bf16, fp16"):
        Precision.parse("int4")


@pytest.mark.parametrize(
    "message, shown",
    [
        ("use a smaller `image_size`, or `device='cpu'`", "use a smaller --image-size, or --device cpu"),
        ("`scene_graph=pairs:a b.txt`: none", "--scene-graph pairs:a b.txt: none"),
        ("`overwrite=True` or `clean_depth=False`", "--overwrite or --no-clean-depth"),
        ("`verification=None`", "--no-verify-matches"),
        ("`niter_coarse` is -1", "--niter is -1"),
        ("run `mast3r-sfm doctor` to see", "run `mast3r-sfm doctor` to see"),
        ("`camera_size` is 0", "camera_size is 0"),
    ],
)
def test_parameters_become_flags(message: str, shown: str) -> None:
    assert as_flags(message) == shown


def test_examples_run(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = runpy.run_path(str(ROOT / "examples" / "reconstruct_photos.py"))
    first["main"](str(photos), str(tmp_path / "result"))
    assert "Align cameras: 15 of 15" in capsys.readouterr().out and (tmp_path / "result" / "scene.glb").exists()
    second = runpy.run_path(str(ROOT / "examples" / "points_with_colours.py"))
    second["main"](str(photos), str(tmp_path / "points.npy"))
    points = np.load(tmp_path / "points.npy")
    assert points.shape[1] == 6 and len(points) > 10_000 and np.isfinite(points).all() and points[:, 3:].max() <= 255


def test_torch_is_the_callers(result: Reconstruction) -> None:
    """A run leaves no switch of torch behind."""
    assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled() and len(result.views) == 3
