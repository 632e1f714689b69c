"""Depth and confidence, cameras, matches, the stored reconstruction and the picture of matches."""

import dataclasses
import json
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from export_scene import matches, pose, two_views, view

from mast3r_sfm.errors import InputError
from mast3r_sfm.export.cameras import write_cameras
from mast3r_sfm.export.depth import (
    ColourScale,
    confidence_picture,
    confidence_scale,
    depth_picture,
    depth_scale,
    write_depth_maps,
)
from mast3r_sfm.export.files import to_strict_json, write_json, write_npz
from mast3r_sfm.export.match_picture import draw_matches, matches_picture, spread_selection
from mast3r_sfm.export.matches import write_matches
from mast3r_sfm.export.store import load_reconstruction, save_reconstruction
from mast3r_sfm.options import SceneOptions
from mast3r_sfm.types import ImageTransform, ReconstructedScene, ReconstructedView, Tracks


def read_png(path: Path) -> np.ndarray:
    picture = cv2.imread(str(path))
    assert picture is not None
    return picture[:, :, ::-1]


def turbo(level: int) -> list[int]:
    return cv2.applyColorMap(np.array([[level]], np.uint8), cv2.COLORMAP_TURBO)[0, 0, ::-1].tolist()


class TestJson:
    def test_what_json_cannot_say_becomes_null(self, tmp_path: Path) -> None:
        write_json(tmp_path / "a.json", {"a": [float("nan"), np.float32("inf"), 1.5], "b": np.eye(2), 3: (True, None)})
        text = (tmp_path / "a.json").read_text()
        assert "NaN" not in text and "Infinity" not in text
        assert json.loads(text) == {"a": [None, None, 1.5], "b": [[1, 0], [0, 1]], "3": [True, None]}

    def test_names_that_are_not_unicode_survive(self, tmp_path: Path) -> None:
        write_json(tmp_path / "a.json", ["caf\udce9.jpg", "Zürich.jpg"])
        assert json.loads((tmp_path / "a.json").read_text()) == ["caf\udce9.jpg", "Zürich.jpg"]

    def test_anything_else_is_an_error(self) -> None:
        with pytest.raises(TypeError, match="object cannot be written as JSON"):
            to_strict_json({"a": object()})


class TestCameras:
    def read(self, tmp_path: Path, views: Iterable[ReconstructedView]) -> dict[str, Any]:
        write_cameras(ReconstructedScene(tuple(views), ()), tmp_path / "cameras.json", SceneOptions())
        return json.loads((tmp_path / "cameras.json").read_text(), parse_constant=lambda name: pytest.fail(name))

    def test_the_fields_are_those_promised(self, tmp_path: Path) -> None:
        document = self.read(tmp_path, two_views().views)
        assert set(document) == {"convention", "units", "scene_glb", "georeference", "images"}
        assert set(document["scene_glb"]) == {"up_from", "up_in_world", "gltf_from_world", "world_from_gltf"}
        assert document["units"] == "metres (approximate)"
        for words in ("OpenCV", "camera-to-world", "Pixel centres lie at integers", "z-depth"):
            assert words in document["convention"]
        assert [set(image) for image in document["images"]] == 2 * [
            {
                *("clip", "clip_time_s", "gps", "verdict", "group", "scene"),
                *("index", "file", "original_size", "network_size", "network_from_original", "K_network", "K_original"),
                *("world_from_cam", "registered", "median_reprojection_error_px", "num_matches", "mean_confidence"),
                *("distortion_k1", "refined", "num_track_observations", "track_error_px"),
                *("focal_std_px", "position_std", "num_confirmed_features", "num_explained_features", "doubt"),
            }
        ]

    def test_intrinsics_of_the_original_by_hand(self, tmp_path: Path) -> None:
        # a photo of 64 x 48 halved to 32 x 24, of which columns 8..23 and rows 6..17 were kept
        transform = ImageTransform((64, 48), (32, 24), (8, 6), (16, 12))
        entry = self.read(tmp_path, [view(np.full((12, 16), 2.0), transform=transform)])["images"][0]
        assert entry["original_size"] == [64, 48] and entry["network_size"] == [16, 12]
        assert entry["K_network"] == [[10, 0, 7.5], [0, 10, 5.5], [0, 0, 1]]
        # pixel 7.5 of the crop is 15.5 of the resized image, whose edges run from -0.5: (15.5 + 0.5) * 2 - 0.5 = 31.5
        np.testing.assert_allclose(entry["K_original"], [[20.0, 0, 31.5], [0.0, 20, 23.5], [0.0, 0, 1]])
        np.testing.assert_allclose(entry["network_from_original"], [[0.5, 0, -8.25], [0.0, 0.5, -6.25], [0.0, 0, 1]])

    def test_depth_and_camera_give_the_points_as_the_text_says(self, tmp_path: Path) -> None:
        one = view(np.linspace(1, 3, 12).reshape(3, 4), pose=pose(30, [1, 2, 3]))
        entry = self.read(tmp_path, [one])["images"][0]
        x, y = 3, 1
        in_camera = one.depth[y, x] * (np.linalg.inv(entry["K_network"]) @ [x, y, 1])
        in_world = np.array(entry["world_from_cam"]) @ [*in_camera, 1]
        np.testing.assert_allclose(in_world[:3], one.points_world()[y, x], rtol=1e-6)

    def test_an_image_that_is_not_registered_has_no_pose(self, tmp_path: Path) -> None:
        lost = view(np.full((3, 4), 2.0), registered=False, median_reprojection_error_px=float("nan"), num_matches=0)
        entry = self.read(tmp_path, [lost])["images"][0]
        assert entry["registered"] is False
        assert entry["world_from_cam"] is None and entry["median_reprojection_error_px"] is None


class TestDepth:
    def test_files_hold_the_maps(self, tmp_path: Path) -> None:
        views = [view(np.full((3, 4), 2.0), conf=5.0), view([[1, np.nan, 3]], conf=[[1, 2, 4]], index=1)]
        write_depth_maps(ReconstructedScene(tuple(views), ()), tmp_path)
        assert sorted(p.name for p in tmp_path.iterdir()) == sorted(
            f"{kind}_{i:03d}.{ending}" for kind in ("depth", "confidence") for i in (0, 1) for ending in ("npy", "png")
        )
        for i, one in enumerate(views):
            depth, conf = (np.load(tmp_path / f"{kind}_{i:03d}.npy") for kind in ("depth", "confidence"))
            assert depth.dtype == conf.dtype == np.float32
            np.testing.assert_array_equal(depth, one.depth)
            np.testing.assert_array_equal(conf, one.conf)
            assert read_png(tmp_path / f"depth_{i:03d}.png").shape == (*one.depth.shape, 3)

    def test_views_share_one_scale(self, tmp_path: Path) -> None:
        near, far = view(np.full((8, 8), 1.0)), view(np.full((8, 8), 4.0), index=1)
        lost = view(np.full((8, 8), 1000.0), index=2, registered=False)
        write_depth_maps(ReconstructedScene((near, far, lost), ()), tmp_path)
        pictures = [read_png(tmp_path / f"depth_{i:03d}.png")[0, 0].tolist() for i in range(3)]
        assert pictures == [turbo(255), turbo(0), turbo(0)]

    def test_colours_by_hand(self) -> None:
        # inverse depths 1, 1/2, 1/4 on a scale from 1/4 to 1: the middle one is at a third
        picture = depth_picture(np.array([[1.0, 2.0, 4.0, 9.0, 0.5]]), ColourScale(1.0, 4.0))
        assert picture[0].tolist() == [turbo(level) for level in (255, 85, 0, 0, 255)]

    def test_invalid_is_black_and_no_colour_is(self) -> None:
        picture = depth_picture(np.array([[np.nan, np.inf, 0, -1, 2]], np.float32), ColourScale(1.0, 4.0))
        assert picture[0, :4].tolist() == 4 * [[0, 0, 0]]
        assert min(sum(turbo(level)) for level in range(256)) > 60

    def test_a_few_wild_depths_do_not_flatten_the_rest(self) -> None:
        depth = np.linspace(2, 4, 10_000).reshape(100, 100)
        wild = depth.copy()
        wild[0] = [1e6] * 50 + [1e-6] * 49 + [np.nan]
        scale = depth_scale([depth, wild])
        assert 1.9 < scale.low < 2.2 and 3.8 < scale.high < 4.1

    def test_confidence_is_coloured_by_its_logarithm(self) -> None:
        # e^0, e^1, e^2: even steps
        picture = confidence_picture(np.exp([[0.0, 1.0, 2.0, np.nan]]), ColourScale(1.0, np.exp(2)))
        viridis = cv2.applyColorMap(np.array([[0, 128, 255]], np.uint8), cv2.COLORMAP_VIRIDIS)[0, :, ::-1]
        assert picture[0, :3].tolist() == viridis.tolist() and picture[0, 3].tolist() == [0, 0, 0]

    def test_maps_without_any_value_or_contrast(self) -> None:
        nothing = np.full((2, 2), np.nan)
        assert not depth_picture(nothing, depth_scale([nothing])).any()
        same = np.full((2, 2), 3.0)
        assert confidence_picture(same, confidence_scale([same])).any()


class TestMatches:
    def test_packed_by_hand_and_read_without_pickle(self, tmp_path: Path) -> None:
        views = tuple(view(np.full((8, 8), 2.0), index=i) for i in range(3))
        pairs = (
            matches(0, 1, [[1, 2], [3, 4]], [[5, 6], [7, 0]], [1.5, 2.5]),
            matches(2, 0, np.zeros((0, 2)), np.zeros((0, 2)), []),
            matches(1, 2, [[0, 7]], [[6, 5]], [3.5]),
        )
        write_matches(ReconstructedScene(views, pairs), tmp_path / "matches.npz")
        with np.load(tmp_path / "matches.npz", allow_pickle=False) as m:
            assert m["pairs"].tolist() == [[0, 1], [2, 0], [1, 2]]
            assert m["offsets"].tolist() == [0, 2, 2, 3]
            assert m["xy_i"].tolist() == [[1, 2], [3, 4], [0, 7]] and m["xy_i"].dtype == np.int32
            assert m["xy_j"].tolist() == [[5, 6], [7, 0], [6, 5]] and m["xy_j"].dtype == np.int32
            assert m["conf"].tolist() == [1.5, 2.5, 3.5] and m["conf"].dtype == np.float32
            assert m["files"].tolist() == ["photos/img 0.jpg", "photos/img 1.jpg", "photos/img 2.jpg"]

    def test_no_pair_at_all(self, tmp_path: Path) -> None:
        write_matches(ReconstructedScene((view(np.full((8, 8), 2.0)),), ()), tmp_path / "matches.npz")
        with np.load(tmp_path / "matches.npz") as m:
            assert m["pairs"].shape == (0, 2) and m["xy_i"].shape == (0, 2) and m["offsets"].tolist() == [0]


class TestStore:
    def everything(self) -> ReconstructedScene:
        rng = np.random.default_rng(0)
        depth = rng.uniform(1, 3, (6, 10)).astype(np.float32)
        depth[0, 0] = np.nan
        conf = rng.uniform(1, 9, (6, 10)).astype(np.float32)
        full = view(
            depth,
            conf=conf,
            file="über/caf\udce9 1.jpg",
            transform=ImageTransform((640, 481), (12, 9), (1, 2), (10, 6)),
            rgb=rng.integers(0, 256, (6, 10, 3)),
            pose=pose(20, [1, 2, 3]),
            mask=rng.random((6, 10)) > 0.5,
            conf_clean=np.where(rng.random((6, 10)) > 0.5, conf, 0).astype(np.float32),
            K=rng.random((3, 3)),
        )
        empty = np.zeros((4, 5), np.float32)
        lost = view(
            np.full((4, 5), np.nan),
            conf=empty,
            conf_clean=empty,
            index=1,
            registered=False,
            median_reprojection_error_px=float("nan"),
            num_matches=0,
        )
        pairs = (
            matches(0, 1, [[1, 2], [3, 4]], [[5, 6], [7, 0]], [1.5, 2.5]),
            matches(1, 0, np.zeros((0, 2)), np.zeros((0, 2)), []),
        )
        tracks = Tracks(
            points=rng.random((3, 3)),
            colours=rng.integers(0, 256, (3, 3)).astype(np.uint8),
            errors_px=rng.random(3).astype(np.float32),
            point_of=np.array([0, 0, 1, 1, 2, 2]),
            view_of=np.array([0, 1, 0, 1, 0, 1]),
            xy=rng.random((6, 2)),
        )
        # a view that is read knows what its file is relative to
        views = tuple(dataclasses.replace(one, folder=str(Path.cwd())) for one in (full, lost))
        return ReconstructedScene(views, pairs, tracks)

    @staticmethod
    def assert_same(value: Any, expected: Any) -> None:
        assert type(value) is type(expected)
        if dataclasses.is_dataclass(expected):
            for field in dataclasses.fields(expected):
                TestStore.assert_same(getattr(value, field.name), getattr(expected, field.name))
        elif isinstance(expected, np.ndarray):
            assert value.dtype == expected.dtype
            np.testing.assert_array_equal(value, expected)
        elif isinstance(expected, torch.Tensor):
            assert value.dtype == expected.dtype and torch.equal(value, expected)
        elif isinstance(expected, tuple):
            assert len(value) == len(expected)
            for one, other in zip(value, expected, strict=True):
                TestStore.assert_same(one, other)
        elif isinstance(expected, float):
            np.testing.assert_array_equal(value, expected)
        else:
            assert value == expected

    def test_what_is_read_is_what_was_written(self, tmp_path: Path) -> None:
        reconstruction = self.everything()
        save_reconstruction(reconstruction, tmp_path / "r.npz")
        self.assert_same(load_reconstruction(tmp_path / "r.npz"), reconstruction)

    def test_the_same_content_is_the_same_file(self, tmp_path: Path) -> None:
        for name in ("a.npz", "b.npz"):
            save_reconstruction(self.everything(), tmp_path / name)
        assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()

    def test_a_missing_file(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match=r"r\.npz does not exist"):
            load_reconstruction(tmp_path / "r.npz")

    @pytest.mark.parametrize("content", [b"", b"not a zip file", b"\x80\x04N."])
    def test_another_file(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "r.npz").write_bytes(content)
        with pytest.raises(InputError, match=r"r\.npz cannot be read"):
            load_reconstruction(tmp_path / "r.npz")

    @pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.999])
    def test_a_truncated_file(self, tmp_path: Path, share: float) -> None:
        path = tmp_path / "r.npz"
        save_reconstruction(self.everything(), path)
        path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
        with pytest.raises(InputError, match="cannot be read"):
            load_reconstruction(path)

    def test_a_damaged_byte(self, tmp_path: Path) -> None:
        path = tmp_path / "r.npz"
        save_reconstruction(self.everything(), path)
        with zipfile.ZipFile(path) as archive:
            entry = archive.getinfo("depth_000.npy")
        data = bytearray(path.read_bytes())
        data[entry.header_offset + 30 + len("depth_000.npy") + 150] ^= 1
        path.write_bytes(data)
        with pytest.raises(InputError, match="cannot be read"):
            load_reconstruction(path)

    def test_a_missing_array(self, tmp_path: Path) -> None:
        save_reconstruction(self.everything(), tmp_path / "r.npz")
        with np.load(tmp_path / "r.npz") as file:
            write_npz(tmp_path / "less.npz", {key: file[key] for key in file if key != "conf_001"})
        with pytest.raises(InputError, match="conf_001"):
            load_reconstruction(tmp_path / "less.npz")

    def test_a_result_without_tracks(self, tmp_path: Path) -> None:
        without = dataclasses.replace(self.everything(), tracks=None)
        save_reconstruction(without, tmp_path / "r.npz")
        self.assert_same(load_reconstruction(tmp_path / "r.npz"), without)

    def test_tracks_that_are_incomplete(self, tmp_path: Path) -> None:
        save_reconstruction(self.everything(), tmp_path / "r.npz")
        with np.load(tmp_path / "r.npz") as file:
            write_npz(tmp_path / "less.npz", {key: file[key] for key in file if key != "track_xy"})
        with pytest.raises(InputError, match="track_xy"):
            load_reconstruction(tmp_path / "less.npz")

    @pytest.mark.parametrize("version", [1, 2])
    def test_results_of_earlier_formats_are_read(self, tmp_path: Path, version: int) -> None:
        everything = self.everything()
        save_reconstruction(everything, tmp_path / "r.npz")
        of_refinement = ("distortion", "refined", "num_track_observations", "track_error_px")
        new = {"track_points", "track_colours", "track_errors_px", "track_point_of", "track_view_of", "track_xy"}
        new |= set(of_refinement) if version == 1 else set()
        with np.load(tmp_path / "r.npz") as file:
            assert new <= set(file)
            old = {key: file[key] for key in file if key not in new}
        write_npz(tmp_path / "old.npz", old | {"format_version": np.array(version)})
        self.assert_same(load_reconstruction(tmp_path / "old.npz"), dataclasses.replace(everything, tracks=None))

    def test_another_version(self, tmp_path: Path) -> None:
        np.savez(tmp_path / "r.npz", format_version=np.array(99))
        with pytest.raises(InputError, match="has format 99, this version of mast3r-sfm reads formats up to 3"):
            load_reconstruction(tmp_path / "r.npz")


class TestMatchPicture:
    left, right = np.full((600, 400, 3), 10, np.uint8), np.full((500, 592, 3), 200, np.uint8)

    def test_images_of_different_sizes_lie_side_by_side(self) -> None:
        picture = matches_picture(self.left, self.right, np.zeros((0, 2)), np.zeros((0, 2)), np.zeros(0), 10)
        assert picture.shape == (600, 400 + 8 + 592, 3)
        assert (picture[:, :400] == 10).all() and (picture[:500, 408:] == 200).all()
        assert (picture[500:, 408:] == 255).all() and (picture[:, 400:408] == 255).all()

    def test_a_match_is_a_line_in_the_colour_of_its_column(self) -> None:
        xy_i, xy_j = np.array([[399, 100]]), np.array([[91, 300]])
        picture = matches_picture(self.left, self.right, xy_i, xy_j, np.ones(1), 10)
        middle = (399 + 408 + 91) // 2, 200
        assert picture[100, 399].tolist() == picture[300, 408 + 91].tolist() == turbo(255)
        assert picture[middle[1], middle[0]].tolist() != [200, 200, 200]
        assert (picture[350:500, 408:] == 200).all()

    def test_small_images_are_enlarged(self, tmp_path: Path) -> None:
        pair = matches(0, 1, [[5, 5]], [[6, 6]], [1.0])
        small = np.zeros((80, 120, 3), np.uint8)
        draw_matches(small, small, pair.xy_i, pair.xy_j, pair.conf, tmp_path / "m.png")
        picture = read_png(tmp_path / "m.png")
        assert picture.shape == (4 * 80, 2 * 4 * 120 + 8, 3)
        # the centre of pixel 5 is at 4 * 5 + 1.5, rounded to even
        assert picture[22, 22].tolist() == picture[24, 22].tolist() == turbo(round(5 / 119 * 255))

    def test_of_many_matches_the_most_confident_of_each_run_is_drawn(self) -> None:
        conf = np.array([1, 5, 2, 9, 8, 7, 0, 0, 1])
        assert spread_selection(conf, 3).tolist() == [1, 3, 8]
        assert spread_selection(conf, 9).tolist() == list(range(9))
        assert spread_selection(conf[:0], 3).tolist() == []
