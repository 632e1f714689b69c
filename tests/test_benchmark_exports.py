"""Points of the scene lie at the same pixels for readers of the exports as for the result, whatever the photos."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from photo_scene import POINTS, mixed_photos
from PIL import Image

from benchmarks.exports import (
    FORMATS,
    Seen,
    frame_of_row,
    largest_errors,
    pixels_by_opengl,
    read_pycolmap,
    read_table,
    read_transforms,
    seen_points,
    ways_to_export,
)
from mast3r_sfm.geometry import distort
from mast3r_sfm.options import PhotoOptions, SceneOptions
from mast3r_sfm.reconstruction import Reconstruction

OPTIONS = SceneOptions(min_conf_thr=1)
WAYS = (PhotoOptions(), PhotoOptions(max_image_size=160), PhotoOptions(True), PhotoOptions(True, 160))
LIMIT_PX = 0.01


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Reconstruction:
    return mixed_photos(tmp_path_factory.mktemp("photos"))


def middle_of_light(picture: np.ndarray, x: float, y: float) -> np.ndarray:
    """(2,) pixel that the light around a place is centred on."""
    left, top = round(x) - 7, round(y) - 7
    patch = picture[top : top + 15, left : left + 15].astype(float)
    patch[patch < 40] = 0
    across, down = np.arange(15) + left, np.arange(15) + top
    return np.array([patch.sum(0) @ across, patch.sum(1) @ down]) / patch.sum()


class TestReaders:
    @pytest.mark.parametrize("photos", WAYS)
    def test_see_points_where_the_result_does(self, scene: Reconstruction, photos: PhotoOptions) -> None:
        seen = seen_points(scene, photos)
        assert len(seen) == 5 and all(len(one.points) > 60 for one in seen)
        errors = largest_errors(scene, OPTIONS, photos)
        assert {"pycolmap", "transforms.json", "cameras.csv"} <= set(errors)
        assert max(errors.values()) < LIMIT_PX

    @pytest.mark.parametrize("photos", WAYS)
    def test_pictures_show_the_points_there(self, scene: Reconstruction, tmp_path: Path, photos: PhotoOptions) -> None:
        # the light of dots in the written pictures, whoever turned, straightened or reduced them
        scene.export("colmap", tmp_path / "out", OPTIONS, photos)
        files = {path.stem: path for path in (tmp_path / "out" / "images").iterdir()}
        found = 0
        for one in seen_points(scene, photos):
            with Image.open(files[one.stem]) as image:
                picture = np.asarray(image.convert("L"))
            dots = [k for k in range(6) if (one.points == POINTS[k]).all(1).any()]
            places = np.array([one.xy[(one.points == POINTS[k]).all(1)][0] for k in dots])
            for k, (x, y) in enumerate(places):
                alone = np.linalg.norm(np.delete(places, k, 0) - (x, y), axis=1).min(initial=99) > 20
                if alone and 8 < x < one.camera.size[0] - 9 and 8 < y < one.camera.size[1] - 9:
                    np.testing.assert_allclose(middle_of_light(picture, x, y), [x, y], atol=0.15)
                    found += 1
        assert found >= 8

    def test_cameras_at_the_network_s_size_see_the_same(self, scene: Reconstruction, tmp_path: Path) -> None:
        # by the numbers of cameras.json alone: K_network, and the way from the photo to the network's image
        scene.save(tmp_path / "out", OPTIONS, exports=["nerfstudio"], report=False)
        entries = json.loads((tmp_path / "out" / "cameras.json").read_text())["images"]
        document = json.loads((tmp_path / "out" / "nerfstudio" / "transforms.json").read_text())
        applied = np.array(document["applied_transform"])
        for entry, frame in zip(entries, document["frames"], strict=True):
            pose, K_network = np.array(entry["world_from_cam"]), np.array(entry["K_network"])
            local = (POINTS - pose[:3, 3]) @ pose[:3, :3]
            rays = distort(local[:, :2] / local[:, 2:], entry["distortion_k1"])
            in_network = rays @ K_network[:2, :2].T + K_network[:2, 2]
            in_photo = pixels_by_opengl(frame, POINTS @ applied[:, :3].T + applied[:, 3]) - 0.5
            mapped = np.column_stack([in_photo, np.ones(len(in_photo))]) @ np.array(entry["network_from_original"]).T
            np.testing.assert_allclose(mapped[:, :2], in_network, atol=LIMIT_PX)

    def test_a_camera_half_a_pixel_off_is_noticed(self, scene: Reconstruction, tmp_path: Path) -> None:
        for kind in FORMATS:
            scene.export(kind, tmp_path / kind, OPTIONS)
        moved = [Seen(one.stem, one.points, one.xy + 0.5, one.camera) for one in seen_points(scene, PhotoOptions())]
        for read in (read_pycolmap, read_transforms, read_table):
            assert np.concatenate(read(tmp_path, moved)).min() > 0.7

    def test_the_columns_of_the_table(self) -> None:
        # a portrait photo, 36 mm on its long edge: 18 mm are half of it; 0.1 of it are 40 pixels
        row = {"x": 1.0, "y": 2.0, "alt": 3.0, "heading": 90.0, "pitch": 0.0, "roll": 0.0, "f": 18.0}
        frame = frame_of_row({**row, "px": 0.1, "py": -0.05, "k1": 0.0}, (300, 400))
        assert (frame["fl_x"], frame["cx"], frame["cy"]) == pytest.approx((200, 190, 180))
        # looking down, the top of the picture to the east: a point to the east is above the middle
        assert pixels_by_opengl(frame, np.array([[2.0, 2, 1]]))[0] == pytest.approx([190, 80])

    def test_the_ways_of_a_result(self, scene: Reconstruction) -> None:
        assert tuple(ways_to_export(scene).values()) == WAYS
