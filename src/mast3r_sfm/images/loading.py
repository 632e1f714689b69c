"""Images: from files, folders and globs to views of the size that the network wants."""

from __future__ import annotations

import glob
import hashlib
import logging
import os
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from mast3r_sfm.errors import InputError
from mast3r_sfm.images.decoding import decode_image, max_pixels, quiet_pillow
from mast3r_sfm.text import byte_count
from mast3r_sfm.types import ImageTransform, View

logger = logging.getLogger(__name__)

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp", ".heic", ".heif", ".avif")
"""Accepted file name suffixes, in lower case; compared without regard to case."""

_COMPANIONS = (".json", ".txt", ".md", ".csv", ".xml", ".xmp", ".yaml", ".yml")

HEAVY_CROP = 0.25
"""Share of the resized picture that the crop may remove without a warning (a square cropped to 4:3 loses just that)."""


@dataclass(frozen=True)
class ImageSizing:
    """How images are resized and cropped for a model; published models have patches of 16.

    See docs/method.md, Input of the network.

    size            the long edge after the resize, or the side of the square if `square_crop`
    patch_size      both sides become multiples of it
    square_crop     the short edge becomes `size` and the middle square is kept (the published 224 models)
    accept_squares  False: a square image is cropped to 4:3 landscape, as the published 512 models were trained
    """

    size: int = 512
    patch_size: int = 16
    square_crop: bool = False
    accept_squares: bool = False

    def __post_init__(self) -> None:
        if self.patch_size < 1:
            raise InputError(f"patch size {self.patch_size}: a model's patch size must be at least 1")
        if self.size < 2 * self.patch_size:
            raise InputError(
                f"`image_size` {self.size}: must be at least {2 * self.patch_size}, two patches of the model"
            )

    @classmethod
    def for_model(cls, size: int, patch_size: int, accept_squares: bool) -> ImageSizing:
        """The rule for a model's configuration: 224 means the square crop for the published kind of model only."""
        return cls(size, patch_size, size == 224 and patch_size == 16 and not accept_squares, accept_squares)


def find_images(inputs: Sequence[str | Path]) -> list[Path]:
    """The image files that `inputs` name, in the order given; what a path holds decides what it is.

    A folder gives its images in natural order (img2 before img10), without subfolders and hidden files; a glob
    gives its matches in natural order. Other files met on the way are skipped with one warning, data that lies
    beside photos (json, txt, ...) without. A file named explicitly must have an accepted suffix. A file named
    twice is kept twice.

    Raises InputError for no input, a path or glob that matches nothing, and a folder without an image.
    """
    if not inputs:
        raise InputError(f"no input: name a folder, image files or a glob ({_suffixes()})")
    found: list[Path] = []
    skipped: list[Path] = []
    for item in inputs:
        try:
            images, others = _find(str(item))
        except OSError as error:
            raise _unreadable(item, error) from error
        found += images
        skipped += others
    skipped = [path for path in skipped if path.suffix.lower() not in _COMPANIONS]
    if skipped:
        names = ", ".join(path.name for path in skipped[:3]) + (", ..." if len(skipped) > 3 else "")
        logger.warning("skipped %d file(s) that are not images by their suffix: %s", len(skipped), names)
    return found


def load_views(
    paths: Sequence[str | Path],
    sizing: ImageSizing | None = None,
    *,
    progress: Callable[[int], None] | None = None,
    workers: int | None = None,
) -> list[View]:
    """Loads every file as a view; view k is file k. `progress(1)` is called from this thread after each.

    `workers` threads decode at once (default: the CPUs, at most 4, because each holds a full-size original). The
    result does not depend on them. One warning sums up the images that lose more than `HEAVY_CROP` to the crop.

    Raises InputError for the first file that cannot be used.
    """
    sizing = sizing or ImageSizing()
    workers = workers or min(4, os.cpu_count() or 1)
    views: list[View] = []
    with quiet_pillow(), ThreadPoolExecutor(workers) as pool:
        try:
            for view in pool.map(lambda item: _load(Path(item[1]), item[0], sizing), enumerate(paths)):
                views.append(view)
                if progress is not None:
                    progress(1)
        finally:
            pool.shutdown(cancel_futures=True)  # else a bad file or Ctrl-C would wait for all the other images
    _warn_of_crops(views)
    return views


def load_image(path: str | Path, index: int = 0, sizing: ImageSizing | None = None) -> View:
    """Loads one file as view `index`: upright, 8-bit RGB, resized with Pillow's filters and cropped to patches.

    Raises InputError that names the file if it cannot be read or decoded, or if nothing of it is left by the crop.
    """
    with quiet_pillow():
        view = _load(Path(path), index, sizing or ImageSizing())
    _warn_of_crops([view])
    return view


def read_photo(path: str | Path) -> tuple[Image.Image, np.ndarray | None]:
    """The whole photo, upright RGB, and (H, W) bool True where it is opaque (None: everywhere).

    Raises InputError as `load_image`.
    """
    with quiet_pillow():
        decoded = decode_image(_bytes_of(Path(path)), str(path))
    mask = None if decoded.alpha is None else np.asarray(decoded.alpha) >= 128
    return decoded.rgb, mask


def network_transform(original_size: tuple[int, int], sizing: ImageSizing, name: str = "image") -> ImageTransform:
    """The resize and crop of an upright image of `original_size` (width, height).

    Raises InputError that starts with `name` if less than one patch is left, or if the resized image would be huge.
    """
    long_edge, short_edge = max(original_size), min(original_size)
    target = round(sizing.size * (long_edge / short_edge)) if sizing.square_crop else sizing.size
    # Python rounds halves to even, which the published sizes depend on
    W, H = (round(edge * target / long_edge) for edge in original_size)
    patch = sizing.patch_size
    width, height = 2 * (W // 2) // patch * patch, 2 * (H // 2) // patch * patch
    if sizing.square_crop:
        width = height = min(width, height)
    elif W == H and not sizing.accept_squares:
        height = 3 * width // 4 // patch * patch
    shape = f"{original_size[0]}x{original_size[1]} pixels"
    if width == 0 or height == 0:
        raise InputError(
            f"{name}: {shape} become {W}x{H} at `image_size={sizing.size}`, less than one patch of {patch} pixels; "
            f"crop the photo to at most {sizing.size // patch}:1, raise `image_size` or remove it from the input"
        )
    num_pixels = W * H
    if num_pixels > max_pixels():
        raise InputError(f"{name}: {shape} would be enlarged to {W}x{H}; crop the photo or lower `image_size`")
    return ImageTransform(original_size, (W, H), (W // 2 - width // 2, H // 2 - height // 2), (width, height))


def crop_loss(transform: ImageTransform) -> float:
    """Share of the picture that the crop removes, in [0, 1)."""
    (width, height), (W, H) = transform.network_size, transform.resized_size
    return 1.0 - width * height / (W * H)


def _find(item: str) -> tuple[list[Path], list[Path]]:
    """(images, other files) that one input names."""
    path = Path(item)
    if not item.strip():
        raise InputError(f"an input is empty; name a folder, image files or a glob ({_suffixes()})")
    if path.is_dir():
        entries = sorted((p for p in path.iterdir() if not p.name.startswith(".")), key=_natural_key)
        return _images_among(entries, f"{item}: no image in this folder")
    if path.exists():
        if path.suffix.lower() not in IMAGE_SUFFIXES:
            raise InputError(f"{item}: not an image by its suffix; accepted: {_suffixes()}")
        return [path], []
    if re.search(r"[*?\[]", item):
        matches = sorted(map(Path, glob.glob(item, recursive=True)), key=_natural_key)  # noqa: PTH207 (absolute too)
        if not matches:
            raise InputError(f"{item}: no file matches this pattern; accepted: {_suffixes()}")
        return _images_among(matches, f"{item}: no image among the matches of this pattern")
    raise InputError(f"{item}: no such file or folder; name a folder, image files or a glob ({_suffixes()})")


def _images_among(entries: list[Path], complaint: str) -> tuple[list[Path], list[Path]]:
    folders = [path for path in entries if path.is_dir()]
    images = [path for path in entries if path.suffix.lower() in IMAGE_SUFFIXES and path not in folders]
    others = [path for path in entries if path not in folders and path not in images]
    if not images:
        holds = f"{len(others)} other file(s), {len(folders)} subfolder(s)" if entries else "it is empty"
        hint = "; subfolders are not searched, name one" if folders else ""
        raise InputError(f"{complaint} ({holds}); accepted: {_suffixes()}{hint}")
    return images, others


def _natural_key(path: Path) -> tuple[list[str | int], str]:
    """Sorts img2 before img10, without regard to case; ties by the exact name."""
    parts = re.split(r"([0-9]+)", str(path).lower())  # text and numbers take turns, text first
    return [int(part) if k % 2 else part for k, part in enumerate(parts)], str(path)


def _suffixes() -> str:
    return ", ".join(suffix[1:] for suffix in IMAGE_SUFFIXES)


def _unreadable(path: str | Path, error: OSError) -> InputError:
    return InputError(f"{path}: cannot be read ({error.strerror or error}); check the path and its permissions")


def _bytes_of(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise _unreadable(path, error) from error


def _load(path: Path, index: int, sizing: ImageSizing) -> View:
    data = _bytes_of(path)  # hashed and decoded from the same bytes: the file may change between two reads
    decoded = decode_image(data, str(path))
    transform = network_transform(decoded.rgb.size, sizing, f"{path} ({byte_count(len(data))})")
    rgb = _resize_and_crop(decoded.rgb, transform)
    alpha = None if decoded.alpha is None else _resize_and_crop(decoded.alpha, transform)
    return View(
        index=index,
        path=path,
        rgb=rgb,
        transform=transform,
        alpha=alpha,
        sha256=hashlib.sha256(data).hexdigest(),
        focal_exif_px=decoded.focal_exif_px,
        camera=decoded.camera,
        gps=decoded.gps,
    )


def _resize_and_crop(image: Image.Image, transform: ImageTransform) -> np.ndarray:
    """(H, W[, 3]) uint8. Pillow's own 8-bit filters: those of other libraries differ under the same names."""
    shrinks = max(transform.original_size) > max(transform.resized_size)
    resampling = Image.Resampling.LANCZOS if shrinks else Image.Resampling.BICUBIC
    left, top = transform.crop_left_top
    width, height = transform.network_size
    resized = image.resize(transform.resized_size, resampling)
    return np.array(resized.crop((left, top, left + width, top + height)))


def _warn_of_crops(views: Sequence[View]) -> None:
    heavy = [view for view in views if crop_loss(view.transform) > HEAVY_CROP]
    if heavy:
        worst = max(heavy, key=lambda view: crop_loss(view.transform))
        logger.warning(
            "the crop to the network's shape removes more than %.0f %% of %d image(s), up to %.0f %% (%s)",
            100 * HEAVY_CROP,
            len(heavy),
            100 * crop_loss(worst.transform),
            worst.path,
        )
