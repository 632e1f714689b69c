"""The file formats every exporter shares: strict JSON, NumPy arrays and PNG, with plain `OSError`s on failure."""

from __future__ import annotations

import io
import json
import math
import zipfile
from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import Any

import numpy as np


def to_strict_json(value: Any) -> Any:
    """Plain JSON values of `value`: NaN and infinities become null, arrays and tuples lists, paths strings.

    Raises TypeError for anything that JSON cannot say.
    """
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, (np.ndarray, np.generic)):
        return to_strict_json(value.tolist())
    if isinstance(value, Mapping):
        return {str(key): to_strict_json(item) for key, item in value.items()}
    if isinstance(value, Set):
        return [to_strict_json(item) for item in sorted(value)]
    if isinstance(value, Sequence):
        return [to_strict_json(item) for item in value]
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")


def write_json(path: Path, value: Any) -> None:
    """Writes `value` as strict JSON. ASCII only, so that file names which are not valid UTF-8 survive as well."""
    path.write_text(json.dumps(to_strict_json(value), indent=2, allow_nan=False) + "\n", encoding="ascii")


def write_npy(path: Path, array: np.ndarray) -> None:
    """Writes one array. Not `np.save`: on a full disk that raises an error which no longer says so."""
    path.write_bytes(_npy_bytes(array))


def write_npz(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes arrays that `np.load(path, allow_pickle=False)` reads; equal arrays give equal files.

    Integers are compressed at the fastest level. Floats are stored: their mantissas are noise, deflate takes a
    fifth off at 30 MB/s. `np.savez_compressed` does neither.
    """
    with zipfile.ZipFile(path, "w", allowZip64=True) as archive:
        for name, array in arrays.items():
            entry = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            entry.external_attr = 0o644 << 16
            method = zipfile.ZIP_STORED if array.dtype.kind == "f" else zipfile.ZIP_DEFLATED
            archive.writestr(entry, _npy_bytes(array), method, compresslevel=1)


LOSSLESS = (".png", ".tif", ".tiff", ".bmp")
"""Suffixes of the kinds of file that `encode_lossless` makes."""


def encode_png(rgb: np.ndarray) -> bytes:
    """PNG of an (H, W, 3) uint8 RGB picture, or of an (H, W) uint8 grey one."""
    return encode_lossless(rgb, ".png")


def encode_lossless(rgb: np.ndarray, suffix: str) -> bytes:
    """The file of an (H, W, 3) uint8 RGB picture, or of an (H, W) grey one, whose kind is that of the suffix, one of
    `LOSSLESS` in any case."""
    import cv2

    picture = rgb if rgb.ndim == 2 else cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR)
    settings = [cv2.IMWRITE_PNG_COMPRESSION, 3] if suffix.lower() == ".png" else []
    _, data = cv2.imencode(suffix.lower(), picture, settings)
    return data.tobytes()


def encode_jpeg(rgb: np.ndarray, quality: int = 92, full_colour: bool = True) -> bytes:
    """JPEG of an (H, W, 3) uint8 RGB picture, colours at full resolution (4:4:4) or at half of it (4:2:0)."""
    import cv2

    sampling = cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444 if full_colour else cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420
    settings = [cv2.IMWRITE_JPEG_QUALITY, quality, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, sampling]
    settings += [cv2.IMWRITE_JPEG_OPTIMIZE, 1]
    _, data = cv2.imencode(".jpg", cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR), settings)
    return data.tobytes()


def write_png(path: Path, rgb: np.ndarray) -> None:
    """Writes an (H, W, 3) uint8 RGB picture, or an (H, W) grey one. Not `cv2.imwrite`: that reports no failure."""
    path.write_bytes(encode_png(rgb))


def _npy_bytes(array: np.ndarray) -> memoryview:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.asarray(array, order="C"), allow_pickle=False)
    return buffer.getbuffer()
