"""Reading images: what is found, decoded, resized, cropped, refused; and the pixel mappings back."""

import hashlib
import io
import json
import logging
import struct
import time
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pillow_heif
import pytest
import torch
from PIL import Image, TiffImagePlugin

from mast3r_sfm.errors import InputError
from mast3r_sfm.images.decoding import DecodedImage, camera_from_exif, decode_image, focal_px_from_exif
from mast3r_sfm.images.finding import IMAGE_SUFFIXES, find_images
from mast3r_sfm.images.loading import (
    ImageSizing,
    crop_loss,
    load_image,
    load_views,
    network_transform,
)
from mast3r_sfm.types import CameraIdentity, ImageTransform, View

GOLDEN = json.loads((Path(__file__).parent / "data" / "preprocess.json").read_text())
AS_IS = ImageSizing(size=64, patch_size=16, accept_squares=True)
"""Leaves a 64x48 image as it is, so that every pixel can be compared."""

H, W = 48, 64
Y, X = np.mgrid[:H, :W]
GREY = ((5 * X + 3 * Y) % 256).astype(np.uint8)
COLOUR = np.stack([GREY, 255 - GREY, (2 * X + Y).astype(np.uint8)], -1)
GREY16 = ((5 * X + 3 * Y) % 256 * 256 + X).astype(np.uint16)  # upper byte GREY, lower byte X
RAMP_ALPHA = np.where(X < 16, 0, np.where(X < 32, 128, 255)).astype(np.uint8)


def encoded(image: Image.Image, file_format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def write_image(path: Path, size: tuple[int, int] = (W, H), colour: tuple[int, int, int] = (10, 20, 30)) -> Path:
    Image.new("RGB", size, colour).save(path)
    return path


def view_of(data: bytes, folder: Path, name: str = "photo.png", sizing: ImageSizing = AS_IS) -> View:
    return load_image(write(folder / name, data), 0, sizing)


def on_white(colour: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Straight compositing in real numbers: a * colour + (1 - a) * white."""
    a = alpha[..., None] / 255.0
    return a * colour + (1 - a) * 255.0


def exif_with(orientation: int | None = None, make: Any = None, model: Any = None, **tags: Any) -> Image.Exif:
    names = {"focal_mm": 0x920A, "focal_35mm": 0xA405, "x_resolution": 0xA20E, "unit": 0xA210, "width": 0xA002}
    names["lens"] = 0xA434
    exif = Image.Exif()
    if make is not None:
        exif[0x010F] = make
    if model is not None:
        exif[0x0110] = model
    if orientation is not None:
        exif[0x0112] = orientation
    if tags:
        exif.get_ifd(0x8769).update({names[key]: value for key, value in tags.items()})
        exif[0x8769] = 0  # the offset, which Pillow fills in
    return exif


def png_16bit(samples: np.ndarray, key: tuple[int, ...] | None = None) -> bytes:
    """A 16-bit PNG (grey, RGB or RGBA by the last axis), written by hand; Pillow cannot write 16-bit colour."""
    channels = samples.shape[2] if samples.ndim == 3 else 1
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in samples)

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", samples.shape[1], samples.shape[0], 16, {1: 0, 3: 2, 4: 6}[channels], 0, 0, 0)
    transparency = chunk(b"tRNS", struct.pack(f">{len(key)}H", *key)) if key else b""
    pixels = chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + transparency + pixels + chunk(b"IEND", b"")


# ---------------------------------------------------------------- mapping pixels and intrinsics

HALVED = ImageTransform(
    original_size=(1000, 600), resized_size=(500, 300), crop_left_top=(2, 6), network_size=(496, 288)
)


def test_pixels_by_hand() -> None:
    # the centre of the first original pixel lies 0.5 px from the border, 0.25 px after halving: at -0.25; crop 2, 6
    np.testing.assert_allclose(HALVED.to_network(np.array([0.0, 0.0])), [-2.25, -6.25])
    # the border itself, -0.5, stays at -0.5 before the crop
    np.testing.assert_allclose(HALVED.to_network(np.array([-0.5, -0.5])), [-2.5, -6.5])
    # network pixel (0, 0) is resized pixel (2, 6), whose centre lies 2.5, 6.5 px from the border: original 5, 13
    np.testing.assert_allclose(HALVED.to_original(np.array([0.0, 0.0])), [4.5, 12.5])


def test_pixels_there_and_back() -> None:
    transform = ImageTransform((4001, 2999), (512, 384), (0, 8), (512, 368))
    xy = np.random.default_rng(0).uniform(-10, 600, (5, 7, 2))
    np.testing.assert_allclose(transform.to_network(transform.to_original(xy)), xy, atol=1e-9)
    np.testing.assert_allclose(transform.to_original(transform.to_network(xy)), xy, atol=1e-9)
    homogeneous = np.concatenate([xy, np.ones((5, 7, 1))], -1) @ transform.original_from_network.T
    np.testing.assert_allclose(homogeneous[..., :2], transform.to_original(xy), atol=1e-9)


def test_intrinsics_by_hand() -> None:
    # halving halves the focal; the centre (499.5, 299.5) becomes the centre (249.5, 149.5), less the crop
    K = np.array([[800.0, 0, 499.5], [0, 800.0, 299.5], [0, 0, 1]])
    expected = np.array([[400.0, 0, 247.5], [0, 400.0, 143.5], [0, 0, 1]])
    np.testing.assert_allclose(HALVED.K_to_network(K), expected)
    np.testing.assert_allclose(HALVED.K_to_original(expected), K)


def test_intrinsics_and_pixels_agree() -> None:
    transform = ImageTransform((1920, 1081), (512, 288), (0, 0), (512, 288))  # the two axes scale differently
    K = np.array([[1500.0, 0, 950.0], [0, 1490.0, 530.0], [0, 0, 1]])
    point = np.array([0.3, -0.2, 2.0])

    def project(matrix: np.ndarray) -> np.ndarray:
        return (matrix @ point)[:2] / point[2]

    np.testing.assert_allclose(project(transform.K_to_network(K)), transform.to_network(project(K)))


def test_transform_follows_a_mark_through_a_file(tmp_path: Path) -> None:
    # a Gaussian blob in the original is found again in the network's image where to_network says
    y, x = np.mgrid[:900, :1400]
    blob = 255 * np.exp(-((x - 940.3) ** 2 + (y - 311.7) ** 2) / (2 * 20.0**2))
    view = view_of(encoded(Image.fromarray(blob.astype(np.uint8)), "PNG"), tmp_path, sizing=ImageSizing(512))
    weight = view.rgb[..., 0].astype(np.float64)
    rows, columns = np.mgrid[: weight.shape[0], : weight.shape[1]]
    found = np.array([(weight * columns).sum(), (weight * rows).sum()]) / weight.sum()
    np.testing.assert_allclose(found, view.transform.to_network(np.array([940.3, 311.7])), atol=0.02)


# ---------------------------------------------------------------- resize and crop


@pytest.mark.parametrize("case", GOLDEN["cases"], ids=lambda c: f"{c['W']}x{c['H']}-{c['size']}")
def test_sizes_as_published(case: dict[str, Any]) -> None:
    sizing = ImageSizing.for_model(case["size"], patch_size=16, accept_squares=False)
    if not case["ok"]:
        with pytest.raises(InputError, match=rf"^huge\.png: {case['W']}x{case['H']} pixels"):
            network_transform((case["W"], case["H"]), sizing, "huge.png")
        return
    transform = network_transform((case["W"], case["H"]), sizing)
    (left, top), (width, height) = transform.crop_left_top, transform.network_size
    assert list(transform.resized_size) == case["resized"]
    assert [left, top, left + width, top + height] == case["crop"]
    assert [height, width] == case["out_hw"]


@pytest.mark.parametrize("sample", GOLDEN["samples"], ids=lambda s: f"{s['W']}x{s['H']}-exif{s['exif_orientation']}")
def test_tensors_as_published(sample: dict[str, Any], tmp_path: Path) -> None:
    y, x = np.mgrid[: sample["H"], : sample["W"]]
    made = np.stack([3 * x + 5 * y, x * x // 7 + 11 * y, x * y // 5 + 40], -1) % 256
    data = encoded(Image.fromarray(made.astype(np.uint8)), "PNG", exif=exif_with(sample["exif_orientation"]))
    view = view_of(data, tmp_path, sizing=ImageSizing.for_model(sample["size"], 16, accept_squares=False))
    assert list(view.shape) == sample["out_hw"]
    values = np.array(sample["values"])
    np.testing.assert_allclose(view.tensor[:, 3::17, 5::23].numpy().reshape(values.shape), values, atol=1e-6)
    np.testing.assert_allclose(view.tensor.double().mean((1, 2)).numpy(), sample["mean"], atol=1e-6)


@pytest.mark.parametrize("patch", [16, 14, 8, 15])
@pytest.mark.parametrize("size", [518, 224, 160, 333])
@pytest.mark.parametrize("original", [(640, 480), (480, 640), (1000, 1000), (1234, 777), (90, 61)])
def test_any_patch_size(patch: int, size: int, original: tuple[int, int]) -> None:
    transform = network_transform(original, ImageSizing(size, patch))
    (W1, H1), (width, height), (left, top) = transform.resized_size, transform.network_size, transform.crop_left_top
    assert max(W1, H1) == size
    assert width % patch == height % patch == 0
    assert width > 0 and height > 0
    # the crop lies inside, in the middle to within a pixel, and loses less than a patch and a pixel (not for squares)
    assert min(left, top) >= 0 and left + width <= W1 and top + height <= H1
    assert abs(2 * left + width - W1) <= 1 and abs(2 * top + height - H1) <= 1
    assert W1 - width <= patch
    assert H1 - height <= patch or original[0] == original[1]


def test_squares_and_the_224_rule_belong_to_the_published_models() -> None:
    square = (700, 700)
    assert network_transform(square, ImageSizing.for_model(512, 16, accept_squares=False)).network_size == (512, 384)
    assert network_transform(square, ImageSizing.for_model(512, 16, accept_squares=True)).network_size == (512, 512)
    assert network_transform(square, ImageSizing.for_model(160, 8, accept_squares=True)).network_size == (160, 160)
    # 518 = 37 patches of 14; 3/4 of it is 388.5, 27 patches are 378
    assert network_transform(square, ImageSizing.for_model(518, 14, accept_squares=False)).network_size == (518, 378)
    wide = (640, 480)
    assert network_transform(wide, ImageSizing.for_model(224, 16, accept_squares=False)).network_size == (224, 224)
    assert network_transform(wide, ImageSizing.for_model(224, 16, accept_squares=True)).network_size == (224, 160)
    assert network_transform(wide, ImageSizing.for_model(224, 8, accept_squares=True)).network_size == (224, 168)


def test_a_square_is_what_the_resize_leaves_square() -> None:
    # 3999 / 4000 of 512 rounds to 512: square by then; 511 stays 511
    assert network_transform((4000, 3999), ImageSizing(512)).network_size == (512, 384)
    assert network_transform((512, 511), ImageSizing(512)).network_size == (512, 496)


@pytest.mark.parametrize("size", [31, 0, -512])
def test_impossible_image_size(size: int) -> None:
    with pytest.raises(InputError, match=f"`image_size` {size}: must be at least 32"):
        ImageSizing(size, 16)


def test_the_ends_of_the_tensor_range(tmp_path: Path) -> None:
    image = np.zeros((H, W, 3), np.uint8)
    image[:, :20] = 255
    image[:, 20:40] = 51
    view = view_of(encoded(Image.fromarray(image), "PNG"), tmp_path)
    assert view.tensor.dtype == torch.float32 and view.tensor.is_contiguous() and view.tensor.shape == (3, H, W)
    np.testing.assert_array_equal(view.rgb, image)
    # 255 -> 1, 51 = 255 / 5 -> 2/5 - 1, 0 -> -1
    np.testing.assert_allclose(view.tensor[:, 0, [0, 20, 40]].numpy(), [[1.0, -0.6, -1.0]] * 3, atol=1e-7)
    assert view.alpha is None


# ---------------------------------------------------------------- kinds of files, compared pixel by pixel


def palette_image(transparency: int | bytes | None = None) -> bytes:
    image = Image.fromarray((X // 16).astype(np.uint8), "L").convert("P")
    image.putdata((X // 16).ravel().tolist())
    image.putpalette([200, 0, 0, 0, 200, 0, 0, 0, 200, 9, 8, 7])
    return encoded(image, "PNG") if transparency is None else encoded(image, "PNG", transparency=transparency)


PALETTE = np.array([[200, 0, 0], [0, 200, 0], [0, 0, 200], [9, 8, 7]])[X // 16]
CMYK = np.stack([GREY, GREY // 2, 255 - GREY, GREY // 4], -1)
OPAQUE_KINDS = {
    # name: (bytes, expected RGB, largest difference)
    "grey.png": (encoded(Image.fromarray(GREY), "PNG"), GREY[..., None].repeat(3, 2), 0),
    "colour.bmp": (encoded(Image.fromarray(COLOUR), "BMP"), COLOUR, 0),
    "colour.tif": (encoded(Image.fromarray(COLOUR), "TIFF", compression="tiff_lzw"), COLOUR, 0),
    "colour.webp": (encoded(Image.fromarray(COLOUR), "WEBP", lossless=True), COLOUR, 0),
    "bits.png": (encoded(Image.fromarray(GREY > 127), "PNG"), (GREY > 127)[..., None].repeat(3, 2) * 255, 0),
    "palette.png": (palette_image(), PALETTE, 0),
    "grey16.png": (encoded(Image.fromarray(GREY16), "PNG"), GREY[..., None].repeat(3, 2), 0),
    "grey16.tif": (encoded(Image.fromarray(GREY16), "TIFF"), GREY[..., None].repeat(3, 2), 0),
    "grey16_motorola.tif": (encoded(Image.fromarray(GREY16), "TIFF", big_endian=True), GREY[..., None].repeat(3, 2), 0),
    "grey16_white_is_0.tif": (
        encoded(Image.fromarray(GREY16), "TIFF", tiffinfo={262: 0}),
        255 - GREY[..., None].repeat(3, 2),
        0,
    ),
    "colour16.png": (png_16bit(COLOUR.astype(np.uint16) * 256 + 200), COLOUR, 0),
    "grey32_of_16.tif": (
        encoded(Image.fromarray(GREY.astype(np.int32) * 257), "TIFF"),
        GREY[..., None].repeat(3, 2),
        0,
    ),
    "grey32_of_8.tif": (encoded(Image.fromarray(GREY.astype(np.int32)), "TIFF"), GREY[..., None].repeat(3, 2), 0),
    "float_to_1.tif": (
        encoded(Image.fromarray((GREY / 255).astype(np.float32)), "TIFF"),
        GREY[..., None].repeat(3, 2),
        0,
    ),
    "float_to_255.tif": (encoded(Image.fromarray(GREY.astype(np.float32)), "TIFF"), GREY[..., None].repeat(3, 2), 0),
    # no convention fits -510 .. 510: stretched to black .. white
    "float_signed.tif": (
        encoded(Image.fromarray(GREY.astype(np.float32) * 4 - 510), "TIFF"),
        GREY[..., None].repeat(3, 2),
        0,
    ),
    # Pillow's plain conversion: each of R, G, B is what its ink and black leave of white, 255 (1 - c)(1 - k)
    "cmyk.tif": (
        encoded(Image.fromarray(CMYK, "CMYK"), "TIFF"),
        (255.0 - CMYK[..., :3]) * (255.0 - CMYK[..., 3:]) / 255.0,
        1,
    ),
    "opaque_alpha.png": (
        encoded(Image.fromarray(np.dstack([COLOUR, np.full_like(GREY, 255)])), "PNG"),
        COLOUR,
        0,
    ),
}


@pytest.mark.parametrize("name", OPAQUE_KINDS)
def test_opaque_kinds(name: str, tmp_path: Path) -> None:
    data, expected, tolerance = OPAQUE_KINDS[name]
    view = view_of(data, tmp_path, name)
    assert view.rgb.dtype == np.uint8
    np.testing.assert_allclose(view.rgb, expected, atol=tolerance)
    assert view.alpha is None
    assert view.sha256 == hashlib.sha256(data).hexdigest()
    assert view.transform.original_size == (W, H)


def test_twelve_bit_tiff_is_not_dark() -> None:
    # 12-bit grey, little endian, packed: the first sample's upper 8 bits, its lower 4 and the next one's upper 4, ...
    samples = np.full((4, 64), 0xFFF)
    samples[:, ::2] = 0x800
    pairs = samples.reshape(4, 32, 2)
    packed = np.stack([pairs[..., 0] >> 4, (pairs[..., 0] & 15) << 4 | pairs[..., 1] >> 8, pairs[..., 1] & 255], -1)
    tags = {256: 64, 257: 4, 258: 12, 259: 1, 262: 1, 273: 8, 277: 1, 278: 4, 279: packed.size}
    entries = b"".join(struct.pack("<HHII", tag, 4 if tag != 258 else 3, 1, value) for tag, value in tags.items())
    data = struct.pack("<2sHI", b"II", 42, 8 + packed.size) + packed.astype(np.uint8).tobytes()
    data += struct.pack("<H", len(tags)) + entries + struct.pack("<I", 0)
    rgb = np.asarray(decode_image(data, "x.tif").rgb)
    assert rgb[0, 0].tolist() == [0x80] * 3 and rgb[0, 1].tolist() == [255] * 3


def test_float_image_with_holes_keeps_its_range() -> None:
    values = (GREY / 255).astype(np.float32)
    values[0, 0], values[0, 1] = np.nan, np.inf
    rgb = np.asarray(decode_image(encoded(Image.fromarray(values), "TIFF"), "x.tif").rgb)
    assert rgb[0, 0, 0] == rgb[0, 1, 0] == 0
    np.testing.assert_array_equal(rgb[1:, :, 0], GREY[1:])


@pytest.mark.parametrize("fill", [0.0, np.nan])
def test_constant_float_image(fill: float) -> None:
    image = Image.fromarray(np.full((20, 30), fill, np.float32))
    assert not np.asarray(decode_image(encoded(image, "TIFF"), "x.tif").rgb).any()


KEYED = np.where(X < 32, 0x1234, 0xFFFF).astype(np.uint16)
TRANSPARENT_KINDS = {
    # name: (bytes, colours before compositing, opacity)
    "rgba.png": (encoded(Image.fromarray(np.dstack([COLOUR, RAMP_ALPHA])), "PNG"), COLOUR, RAMP_ALPHA),
    "rgba.webp": (
        encoded(Image.fromarray(np.dstack([COLOUR, RAMP_ALPHA])), "WEBP", lossless=True, exact=True),
        COLOUR,
        RAMP_ALPHA,
    ),
    "rgba.tif": (encoded(Image.fromarray(np.dstack([COLOUR, RAMP_ALPHA])), "TIFF"), COLOUR, RAMP_ALPHA),
    "la.png": (
        encoded(Image.fromarray(np.dstack([GREY, RAMP_ALPHA]), "LA"), "PNG"),
        GREY[..., None].repeat(3, 2),
        RAMP_ALPHA,
    ),
    "palette_one_clear.png": (palette_image(transparency=1), PALETTE, np.where(X // 16 == 1, 0, 255)),
    "palette_table.png": (
        palette_image(transparency=bytes([0, 100, 255, 255])),
        PALETTE,
        np.array([0, 100, 255, 255])[X // 16],
    ),
    "grey_key.png": (
        encoded(Image.fromarray(GREY), "PNG", transparency=33),
        GREY[..., None].repeat(3, 2),
        np.where(GREY == 33, 0, 255),
    ),
    "rgba16.png": (
        png_16bit(np.dstack([COLOUR, RAMP_ALPHA]).astype(np.uint16) * 257),
        COLOUR,
        RAMP_ALPHA,
    ),
    "grey16_key.png": (
        png_16bit(KEYED, key=(0x1234,)),
        (KEYED >> 8)[..., None].repeat(3, 2),
        np.where(X < 32, 0, 255),
    ),
    "colour16_key.png": (
        png_16bit(KEYED[..., None].repeat(3, 2), key=(0x1234,) * 3),
        (KEYED >> 8)[..., None].repeat(3, 2),
        np.where(X < 32, 0, 255),
    ),
}


@pytest.mark.parametrize("name", TRANSPARENT_KINDS)
def test_transparent_kinds_are_composited_on_white(name: str, tmp_path: Path) -> None:
    data, colours, alpha = TRANSPARENT_KINDS[name]
    view = view_of(data, tmp_path, name)
    assert view.alpha is not None and view.alpha.dtype == np.uint8
    np.testing.assert_array_equal(view.alpha, alpha)
    np.testing.assert_allclose(view.rgb, on_white(colours, alpha), atol=0.5 + 1e-9)


def test_colours_hidden_under_transparency_do_not_leak(tmp_path: Path) -> None:
    # two files that look the same, with different colours where nothing shows, give the same network input
    image = np.dstack([COLOUR, np.where(X < 30, 0, 255).astype(np.uint8)])
    other = image.copy()
    other[:, :30, :3] = 77
    sizing = ImageSizing(48, 16, accept_squares=True)  # with a resize, whose filter reaches across the edge
    views = [view_of(encoded(Image.fromarray(a), "PNG"), tmp_path, sizing=sizing) for a in (image, other)]
    np.testing.assert_array_equal(views[0].rgb, views[1].rgb)
    assert views[0].alpha is not None and views[0].alpha.shape == views[0].shape == (32, 48)
    assert (views[0].rgb[:, :15] == 255).all() and (views[0].alpha[:, :15] == 0).all()
    assert (views[0].alpha[:, 30:] == 255).all()


def test_cmyk_jpeg(tmp_path: Path) -> None:
    # Adobe writes CMYK JPEGs inverted; Pillow writes and reads that. Flat patches survive the compression.
    flat = np.zeros((H, W, 4), np.uint8)
    flat[:, 32:] = (255, 0, 0, 0)  # pure cyan ink, beside bare paper
    view = view_of(encoded(Image.fromarray(flat, "CMYK"), "JPEG", quality=95), tmp_path, "cmyk.jpg")
    np.testing.assert_allclose(view.rgb[:, :24], 255, atol=2)
    np.testing.assert_allclose(view.rgb[:, 40:], np.broadcast_to([0, 255, 255], (H, 24, 3)), atol=2)


@pytest.mark.parametrize("alpha", [False, True])
@pytest.mark.parametrize("kind", ["heic", "avif"])
def test_heic_and_avif(kind: str, alpha: bool, tmp_path: Path) -> None:
    smooth = np.stack([4 * X, 5 * Y, 128 + 0 * X], -1).astype(np.uint8)
    opacity = np.where(X < 32, 0, 255).astype(np.uint8)
    image = Image.fromarray(np.dstack([smooth, opacity]) if alpha else smooth)
    path = tmp_path / f"photo.{kind}"
    if kind == "heic":
        pillow_heif.from_pillow(image).save(path, quality=100, chroma=444)
    else:
        image.save(path, quality=100, subsampling="4:4:4")
    view = load_image(path, 0, AS_IS)
    assert (view.alpha is not None) == alpha
    shown = on_white(smooth, opacity) if alpha else smooth
    assert np.abs(view.rgb[:, 34:] - shown[:, 34:].astype(float)).mean() < 2
    assert np.abs(view.rgb[:, :30] - shown[:, :30].astype(float)).mean() < 2
    if view.alpha is not None:
        np.testing.assert_allclose(view.alpha, opacity, atol=2)


def test_reading_heic_leaves_pillow_as_it_was(tmp_path: Path) -> None:
    known = "HEIF" in Image.OPEN
    pillow_heif.from_pillow(Image.fromarray(COLOUR)).save(tmp_path / "a.heic")
    load_image(tmp_path / "a.heic", 0, AS_IS)
    assert ("HEIF" in Image.OPEN) == known


# ---------------------------------------------------------------- orientation

UPRIGHT = {
    # what a viewer does to the stored pixels (EXIF 2.32: position of the stored first row and first column)
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),  # stored turned to the left, shown turned right
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a, 1),
}


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("file_format", ["PNG", "TIFF", "WEBP", "AVIF", "JPEG"])
def test_exif_orientation(file_format: str, orientation: int, tmp_path: Path) -> None:
    stored = np.dstack([4 * X, 5 * Y, 0 * X]).astype(np.uint8)
    options = {"PNG": {}, "TIFF": {}, "WEBP": {"lossless": True}}.get(file_format, {"quality": 100})
    data = encoded(Image.fromarray(stored), file_format, exif=exif_with(orientation), **options)
    view = view_of(data, tmp_path, "photo.jpg")
    expected = UPRIGHT[orientation](stored)
    assert view.transform.original_size == (expected.shape[1], expected.shape[0])
    tolerance = 0 if file_format in ("PNG", "TIFF", "WEBP") else 6
    np.testing.assert_allclose(view.rgb, expected, atol=tolerance)


def test_orientation_of_alpha_and_16_bit(tmp_path: Path) -> None:
    rgba = Image.fromarray(np.dstack([COLOUR, RAMP_ALPHA]))
    view = view_of(encoded(rgba, "PNG", exif=exif_with(6)), tmp_path)
    np.testing.assert_array_equal(view.alpha, np.rot90(RAMP_ALPHA, -1))
    for file_format in ("PNG", "TIFF"):
        deep = view_of(encoded(Image.fromarray(GREY16), file_format, exif=exif_with(6)), tmp_path)
        np.testing.assert_array_equal(deep.rgb[..., 0], np.rot90(GREY, -1))


def test_orientation_of_heic_is_that_of_the_container(tmp_path: Path) -> None:
    image = Image.fromarray(np.dstack([4 * X, 5 * Y, 0 * X]).astype(np.uint8))
    pillow_heif.from_pillow(image).save(tmp_path / "turned.heic", quality=100, exif=exif_with(6).tobytes())
    view = load_image(tmp_path / "turned.heic", 0, AS_IS)
    assert view.transform.original_size == (H, W)
    assert np.abs(view.rgb - np.rot90(np.asarray(image), -1).astype(float)).mean() < 3


@pytest.mark.parametrize("nonsense", [0, 9, 255])
def test_nonsense_orientation_is_upright(nonsense: int, tmp_path: Path) -> None:
    view = view_of(encoded(Image.fromarray(COLOUR), "PNG", exif=exif_with(nonsense)), tmp_path)
    np.testing.assert_array_equal(view.rgb, COLOUR)


def test_damaged_exif_does_not_cost_the_photo(tmp_path: Path) -> None:
    # a valid JPEG whose EXIF block claims a directory beyond its end
    data = encoded(Image.fromarray(COLOUR), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\x7f", quality=100)
    view = view_of(data, tmp_path, "photo.jpg")
    assert np.abs(view.rgb - COLOUR.astype(float)).mean() < 10
    assert view.focal_exif_px is None and view.camera is None


# ---------------------------------------------------------------- focal length

FILM_DIAGONAL = 43.2666153056
FOCAL_CASES: dict[str, tuple[dict[str, float], float | None]] = {
    # 26 mm on a 400x300 image (diagonal exactly 500 px)
    "film": ({"focal_35mm": 26}, 26 / FILM_DIAGONAL * 500),
    "film beats plane": ({"focal_35mm": 26, "focal_mm": 4.2, "x_resolution": 1, "unit": 3}, 26 / FILM_DIAGONAL * 500),
    # 50 mm lens, 20 px/mm
    "plane, mm": ({"focal_mm": 50, "x_resolution": 20, "unit": 4}, 1000),
    "plane, cm": ({"focal_mm": 50, "x_resolution": 200, "unit": 3}, 1000),
    "plane, inch by default": ({"focal_mm": 50, "x_resolution": 508}, 1000),
    "plane, copy of half the size": ({"focal_mm": 50, "x_resolution": 20, "unit": 4, "width": 800}, 500),
    "unknown film, plane": ({"focal_35mm": 0, "focal_mm": 50, "x_resolution": 20, "unit": 4}, 1000),
    "absurd film, plane": ({"focal_35mm": 65535, "focal_mm": 50, "x_resolution": 20, "unit": 4}, 1000),
    "absurd film": ({"focal_35mm": 1}, None),
    "unknown": ({"focal_35mm": 0}, None),
    "no resolution": ({"focal_mm": 50}, None),
    "zero resolution": ({"focal_mm": 50, "x_resolution": 0, "unit": 4}, None),
    "absurd resolution": ({"focal_mm": 50, "x_resolution": 0.001, "unit": 4}, None),
    "absurd unit": ({"focal_mm": 50, "x_resolution": 20, "unit": 77}, None),
    "nothing": ({}, None),
}


@pytest.mark.parametrize("name", FOCAL_CASES)
@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "TIFF"])
def test_focal_length_from_exif(name: str, file_format: str) -> None:
    tags, expected = FOCAL_CASES[name]
    data = encoded(Image.new("L", (400, 300)), file_format, exif=exif_with(6, **tags))
    focal = decode_image(data, "x").focal_exif_px
    assert focal == (None if expected is None else pytest.approx(expected, rel=1e-6))


@pytest.mark.parametrize("value", [-35, float("nan"), float("inf"), "wide", (1, 2), b"\0", None])
def test_nonsense_focal_lengths(value: object) -> None:
    assert focal_px_from_exif({0xA405: value, 0x920A: value, 0xA20E: value}, (640, 480)) is None


def test_focal_length_is_of_the_original_image(tmp_path: Path) -> None:
    data = encoded(Image.new("RGB", (800, 600)), "JPEG", exif=exif_with(focal_35mm=26))
    assert view_of(data, tmp_path).focal_exif_px == pytest.approx(26 / FILM_DIAGONAL * 1000)


# ---------------------------------------------------------------- the camera

PHONE = CameraIdentity("Apple", "iPhone 12", "back camera 4.2mm f/1.6", 4.2, 26.0)
CAMERA_CASES: dict[str, tuple[dict[str, Any], CameraIdentity | None]] = {
    "all": (
        {"make": "Apple", "model": "iPhone 12", "lens": PHONE.lens, "focal_mm": 4.2, "focal_35mm": 26},
        PHONE,
    ),
    "padded": (
        {"make": "NIKON CORPORATION   ", "model": "NIKON  D80"},
        CameraIdentity("NIKON CORPORATION", "NIKON D80"),
    ),
    "focal length alone": ({"focal_mm": 50}, CameraIdentity(focal_mm=50.0)),
    "focal length unknown": ({"model": "X", "focal_mm": 0, "focal_35mm": 0}, CameraIdentity(model="X")),
    "lens alone": ({"lens": "50mm"}, None),
    "nothing": ({}, None),
}


@pytest.mark.parametrize("name", CAMERA_CASES)
@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_camera_from_exif(name: str, file_format: str, tmp_path: Path) -> None:
    tags, expected = CAMERA_CASES[name]
    data = encoded(Image.new("RGB", (40, 30)), file_format, exif=exif_with(6, **tags))
    assert view_of(data, tmp_path).camera == expected


def test_a_focal_length_as_different_fractions_is_one() -> None:
    as_third, as_tenth = ({0x920A: TiffImagePlugin.IFDRational(a, b)} for a, b in ((12599, 3000), (42, 10)))
    assert camera_from_exif({}, as_third) == camera_from_exif({}, as_tenth) == CameraIdentity(focal_mm=4.2)


@pytest.mark.parametrize("value", [-35, float("nan"), float("inf"), (1, 2), b"\0\xff", None, "", " \0 "])
def test_nonsense_cameras(value: object) -> None:
    assert camera_from_exif({0x010F: value, 0x0110: value}, {0xA434: value, 0x920A: value, 0xA405: value}) is None


# ---------------------------------------------------------------- what cannot be used

JPEG = encoded(Image.fromarray(COLOUR), "JPEG", quality=95)
PNG = encoded(Image.fromarray(COLOUR), "PNG")
TIFF = encoded(Image.fromarray(COLOUR), "TIFF", compression="tiff_deflate")
WEBP = encoded(Image.fromarray(COLOUR), "WEBP", lossless=True)
AVIF = encoded(Image.fromarray(COLOUR), "AVIF")
BMP = encoded(Image.fromarray(COLOUR), "BMP")


def heic_bytes() -> bytes:
    buffer = io.BytesIO()
    pillow_heif.from_pillow(Image.fromarray(COLOUR)).save(buffer)
    return buffer.getvalue()


def bomb() -> bytes:
    """A PNG that claims 60,000 x 60,000 pixels."""
    header = struct.pack(">II", 60000, 60000)
    checksum = struct.pack(">I", zlib.crc32(PNG[12:16] + header + PNG[24:29]))
    return PNG[:16] + header + PNG[24:29] + checksum + PNG[33:]


HEIC = heic_bytes()
BAD_FILES = {
    "empty.jpg": (b"", "0 bytes.*empty"),
    "text.jpg": (b"not a photo at all\n", "19 bytes.*not a JPEG"),
    "script.png": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "not a JPEG"),
    "film.heic": (b"\0\0\0\x18ftypisom\0\0\0\0isommp42" + bytes(50), "a film"),
    "half.jpg": (JPEG[: len(JPEG) // 2], "damaged or truncated"),
    "nearly.jpg": (JPEG[:-100], "damaged or truncated"),
    "header.jpg": (JPEG[:20], "not a JPEG"),
    "half.png": (PNG[: len(PNG) // 2], "damaged or truncated"),
    "half.tif": (TIFF[: len(TIFF) // 2], "damaged"),
    "half.webp": (WEBP[: len(WEBP) // 2], "damaged"),
    "half.avif": (AVIF[: len(AVIF) // 2], "damaged"),
    "half.heic": (HEIC[: len(HEIC) // 2], "damaged"),
    "half.bmp": (BMP[: len(BMP) // 2], "damaged or truncated"),
    "flipped.png": (PNG[:60] + bytes([PNG[60] ^ 255, PNG[61] ^ 255]) + PNG[62:], "damaged or truncated"),
    "bomb.png": (bomb(), "million pixels"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_files_are_one_line(name: str, tmp_path: Path) -> None:
    data, reason = BAD_FILES[name]
    write(tmp_path / name, data)
    for load in (lambda: load_image(tmp_path / name), lambda: load_views([tmp_path / name])):
        with pytest.raises(InputError, match=reason) as caught:
            load()
        message = str(caught.value)
        assert message.startswith(f"{tmp_path / name} (") and "\n" not in message


@pytest.mark.parametrize(
    "data", [JPEG, PNG, TIFF, WEBP, AVIF, HEIC, BMP], ids=["jpeg", "png", "tiff", "webp", "avif", "heic", "bmp"]
)
def test_damage_anywhere_is_an_image_or_an_input_error(data: bytes) -> None:
    rng = np.random.default_rng(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(60):
            broken = bytearray(data)
            for at in rng.integers(0, len(data), 3):
                broken[at] = rng.integers(256)
            try:
                decode_image(bytes(broken[: rng.integers(1, len(data) + 1)]), "x")
            except InputError as error:
                assert str(error).startswith("x (")


@pytest.mark.parametrize("size", [(4000, 100), (100, 4000)])
def test_panoramas_that_leave_nothing(size: tuple[int, int], tmp_path: Path) -> None:
    # 100 of 4000 pixels are 12.8 of 512, less than one patch of 16; of 640 they are just 16
    path = write_image(tmp_path / "pano.png", size)
    with pytest.raises(InputError, match=rf"pano\.png \(.*\): {size[0]}x{size[1]} pixels become .* at most 32:1"):
        load_image(path)
    assert sorted(load_image(path, 0, ImageSizing(640)).shape) == [16, 640]
    assert sorted(load_image(path, 0, ImageSizing(512, 8)).shape) == [8, 512]


def test_square_crop_of_a_line_is_refused_before_it_fills_the_memory(tmp_path: Path) -> None:
    path = write_image(tmp_path / "line.png", (20000, 1))
    with pytest.raises(InputError, match=r"line\.png .*: 20000x1 pixels would be enlarged to 4480000x224"):
        load_image(path, 0, ImageSizing.for_model(224, 16, accept_squares=False))


def test_missing_files(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"gone\.jpg: cannot be read \(No such file"):
        load_image(tmp_path / "gone.jpg")


def test_wrong_suffix_but_an_image(tmp_path: Path) -> None:
    np.testing.assert_array_equal(view_of(PNG, tmp_path, "really_a_png.jpg").rgb, COLOUR)
    np.testing.assert_array_equal(view_of(PNG, tmp_path, "really_a_png.heic").rgb, COLOUR)
    assert view_of(HEIC, tmp_path, "really_a_heic.jpg").shape == (H, W)


def test_frames_beyond_the_first_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pages = [Image.new("RGB", (W, H), colour) for colour in ((200, 0, 0), (0, 200, 0), (0, 0, 200))]
    data = encoded(pages[0], "TIFF", save_all=True, append_images=pages[1:])
    with caplog.at_level(logging.WARNING):
        view = view_of(data, tmp_path, "pages.tif")
    assert (view.rgb == (200, 0, 0)).all()
    assert "pages.tif holds 3 frames" in caplog.text


def test_frames_of_a_phone_jpeg_are_no_news(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = encoded(Image.fromarray(COLOUR), "MPO", save_all=True, append_images=[Image.new("RGB", (W, H))])
    with caplog.at_level(logging.WARNING):
        assert view_of(data, tmp_path, "phone.jpg").shape == (H, W)
    assert not caplog.records


# ---------------------------------------------------------------- loading many


def test_views_keep_order_and_identity(tmp_path: Path) -> None:
    paths = [write_image(tmp_path / f"{k}.png", colour=(k, 2 * k, 255 - k)) for k in range(12)]
    paths.append(paths[3])  # the same file twice is two views
    seen: list[int] = []
    views = load_views(paths, AS_IS, progress=seen.append, workers=4)
    assert [view.index for view in views] == list(range(13))
    assert [view.path for view in views] == paths
    assert [tuple(view.rgb[0, 0]) for view in views] == [(k, 2 * k, 255 - k) for k in [*range(12), 3]]
    assert views[12].sha256 == views[3].sha256 != views[4].sha256
    assert seen == [1] * 13
    alone = load_views(paths, AS_IS, workers=1)
    assert all(torch.equal(a.tensor, b.tensor) and a.sha256 == b.sha256 for a, b in zip(views, alone, strict=True))


def test_the_first_bad_file_is_reported(tmp_path: Path) -> None:
    paths = [write_image(tmp_path / f"{k}.png") for k in range(6)]
    write(paths[2], b"")
    write(paths[4], b"")
    with pytest.raises(InputError, match=r"2\.png \(0 bytes\)"):
        load_views(paths, AS_IS, workers=4)


def test_an_interrupt_does_not_wait_for_the_other_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [write_image(tmp_path / f"{k}.png") for k in range(40)]
    decoded = []

    def slow_decode(data: bytes, name: str, sample_bits: int) -> DecodedImage:
        time.sleep(0.02)
        decoded.append(name)
        return decode_image(data, name, sample_bits)

    monkeypatch.setattr("mast3r_sfm.images.loading.decode_image", slow_decode)

    def interrupt(steps: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        load_views(paths, AS_IS, progress=interrupt, workers=1)
    assert len(decoded) < 40


def test_heavy_crops_give_one_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    square_crop = ImageSizing.for_model(224, 16, accept_squares=False)
    paths = [write_image(tmp_path / f"{k}.png", size) for k, size in enumerate([(640, 360), (640, 480), (900, 300)])]
    with caplog.at_level(logging.WARNING):
        views = load_views(paths, square_crop)
    # a square out of 16:9 leaves 9/16, out of 4:3 just 3/4 (299 px wide: 0.7492), out of 3:1 a third
    assert [crop_loss(view.transform) for view in views] == pytest.approx([1 - 9 / 16, 1 - 224 / 299, 2 / 3], abs=1e-3)
    assert len(caplog.records) == 1
    assert "3 image(s), up to 67 %" in caplog.text and "2.png" in caplog.text


def test_published_crops_give_no_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    paths = [write_image(tmp_path / f"{k}.png", size) for k, size in enumerate([(700, 700), (640, 480), (1920, 1080)])]
    with caplog.at_level(logging.WARNING):
        load_views(paths)
    assert not caplog.records


def test_large_photos_and_odd_exif_do_not_warn(
    tmp_path: Path, recwarn: pytest.WarningsRecorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", W * H - 1)  # over the limit that warns, under that which refuses
    load_views([write(tmp_path / "large.png", PNG)], AS_IS)
    assert not recwarn.list
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", W * H // 2 - 1)
    for name, data in (("a.png", PNG), ("b.heic", HEIC)):
        with pytest.raises(InputError, match="million pixels are not read"):
            load_image(write(tmp_path / name, data), 0, AS_IS)


# ---------------------------------------------------------------- finding files


def test_a_folder_in_natural_order(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in (
        "img10.jpg",
        "img2.JPG",
        "Img1.png",
        "a.TIFF",
        "b.webp",
        "c.heic",
        "d.avif",
        "e.bmp",
        "f.HEIF",
        "g.jpeg",
    ):
        (tmp_path / name).touch()
    for name in (".hidden.jpg", "notes.txt", "truth.json", "page.pdf", "model.obj"):
        (tmp_path / name).touch()
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "nested.jpg").touch()
    (tmp_path / "folder.jpg").mkdir()
    with caplog.at_level(logging.WARNING):
        found = find_images([tmp_path])
    names = ["a.TIFF", "b.webp", "c.heic", "d.avif", "e.bmp", "f.HEIF", "g.jpeg", "Img1.png", "img2.JPG", "img10.jpg"]
    assert [path.name for path in found] == names
    assert len(caplog.records) == 2
    assert "skipped 2 file(s)" in caplog.text and "page.pdf" in caplog.text and "model.obj" in caplog.text
    assert "1 photo(s) in 1 subfolder(s) are not used" in caplog.text


def test_files_globs_and_repetition(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("p2.jpg", "p10.jpg", "q.jpg", "r[1].jpg", "r1.jpg"):
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    found = find_images(["q.jpg", tmp_path / "p*.jpg", "q.jpg", "r[1].jpg"])
    # the last names an existing file, although it reads as a pattern for r1.jpg
    assert [path.name for path in found] == ["q.jpg", "p2.jpg", "p10.jpg", "q.jpg", "r[1].jpg"]
    assert [path.name for path in find_images(["r[0-9].jpg"])] == ["r1.jpg"]
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "deep" / "er" / "x.png").touch()
    assert find_images(["**/*.png"]) == [Path("deep/er/x.png")]


BAD_INPUTS = {
    "nothing": ([], "no input"),
    "empty string": ([""], "input is empty"),
    "no such path": (["{dir}/nowhere"], "nowhere: no such file or folder"),
    "no match": (["{dir}/*.xyz"], r"\*\.xyz: no file matches"),
    "empty folder": (["{dir}/empty"], r"empty: no image in this folder \(it is empty\)"),
    "folder of texts": (["{dir}/texts"], r"texts: no image in this folder \(2 other file\(s\), 0 subfolder\(s\)\)"),
    "folder of folders": (["{dir}/folders"], "folders: no image .*1 subfolder.*name one"),
    "pattern of texts": (["{dir}/texts/*"], r"texts/\*: no image among the matches"),
    "explicit text": (["{dir}/good.jpg", "{dir}/texts/1.txt"], "1.txt: not an image by its suffix"),
    "overlong": (["{dir}/" + "x" * 5000], "cannot be read"),
}


@pytest.mark.parametrize("name", BAD_INPUTS)
def test_bad_inputs_name_themselves_and_the_suffixes(name: str, tmp_path: Path) -> None:
    for folder in ("empty", "texts", "folders/inner"):
        (tmp_path / folder).mkdir(parents=True)
    for file in ("texts/1.txt", "texts/2.txt", "good.jpg", "folders/inner/a.jpg"):
        (tmp_path / file).touch()
    inputs, reason = BAD_INPUTS[name]
    with pytest.raises(InputError, match=reason) as caught:
        find_images([item.format(dir=tmp_path) for item in inputs])
    assert "\n" not in str(caught.value)
    if name != "overlong":
        assert all(suffix[1:] in str(caught.value) for suffix in IMAGE_SUFFIXES)
