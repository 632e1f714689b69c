"""Rendered sets of photo files with true cameras, one for each kind of set that cameras are measured on.

A set is a folder of JPEG files, with EXIF tags where the set says so, and a truth.json as `mast3r-sfm evaluate` reads
it. Photos are rendered larger than they are saved and then made smaller, which smooths edges at half the cost of four
rays a pixel.
"""

from __future__ import annotations

import json
import math
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image

from synthetic import RenderedScene, render_aerial, render_orbit, render_rings

FRAME = (1024, 768)
FOCAL_PX = 0.5 * FRAME[0] / math.tan(math.radians(31))
"""Of most sets: a field of view of 62 degrees along the longer side."""

OVERSAMPLING = 1.5
"""Rendered over saved pixels along each axis."""

JPEG_QUALITY = 92
EFFECTS = 0.1
OCTAVES = 6
MAKE, MODEL, FOCAL_LENGTH_35MM, EXIF_IFD = 0x010F, 0x0110, 0xA405, 0x8769
DIAGONAL_35MM = math.hypot(36.0, 24.0)
TRUTH = "truth.json"


@dataclass(frozen=True)
class Shot:
    """How one photo is taken.

    size      (W, H) of the camera's frame, pixels, multiples of 4
    focal_px  in pixels of that frame
    saved     (W, H) of the photo, cut from the middle of the frame, even; None: all of it
    k1        radial distortion: a point at x = (X / Z, Y / Z) of the camera is seen at x (1 + k1 |x|^2)
    tags      EXIF tags of the image itself (make and model)
    film_mm   FocalLengthIn35mmFilm, None: not stated
    """

    size: tuple[int, int] = FRAME
    focal_px: float = FOCAL_PX
    saved: tuple[int, int] | None = None
    k1: float = 0.0
    tags: dict[int, str] = field(default_factory=dict)
    film_mm: int | None = None

    def shrunk(self, divisor: int) -> Shot:
        """The same photo with `divisor` times fewer pixels along each side."""

        def smaller(size: tuple[int, int]) -> tuple[int, int]:
            return size[0] // divisor, size[1] // divisor

        saved = None if self.saved is None else smaller(self.saved)
        return replace(self, size=smaller(self.size), focal_px=self.focal_px / divisor, saved=saved)


@dataclass(frozen=True)
class PhotoSet:
    """`render` makes view k for shot k, given the keywords size, fov_deg, views, device, effects and octaves."""

    render: Callable[..., RenderedScene]
    shots: tuple[Shot, ...]


# ------------------------------------------------------------------ the sets
def _orbit(seed: int, shots: Sequence[Shot] = (Shot(),) * 7, degrees: float = 210.0, contrast: float = 1.0) -> PhotoSet:
    return PhotoSet(partial(render_orbit, seed, len(shots), degrees=degrees, contrast=contrast), tuple(shots))


def _aerial(seed: int) -> PhotoSet:
    film_mm = 28
    focal_px = film_mm * math.hypot(*FRAME) / DIAGONAL_35MM
    shot = Shot(focal_px=focal_px, tags={MAKE: "mast3r-sfm", MODEL: "synthetic drone"}, film_mm=film_mm)
    return PhotoSet(partial(render_aerial, seed, rows=4, columns=4, height_m=40.0, overlap=0.7), (shot,) * 16)


def _zoomed(seed: int) -> PhotoSet:
    shots = [Shot()] * 8
    shots[3] = Shot(focal_px=1.5 * FOCAL_PX)
    return _orbit(seed, shots)


def _two_cameras(seed: int, with_exif: bool) -> PhotoSet:
    first, second = Shot(focal_px=1.0 * FRAME[0]), Shot(size=(1280, 832), focal_px=0.75 * 1280)
    if with_exif:
        first = replace(first, tags={MAKE: "mast3r-sfm", MODEL: "synthetic camera A"})
        second = replace(second, tags={MAKE: "mast3r-sfm", MODEL: "synthetic camera B"})
    return _orbit(seed, [first, second] * 4)


def _aspect(seed: int) -> PhotoSet:
    return _orbit(seed, [Shot(), Shot(saved=(FRAME[1], FRAME[1]))] * 4)


def _large(seed: int) -> PhotoSet:
    return PhotoSet(partial(render_rings, seed, rings=5, views_per_ring=40), (Shot(),) * 200)


SETS: dict[str, Callable[[int], PhotoSet]] = {
    "orbit": _orbit,
    "low-texture": partial(_orbit, contrast=0.25),
    "wide": partial(_orbit, degrees=300.0),
    "aerial": _aerial,
    "zoomed": _zoomed,
    "two-cameras": partial(_two_cameras, with_exif=False),
    "two-cameras-exif": partial(_two_cameras, with_exif=True),
    "aspect": _aspect,
    "large": _large,
    "distorted": partial(_orbit, shots=(Shot(k1=-0.08),) * 7),
}
"""By name, made from a seed. Neighbours of `orbit` are 35 degrees apart, of `wide` 50, of the orbits of eight 30."""


# ------------------------------------------------------------------ taking a photo
def take_photo(
    photos: PhotoSet, view: int, device: torch.device | str = "cpu"
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """rgb (H, W, 3) uint8, K (3, 3) pixels and world_from_cam (4, 4) of one photo of a set."""
    shot = photos.shots[view]
    W, H = shot.size
    focal = OVERSAMPLING * shot.focal_px
    frame = int(OVERSAMPLING * W), int(OVERSAMPLING * H)
    canvas = _canvas(frame, focal, shot.k1)
    fov_deg = math.degrees(2 * math.atan(0.5 * max(canvas) / focal))
    scene = photos.render(size=canvas, fov_deg=fov_deg, views=[view], device=device, effects=EFFECTS, octaves=OCTAVES)
    rgb = scene.rgb[0].cpu().numpy()
    rgb = _distort(rgb, frame, focal, shot.k1) if shot.k1 else _middle(rgb, frame)
    rgb = cv2.resize(rgb, shot.size, interpolation=cv2.INTER_AREA)
    w, h = shot.saved or shot.size
    K = np.array([[shot.focal_px, 0, (w - 1) / 2], [0, shot.focal_px, (h - 1) / 2], [0, 0, 1]])
    return _middle(rgb, (w, h)), K, scene.world_from_cam[0].cpu().numpy()


def _canvas(frame: tuple[int, int], focal: float, k1: float) -> tuple[int, int]:
    """Size, multiples of 8, of an image without distortion that covers a frame (W, H) with it."""
    corner = np.array([(side - 1) / 2 / focal for side in frame])
    growth = np.maximum(_undistorted(corner, k1) / corner, 1)
    W, H = (8 * math.ceil(side * ratio / 8) for side, ratio in zip(frame, growth, strict=True))
    return W, H


def _middle(rgb: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The middle (W, H) of an image; both sizes are even, so that the two have the same centre."""
    (W, H), (h, w) = size, rgb.shape[:2]
    left, top = (w - W) // 2, (h - H) // 2
    return rgb[top : top + H, left : left + W]


def _undistorted(seen: np.ndarray, k1: float) -> np.ndarray:
    """The x (..., 2) with x (1 + k1 |x|^2) = `seen`, by fixed point iteration; for mild distortions."""
    x = seen
    for _ in range(50):
        x = seen / (1 + k1 * (x**2).sum(-1, keepdims=True))
    return x


def _distort(rgb: np.ndarray, size: tuple[int, int], focal: float, k1: float) -> np.ndarray:
    """What a lens of distortion k1 makes of `rgb`, in an image of `size` (W, H) with the same focal length."""
    (W, H), (h, w) = size, rgb.shape[:2]
    rows, columns = np.mgrid[:H, :W]
    seen = np.stack([columns - (W - 1) / 2, rows - (H - 1) / 2], -1).reshape(-1, 2) / focal
    at = _undistorted(seen, k1) * focal + [(w - 1) / 2, (h - 1) / 2]
    x, y = at.astype(np.float32).reshape(H, W, 2).transpose(2, 0, 1)
    return cv2.remap(rgb, x, y, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)


def save_photo(rgb: np.ndarray, shot: Shot, path: Path) -> None:
    """Writes a JPEG with the EXIF tags of the shot."""
    image = Image.fromarray(rgb)
    exif = image.getexif()
    exif.update(shot.tags)
    if shot.film_mm is not None:
        exif.get_ifd(EXIF_IFD)[FOCAL_LENGTH_35MM] = shot.film_mm
    image.save(path, quality=JPEG_QUALITY, exif=exif)


# ------------------------------------------------------------------ writing sets
def write_sets(jobs: Sequence[tuple[str, int, Path]], device: str = "cpu", processes: int = 1, shrink: int = 1) -> None:
    """Renders sets (name, seed, folder); a folder that has its truth.json is left as it is.

    device     that renders; on "cpu" with that many `processes`
    shrink     makes all photos smaller by this divisor, a power of 2 up to 16
    """
    jobs = [job for job in jobs if not (job[2] / TRUTH).exists()]
    sets = [_made(name, seed, shrink) for name, seed, _ in jobs]
    tasks = [(job, view) for job, photos in zip(jobs, sets, strict=True) for view in range(len(photos.shots))]
    for _, _, folder in jobs:
        folder.mkdir(parents=True, exist_ok=True)
    with _mapper(processes if device == "cpu" else 1) as run:
        written = run(partial(_write_photo, device=device, shrink=shrink), tasks)
        for (name, seed, folder), photos in zip(jobs, sets, strict=True):
            truth = {
                "convention": "OpenCV axes, camera-to-world, pixel centres at integers, metres; "
                "the world's y axis points down",
                "set": name,
                "seed": seed,
                "views": [next(written) for _ in photos.shots],
            }
            (folder / TRUTH).write_text(json.dumps(truth, indent=1) + "\n")


def _made(name: str, seed: int, shrink: int) -> PhotoSet:
    photos = SETS[name](seed)
    return replace(photos, shots=tuple(shot.shrunk(shrink) for shot in photos.shots))


def _write_photo(task: tuple[tuple[str, int, Path], int], device: str, shrink: int) -> dict[str, Any]:
    """Renders and saves one photo; returns its entry of truth.json."""
    (name, seed, folder), view = task
    photos = _made(name, seed, shrink)
    rgb, K, world_from_cam = take_photo(photos, view, device)
    path = folder / f"view_{view:03d}.jpg"
    save_photo(rgb, photos.shots[view], path)
    entry = {
        "file": path.name,
        "size": [rgb.shape[1], rgb.shape[0]],
        "K": K.tolist(),
        "world_from_cam": world_from_cam.tolist(),
    }
    return entry | ({"k1": photos.shots[view].k1} if photos.shots[view].k1 else {})


@contextmanager
def _mapper(processes: int) -> Iterator[Callable[..., Iterator[Any]]]:
    """A `map` that works in this process, or in several of one thread each."""
    if processes == 1:
        yield map
        return
    context = multiprocessing.get_context("spawn")  # a fork of a process with threads may hang
    with ProcessPoolExecutor(processes, context, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        yield pool.map
