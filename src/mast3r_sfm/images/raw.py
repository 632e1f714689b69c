"""RAW photos, developed by LibRaw through rawpy, which is an optional extra."""

from __future__ import annotations

import io
import logging
from importlib.util import find_spec
from pathlib import Path

from PIL import Image

from mast3r_sfm.errors import InputError
from mast3r_sfm.images.finding import RAW_SUFFIXES

logger = logging.getLogger(__name__)

_TIFF_OF_VENDOR = {b"IIRO": b"II*\0", b"IIRS": b"II*\0", b"MMOR": b"MM\0*", b"IIU\0": b"II*\0"}
"""Starts of files that are TIFF but for these bytes (Olympus, Panasonic)."""


def is_raw(name: str) -> bool:
    """By its suffix: inside, most kinds are TIFF files with a small picture in front."""
    return Path(name).suffix.lower() in RAW_SUFFIXES


def develop(data: bytes, what: str) -> Image.Image:
    """The whole photo, upright, 8-bit sRGB, with the camera's white balance and LibRaw's usual brightness.

    Raises InputError that starts with `what` if rawpy is missing or the file cannot be read.
    """
    if find_spec("rawpy") is None:
        raise InputError(f"{what}: RAW photos need the package rawpy: pip install 'mast3r-sfm[raw]' (or rawpy)")
    import rawpy

    try:
        with rawpy.imread(io.BytesIO(data)) as raw:
            pixels = raw.postprocess(use_camera_wb=True, output_color=rawpy.ColorSpace.sRGB, output_bps=8)
    except rawpy.LibRawError as error:
        reason = error.args[0].decode(errors="replace") if isinstance(error.args[0], bytes) else str(error)
        raise InputError(f"{what}: not a RAW photo that can be read ({reason}); copy it again or remove it") from error
    return Image.fromarray(pixels)


def exif_of_raw(data: bytes) -> Image.Exif:
    """EXIF of a file that is TIFF inside, or else of the JPEG that cameras put into their files; empty without."""
    exif = Image.Exif()
    try:
        if data[:4] in (b"II*\0", b"MM\0*") or data[:4] in _TIFF_OF_VENDOR:
            exif.load(_TIFF_OF_VENDOR.get(data[:4], data[:4]) + data[4:])
            return exif
        import rawpy

        with rawpy.imread(io.BytesIO(data)) as raw:
            thumb = raw.extract_thumb()
        if thumb.format == rawpy.ThumbFormat.JPEG:
            return Image.open(io.BytesIO(bytes(thumb.data)), formats=("JPEG",)).getexif()
    except Exception as error:  # the pixels are fine; libraries raise nearly any type on damaged tags
        logger.debug("no EXIF of a RAW file: %s", error)
    return exif
