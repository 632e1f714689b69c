"""The scene file: axes, faces, budget and colours, with answers worked out by hand."""

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trimesh
from export_scene import Glb, pose, read_glb, two_views, view

from mast3r_sfm.errors import EmptySceneError, InputError
from mast3r_sfm.export.frusta import COLOURS, default_camera_size, frustum_corners, frustum_wires
from mast3r_sfm.export.glb import SceneStatistics, write_glb
from mast3r_sfm.export.gltf import linear_from_srgb
from mast3r_sfm.export.surface import thinned_surface
from mast3r_sfm.geometry import undistort
from mast3r_sfm.options import SceneOptions, Up
from mast3r_sfm.reconstruction import Reconstruction
from mast3r_sfm.types import ReconstructedView

# Answers by hand are in the frame of the first camera; that of gravity has its own tests, test_export_orientation.py.
MESH = SceneOptions(cameras=False, up=Up.FIRST_CAMERA)
POINTS = dataclasses.replace(MESH, as_pointcloud=True)
CAMERAS = dataclasses.replace(MESH, cameras=True)


def written(tmp_path: Path, views: Iterable[ReconstructedView], options: SceneOptions) -> tuple[SceneStatistics, Glb]:
    path = tmp_path / "scene.glb"
    statistics = write_glb(Reconstruction(tuple(views), ()), path, options)
    assert statistics.file_bytes == path.stat().st_size
    return statistics, read_glb(path)


def points_of(tmp_path: Path, views: Iterable[ReconstructedView], options: SceneOptions = POINTS) -> np.ndarray:
    statistics, glb = written(tmp_path, views, options)
    [primitive] = glb.primitives("points")
    assert statistics.num_vertices == len(primitive["POSITION"])
    return primitive["POSITION"]


class TestAxes:
    """3 x 3 pixels, focal 1, depth 2: the middle pixel lies straight ahead, its neighbours 2 units aside."""

    first = pose(30, [5, -1, 7])

    def test_the_first_camera_looks_along_plus_z_with_y_up(self, tmp_path: Path) -> None:
        positions = points_of(tmp_path, [view(np.full((3, 3), 2.0), focal=1, pose=self.first)])
        right, down = np.array([-2, 0, 0]), np.array([0, -2, 0])
        # whoever looks along +z with y up has +x on the left
        expected = [[0, 0, 2] + y * down + x * right for y in (-1, 0, 1) for x in (-1, 0, 1)]
        np.testing.assert_allclose(positions, expected, atol=1e-6)

    def test_the_second_camera_keeps_its_place_beside_the_first(self, tmp_path: Path) -> None:
        # one unit to the right of the first camera, turned by half a turn: its middle pixel is 2 units behind
        second = self.first @ pose(180, [1, 0, 0])
        views = [view(np.full((3, 3), 2.0), focal=1, pose=p, index=i) for i, p in enumerate([self.first, second])]
        np.testing.assert_allclose(points_of(tmp_path, views)[9 + 4], [-1, 0, -2], atol=1e-6)

    def test_the_first_registered_camera_is_the_origin_and_others_have_no_place(self, tmp_path: Path) -> None:
        lost = view(np.full((3, 3), 9.0), focal=1, registered=False)
        placed = view(np.full((3, 3), 2.0), focal=1, pose=self.first, index=1)
        positions = points_of(tmp_path, [lost, placed])
        assert len(positions) == 9
        np.testing.assert_allclose(positions[4], [0, 0, 2], atol=1e-6)

    def test_the_front_of_a_face_is_the_side_of_the_camera(self, tmp_path: Path) -> None:
        [mesh] = written(tmp_path, [view(np.full((3, 4), 2.0))], MESH)[1].primitives("surfaces")
        a, b, c = np.moveaxis(mesh["POSITION"][mesh["faces"]], 1, 0)
        normals = np.cross(b - a, c - a)
        assert np.all(np.sum(normals * -a, axis=1) > 0)  # towards the origin, where the camera is


class TestFaces:
    def test_a_plane_has_two_faces_per_quad(self, tmp_path: Path) -> None:
        statistics, glb = written(tmp_path, [view(np.full((4, 5), 2.0))], MESH)
        [mesh] = glb.primitives("surfaces")
        assert statistics.num_faces == len(mesh["faces"]) == 2 * 3 * 4
        assert statistics.num_vertices == len(mesh["POSITION"]) == 20

    def test_faces_across_a_depth_jump_are_left_out(self, tmp_path: Path) -> None:
        depth = np.full((4, 5), 2.0)
        depth[:, 3:] = 3.0
        # the third of four columns of quads crosses the jump: 3 quads, 6 faces
        statistics, glb = written(tmp_path, [view(depth)], MESH)
        assert statistics.num_faces == 24 - 6
        [mesh] = glb.primitives("surfaces")
        z = mesh["POSITION"][mesh["faces"]][..., 2]
        assert np.all(z.max(1) == z.min(1))

    def test_a_depth_jump_is_relative(self, tmp_path: Path) -> None:
        depth = np.full((4, 5), 2.0)
        depth[:, 3:] = 2.05  # by 2.5 %
        assert written(tmp_path, [view(depth)], MESH)[0].num_faces == 24
        assert written(tmp_path, [view(10 * depth)], MESH)[0].num_faces == 24
        strict = dataclasses.replace(MESH, depth_jump=0.02)
        assert written(tmp_path, [view(depth)], strict)[0].num_faces == 18

    @pytest.mark.parametrize("stride", [1.0, 2.5, 4.0, 7.0])
    def test_a_slanted_floor_is_no_jump_at_any_stride(self, stride: float) -> None:
        depth = np.broadcast_to(2 * 1.02 ** np.arange(33), (33, 33))  # 2 % from pixel to pixel, 17 % over 8
        for map_ in (depth, depth.T):
            surface = thinned_surface(np.ones((33, 33), bool), map_, 0.03, stride)
            assert surface.upper.all() and surface.lower.all()

    def test_a_plane_may_slant_twice_as_much_as_a_step_may_rise(self) -> None:
        plane = 1 / np.linspace(1.0, 0.3, 15)  # by 5 % in front to 17 % behind
        changes = np.diff(plane) / plane[:-1]
        surface = thinned_surface(np.ones((4, 15), bool), np.broadcast_to(plane, (4, 15)), 0.03, 1.0)
        assert np.array_equal(surface.upper[0], changes <= 0.06) and surface.upper[0].any()
        bent = np.full(15, 2.0)
        bent[8:] = 2.08  # 4 % at once
        surface = thinned_surface(np.ones((4, 15), bool), np.broadcast_to(bent, (4, 15)), 0.03, 1.0)
        assert np.flatnonzero(~surface.upper[0]).tolist() == [7]

    @pytest.mark.parametrize("stride", [1.0, 2.5, 4.0, 7.0])
    def test_a_step_is_a_jump_at_any_stride(self, stride: float) -> None:
        depth = np.full((33, 33), 2.0)
        depth[:, 18:] = 2.1  # 5 %
        surface = thinned_surface(np.ones((33, 33), bool), depth, 0.03, stride)
        crosses = (surface.cols[:-1] < 18) & (surface.cols[1:] >= 18)
        assert crosses.sum() == 1
        turned = thinned_surface(np.ones((33, 33), bool), depth.T, 0.03, stride)
        for kept in (surface.upper, surface.lower, turned.upper.T, turned.lower.T):
            assert np.array_equal(kept, np.broadcast_to(~crosses, kept.shape))

    def test_nothing_is_joined_across_a_missing_depth(self) -> None:
        depth = np.full((3, 9), 2.0)
        depth[:, 3] = np.nan
        surface = thinned_surface(np.isfinite(depth), depth, 0.03, 2.0)  # columns 0, 2, 4, 6, 8: 3 is none of them
        assert surface.upper[0].tolist() == [True, False, True, True]

    def test_a_corner_that_is_masked_out_takes_its_three_triangles_along(self, tmp_path: Path) -> None:
        mask = np.ones((3, 3), bool)
        mask[1, 1] = False  # part of six of the eight triangles; the corners top left and bottom right remain
        assert written(tmp_path, [view(np.full((3, 3), 2.0), mask=mask)], MESH)[0].num_faces == 2


class TestWhichPixels:
    def test_confidence_must_be_above_the_threshold_strictly(self, tmp_path: Path) -> None:
        conf = np.array([[2.0, 3.0], [3.001, 4.0]])
        positions = points_of(tmp_path, [view([[1, 2], [3, 4]], conf=conf)])
        np.testing.assert_allclose(positions[:, 2], [3, 4])

    def test_masked_missing_and_negative_depths_are_left_out(self, tmp_path: Path) -> None:
        depth = np.array([[1, np.nan, np.inf], [-1, 0, 6]])
        mask = np.array([[False, True, True], [True, True, True]])
        assert points_of(tmp_path, [view(depth, mask=mask)])[:, 2].tolist() == [6]

    def test_cleaning_is_a_choice(self, tmp_path: Path) -> None:
        floating = np.array([[10.0, 0.0], [10.0, 10.0]], dtype=np.float32)
        one = view([[1, 2], [3, 4]], conf_clean=floating)
        assert points_of(tmp_path, [one])[:, 2].tolist() == [1, 3, 4]
        kept = dataclasses.replace(POINTS, clean_depth=False)
        assert points_of(tmp_path, [one], kept)[:, 2].tolist() == [1, 2, 3, 4]

    def test_the_share_kept_counts_registered_views(self, tmp_path: Path) -> None:
        conf = np.full((4, 4), 10.0)
        conf[0] = 1
        views = [view(np.full((4, 4), 2.0), conf=conf), view(np.full((9, 9), 2.0), index=1, registered=False)]
        statistics, _ = written(tmp_path, views, MESH)
        assert (statistics.num_kept, statistics.num_pixels, statistics.share_kept) == (12, 16, 0.75)


class TestBudget:
    views = tuple(view(np.full((48, 64), 2.0), index=i, pose=pose(0, [i, 0, 0])) for i in range(3))

    @pytest.mark.parametrize("budget", [100, 1000, 5000, 17765])
    def test_meshes_are_thinned_evenly_and_use_the_budget(self, tmp_path: Path, budget: int) -> None:
        assert 3 * 2 * 47 * 63 == 17766
        statistics, glb = written(tmp_path, self.views, dataclasses.replace(MESH, max_points=budget))
        per_view = [len(mesh["faces"]) for mesh in glb.primitives("surfaces")]
        assert sum(per_view) == statistics.num_faces
        assert 0.6 * budget <= sum(per_view) <= budget
        assert len(per_view) == 3 and len(set(per_view)) == 1
        assert statistics.stride > 1
        # thinning does not shrink the surface: the corners of the image are still there
        for mesh in glb.primitives("surfaces"):
            np.testing.assert_allclose(np.ptp(mesh["POSITION"], axis=0), [63 * 0.2, 47 * 0.2, 0], rtol=1e-5)

    def test_within_the_budget_nothing_is_thinned(self, tmp_path: Path) -> None:
        statistics, _ = written(tmp_path, self.views, dataclasses.replace(MESH, max_points=17766))
        assert (statistics.num_faces, statistics.stride) == (17766, 1.0)

    def test_points_are_a_spread_subset_of_exactly_the_budget(self, tmp_path: Path) -> None:
        everything = points_of(tmp_path, self.views)
        some = points_of(tmp_path, self.views, dataclasses.replace(POINTS, max_points=3000))
        assert len(everything) == 3 * 48 * 64 and len(some) == 3000
        assert {tuple(p) for p in some} <= {tuple(p) for p in everything}
        # a third of the chosen points lies below a third of the height, give or take
        lower = np.mean(some[:, 1] < np.quantile(everything[:, 1], 1 / 3))
        assert abs(lower - np.mean(everything[:, 1] < np.quantile(everything[:, 1], 1 / 3))) < 0.03

    @pytest.mark.parametrize("options", [MESH, POINTS])
    def test_the_same_scene_gives_the_same_file(self, tmp_path: Path, options: SceneOptions) -> None:
        options = dataclasses.replace(options, max_points=2000)
        files = []
        for name in ("a.glb", "b.glb"):
            write_glb(Reconstruction(self.views, ()), tmp_path / name, options)
            files.append((tmp_path / name).read_bytes())
        assert files[0] == files[1]

    def test_an_impossible_budget_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="`max_points=1` is too small for meshes of 3 images"):
            write_glb(Reconstruction(self.views, ()), tmp_path / "x.glb", dataclasses.replace(MESH, max_points=1))
        assert not list(tmp_path.iterdir())


class TestColours:
    def test_every_vertex_of_a_mesh_shows_its_pixel(self, tmp_path: Path) -> None:
        y, x = np.mgrid[:40, :60]
        one = view(np.full((40, 60), 2.0), rgb=np.stack([4 * x, 6 * y, 255 - 4 * x], -1), focal=30)
        [mesh] = written(tmp_path, [one], dataclasses.replace(MESH, max_points=1000))[1].primitives("surfaces")
        texture = read_glb(tmp_path / "scene.glb").texture(mesh["material"])
        # pixel centres from the positions: x_gltf = -(px - 29.5) / 30 * 2
        px = np.round(29.5 - mesh["POSITION"][:, 0] * 15).astype(int)
        py = np.round(19.5 - mesh["POSITION"][:, 1] * 15).astype(int)
        u, v = (mesh["TEXCOORD_0"] * [60, 40]).T  # from the top left, as glTF has it
        shown = texture[np.floor(v).astype(int), np.floor(u).astype(int)].astype(int)
        np.testing.assert_allclose(shown, one.rgb[py, px], atol=6)  # JPEG

    def test_points_have_linear_colours(self, tmp_path: Path) -> None:
        rgb = np.array([[[255, 0, 188], [10, 128, 255]]])
        [points] = written(tmp_path, [view([[2, 2]], rgb=rgb)], POINTS)[1].primitives("points")
        # sRGB 188/255 is half the light; the curve is linear below 0.04: 10 / 255 / 12.92; 128/255 -> 0.21586
        np.testing.assert_allclose(points["COLOR_0"], [[1, 0, 0.50289], [0.0030353, 0.21586, 1]], rtol=1e-4, atol=1e-7)

    def test_linear_light_and_back(self) -> None:
        linear = linear_from_srgb(np.arange(256))
        back = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
        assert np.array_equal(np.round(back * 255), np.arange(256))

    def test_all_materials_are_unlit_and_only_surfaces_have_one_side(self, tmp_path: Path) -> None:
        _, glb = written(tmp_path, two_views().views, CAMERAS)
        assert glb.document["extensionsUsed"] == ["KHR_materials_unlit"]
        assert all("KHR_materials_unlit" in material["extensions"] for material in glb.document["materials"])
        sides = {
            group: {p["material"]["doubleSided"] for p in glb.primitives(group)} for group in ("surfaces", "cameras")
        }
        assert sides == {"surfaces": {False}, "cameras": {True}}


class TestEmptyScene:
    def test_the_error_names_a_threshold_that_works(self, tmp_path: Path) -> None:
        conf = np.linspace(1.2, 2.5, 48).reshape(6, 8)
        reconstruction = Reconstruction((view(np.full((6, 8), 2.0), conf=conf),), ())
        for options in (MESH, POINTS):
            with pytest.raises(EmptySceneError, match=r"`min_conf_thr=3` keeps no .* is 2\.5\)") as caught:
                write_glb(reconstruction, tmp_path / "scene.glb", options)
            assert not list(tmp_path.iterdir())
            threshold = caught.value.suggested_min_conf_thr
            assert f"`min_conf_thr={threshold:.2f}` would keep 5" in str(caught.value)  # about half
            statistics = write_glb(
                reconstruction, tmp_path / "scene.glb", dataclasses.replace(options, min_conf_thr=threshold)
            )
            assert 0.5 <= statistics.share_kept < 0.6
            (tmp_path / "scene.glb").unlink()

    def test_a_constant_confidence_has_a_threshold_too(self, tmp_path: Path) -> None:
        reconstruction = Reconstruction((view(np.full((6, 8), 2.0), conf=1.0),), ())
        with pytest.raises(EmptySceneError) as caught:
            write_glb(reconstruction, tmp_path / "scene.glb", MESH)
        assert caught.value.suggested_min_conf_thr == 0.99

    def test_confident_pixels_that_touch_no_other_need_a_lower_threshold_for_a_mesh(self, tmp_path: Path) -> None:
        conf = np.where(
            np.indices((9, 9)).sum(0) % 2, 5.0, 2.0
        )  # a chessboard: no triangle has three confident corners
        with pytest.raises(EmptySceneError, match="keeps no triangle") as caught:
            write_glb(Reconstruction((view(np.full((9, 9), 2.0), conf=conf),), ()), tmp_path / "scene.glb", MESH)
        assert caught.value.suggested_min_conf_thr == 1.99

    def test_without_any_depth_no_threshold_is_promised(self, tmp_path: Path) -> None:
        with pytest.raises(EmptySceneError, match="no pixel has a valid depth") as caught:
            write_glb(Reconstruction((view(np.full((6, 8), np.nan)),), ()), tmp_path / "scene.glb", MESH)
        assert caught.value.suggested_min_conf_thr is None

    def test_without_a_registered_view(self, tmp_path: Path) -> None:
        lost = view(np.full((6, 8), 2.0), registered=False)
        with pytest.raises(EmptySceneError, match="No image is registered"):
            write_glb(Reconstruction((lost,), ()), tmp_path / "scene.glb", MESH)


class TestCameras:
    def test_the_corners_of_a_frustum_project_to_the_corners_of_the_image(self) -> None:
        K = np.array([[20.0, 0, 9], [0, 24, 5], [0, 0, 1]])
        corners = frustum_corners(K, (12, 16), size=0.5)
        np.testing.assert_allclose(corners[:, 2], 24 * 0.5 / 12)  # f size / H
        pixels = (corners / corners[:, 2:]) @ K.T
        np.testing.assert_allclose(pixels[:, :2], [[-0.5, -0.5], [15.5, -0.5], [15.5, 11.5], [-0.5, 11.5]])
        assert np.isclose(corners[3, 1] - corners[0, 1], 0.5)  # as high as its size

    def test_the_base_of_a_wide_angle_keeps_off_the_centre(self) -> None:
        K = np.array([[0.5, 0, 7.5], [0, 0.5, 5.5], [0, 0, 1]])
        np.testing.assert_allclose(frustum_corners(K, (12, 16), size=0.5)[:, 2], 0.05)  # size / 10, not 0.5 * 0.5 / 12

    def test_wires_are_closed_tubes_along_the_edges(self) -> None:
        corners = frustum_corners(np.array([[20.0, 0, 9], [0, 24, 5], [0, 0, 1]]), (12, 16), size=0.5)
        vertices, faces = frustum_wires(corners, np.zeros(3), 0.5)
        assert vertices.shape == (48, 3) and faces.shape == (48, 3)
        ends = np.concatenate([np.zeros((1, 3)), corners])
        to_end = np.linalg.norm(vertices[:, None] - ends, axis=-1).min(axis=1)
        np.testing.assert_allclose(to_end, 0.015 * 0.5)
        sides = np.sort(faces[:, [[0, 1], [1, 2], [2, 0]]].reshape(-1, 2), axis=1)
        shared = np.unique(sides, axis=0, return_counts=True)[1]
        # of the nine sides along and across each tube the six at its open ends belong to one face only
        assert np.bincount(shared).tolist() == [0, 8 * 6, 8 * 6]

    def test_each_registered_view_has_a_frustum_with_its_photo(self, tmp_path: Path) -> None:
        statistics, glb = written(tmp_path, two_views().views, dataclasses.replace(CAMERAS, camera_size=0.4))
        wires_0, photo_0, wires_1, photo_1 = glb.primitives("cameras")
        assert statistics.drawn_camera_size == 0.4
        # focal 10 and 12 rows: the base is at depth 10 * 0.4 / 12, 0.4 high and 0.4 * 16 / 12 wide
        np.testing.assert_allclose(photo_0["POSITION"][:, 2], 1 / 3, rtol=1e-6)
        np.testing.assert_allclose(np.ptp(photo_0["POSITION"], axis=0)[:2], [0.4 * 16 / 12, 0.4], rtol=1e-6)
        # half a unit to the right of the first camera
        np.testing.assert_allclose(photo_1["POSITION"], photo_0["POSITION"] - [0.5, 0, 0], atol=1e-6)
        # upright: the top of the image (v = 0) is up (y), its left (u = 0) is on the left of who looks along z (+x)
        np.testing.assert_allclose(photo_0["TEXCOORD_0"][np.argmax(photo_0["POSITION"] @ [1, 1, 0])], [0, 0])
        colours = [p["material"]["pbrMetallicRoughness"]["baseColorFactor"] for p in (wires_0, wires_1)]
        assert colours == [[1, 0, 0, 1], [0, 0, 1, 1]]
        assert glb.texture(photo_1["material"]).shape == (12, 16, 3)

    def test_a_lens_that_distorts_shows_a_straight_photo(self, tmp_path: Path) -> None:
        """A vertical line of the scene, bent in the photo, is straight and in its place on the base of the camera."""
        W, H, focal, k1, line_x = 160, 120, 120.0, -0.2, -0.5
        x, y = np.meshgrid(np.arange(W), np.arange(H))
        seen = np.stack([x - (W - 1) / 2, y - (H - 1) / 2], -1) / focal
        straight = undistort(seen, k1)
        light = np.exp(-(((straight[..., 0] - line_x) * focal / 2) ** 2))
        photo = np.repeat((255 * light).astype(np.uint8)[..., None], 3, -1)
        assert np.ptp(photo[..., 0].argmax(1)) > 3
        bent = view(np.full((H, W), 2.0), rgb=photo, focal=focal, distortion=k1)
        _, glb = written(tmp_path, [bent], CAMERAS)
        _, base = glb.primitives("cameras")
        picture = glb.texture(base["material"])[..., 0]
        assert np.ptp(picture.argmax(1)) <= 1
        # glTF looks along +z with x to the left
        left, right = (-base["POSITION"][k, 0] / base["POSITION"][k, 2] for k in (0, 1))
        place = (picture.argmax(1).mean() + 0.5) / picture.shape[1]
        assert left + place * (right - left) == pytest.approx(line_x, abs=1 / focal)

    def test_colours_repeat_after_the_eleventh(self, tmp_path: Path) -> None:
        views = [view(np.full((4, 5), 2.0), index=i) for i in range(13)]
        wires = written(tmp_path, views, CAMERAS)[1].primitives("cameras")[::2]
        names = [p["material"]["name"] for p in wires]
        assert len(COLOURS) == 11 == len(set(names)) and names[11:] == names[:2]

    def test_a_point_cloud_carries_small_photos_only(self, tmp_path: Path) -> None:
        options = dataclasses.replace(CAMERAS, as_pointcloud=True, max_points=100)
        _, glb = written(tmp_path, [view(np.full((96, 512), 2.0))], options)
        _, photo = glb.primitives("cameras")
        assert glb.texture(photo["material"]).shape == (48, 256, 3)

    def test_default_size_follows_the_spacing_within_bounds(self) -> None:
        line = np.arange(5)[:, None] * np.array([[0.2, 0, 0]])
        assert default_camera_size(line, 1.0) == pytest.approx(0.08)  # 0.4 of 0.2
        assert default_camera_size(10 * line, 1.0) == pytest.approx(0.1)
        assert default_camera_size(0 * line, 1.0) == pytest.approx(0.02)  # all in one place
        assert default_camera_size(line[:1], 3.0) == pytest.approx(0.3)


class TestOtherReaders:
    def test_trimesh_reads_the_meshes_back(self, tmp_path: Path) -> None:
        written(tmp_path, two_views().views, dataclasses.replace(CAMERAS, camera_size=0.1))
        scene = trimesh.load_scene(tmp_path / "scene.glb")
        assert len(scene.geometry) == 2 + 2 * 2
        mesh = scene.geometry["000 img 0.jpg"]
        assert len(mesh.faces) == 2 * 11 * 15
        assert mesh.visual.material.baseColorTexture.size == (16, 12)
        np.testing.assert_allclose(scene.bounds[1], [1.5, 1.1, 2], atol=1e-5)  # the left edge: 7.5 / 10 * 2

    def test_trimesh_reads_points_back(self, tmp_path: Path) -> None:
        written(tmp_path, two_views().views, POINTS)
        [points] = trimesh.load_scene(tmp_path / "scene.glb").geometry.values()
        assert points.vertices.shape == (2 * 12 * 16, 3) and points.colors.shape == (2 * 12 * 16, 4)

    def test_file_names_that_are_not_unicode_do_no_harm(self, tmp_path: Path) -> None:
        _, glb = written(tmp_path, [view(np.full((4, 5), 2.0), file="caf\udce9.jpg")], MESH)
        assert glb.document["meshes"][0]["name"] == "000 caf?.jpg"


@pytest.mark.parametrize(
    ("wrong", "names"),
    [
        ({"min_conf_thr": float("nan")}, "`min_conf_thr`"),
        ({"min_conf_thr": float("inf")}, "`min_conf_thr`"),
        ({"max_points": 0}, "`max_points`"),
        ({"camera_size": -1.0}, "`camera_size`"),
        ({"depth_jump": 0.0}, "`depth_jump`"),
    ],
)
def test_impossible_options_are_refused(wrong: dict[str, Any], names: str) -> None:
    with pytest.raises(InputError, match=names):
        SceneOptions(**wrong)
