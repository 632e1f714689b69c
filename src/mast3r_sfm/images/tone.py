"""HDR films as ordinary pictures (docs/method.md, Frames of clips)."""

from __future__ import annotations

from functools import lru_cache
from typing import Literal

import numpy as np

Transfer = Literal["pq", "hlg"]

HDR_TRANSFERS: dict[int, Transfer] = {16: "pq", 18: "hlg"}
"""By the number of the transfer characteristics in ITU-T H.273."""

WHITE_NITS = 203.0
"""Of a sheet of paper in an HDR film (ITU-R BT.2408)."""

PEAK_NITS = 1000.0
"""What becomes the brightest that an ordinary picture can show; it is also the nominal peak of HLG."""

_KNEE = 0.5
"""Share of white up to which brightness stays as it is."""

_BT709_FROM_BT2020 = np.array(
    [[1.660491, -0.587641, -0.072850], [-0.124550, 1.132900, -0.008349], [-0.018151, -0.100579, 1.118730]],
    dtype=np.float32,
)
"""Linear light, ITU-R BT.2087."""

_LUMINANCE_BT2020 = np.array([0.2627, 0.6780, 0.0593], dtype=np.float32)


def sdr_from_hdr(code: np.ndarray, transfer: Transfer) -> np.ndarray:
    """(H, W, 3) uint16 R'G'B' of BT.2020, 65535 the largest code value -> (H, W, 3) uint8 sRGB.

    The film's light is computed from its code, white brought to 1, BT.2020 turned to BT.709, what lies above half of
    white compressed so that `PEAK_NITS` just fits (the largest of R, G and B decides, so that the hue stays), and
    encoded as sRGB.
    """
    light = _linear_table(transfer)[code]
    if transfer == "hlg":  # the display's part of it: brightness to the power 1.2 (BT.2100, for 1000 nits)
        luminance = light @ _LUMINANCE_BT2020
        light = light * (PEAK_NITS * np.maximum(luminance, 1e-6) ** 0.2)[..., None]
    rgb = np.maximum((light / np.float32(WHITE_NITS)) @ _BT709_FROM_BT2020.T, 0)
    largest = np.maximum(rgb.max(-1, keepdims=True), np.float32(1e-6))
    rgb *= compressed(largest) / largest
    return _srgb_table()[np.rint(np.clip(rgb, 0, 1) * 65535).astype(np.uint16)]


def compressed(brightness: np.ndarray) -> np.ndarray:
    """Brightness in units of white -> the same up to half of it, above that less and less; the peak becomes 1."""
    above = np.maximum(brightness - _KNEE, 0) / (1 - _KNEE)
    peak = (PEAK_NITS / WHITE_NITS - _KNEE) / (1 - _KNEE)
    return np.minimum(brightness, _KNEE) + (1 - _KNEE) * above * (1 + above / peak**2) / (1 + above)


def nits_of_pq(signal: np.ndarray) -> np.ndarray:
    """Light of a PQ signal in [0, 1], nits (SMPTE ST 2084)."""
    m1, m2, c1, c2, c3 = 1305 / 8192, 2523 / 32, 107 / 128, 2413 / 128, 2392 / 128
    root = np.asarray(signal, dtype=np.float64) ** (1 / m2)
    return 10000.0 * (np.maximum(root - c1, 0) / (c2 - c3 * root)) ** (1 / m1)


def scene_light_of_hlg(signal: np.ndarray) -> np.ndarray:
    """Light of the scene of an HLG signal in [0, 1], 1 for the peak (ITU-R BT.2100)."""
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    signal = np.asarray(signal, dtype=np.float64)
    return np.where(signal <= 0.5, signal**2 / 3, (np.exp((np.maximum(signal, 0.5) - c) / a) + b) / 12)


def srgb_of_linear(light: np.ndarray) -> np.ndarray:
    """Light in [0, 1] -> sRGB in [0, 1] (IEC 61966-2-1)."""
    light = np.asarray(light, dtype=np.float64)
    return np.where(light <= 0.0031308, 12.92 * light, 1.055 * np.maximum(light, 1e-9) ** (1 / 2.4) - 0.055)


@lru_cache(maxsize=2)
def _linear_table(transfer: Transfer) -> np.ndarray:
    signal = np.arange(65536) / 65535
    return (nits_of_pq(signal) if transfer == "pq" else scene_light_of_hlg(signal)).astype(np.float32)


@lru_cache(maxsize=1)
def _srgb_table() -> np.ndarray:
    return np.rint(255 * srgb_of_linear(np.arange(65536) / 65535)).astype(np.uint8)
