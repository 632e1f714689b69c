"""From the bytes of an image file to upright 8-bit RGB, opacity, and the camera and focal length that EXIF states."""

from __future__ import annotations

import io
import logging
import math
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, features

from mast3r_sfm.errors import InputError
from mast3r_sfm.images.gps import gps_from_exif
from mast3r_sfm.text import byte_count
from mast3r_sfm.types import CameraIdentity, GpsFix

logger = logging.getLogger(__name__)

# What a file may contain, whatever its name says. An open list would let Pillow start Ghostscript for a renamed EPS.
_FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "AVIF")

_SUFFIXES_OF_PLAIN = {
    "JPEG": (".jpg", ".jpeg"),
    "MPO": (".jpg", ".jpeg"),  # a JPEG with previews behind it
    "PNG": (".png",),
    "TIFF": (".tif", ".tiff"),
    "BMP": (".bmp",),
}

# Transposition that undoes each EXIF orientation (EXIF 2.32, tag 0x0112); 1 is upright.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# EXIF and TIFF tags
_MAKE = 0x010F
_MODEL = 0x0110
_ORIENTATION = 0x0112
_BITS_PER_SAMPLE = 258
_PHOTOMETRIC = 262
_EXIF_IFD = 0x8769
_GPS_IFD = 0x8825
_FOCAL_LENGTH_MM = 0x920A
_FOCAL_LENGTH_35MM = 0xA405
_FOCAL_PLANE_X_RESOLUTION = 0xA20E
_FOCAL_PLANE_UNIT = 0xA210
_PIXEL_X_DIMENSION = 0xA002
_PIXEL_Y_DIMENSION = 0xA003
_LENS_MODEL = 0xA434

_MM_PER_FOCAL_PLANE_UNIT = {2: 25.4, 3: 10.0, 4: 1.0, 5: 0.001}
_DIAGONAL_35MM = math.hypot(36.0, 24.0)
# Focal length over image diagonal: 4 mm to 2000 mm of 35 mm film. Anything else is a broken tag, not a lens.
_FOCAL_PER_DIAGONAL = (4.0 / _DIAGONAL_35MM, 2000.0 / _DIAGONAL_35MM)


@dataclass(frozen=True)
class DecodedImage:
    """An upright image.

    rgb    mode RGB, transparency composited on white
    alpha  mode L opacity of the same size, None if the image is opaque everywhere
    focal_exif_px  focal length in pixels of this image, None if EXIF states none
    camera         what EXIF says of the camera, None if it names neither a camera nor a focal length
    gps            where EXIF says that the photo was taken
    """

    rgb: Image.Image
    alpha: Image.Image | None
    focal_exif_px: float | None
    camera: CameraIdentity | None = None
    gps: GpsFix | None = None


def decode_image(data: bytes, name: str) -> DecodedImage:
    """Decodes JPEG, PNG, WebP, TIFF, BMP, AVIF or HEIF, recognised by content, of 1, 8 or 16 bits or float.

    Grey is replicated, palettes are expanded, CMYK follows Pillow's plain conversion; samples of more than 8 bits
    are scaled (see `_grey_8bit`), never clipped. Of several frames or pages the first (HEIF: the primary) is taken,
    with a warning. Colour profiles are not applied.

    Raises InputError that starts with `name` for anything that does not decode to the last pixel.
    """
    what = f"{name} ({byte_count(len(data))})"
    if not data:
        raise InputError(f"{what}: the file is empty; copy it again or remove it from the input")
    # Image libraries raise nearly any type on damaged data (OSError, SyntaxError, struct.error, zlib.error,
    # ValueError, MemoryError, ...), and only when the pixels are asked for. This is the boundary for all of them.
    try:
        image = _open(data, what)
        _check_dimensions(image, what)
        frames = getattr(image, "n_frames", 1)
        image.load()
        rgb, alpha = _to_rgb_and_alpha(image)
    except InputError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise InputError(f"{what}: {_too_many_pixels()}") from error
    except Image.UnidentifiedImageError as error:
        raise InputError(f"{what}: {_unknown_content(data)}; convert it or remove it from the input") from error
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{what}: damaged or truncated image ({reason}); copy it again or remove it") from error
    # A JPEG of a phone is often an MPO whose further frames are previews or gain maps: no news for the user.
    if frames > 1 and image.format != "MPO":
        logger.warning("%s holds %d frames or pages; only the first is used", name, frames)
    exif = _read_exif(image, name)  # after load(): PNG may carry it behind the pixels, TIFF turns itself upright
    transposition = _UPRIGHT.get(exif.get(_ORIENTATION, 1))
    if transposition is not None:
        rgb = rgb.transpose(transposition)
        alpha = None if alpha is None else alpha.transpose(transposition)
    details, gps = (_exif_ifd(exif, tag, name) for tag in (_EXIF_IFD, _GPS_IFD))
    return DecodedImage(
        rgb, alpha, focal_px_from_exif(details, rgb.size), camera_from_exif(exif, details), gps_from_exif(gps)
    )


@dataclass(frozen=True)
class PlainFile:
    """What any program shows of a file as this package does.

    size      (width, height)
    suffixes  usual for its format, the first is the best known
    """

    size: tuple[int, int]
    suffixes: tuple[str, ...]


def plain_file(data: bytes) -> PlainFile | None:
    """Of an upright JPEG, PNG, TIFF or BMP of 8 bits; None for everything else, and for what cannot be read."""
    try:
        if _container_brands(data):
            return None
        image = Image.open(io.BytesIO(data), formats=_FORMATS)
        image_format, turned = str(image.format), {image.getexif().get(_ORIENTATION, 1)}
        if image_format == "PNG":  # which may carry its EXIF behind the pixels
            image.load()
            turned.add(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # as in `decode_image`, which says what is wrong
        return None
    if image_format not in _SUFFIXES_OF_PLAIN or image.mode not in ("L", "RGB", "RGBA") or turned & set(_UPRIGHT):
        return None
    return PlainFile(image.size, _SUFFIXES_OF_PLAIN[image_format])


@contextmanager
def quiet_pillow() -> Iterator[None]:
    """Silences Pillow's Python warnings (odd EXIF, merely large images), which say nothing a user can act on.

    Warning filters belong to the process: enter it once around a pool of threads, not in each.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
        yield


def focal_px_from_exif(exif: Mapping[int, Any], size: tuple[int, int]) -> float | None:
    """Focal length in pixels of an image of `size` (width, height), or None if the EXIF tags state none.

    FocalLengthIn35mmFilm is compared with the 43.27 mm diagonal of 35 mm film: CIPA DCG-001 defines the equivalent
    by the diagonal angle of view, so that it also holds for the 4:3 sensors of phones, where the 36 mm long side
    would be 4 % off. Without it: FocalLength times FocalPlaneXResolution, scaled by the image's long side over the
    PixelX/YDimension that the resolution refers to (an edited copy may be smaller). Values no lens has are ignored.
    """
    diagonal = math.hypot(*size)
    film_mm = _positive(exif.get(_FOCAL_LENGTH_35MM))
    if film_mm is not None and (focal := _plausible(film_mm / _DIAGONAL_35MM * diagonal, diagonal)) is not None:
        return focal
    focal_mm = _positive(exif.get(_FOCAL_LENGTH_MM))
    pixels_per_unit = _positive(exif.get(_FOCAL_PLANE_X_RESOLUTION))
    mm_per_unit = _MM_PER_FOCAL_PLANE_UNIT.get(exif.get(_FOCAL_PLANE_UNIT, 2))
    if focal_mm is None or pixels_per_unit is None or mm_per_unit is None:
        return None
    captured = [_positive(exif.get(tag)) for tag in (_PIXEL_X_DIMENSION, _PIXEL_Y_DIMENSION)]
    captured_long_side = max((side for side in captured if side is not None), default=float(max(size)))
    focal = focal_mm * pixels_per_unit / mm_per_unit * max(size) / captured_long_side
    return _plausible(focal, diagonal)


def camera_from_exif(exif: Mapping[int, Any], details: Mapping[int, Any]) -> CameraIdentity | None:
    """What the tags of a file's main directory and of its EXIF directory (`details`) say of the camera.

    None if they name neither a camera nor a focal length. A tag that makes no sense counts as missing.
    """
    focal_mm, focal_35mm = _positive(details.get(_FOCAL_LENGTH_MM)), _positive(details.get(_FOCAL_LENGTH_35MM))
    camera = CameraIdentity(
        make=_words(exif.get(_MAKE)),
        model=_words(exif.get(_MODEL)),
        lens=_words(details.get(_LENS_MODEL)),
        focal_mm=None if focal_mm is None else round(focal_mm, 2),  # a fraction, not always the same for one zoom
        focal_35mm=focal_35mm,
    )
    return camera if camera.make or camera.model or camera.knows_zoom else None


def max_pixels() -> int:
    """The largest image that is read, in pixels: Pillow's own limit against decompression bombs."""
    return 2 * (Image.MAX_IMAGE_PIXELS or 2**62)


def _open(data: bytes, what: str) -> Image.Image:
    brands = _container_brands(data)
    if brands & {b"avif", b"avis"}:
        if not features.check("avif"):
            raise InputError(f"{what}: this Pillow was built without AVIF; convert the file to JPEG or PNG")
    elif brands:
        # the plugin's class is used as it is: registering it would change Pillow for the whole process
        from pillow_heif import HeifImageFile

        return HeifImageFile(io.BytesIO(data))
    return Image.open(io.BytesIO(data), formats=_FORMATS)


def _container_brands(data: bytes) -> set[bytes]:
    """Brands of the `ftyp` box (ISO 14496-12, 4.3) that HEIF and AVIF begin with; empty for other files and films."""
    if data[4:8] != b"ftyp":
        return set()
    box = data[8 : min(int.from_bytes(data[:4], "big"), 1024)]
    brands = {box[:4], *(box[k : k + 4] for k in range(8, len(box), 4))}
    still_images = {b"avif", b"avis", b"mif1", b"msf1", b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx"}
    return brands if brands & still_images else set()


def _check_dimensions(image: Image.Image, what: str) -> None:
    if image.width < 1 or image.height < 1:
        raise InputError(f"{what}: an image of {image.width}x{image.height} pixels; remove it from the input")
    if image.width * image.height > max_pixels():
        raise InputError(f"{what}: {_too_many_pixels()}")


def _too_many_pixels() -> str:
    return f"more than {max_pixels() / 1e6:.0f} million pixels are not read; make a smaller copy"


def _unknown_content(data: bytes) -> str:
    if data[4:8] == b"ftyp" and not _container_brands(data):
        return "a film, not an image"
    return "not a JPEG, PNG, WebP, TIFF, BMP, HEIF or AVIF image, damaged at its start, or of a kind that is not read"


def _to_rgb_and_alpha(image: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    key = image.info.get("transparency")
    if image.mode.startswith("I;16"):
        values = np.asarray(image)
        alpha = Image.fromarray(np.where(values == key, 0, 255).astype(np.uint8)) if isinstance(key, int) else None
        rgb = Image.fromarray(_grey_8bit(values, *_tiff_grey(image))).convert("RGB")
    elif image.mode in ("I", "F"):
        alpha = None
        rgb = Image.fromarray(_grey_8bit(np.asarray(image))).convert("RGB")
    elif image.has_transparency_data:
        if isinstance(key, tuple) and max(key) > 255:  # 16-bit colour key, while Pillow keeps the upper 8 bits of RGB
            image.info["transparency"] = tuple(value >> 8 for value in key)
        rgba = image.convert("RGBA")
        alpha = rgba.getchannel("A")
        rgb = rgba.convert("RGB")
    else:
        return image.convert("RGB"), None
    if alpha is None or alpha.getextrema() == (255, 255):
        return rgb, None
    return Image.composite(rgb, Image.new("RGB", rgb.size, (255, 255, 255)), alpha), alpha


def _tiff_grey(image: Image.Image) -> tuple[int, bool]:
    """(bits per sample, whether 0 is white) of a 16-bit grey image; PNG has (16, False)."""
    tags = getattr(image, "tag_v2", {})
    bits = tags.get(_BITS_PER_SAMPLE, (16,))
    return (int(bits[0]) if isinstance(bits, tuple) else int(bits)), tags.get(_PHOTOMETRIC, 1) == 0


def _grey_8bit(values: np.ndarray, bits: int = 16, zero_is_white: bool = False) -> np.ndarray:
    """(H, W) grey samples of more than 8 bits -> uint8.

    uint16: the upper 8 of `bits`, as Pillow does for 16-bit colour. Wider integers and floats state no range; white
    is then the first of 1 (floats only), 255 and 65535 that no sample exceeds, and samples beyond all of these, or
    negative ones, are stretched from the smallest to the largest. Non-finite samples are black.
    """
    if values.dtype.kind == "u" and values.dtype.itemsize == 2:
        grey = np.minimum(values >> (bits - 8), 255).astype(np.uint8)
        return 255 - grey if zero_is_white else grey
    finite = np.isfinite(values)
    samples = np.where(finite, values, 0).astype(np.float64)
    low = samples.min(where=finite, initial=np.inf)
    high = samples.max(where=finite, initial=-np.inf)
    whites = (1.0, 255.0, 65535.0) if values.dtype.kind == "f" else (255.0, 65535.0)
    white = next((white for white in whites if high <= white), None)
    if white is None or low < 0.0:
        samples, white = samples - low, max(high - low, 1e-300)
    grey = np.where(finite, np.clip(samples / white, 0.0, 1.0) * 255.0, 0.0)
    return np.rint(grey).astype(np.uint8)


def _read_exif(image: Image.Image, name: str) -> Image.Exif:
    try:
        return image.getexif()
    except Exception as error:  # the pixels are fine; a damaged tag block must not cost the photo
        logger.warning("%s: the EXIF block is damaged and ignored (%s)", name, " ".join(str(error).split()))
        return Image.Exif()


def _exif_ifd(exif: Image.Exif, tag: int, name: str) -> Mapping[int, Any]:
    try:
        return exif.get_ifd(tag)
    except Exception as error:
        logger.warning("%s: the EXIF block is damaged and ignored (%s)", name, " ".join(str(error).split()))
        return {}


def _positive(value: Any) -> float | None:
    """A tag's value as a finite positive float, else None (EXIF writes 0 for unknown, x/0 for worse)."""
    try:
        number = float(value)
    except (TypeError, ValueError, ZeroDivisionError):
        return None
    return number if math.isfinite(number) and number > 0.0 else None


def _words(value: Any) -> str:
    """A tag's text without padding; "" if it is none."""
    return " ".join(value.replace("\0", " ").split()) if isinstance(value, str) else ""


def _plausible(focal_px: float, diagonal_px: float) -> float | None:
    low, high = _FOCAL_PER_DIAGONAL
    return focal_px if low * diagonal_px <= focal_px <= high * diagonal_px else None
