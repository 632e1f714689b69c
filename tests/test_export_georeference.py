"""A scene is put on the earth by GPS positions that are some metres off, a few of them grossly."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pycolmap
import pytest
from export_scene import pose, view
from photo_scene import scene_of
from PIL import Image
from scipy.spatial.transform import Rotation

from mast3r_sfm.app.cli import main
from mast3r_sfm.errors import InputError
from mast3r_sfm.export.georeference import check_fixes, georeference_of, in_metres
from mast3r_sfm.images.gps import gps_from_exif
from mast3r_sfm.images.loading import ImageSizing, load_views
from mast3r_sfm.options import SceneOptions, Up
from mast3r_sfm.reconstruction import Reconstruction
from mast3r_sfm.types import GpsFix, ReconstructedView

pyproj = pytest.importorskip("pyproj")

OPTIONS = SceneOptions(min_conf_thr=1)
LATITUDE, LONGITUDE, ALTITUDE = 47.3769, 8.5417, 412.0
SCALE = 3.7
NORTH_UP = Rotation.from_euler("ZYX", [40, 3, -5], degrees=True).as_matrix()
"""How the camera world, x right, y down, z forward, was turned and tilted a little."""

ENU_FROM_OPENCV = np.array([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]])


def geodetic(enu: np.ndarray) -> np.ndarray:
    """(N, 3) latitude, longitude, height of places east, north and up of the origin, by way of the earth's centre."""
    to_centre = pyproj.Transformer.from_crs("EPSG:4979", "EPSG:4978", always_xy=True)
    origin = np.array(to_centre.transform(LONGITUDE, LATITUDE, ALTITUDE))
    lat, lon = np.radians([LATITUDE, LONGITUDE])
    axes = np.array(
        [
            [-np.sin(lon), np.cos(lon), 0],
            [-np.sin(lat) * np.cos(lon), -np.sin(lat) * np.sin(lon), np.cos(lat)],
            [np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)],
        ]
    )
    centre = origin + enu @ axes
    longitude, latitude, height = to_centre.transform(*centre.T, direction="INVERSE")
    return np.stack([latitude, longitude, height], axis=1)


def truth() -> np.ndarray:
    """(4, 4) metres east, north, up of the origin from the world."""
    matrix = np.eye(4)
    matrix[:3, :3] = SCALE * NORTH_UP @ ENU_FROM_OPENCV
    matrix[:3, 3] = [12.0, -7.0, 3.0]
    return matrix


def fix_of(place: np.ndarray) -> GpsFix:
    return GpsFix(*(float(value) for value in place))


def scene_at(
    centres: np.ndarray, noise_m: float = 1.0, altitudes: bool = True, error_m: float | None = None
) -> Reconstruction:
    """Views that look about level, with fixes that are off by a noise, twice as much in height."""
    rng = np.random.default_rng(3)
    enu = centres @ truth()[:3, :3].T + truth()[:3, 3]
    off = rng.normal(0, 1, enu.shape) * [noise_m, noise_m, 2 * noise_m]
    views = []
    for k, (centre, (latitude, longitude, height)) in enumerate(zip(centres, geodetic(enu + off), strict=True)):
        # gravity of the world is that of the truth, about which the cameras turn
        up = np.linalg.inv(truth()[:3, :3])[:, 2]
        turn = Rotation.from_rotvec(rng.uniform(-3, 3) * up / np.linalg.norm(up)).as_matrix()
        where = pose(0, centre)
        where[:3, :3] = turn @ (NORTH_UP @ ENU_FROM_OPENCV).T @ ENU_FROM_OPENCV
        fix = GpsFix(float(latitude), float(longitude), float(height) if altitudes else None, error_m)
        views.append(view(np.full((12, 16), 2.0), index=k, pose=where, file=f"photos/{k}.jpg", gps=fix))
    return Reconstruction(tuple(views), ())


def around(count: int = 24, radius: float = 30.0) -> np.ndarray:
    """Places around a thing, at two heights."""
    angles = np.linspace(0, 2 * np.pi, count, endpoint=False)
    return np.stack([radius * np.cos(angles), -4.0 * (np.arange(count) % 3), radius * np.sin(angles)], axis=1)


def changed(scene: Reconstruction, fixes: Mapping[int, GpsFix | None]) -> Reconstruction:
    views = [dataclasses.replace(one, gps=fixes.get(one.index, one.gps)) for one in scene.views]
    return dataclasses.replace(scene, views=tuple(views))


def changed_fix(one: ReconstructedView, **changes: float | None) -> GpsFix:
    assert one.gps is not None
    return dataclasses.replace(one.gps, **changes)  # type: ignore[arg-type]


def placed(scene: Reconstruction) -> tuple[np.ndarray, np.ndarray]:
    """(N, 3) true and found places of the cameras, metres from the true origin."""
    place = scene.georeference
    assert place is not None
    centres = np.stack([one.world_from_cam[:3, 3] for one in scene.views])
    enu = centres @ place.enu_from_world[:3, :3].T + place.enu_from_world[:3, 3]
    to_enu = pyproj.Transformer.from_pipeline(
        "+proj=pipeline +step +proj=unitconvert +xy_in=deg +xy_out=rad +step +proj=cart +ellps=WGS84 "
        f"+step +proj=topocentric +ellps=WGS84 +lon_0={LONGITUDE} +lat_0={LATITUDE} +h_0={ALTITUDE}"
    )
    shift = to_enu.transform(place.longitude_deg, place.latitude_deg, place.altitude_m)
    return centres @ truth()[:3, :3].T + truth()[:3, 3], enu + shift


class TestSimilarity:
    def test_exact_fixes_give_the_exact_similarity(self) -> None:
        scene = scene_at(around(), noise_m=0.0).georeferenced(OPTIONS)
        true, found = placed(scene)
        np.testing.assert_allclose(found, true, atol=0.003)  # the earth bends by a millimetre over 100 m
        assert scene.georeference is not None
        assert scene.georeference.scale == pytest.approx(SCALE, rel=1e-4)
        assert scene.georeference.inliers.all() and np.abs(scene.georeference.residuals_m).max() < 0.01

    def test_noise_and_two_gross_outliers(self, caplog: pytest.LogCaptureFixture) -> None:
        scene = scene_at(around(), noise_m=1.0)
        wrong = geodetic(np.array([[300.0, -200, 0], [-90, 80, 40]]))
        scene = changed(scene, {5: fix_of(wrong[0]), 11: fix_of(wrong[1]), 7: None})
        scene = scene.georeferenced(OPTIONS)
        place = scene.georeference
        assert place is not None
        assert np.flatnonzero(~place.inliers).tolist() == [5, 7, 11]
        assert np.isnan(place.residuals_m[7]).all() and np.linalg.norm(place.residuals_m[5]) > 200
        assert place.scale == pytest.approx(SCALE, rel=0.01)
        true, found = placed(scene)
        assert np.linalg.norm(found - true, axis=1).max() < 1.5
        assert "2 of 23 GPS positions do not agree with the cameras: photos/5.jpg, photos/11.jpg" in caplog.text

    def test_the_same_seed_gives_the_same_result(self) -> None:
        scene = scene_at(around(40))
        a, b = (georeference_of(scene, OPTIONS, seed=4) for _ in range(2))
        np.testing.assert_array_equal(a.enu_from_world, b.enu_from_world)

    def test_exact_fixes_outweigh_inexact_ones(self) -> None:
        scene = scene_at(around(), noise_m=0.0)
        loose = scene_at(around(), noise_m=8.0)
        fixes = {
            k: changed_fix(one, horizontal_error_m=0.5)
            if k % 2 == 0
            else changed_fix(loose.views[k], horizontal_error_m=20.0)
            for k, one in enumerate(scene.views)
        }
        true, found = placed(changed(scene, fixes).georeferenced(OPTIONS))
        assert np.linalg.norm(found - true, axis=1).max() < 0.5

    def test_altitudes_that_are_missing(self) -> None:
        some = scene_at(around(), noise_m=0.5)
        fixes = {k: changed_fix(some.views[k], altitude_m=None) for k in range(0, 24, 2)}
        scene = changed(some, fixes).georeferenced(OPTIONS)
        true, found = placed(scene)
        assert np.linalg.norm(found - true, axis=1).max() < 1.5
        place = scene.georeference
        assert place is not None and place.inliers.all()
        assert np.isnan(place.residuals_m[::2, 2]).all() and np.isfinite(place.residuals_m[1::2]).all()
        flat = scene_at(around() * [1, 0, 1], noise_m=0.5, altitudes=False).georeferenced(OPTIONS)
        assert flat.georeference is not None and flat.georeference.altitude_m == 0
        assert flat.georeference.scale == pytest.approx(SCALE, rel=0.01)

    @pytest.mark.parametrize("up", ["auto", "first-camera"])
    def test_a_line_is_turned_by_gravity(self, up: str, caplog: pytest.LogCaptureFixture) -> None:
        line = np.stack([np.linspace(-40, 40, 15), np.zeros(15), np.zeros(15)], axis=1)
        scene = scene_at(line, noise_m=1.0).georeferenced(SceneOptions(min_conf_thr=1, up=Up(up)))
        assert "by gravity" in caplog.text
        place = scene.georeference
        assert place is not None
        # up in the world is what it truly is, to the exactness of gravity by cameras and fixes
        up_true, up_found = (m[2, :3] / np.linalg.norm(m[2, :3]) for m in (truth(), place.enu_from_world))
        assert np.degrees(np.arccos(up_true @ up_found)) < 6
        true, found = placed(scene)
        assert np.linalg.norm(found - true, axis=1).max() < 2.5

    def test_a_line_that_points_up_is_refused(self) -> None:
        up = np.linalg.inv(truth()[:3, :3])[:, 2]
        line = np.linspace(-40, 40, 15)[:, None] * up / np.linalg.norm(up)
        with pytest.raises(InputError, match=r"lie on a line.*does not settle it"):
            scene_at(line, noise_m=0.5).georeferenced(OPTIONS)


class TestRefusal:
    @pytest.mark.parametrize(
        ("fixes", "message"),
        [
            ([None] * 4, "none of 4 photos states a GPS position"),
            ([GpsFix(1, 2), None, None, None], "only 0.jpg states a GPS position"),
            ([GpsFix(1, 2), None, GpsFix(1, 3), None], "only 0.jpg and 2.jpg state a GPS position"),
            (
                [GpsFix(1, 2), GpsFix(1, 2, 5.0), None, GpsFix(1, 2)],
                r"all 3 GPS positions are the same, 1.0\d* 2.0\d* \(0",
            ),
        ],
    )
    def test_fixes_that_place_nothing(self, fixes: Sequence[GpsFix | None], message: str) -> None:
        with pytest.raises(InputError, match=message) as caught:
            check_fixes(fixes, [f"{k}.jpg" for k in range(4)])
        assert "\n" not in str(caught.value)

    def test_fixes_that_contradict_the_cameras(self) -> None:
        scene = scene_at(around())
        places = geodetic(np.random.default_rng(0).uniform(-500, 500, (24, 3)))
        scene = changed(scene, {k: fix_of(place) for k, place in enumerate(places)})
        with pytest.raises(InputError, match=r"do not agree with the cameras; only \d+ of 24"):
            scene.georeferenced(OPTIONS)

    def test_a_missing_package_is_one_line(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("mast3r_sfm.export.extras.find_spec", lambda name: None)
        with pytest.raises(InputError, match=r"needs the package pyproj: pip install 'mast3r-sfm\[geo\]'"):
            scene_at(around()).georeferenced(OPTIONS)


def photos_with_gps(folder: Path) -> Reconstruction:
    """The scene of `photo_scene` with fixes 100 m from each other on a bow."""
    scene = scene_of(folder)
    centres = np.stack([one.world_from_cam[:3, 3] for one in scene.views])
    centres[:, 1] += [0, 0.4, 0, 0.4, 0]
    enu = centres * 50 @ NORTH_UP.T
    views = []
    for one, centre, (latitude, longitude, height) in zip(scene.views, centres, geodetic(enu), strict=True):
        where = one.world_from_cam.copy()
        where[:3, 3] = centre
        views.append(
            dataclasses.replace(
                one, world_from_cam=where, gps=GpsFix(float(latitude), float(longitude), float(height), 1.0)
            )
        )
    return dataclasses.replace(scene, views=tuple(views))


class TestInAResult:
    def test_exports_are_in_metres(self, tmp_path: Path) -> None:
        laspy, plyfile = pytest.importorskip("laspy"), pytest.importorskip("plyfile")
        scene = photos_with_gps(tmp_path / "photos").georeferenced(OPTIONS)
        place = scene.georeference
        assert place is not None and place.scale == pytest.approx(50, rel=1e-3)
        kinds = ["colmap", "nerfstudio", "realityscan", "ply", "las", "png16"]
        scene.save(tmp_path / "out", OPTIONS, exports=kinds)
        document = json.loads((tmp_path / "out" / "cameras.json").read_text())["georeference"]
        assert document["inliers"] == 5 and document["metres_per_unit"] == place.scale
        similarity = np.array(document["enu_from_world"])
        centres = np.stack([one.world_from_cam[:3, 3] for one in scene.views])
        enu = centres @ similarity[:3, :3].T + similarity[:3, 3]
        model = pycolmap.Reconstruction(tmp_path / "out" / "colmap" / "sparse" / "0")
        found = np.stack([model.images[k].projection_center() for k in range(1, 6)])
        np.testing.assert_allclose(found, enu, atol=1e-6)
        frames = json.loads((tmp_path / "out" / "nerfstudio" / "transforms.json").read_text())["frames"]
        found = np.stack([np.array(one["transform_matrix"])[:3, 3] for one in frames])
        np.testing.assert_allclose(found, enu, atol=1e-6)
        depth = json.loads((tmp_path / "out" / "depth_png16" / "depth.json").read_text())
        assert depth["unit"] == "metres" and depth["depth_of_one_step"] == 0.005  # 4 units are 200 m
        true = scene.views[0].points_world().reshape(-1, 3) @ similarity[:3, :3].T + similarity[:3, 3]
        vertices = plyfile.PlyData.read(tmp_path / "out" / "scene.ply")["vertex"]
        np.testing.assert_allclose(np.stack([vertices[a] for a in "xyz"], axis=1)[: len(true)], true, atol=1e-3)
        # the LAS file in its UTM zone: back by way of geodetic coordinates
        las = laspy.read(tmp_path / "out" / "scene.las")
        assert las.header.parse_crs().to_epsg() == 32632
        back = pyproj.Transformer.from_crs(32632, 4326, always_xy=True)
        longitude, latitude = back.transform(las.x[: len(true)], las.y[: len(true)])
        to_centre = pyproj.Transformer.from_crs("EPSG:4979", "EPSG:4978", always_xy=True)
        earth = np.stack(to_centre.transform(longitude, latitude, las.z[: len(true)]), axis=1)
        sides = [np.linalg.norm(np.diff(points, axis=0), axis=1) for points in (earth, true)]
        np.testing.assert_allclose(sides[0], sides[1], atol=0.002)

    def test_the_scene_in_metres_projects_alike_and_is_there_once(self, tmp_path: Path) -> None:
        scene = photos_with_gps(tmp_path / "photos").georeferenced(OPTIONS)
        metric = in_metres(scene)
        assert in_metres(metric) is metric
        for one, other in zip(scene.views, metric.views, strict=True):
            ratio = other.depth / one.depth
            np.testing.assert_allclose(ratio, 50, rtol=1e-3)
            np.testing.assert_allclose(
                other.world_from_cam[:3, :3] @ other.world_from_cam[:3, :3].T, np.eye(3), atol=1e-9
            )

    def test_further_scenes_are_placed_each_for_itself(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        further, without = scene_at(around(8, 20.0)), changed(scene_at(around(6)), dict.fromkeys(range(1, 6)))
        scene = dataclasses.replace(scene_at(around()), others=(further, without)).georeferenced(OPTIONS)
        assert scene.georeference is not None
        assert "scene_2 has no place on the earth: `georeference=True`: only photos/0.jpg" in caplog.text
        scene.save(tmp_path / "out", OPTIONS, report=False)
        kept = [Reconstruction.load(tmp_path / "out" / name).georeference for name in (".", "scene_1", "scene_2")]
        assert [None if one is None else len(one.inliers) for one in kept] == [24, 8, None]
        found, true = placed(scene.others[0])
        assert np.linalg.norm(found - true, axis=1).max() < 5

    def test_the_result_keeps_groups_and_fixes(self, tmp_path: Path) -> None:
        groups = (tuple(range(20)), (20, 21, 22, 23))
        scene = dataclasses.replace(scene_at(around()), groups=groups).georeferenced(OPTIONS)
        scene.save(tmp_path / "out", OPTIONS, report=False)
        again = Reconstruction.load(tmp_path / "out")
        assert again.groups == groups and again.georeference is not None
        assert [one.gps for one in again.views] == [one.gps for one in scene.views]

    def test_later_by_the_command_line(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        output = tmp_path / "out"
        photos_with_gps(tmp_path / "photos").save(output, OPTIONS)
        glb = (output / "scene.glb").read_bytes()
        assert run("export", output, "--georeference", "--export", "colmap,ply", "--export", "nerfstudio,ply") == 0
        shown = capsys.readouterr().err
        assert "5 of 5 agree" in shown and "photo 3.png" in shown and "east" in shown
        assert (output / "scene.glb").read_bytes() == glb
        assert all((output / name).exists() for name in ("colmap", "scene.ply", "nerfstudio"))
        again = Reconstruction.load(output)
        assert again.georeference is not None and again.views[2].gps is not None
        assert json.loads((output / "cameras.json").read_text())["georeference"]["origin"]["altitude_m"] > 300
        # later exports are in metres without being told
        (output / "scene.ply").unlink()
        assert run("export", output, "--export", "ply") == 0
        assert b"metres east, north, up" in (output / "scene.ply").read_bytes()[:200]

    def test_refused_by_the_command_line(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        output = tmp_path / "out"
        scene_of(tmp_path / "photos").save(output, OPTIONS)
        before = (output / "reconstruction.npz").read_bytes()
        assert run("export", output, "--georeference") == 2
        error = capsys.readouterr().err
        assert "--georeference: none of 5 photos states a GPS position" in error and error.count("\n") == 1
        assert (output / "reconstruction.npz").read_bytes() == before


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as caught:
        main([str(argument) for argument in arguments])
    return int(caught.value.code or 0)


class TestExif:
    def test_fixes_are_read_with_the_photos(self, tmp_path: Path) -> None:
        exif = Image.Exif()
        exif.get_ifd(0x8825).update(
            {1: "S", 2: (47.0, 30.0, 36.0), 3: "W", 4: (8.0, 15.0, 0.0), 5: b"\0", 6: 412.5, 31: 4.0}
        )
        Image.new("RGB", (320, 240)).save(tmp_path / "a.jpg", exif=exif)
        Image.new("RGB", (320, 240)).save(tmp_path / "b.jpg")
        a, b = load_views([tmp_path / "a.jpg", tmp_path / "b.jpg"], ImageSizing())
        assert a.gps is not None and b.gps is None
        np.testing.assert_allclose(dataclasses.astuple(a.gps), [-47.51, -8.25, 412.5, 4.0])

    def test_what_is_no_fix(self) -> None:
        assert gps_from_exif({}) is None
        assert gps_from_exif({1: "N", 2: (0.0, 0.0, 0.0), 3: "E", 4: (0.0, 0.0, 0.0)}) is None
        assert gps_from_exif({1: "N", 2: (95.0, 0.0, 0.0), 3: "E", 4: (1.0, 0.0, 0.0)}) is None
        below = gps_from_exif({1: "N", 2: (1.0, 0.0, 0.0), 3: "E", 4: (1.0, 0.0, 0.0), 5: b"\1", 6: 10.0})
        assert below is not None and below.altitude_m == -10
