"""Clips as a row of pictures with their times: films by PyAV, which is an optional extra, animations by Pillow."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from mast3r_sfm.errors import InputError
from mast3r_sfm.images.finding import CLIP_SUFFIXES
from mast3r_sfm.images.tone import HDR_TRANSFERS, sdr_from_hdr

logger = logging.getLogger(__name__)

_HD_HEIGHT = 720
"""Films of this height or more that do not say so have the colours of BT.709, smaller ones those of BT.601."""

_EXACT = ("BILINEAR", "ACCURATE_RND", "BITEXACT", "FULL_CHR_H_INT")
"""Flags of libswscale with which every processor computes the same pixels."""

_CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,asf,ogg"
"""What a film may be inside, whatever its name says: an open list would let a playlist name other files."""


class Picture(Protocol):
    """A picture of a clip."""

    @property
    def time_s(self) -> float:
        """Since the first picture, seconds."""

    def grey(self, long_edge: int) -> np.ndarray:
        """(h, w) uint8, reduced to `long_edge` if it is larger; not turned upright."""

    def rgb(self) -> Image.Image:
        """The whole picture, upright, 8-bit RGB with square pixels."""


@dataclass(frozen=True)
class Clip:
    """A clip before it is decoded.

    duration_s    to the end of the last picture
    num_pictures  0 if the file does not say
    """

    path: Path
    duration_s: float
    num_pictures: int

    def pictures(self) -> Iterator[Picture]:
        """All pictures in order of time, decoded one after the other. Damaged stretches are left out, with a warning.

        Raises InputError that names the clip if nothing of it can be decoded.
        """
        return _pictures_of_film(self.path) if _is_film(self.path) else _pictures_of_animation(self.path)


def check_clip_library(paths: list[Path]) -> None:
    """Raises InputError that says how to install PyAV, if one of the clips needs it and it is not there."""
    film = next(filter(_is_film, paths), None)
    if film is not None and find_spec("av") is None:
        raise InputError(f"{film}: films need the package av: pip install 'mast3r-sfm[video]' (or av)")


def open_clip(path: Path) -> Clip:
    """How long the clip is. Raises InputError that names it if it cannot be read."""
    return _open_film(path) if _is_film(path) else _open_animation(path)


def _is_film(path: Path) -> bool:
    return path.suffix.lower() in CLIP_SUFFIXES


# ------------------------------------------------------------------ films
@dataclass(frozen=True)
class _FilmPicture:
    """A decoded picture of a film.

    pixel_shape  width over height of a pixel
    """

    time_s: float
    frame: Any
    pixel_shape: Fraction

    def grey(self, long_edge: int) -> np.ndarray:
        scale = min(1.0, long_edge / max(self.frame.width, self.frame.height))
        width, height = (max(1, round(side * scale)) for side in (self.frame.width, self.frame.height))
        return np.ascontiguousarray(self._converted("gray", width, height))

    def rgb(self) -> Image.Image:
        transfer = HDR_TRANSFERS.get(self.frame.color_trc)
        if transfer is None:
            pixels = self._converted("rgb24")
        else:
            pixels = sdr_from_hdr(self._converted("rgb48le"), transfer)
        image = Image.fromarray(pixels)
        if self.pixel_shape != 1:
            image = image.resize(
                (max(1, round(image.width * self.pixel_shape)), image.height), Image.Resampling.BICUBIC
            )
        turns = round(self.frame.rotation / 90) % 4  # counterclockwise
        upright = {1: Image.Transpose.ROTATE_90, 2: Image.Transpose.ROTATE_180, 3: Image.Transpose.ROTATE_270}
        return image.transpose(upright[turns]) if turns else image

    def _converted(self, pixels: str, width: int | None = None, height: int | None = None) -> np.ndarray:
        from av.video.reformatter import ColorRange, Colorspace, Interpolation

        frame = self.frame
        known = {1: Colorspace.ITU709, 4: Colorspace.FCC, 5: Colorspace.ITU601, 6: Colorspace.ITU601}
        known |= {7: Colorspace.SMPTE240M, 9: Colorspace.BT2020, 10: Colorspace.BT2020}
        usual = Colorspace.ITU709 if frame.height >= _HD_HEIGHT else Colorspace.ITU601
        flags = 0
        for name in _EXACT:
            flags |= Interpolation[name]
        return frame.reformat(
            width,
            height,
            pixels,
            src_colorspace=known.get(frame.colorspace, usual),
            src_color_range=frame.color_range or ColorRange.MPEG,
            dst_color_range=ColorRange.JPEG,
            interpolation=flags,
            threads=1,
        ).to_ndarray()


def _open_film(path: Path) -> Clip:
    """Reads the times of all packets, and decodes nothing: what a file says of its length is often wrong."""
    import av

    try:
        with av.open(str(path), metadata_errors="replace", options={"format_whitelist": _CONTAINERS}) as container:
            stream = _stream(container, path)
            times = [
                packet.pts if packet.pts is not None else packet.dts
                for packet in container.demux(stream)
                if packet.size
            ]
            rate, time_base = stream.guessed_rate or stream.average_rate, stream.time_base
    except (av.FFmpegError, OSError, ValueError) as error:
        raise _not_decoded(path, error) from error
    if not times:
        raise InputError(f"{path}: holds no picture; copy the clip again or remove it from the input")
    step = 1 / rate if rate else Fraction(1, 25)
    known = [time for time in times if time is not None]
    length = (max(known) - min(known)) * time_base if len(known) == len(times) else (len(times) - 1) * step
    return Clip(path, float(length + step), len(times))


def _pictures_of_film(path: Path) -> Iterator[Picture]:
    import av

    num_bad, time_s, first_s = 0, -1.0, None
    error: Exception | None = None
    warned_of_lines = False
    try:
        with av.open(str(path), metadata_errors="replace", options={"format_whitelist": _CONTAINERS}) as container:
            stream = _stream(container, path)
            stream.thread_type = "AUTO"
            pixel_shape = stream.sample_aspect_ratio or Fraction(1)
            step = float(1 / (stream.guessed_rate or Fraction(25)))
            for packet in container.demux(stream):
                try:
                    frames = packet.decode()
                except av.FFmpegError as damage:
                    num_bad, error = num_bad + 1, damage
                    continue
                for frame in frames:
                    if frame.is_corrupt:
                        num_bad += 1
                        continue
                    now = time_s + step if frame.pts is None else float(frame.pts * frame.time_base)
                    first_s = now if first_s is None else first_s
                    time_s = max(time_s, now)  # some files jump back where they were cut
                    if frame.interlaced_frame and not warned_of_lines:
                        logger.warning("%s: is interlaced; its frames are used as they are", path)
                        warned_of_lines = True
                    yield _FilmPicture(time_s - first_s, frame, pixel_shape)
    except (av.FFmpegError, OSError, ValueError) as damage:
        num_bad, error = num_bad + 1, damage
    if first_s is None:
        raise _not_decoded(path, error)
    if num_bad:
        logger.warning("%s: %d of its pictures are damaged and left out", path, num_bad)


def _stream(container: Any, path: Path) -> Any:
    """The film itself, which is neither a cover picture nor sound."""
    from av.stream import Disposition

    films = [one for one in container.streams.video if not one.disposition & Disposition.attached_pic]
    if not films:
        raise InputError(f"{path}: has no pictures, only sound or data; remove it from the input")
    if films[0].codec_context is None:
        raise InputError(f"{path}: its codec is not known; convert the clip to H.264 or remove it from the input")
    return films[0]


def _not_decoded(path: Path, error: BaseException | None) -> InputError:
    reason = getattr(error, "strerror", None) or " ".join(str(error or "no picture").split())
    return InputError(f"{path}: the clip cannot be decoded ({reason}); copy it again or remove it from the input")


# ------------------------------------------------------------------ animations
_USUAL_DURATION_MS = 100  # what browsers do with 0


@dataclass(frozen=True)
class _AnimationPicture:
    """A picture of a GIF or WebP; transparency is on white, as of photos."""

    time_s: float
    image: Image.Image

    def grey(self, long_edge: int) -> np.ndarray:
        small = self.image.convert("L")
        small.thumbnail((long_edge, long_edge), Image.Resampling.BILINEAR)
        return np.asarray(small)

    def rgb(self) -> Image.Image:
        return self.image


def _open_animation(path: Path) -> Clip:
    durations_ms = [duration_ms for _, duration_ms in _animation(path)]
    return Clip(path, sum(durations_ms) / 1e3, len(durations_ms))


def _pictures_of_animation(path: Path) -> Iterator[Picture]:
    time_ms = 0.0
    for image, duration_ms in _animation(path):
        yield _AnimationPicture(time_ms / 1e3, image)
        time_ms += duration_ms


def _animation(path: Path) -> Iterator[tuple[Image.Image, float]]:
    """Upright pictures and how long each is shown."""
    try:
        with Image.open(path, formats=("GIF", "WEBP")) as image:
            for number in range(getattr(image, "n_frames", 1)):
                image.seek(number)
                rgba = image.convert("RGBA")
                white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
                rgb = Image.alpha_composite(white, rgba).convert("RGB")
                yield rgb, float(image.info.get("duration") or _USUAL_DURATION_MS)
    except (OSError, ValueError, EOFError, SyntaxError, Image.DecompressionBombError) as error:
        raise _not_decoded(path, error) from error
