"""Masks of photos, and the sky: what is masked gives no matches, no tracks, no trust and no points."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from clip_files import write_clip
from photo_scene import SIZE, camera_view
from PIL import Image

from mast3r_sfm.dense.agreement import Surfaces
from mast3r_sfm.dense.sky import sky_of
from mast3r_sfm.dense.trust import CONFIRMED, OFFSET, judge
from mast3r_sfm.dense.views import DenseView
from mast3r_sfm.errors import InputError
from mast3r_sfm.export.points import scene_points
from mast3r_sfm.export.surface import placed_views
from mast3r_sfm.gaps import _Photo
from mast3r_sfm.images.loading import ImageSizing, load_views, read_photo
from mast3r_sfm.images.masks import find_masks, read_mask, warn_of_missing, without_masks
from mast3r_sfm.model.checkpoint import load_model
from mast3r_sfm.options import AlignmentConfig, FootageOptions, ReconstructionOptions, SceneOptions
from mast3r_sfm.pairwise import sample_fallback
from mast3r_sfm.pipeline import load_images, reconstruct
from mast3r_sfm.reconstruction import Reconstruction
from mast3r_sfm.tracks import extract_features
from mast3r_sfm.types import Correspondences, PairPrediction, ViewPrediction
from synthetic import render_orbit

SIZING = ImageSizing(size=64, patch_size=8, accept_squares=True)


def write(path: Path, picture: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(path)
    return path


def half_mask(width: int, height: int) -> np.ndarray:
    """The left half is not used."""
    return np.where(np.arange(width) < width // 2, 0, 255).astype(np.uint8)[None].repeat(height, 0)


# ------------------------------------------------------------------ which mask belongs to which photo
class TestNames:
    def test_stem_whole_name_and_clip(self, tmp_path: Path) -> None:
        for name in ("a.png", "b.JPG.png", "walk.png", "walk_000007.png", "notes.txt"):
            (tmp_path / name).touch()
        photos = [Path(name) for name in ("p/A.jpg", "p/b.JPG", "f/walk_000003.jpg", "f/walk_000007.jpg", "p/c.jpg")]
        masks = find_masks(tmp_path, photos, [None, None, "walk.mp4", "walk.mp4", None])
        assert [mask and mask.name for mask in masks] == ["a.png", "b.JPG.png", "walk.png", "walk_000007.png", None]

    def test_folders_tell_photos_of_one_name_apart(self, tmp_path: Path) -> None:
        for name in ("masks/x/a.png", "masks/y/a.png", "masks/x/b.png"):
            write(tmp_path / name, half_mask(8, 8))
        photos = [tmp_path / "photos" / name for name in ("y/a.jpg", "x/a.jpg", "x/b.jpg", "y/b.jpg")]
        masks = find_masks(tmp_path / "masks", photos, [None] * 4)
        assert [mask and mask.parent.name for mask in masks] == ["y", "x", "x", None]

    def test_complaints(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        photos = [Path("a.jpg"), Path("b.jpg")]
        with pytest.raises(InputError, match="no such folder"):
            find_masks(tmp_path / "gone", photos, [None, None])
        with pytest.raises(InputError, match=r"none of its 0 file.*a\.png or a\.jpg\.png"):
            find_masks(tmp_path, photos, [None, None])
        with pytest.raises(InputError, match=r"walk_000001\.jpg\.png, that of all frames of walk\.mp4 walk\.png"):
            find_masks(tmp_path, [Path("walk_000001.jpg")], ["walk.mp4"])
        write(tmp_path / "a.png", half_mask(8, 8))
        warn_of_missing(tmp_path, photos, find_masks(tmp_path, photos, [None, None]))
        assert "1 of 2 photos have no mask" in caplog.text and "b.jpg" in caplog.text
        write(tmp_path / "a.bmp", half_mask(8, 8))
        with pytest.raises(InputError, match=r"a\.jpg: has two masks"):
            find_masks(tmp_path, photos, [None, None])

    def test_the_folder_of_the_masks_gives_no_photos(self, tmp_path: Path) -> None:
        photos = [tmp_path / "a.jpg", tmp_path / "masks" / "a.png"]
        assert without_masks(tmp_path / "masks", photos) == photos[:1]
        with pytest.raises(InputError, match="a folder of their own"):
            without_masks(tmp_path, photos)


# ------------------------------------------------------------------ what a mask says
class TestReading:
    def test_grey_and_transparency(self, tmp_path: Path) -> None:
        path = write(tmp_path / "m.png", np.array([[0, 127, 128, 255]], np.uint8).repeat(2, 0))
        assert np.asarray(read_mask(path, (4, 2)))[0].tolist() == [0, 0, 255, 255]
        rgba = np.full((2, 4, 4), 255, np.uint8)
        rgba[:, 0, 3] = 0
        assert np.asarray(read_mask(write(tmp_path / "t.png", rgba), (4, 2)))[0].tolist() == [0, 255, 255, 255]

    def test_another_size_of_the_same_shape(self, tmp_path: Path) -> None:
        path = write(tmp_path / "m.png", half_mask(10, 7))  # 100x75 reduced to 10x7.5
        used = np.asarray(read_mask(path, (100, 75)))
        assert used.shape == (75, 100) and (used[:, :50] == 0).all() and (used[:, 50:] == 255).all()

    def test_another_shape_names_both_sizes(self, tmp_path: Path) -> None:
        path = write(tmp_path / "m.png", half_mask(80, 100))
        with pytest.raises(
            InputError, match=r"m\.png: the mask has 80x100 pixels and its photo 100x80 as it is shown;"
        ):
            read_mask(path, (100, 80))
        with pytest.raises(InputError, match=r"80x100 pixels and its photo 100x75;"):
            read_mask(path, (100, 75))

    def test_the_network_sees_the_photo_as_it_is(self, tmp_path: Path) -> None:
        photo = write(tmp_path / "a.png", np.full((64, 64, 3), 90, np.uint8))
        mask = write(tmp_path / "m" / "a.png", half_mask(64, 64))
        (view,) = load_views([photo], SIZING, masks=[mask])
        assert (view.rgb == 90).all() and view.mask_file == mask
        assert view.mask is not None and not view.mask[:, :32].any() and view.mask[:, 32:].all()
        used = read_photo(view)[1]
        assert used is not None and np.array_equal(used, half_mask(64, 64) > 0)

    def test_opacity_and_mask_both_count(self, tmp_path: Path) -> None:
        rgba = np.full((64, 64, 4), 255, np.uint8)
        rgba[:16, :, 3] = 0
        photo, mask = write(tmp_path / "a.png", rgba), write(tmp_path / "m" / "a.png", half_mask(64, 64))
        (view,) = load_views([photo], SIZING, masks=[mask])
        assert view.mask is not None and view.mask.sum() == 32 * 48

    def test_black_masks(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        rgb, black = np.full((64, 64, 3), 90, np.uint8), np.zeros((64, 64), np.uint8)
        photos = [write(tmp_path / name, rgb) for name in ("a.png", "b.png")]
        mask = write(tmp_path / "m" / "a.png", black)
        views = load_views(photos, SIZING, masks=[mask, None])
        assert "a.png: less than 0.5% of the pixels can be used" in caplog.text and "b.png" not in caplog.text
        assert views[0].mask is not None and not views[0].mask.any() and views[1].mask is None
        with pytest.raises(InputError, match=r"a\.png, b\.png: less than"):
            load_views(photos, SIZING, masks=[mask, mask])

    def test_almost_wholly_transparent(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        rgba = np.full((64, 64, 4), 255, np.uint8)
        rgba[..., 3] = 0
        rgba[:3, :3, 3] = 255
        photos = [write(tmp_path / "a.png", rgba), write(tmp_path / "b.png", rgba[..., :3])]
        (view, _) = load_views(photos, SIZING)
        assert "a.png: less than 0.5%" in caplog.text and "transparent" in caplog.text
        used = read_photo(view)[1]
        assert used is not None and not used.any()  # so it has no features either


# ------------------------------------------------------------------ what takes part
def test_matches_within() -> None:
    mask = torch.tensor([[True, False], [True, True]])
    xy = torch.tensor([[0, 0], [1, 0], [1, 1]], dtype=torch.int32)
    matches = Correspondences(0, 1, xy, xy.flip(0).float() + 0.4, torch.ones(3))
    assert matches.within(None, None) is matches
    assert matches.within(mask, None).xy_i.tolist() == [[0, 0], [1, 1]]
    assert matches.within(None, mask).xy_i.tolist() == [[0, 0], [1, 1]]


def test_fallback_has_no_weight_where_a_mask_hides() -> None:
    one = ViewPrediction(torch.ones(16, 16, 3), torch.full((16, 16), 5.0))
    found = sample_fallback(PairPrediction(0, 1, one, one, one, one), 8, None, torch.from_numpy(half_mask(16, 16) > 0))
    assert found[0, 1].conf.tolist() == [0, 5, 0, 5] and found[1, 0].conf.tolist() == [5, 5, 5, 5]


def test_masked_features_do_not_crowd_out_the_others() -> None:
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 256, (120, 160), dtype=np.uint8)
    picture[:, 80:] = picture[:, 80:] // 8 + 100  # the used half has weaker texture
    image, mask = Image.fromarray(picture).convert("RGB"), half_mask(160, 120) > 0
    found = extract_features(image, 160, 20, mask)
    assert len(found) == 20 and (found.xy[:, 0] > 79).all()


def test_places_found_again_must_lie_in_the_mask() -> None:
    grey, xy = np.zeros((60, 80), np.uint8), np.array([[39.4, 5], [39.6, 5], [200.0, 5], [np.nan, 5]])
    photo = _Photo(grey, grey, np.ones(2), xy, np.ones((60, 80)), half_mask(80, 60) > 0)
    assert photo.shows(xy).tolist() == [False, True, True, False]
    assert dataclasses.replace(photo, mask=None).shows(xy).tolist() == [True, True, True, False]


def test_masked_pixels_neither_confirm_nor_deny() -> None:
    K = np.array([[20.0, 0, 8], [0, 20, 6], [0, 0, 1]])

    def judged(conf_of_other: float, depth_of_other: float) -> float:
        views = [
            DenseView(
                torch.full((12, 16), float(np.log(depth))),
                torch.full((12, 16), conf),
                torch.zeros(12, 16, 3, dtype=torch.uint8),
                K,
                0.0,
                np.eye(4),
                neighbours,
            )
            for depth, conf, neighbours in ((4.0, 2.0, (1,)), (depth_of_other, conf_of_other, (0,)))
        ]
        trust = judge(views, Surfaces.of(views, [view.relief for view in views]))
        assert (trust.conf[1] == 0).all() or conf_of_other
        return float(trust.clean[0][6, 8])

    assert judged(2.0, 4.0) == pytest.approx(2 * np.exp(OFFSET + CONFIRMED))
    assert judged(0.0, 4.0) == pytest.approx(2 * np.exp(OFFSET))
    assert judged(9.0, 8.0) == 0  # floats in front of a more confident surface
    assert judged(0.0, 8.0) == pytest.approx(2 * np.exp(OFFSET))


@pytest.fixture(scope="module")
def masked(tmp_path_factory: pytest.TempPathFactory) -> Reconstruction:
    """Three photos whose right third is masked; the third photo has no mask, a fourth is masked wholly."""
    folder = tmp_path_factory.mktemp("masked")
    for k, image in enumerate(render_orbit(900_100, 4, (256, 192), 45, effects=0).rgb):
        write(folder / "photos" / f"{k}.png", image.numpy())
    third = np.where(np.arange(256) < 160, 255, 0).astype(np.uint8)[None].repeat(192, 0)
    for k, mask in enumerate((third, third, None, np.zeros_like(third))):
        if mask is not None:
            write(folder / "masks" / f"{k}.png.png", mask)
    model = load_model("small", "cpu")
    images = load_images(folder / "photos", model, 128, footage=FootageOptions(masks=str(folder / "masks")))
    options = ReconstructionOptions(alignment=AlignmentConfig(niter_coarse=60, niter_fine=60))
    return reconstruct(images, model, options)


class TestReconstruction:
    def test_the_photo_without_a_usable_pixel_is_left_out(self, masked: Reconstruction) -> None:
        assert [view.index for view in masked.registered] == [0, 1, 2]
        assert masked.verdict is not None
        assert masked.verdict.views[3].reasons == ("it is masked or transparent as a whole: check it and its mask",)
        assert not any("do not connect" in reason for reason in masked.verdict.overall.reasons)

    def test_no_matches_no_tracks_no_trust(self, masked: Reconstruction) -> None:
        assert masked.matches and all({m.i, m.j} <= {0, 1, 2} for m in masked.matches)
        for m in masked.matches:
            for index, xy in ((m.i, m.xy_i), (m.j, m.xy_j)):
                mask = masked.views[index].mask
                x, y = xy.round().long().numpy().T
                assert mask is None or mask[y, x].all()
        tracks = masked.tracks
        assert tracks is not None and len(tracks.xy)
        own = np.isin(tracks.view_of, [0, 1])
        assert own.any() and (tracks.xy[own, 0] < 160).all()
        for view in masked.views[:2]:
            assert view.mask is not None and (view.conf[~view.mask] == 0).all()
            assert (view.conf_clean[~view.mask] == 0).all() and (view.conf[view.mask] > 0).all()

    def test_no_points(self, masked: Reconstruction) -> None:
        points = scene_points(masked, SceneOptions(min_conf_thr=-1))
        pixels = [np.isfinite(view.depth) if view.mask is None else view.mask for view in masked.registered]
        assert len(points.xyz) <= sum(int(mask.sum()) for mask in pixels)

    def test_a_result_that_was_written_knows_its_masks(self, masked: Reconstruction, tmp_path: Path) -> None:
        masked.save(tmp_path / "out", SceneOptions(min_conf_thr=0.01), report=False)
        read = Reconstruction.load(tmp_path / "out")
        assert [view.mask_file for view in read.views] == [view.mask_file for view in masked.views]
        read.export("nerfstudio", tmp_path / "nerf", SceneOptions(min_conf_thr=0.01))
        frames = json.loads((tmp_path / "nerf" / "transforms.json").read_text())["frames"]
        shares = [np.mean(np.asarray(Image.open(tmp_path / "nerf" / frame["mask_path"])) > 0) for frame in frames]
        assert shares == [0.625, 0.625, 1.0]


# ------------------------------------------------------------------ frames of clips
@pytest.fixture(scope="module")
def masked_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a command made of a clip of 4 pictures. Its mask hides the right quarter, that of frame 2 the left one."""
    from mast3r_sfm.app.cli import main

    pytest.importorskip("av")
    folder = tmp_path_factory.mktemp("masked_clip")
    pictures = render_orbit(900_100, 4, (256, 192), 45, effects=0).rgb.numpy()
    write_clip(folder / "orbit.mkv", list(pictures), fps=2, codec="ffv1", pix_fmt="bgr0", options={})
    right = np.where(np.arange(256) < 192, 255, 0).astype(np.uint8)[None].repeat(192, 0)
    write(folder / "masks" / "orbit.png", right)
    write(folder / "masks" / "orbit_000002.png", right[:, ::-1])
    arguments = ["reconstruct", "--input", str(folder / "orbit.mkv"), "--output", str(folder / "out")]
    arguments += ["--masks", str(folder / "masks"), "--export", "colmap", "--min-conf-thr", "0.01"]
    with pytest.raises(SystemExit) as ended:
        main(
            [*arguments, "--model-name", "small", "--image-size", "128", "--device", "cpu", "--niter", "60", "--quiet"]
        )
    assert ended.value.code == 0
    return folder / "out"


class TestClip:
    def used(self, frame: int, x: np.ndarray) -> np.ndarray:
        """Whether columns of the pictures, which are 256 pixels wide, may be used."""
        return x > 63.5 if frame == 2 else x < 191.5

    def network_columns_used(self, frame: int) -> np.ndarray:
        """(128,) bool: a pixel of the network's image is two of the picture wide."""
        return self.used(frame, 2.0 * np.arange(128) + 0.5)

    def test_no_matches_no_tracks_no_trust(self, masked_clip: Path) -> None:
        result = Reconstruction.load(masked_clip)
        assert [Path(view.file).name for view in result.registered] == [f"orbit_{k:06d}.jpg" for k in range(4)]
        assert {index for m in result.matches for index in (m.i, m.j)} == {0, 1, 2, 3}
        for m in result.matches:
            for index, xy in ((m.i, m.xy_i), (m.j, m.xy_j)):
                assert self.network_columns_used(index)[xy[:, 0].round().long().numpy()].all()
        assert result.tracks is not None
        for k, view in enumerate(result.views):
            x = result.tracks.xy[result.tracks.view_of == k][:, 0]
            assert len(x) and self.used(k, x).all()
            used = self.network_columns_used(k)
            assert (view.conf[:, ~used] == 0).all() and (view.conf_clean[:, ~used] == 0).all()
            assert (view.conf[:, used] > 0).all()

    def test_no_points(self, masked_clip: Path) -> None:
        result, options = Reconstruction.load(masked_clip), SceneOptions(min_conf_thr=-1)
        kept = [one.kept for one in placed_views(result.registered, options)]
        for k, pixels in enumerate(kept):
            assert pixels.any() and not pixels[:, ~self.network_columns_used(k)].any()
        assert len(scene_points(result, options).xyz) == sum(int(pixels.sum()) for pixels in kept)

    def test_exports_have_them(self, masked_clip: Path) -> None:
        masks = sorted((masked_clip / "colmap" / "masks").iterdir())
        assert [path.name for path in masks] == [f"orbit_{k:06d}.jpg.png" for k in range(4)]
        assert [np.mean(np.asarray(Image.open(path)) > 0) for path in masks] == [0.75] * 4
        left = [np.asarray(Image.open(path))[0, 0] > 0 for path in masks]
        assert left == [True, True, False, True]


# ------------------------------------------------------------------ exports and the command line
def test_masks_of_jpeg_photos_have_names_that_colmap_finds(tmp_path: Path) -> None:
    Image.new("RGB", SIZE).save(tmp_path / "a.jpg")
    mask = write(tmp_path / "m" / "a.png", half_mask(*SIZE))
    view = camera_view(0, tmp_path / "a.jpg", mask=np.ones((104, 160), bool), mask_file=str(mask))
    result = Reconstruction((view,), ())
    result.export("colmap", tmp_path / "out")
    assert (tmp_path / "out/images/a.jpg").read_bytes() == (tmp_path / "a.jpg").read_bytes()
    assert np.array_equal(np.asarray(Image.open(tmp_path / "out/masks/a.jpg.png")), half_mask(*SIZE))
    mask.unlink()
    with pytest.raises(InputError, match=r"a\.png: cannot be read.*the export needs the masks"):
        result.export("colmap", tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_a_mask_of_another_shape_ends_the_command_with_one_line(tmp_path: Path) -> None:
    from mast3r_sfm.app.cli import main

    for name in ("a", "b"):
        write(tmp_path / "photos" / f"{name}.png", np.full((96, 128, 3), 90, np.uint8))
    write(tmp_path / "masks" / "a.png", half_mask(96, 96))
    arguments = ["reconstruct", "--input", str(tmp_path / "photos"), "--output", str(tmp_path / "out")]
    arguments += ["--model-name", "small", "--device", "cpu", "--quiet", "--masks", str(tmp_path / "masks")]
    with CliRunner().isolation() as (_, error, *_), pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2 and not (tmp_path / "out").exists()
    (line,) = [line for line in error.getvalue().decode().splitlines() if line.startswith("Error:")]
    assert "a.png: the mask has 96x96 pixels and its photo 128x96" in line


# ------------------------------------------------------------------ sky
class TestSky:
    """A picture of 40 rows: 20 of something far and doubtful, and a confident ground below."""

    def setup_method(self) -> None:
        self.depth = np.full((40, 60), 5.0, np.float32)
        self.conf = np.full((40, 60), 8.0, np.float32)
        self.depth[:20], self.conf[:20] = 100.0, 0.5
        self.rgb = np.full((40, 60, 3), 90, np.uint8)
        self.rgb[:20] = 200
        self.nothing = np.zeros((0, 2), int)

    def found(self, matched: np.ndarray | None = None) -> np.ndarray:
        return sky_of(self.depth, self.conf, self.rgb, self.nothing if matched is None else matched)

    def test_far_doubtful_and_smooth_at_the_border(self) -> None:
        assert self.found()[:20].all() and not self.found()[20:].any()

    @pytest.mark.parametrize("what", ["near", "confident", "textured", "not at the border", "no depth below"])
    def test_nothing_else(self, what: str) -> None:
        if what == "near":
            self.depth[:20] = 10.0
        elif what == "confident":
            self.conf[:20] = 4.0
        elif what == "textured":
            self.rgb[:20] = np.random.default_rng(0).integers(0, 256, (20, 60, 3))
        elif what == "not at the border":
            self.depth[0] = 5.0
        else:
            self.conf[:] = 0
        assert not self.found().any()

    def test_a_cloud_with_edges_belongs_to_it(self) -> None:
        self.rgb[8:12, 20:30] = np.random.default_rng(0).integers(0, 256, (4, 10, 3))
        assert self.found()[:20].all()

    def test_a_match_says_that_a_place_is_solid(self) -> None:
        found = self.found(np.array([[30, 10]]))
        assert not found[9:12, 29:32].any() and found[:5].all()

    def test_ground_that_leads_to_the_horizon_stays(self) -> None:
        # from row 20 on, as of level ground: depth 90, 30, 18, ..., most of it doubtful
        rows = np.arange(20)
        self.depth[20:] = (90 / (1 + 2 * rows))[:, None]
        self.conf[20:] = 0.5
        self.conf[28:] = 8.0
        self.rgb[:] = 200
        assert self.found()[:18].all() and not self.found()[22:].any()

    def test_a_tower_stays(self) -> None:
        self.depth[:20, 30:40], self.conf[:20, 30:40] = 6.0, 1.0  # doubtful, but not far
        assert not self.found()[:, 30:40].any() and self.found()[:20, :27].all()


def test_the_sky_is_off_by_default() -> None:
    assert not ReconstructionOptions().sky
    assert dataclasses.replace(ReconstructionOptions(), sky=True).sky
