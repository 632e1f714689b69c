"""Which way is up in a scene file, and where its viewer looks."""

import dataclasses
import json
import struct
from pathlib import Path

import numpy as np
import pytest
from export_scene import pose, read_glb, two_views, view
from PIL import Image
from scipy.spatial.transform import Rotation

from mast3r_sfm.export.cameras import write_cameras
from mast3r_sfm.export.glb import write_glb
from mast3r_sfm.export.orientation import (
    planes_know_better,
    possible_ups,
    rotation_from_up,
    scene_frame,
    up_of_cameras,
    up_of_planes,
)
from mast3r_sfm.export.surface import placed_views
from mast3r_sfm.images.gravity import gravity_of_note, gravity_of_photo
from mast3r_sfm.options import SceneOptions, Up
from mast3r_sfm.reconstruction import Reconstruction
from mast3r_sfm.types import ReconstructedView

OPENCV_FROM_Z_UP = np.array([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]])  # the axes of a camera that looks along +y, z up


def people(rng: np.random.Generator, count: int, up: np.ndarray) -> np.ndarray:
    """(n, 3, 3) world from camera: turned by anything about `up`, tilted by up to 30 degrees, rolled by up to 2."""
    turns, tilts, rolls = (rng.uniform(-limit, limit, (count, 1)) for limit in (60, 30, 2))
    upright = Rotation.from_euler("z", turns, degrees=True) * Rotation.from_matrix(OPENCV_FROM_Z_UP.T)
    upright = upright * Rotation.from_euler("x", tilts, degrees=True) * Rotation.from_euler("z", rolls, degrees=True)
    world_from_z_up = Rotation.align_vectors([up], [[0, 0, 1]])[0]
    return (world_from_z_up * upright).as_matrix()


def degrees_between(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.degrees(np.arccos(np.clip(a @ b, -1, 1))))


def rooms_floor(tilt_deg: float) -> ReconstructedView:
    """A camera 1.5 above a level floor, tilted down by an angle, that sees nothing but the floor."""
    H, W, focal = 60, 80, 60.0
    y = (np.arange(H) - (H - 1) / 2) / focal
    a = np.radians(tilt_deg)
    down = y * np.cos(a) + np.sin(a)  # of the ray at depth 1
    depth = np.repeat((1.5 / down)[:, None], W, axis=1)
    return view(depth, focal=focal, file="none.jpg")


class TestUp:
    def test_of_cameras_that_people_held(self) -> None:
        rng = np.random.default_rng(0)
        up = np.array([0.6, 0.0, 0.8])
        rotations = people(rng, 12, up)
        assert degrees_between(up_of_cameras(rotations), up) < 1.5

    def test_a_photo_on_its_side_is_outvoted(self) -> None:
        rng = np.random.default_rng(1)
        up = np.array([0.0, -1.0, 0.0])
        rotations = people(rng, 9, up)
        rotations[3] = rotations[3] @ Rotation.from_euler("z", 90, degrees=True).as_matrix()
        assert degrees_between(up_of_cameras(rotations), up) < 2.5

    def test_of_one_camera_is_its_own(self) -> None:
        np.testing.assert_allclose(up_of_cameras(np.eye(3)[None]), [0, -1, 0], atol=1e-9)

    def test_planes_make_it_exact(self) -> None:
        rng = np.random.default_rng(2)
        up = np.array([0.0, 0.0, 1.0])
        clutter = rng.normal(size=(600, 3))
        clutter /= np.linalg.norm(clutter, axis=1, keepdims=True)
        walls = np.repeat([[1.0, 0, 0], [0.6, 0.8, 0]], 150, axis=0)
        normals = np.concatenate([clutter, walls, np.repeat([[0.0, 0, 1]], 150, axis=0)])
        nearly = Rotation.from_euler("xy", [6, -5], degrees=True).apply(up)
        found = up_of_planes(normals, [nearly])
        assert found is not None and degrees_between(found, up) < 0.7

    @pytest.mark.parametrize(("spread", "known"), [(0.5, True), (8.0, False)])
    def test_planes_count_where_views_agree_on_them(self, spread: float, known: bool) -> None:
        """Every view sees a level floor, turned by its own error: 3 degrees off by the cameras, up is what most say."""
        rng = np.random.default_rng(4)
        up = np.array([0.0, 0.0, 1.0])
        turns = Rotation.from_euler("xy", rng.normal(scale=spread, size=(8, 2)), degrees=True)
        views = [np.repeat(turn.apply(up)[None], 50, axis=0) for turn in turns]
        cameras = Rotation.from_euler("x", 3, degrees=True).apply(up)
        found = up_of_planes(np.concatenate(views), [cameras])
        assert found is not None
        assert planes_know_better(views, found, cameras) == known

    def test_clutter_has_no_planes(self) -> None:
        normals = np.random.default_rng(3).normal(size=(2000, 3))
        normals /= np.linalg.norm(normals, axis=1, keepdims=True)
        starts = possible_ups(np.array([0.0, 0, 1]), np.eye(3)[None])
        assert len(starts) == 5 and up_of_planes(normals, starts) is None
        assert up_of_planes(np.zeros((0, 3)), starts) is None

    @pytest.mark.parametrize("tilt", [25, 40, 55])
    def test_a_floor_levels_a_single_tilted_camera(self, tilt: float) -> None:
        frame = scene_frame(placed_views([rooms_floor(tilt)], SceneOptions()), Up.AUTO)
        assert frame.up_from == "planes"
        # the camera is tilted down, so up leans forward in its frame
        leaning = np.array([0, -np.cos(np.radians(tilt)), np.sin(np.radians(tilt)) * -1.0])
        assert degrees_between(frame.gltf_from_world[1, :3], leaning) < 1.5

    def test_a_wall_in_front_is_no_floor(self) -> None:
        frame = scene_frame(placed_views([view(np.full((60, 80), 2.0), focal=60.0)], SceneOptions()), Up.AUTO)
        np.testing.assert_allclose(frame.gltf_from_world[1, :3], [0, -1, 0], atol=1e-6)


class TestFrame:
    def test_the_viewer_looks_as_the_first_cameras_do(self) -> None:
        up = np.array([0.0, -1.0, 0.0])
        rotations = np.stack([pose(angle, [0, 0, 0])[:3, :3] for angle in (20, 30, 40)])
        rotation = rotation_from_up(up, rotations)
        look = np.array([np.sin(np.radians(30)), 0, np.cos(np.radians(30))])
        np.testing.assert_allclose(rotation @ look, [0, 0, -1], atol=1e-9)
        np.testing.assert_allclose(rotation @ up, [0, 1, 0], atol=1e-9)
        assert np.linalg.det(rotation) == pytest.approx(1)

    def test_who_looks_straight_down_has_the_top_of_the_photo_in_front(self) -> None:
        rotation = rotation_from_up(np.array([0.0, 0, -1]), np.eye(3)[None])
        np.testing.assert_allclose(rotation @ [0, -1, 0], [0, 0, -1], atol=1e-9)

    def test_the_scene_lies_around_the_origin(self, tmp_path: Path) -> None:
        far = [dataclasses.replace(one, world_from_cam=pose(20, [90, 5, -70])) for one in two_views().views]
        write_glb(Reconstruction(tuple(far), ()), tmp_path / "scene.glb", SceneOptions(cameras=False))
        points = np.concatenate([p["POSITION"] for p in read_glb(tmp_path / "scene.glb").primitives("surfaces")])
        assert np.abs(points.min(axis=0) + points.max(axis=0)).max() < 2.5  # the camera, at depth 2, counts too

    def test_cameras_json_leads_from_the_file_to_the_world(self, tmp_path: Path) -> None:
        scene = two_views()
        for up, named in ((Up.AUTO, {"cameras", "planes"}), (Up.FIRST_CAMERA, {"first-camera"})):
            options = SceneOptions(up=up, as_pointcloud=True)
            write_glb(scene, tmp_path / "scene.glb", options)
            write_cameras(scene, tmp_path / "cameras.json", options)
            frame = json.loads((tmp_path / "cameras.json").read_text())["scene_glb"]
            assert frame["up_from"] in named
            [points] = read_glb(tmp_path / "scene.glb").primitives("points")
            homogeneous = np.concatenate([points["POSITION"], np.ones((len(points["POSITION"]), 1))], axis=1)
            world = homogeneous @ np.array(frame["world_from_gltf"]).T
            expected = np.concatenate([one.points_world().reshape(-1, 3) for one in scene.views])
            np.testing.assert_allclose(world[:, :3], expected, atol=1e-5)
            np.testing.assert_allclose(
                np.array(frame["gltf_from_world"]) @ frame["world_from_gltf"], np.eye(4), atol=1e-9
            )


def apple_note(acceleration: tuple[float, float, float], order: str = ">") -> bytes:
    """A maker note with one other entry and the acceleration, its rationals behind the directory."""
    mark = b"MM" if order == ">" else b"II"
    start = 14 + 2 + 2 * 12 + 4
    entries = struct.pack(order + "HHII", 1, 9, 1, 14) + struct.pack(order + "HHII", 8, 10, 3, start)
    values = [part for value in acceleration for part in (round(value * 1000), 1000)]
    return (
        b"Apple iOS\0\0\1"
        + mark
        + struct.pack(order + "H", 2)
        + entries
        + bytes(4)
        + struct.pack(order + "6i", *values)
    )


class TestExif:
    @pytest.mark.parametrize(
        ("acceleration", "orientation", "down"),
        [
            ((0, -1, 0), 6, (0, 1, 0)),  # held upright: gravity is at the bottom of the photo
            ((-1, 0, 0), 1, (0, 1, 0)),  # on its left side, the picture as the sensor has it
            ((1, 0, 0), 3, (0, 1, 0)),  # on its right side
            ((0, 1, 0), 8, (0, 1, 0)),  # upside down
            ((0, 0, -1), 6, (0, 0, 1)),  # the screen faces the sky: the camera looks straight down
            ((0, -0.8, -0.6), 6, (0, 0.8, 0.6)),  # tilted down
            ((0.6, -0.8, 0), 6, (0.6, 0.8, 0)),  # rolled: its right side is lower
        ],
    )
    @pytest.mark.parametrize("order", [">", "<"])
    def test_gravity_in_the_photo_as_it_is_shown(
        self, acceleration: tuple[float, float, float], orientation: int, down: tuple[float, ...], order: str
    ) -> None:
        found = gravity_of_note(apple_note(acceleration, order), orientation)
        assert found is not None
        np.testing.assert_allclose(found, down, atol=1e-9)

    def test_a_telephone_in_motion_and_broken_notes_say_nothing(self) -> None:
        assert gravity_of_note(apple_note((0, -1.6, 0)), 6) is None
        assert gravity_of_note(apple_note((0, -1, 0)), 5) is None  # mirrored
        for broken in (b"", b"Apple iOS\0\0\1MM", apple_note((0, -1, 0))[:50], b"Nikon" + bytes(60)):
            assert gravity_of_note(broken, 6) is None

    def test_a_photo_with_gravity_decides(self, tmp_path: Path) -> None:
        exif = Image.Exif()
        exif[0x0112] = 6
        exif.get_ifd(0x8769)[0x927C] = apple_note((0, -0.8, -0.6))
        Image.new("RGB", (32, 24)).save(tmp_path / "a.jpg", exif=exif)
        down = gravity_of_photo(str(tmp_path / "a.jpg"))
        assert down is not None
        np.testing.assert_allclose(down, [0, 0.8, 0.6], atol=1e-6)
        one = view(np.full((12, 16), 2.0), file=str(tmp_path / "a.jpg"))
        frame = scene_frame(placed_views([one], SceneOptions()), Up.AUTO)
        assert frame.up_from == "exif"
        np.testing.assert_allclose(frame.gltf_from_world[1, :3], [0, -0.8, -0.6], atol=1e-6)
        # named from another folder, as in a result that is exported from elsewhere
        there = dataclasses.replace(one, file="a.jpg", folder=str(tmp_path))
        assert scene_frame(placed_views([there], SceneOptions()), Up.AUTO).up_from == "exif"
        assert gravity_of_photo(str(tmp_path / "missing.jpg")) is None
