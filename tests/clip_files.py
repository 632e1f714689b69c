"""Clips for tests."""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np


def write_clip(
    path: Path,
    pictures: Iterable[Any],
    fps: int = 10,
    times: Iterable[float] | None = None,
    codec: str = "libx264",
    pix_fmt: str = "yuv444p",
    rotation: int = 0,
    options: dict[str, str] | None = None,
    **attributes: Any,
) -> Path:
    """Encodes pictures, (H, W, 3) uint8 or frames of PyAV, with times in seconds, or `fps` of them a second."""
    av: Any = import_module("av")
    pictures = list(pictures)
    milliseconds = [round(1000 * t) for t in times] if times else [round(1000 * k / fps) for k in range(len(pictures))]
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=fps, options=options or {"crf": "10", "preset": "ultrafast"})
        first = pictures[0]
        stream.height, stream.width = first.shape[:2] if isinstance(first, np.ndarray) else (first.height, first.width)
        stream.pix_fmt, stream.time_base = pix_fmt, Fraction(1, 1000)
        stream.codec_context.time_base = Fraction(1, 1000)
        for name, value in attributes.items():
            setattr(stream.codec_context, name, value)
        if rotation:
            stream.set_display_rotation(rotation)
        for picture, time in zip(pictures, milliseconds, strict=True):
            frame = picture if isinstance(picture, av.VideoFrame) else av.VideoFrame.from_ndarray(picture)
            frame.pts, frame.time_base = time, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path
