"""The COLMAP model agrees with the result it was written from, as COLMAP's own library reads it."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import cv2
import numpy as np
import pillow_heif
import pycolmap
import pytest
from photo_scene import POINTS, SIZE, TRANSFORM, K, camera_view, picture_of_dots, scene_of
from PIL import Image

from mast3r_sfm.app.cli import main
from mast3r_sfm.errors import InputError
from mast3r_sfm.export.optics import PictureCamera, map_pixels, reduced, without_distortion
from mast3r_sfm.export.result import write_exports
from mast3r_sfm.geometry import distort, undistort
from mast3r_sfm.options import ExportFormat, PhotoOptions, SceneOptions
from mast3r_sfm.reconstruction import Reconstruction
from mast3r_sfm.text import unique_stems
from mast3r_sfm.types import ReconstructedView


def read(folder: Path) -> pycolmap.Reconstruction:
    return pycolmap.Reconstruction(folder / "sparse" / "0")


def image_named(model: pycolmap.Reconstruction, name: str) -> pycolmap.Image:
    return next(image for image in model.images.values() if image.name == name)


def errors_of(model: pycolmap.Reconstruction) -> dict[int, float]:
    """Mean reprojection error of every point, computed anew."""
    found = {}
    for number, point in model.points3D.items():
        errors = []
        for element in point.track.elements:
            image = model.images[element.image_id]
            seen = image.points2D[element.point2D_idx].xy
            errors.append(np.linalg.norm(image.project_point(point.xyz) - seen))
        found[number] = float(np.mean(errors))
    return found


class TestModel:
    @pytest.mark.parametrize("distortion", [0.0, -0.15, 0.08])
    def test_what_colmap_reads_agrees_with_the_result(self, tmp_path: Path, distortion: float) -> None:
        scene = scene_of(tmp_path / "photos", distortion)
        scene.export("colmap", tmp_path / "out")
        names = {path.name for path in (tmp_path / "out" / "sparse" / "0").iterdir()}
        assert names == {"cameras.bin", "images.bin", "points3D.bin", "rigs.bin", "frames.bin"}
        model = read(tmp_path / "out")
        [camera] = model.cameras.values()
        assert (camera.width, camera.height) == SIZE
        # pixels have their origin at the corner there
        kind, extra = ("SIMPLE_RADIAL", [distortion]) if distortion else ("SIMPLE_PINHOLE", [])
        assert camera.model_name == kind
        np.testing.assert_allclose(camera.params, [250, 163.75, 117, *extra], atol=1e-9)
        assert model.num_reg_images() == 5
        for one in scene.views:
            image = image_named(model, Path(one.file).name)
            np.testing.assert_allclose(
                image.cam_from_world().matrix(), np.linalg.inv(one.world_from_cam)[:3], atol=1e-9
            )
        tracks = scene.tracks
        assert tracks is not None
        count = np.bincount(tracks.point_of, minlength=len(POINTS))
        written = np.flatnonzero(count >= 2)
        assert model.num_points3D() == len(written) > 150
        assert model.compute_num_observations() == count[written].sum()
        assert model.compute_mean_track_length() >= 3
        again = errors_of(model)
        for number, point in zip(written, (model.points3D[k] for k in sorted(model.points3D)), strict=True):
            np.testing.assert_array_equal(point.xyz, POINTS[number])
            np.testing.assert_array_equal(point.color, tracks.colours[number])
            assert point.error == pytest.approx(tracks.errors_px[number], abs=0.01)
        for number, point in model.points3D.items():
            assert point.error == pytest.approx(again[number], abs=1e-6)

    def test_only_registered_views_with_their_own_observations(self, tmp_path: Path) -> None:
        scene = scene_of(tmp_path / "photos")
        lost = dataclasses.replace(scene.views[1], registered=False)
        views = (scene.views[0], lost, *scene.views[2:])
        Reconstruction(views, (), scene.tracks).export("colmap", tmp_path / "out")
        model = read(tmp_path / "out")
        assert sorted(image.name for image in model.images.values()) == [f"photo {k}.png" for k in (0, 2, 3, 4)]
        assert {path.name for path in (tmp_path / "out" / "images").iterdir()} == {
            image.name for image in model.images.values()
        }
        assert all(point.track.length() >= 2 for point in model.points3D.values())
        assert max(errors_of(model).values()) < 2

    def test_a_camera_for_each_set_of_intrinsics(self, tmp_path: Path) -> None:
        scene = scene_of(tmp_path / "photos")
        other = K.copy()
        other[0, 0] = other[1, 1] = 251
        oblong = K.copy()
        oblong[1, 1] = 249
        views = list(scene.views)
        for k, own in ((1, other), (3, other), (4, oblong)):
            views[k] = dataclasses.replace(views[k], K=TRANSFORM.K_to_network(own))
        Reconstruction(tuple(views), (), scene.tracks).export("colmap", tmp_path / "out")
        model = read(tmp_path / "out")
        own_camera = [image_named(model, f"photo {k}.png").camera_id for k in range(5)]
        assert own_camera == [1, 2, 1, 2, 3]
        assert [model.cameras[k].model_name for k in (1, 2, 3)] == ["SIMPLE_PINHOLE", "SIMPLE_PINHOLE", "PINHOLE"]
        np.testing.assert_allclose(model.cameras[3].params, [250, 249, 163.75, 117])

    def test_without_tracks_there_are_no_points_and_a_warning(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        scene = dataclasses.replace(scene_of(tmp_path / "photos"), tracks=None)
        scene.export("colmap", tmp_path / "out")
        model = read(tmp_path / "out")
        assert model.num_points3D() == 0 and model.num_reg_images() == 5
        assert "no points" in caplog.text and "refinement=RefinementOptions()" in caplog.text

    def test_the_same_scene_gives_the_same_files(self, tmp_path: Path) -> None:
        scene = scene_of(tmp_path / "photos", -0.1)
        for name in ("a", "b"):
            scene.export("colmap", tmp_path / name, photos=PhotoOptions(undistort=True))
        files = [path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*") if path.is_file()]
        assert len(files) == 10
        for path in files:
            assert (tmp_path / "a" / path).read_bytes() == (tmp_path / "b" / path).read_bytes(), path

    def test_without_a_registered_view(self, tmp_path: Path) -> None:
        lost = camera_view(0, "a.png", registered=False)
        with pytest.raises(InputError, match="No image is registered"):
            Reconstruction((lost,), ()).export("colmap", tmp_path / "out")
        assert not list(tmp_path.iterdir())


class TestPhotos:
    @staticmethod
    def exported(tmp_path: Path, *views: ReconstructedView, options: PhotoOptions | None = None) -> dict[str, Path]:
        Reconstruction(views, ()).export("colmap", tmp_path / "out", photos=options)
        found = {
            image.name: tmp_path / "out" / "images" / image.name for image in read(tmp_path / "out").images.values()
        }
        assert {path.name for path in (tmp_path / "out" / "images").iterdir()} == set(found)
        return found

    @pytest.mark.parametrize("suffix", [".jpg", ".JPEG", ".png", ".tif", ".bmp"])
    def test_upright_files_are_copied(self, tmp_path: Path, suffix: str) -> None:
        path = tmp_path / f"über 1{suffix}"
        Image.fromarray(picture_of_dots(np.array([[30, 40]]))).save(path)
        found = self.exported(tmp_path, camera_view(0, path))
        assert found[path.name].read_bytes() == path.read_bytes()

    def test_a_turned_jpeg_becomes_an_upright_one(self, tmp_path: Path) -> None:
        upright = picture_of_dots(np.array([[250, 40.0]]))
        exif = Image.Exif()
        exif[0x0112] = 6  # to be turned by 90 degrees clockwise
        Image.fromarray(np.rot90(upright).copy()).save(tmp_path / "a.jpg", exif=exif, quality=98)
        found = self.exported(tmp_path, camera_view(0, tmp_path / "a.jpg"))
        with Image.open(found["a.jpg"]) as image:
            assert image.size == SIZE and image.getexif().get(0x0112, 1) == 1
            assert np.abs(np.asarray(image).astype(int) - upright).max() < 12

    @pytest.mark.parametrize(
        ("suffix", "expected"), [(".webp", "a.jpg"), (".heic", "a.jpg"), (".png", "a.png"), (".tif", "a.tif")]
    )
    def test_what_other_programs_may_not_read_is_written_anew(self, tmp_path: Path, suffix: str, expected: str) -> None:
        picture = Image.fromarray(picture_of_dots(np.array([[30, 40]])))
        if suffix == ".heic":
            pillow_heif.from_pillow(picture).save(tmp_path / "a.heic", quality=95)
        elif suffix == ".webp":
            picture.save(tmp_path / "a.webp")
        else:
            Image.fromarray(np.asarray(picture)[..., 0].astype(np.uint16) * 256).save(
                tmp_path / f"a{suffix}"
            )  # 16 bits
        found = self.exported(tmp_path, camera_view(0, tmp_path / f"a{suffix}"))
        with Image.open(found[expected]) as image:
            assert image.mode == "RGB" and image.size == SIZE and image.getpixel((30, 40))[0] > 240  # type: ignore[index]

    @pytest.mark.parametrize("options", [PhotoOptions(undistort=True), PhotoOptions(max_image_size=200)])
    @pytest.mark.parametrize(
        ("name", "kind"),
        [
            ("A.JPG", "JPEG"),
            ("a.jpeg", "JPEG"),
            ("a.PNG", "PNG"),
            ("a.tif", "TIFF"),
            ("a.TIFF", "TIFF"),
            ("a.bmp", "BMP"),
        ],
    )
    def test_photos_written_anew_keep_their_names(
        self, tmp_path: Path, name: str, kind: str, options: PhotoOptions
    ) -> None:
        halves = np.zeros((*SIZE[::-1], 3), np.uint8)
        halves[:, :160], halves[:, 160:] = (220, 30, 10), (10, 60, 200)
        Image.fromarray(halves).save(tmp_path / name, quality=98)  # which JPEG alone minds
        found = self.exported(tmp_path, camera_view(0, tmp_path / name, -0.1), options=options)
        [camera] = read(tmp_path / "out").cameras.values()
        with Image.open(found[name]) as image:
            assert image.format == kind and image.mode == "RGB" and image.size == (camera.width, camera.height)
            corners = np.asarray(image)[[10, -10], [10, -10]]
        np.testing.assert_allclose(corners, [(220, 30, 10), (10, 60, 200)], atol=12)

    def test_a_file_with_another_formats_name(self, tmp_path: Path) -> None:
        Image.new("RGB", SIZE).save(tmp_path / "a.png", format="JPEG")
        found = self.exported(tmp_path, camera_view(0, tmp_path / "a.png"))
        assert found["a.jpg"].read_bytes() == (tmp_path / "a.png").read_bytes()

    @pytest.mark.parametrize("suffix", [".png", ".webp"])
    def test_transparency_becomes_a_mask_of_the_same_name(self, tmp_path: Path, suffix: str) -> None:
        rgba = np.full((*SIZE[::-1], 4), 255, np.uint8)
        rgba[:, :100, 3] = 0
        Image.fromarray(rgba).save(tmp_path / f"a{suffix}", lossless=True)
        Image.new("RGB", SIZE).save(tmp_path / "b.jpg")
        transparent = camera_view(0, tmp_path / f"a{suffix}", mask=np.ones((104, 160), bool))
        found = self.exported(tmp_path, transparent, camera_view(1, tmp_path / "b.jpg"))
        assert set(found) == {"a.png", "b.jpg"}
        assert {path.name for path in (tmp_path / "out" / "masks").iterdir()} == {"a.png"}
        mask = np.asarray(Image.open(tmp_path / "out" / "masks" / "a.png"))
        assert mask.shape == SIZE[::-1] and (mask[:, :100] == 0).all() and (mask[:, 100:] == 255).all()

    def test_one_name_from_two_folders(self, tmp_path: Path) -> None:
        views = []
        for k, folder in enumerate(("left", "right")):
            (tmp_path / folder).mkdir()
            Image.new("RGB", SIZE, (100 * k, 0, 0)).save(tmp_path / folder / "a.png")
            views.append(camera_view(k, tmp_path / folder / "a.png"))
        found = self.exported(tmp_path, *views)
        assert found["a.png"].read_bytes() == Path(views[0].file).read_bytes()
        assert found["a-2.png"].read_bytes() == Path(views[1].file).read_bytes()

    def test_names_are_unique_whatever_the_suffix_and_the_case(self) -> None:
        assert unique_stems(["x/a.jpg", "y/A.heic", "a-2.jpg", "z/a.png", "b.jpg"]) == ["a", "A-3", "a-2", "a-4", "b"]
        assert unique_stems(["caf\udce9.jpg", "a b.jpg"]) == ["caf_", "a b"]

    def test_a_photo_that_is_gone(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        scene = scene_of(tmp_path / "photos")
        os.unlink(scene.views[3].file)  # noqa: PTH108
        with pytest.raises(InputError, match=r"photo 3\.png: cannot be read .*the export needs the photos"):
            scene.export("colmap", tmp_path / "out")
        assert {path.name for path in tmp_path.iterdir()} == {"photos"}
        monkeypatch.chdir(tmp_path)
        relative = camera_view(0, "elsewhere/a.png")
        with pytest.raises(InputError, match="start from the folder that this path is relative to"):
            Reconstruction((relative,), ()).export("colmap", tmp_path / "out")

    @pytest.mark.parametrize("options", [PhotoOptions(), PhotoOptions(max_image_size=100)])
    def test_a_photo_that_is_another_one_now(self, tmp_path: Path, options: PhotoOptions) -> None:
        Image.new("RGB", (240, 320)).save(tmp_path / "a.png")
        with pytest.raises(InputError, match="is 240x320 pixels now and was 320x240"):
            Reconstruction((camera_view(0, tmp_path / "a.png"),), ()).export("colmap", tmp_path / "out", photos=options)


class TestStraightening:
    @pytest.mark.parametrize("distortion", [-0.2, 0.15])
    @pytest.mark.parametrize("max_size", [None, 200])
    def test_points_land_where_the_pinhole_projects_them(
        self, tmp_path: Path, distortion: float, max_size: int | None
    ) -> None:
        scene = scene_of(tmp_path / "photos", distortion)
        scene.export("colmap", tmp_path / "out", photos=PhotoOptions(True, max_size))
        model = read(tmp_path / "out")
        [camera] = model.cameras.values()
        assert camera.model_name == "PINHOLE"
        if max_size:
            assert max(camera.width, camera.height) == max_size
        found = 0
        for one in scene.views:
            image = image_named(model, Path(one.file).name)
            picture = cv2.imread(str(tmp_path / "out" / "images" / image.name), cv2.IMREAD_GRAYSCALE)
            assert picture is not None and picture.shape == (camera.height, camera.width)
            landed = [np.asarray(image.project_point(point)) - 0.5 for point in POINTS[:6]]
            for k, (x, y) in enumerate(landed):
                others = [np.linalg.norm(landed[k] - other) for other in (*landed[:k], *landed[k + 1 :])]
                if not (8 < x < camera.width - 8 and 8 < y < camera.height - 8) or min(others) < 16:
                    continue
                left, top = round(x) - 6, round(y) - 6
                patch = picture[top : top + 13, left : left + 13].astype(float)
                weights = patch / patch.sum()
                centroid = [
                    float(weights.sum(1 - axis) @ np.arange(13)) + corner for axis, corner in ((1, left), (0, top))
                ]
                np.testing.assert_allclose(centroid, landed[k], atol=0.15)
                found += 1
        assert found > 10
        # the tracks went along: what was noise of 0.3 pixels still is
        assert model.num_points3D() > 100 and max(errors_of(model).values()) < 1.5
        assert all(point.track.length() >= 2 for point in model.points3D.values())

    @pytest.mark.parametrize("distortion", [-0.2, 0.15])
    def test_the_straight_picture_is_full(self, distortion: float) -> None:
        camera = PictureCamera(SIZE, K, distortion)
        straight = without_distortion(camera)
        corners = np.array([[x, y] for x in (0, straight.size[0] - 1) for y in (0, straight.size[1] - 1)])
        edge = np.array([[x, straight.centre[1]] for x in (0, straight.size[0] - 1)])
        rays = (np.concatenate([corners, edge]) - straight.centre) / straight.focal_xy
        seen = distort(rays, distortion) * camera.focal_xy + camera.centre
        assert (seen > -0.01).all() and (seen < np.array(SIZE) - 0.99).all()
        # and not smaller than it has to be: it touches an edge of the photo, but for the rounding to whole pixels
        assert min(seen.min(), (np.array(SIZE) - 1 - seen).min()) < 1.5

    def test_nothing_is_straightened_that_is_straight(self, tmp_path: Path) -> None:
        camera = PictureCamera(SIZE, K)
        assert without_distortion(camera) is camera and reduced(camera, 320) is camera
        scene = scene_of(tmp_path / "photos")
        scene.export("colmap", tmp_path / "out", photos=PhotoOptions(undistort=True))
        [colmap_camera] = read(tmp_path / "out").cameras.values()
        assert colmap_camera.model_name == "PINHOLE"
        for one in scene.views:
            assert (tmp_path / "out" / "images" / Path(one.file).name).read_bytes() == Path(one.file).read_bytes()

    def test_a_reduced_picture_has_one_scale(self) -> None:
        # half the size: x_small = (x + 0.5) / 2 - 0.5; the odd row is cut off
        small = reduced(PictureCamera((320, 241), K, -0.1), 160)
        assert small.size == (160, 120) and small.distortion == -0.1
        np.testing.assert_allclose(small.K, np.array([[125, 0, 81.375], [0, 125, 58], [0, 0, 1]]))
        np.testing.assert_allclose(
            map_pixels(np.array([[0.5, 0.5]]), PictureCamera((320, 241), K, -0.1), small), [[0, 0]]
        )

    def test_distortion_is_undone(self) -> None:
        rays = np.random.default_rng(0).uniform(-0.7, 0.7, (50, 2))
        np.testing.assert_allclose(undistort(distort(rays, -0.2), -0.2), rays, atol=1e-9)
        # x (1 - x^2 / 3) is never above 2 / 3, which it is at x = 1
        np.testing.assert_allclose(undistort(np.array([[0, 0.7], [-50, 0]]), -1 / 3), [[0, 1], [-1, 0]])

    def test_a_distortion_that_no_lens_has_gives_a_picture_of_bounded_size(self) -> None:
        straight = without_distortion(PictureCamera(SIZE, K, -2.0))
        assert 1 <= straight.size[0] <= 2 * SIZE[0] + 1 and 1 <= straight.size[1] <= 2 * SIZE[1] + 1


class TestReplacing:
    def test_an_earlier_export_is_replaced_as_a_whole(self, tmp_path: Path) -> None:
        scene_of(tmp_path / "photos").export("colmap", tmp_path / "out")
        (tmp_path / "out" / ".DS_Store").touch()
        scene_of(tmp_path / "photos", count=3).export("colmap", tmp_path / "out")
        assert len(list((tmp_path / "out" / "images").iterdir())) == 3
        assert {path.name for path in tmp_path.iterdir()} == {"photos", "out"}

    @pytest.mark.parametrize("entry", ["database.db", "sparse/1/cameras.bin", "images_2/a.png"])
    def test_what_other_programs_added_is_kept(self, tmp_path: Path, entry: str) -> None:
        scene = scene_of(tmp_path / "photos")
        scene.export("colmap", tmp_path / "out")
        path = tmp_path / "out" / entry
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("mine")
        with pytest.raises(InputError, match=f"holds {Path(entry).parts[0]}.*move it elsewhere"):
            scene.export("colmap", tmp_path / "out")
        assert path.read_text() == "mine"

    def test_a_failure_leaves_the_earlier_export(self, tmp_path: Path) -> None:
        scene = scene_of(tmp_path / "photos")
        scene.export("colmap", tmp_path / "out")
        before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
        os.unlink(scene.views[0].file)  # noqa: PTH108
        with pytest.raises(InputError):
            scene.export("colmap", tmp_path / "out")
        assert before == {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}

    def test_a_file_is_not_replaced(self, tmp_path: Path) -> None:
        (tmp_path / "out").write_text("mine")
        with pytest.raises(InputError, match="is a file"):
            scene_of(tmp_path / "photos").export("colmap", tmp_path / "out")


class TestInAResult:
    def test_it_is_part_of_the_folder_and_replaced_with_it(self, tmp_path: Path) -> None:
        scene = scene_of(tmp_path / "photos")
        output = tmp_path / "out"
        scene.save(output, SceneOptions(min_conf_thr=1), exports=["colmap"])
        assert read(output / "colmap").num_reg_images() == 5
        scene.save(output, SceneOptions(min_conf_thr=1), overwrite=True)
        assert not (output / "colmap").exists()
        scene.save(output, SceneOptions(min_conf_thr=1), overwrite=True, exports=[ExportFormat.COLMAP])
        (output / "colmap" / "mine.txt").touch()
        with pytest.raises(InputError, match=r"also colmap/mine\.txt"):
            scene.save(output, SceneOptions(min_conf_thr=1), overwrite=True)

    def test_it_is_written_later_from_what_is_stored(self, tmp_path: Path) -> None:
        scene = scene_of(tmp_path / "photos", -0.1)
        scene.save(tmp_path / "out", SceneOptions(min_conf_thr=1), exports=["colmap"])
        scene.export("colmap", tmp_path / "direct")
        for _ in range(2):
            write_exports(tmp_path / "out", [ExportFormat.COLMAP], PhotoOptions())
            for name in ("cameras", "images", "points3D"):
                path = Path("sparse", "0", f"{name}.bin")
                assert (tmp_path / "out" / "colmap" / path).read_bytes() == (tmp_path / "direct" / path).read_bytes()
        with pytest.raises(InputError, match="is not a result"):
            write_exports(tmp_path / "photos", [ExportFormat.COLMAP], PhotoOptions())

    def test_photos_that_are_gone_do_not_cost_the_rest(self, tmp_path: Path) -> None:
        scene = scene_of(tmp_path / "photos")
        os.unlink(scene.views[0].file)  # noqa: PTH108
        with pytest.raises(InputError) as caught:
            scene.save(tmp_path / "out", SceneOptions(min_conf_thr=1), exports=["colmap"])
        assert str(caught.value).endswith(f"run: mast3r-sfm export {tmp_path / 'out'} --export colmap")
        assert (tmp_path / "out" / "scene.glb").exists() and not (tmp_path / "out" / "colmap").exists()

    def test_it_finds_photos_from_any_folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        project = tmp_path / "project"
        scene_of(project / "photos")
        monkeypatch.chdir(project)  # named as on a command line
        views = [
            dataclasses.replace(one, file=f"photos/photo {k}.png")
            for k, one in enumerate(scene_of(Path("photos")).views)
        ]
        Image.fromarray(np.full((240, 320), 255, np.uint8)).save("mask.png")
        views[0] = dataclasses.replace(views[0], mask=np.ones((104, 160), bool), mask_file="mask.png")
        Reconstruction(tuple(views), ()).save("results/out", SceneOptions(min_conf_thr=1))
        (tmp_path / "elsewhere").mkdir()
        monkeypatch.chdir(tmp_path / "elsewhere")

        def check(folder: Path, place: Path) -> None:
            write_exports(folder, [ExportFormat.COLMAP], PhotoOptions())
            assert len(list((folder / "colmap" / "images").iterdir())) == 5
            assert (folder / "colmap" / "masks" / "photo 0.png").exists()
            loaded = Reconstruction.load(folder)
            assert [one.path for one in loaded.views] == [place / "photos" / f"photo {k}.png" for k in range(5)]
            assert [one.file for one in loaded.views] == [one.file for one in views]

        check(project / "results" / "out", project)
        # the result is written anew, as by a change of what it holds, and stays with its photos
        Reconstruction.load(project / "results" / "out").save(
            project / "results" / "again", SceneOptions(min_conf_thr=1)
        )
        check(project / "results" / "again", project)
        # photos and results move together
        moved = tmp_path / "moved"
        project.rename(moved)
        check(moved / "results" / "out", moved)
        # the photos are gone: the error names where they were
        (moved / "photos").rename(tmp_path / "away")
        with pytest.raises(InputError, match=r"project/photos/photo 0\.png: cannot be read"):
            write_exports(moved / "results" / "out", [ExportFormat.COLMAP], PhotoOptions())
        # they are where the export is started, as the command named them
        (tmp_path / "away").rename(tmp_path / "elsewhere" / "photos")
        (moved / "mask.png").rename(tmp_path / "elsewhere" / "mask.png")
        write_exports(moved / "results" / "out", [ExportFormat.COLMAP], PhotoOptions())

    def test_formats_that_are_not_known(self, tmp_path: Path) -> None:
        scene = scene_of(tmp_path / "photos")
        with pytest.raises(
            InputError,
            match="`export` obj: unknown; allowed: colmap, nerfstudio, realityscan, ply",
        ):
            scene.save(tmp_path / "out", exports=["obj"])
        with pytest.raises(InputError, match="allowed: glb, cameras, depth, matches, colmap"):
            scene.export("obj", tmp_path / "out")
        with pytest.raises(InputError, match="`max_image_size` is 0"):
            PhotoOptions(max_image_size=0)
        assert not (tmp_path / "out").exists()


class TestCommandLine:
    @staticmethod
    def run(*arguments: object) -> int:
        with pytest.raises(SystemExit) as caught:
            main([str(argument) for argument in arguments])
        return int(caught.value.code or 0)

    def test_export(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        output = tmp_path / "out"
        scene_of(tmp_path / "photos", -0.1).save(output, SceneOptions(min_conf_thr=1))
        glb = (output / "scene.glb").stat().st_mtime_ns
        assert self.run("export", output, "--export", "colmap") == 0
        assert str(output / "colmap") in capsys.readouterr().err
        assert [c.model_name for c in read(output / "colmap").cameras.values()] == ["SIMPLE_RADIAL"]
        assert self.run("export", output, "--export", "colmap", "--undistort", "--max-image-size", 160) == 0
        [camera] = read(output / "colmap").cameras.values()
        assert camera.model_name == "PINHOLE" and max(camera.width, camera.height) == 160
        assert (output / "scene.glb").stat().st_mtime_ns == glb
        # options of the scene: the scene as well
        assert self.run("export", output, "--export", "colmap", "--as-pointcloud") == 0
        assert (output / "scene.glb").stat().st_mtime_ns != glb

    def test_errors(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        output = tmp_path / "out"
        scene = scene_of(tmp_path / "photos")
        scene.save(output, SceneOptions(min_conf_thr=1))
        assert self.run("export", output, "--export", "obj") == 2
        assert "'obj' is not one of 'colmap', 'nerfstudio', 'realityscan', 'ply', 'las'" in capsys.readouterr().err
        assert self.run("export", output, "--undistort") == 2
        assert "add --export colmap" in capsys.readouterr().err
        assert self.run("reconstruct", "--input", tmp_path, "--max-image-size", 100) == 2
        assert "add --export colmap" in capsys.readouterr().err
        os.unlink(scene.views[2].file)  # noqa: PTH108
        assert self.run("export", output, "--export", "colmap") == 2
        error = capsys.readouterr().err
        assert "photo 2.png: cannot be read" in error and error.count("\n") == 1
        assert not (output / "colmap").exists()
