"""Files of 16 bits a sample whose values fill 8, 10 or 12 of them only, as many scientific cameras write."""

from __future__ import annotations

import io
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

logger = logging.getLogger(__name__)

_FORMATS = ("PNG", "TIFF")
_RANGES = (8, 10, 12)
_BITS_PER_SAMPLE = 258  # TIFF


def sample_bits_of_set(paths: Sequence[Path]) -> list[int]:
    """The bits that the samples of each file fill: of all 16-bit grey and RGB files together, so that brightness stays
    comparable; 16 for all other files, and if a sample has more than 12 bits.

    Files are read until one has such a sample, so that photos of the full range cost one look.
    """
    deep = [k for k, path in enumerate(paths) if _may_be_deep(path)]
    largest = 0
    for k in deep:
        largest = max(largest, _largest_sample(paths[k]))
        if largest >> max(_RANGES):
            break
    bits = next((bits for bits in _RANGES if not largest >> bits), 16) if deep and largest else 16
    if bits < 16:
        logger.warning(
            "the %d image(s) of 16 bits hold values up to %d only; they are read as %d-bit images",
            len(deep),
            largest,
            bits,
        )
    return [bits if k in set(deep) else 16 for k in range(len(paths))]


def read_deep(data: bytes) -> np.ndarray | None:
    """(H, W) or (H, W, 3) uint16 samples of a 16-bit grey or RGB file; None for every other one.

    Pillow keeps the upper byte of colours. A second reading with the bytes the other way round gives the lower one.
    """
    image = Image.open(io.BytesIO(data), formats=_FORMATS)
    if image.mode.startswith("I;16"):
        return np.asarray(image) if _stated_bits(image) == 16 else None
    modes = {_raw_mode(tile) for tile in image.tile}
    if image.mode != "RGB" or not modes or not modes <= {"RGB;16B", "RGB;16L", "RGB;16N"}:
        return None
    upper = np.asarray(image).astype(np.uint16)
    swapped = Image.open(io.BytesIO(data), formats=_FORMATS)
    swapped.tile = [_with_swapped_bytes(tile) for tile in swapped.tile]
    return upper << 8 | np.asarray(swapped)


def _may_be_deep(path: Path) -> bool:
    if path.suffix.lower() not in (".png", ".tif", ".tiff"):
        return False
    try:
        with Image.open(path, formats=_FORMATS) as image:
            if image.mode.startswith("I;16"):
                return _stated_bits(image) == 16
            return image.mode == "RGB" and any(";16" in _raw_mode(tile) for tile in image.tile)
    except Exception:  # as in `decode_image`, which says what is wrong
        return False


def _largest_sample(path: Path) -> int:
    try:
        samples = read_deep(path.read_bytes())
    except Exception:
        return 0
    return 0 if samples is None else int(samples.max())


def _stated_bits(image: Image.Image) -> int:
    bits = getattr(image, "tag_v2", {}).get(_BITS_PER_SAMPLE, 16)
    return int(bits[0] if isinstance(bits, tuple) else bits)


def _raw_mode(tile: Image.ImageFile._Tile) -> str:
    arguments = tile.args
    return str(arguments[0] if isinstance(arguments, tuple) else arguments)


def _with_swapped_bytes(tile: Image.ImageFile._Tile) -> Image.ImageFile._Tile:
    other = {"RGB;16B": "RGB;16L", "RGB;16L": "RGB;16B", "RGB;16N": _OTHER_THAN_NATIVE}[_raw_mode(tile)]
    arguments = (other, *tile.args[1:]) if isinstance(tile.args, tuple) else other
    return tile._replace(args=arguments)


_OTHER_THAN_NATIVE = "RGB;16B" if np.little_endian else "RGB;16L"
