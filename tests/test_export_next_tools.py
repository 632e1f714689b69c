"""What nerfstudio, RealityScan and readers of depth and points find in our exports is what the result says."""

from __future__ import annotations

import csv
import dataclasses
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pycolmap
import pytest
from photo_scene import POINTS, SIZE, camera_view, picture_of_dots, project, scene_of
from PIL import Image

from mast3r_sfm.errors import InputError
from mast3r_sfm.export.depth_steps import DepthSteps, depth_steps
from mast3r_sfm.export.optics import PictureCamera, map_pixels
from mast3r_sfm.export.result import write_exports
from mast3r_sfm.options import ExportFormat, PhotoOptions, SceneOptions
from mast3r_sfm.reconstruction import Reconstruction
from mast3r_sfm.types import ImageTransform, ReconstructedView

OPTIONS = SceneOptions(min_conf_thr=1)
ALL_PHOTOS = [PhotoOptions(), PhotoOptions(max_image_size=160), PhotoOptions(True), PhotoOptions(True, 100)]
UPRIGHT = (240, 320)


def mixed_scene(folder: Path, distortion: float = -0.1) -> Reconstruction:
    """Photos of a scene: two landscape ones, one that EXIF turns upright, one with transparency, one not registered."""
    scene = scene_of(folder, distortion, count=4)
    views = list(scene.views)
    # portrait: the file is landscape and EXIF says to turn it
    transform = ImageTransform(UPRIGHT, (120, 160), (4, 0), (112, 160))
    K = np.array([[260.0, 0, 121.5], [0, 260, 158.25], [0, 0, 1]])
    upright = dataclasses.replace(
        views[1],
        file=str(folder / "upright.jpg"),
        transform=transform,
        K=transform.K_to_network(K),
        distortion=0.05,
        depth=np.full((160, 112), 4, np.float32),
        conf=np.full((160, 112), 10, np.float32),
        conf_clean=np.full((160, 112), 10, np.float32),
        rgb=np.zeros((160, 112, 3), np.uint8),
    )
    picture = picture_of_dots(project(PictureCamera.of_photo(upright), upright.world_from_cam, POINTS[:6]), UPRIGHT)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(picture).transpose(Image.Transpose.ROTATE_90).save(upright.file, exif=exif, quality=97)
    views[1] = upright
    clear = np.full((*SIZE[::-1], 4), 200, np.uint8)
    clear[:, :, 3] = np.where(np.arange(SIZE[0]) < 100, 0, 255)
    Image.fromarray(clear).save(folder / "clear.png")
    mask = np.ones((104, 160), bool)
    mask[:, :50] = False
    views[2] = dataclasses.replace(views[2], file=str(folder / "clear.png"), mask=mask)
    views.append(camera_view(4, folder / "lost.png", registered=False))
    Image.new("RGB", SIZE).save(folder / "lost.png")
    return Reconstruction(tuple(views), (), scene.tracks)


def expected(view: ReconstructedView, camera: PictureCamera) -> np.ndarray:
    """Pixels (N, 2) of the points in the exported picture by the result: into the photo, then into the picture."""
    seen = project(PictureCamera.of_photo(view), view.world_from_cam, POINTS)
    return map_pixels(seen, PictureCamera.of_photo(view), camera)


def size_and_centre(frame: dict[str, Any]) -> PictureCamera:
    """The camera of a frame of transforms.json in our pixels."""
    K = np.array([[frame["fl_x"], 0, frame["cx"] - 0.5], [0, frame["fl_y"], frame["cy"] - 0.5], [0, 0, 1]])
    return PictureCamera((frame["w"], frame["h"]), K, frame["k1"])


def by_opengl(frame: dict[str, Any], points: np.ndarray) -> np.ndarray:
    """Pixels (N, 2), corner of the image at 0, as nerfstudio documents them: OPENCV distortion, OpenGL axes."""
    inside = np.linalg.inv(np.array(frame["transform_matrix"]))
    local = points @ inside[:3, :3].T + inside[:3, 3]
    x = np.stack([local[:, 0] / -local[:, 2], -local[:, 1] / -local[:, 2]], axis=1)
    x = x * (1 + frame["k1"] * (x**2).sum(1, keepdims=True))
    return x * [frame["fl_x"], frame["fl_y"]] + [frame["cx"], frame["cy"]]


def saved_points(document: dict[str, Any]) -> np.ndarray:
    applied = np.array(document["applied_transform"])
    return POINTS @ applied[:, :3].T + applied[:, 3]


def nerfstudio(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "transforms.json").read_text())


class TestNerfstudio:
    @pytest.mark.parametrize("photos", ALL_PHOTOS)
    def test_points_are_where_the_result_has_them(self, tmp_path: Path, photos: PhotoOptions) -> None:
        scene = mixed_scene(tmp_path / "photos")
        scene.export("nerfstudio", tmp_path / "out", OPTIONS, photos)
        document = nerfstudio(tmp_path / "out")
        assert len(document["frames"]) == 4 and document["camera_model"] == "OPENCV"
        for one, frame in zip(scene.registered, document["frames"], strict=True):
            camera = size_and_centre(frame)
            with Image.open(tmp_path / "out" / frame["file_path"]) as picture:
                assert picture.size == camera.size and picture.getexif().get(0x0112, 1) == 1
            np.testing.assert_allclose(by_opengl(frame, saved_points(document)) - 0.5, expected(one, camera), atol=0.01)
            assert bool(camera.distortion) != photos.undistort

    def test_the_picture_shows_the_points_there(self, tmp_path: Path) -> None:
        # the photo that EXIF turns: its dots lie where the exported camera projects the points
        scene = mixed_scene(tmp_path / "photos")
        scene.export("nerfstudio", tmp_path / "out", OPTIONS)
        document = nerfstudio(tmp_path / "out")
        frame = next(one for one in document["frames"] if "upright" in one["file_path"])
        assert (frame["w"], frame["h"]) == UPRIGHT
        picture = cv2.imread(str(tmp_path / "out" / frame["file_path"]), cv2.IMREAD_GRAYSCALE)
        assert picture is not None
        found = 0
        for x, y in by_opengl(frame, saved_points(document))[:6]:
            if 8 < x < frame["w"] - 8 and 8 < y < frame["h"] - 8:
                # the middle of the dot, by its light
                left, top = round(x - 0.5) - 6, round(y - 0.5) - 6
                patch = picture[max(top, 0) : top + 13, max(left, 0) : left + 13].astype(float)
                patch[patch < 60] = 0
                weights = patch / patch.sum()
                middle = [
                    float(weights.sum(1 - axis) @ np.arange(weights.shape[axis])) + max(corner, 0) + 0.5
                    for axis, corner in ((1, left), (0, top))
                ]
                np.testing.assert_allclose(middle, [x, y], atol=0.3)
                found += 1
        assert found >= 3

    def test_the_world_has_z_up(self, tmp_path: Path) -> None:
        scene = mixed_scene(tmp_path / "photos")
        scene.export("nerfstudio", tmp_path / "out", OPTIONS)
        for frame in nerfstudio(tmp_path / "out")["frames"]:
            up = np.array(frame["transform_matrix"])[:3, 1]
            assert up[2] > 0.9

    @pytest.mark.parametrize("photos", ALL_PHOTOS)
    def test_depth_in_millimetres_at_the_size_of_the_picture(self, tmp_path: Path, photos: PhotoOptions) -> None:
        scene = mixed_scene(tmp_path / "photos")
        sloped = np.linspace(2, 6, 160, dtype=np.float32) * np.ones((104, 1), np.float32)
        views = (dataclasses.replace(scene.views[0], depth=sloped), *scene.views[1:])
        scene = dataclasses.replace(scene, views=views)
        scene.export("nerfstudio", tmp_path / "out", OPTIONS, photos)
        document = nerfstudio(tmp_path / "out")
        assert document["depth_unit_scale_factor"] == 0.001
        for one, frame in zip(scene.registered, document["frames"], strict=True):
            depth = cv2.imread(str(tmp_path / "out" / frame["depth_file_path"]), cv2.IMREAD_ANYDEPTH)
            assert depth is not None and depth.dtype == np.uint16 and depth.shape == (frame["h"], frame["w"])
            # for points anywhere in the network's image: the depth of their pixel is in the picture where they are
            H, W = one.depth.shape
            rng = np.random.default_rng(0)
            network = np.stack([rng.integers(0, W, 300), rng.integers(0, H, 300)], axis=1)
            place = map_pixels(one.transform.to_original(network), PictureCamera.of_photo(one), size_and_centre(frame))
            x, y = np.rint(place).astype(int).T
            inside = (x >= 0) & (x < frame["w"]) & (y >= 0) & (y < frame["h"])
            shown = depth[y[inside], x[inside]] / 1000
            true = one.depth[network[:, 1], network[:, 0]][inside]
            if one.mask is not None:
                true = np.where(one.mask[network[:, 1], network[:, 0]][inside], true, 0)
            # rounding of places: a pixel of the network aside at most, where the mask ends it may be another
            assert np.median(np.abs(shown - true)) < 0.02 and (np.abs(shown - true) < 0.06).mean() > 0.97

    def test_all_photos_have_masks_or_none(self, tmp_path: Path) -> None:
        scene = mixed_scene(tmp_path / "photos")
        scene.export("nerfstudio", tmp_path / "out", OPTIONS)
        frames = nerfstudio(tmp_path / "out")["frames"]
        for frame in frames:
            mask = np.asarray(Image.open(tmp_path / "out" / frame["mask_path"]))
            assert mask.ndim == 2 and mask.shape == (frame["h"], frame["w"])
            clear = "clear" in frame["file_path"]
            assert (mask[:, :100] == (0 if clear else 255)).all() and (mask[:, 100:] == 255).all()
        scene_of(tmp_path / "opaque").export("nerfstudio", tmp_path / "plain", OPTIONS)
        assert all("mask_path" not in frame for frame in nerfstudio(tmp_path / "plain")["frames"])
        assert not (tmp_path / "plain" / "masks").exists()

    def test_points_lie_where_the_cameras_see_them(self, tmp_path: Path) -> None:
        trimesh = pytest.importorskip("trimesh")
        scene = scene_of(tmp_path / "photos")
        scene.export("nerfstudio", tmp_path / "out", OPTIONS)
        document = nerfstudio(tmp_path / "out")
        assert document["ply_file_path"] == "pointcloud.ply"
        data = (tmp_path / "out" / "pointcloud.ply").read_bytes()
        header, _, body = data.partition(b"end_header\n")
        count = int(header.split(b"element vertex ")[1].split()[0])
        assert len(body) == count * 15  # nothing behind the points: LichtFeld rejects it
        cloud = trimesh.load(tmp_path / "out" / "pointcloud.ply")
        assert len(cloud.vertices) == count == 5 * 104 * 160
        frame = document["frames"][0]
        # those of the first view come first, row by row
        seen = by_opengl(frame, np.asarray(cloud.vertices, float)[:160])
        place = scene.views[0].transform.to_original(np.stack([np.arange(160), np.zeros(160)], axis=1))
        np.testing.assert_allclose(seen - 0.5, place, atol=0.01)

    def test_photos_that_are_not_registered_do_not_appear(self, tmp_path: Path) -> None:
        scene = mixed_scene(tmp_path / "photos")
        scene.export("nerfstudio", tmp_path / "out", OPTIONS)
        assert not list((tmp_path / "out").rglob("lost*"))
        lost = Reconstruction(tuple(dataclasses.replace(one, registered=False) for one in scene.views), ())
        with pytest.raises(InputError, match="No image is registered"):
            lost.export("nerfstudio", tmp_path / "out", OPTIONS)
        assert len(nerfstudio(tmp_path / "out")["frames"]) == 4

    def test_intrinsics_that_all_photos_share_stand_beside_the_frames(self, tmp_path: Path) -> None:
        names = {"w", "h", "fl_x", "fl_y", "cx", "cy", "k1", "k2", "p1", "p2"}
        scene_of(tmp_path / "one", -0.1).export("nerfstudio", tmp_path / "shared", OPTIONS)
        document = nerfstudio(tmp_path / "shared")
        assert names <= set(document) and (document["w"], document["k1"]) == (320, -0.1)
        for frame in document["frames"]:
            for name in names:
                assert frame[name] == pytest.approx(document[name], abs=1e-9)
        # of several cameras none may stand there: readers would take it for all
        mixed_scene(tmp_path / "mixed").export("nerfstudio", tmp_path / "several", OPTIONS)
        document = nerfstudio(tmp_path / "several")
        assert not names & set(document) and all(names <= set(frame) for frame in document["frames"])

    def test_it_replaces_itself_and_nothing_else(self, tmp_path: Path) -> None:
        scene = scene_of(tmp_path / "photos")
        scene.save(tmp_path / "out", OPTIONS, exports=["nerfstudio"])
        write_exports(tmp_path / "out", [ExportFormat.NERFSTUDIO], PhotoOptions())
        (tmp_path / "out" / "nerfstudio" / "mine.txt").touch()
        with pytest.raises(InputError, match=r"holds mine\.txt"):
            write_exports(tmp_path / "out", [ExportFormat.NERFSTUDIO], PhotoOptions())
        with pytest.raises(InputError, match=r"also nerfstudio/mine\.txt"):
            scene.save(tmp_path / "out", OPTIONS, overwrite=True)


class TestRealityScan:
    @pytest.mark.parametrize("photos", ALL_PHOTOS)
    def test_points_are_where_the_result_has_them(self, tmp_path: Path, photos: PhotoOptions) -> None:
        scene = mixed_scene(tmp_path / "photos")
        scene.export("realityscan", tmp_path / "out", OPTIONS, photos)
        scene.export("nerfstudio", tmp_path / "other", OPTIONS, photos)
        points = saved_points(nerfstudio(tmp_path / "other"))  # both have the same world
        with (tmp_path / "out" / "cameras.csv").open(encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        assert len(rows) == 4
        for one, row in zip(scene.registered, rows, strict=True):
            with Image.open(tmp_path / "out" / "images" / row["#name"]) as picture:
                width, height = picture.size
            long_edge = max(width, height)
            h, p, r = np.radians([-float(row["heading"]), float(row["pitch"]), float(row["roll"])])
            about_z = np.array([[np.cos(h), -np.sin(h), 0], [np.sin(h), np.cos(h), 0], [0, 0, 1]])
            about_x = np.array([[1, 0, 0], [0, np.cos(p), -np.sin(p)], [0, np.sin(p), np.cos(p)]])
            about_y = np.array([[np.cos(r), 0, np.sin(r)], [0, 1, 0], [-np.sin(r), 0, np.cos(r)]])
            pose = np.eye(4)
            pose[:3, :3] = about_z @ about_x @ about_y
            pose[:3, 3] = [float(row[name]) for name in ("x", "y", "alt")]
            focal = float(row["f"]) * long_edge / 36
            frame = {
                "transform_matrix": pose,
                "fl_x": focal,
                "fl_y": focal,
                "cx": float(row["px"]) * long_edge + width / 2,
                "cy": float(row["py"]) * long_edge + height / 2,
                "k1": float(row["k1"]),
                "w": width,
                "h": height,
            }
            np.testing.assert_allclose(by_opengl(frame, points) - 0.5, expected(one, size_and_centre(frame)), atol=0.01)


class TestColmap:
    @pytest.mark.parametrize("photos", ALL_PHOTOS)
    def test_mixed_photos(self, tmp_path: Path, photos: PhotoOptions) -> None:
        scene = mixed_scene(tmp_path / "photos")
        scene.export("colmap", tmp_path / "out", OPTIONS, photos)
        model = pycolmap.Reconstruction(tmp_path / "out" / "sparse" / "0")
        assert model.num_reg_images() == 4
        for number, one in enumerate(scene.registered, 1):
            image, camera = model.images[number], model.cameras[model.images[number].camera_id]
            with Image.open(tmp_path / "out" / "images" / image.name) as picture:
                assert picture.size == (camera.width, camera.height)
            ours = PictureCamera(
                (camera.width, camera.height),
                camera.calibration_matrix() - np.array([[0, 0, 0.5], [0, 0, 0.5], [0, 0, 0]]),
                camera.params[-1] if camera.model_name == "SIMPLE_RADIAL" else 0.0,
            )
            seen = np.array([image.project_point(point) for point in POINTS])
            np.testing.assert_allclose(seen - 0.5, expected(one, ours), atol=0.01)


class TestDepth:
    def test_steps_are_millimetres_as_far_as_they_reach(self) -> None:
        assert depth_steps([np.array([[1.0, 65.0]])]).metres == 0.001
        assert depth_steps([np.array([[1.0, 66.0]])]).metres == 0.002
        assert depth_steps([np.full((10, 10), 200.0)]).metres == 0.005
        assert depth_steps([np.full((10, 10), 5000.0)]).metres == 0.1
        assert depth_steps([np.full((2, 2), np.nan)]).metres == 0.001
        wild = np.full((100, 100), 3.0)
        wild[0, 0] = 1e6
        assert depth_steps([wild]).metres == 0.001
        # 2.0004 m, unknown, too far, nearer than half a step
        encoded = DepthSteps(0.001).encoded(np.array([[2.0004, np.nan, 70.0, 0.0004]]))
        assert encoded.tolist() == [[2000, 0, 0, 0]] and encoded.dtype == np.uint16

    def test_png16(self, tmp_path: Path) -> None:
        scene = scene_of(tmp_path / "photos", count=2)
        depth = np.linspace(1, 90, 104 * 160, dtype=np.float32).reshape(104, 160)
        depth[0, 0] = np.nan
        views = (dataclasses.replace(scene.views[0], depth=depth), scene.views[1])
        dataclasses.replace(scene, views=views).export("png16", tmp_path / "out")
        document = json.loads((tmp_path / "out" / "depth.json").read_text())
        assert document["unit"] == "metres (approximate)" and document["depth_of_one_step"] == 0.002
        assert document["largest_depth"] == pytest.approx(131.07)
        assert [one["file"] for one in document["images"]] == ["depth_000.png", "depth_001.png"]
        read = cv2.imread(str(tmp_path / "out" / "depth_000.png"), cv2.IMREAD_UNCHANGED)
        assert read is not None and read.dtype == np.uint16 and read[0, 0] == 0
        np.testing.assert_allclose(read * 0.002, np.nan_to_num(depth), atol=0.00101)

    def test_exr(self, tmp_path: Path) -> None:
        OpenEXR = pytest.importorskip("OpenEXR")
        scene = scene_of(tmp_path / "photos", count=1)
        depth = np.random.default_rng(0).uniform(1, 90, (104, 160)).astype(np.float32)
        depth[0, 0] = np.nan
        views = (dataclasses.replace(scene.views[0], depth=depth),)
        dataclasses.replace(scene, views=views).export("exr", tmp_path / "out")
        with OpenEXR.File(str(tmp_path / "out" / "depth_000.exr")) as file:
            read = file.channels()["Z"].pixels
        assert read.dtype == np.float32
        np.testing.assert_array_equal(read, np.nan_to_num(depth))


class TestPoints:
    def test_ply_is_read_by_others(self, tmp_path: Path) -> None:
        trimesh, plyfile = pytest.importorskip("trimesh"), pytest.importorskip("plyfile")
        scene = scene_of(tmp_path / "photos", count=2)
        scene.export("ply", tmp_path / "scene.ply", OPTIONS)
        vertices = plyfile.PlyData.read(tmp_path / "scene.ply")["vertex"]
        xyz = np.stack([vertices[name] for name in "xyz"], axis=1)
        np.testing.assert_array_equal(xyz, np.asarray(trimesh.load(tmp_path / "scene.ply").vertices, np.float32))
        true = np.concatenate([one.points_world().reshape(-1, 3) for one in scene.views])
        np.testing.assert_allclose(xyz, true, atol=1e-5)

    def test_las(self, tmp_path: Path) -> None:
        laspy = pytest.importorskip("laspy")
        scene = scene_of(tmp_path / "photos", count=2)
        scene.export("las", tmp_path / "scene.las", OPTIONS)
        las = laspy.read(tmp_path / "scene.las")
        assert las.header.version.minor == 4 and las.header.parse_crs() is None
        true = np.concatenate([one.points_world().reshape(-1, 3) for one in scene.views])
        np.testing.assert_allclose(las.xyz, true, atol=0.00006)
        rgb = np.concatenate([one.rgb.reshape(-1, 3) for one in scene.views])
        np.testing.assert_array_equal(np.stack([las.red, las.green, las.blue], axis=1) // 257, rgb)
        np.testing.assert_array_equal(las.confidence, np.full(len(true), 10, np.float32))

    def test_e57(self, tmp_path: Path) -> None:
        pye57 = pytest.importorskip("pye57")
        scene = scene_of(tmp_path / "photos", count=2)
        for _ in range(2):  # and over an earlier one
            scene.export("e57", tmp_path / "scene.e57", OPTIONS)
        assert {path.name for path in tmp_path.iterdir()} == {"photos", "scene.e57"}
        data = pye57.E57(str(tmp_path / "scene.e57")).read_scan(0, colors=True, ignore_missing_fields=True)
        xyz = np.stack([data[f"cartesian{axis}"] for axis in "XYZ"], axis=1)
        true = np.concatenate([one.points_world().reshape(-1, 3) for one in scene.views])
        np.testing.assert_allclose(xyz, true, atol=1e-5)
        rgb = np.stack([data[f"color{name}"] for name in ("Red", "Green", "Blue")], axis=1)
        np.testing.assert_array_equal(rgb, np.concatenate([one.rgb.reshape(-1, 3) for one in scene.views]))

    @pytest.mark.parametrize(("kind", "package"), [("las", "laspy"), ("e57", "pye57"), ("exr", "OpenEXR")])
    def test_a_missing_package_is_one_line(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, package: str
    ) -> None:
        monkeypatch.setattr("mast3r_sfm.export.extras.find_spec", lambda name: None)
        with pytest.raises(InputError, match=rf"`export={kind}` needs the package {package}: pip install 'mast3r-sfm"):
            scene_of(tmp_path / "photos", count=1).export(kind, tmp_path / "out")
