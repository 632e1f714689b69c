"""The surfaces of a scene file: photos on them, each place once, one mesh from all, small files."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from export_scene import Glb, matches, pose, read_glb, two_views, view
from PIL import Image
from scipy.spatial import cKDTree

from mast3r_sfm.errors import EmptySceneError, InputError
from mast3r_sfm.export import surface
from mast3r_sfm.export.fusion import fused_meshes
from mast3r_sfm.export.glb import write_glb
from mast3r_sfm.export.ply import write_ply
from mast3r_sfm.export.surface import PlacedView, placed_views
from mast3r_sfm.export.textures import photo_textures, texture_coordinates
from mast3r_sfm.export.thinning import best_view_masks, whole_surfaces
from mast3r_sfm.export.usdz import write_usdz
from mast3r_sfm.options import Compression, SceneKind, SceneOptions, Up
from mast3r_sfm.reconstruction import Reconstruction
from mast3r_sfm.types import ReconstructedView

OPTIONS = SceneOptions(cameras=False, up=Up.FIRST_CAMERA)
H, W, FOCAL = 48, 64, 60.0


def wall(index: int, x: float = 0.0, distance: float = 3.0, **changes: object) -> ReconstructedView:
    """A camera at (x, 0, 3 - distance) in front of the wall z = 3."""
    depth = np.full((H, W), distance)
    return view(depth, index=index, pose=pose(0, [x, 0, 3 - distance]), focal=FOCAL, **changes)  # type: ignore[arg-type]


def walls() -> Reconstruction:
    """Three cameras in a row, that see 3.2 of the wall, 0.8 apart; every two of them share matches."""
    pair = [matches(i, j, [[1, 1]], [[1, 1]], [1]) for i, j in ((0, 1), (0, 2), (1, 2))]
    return Reconstruction(tuple(wall(i, 0.8 * i) for i in range(3)), tuple(pair))


def counted(placed: list[PlacedView], masks: list[np.ndarray]) -> np.ndarray:
    """How many views keep each cell of the wall, on a grid of 0.1, inside of what they see."""
    count = np.zeros((18, 40), dtype=int)
    for one, mask in zip(placed, masks, strict=True):
        x, y, _ = one.points[mask].T
        cells = np.unique(np.stack([np.floor((y + 0.9) * 10), np.floor((x + 1.2) * 10)], -1).astype(int), axis=0)
        inside = ((cells >= 0) & (cells < count.shape)).all(axis=1)
        count[tuple(cells[inside].T)] += 1
    return count


class TestBestView:
    def test_every_place_stays_and_few_twice(self) -> None:
        scene = walls()
        placed = placed_views(scene.views, OPTIONS)
        count = counted(placed, best_view_masks(placed, scene.matches, 0.03))
        assert count.min() >= 1
        assert (count > 1).mean() < 0.35  # patches overlap by a few pixels
        everything = counted(placed, [one.kept for one in placed])
        assert (everything > 1).mean() > 0.7

    def test_the_photo_from_nearby_is_kept(self) -> None:
        views = (wall(0), wall(1, distance=1.0))
        placed = placed_views(views, OPTIONS)
        far, near = best_view_masks(placed, [matches(0, 1, [[1, 1]], [[1, 1]], [1])], 0.03)
        assert near.all()
        assert not far[20:28, 28:36].any() and far[:10].all()  # what the near one does not show stays

    def test_views_without_matches_are_not_compared(self) -> None:
        scene = walls()
        assert all(mask.all() for mask in best_view_masks(placed_views(scene.views, OPTIONS), (), 0.03))

    def test_two_sides_of_a_board_both_stay(self) -> None:
        behind = view(np.full((H, W), 3.0), index=1, pose=pose(180, [0, 0, 6]), focal=FOCAL)
        pair = matches(0, 1, [[1, 1]], [[1, 1]], [1])
        assert all(mask.all() for mask in best_view_masks(placed_views((wall(0), behind), OPTIONS), [pair], 0.03))

    def test_small_holes_close_and_large_ones_stay(self) -> None:
        conf = np.full((H, W), 10.0)
        conf[5:7, 5:8] = 0  # 6 of 3072 pixels
        conf[20:30, 20:40] = 0
        [mask] = whole_surfaces(placed_views([wall(0, conf=conf)], OPTIONS), 0.03)
        assert mask[5:7, 5:8].all() and not mask[21:29, 21:39].any()

    def test_specks_go(self) -> None:
        conf = np.zeros((H, W))
        conf[:, 30:] = 10
        conf[10:12, 10] = 10
        conf[20:22, 10:12] = 10
        [mask] = whole_surfaces(placed_views([wall(0, conf=conf)], OPTIONS), 0.03)
        assert mask[:, 30:].all() and not mask[10:12, 10].any()

    def test_an_outline_does_not_slide_into_the_background(self) -> None:
        depth = np.full((H, W), 2.0)
        depth[:, 40:] = 3.0
        depth[:, 36:41] = np.linspace(2, 3, 7)[1:-1]  # in steps too steep for the surface and too small for an edge
        placed = placed_views([view(depth, focal=FOCAL)], OPTIONS)
        [mask] = whole_surfaces(placed, 0.5)
        assert mask[:, :34].all() and not mask[:, 36:38].any()

    def test_a_point_far_outside_does_not_shrink_the_scene(self) -> None:
        depth = np.full((H, W), 3.0)
        depth[0, 0] = 500
        [one] = placed_views([view(depth, focal=FOCAL)], OPTIONS)
        assert not one.kept[0, 0] and one.kept.sum() == H * W - 1


class TestVeryManyViews:
    def test_rows_and_columns_are_left_out_and_everything_stays_in_its_place(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(surface, "_MOST_PIXELS", 3 * H * W / 3.9)
        statistics = write_glb(walls(), tmp_path / "s.glb", dataclasses.replace(OPTIONS, cameras=True))
        assert statistics.stride == 2 and statistics.num_kept == 3 * H * W
        glb = read_glb(tmp_path / "s.glb")
        meshes = glb.primitives("surfaces")
        points = np.concatenate([mesh["POSITION"] for mesh in meshes])
        # the middles of the first and of the last pixel looked at, of the first and of the last camera
        np.testing.assert_allclose(points[:, 0].max(), 31.5 * 3 / FOCAL, rtol=1e-5)
        np.testing.assert_allclose(points[:, 0].min(), -1.6 - (62 - 31.5) * 3 / FOCAL, rtol=1e-5)
        first = meshes[0]
        columns = first["TEXCOORD_0"][:, 0] * W - 0.5
        np.testing.assert_allclose(first["POSITION"][:, 0], -(columns - 31.5) * 3 / FOCAL, atol=1e-4)
        assert glb.document["cameras"][0]["perspective"]["yfov"] == pytest.approx(2 * np.arctan(24 / FOCAL))


class TestTextures:
    @pytest.fixture
    def photographed(self, tmp_path: Path) -> ReconstructedView:
        """The photo is twice as large as the network's image, red on its left quarter and blue elsewhere."""
        photo = np.zeros((2 * H, 2 * W, 3), np.uint8)
        photo[:, : W // 2], photo[:, W // 2 :] = (200, 0, 0), (0, 0, 200)
        Image.fromarray(photo).save(tmp_path / "a.png")
        return wall(0, file=str(tmp_path / "a.png"))

    def test_the_original_photo_lies_right_on_the_surface(
        self, photographed: ReconstructedView, tmp_path: Path
    ) -> None:
        write_glb(Reconstruction((photographed,), ()), tmp_path / "s.glb", OPTIONS)
        glb = read_glb(tmp_path / "s.glb")
        [mesh] = glb.primitives("surfaces")
        texture = glb.texture(mesh["material"])
        assert texture.shape == (2 * H, 2 * W, 3)
        # x to the left: the left quarter of the photo is beyond x = 16 pixels of the network's image
        pixel_x = (W - 1) / 2 - mesh["POSITION"][:, 0] / 3 * FOCAL
        u = np.floor(mesh["TEXCOORD_0"][:, 0] * 2 * W).astype(int)
        red = texture[H, np.clip(u, 0, 2 * W - 1), 0] > 100
        clear = np.abs(pixel_x - 15.5) > 1.5
        assert np.array_equal(red[clear], pixel_x[clear] < 15.5)

    def test_its_size_is_an_option(self, photographed: ReconstructedView) -> None:
        [texture] = photo_textures([photographed], 100)
        assert texture.camera.size == (100, 75)
        np.testing.assert_allclose(
            texture_coordinates(np.array([[-0.5, -0.5], [W - 0.5, H - 0.5]]), photographed, texture.camera),
            [[0, 0], [1, 1]],
            atol=1e-9,
        )

    def test_a_photo_that_is_gone_gives_way_to_the_networks_image(self, caplog: pytest.LogCaptureFixture) -> None:
        [texture] = photo_textures([wall(0)], 2048)
        assert texture.camera.size == (W, H)
        assert "1 of 1 photos are not where they were" in caplog.text and "img 0.jpg" in caplog.text


class TestCameraNodes:
    def test_a_camera_is_named_after_its_photo_and_looks_as_it_does(self, tmp_path: Path) -> None:
        scene = two_views()
        write_glb(scene, tmp_path / "s.glb", SceneOptions(camera_size=0.4, up=Up.FIRST_CAMERA))
        glb = read_glb(tmp_path / "s.glb")
        nodes = [node for node in glb.document["nodes"] if "camera" in node]
        assert [node["name"] for node in nodes] == ["img 0.jpg", "img 1.jpg"]
        lens = glb.document["cameras"][nodes[1]["camera"]]["perspective"]
        # 12 rows and focal 10 of the network's image
        assert lens["yfov"] == pytest.approx(2 * np.arctan(6 / 10)) and lens["aspectRatio"] == pytest.approx(16 / 12)
        # a camera of glTF looks along -z, with x right; the file's z is forward, x left, y up
        matrix = glb.matrix(nodes[1])
        np.testing.assert_allclose(matrix[:3, :3], np.diag([-1, 1, -1]), atol=1e-9)
        np.testing.assert_allclose(matrix[:3, 3], [-0.5, 0, 0], atol=1e-9)
        # the base of its own pyramid, at 10 * 0.4 / 12, is nearer than what it shows
        assert 1 / 3 < lens["znear"] < 0.34

    def test_a_principal_point_is_in_the_pyramid_and_named(self, tmp_path: Path) -> None:
        shifted = wall(0, K=np.array([[FOCAL, 0, 20.0], [0, FOCAL, 30], [0, 0, 1]]))
        write_glb(Reconstruction((shifted,), ()), tmp_path / "s.glb", SceneOptions(camera_size=1, up=Up.FIRST_CAMERA))
        glb = read_glb(tmp_path / "s.glb")
        _, base = glb.primitives("cameras")
        pixels = -base["POSITION"][:, :2] / base["POSITION"][:, 2:] * FOCAL + [20, 30]
        np.testing.assert_allclose(pixels, [[-0.5, -0.5], [63.5, -0.5], [63.5, 47.5], [-0.5, 47.5]], atol=1e-4)
        np.testing.assert_allclose(glb.document["cameras"][0]["extras"]["K_original"], shifted.K_original)


class TestFused:
    def meshes(self, scene: Reconstruction, max_faces: int = 10**6) -> tuple[np.ndarray, np.ndarray]:
        """Vertices, and the corners (F, 3, 3) of all faces."""
        placed = placed_views(scene.registered, OPTIONS)
        found = fused_meshes(placed, whole_surfaces(placed, 0.03), max_faces)
        vertices = np.concatenate([mesh.vertices for mesh in found])
        return vertices, np.concatenate([mesh.vertices[mesh.faces] for mesh in found])

    def test_views_that_differ_meet_in_the_middle(self) -> None:
        scene = Reconstruction(
            (wall(0), dataclasses.replace(wall(1, 0.1), depth=np.full((H, W), 3.06, np.float32))), ()
        )
        vertices, _ = self.meshes(scene)
        middle = vertices[(np.abs(vertices[:, 0]) < 1) & (np.abs(vertices[:, 1]) < 0.8)]
        assert np.abs(middle[:, 2] - 3.03).max() < 0.02

    def test_one_layer_without_holes_that_faces_the_cameras(self) -> None:
        _, corners = self.meshes(walls())
        twice = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
        assert (twice[:, 2] < 0).all()
        # the wall that the three see is 3.2 + 2 * 0.8 by 2.4, less up to two voxels of 1.5 * 3 / 60 on every side
        assert (4.8 - 0.3) * (2.4 - 0.3) < -0.5 * twice[:, 2].sum() < 4.8 * 2.4
        border = self.border(corners)
        # the only open sides are those around the wall
        assert ((np.abs(border[:, 1]) > 1.05) | (border[:, 0] < -1.45) | (border[:, 0] > 3.05)).all()

    @staticmethod
    def border(corners: np.ndarray) -> np.ndarray:
        """(n, 3) ends of the sides that only one face has; no side has more than two."""
        points, faces = np.unique(np.round(corners.reshape(-1, 3), 6), axis=0, return_inverse=True)
        faces = faces.reshape(-1, 3)
        sides = np.sort(np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]]), axis=1)
        unique, count = np.unique(sides, axis=0, return_counts=True)
        assert count.max() == 2
        return points[np.unique(unique[count == 1])]

    def test_a_grazing_floor_has_no_gaps(self) -> None:
        y = (np.arange(H) - (H - 1) / 2) / 200
        down = y * np.cos(0.35) + np.sin(0.35)  # of rays at depth 1: they meet the floor at 13 to 27 degrees
        _, corners = self.meshes(Reconstruction((view(np.repeat((1.0 / down)[:, None], W, axis=1), focal=200),), ()))
        border = self.border(corners)
        x, y = border[:, 0] / border[:, 2] * 200 + (W - 1) / 2, border[:, 1] / border[:, 2] * 200 + (H - 1) / 2
        inside = np.minimum(np.minimum(x, W - 1 - x), np.minimum(y, H - 1 - y))
        assert inside.max() < 3  # pixels from the edge of the image

    def test_the_budget_is_kept(self) -> None:
        for budget in (300, 2000):
            _, corners = self.meshes(walls(), budget)
            assert 0.3 * budget < len(corners) <= budget

    def test_in_a_file(self, tmp_path: Path) -> None:
        statistics = write_glb(
            walls(), tmp_path / "s.glb", dataclasses.replace(OPTIONS, scene=SceneKind.FUSED, max_points=3000)
        )
        meshes = read_glb(tmp_path / "s.glb").primitives("surfaces")
        assert sum(len(mesh["faces"]) for mesh in meshes) == statistics.num_faces <= 3000
        for mesh in meshes:
            assert mesh["TEXCOORD_0"].min() >= -1e-3 and mesh["TEXCOORD_0"].max() <= 1 + 1e-3


def packed(tmp_path: Path, compress: Compression, as_pointcloud: bool = False) -> Glb:
    options = dataclasses.replace(OPTIONS, compress=compress, as_pointcloud=as_pointcloud)
    write_glb(Reconstruction((wall(0),), ()), tmp_path / "s.glb", options)
    return read_glb(tmp_path / "s.glb")


class TestCompression:
    """Faces are compared by their middles: their order, and which corner is the first, are the library's choice."""

    def plain(self, tmp_path: Path) -> np.ndarray:
        [mesh] = packed(tmp_path, Compression.NONE).primitives("surfaces")
        return self.middles(mesh["POSITION"], mesh["TEXCOORD_0"], mesh["faces"])

    def plain_and_packed(self, folder: Path, compress: Compression) -> tuple[np.ndarray, Glb]:
        """`plain`, and the compressed file, which has less than half its bytes."""
        expected = self.plain(folder)
        size = (folder / "s.glb").stat().st_size
        glb = packed(folder, compress)
        assert (folder / "s.glb").stat().st_size < 0.5 * size
        return expected, glb

    @staticmethod
    def middles(vertices: np.ndarray, uv: np.ndarray, faces: np.ndarray) -> np.ndarray:
        """(F, 5) mean position and texture coordinates of every face."""
        return np.concatenate([vertices[faces].mean(axis=1), uv[faces].mean(axis=1)], axis=1)

    @staticmethod
    def assert_same(found: np.ndarray, expected: np.ndarray) -> None:
        assert len(found) == len(expected)
        distance, partner = cKDTree(expected).query(found)
        assert distance.max() < 5e-4 and len(np.unique(partner)) == len(expected)

    def test_meshopt_unpacks_to_the_same_surface(self, tmp_path: Path) -> None:
        meshopt = pytest.importorskip("meshopt")
        expected, glb = self.plain_and_packed(tmp_path, Compression.MESHOPT)
        document = glb.document
        assert document["extensionsRequired"] == ["EXT_meshopt_compression"]
        assert document["buffers"][1]["extensions"]["EXT_meshopt_compression"] == {"fallback": True}

        def unpacked(accessor: int) -> np.ndarray:
            a = document["accessors"][accessor]
            v = document["bufferViews"][a["bufferView"]]
            e = v["extensions"]["EXT_meshopt_compression"]
            assert (
                v["byteOffset"] % 4 == 0 and v["byteOffset"] + v["byteLength"] <= document["buffers"][1]["byteLength"]
            )
            assert v["byteLength"] == e["byteStride"] * e["count"] and e["count"] == a["count"]
            data = glb.binary[e["byteOffset"] : e["byteOffset"] + e["byteLength"]]
            rows = meshopt.decode_gltf_buffer(data, e["count"], e["byteStride"], e["mode"], e.get("filter"))
            return rows if e["mode"] == "TRIANGLES" else np.ascontiguousarray(rows).view(np.float32)

        [primitive] = document["meshes"][0]["primitives"]
        vertices, uv = (unpacked(primitive["attributes"][name]) for name in ("POSITION", "TEXCOORD_0"))
        bounds = document["accessors"][primitive["attributes"]["POSITION"]]
        np.testing.assert_allclose([bounds["min"], bounds["max"]], [vertices.min(0), vertices.max(0)])
        self.assert_same(self.middles(vertices, uv, unpacked(primitive["indices"]).reshape(-1, 3)), expected)

    def test_draco_unpacks_to_the_same_surface(self, tmp_path: Path) -> None:
        draco = pytest.importorskip("DracoPy")
        expected, glb = self.plain_and_packed(tmp_path, Compression.DRACO)
        [primitive] = glb.document["meshes"][0]["primitives"]
        extension = primitive["extensions"]["KHR_draco_mesh_compression"]
        v = glb.document["bufferViews"][extension["bufferView"]]
        mesh = draco.decode(glb.binary[v["byteOffset"] : v["byteOffset"] + v["byteLength"]])
        ids = {one["unique_id"]: one["data"].shape[1] for one in mesh.attributes}
        assert {name: ids[k] for name, k in extension["attributes"].items()} == {"POSITION": 3, "TEXCOORD_0": 2}
        assert glb.document["accessors"][primitive["indices"]]["count"] == mesh.faces.size
        self.assert_same(self.middles(mesh.points, mesh.tex_coord, mesh.faces), expected)

    def test_points_are_packed_by_meshopt_only(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="`compress=draco` packs meshes only"):
            SceneOptions(compress=Compression.DRACO, as_pointcloud=True)
        pytest.importorskip("meshopt")
        glb = packed(tmp_path, Compression.MESHOPT, as_pointcloud=True)
        assert all("extensions" in view for view in glb.document["bufferViews"])

    def test_a_missing_library_is_named_with_its_cure(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("mast3r_sfm.export.extras.find_spec", lambda name: None)
        with pytest.raises(
            InputError, match=r"`compress=draco` needs the package DracoPy: pip install 'mast3r-sfm\[draco\]'"
        ):
            packed(tmp_path, Compression.DRACO)
        assert not list(tmp_path.iterdir())
        with pytest.raises(InputError, match="needs the package usd-core"):
            write_usdz(walls(), tmp_path / "s.usdz", OPTIONS)


class TestPly:
    def read(self, path: Path) -> np.ndarray:
        """By the format's own words, without the writer's."""
        header, data = path.read_bytes().split(b"end_header\n", 1)
        lines = header.decode("ascii").splitlines()
        assert lines[:2] == ["ply", "format binary_little_endian 1.0"]
        kinds = {"float": "<f4", "uchar": "u1"}
        fields = [(line.split()[2], kinds[line.split()[1]]) for line in lines if line.startswith("property")]
        [count] = [int(line.split()[2]) for line in lines if line.startswith("element vertex")]
        points = np.frombuffer(data, np.dtype(fields))
        assert len(points) == count
        return points

    def test_every_point_is_there_with_all_that_is_known(self, tmp_path: Path) -> None:
        conf = np.linspace(4, 9, H * W).reshape(H, W)
        one = wall(0, 0.5, conf=conf)
        write_ply(Reconstruction((one,), ()), tmp_path / "s.ply", OPTIONS)
        points = self.read(tmp_path / "s.ply")
        world = np.stack([points[name] for name in "xyz"], -1)
        np.testing.assert_allclose(world, one.points_world().reshape(-1, 3), atol=1e-6)
        colours = np.stack([points[name] for name in ("red", "green", "blue")], -1)
        assert np.array_equal(colours, one.rgb.reshape(-1, 3))
        np.testing.assert_allclose(points["confidence"], conf.ravel(), rtol=1e-6)
        normals = np.stack([points[name] for name in ("nx", "ny", "nz")], -1)
        np.testing.assert_allclose(normals, np.broadcast_to([0, 0, -1], normals.shape), atol=1e-5)  # to the camera

    def test_the_budget_and_the_threshold(self, tmp_path: Path) -> None:
        write_ply(walls(), tmp_path / "s.ply", dataclasses.replace(OPTIONS, max_points=500))
        assert len(self.read(tmp_path / "s.ply")) == 500
        with pytest.raises(EmptySceneError, match="keeps no point"):
            write_ply(walls(), tmp_path / "t.ply", dataclasses.replace(OPTIONS, min_conf_thr=99))
        assert not (tmp_path / "t.ply").exists()

    def test_in_a_result(self, tmp_path: Path) -> None:
        walls().save(tmp_path / "out", OPTIONS, exports=["ply"])
        assert len(self.read(tmp_path / "out" / "scene.ply")) == 3 * H * W


def test_usdz_holds_the_meshes_and_their_photos(tmp_path: Path) -> None:
    usd = pytest.importorskip("pxr.Usd")
    geometry = pytest.importorskip("pxr.UsdGeom")
    write_usdz(Reconstruction((wall(0),), ()), tmp_path / "s.usdz", OPTIONS)
    stage = usd.Stage.Open(str(tmp_path / "s.usdz"))
    assert geometry.GetStageUpAxis(stage) == "Y" and geometry.GetStageMetersPerUnit(stage) == 1
    [mesh] = [geometry.Mesh(prim) for prim in stage.Traverse() if prim.IsA(geometry.Mesh)]
    assert len(mesh.GetFaceVertexCountsAttr().Get()) == 2 * (H - 1) * (W - 1)
    [photo] = [prim for prim in stage.Traverse() if prim.HasAttribute("inputs:file")]
    assert photo.GetAttribute("inputs:file").Get().resolvedPath.endswith("s.usdz[photo_000.jpg]")
