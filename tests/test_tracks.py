"""Cameras refined by tracks of local features: by hand, on a rendered scene, and through the command."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation

from mast3r_sfm.app.cli import main
from mast3r_sfm.evaluation import pair_errors_deg
from mast3r_sfm.geometry import points_of_depth, undistort
from mast3r_sfm.options import RefinementOptions
from mast3r_sfm.reconstruction import Reconstruction
from mast3r_sfm.refine import refine_views
from mast3r_sfm.tracks import LocalFeatures, RefinedCameras, TrackView, extract_features, refine_cameras
from mast3r_sfm.tracks.bundle import CameraGroup
from mast3r_sfm.tracks.guided import match_guided
from mast3r_sfm.tracks.refinement import in_frame_of
from mast3r_sfm.types import ImageTransform, ReconstructedView, View
from synthetic import RenderedScene, render_orbit

N, W, H = 5, 640, 480


@pytest.fixture(scope="module")
def scene() -> RenderedScene:
    return render_orbit(900_100, N, (W, H), 40, effects=0)


@pytest.fixture(scope="module")
def track_views(scene: RenderedScene) -> list[TrackView]:
    """Exact depth, cameras off by a third of a degree and a few centimetres, as an alignment leaves them."""
    rng = np.random.default_rng(0)
    found = []
    for k in range(N):
        grey = np.asarray(Image.fromarray(scene.rgb[k].numpy()).convert("L"))
        features = extract_features(grey, 1600, 3000)
        column, row = np.clip(np.rint(features.xy).astype(int), 0, [W - 1, H - 1]).T
        depth = scene.depth[k].numpy()[row, column].astype(np.float64)
        pose = scene.world_from_cam[k].numpy().copy()
        pose[:3, :3] = pose[:3, :3] @ Rotation.from_rotvec(np.radians(0.3) * rng.normal(size=3)).as_matrix()
        pose[:3, 3] += 0.01 * rng.normal(size=3)
        found.append(TrackView(features, np.where(depth > 0, depth, np.nan), np.linalg.inv(pose), 0))
    return found


def refine(scene: RenderedScene, views: list[TrackView], focal: float = 1.02) -> RefinedCameras:
    group = CameraGroup((W, H), focal * float(scene.K[0, 0, 0]), ((W - 1) / 2, (H - 1) / 2))
    pairs = [(i, j) for i in range(N) for j in range(i + 1, N)]
    refined = refine_cameras(views, [group], pairs)
    assert refined is not None
    return refined


def worst_deg(scene: RenderedScene, cam_from_world: np.ndarray) -> tuple[float, float]:
    errors = pair_errors_deg(np.linalg.inv(cam_from_world), scene.world_from_cam.numpy(), np.ones(N, dtype=bool))
    return float(errors[0].max()), float(errors[1].max())


def test_cameras_come_much_closer_to_the_truth(scene: RenderedScene, track_views: list[TrackView]) -> None:
    before = worst_deg(scene, np.stack([view.cam_from_world for view in track_views]))
    refined = refine(scene, track_views)
    after = worst_deg(scene, refined.cam_from_world)
    assert refined.refined.all() and min(before) > 1
    assert after[0] < before[0] / 3 and after[1] < before[1] / 6, (before, after)  # the worst of ten pairs
    assert refined.groups[0].focal_px == pytest.approx(float(scene.K[0, 0, 0]), rel=0.005)
    assert (refined.median_error_px < 1).all() and refined.mean_track_length > 2.5
    # the unit stays that of the cameras that came in, and so do the depths
    for depths, view in zip(refined.track_depths, track_views, strict=True):
        assert np.nanmedian(depths / view.depths) == pytest.approx(1, abs=0.02)


def test_two_runs_give_the_same_cameras(scene: RenderedScene, track_views: list[TrackView]) -> None:
    first, second = refine(scene, track_views), refine(scene, track_views)
    assert np.array_equal(first.cam_from_world, second.cam_from_world) and first.groups == second.groups


def test_a_view_without_features_keeps_its_camera(scene: RenderedScene, track_views: list[TrackView]) -> None:
    nothing = LocalFeatures.none()
    views = [*track_views[:-1], dataclasses.replace(track_views[-1], features=nothing, depths=np.zeros(0))]
    refined = refine(scene, views)
    assert refined.refined.tolist() == [True] * (N - 1) + [False]
    assert np.array_equal(refined.cam_from_world[-1], views[-1].cam_from_world)
    assert np.isnan(refined.median_error_px[-1]) and refined.num_observations[-1] == 0


def test_nothing_to_hold_on_to(scene: RenderedScene, track_views: list[TrackView]) -> None:
    nothing = LocalFeatures.none()
    views = [dataclasses.replace(view, features=nothing, depths=np.zeros(0)) for view in track_views]
    group = CameraGroup((W, H), 500.0, ((W - 1) / 2, (H - 1) / 2))
    assert refine_cameras(views, [group], [(0, 1), (1, 2)]) is None


def test_features_lie_where_the_picture_has_them() -> None:
    """A dark disc at a place between pixels; centres are integers, whatever the size that is looked at."""
    y, x = np.mgrid[:240, :320]
    disc = (255 * np.clip(np.hypot(x - 150.3, y - 99.6) - 9.5, 0, 1)).astype(np.uint8)
    for max_size in (320, 160):
        features = extract_features(disc, max_size, 100)
        nearest = np.linalg.norm(features.xy - [150.3, 99.6], axis=1).min()
        assert nearest < 0.15, max_size
    mask = np.ones(disc.shape, dtype=bool)
    mask[60:140, 110:190] = False
    assert not len(extract_features(disc, 320, 100, mask)) and not len(extract_features(disc * 0, 320, 100))


def unit(*rows: list[float]) -> np.ndarray:
    padded = np.zeros((len(rows), 128), dtype=np.float32)
    padded[:, : len(rows[0])] = rows
    return padded / np.linalg.norm(padded, axis=1, keepdims=True)


def test_guided_matches_by_hand() -> None:
    first = LocalFeatures(np.array([[10.0, 10], [50, 50], [90, 90]]), unit([1, 0, 0], [0, 1, 0], [0, 0, 1]))
    # the twin of feature 0 lies far from its predicted place; 1 has a rival that looks the same; 2 is alone
    second = LocalFeatures(
        np.array([[80.0, 10], [51, 50], [60, 50], [91, 90]]), unit([1, 0, 0], [0, 1, 0], [0, 1, 0], [0, 0.1, 1])
    )
    trees = cKDTree(first.xy), cKDTree(second.xy)
    back = np.array([[10.0, 10], [50, 50], [59, 50], [90, 90]])

    def matches(radius: float, in_second: np.ndarray = first.xy) -> list[list[int]]:
        return match_guided(first, second, *trees, in_second, back, radius).tolist()

    assert matches(5) == [[1, 1], [2, 3]]  # the rival is out of reach
    assert matches(15) == [[2, 3]]  # and here it is not
    assert matches(5, np.where(np.arange(3)[:, None] == 2, np.nan, first.xy)) == [[1, 1]]  # of unknown depth


def test_frame_and_unit_come_back() -> None:
    rng = np.random.default_rng(1)
    poses = np.tile(np.eye(4), (4, 1, 1))
    poses[:, :3, :3] = Rotation.random(4, random_state=2).as_matrix()
    poses[:, :3, 3] = rng.normal(size=(4, 3))
    moved = poses.copy()
    turn = Rotation.from_euler("xyz", [0.3, -1, 2]).as_matrix()
    moved[:, :3, :3] = turn @ poses[:, :3, :3]
    moved[:, :3, 3] = 3 * poses[:, :3, 3] @ turn.T + [1, 2, 3]
    used = np.array([True, True, True, True])
    found, scale = in_frame_of(np.linalg.inv(moved), np.linalg.inv(poses), used)
    np.testing.assert_allclose(found, np.linalg.inv(poses), atol=1e-9)
    assert scale == pytest.approx(1 / 3)
    # two cameras: the turn about the line between them is told by their rotations
    found, _ = in_frame_of(np.linalg.inv(moved[:2]), np.linalg.inv(poses[:2]), used[:2])
    np.testing.assert_allclose(found, np.linalg.inv(poses[:2]), atol=1e-9)


@pytest.mark.parametrize("k1", [-0.15, 0.0, 0.2])
def test_undistortion_undoes_distortion(k1: float) -> None:
    x = np.random.default_rng(0).uniform(-0.8, 0.8, (50, 2))
    seen = x * (1 + k1 * (x**2).sum(1, keepdims=True))
    np.testing.assert_allclose(undistort(seen, k1), x, atol=1e-9)
    K = np.array([[10.0, 0, 7.5], [0, 10, 5.5], [0, 0, 1]])
    points = points_of_depth(np.full((12, 16), 2.0), K, k1)
    ideal = points[..., :2] / points[..., 2:]
    pixels = ideal * (1 + k1 * (ideal**2).sum(-1, keepdims=True)) * 10 + K[:2, 2]
    np.testing.assert_allclose(pixels, np.stack(np.meshgrid(np.arange(16), np.arange(12)), -1), atol=1e-6)


def test_a_photo_that_is_gone_keeps_its_camera(
    scene: RenderedScene, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    images, views = [], []
    for k in range(N):
        path = tmp_path / f"{k}.png"
        Image.fromarray(scene.rgb[k].numpy()).save(path)
        transform = ImageTransform((W, H), (W, H), (0, 0), (W, H))
        images.append(View(k, path, scene.rgb[k].numpy(), transform))
        depth = np.where(scene.depth[k].numpy() > 0, scene.depth[k].numpy(), np.nan).astype(np.float32)
        conf = np.full((H, W), 5, np.float32)
        K = scene.K[k].numpy() * [[1.01, 1, 1], [1, 1.01, 1], [1, 1, 1]]
        pose = scene.world_from_cam[k].numpy()
        views.append(
            ReconstructedView(k, str(path), transform, images[k].rgb, True, K, pose, depth, conf, conf, 0.5, 99)
        )
    (tmp_path / "4.png").unlink()
    pairs = [(i, j) for i in range(N) for j in range(i + 1, N)]
    found = refine_views(images, views, pairs, RefinementOptions(max_features=2000), camera_of=[0] * N)
    assert [view.refined for view in found] == [True, True, True, True, False]
    assert "4.png: cannot be read" in caplog.text and "1 of 5 cameras stay as aligned" in caplog.text
    np.testing.assert_allclose(found[0].world_from_cam, np.eye(4), atol=1e-9)
    assert np.array_equal(found[4].K, views[4].K) and np.isnan(found[4].track_error_px)
    true = np.linalg.inv(scene.world_from_cam[0].numpy()) @ scene.world_from_cam[3].numpy()
    np.testing.assert_allclose(found[3].world_from_cam, true, atol=0.03)
    assert found[0].K[0, 0] == pytest.approx(float(scene.K[0, 0, 0]), rel=0.01)


def test_the_command(scene: RenderedScene, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for k in range(3):
        Image.fromarray(scene.rgb[k].numpy()).save(tmp_path / f"photo {k}.png")
    arguments = ["reconstruct", "--input", str(tmp_path), "--output", str(tmp_path / "out"), "--model-name", "small"]
    arguments += ["--device", "cpu", "--image-size", "160", "--niter", "60", "--min-conf-thr", "1"]
    with pytest.raises(SystemExit) as done:
        main([*arguments, "--shared-intrinsics", "--refine-cameras"])
    assert done.value.code == 0
    assert "Refined cameras 3 of 3" in " ".join(capsys.readouterr().err.split())
    cameras = json.loads((tmp_path / "out" / "cameras.json").read_text())["images"]
    assert all(c["refined"] and c["track_error_px"] < 2 and c["num_track_observations"] > 60 for c in cameras)
    assert cameras[0]["K_original"][0][0] == pytest.approx(float(scene.K[0, 0, 0]), rel=0.03)
    again = Reconstruction.load(tmp_path / "out").views
    assert [view.distortion for view in again] == [c["distortion_k1"] for c in cameras] and again[1].refined
