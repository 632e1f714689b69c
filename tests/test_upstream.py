"""The published code as a second engine, played by a stand-in with its interface, and the comparison of engines."""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mast3r_sfm.app.cli import main
from mast3r_sfm.app.compare import engine as upstream
from mast3r_sfm.app.compare.comparison import Limits, compare, measured
from mast3r_sfm.app.compare.published import find_upstream, import_upstream
from mast3r_sfm.errors import InputError, ModelError, ReconstructionError
from mast3r_sfm.images import loading as images
from mast3r_sfm.images.loading import ImageSizing, load_views
from mast3r_sfm.reconstruction import Reconstruction
from mast3r_sfm.types import Correspondences, ImageTransform, ReconstructedView, View

STAND_IN = Path(__file__).parent / "container" / "clone" / "mast3r"
H, W, FOCAL = 48, 64, 60.0
CPU = torch.device("cpu")


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("MAST3R_UPSTREAM", str(STAND_IN))
    path = list(sys.path)
    yield
    assert sys.path == path
    for name in [name for name in sys.modules if name.partition(".")[0] in ("mast3r", "dust3r")]:
        del sys.modules[name]


# --- a scene whose answer is known: cameras above the plane z = 0 ---------------------------------------------------


def looking_down(x: float, y: float, tilt_deg: float) -> np.ndarray:
    """World-from-camera of a camera at (x, y, 3) that looks down, tilted about its x axis."""
    c, s = np.cos(np.radians(tilt_deg)), np.sin(np.radians(tilt_deg))
    down = np.diag([1.0, -1.0, -1.0])
    pose = np.eye(4)
    pose[:3, :3] = down @ np.array([[1, 0, 0], [0, c, -s], [0, s, c]])
    pose[:3, 3] = (x, y, 3.0)
    return pose


POSES = [looking_down(0, 0, 0), looking_down(1, 0, 5), looking_down(0, 1, -5), looking_down(1, 1, 3)]
K = np.array([[FOCAL, 0, W / 2], [0, FOCAL, H / 2], [0, 0, 1]])


def plane_view(index: int, pose: np.ndarray) -> ReconstructedView:
    """The depth of the plane z = 0: the ray p + t d of a pixel meets it at t = -p_z / d_z, and t is the z-depth."""
    x, y = np.meshgrid(np.arange(W), np.arange(H))
    rays = np.stack([(x - W / 2) / FOCAL, (y - H / 2) / FOCAL, np.ones((H, W))], -1) @ pose[:3, :3].T
    depth = (-pose[2, 3] / rays[..., 2]).astype(np.float32)
    conf = np.full((H, W), 2.0, dtype=np.float32)
    return ReconstructedView(
        index=index,
        file=f"{index}.png",
        transform=ImageTransform((W, H), (W, H), (0, 0), (W, H)),
        rgb=np.zeros((H, W, 3), dtype=np.uint8),
        registered=True,
        K=K,
        world_from_cam=pose,
        depth=depth,
        conf=conf,
        conf_clean=conf,
        median_reprojection_error_px=0.0,
        num_matches=0,
    )


def true_match(i: int, j: int, *, off_by: float = 0.0) -> Correspondences:
    """Pixels of view i and where the plane's points land in view j, rounded; `off_by` pixels beside it."""
    views = [plane_view(k, POSES[k]) for k in (i, j)]
    points = views[0].points_world().reshape(-1, 3)
    cam = (points - POSES[j][:3, 3]) @ POSES[j][:3, :3]
    xy_j = np.rint(cam[:, :2] / cam[:, 2:] * FOCAL + K[:2, 2]) + np.array([off_by, 0])
    xy_i = np.stack(np.meshgrid(np.arange(W), np.arange(H)), -1).reshape(-1, 2)
    inside = (xy_j >= 0).all(1) & (xy_j < [W, H]).all(1)
    return Correspondences(
        i,
        j,
        torch.from_numpy(xy_i[inside].astype(np.int32)),
        torch.from_numpy(xy_j[inside].astype(np.int32)),
        torch.ones(int(inside.sum())),
    )


def plane_scene(matches: tuple[Correspondences, ...] = ()) -> Reconstruction:
    return Reconstruction(tuple(plane_view(k, pose) for k, pose in enumerate(POSES)), matches)


def changed(scene: Reconstruction, index: int, **fields: Any) -> Reconstruction:
    views = [dataclasses.replace(v, **fields) if v.index == index else v for v in scene.views]
    return Reconstruction(tuple(views), scene.matches)


# --- comparison -----------------------------------------------------------------------------------------------------


def test_frame_and_scale_do_not_matter() -> None:
    native = plane_scene()
    turn = np.array([[0, 0, 1, 7], [1, 0, 0, -2], [0, 1, 0, 1], [0, 0, 0, 1]], dtype=np.float64)
    moved = []
    for view in native.views:
        pose = turn @ view.world_from_cam
        pose[:3, 3] *= 2.5
        moved.append(dataclasses.replace(view, world_from_cam=pose, depth=view.depth * 2.5))
    comparison = compare(native, Reconstruction(tuple(moved), ()))
    assert comparison.scale == pytest.approx(2.5, rel=1e-6)
    assert comparison.agrees
    for difference in comparison.views:
        assert difference.rotation_deg < 1e-5
        assert max(difference.depth, difference.position, difference.focal) < 1e-6


def test_one_turned_camera_is_found_and_the_others_are_not_blamed() -> None:
    # turned by 2 degrees about its own centre: the others still see it where it was
    native = plane_scene()
    turned = POSES[1] @ looking_down(0, 0, 0) @ looking_down(0, 0, 2)
    turned[:3, 3] = POSES[1][:3, 3]
    comparison = compare(native, changed(native, 1, world_from_cam=turned))
    assert [view.rotation_deg for view in comparison.views] == pytest.approx([0, 2, 0, 0], abs=1e-5)
    assert [view.position > 0.01 for view in comparison.views] == [False, True, False, False]
    assert [view.within(Limits()) for view in comparison.views] == [True, False, True, True]
    assert not comparison.agrees


def test_focal_and_depth_differences_are_relative() -> None:
    native = plane_scene()
    wide = native.views[2].K.copy()
    wide[0, 0] = wide[1, 1] = FOCAL / 1.1
    other = changed(changed(native, 2, K=wide), 0, depth=native.views[0].depth / 0.95)
    comparison = compare(native, other)
    assert [view.focal for view in comparison.views] == pytest.approx([0, 0, 0.1, 0], abs=1e-6)
    assert [view.depth for view in comparison.views] == pytest.approx([0.05, 0, 0, 0], abs=1e-6)


def test_matches_hold_where_the_geometry_takes_them() -> None:
    right, wrong = true_match(0, 1), true_match(2, 3, off_by=9)
    native = plane_scene((right, wrong))
    far = changed(native, 1, depth=native.views[1].depth * 3)
    first, second, third, _ = compare(native, far).views
    assert (first.matches, first.held_native, first.held_upstream) == (len(right), 1.0, 1.0)
    assert second.held_native == 1.0
    assert second.held_both < 0.5, "upstream's depth of view 1 is wrong, so its pixels land elsewhere"
    assert third.held_native == 0.0


def test_an_image_that_one_engine_lost_is_a_difference() -> None:
    native = plane_scene()
    comparison = compare(native, changed(native, 3, registered=False))
    assert comparison.alone == ("3.png",)
    assert len(comparison.views) == 3
    assert not comparison.agrees
    lost = native
    for index in (1, 2, 3):
        lost = changed(lost, index, registered=False)
    with pytest.raises(ReconstructionError, match="only 1 of 4"):
        compare(native, lost)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="peak memory of a single run is known on Linux only")
def test_peak_memory_is_that_of_the_run() -> None:
    freed = [np.ones(10_000) for _ in range(10_000)]  # 800 MB that malloc keeps
    del freed
    size, large = measured(lambda: np.ones(40_000_000).size, CPU)
    _, small = measured(lambda: None, CPU)
    assert size == 40_000_000
    assert large.gpu_bytes is None
    assert large.ram_bytes is not None
    assert small.ram_bytes is not None
    assert large.ram_bytes - small.ram_bytes > 200e6
    assert large.seconds > small.seconds >= 0


# --- adapter --------------------------------------------------------------------------------------------------------


def photos(folder: Path, count: int = 3) -> list[View]:
    rng = np.random.default_rng(0)
    for k in range(count):
        Image.fromarray(rng.integers(0, 255, (96, 128, 3), dtype=np.uint8)).save(folder / f"{k}.png")
    return load_views([folder / f"{k}.png" for k in range(count)], ImageSizing.for_model(64, 16, False))


def write_truth(folder: Path, scene: Reconstruction) -> None:
    views = scene.views
    np.savez(
        folder / "scene.npz",
        poses=np.stack([view.world_from_cam for view in views]),
        K=np.stack([view.K for view in views]),
        depth=np.stack([view.depth for view in views]),
        conf=np.stack([view.conf for view in views]),
        cleaned=np.stack([view.conf * (np.arange(W) >= W // 2) for view in views]),  # the left half floats
        rgb=np.stack([np.full((H, W, 3), 17 * view.index, dtype=np.uint8) for view in views]),
    )


def test_the_published_result_arrives_in_our_terms(stand_in: None, tmp_path: Path) -> None:
    views = photos(tmp_path)
    scene = Reconstruction(plane_scene().views[:3], ())
    write_truth(tmp_path, scene)
    options = upstream.UpstreamOptions(image_size=64)
    with import_upstream() as published:
        result = upstream.reconstruct(published, torch.nn.Identity(), views, [(1, 0), (2, 0)], CPU, options)
    np.testing.assert_allclose(result.views[0].world_from_cam, np.eye(4), atol=1e-6)
    for got, want, view in zip(result.views, scene.views, views, strict=True):
        expected = np.linalg.inv(POSES[0]) @ want.world_from_cam
        np.testing.assert_allclose(got.world_from_cam, expected, atol=1e-5)
        np.testing.assert_allclose(got.K, K, rtol=1e-6)
        np.testing.assert_array_equal(got.depth, want.depth)
        assert (got.conf == 2).all()
        assert (got.conf_clean[:, : W // 2] == 0).all()
        assert (got.conf_clean[:, W // 2 :] == 2).all()
        assert (got.rgb == 17 * got.index).all()
        assert got.depth.dtype == got.conf.dtype == np.float32
        assert got.transform == view.transform
        assert got.file == str(view.path)
        assert got.registered
    assert compare(scene, result).agrees


def test_a_file_that_the_published_loader_skips_is_an_error(stand_in: None, tmp_path: Path) -> None:
    photos(tmp_path)
    Image.open(tmp_path / "1.png").save(tmp_path / "1.webp")
    files = [tmp_path / name for name in ("0.png", "1.webp", "2.png")]
    views = load_views(files, ImageSizing.for_model(64, 16, False))
    with import_upstream() as published, pytest.raises(InputError, match="took 2 of 3"):
        upstream.reconstruct(published, torch.nn.Identity(), views, [(1, 0)], CPU)


def test_sizes_that_differ_are_an_error_that_names_the_file(stand_in: None, tmp_path: Path) -> None:
    views = photos(tmp_path)
    options = upstream.UpstreamOptions(image_size=128)
    with import_upstream() as published, pytest.raises(InputError, match=r"0\.png.*128x96, ours 64x48"):
        upstream.reconstruct(published, torch.nn.Identity(), views, [(1, 0)], CPU, options)


def test_one_image_and_a_repeated_image_are_refused(stand_in: None, tmp_path: Path) -> None:
    views = photos(tmp_path)
    with import_upstream() as published:
        with pytest.raises(InputError, match="at least two"):
            upstream.reconstruct(published, torch.nn.Identity(), views[:1], [], CPU)
        with pytest.raises(InputError, match="named twice"):
            upstream.reconstruct(published, torch.nn.Identity(), [views[0], views[0]], [(1, 0)], CPU)


def test_a_failure_inside_is_one_line(stand_in: None, tmp_path: Path) -> None:
    views = photos(tmp_path)
    (tmp_path / "scene.npz").write_bytes(b"not an archive")
    options = upstream.UpstreamOptions(image_size=64)
    with import_upstream() as published, pytest.raises(ReconstructionError, match="published code failed: "):
        upstream.reconstruct(published, torch.nn.Identity(), views, [(1, 0)], CPU, options)
    with import_upstream() as published, pytest.raises(ModelError, match="cannot load"):
        upstream.load_model(published, str(tmp_path), CPU)


def test_absent_or_broken_published_code_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAST3R_UPSTREAM", str(tmp_path))
    assert find_upstream() is None
    with pytest.raises(InputError, match=f"not in {tmp_path}.*MAST3R_UPSTREAM"), import_upstream():
        pass
    shutil.copytree(STAND_IN / "mast3r", tmp_path / "mast3r")
    assert find_upstream() == tmp_path
    with pytest.raises(InputError, match=r"No module named 'dust3r'.*submodules"), import_upstream():
        pass
    for name in [name for name in sys.modules if name.partition(".")[0] == "mast3r"]:
        del sys.modules[name]


def test_errors_of_the_caller_pass_through_the_import(stand_in: None) -> None:
    with pytest.raises(AttributeError, match="mine"), import_upstream():
        raise AttributeError("mine")


# --- the command ----------------------------------------------------------------------------------------------------


def verify(folder: Path) -> int:
    """Exit code of `verify` on the photos in `folder`, with the bundled model."""
    small = Path(images.__file__).parents[1] / "data" / "small"
    arguments = ["--input", str(folder / "*.jpg"), "--model-name", str(small), "--image-size", "96", "--niter", "20"]
    with pytest.raises(SystemExit) as exit_info:
        main(["verify", *arguments, "--device", "cpu", "--quiet"])
    return int(str(exit_info.value.code))


def test_verify_agrees_with_the_same_method_and_not_with_another_scene(
    stand_in: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(0)
    blobs = rng.integers(0, 255, (40, 44, 3), dtype=np.uint8)
    photo = np.asarray(Image.fromarray(blobs).resize((440, 400), Image.Resampling.BICUBIC))
    for k in range(2):
        Image.fromarray(photo[:, 20 * k : 420 + 20 * k]).save(tmp_path / f"{k}.jpg", quality=95)
    assert verify(tmp_path) == 0
    shown = capsys.readouterr().out
    assert "The engines agree." in shown
    assert "upstream: " in shown

    rgb = np.zeros((2, 80, 96, 3), dtype=np.uint8)
    depth = np.linspace(1, 2, 2 * 80 * 96, dtype=np.float32).reshape(2, 80, 96)
    poses, both_K = np.stack(POSES[:2]), np.stack([K, K])
    np.savez(tmp_path / "scene.npz", depth=depth, conf=depth, cleaned=depth, rgb=rgb, poses=poses, K=both_K)
    assert verify(tmp_path) == 6
    assert "The engines differ on 2 images." in capsys.readouterr().out


def test_the_published_engine_feeds_the_same_exporters(stand_in: None, tmp_path: Path) -> None:
    photos(tmp_path)
    write_truth(tmp_path, Reconstruction(plane_scene().views[:3], ()))
    small = Path(images.__file__).parents[1] / "data" / "small"
    output = tmp_path / "result"
    arguments = ["--input", str(tmp_path / "*.png"), "--output", str(output), "--model-name", str(small)]
    with pytest.raises(SystemExit) as exit_info:
        main(["reconstruct", "--engine", "upstream", *arguments, "--image-size", "64", "--min-conf-thr", "0.5"])
    assert exit_info.value.code == 0
    run = json.loads((output / "run.json").read_text())
    assert run["model"]["engine"] == "upstream"
    cameras = json.loads((output / "cameras.json").read_text())["images"]
    expected = np.linalg.inv(POSES[0]) @ POSES[2]
    np.testing.assert_allclose(cameras[2]["world_from_cam"], expected, atol=1e-5)
    np.testing.assert_array_equal(np.load(output / "depth_001.npy"), plane_view(1, POSES[1]).depth)
    assert (output / "scene.glb").stat().st_size > 0


def test_verify_without_the_published_code_is_a_usage_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MAST3R_UPSTREAM", str(tmp_path))
    assert verify(tmp_path) == 2
    assert "MAST3R_UPSTREAM" in capsys.readouterr().err


def test_verify_refuses_a_graph_that_only_we_have(
    stand_in: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos(tmp_path)
    with pytest.raises(SystemExit):
        main(["verify", "--input", str(tmp_path), "--image-size", "64", "--scene-graph", "retrieval-2-2"])
    assert "which the published engine does not have" in " ".join(capsys.readouterr().err.split())
