"""RAW photos, colour profiles, samples that do not fill their 16 bits, GPS, and what folders hold besides photos."""

import io
import logging
import struct
import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image, ImageCms

from mast3r_sfm.errors import InputError
from mast3r_sfm.images import raw as raw_module
from mast3r_sfm.images.decoding import decode_image, plain_file
from mast3r_sfm.images.finding import find_footage, find_images
from mast3r_sfm.images.gps import gps_from_exif
from mast3r_sfm.images.loading import ImageSizing, load_views, read_photo
from mast3r_sfm.types import CameraIdentity, GpsFix

AS_IS = ImageSizing(size=64, patch_size=16, accept_squares=True)
H, W = 48, 64
Y, X = np.mgrid[:H, :W]
COLOUR = np.stack([(5 * X + 3 * Y) % 256, 255 - (5 * X + 3 * Y) % 256, (2 * X + Y) % 256], -1).astype(np.uint8)


def encoded(image: Image.Image, file_format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


# ---------------------------------------------------------------- RAW


def dng(bayer: np.ndarray, orientation: int = 1) -> bytes:
    """An uncompressed DNG (Adobe, version 1.4) of (h, w) 14-bit samples, RGGB, whose camera sees sRGB's primaries."""
    height, width = bayer.shape
    srgb_from_xyz = [3.2406, -1.5372, -0.4986, -0.9689, 1.8758, 0.0415, 0.0557, -0.2040, 1.0570]
    entries: list[tuple[int, int, int, bytes]] = []

    def add(tag: int, kind: int, *values: int) -> None:
        entries.append((tag, kind, len(values), struct.pack(f"<{len(values)}{'?BBHI'[kind]}", *values)))

    def add_text(tag: int, text: str) -> None:
        entries.append((tag, 2, len(text) + 1, text.encode() + b"\0"))

    def add_fractions(tag: int, signed: bool, *values: float) -> None:
        data = b"".join(struct.pack("<ii" if signed else "<II", round(value * 10000), 10000) for value in values)
        entries.append((tag, 10 if signed else 5, len(values), data))

    add(254, 4, 0)
    add(256, 4, width)
    add(257, 4, height)
    add(258, 3, 16)
    add(259, 3, 1)
    add(262, 3, 32803)
    add_text(271, "Maker")
    add_text(272, "Model 1")
    add(273, 4, 0)  # where the samples are; filled in below
    add(274, 3, orientation)
    add(277, 3, 1)
    add(278, 4, height)
    add(279, 4, bayer.nbytes)
    add(284, 3, 1)
    add(33421, 3, 2, 2)
    add(33422, 1, 0, 1, 1, 2)
    add(34665, 4, 0)  # EXIF; filled in below
    add(50706, 1, 1, 4, 0, 0)
    add_text(50708, "Maker Model 1")
    add(50714, 3, 0)
    add(50717, 4, 16383)
    add_fractions(50721, True, *srgb_from_xyz)
    add_fractions(50728, False, 1, 1, 1)
    add(50778, 3, 21)
    directory_end = 8 + 2 + 12 * len(entries) + 4
    exif = struct.pack("<H", 1) + struct.pack("<HHII", 0xA405, 3, 1, 50) + struct.pack("<I", 0)
    blob, rows = exif, b""
    for tag, kind, count, data in entries:
        if tag in (273, 34665):
            start = 0 if tag == 34665 else -1
            data = struct.pack("<i", directory_end + start) if tag == 34665 else b"SAMP"
        if len(data) > 4:
            place = directory_end + len(blob)
            blob += data + b"\0" * (len(data) % 2)
            data = struct.pack("<I", place)
        rows += struct.pack("<HHI", tag, kind, count) + data.ljust(4, b"\0")
    rows = rows.replace(b"SAMP", struct.pack("<I", directory_end + len(blob)))
    header = b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", len(entries))
    return header + rows + struct.pack("<I", 0) + blob + bayer.astype("<u2").tobytes()


def mosaic(rgb: np.ndarray) -> np.ndarray:
    """Linear (h, w, 3) in [0, 1] as RGGB samples."""
    samples = rgb[..., 1].copy()
    samples[::2, ::2] = rgb[::2, ::2, 0]
    samples[1::2, 1::2] = rgb[1::2, 1::2, 2]
    return np.round(samples * 16383).astype(np.uint16)


def quadrants(height: int = 200, width: int = 300) -> np.ndarray:
    """Red top left, green top right, blue bottom left, white bottom right."""
    rgb = np.full((height, width, 3), 0.05)
    rgb[: height // 2, : width // 2, 0] = 0.8
    rgb[: height // 2, width // 2 :, 1] = 0.8
    rgb[height // 2 :, : width // 2, 2] = 0.8
    rgb[height // 2 :, width // 2 :] = 0.8
    return rgb


def test_a_raw_photo_is_developed(tmp_path: Path) -> None:
    pytest.importorskip("rawpy")
    path = tmp_path / "photo.dng"
    path.write_bytes(dng(mosaic(quadrants())))
    (view,) = load_views([path], ImageSizing(304, 16))
    photo = np.asarray(read_photo(view)[0]).astype(int)
    assert photo.shape == (200, 300, 3) and view.transform.original_size == (300, 200)
    red, green, blue, white = photo[50, 75], photo[50, 225], photo[150, 75], photo[150, 225]
    assert red.argmax() == 0 and green.argmax() == 1 and blue.argmax() == 2
    assert all(np.sort(colour)[2] - np.sort(colour)[1] > 80 for colour in (red, green, blue))
    assert white.min() > 220 and np.ptp(white) < 8
    assert view.camera == CameraIdentity("Maker", "Model 1", focal_35mm=50.0)
    assert view.focal_exif_px == pytest.approx(50 / np.hypot(36, 24) * np.hypot(300, 200))
    assert plain_file(path.read_bytes(), str(path)) is None  # no program shows it as we do


def test_a_raw_photo_is_turned_once() -> None:
    pytest.importorskip("rawpy")
    upright = decode_image(dng(mosaic(quadrants())), "a.dng").rgb
    turned = decode_image(dng(mosaic(quadrants()), orientation=6), "a.DNG").rgb  # to be turned clockwise
    assert turned.size == (200, 300)
    difference = np.asarray(turned).astype(int) - np.rot90(np.asarray(upright), -1)
    assert np.median(np.abs(difference)) <= 2


def test_bad_raw_photos_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("rawpy")
    whole = dng(mosaic(quadrants()))
    for data in (b"II*\0" + bytes(100), bytes(range(256)), whole[:200]):
        with pytest.raises(InputError, match=r"^x\.nef \(.*\): not a RAW photo that can be read"):
            decode_image(data, "x.nef")
    monkeypatch.setattr(raw_module, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"x\.dng .*need the package rawpy: pip install 'mast3r-sfm\[raw\]'"):
        decode_image(whole, "x.dng")


# ---------------------------------------------------------------- colour profiles


def profile(primaries: list[tuple[float, float]], gamma: float) -> bytes:
    """A display profile (ICC 2.4) by hand: white D65, `primaries` (x, y) of red, green and blue, one exponent."""
    white = np.array([0.9505, 1.0, 1.089])
    xyz = np.array([[x / y, 1, (1 - x - y) / y] for x, y in primaries]).T
    xyz = xyz * np.linalg.solve(xyz, white)
    cone = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])  # Bradford
    d50 = np.array([0.9642, 1.0, 0.8249])
    xyz = np.linalg.inv(cone) @ np.diag((cone @ d50) / (cone @ white)) @ cone @ xyz

    def s15(values: Any) -> bytes:
        return b"".join(struct.pack(">i", round(value * 65536)) for value in values)

    curve = b"curv" + bytes(4) + struct.pack(">IH", 1, round(gamma * 256)) + bytes(2)
    text = b"test"
    tags = {
        b"desc": b"desc" + bytes(4) + struct.pack(">I", len(text) + 1) + text + bytes(80),
        b"cprt": b"text" + bytes(4) + text + b"\0",
        b"wtpt": b"XYZ " + bytes(4) + s15(d50),
        **{name: b"XYZ " + bytes(4) + s15(xyz[:, k]) for k, name in enumerate((b"rXYZ", b"gXYZ", b"bXYZ"))},
        **dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve),
    }
    offset, table, body = 128 + 4 + 12 * len(tags), struct.pack(">I", len(tags)), b""
    for name, data in tags.items():
        data += bytes(-len(data) % 4)
        table += name + struct.pack(">II", offset + len(body), len(data))
        body += data
    header = struct.pack(">I4sI4s4s4s", 128 + len(table) + len(body), b"lcms", 0x02400000, b"mntr", b"RGB ", b"XYZ ")
    header += bytes(12) + b"acsp" + bytes(28) + s15(d50)
    return header.ljust(128, b"\0") + table + body


ADOBE = profile([(0.64, 0.33), (0.21, 0.71), (0.15, 0.06)], 2.19921875)
P3_GAMMA = profile([(0.68, 0.32), (0.265, 0.69), (0.15, 0.06)], 2.2)
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


@pytest.mark.parametrize("file_format", ["PNG", "TIFF", "WEBP"])
def test_srgb_profiles_change_no_bit(file_format: str) -> None:
    options = {"lossless": True} if file_format == "WEBP" else {}
    data = encoded(Image.fromarray(COLOUR), file_format, icc_profile=SRGB, **options)
    np.testing.assert_array_equal(np.asarray(decode_image(data, "x").rgb), COLOUR)
    if file_format != "WEBP":
        assert plain_file(data) is not None


def test_colours_of_other_profiles_become_srgb() -> None:
    # Adobe RGB (1998): its green is linear (-0.398, 1, -0.043) in sRGB, out of its reach: 0, 255, 0 after clipping.
    # 128, 64, 64 is (0.2196, 0.0478, 0.0478) linear; times the matrix (1.398, -0.398, 0; 0, 1, 0; 0, -0.043, 1.043)
    # it is (0.2880, 0.0478, 0.0478), in sRGB (146, 62, 62)
    flat = np.zeros((8, 8, 3), np.uint8) + np.array([128, 64, 64], np.uint8)
    data = encoded(Image.fromarray(flat), "PNG", icc_profile=ADOBE)
    np.testing.assert_allclose(np.asarray(decode_image(data, "x").rgb)[0, 0], [146, 62, 62], atol=2)
    assert plain_file(data) is None
    grey = np.zeros((8, 8, 3), np.uint8) + np.uint8(128)
    data = encoded(Image.fromarray(grey), "PNG", icc_profile=P3_GAMMA)
    np.testing.assert_allclose(np.asarray(decode_image(data, "x").rgb)[0, 0], 128, atol=2)


def test_transparent_images_with_a_profile() -> None:
    rgba = np.dstack(
        [np.zeros((8, 8, 3), np.uint8) + np.array([128, 64, 64], np.uint8), np.full((8, 8), 255, np.uint8)]
    )
    rgba[:, :4, 3] = 0
    decoded = decode_image(encoded(Image.fromarray(rgba), "PNG", icc_profile=ADOBE), "x")
    np.testing.assert_array_equal(np.asarray(decoded.rgb)[0, 0], [255, 255, 255])  # white stays white
    np.testing.assert_allclose(np.asarray(decoded.rgb)[0, 7], [146, 62, 62], atol=2)


@pytest.mark.parametrize("damaged", [b"no profile", ADOBE[:200], ADOBE[:16] + b"Lab " + ADOBE[20:]])
def test_damaged_profiles_are_told_and_ignored(damaged: bytes, caplog: pytest.LogCaptureFixture) -> None:
    data = encoded(Image.fromarray(COLOUR), "PNG", icc_profile=damaged)
    with caplog.at_level(logging.WARNING):
        np.testing.assert_array_equal(np.asarray(decode_image(data, "x.png").rgb), COLOUR)
    assert "x.png: its colour profile cannot be used and is ignored" in caplog.text


# ---------------------------------------------------------------- samples of 10 and 12 bits in files of 16


def png_16bit(samples: np.ndarray) -> bytes:
    """A grey or RGB PNG, by hand: Pillow cannot write 16-bit colour."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in samples)
    kind = 2 if samples.ndim == 3 else 0
    header = struct.pack(">IIBBBBB", samples.shape[1], samples.shape[0], 16, kind, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    )  # fmt: skip


def deep_file(folder: Path, samples: np.ndarray, kind: str) -> Path:
    path = folder / f"{len(list(folder.iterdir()))}.{kind.split('-')[0]}"
    if kind == "png":
        path.write_bytes(png_16bit(samples))
    else:
        compression = {"tif": 1, "tif-lzw": 5}[kind]
        pixels = samples[..., ::-1] if samples.ndim == 3 else samples
        assert cv2.imwrite(str(path), pixels, [cv2.IMWRITE_TIFF_COMPRESSION, compression])
    return path


@pytest.mark.parametrize("kind", ["png", "tif", "tif-lzw"])
@pytest.mark.parametrize("bits", [8, 10, 12])
@pytest.mark.parametrize("colours", [1, 3])
def test_samples_that_leave_bits_free(
    kind: str, bits: int, colours: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rng = np.random.default_rng(bits)
    bright, dark = (rng.integers(0, 2**bits // share, (H, W, colours), dtype=np.uint16).squeeze() for share in (1, 4))
    bright.flat[0] = 2**bits - 1
    files = [deep_file(tmp_path, samples, kind) for samples in (bright, dark)]
    with caplog.at_level(logging.WARNING):
        views = load_views(files, AS_IS)
    for view, samples in zip(views, (bright, dark), strict=True):
        expected = (samples >> (bits - 8)).astype(np.uint8)
        np.testing.assert_array_equal(view.rgb, np.dstack([expected] * 3) if colours == 1 else expected)
        np.testing.assert_array_equal(np.asarray(read_photo(view)[0]), view.rgb)
        assert view.sample_bits == bits
    assert f"the 2 image(s) of 16 bits hold values up to {2**bits - 1} only" in caplog.text


def test_one_full_photo_keeps_the_range_of_all(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    dark, full = np.full((H, W), 900, np.uint16), np.full((H, W), 60000, np.uint16)
    files = [deep_file(tmp_path, samples, "png") for samples in (dark, full)]
    ordinary = tmp_path / "x.png"
    Image.fromarray(COLOUR).save(ordinary)
    with caplog.at_level(logging.WARNING):
        views = load_views([*files, ordinary], AS_IS)
    assert [view.rgb[0, 0, 0] for view in views[:2]] == [900 >> 8, 60000 >> 8]
    np.testing.assert_array_equal(views[2].rgb, COLOUR)
    assert [view.sample_bits for view in views] == [16] * 3 and not caplog.records


# ---------------------------------------------------------------- GPS


def test_gps_from_a_file(tmp_path: Path) -> None:
    exif = Image.Exif()
    # 48 degrees 51 minutes 30 seconds north, 2 degrees 17.4 minutes west, 35 m
    exif.get_ifd(0x8825).update(
        {1: "N", 2: (48.0, 51.0, 30.0), 3: "W", 4: (2.0, 17.4, 0.0), 5: b"\0", 6: 35.0, 31: 4.5}
    )
    exif[0x8825] = 0
    path = tmp_path / "a.jpg"
    Image.fromarray(COLOUR).save(path, exif=exif)
    (view,) = load_views([path], AS_IS)
    assert view.gps is not None
    assert view.gps.latitude_deg == pytest.approx(48 + 51 / 60 + 30 / 3600, abs=1e-6)
    assert view.gps.longitude_deg == pytest.approx(-(2 + 17.4 / 60), abs=1e-6)
    assert (view.gps.altitude_m, view.gps.horizontal_error_m) == pytest.approx((35.0, 4.5))
    Image.fromarray(COLOUR).save(path)
    assert load_views([path], AS_IS)[0].gps is None


PLACE: dict[int, Any] = {1: "S", 2: (10.0, 30.0, 0.0), 3: "E", 4: (20.0, 0.0, 36.0)}
GPS_CASES: dict[str, tuple[dict[int, Any], GpsFix | None]] = {
    "place alone": (PLACE, GpsFix(-10.5, 20.01)),
    "below the sea": ({**PLACE, 5: b"\x01", 6: 3.0}, GpsFix(-10.5, 20.01, -3.0)),
    "error of 0": ({**PLACE, 31: 0.0}, GpsFix(-10.5, 20.01)),
    "altitude that is none": ({**PLACE, 6: float("nan")}, GpsFix(-10.5, 20.01)),
    "no measurement": ({**PLACE, 9: "V"}, None),
    "null island": ({1: "N", 2: (0.0, 0.0, 0.0), 3: "E", 4: (0.0, 0.0, 0.0)}, None),
    "no hemisphere": ({2: PLACE[2], 4: PLACE[4]}, None),
    "too far north": ({**PLACE, 2: (91.0, 0.0, 0.0)}, None),
    "two numbers": ({**PLACE, 2: (10.0, 30.0)}, None),
    "nonsense": ({**PLACE, 2: ("a", b"b", None)}, None),
    "nothing": ({}, None),
}


@pytest.mark.parametrize("name", GPS_CASES)
def test_gps_tags(name: str) -> None:
    tags, expected = GPS_CASES[name]
    found = gps_from_exif(tags)
    if expected is None:
        assert found is None
    else:
        assert found is not None
        assert (found.latitude_deg, found.longitude_deg) == pytest.approx(
            (expected.latitude_deg, expected.longitude_deg)
        )
        assert (found.altitude_m, found.horizontal_error_m) == (expected.altitude_m, expected.horizontal_error_m)


# ---------------------------------------------------------------- what folders hold


def touched(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def test_a_telephones_folder(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    touched(tmp_path, "IMG_1.HEIC", "IMG_1.MOV", "IMG_1.AAE", "IMG_2.JPG", "img_2.mov", "._IMG_1.HEIC", "Thumbs.db")
    with caplog.at_level(logging.INFO):
        assert [path.name for path in find_footage([tmp_path])] == ["IMG_1.HEIC", "IMG_2.JPG"]
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert "2 films of live photos are not used: IMG_1.MOV, img_2.mov" in caplog.text
    assert "2 files that cameras and file managers write" in caplog.text
    # named explicitly it is wanted
    assert find_footage([tmp_path / "IMG_1.HEIC", tmp_path / "IMG_1.MOV"])[1].name == "IMG_1.MOV"


def test_clips_among_photos_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    touched(tmp_path, "a.jpg", "b.jpg", "walk.mp4")
    with caplog.at_level(logging.WARNING):
        assert [path.name for path in find_footage([tmp_path])] == ["a.jpg", "b.jpg"]
    assert "1 clip(s) among photos are not used; name them to use them: walk.mp4" in caplog.text
    both = find_footage([tmp_path, tmp_path / "walk.mp4"])
    assert [path.name for path in both] == ["a.jpg", "b.jpg", "walk.mp4"]
    touched(tmp_path / "clips", "2.mov", "10.mp4")
    assert [path.name for path in find_footage([tmp_path / "clips"])] == ["2.mov", "10.mp4"]
    with pytest.raises(InputError, match=r"2\.mov: is a clip, and here photos are wanted"):
        find_images([tmp_path / "clips"])


def test_raw_files_beside_developed_photos(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    touched(tmp_path, "a.CR2", "a.jpg", "b.nef", "sub/a.dng")
    with caplog.at_level(logging.INFO):
        found = find_footage([tmp_path], recursive=True)
    assert [str(path.relative_to(tmp_path)) for path in found] == ["a.jpg", "b.nef", "sub/a.dng"]
    assert "1 RAW files are not used, because the developed photos are there: a.CR2" in caplog.text


def test_photos_in_subfolders(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    touched(tmp_path, "a.jpg", "day2/b.jpg", "day10/c.png", "day10/deep/d.jpg", ".hidden/e.jpg", "@eaDir/a.jpg")
    touched(tmp_path, "result/reconstruction.npz", "result/depth_000.png", "day2/notes.txt")
    with caplog.at_level(logging.WARNING):
        assert [path.name for path in find_footage([tmp_path])] == ["a.jpg"]
    assert f"{tmp_path}: 3 photo(s) in 3 subfolder(s) are not used; take them too by `recursive=True`" in caplog.text
    caplog.clear()
    found = find_footage([tmp_path], recursive=True)
    names = ["a.jpg", "day2/b.jpg", "day10/c.png", "day10/deep/d.jpg"]
    assert [str(path.relative_to(tmp_path)) for path in found] == names and not caplog.records
    (tmp_path / "a.jpg").unlink()
    with pytest.raises(InputError, match=r"no image .*; 3 photo\(s\) in 3 subfolder\(s\): use `recursive"):
        find_footage([tmp_path])
