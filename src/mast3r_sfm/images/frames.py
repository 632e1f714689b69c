"""From clips to photos: which frames are taken, and where they are kept (docs/method.md, Frames of clips)."""

from __future__ import annotations

import atexit
import json
import logging
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from mast3r_sfm.errors import InputError
from mast3r_sfm.images.clips import Clip, Picture, check_clip_library, open_clip
from mast3r_sfm.images.finding import is_clip
from mast3r_sfm.options import FootageOptions
from mast3r_sfm.text import unique_stems
from mast3r_sfm.types import Frame

logger = logging.getLogger(__name__)

_SHARPNESS_EDGE = 640
"""Long edge of the copies whose sharpness is compared, pixels: motion blur of a few pixels of a film shows there."""

_STILLNESS_EDGE = 160
"""Long edge of the copies that say whether the camera moved, pixels: noise and compression are averaged out."""

STILL_PX = 0.3
"""Motion in those copies below which nothing moved: a five-hundredth of the picture."""

_QUALITY = 95
_DESCRIPTION, _SOFTWARE = 0x010E, 0x0131  # EXIF
_TOOL = "mast3r-sfm"


@dataclass(frozen=True)
class FootagePlan:
    """What is taken of photos and clips.

    paths       photos and clips, in order
    clips       the opened clips by their place among `paths`
    interval_s  from one candidate to the next, one length for all clips
    """

    paths: tuple[Path, ...]
    clips: Mapping[int, Clip]
    interval_s: float

    def num_intervals(self, clip: Clip) -> int:
        """Of one clip, at least one."""
        return max(1, int(clip.duration_s / self.interval_s + 1e-9))

    @property
    def num_steps(self) -> int:
        """The intervals of all clips."""
        return sum(map(self.num_intervals, self.clips.values()))


def plan_footage(paths: Sequence[Path], options: FootageOptions) -> FootagePlan:
    """Opens the clips among `paths`. Of every interval of 1 / fps seconds, or longer if the clips have more than
    `max_frames` intervals together, a frame may be taken. Raises InputError as `extract_frames`.
    """
    clips = {k: path for k, path in enumerate(paths) if is_clip(path)}
    check_clip_library(list(clips.values()))
    opened = {k: open_clip(path) for k, path in clips.items()}
    interval = max(1 / options.fps, sum(clip.duration_s for clip in opened.values()) / options.max_frames)
    return FootagePlan(tuple(paths), opened, interval)


def extract_frames(plan: FootagePlan, folder: Path, progress: Callable[[int], None] | None = None) -> list[Path]:
    """The photos of the plan and, in the place of each clip, the files of its frames, which are written to `folder`.

    A frame is a JPEG named after its clip and its number there (`stem_000123.jpg`), which says in its EXIF what clip
    and what time it is of (`frame_of_exif`). Two clips of one name get different stems.

    Of every interval the sharpest picture is a candidate; it is taken if the camera moved since the one taken before.
    One picture is taken of a clip that stands still: a photo, with a warning.

    progress  called with 1 after every interval, of which there are at most `num_steps` of the plan

    Raises InputError that names the clip that cannot be decoded, and one if a single clip is all the input and has
    only one picture, or a camera that does not move.
    """
    clips = plan.clips
    stems = dict(zip(clips, unique_stems([str(clip.path) for clip in clips.values()]), strict=True))
    files: list[Path] = []
    for k, path in enumerate(plan.paths):
        if k not in clips:
            files.append(path)
            continue
        frames = _write_frames(clips[k], plan.num_intervals(clips[k]), folder, stems[k], progress)
        if len(frames) == 1:
            _complain_of_one(clips[k], alone=len(plan.paths) == 1)
        logger.info("%s: %d frames of %.1f s", path, len(frames), clips[k].duration_s)
        files += frames
    return files


def temporary_folder() -> Path:
    """For frames that nobody named a folder for; it goes when the program ends."""
    folder = Path(tempfile.mkdtemp(prefix=f"{_TOOL}-frames-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def frame_of_exif(exif: Image.Exif) -> Frame | None:
    """What the EXIF of a frame that `extract_frames` wrote says; None for every other picture."""
    if exif.get(_SOFTWARE) != _TOOL:
        return None
    try:
        said = json.loads(str(exif.get(_DESCRIPTION)))
        return Frame(str(said["clip"]), float(said["time_s"]))
    except (ValueError, KeyError, TypeError):
        return None


def clips_of(paths: Sequence[Path]) -> list[str | None]:
    """The clip that each file is a frame of, None for photos; nothing is decoded for it."""
    return [_clip_of(path) for path in paths]


def _clip_of(path: Path) -> str | None:
    if path.suffix != ".jpg":
        return None
    try:
        with Image.open(path, formats=("JPEG",)) as image:
            frame = frame_of_exif(image.getexif())
    except Exception:  # as in `decode_image`, which says what is wrong
        return None
    return None if frame is None else frame.clip


@dataclass(frozen=True)
class _Candidate:
    """The sharpest picture of an interval.

    number  among the pictures of its clip, from 0
    """

    number: int
    picture: Picture
    sharpness: float


def _write_frames(
    clip: Clip, count: int, folder: Path, stem: str, progress: Callable[[int], None] | None
) -> list[Path]:
    """The files of the frames that are taken of the `count` intervals of one clip, in order of time."""
    interval = clip.duration_s / count
    files, before = [], None
    for one in _sharpest(clip.pictures(), interval, count):
        small = one.picture.grey(_STILLNESS_EDGE)
        if before is None or motion_px(before, small) > STILL_PX:
            files.append(folder / f"{stem}_{one.number:06d}.jpg")
            _write_frame(one.picture, files[-1], Frame(f"{stem}{clip.path.suffix}", round(one.picture.time_s, 6)))
            before = small
        if progress is not None:
            progress(1)
    return files


def _sharpest(pictures: Iterator[Picture], interval: float, count: int) -> Iterator[_Candidate]:
    """One candidate an interval, those without a picture left out. Two pictures are held at a time."""
    best: _Candidate | None = None
    now = 0
    for number, picture in enumerate(pictures):
        place = min(int(picture.time_s / interval + 1e-9), count - 1)
        if best is not None and place > now:
            yield best
            best = None
        now = max(now, place)
        sharpness = sharpness_of(picture.grey(_SHARPNESS_EDGE))
        if best is None or sharpness > best.sharpness:
            best = _Candidate(number, picture, sharpness)
    if best is not None:
        yield best


def sharpness_of(grey: np.ndarray) -> float:
    """Variance of the Laplacian of (h, w) uint8: larger for the sharper of two pictures of the same thing."""
    return float(cv2.Laplacian(grey, cv2.CV_32F).var())


def motion_px(before: np.ndarray, after: np.ndarray) -> float:
    """How far the picture moved between two (h, w) uint8 copies, in their pixels; exact to a pixel or two only.

    Where brightness changes along a slope, the slope moved by the change over its steepness (the normal flow). Of all
    clear edges the upper quartile counts: what moves before a standing camera does not, unless it has a quarter of the
    edges. A change of exposure (brightness and contrast of the whole) is taken out first. Pictures without a clear edge
    give infinity if they differ by more than noise.
    """
    if before.shape != after.shape:
        return float("inf")
    a, b = (cv2.GaussianBlur(grey.astype(np.float32), (0, 0), 1.0) for grey in (before, after))
    spread = float(a.std()), float(b.std())
    if min(spread) > 1:
        b = (b - b.mean()) * (spread[0] / spread[1]) + a.mean()
    steepness = np.hypot(cv2.Sobel(a, cv2.CV_32F, 1, 0, scale=1 / 8), cv2.Sobel(a, cv2.CV_32F, 0, 1, scale=1 / 8))
    clear = steepness >= max(_CLEAR_EDGE, float(np.quantile(steepness, 0.8)))
    if not clear.any():
        return float("inf") if float(np.abs(a - b).mean()) > _NOISE else 0.0
    return float(np.quantile(np.abs(b - a)[clear] / steepness[clear], 0.75))


_CLEAR_EDGE = 2.0
"""Grey levels per pixel."""

_NOISE = 2.0
"""Grey levels."""


def _write_frame(picture: Picture, path: Path, frame: Frame) -> None:
    exif = Image.Exif()
    exif[_SOFTWARE] = _TOOL
    exif[_DESCRIPTION] = json.dumps({"clip": frame.clip, "time_s": frame.time_s})
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.rgb().save(path, quality=_QUALITY, subsampling=0, exif=exif)


def _complain_of_one(clip: Clip, alone: bool) -> None:
    """Raises InputError if there is nothing but this clip."""
    if clip.num_pictures == 1:
        what = "is a clip of a single picture"
    else:
        what = f"the camera does not move in {clip.duration_s:.1f} s"
    if alone:
        raise InputError(f"{clip.path}: {what}; a scene needs pictures from several places: film while you walk")
    logger.warning("%s: %s; one frame of it is used", clip.path, what)
