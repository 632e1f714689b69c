"""Clips as input: what is decoded, which frames are taken, where they are kept, and what is refused."""

import json
import logging
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clip_files import write_clip
from PIL import Image

from mast3r_sfm.app.cli import main
from mast3r_sfm.camera_groups import group_cameras
from mast3r_sfm.errors import InputError
from mast3r_sfm.export.result import check_output
from mast3r_sfm.images import clips as clips_module
from mast3r_sfm.images.clips import open_clip
from mast3r_sfm.images.frames import clips_of, extract_frames, motion_px, plan_footage, sharpness_of
from mast3r_sfm.images.loading import ImageSizing, load_views
from mast3r_sfm.images.tone import (
    PEAK_NITS,
    WHITE_NITS,
    compressed,
    nits_of_pq,
    scene_light_of_hlg,
    sdr_from_hdr,
    srgb_of_linear,
)
from mast3r_sfm.options import FootageOptions, IntrinsicsGroups, SceneGraph
from mast3r_sfm.reconstruction import Reconstruction
from mast3r_sfm.scene_graph import make_pairs
from mast3r_sfm.types import Frame
from synthetic import render_orbit

av = pytest.importorskip("av")

W, H = 160, 96
RNG = np.random.default_rng(5)
BLOCKS = np.kron(RNG.integers(30, 226, (30, 60, 3)), np.ones((8, 8, 1))).astype(np.uint8)  # (240, 480, 3)


def window(x: float, y: float = 0.0, size: tuple[int, int] = (W, H)) -> np.ndarray:
    """A picture of the pattern from (x, y) on: moving x is a camera that moves."""
    image = Image.fromarray(BLOCKS).transform(
        size, Image.Transform.AFFINE, (1, 0, x, 0, 1, y), Image.Resampling.BILINEAR
    )
    return np.asarray(image)


def moving(count: int, step: float = 6.0) -> list[np.ndarray]:
    return [window(step * k) for k in range(count)]


def frames_of(path: Path, folder: Path, **options: Any) -> list[Path]:
    return extract_frames(plan_footage([path], FootageOptions(**options)), folder)


def frame_at(file: Path) -> Frame:
    (view,) = load_views([file], ImageSizing(64))
    assert view.frame is not None
    return view.frame


# ---------------------------------------------------------------- which frames


def test_frames_of_a_moving_clip(tmp_path: Path) -> None:
    # 30 pictures at 10 a second are 3 s: at 2 a second 6 intervals of 5 pictures
    path = write_clip(tmp_path / "walk.mp4", moving(30))
    files = frames_of(path, tmp_path / "frames", fps=2)
    numbers = [int(file.stem.removeprefix("walk_")) for file in files]
    assert [number // 5 for number in numbers] == [0, 1, 2, 3, 4, 5]
    assert all(file.name == f"walk_{number:06d}.jpg" for file, number in zip(files, numbers, strict=True))
    assert sorted(files) == files
    for file, number in zip(files, numbers, strict=True):
        assert frame_at(file).clip == "walk.mp4"
        assert frame_at(file).time_s == pytest.approx(number / 10, abs=1e-3)
        difference = np.asarray(Image.open(file)).astype(int) - window(6.0 * number)
        assert np.abs(difference).mean() < 4
    again = frames_of(path, tmp_path / "again", fps=2)
    assert [a.read_bytes() for a in files] == [b.read_bytes() for b in again]


def test_the_sharpest_picture_of_an_interval_is_taken(tmp_path: Path) -> None:
    def blurred(picture: np.ndarray) -> np.ndarray:
        return np.asarray(Image.fromarray(picture).resize((W // 4, H // 4)).resize((W, H)))

    sharp = {2, 8, 11, 19}  # one in every interval of 5
    pictures = [picture if k in sharp else blurred(picture) for k, picture in enumerate(moving(20))]
    files = frames_of(write_clip(tmp_path / "a.mkv", pictures), tmp_path, fps=2)
    assert {int(file.stem[-6:]) for file in files} == sharp
    assert sharpness_of(np.asarray(Image.fromarray(pictures[2]).convert("L"))) > 2 * sharpness_of(
        np.asarray(Image.fromarray(pictures[3]).convert("L"))
    )


def test_max_frames_makes_intervals_longer(tmp_path: Path) -> None:
    first, second = (write_clip(tmp_path / name, moving(count)) for name, count in (("a.mp4", 30), ("b.mp4", 10)))
    options = FootageOptions(fps=5, max_frames=8)  # 4 s in 8 intervals of 0.5 s
    files = extract_frames(plan_footage([first, second], options), tmp_path / "f")
    assert [file.stem[:1] for file in files] == ["a"] * 6 + ["b"] * 2
    assert plan_footage([first, second], options).num_steps == 8


def test_still_stretches_are_skipped(tmp_path: Path) -> None:
    # moves for a second, stands for three with noise, moves on
    rng = np.random.default_rng(0)
    places = [6.0 * k for k in range(10)] + [60.0] * 30 + [60.0 + 6 * k for k in range(1, 11)]
    noisy = [np.clip(window(x) + rng.normal(0, 6, (H, W, 1)), 0, 255).astype(np.uint8) for x in places]
    path = write_clip(tmp_path / "stop.mp4", noisy, options={"crf": "28", "preset": "veryfast"}, pix_fmt="yuv420p")
    times = [frame_at(file).time_s for file in frames_of(path, tmp_path, fps=2)]
    assert sum(1.0 <= time < 4.0 for time in times) == 1
    assert sum(time < 1.0 for time in times) == sum(time >= 4.0 for time in times) == 2


def test_a_slow_camera_is_not_a_still_one(tmp_path: Path) -> None:
    # a tenth of a pixel a picture: what has gathered since the frame before counts
    files = frames_of(write_clip(tmp_path / "slow.mp4", [window(0.1 * k) for k in range(60)]), tmp_path, fps=5)
    assert 5 <= len(files) < 30


@pytest.mark.parametrize("shift", [0.5, 1.0, 1.5])
def test_motion_by_hand(shift: float) -> None:
    _y, x = np.mgrid[:90, :160]

    def waves(moved: float) -> np.ndarray:
        return (128 + 60 * np.sin((x + moved) / 5)).round().astype(np.uint8)

    assert motion_px(waves(0), waves(shift)) == pytest.approx(shift, rel=0.3)
    assert motion_px(waves(0), waves(0)) == 0
    # the light changes, the camera does not: 20 % brighter
    assert motion_px(waves(0), np.clip(waves(0) * 1.2, 0, 255).astype(np.uint8)) < 0.3


def test_motion_without_edges_and_of_what_passes_by() -> None:
    wall = np.full((90, 160), 120, np.uint8)
    assert motion_px(wall, wall) == 0.0
    assert motion_px(wall, wall + 40) == float("inf")
    before = np.asarray(Image.fromarray(window(0)).convert("L"))
    after = before.copy()
    after[30:60, 40:70] = 255 - after[30:60, 40:70]  # a fifteenth of the picture is something else now
    assert motion_px(before, after) < 0.1


def test_times_come_from_the_clip_not_from_counting(tmp_path: Path) -> None:
    # a telephone in the dark: 10 pictures in the first second, then 2 a second
    times = [k / 10 for k in range(10)] + [1 + k / 2 for k in range(8)]
    path = write_clip(tmp_path / "v.mkv", moving(18, 12), times=times)
    assert open_clip(path).duration_s == pytest.approx(4.6, abs=0.51)
    files = frames_of(path, tmp_path / "f", fps=2)
    for file in files:
        assert frame_at(file).time_s == pytest.approx(times[int(file.stem[-6:])], abs=2e-3)
    found = [frame_at(file).time_s for file in files]
    assert len(found) >= 8 and found == sorted(found)


# ---------------------------------------------------------------- how they are decoded


@pytest.mark.parametrize("rotation", [90, 180, -90])
def test_turned_clips_are_upright(rotation: int, tmp_path: Path) -> None:
    path = write_clip(tmp_path / "turned.mp4", moving(10), rotation=rotation)
    for file in frames_of(path, tmp_path, fps=2):
        original = window(6.0 * int(file.stem[-6:]))
        upright = np.rot90(original, rotation // 90)  # both turn counterclockwise
        shown = np.asarray(Image.open(file)).astype(int)
        assert shown.shape == upright.shape
        assert np.abs(shown - upright).mean() < 4


def test_pixels_that_are_not_square(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "dv.mp4", moving(10), sample_aspect_ratio=Fraction(4, 3))
    assert {Image.open(file).size for file in frames_of(path, tmp_path)} == {(round(W * 4 / 3), H)}


def test_odd_sizes_and_ten_bits(tmp_path: Path) -> None:
    pictures = [window(6.0 * k, size=(161, 97)) for k in range(10)]
    odd = write_clip(tmp_path / "odd.mkv", pictures, codec="ffv1", pix_fmt="bgr0", options={})
    files = frames_of(odd, tmp_path / "odd")
    assert Image.open(files[0]).size == (161, 97)
    deep = write_clip(tmp_path / "deep.mkv", moving(10), codec="ffv1", pix_fmt="yuv444p10le", options={})
    for file in frames_of(deep, tmp_path / "deep"):
        difference = np.asarray(Image.open(file)).astype(int) - window(6.0 * int(file.stem[-6:]))
        assert np.abs(difference).mean() < 3


@pytest.mark.parametrize(("height", "colorspace", "matrix"), [(96, 2, 601), (720, 2, 709), (96, 1, 709)])
def test_colours_follow_the_matrix(height: int, colorspace: int, matrix: int, tmp_path: Path) -> None:
    """Y' 81, Cb 90, Cr 240 is pure red by BT.601; by BT.709 (63, 102, 240) is."""
    y, cb, cr = (81, 90, 240) if matrix == 601 else (63, 102, 240)
    frame = av.VideoFrame(128, height, "yuv444p")
    for plane, value in zip(frame.planes, (y, cb, cr), strict=True):
        plane.update(np.full(plane.buffer_size, value, np.uint8).tobytes())
    path = tmp_path / "red.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=2)
        stream.width, stream.height, stream.pix_fmt = 128, height, "yuv444p"
        if colorspace != 2:
            stream.codec_context.colorspace = colorspace
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    shown = np.asarray(next(open_clip(path).pictures()).rgb())
    np.testing.assert_allclose(shown[height // 2, 10], [255, 0, 0], atol=6)


def test_light_of_hdr_codes_by_the_standards() -> None:
    # SMPTE ST 2084 and ITU-R BT.2100, BT.2408: PQ 58 % is 203 nits, HLG 75 % of the signal is a white of 203 nits
    np.testing.assert_allclose(
        nits_of_pq(np.array([0.0, 0.5081, 0.5807, 0.7518, 1.0])), [0, 100, 203, 1000, 10000], rtol=2e-3
    )
    np.testing.assert_allclose(scene_light_of_hlg(np.array([0.0, 0.5, 1.0])), [0, 1 / 12, 1], atol=1e-6)
    assert PEAK_NITS * scene_light_of_hlg(np.array(0.75)) ** 1.2 == pytest.approx(WHITE_NITS, rel=0.01)
    np.testing.assert_allclose(
        compressed(np.array([0.0, 0.3, 0.5, PEAK_NITS / WHITE_NITS])), [0, 0.3, 0.5, 1], rtol=1e-6
    )
    rising = compressed(np.linspace(0, 5, 200))
    assert (np.diff(rising) > 0).all()
    np.testing.assert_allclose(srgb_of_linear(np.array([0, 0.2140, 1.0])), [0, 0.5, 1], atol=1e-3)


@pytest.mark.parametrize("transfer", ["pq", "hlg"])
def test_hdr_greys_and_hues(transfer: Any) -> None:
    # 20.3 nits, a tenth of white, is below the knee: linear 0.1 is 0.349 in sRGB, 89 of 255
    signal = {"pq": 0.3553, "hlg": 0.3415}[transfer]
    grey = sdr_from_hdr(np.full((1, 1, 3), round(signal * 65535), np.uint16), transfer)
    np.testing.assert_allclose(grey, 89, atol=1)
    white = sdr_from_hdr(np.full((1, 1, 3), round({"pq": 0.7518, "hlg": 1.0}[transfer] * 65535), np.uint16), transfer)
    np.testing.assert_allclose(white, 255, atol=1)
    red = sdr_from_hdr(np.array([[[40000, 20000, 20000]]], np.uint16), transfer)[0, 0]
    assert red[0] > red[1] + 50 and red[0] > red[2] + 50


def test_an_hdr_clip_is_not_grey(tmp_path: Path) -> None:
    """10-bit PQ with a white of 203 nits beside a grey of 20.3: encoded and tagged as telephones do."""
    signal = np.full((H, W), 0.3553)
    signal[:, : W // 2] = 0.5807
    frame = av.VideoFrame(W, H, "yuv420p10le")
    luma, *chroma = frame.planes
    samples = np.zeros((H, luma.line_size // 2), np.uint16)
    samples[:, :W] = np.round(64 + 876 * signal)
    luma.update(samples.tobytes())
    for plane in chroma:
        plane.update(np.full(plane.buffer_size // 2, 512, np.uint16).tobytes())
    path = write_clip(
        tmp_path / "hdr.mkv",
        [frame],
        codec="ffv1",
        pix_fmt="yuv420p10le",
        options={},
        color_trc=16,
        color_primaries=9,
        colorspace=9,
        color_range=1,
    )
    shown = np.asarray(next(open_clip(path).pictures()).rgb())
    # white of 203 nits: 0.5 + 0.5 u (1 + u / m^2) / (1 + u) with u = 1, m = 8.85 is 0.753, in sRGB 226
    np.testing.assert_allclose(shown[H * 3 // 4, W // 4], 226, atol=3)
    np.testing.assert_allclose(shown[H * 3 // 4, W * 3 // 4], 89, atol=3)


# ---------------------------------------------------------------- animations


@pytest.mark.parametrize("suffix", [".gif", ".webp"])
def test_animations_are_clips(suffix: str, tmp_path: Path) -> None:
    pictures = [Image.fromarray(picture) for picture in moving(10)]
    durations = [100] * 5 + [500] * 5
    path = tmp_path / f"turn{suffix}"
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=durations, loop=0)
    assert open_clip(path).duration_s == pytest.approx(3.0)
    files = frames_of(path, tmp_path / "f", fps=2)
    assert len(files) == 6
    assert [frame_at(file).time_s for file in files][-1] == pytest.approx(2.5)
    still = tmp_path / f"still{suffix}"
    pictures[0].save(still)
    assert extract_frames(plan_footage([still], FootageOptions()), tmp_path) == [still]
    (view,) = load_views([still], ImageSizing(160))
    assert view.frame is None and view.rgb.shape[1] == 160


# ---------------------------------------------------------------- several, and with photos


def test_clips_of_one_name_and_photos_between(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
    first, second = (write_clip(tmp_path / folder / "clip.mp4", moving(10)) for folder in ("a", "b"))
    photo = tmp_path / "photo.jpg"
    Image.fromarray(window(0)).save(photo)
    files = extract_frames(plan_footage([first, photo, second], FootageOptions()), tmp_path / "frames")
    assert [file.name[:7] for file in files] == ["clip_00", "clip_00", "photo.j", "clip-2_", "clip-2_"]
    assert clips_of(files) == ["clip.mp4"] * 2 + [None] + ["clip-2.mp4"] * 2
    views = load_views(files, ImageSizing(64))
    assert [view.frame and view.frame.clip for view in views] == clips_of(files)
    # frames of one clip share a camera, whatever the network predicts of their zoom
    groups = group_cameras(views, IntrinsicsGroups.AUTO, [100.0, 300.0, 100.0, 100.0, 300.0])
    assert groups == (0, 0, 1, 2, 2)


def test_one_picture_of_a_still_clip_beside_others(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    still = write_clip(tmp_path / "tripod.mp4", [window(0)] * 20)
    walk = write_clip(tmp_path / "walk.mp4", moving(10))
    with caplog.at_level(logging.WARNING):
        files = extract_frames(plan_footage([still, walk], FootageOptions()), tmp_path / "f")
    assert len(files) == 3
    assert "tripod.mp4: the camera does not move in 2.0 s; one frame of it is used" in caplog.text


# ---------------------------------------------------------------- what cannot be used


def bad_clip(kind: str, folder: Path) -> Path:
    match kind:
        case "noise":
            (folder / "noise.mp4").write_bytes(bytes(range(256)) * 40)
            return folder / "noise.mp4"
        case "empty":
            (folder / "empty.mov").write_bytes(b"")
            return folder / "empty.mov"
        case "cut off":
            whole = write_clip(folder / "whole.mp4", moving(10)).read_bytes()
            (folder / "cut.mp4").write_bytes(whole[: len(whole) // 2])  # its index stands at the end
            return folder / "cut.mp4"
        case "sound":
            with av.open(str(folder / "sound.mp4"), "w") as container:
                stream = container.add_stream("aac", rate=44100)
                frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
                frame.sample_rate = 44100
                container.mux(stream.encode(frame))
                container.mux(stream.encode())
            return folder / "sound.mp4"
        case "one picture":
            return write_clip(folder / "one.mp4", moving(1))
        case "still":
            return write_clip(folder / "still.mp4", [window(0)] * 30)
    raise AssertionError(kind)


BAD_CLIPS = {
    "noise": "cannot be decoded",
    "empty": "cannot be decoded",
    "cut off": "cannot be decoded",
    "sound": "has no pictures",
    "one picture": "is a clip of a single picture",
    "still": "the camera does not move in 3.0 s",
}


@pytest.mark.parametrize("kind", BAD_CLIPS)
def test_bad_clips_are_one_line(kind: str, tmp_path: Path) -> None:
    path = bad_clip(kind, tmp_path)
    with pytest.raises(InputError, match=BAD_CLIPS[kind]) as caught:
        frames_of(path, tmp_path / "f")
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "words", ["ffconcat version 1.0\nfile film.mp4\n", "#EXTM3U\n#EXTINF:1,\nfilm.mp4\n#EXT-X-ENDLIST\n"]
)
def test_a_list_that_names_other_files_is_no_clip(tmp_path: Path, words: str) -> None:
    """Though FFmpeg would read them: the file may come from a stranger."""
    film = write_clip(tmp_path / "film.mp4", [window(x) for x in range(0, 40, 4)])
    assert open_clip(film).num_pictures == 10
    (tmp_path / "list.mp4").write_text(words)
    with pytest.raises(InputError, match=r"list\.mp4: the clip cannot be decoded"):
        open_clip(tmp_path / "list.mp4")


def test_a_clip_damaged_in_the_middle_is_used_as_far_as_possible(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_clip(tmp_path / "d.mkv", moving(30), options={"crf": "10", "preset": "ultrafast", "g": "5"})
    data = bytearray(path.read_bytes())
    middle = slice(len(data) // 2, len(data) // 2 + len(data) // 10)
    data[middle] = bytes(len(data[middle]))
    path.write_bytes(data)
    with caplog.at_level(logging.WARNING):
        files = frames_of(path, tmp_path / "f")
    assert len(files) >= 3


def test_without_the_library_one_line_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clips_module, "find_spec", lambda name: None)
    (tmp_path / "a.mp4").write_bytes(b"x")
    with pytest.raises(InputError, match=r"a\.mp4: films need the package av: pip install 'mast3r-sfm\[video\]'"):
        frames_of(tmp_path / "a.mp4", tmp_path)


@pytest.mark.parametrize(("options", "message"), [({"fps": 0}, "`fps` is 0"), ({"max_frames": 1}, "`max_frames` is 1")])
def test_impossible_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        FootageOptions(**options)


# ---------------------------------------------------------------- the scene graph


def test_pairs_of_clips_by_time_and_by_looks() -> None:
    """Two clips of 8 frames and a photo. The first comes back to its start at its end; the photo shows its middle."""
    clips = ["a"] * 8 + ["b"] * 8 + [None]
    similarity = np.full((17, 17), 0.1)
    for i, j in ((0, 7), (4, 16), (2, 12)):
        similarity[i, j] = similarity[j, i] = 0.9
    np.fill_diagonal(similarity, 1)
    pairs = make_pairs("video-2", 17, similarity, clips=clips)
    assert len(set(pairs)) == len(pairs) and all(i < j for i, j in pairs)
    within = {(i, j) for i, j in pairs if j - i <= 2 and clips[i] == clips[j]}
    assert within == {(i, i + d) for i in range(17) for d in (1, 2) if i + d < 17 and clips[i] == clips[i + d]}
    assert {(0, 7), (4, 16), (2, 12)} <= set(pairs)
    assert len(pairs) <= len(within) + 17 * SceneGraph.VIDEO_LINKS


def test_links_of_a_frame_go_to_different_places() -> None:
    # frame 0 is like frames 9, 10 and 11, which are neighbours: one link to them is enough
    similarity = np.full((14, 14), 0.1) + 0.001 * np.arange(14)
    similarity[0, 9:12] = [0.7, 0.8, 0.7]
    pairs = make_pairs("video-2", 14, similarity)  # without clips: one row of photos
    # then frame 13, the best of those not within 2 of frame 10, and 7, the best that is left
    assert [j for i, j in pairs if i == 0] == [1, 2, 7, 10, 13]


def test_the_usual_graph_depends_on_the_input() -> None:
    usual = SceneGraph.parse("usual")
    assert str(usual.resolved(300)) == "complete" and str(usual.resolved(300, has_clips=True)) == "video-5"
    assert not usual.needs_similarity(300) and usual.needs_similarity(300, has_clips=True)
    assert make_pairs("usual", 3) == make_pairs("complete", 3)
    assert str(SceneGraph.parse("video-7")) == "video-7"


def test_a_frame_is_told_by_its_own_mark_only(tmp_path: Path) -> None:
    path = tmp_path / "photo.jpg"
    exif = Image.Exif()
    exif[0x010E] = json.dumps({"clip": "x", "time_s": 1})
    Image.fromarray(window(0)).save(path, exif=exif)
    assert clips_of([path]) == [None]
    exif[0x0131] = "mast3r-sfm"
    exif[0x010E] = "no json"
    Image.fromarray(window(0)).save(path, exif=exif)
    assert clips_of([path]) == [None]


# ---------------------------------------------------------------- a whole run


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A rendered clip of 4 views, reconstructed by one command; the folder was moved since."""
    folder = tmp_path_factory.mktemp("run")
    rendered = render_orbit(900_100, 4, (128, 96), 45, effects=0)
    path = write_clip(folder / "orbit.mp4", [image.numpy() for image in rendered.rgb], fps=2, options={"crf": "4"})
    arguments = ["reconstruct", "--input", str(path), "--output", str(folder / "made"), "--model-name", "small"]
    arguments += ["--image-size", "128"]
    with pytest.raises(SystemExit) as ended:
        main([*arguments, "--device", "cpu", "--niter", "40", "--no-refine-cameras", "--export", "colmap"])
    assert ended.value.code == 0
    assert {entry.name for entry in folder.iterdir()} == {"orbit.mp4", "made"}  # no working folder is left
    path.unlink()
    return (folder / "made").rename(folder / "moved")


def test_a_run_keeps_the_frames_in_its_result(result: Path) -> None:
    frames = sorted(path.name for path in (result / "frames").iterdir())
    assert frames == [f"orbit_{k:06d}.jpg" for k in range(4)]
    images = json.loads((result / "cameras.json").read_text())["images"]
    assert [image["file"] for image in images] == [f"frames/{name}" for name in frames]
    assert [image["clip"] for image in images] == ["orbit.mp4"] * 4
    assert [image["clip_time_s"] for image in images] == pytest.approx([0, 0.5, 1, 1.5], abs=2e-3)
    assert all(image["registered"] for image in images)
    assert len({image["K_original"][0][0] for image in images}) == 1  # one camera
    run = json.loads((result / "run.json").read_text())
    assert [image["file"] for image in run["images"]] == [f"frames/{name}" for name in frames]
    assert run["pairs"] and not any("frames-" in warning for warning in run["warnings"])  # where they were for the run
    copies = sorted((result / "colmap" / "images").iterdir())
    assert [path.read_bytes() for path in copies] == [(result / "frames" / name).read_bytes() for name in frames]


def test_a_moved_result_finds_its_frames(result: Path, caplog: pytest.LogCaptureFixture) -> None:
    loaded = Reconstruction.load(result)
    assert [Path(view.file) for view in loaded.views] == sorted((result / "frames").iterdir())
    frame = loaded.views[1].frame
    assert frame is not None and frame.clip == "orbit.mp4" and frame.time_s == pytest.approx(0.5, abs=2e-3)
    with pytest.raises(SystemExit) as ended:
        main(["export", str(result), "--as-pointcloud", "--quiet"])
    assert ended.value.code == 0
    assert json.loads((result / "cameras.json").read_text())["images"][0]["file"] == "frames/orbit_000000.jpg"
    with caplog.at_level(logging.WARNING):
        loaded.save(result.parent / "copy")
    assert not caplog.records
    assert sorted(path.name for path in (result.parent / "copy" / "frames").iterdir())[0] == "orbit_000000.jpg"


def test_a_result_with_foreign_frames_is_not_replaced(result: Path) -> None:
    stranger = result / "frames" / "holiday.png"
    stranger.touch()
    try:
        with pytest.raises(InputError, match=r"also frames/holiday\.png, which `overwrite=True` would delete"):
            check_output(result, overwrite=True)
    finally:
        stranger.unlink()
    check_output(result, overwrite=True)


def test_a_bad_clip_ends_the_command_with_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = bad_clip("still", tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(["reconstruct", "--input", str(path), "--output", str(tmp_path / "deep" / "made")])
    assert ended.value.code == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith(f"Error: {path}: the camera does not move in 3.0 s")
    assert not (tmp_path / "deep").exists()
