"""Images: from files to views of the size that the network wants."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from mast3r_sfm.errors import InputError
from mast3r_sfm.images.clips import check_clip_library, open_clip
from mast3r_sfm.images.decoding import decode_image, max_pixels, quiet_pillow
from mast3r_sfm.images.finding import is_clip, unreadable
from mast3r_sfm.images.masks import USED, opacity
from mast3r_sfm.images.values import sample_bits_of_set
from mast3r_sfm.text import byte_count, listed
from mast3r_sfm.types import ImageTransform, View

logger = logging.getLogger(__name__)

HEAVY_CROP = 0.25
"""Share of the resized picture that the crop may remove without a warning (a square cropped to 4:3 loses just that)."""

LEAST_USED = 0.005
"""Share of a photo's pixels that must be used: of less nothing is."""


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


def load_views(
    paths: Sequence[str | Path],
    sizing: ImageSizing | None = None,
    *,
    masks: Sequence[Path | None] | None = None,
    progress: Callable[[int], None] | None = None,
    workers: int | None = None,
) -> list[View]:
    """Loads every file as a view; view k is file k. `progress(1)` is called from this thread after each.

    `workers` threads decode at once (default: the CPUs, at most 4, because each holds a full-size original). The
    result does not depend on them. One warning sums up the images that lose more than `HEAVY_CROP` to the crop, another
    those of which (almost) nothing is used: they take no part in what follows.

    masks  of every file (`images.masks`), None for those without

    Raises InputError for the first file that cannot be used, and if nothing of any image is.
    """
    sizing = sizing or ImageSizing()
    files = [Path(path) for path in paths]
    mask_files = [None] * len(files) if masks is None else list(masks)
    workers = workers or min(4, os.cpu_count() or 1)
    views: list[View] = []
    with quiet_pillow(), ThreadPoolExecutor(workers) as pool:
        try:
            bits = sample_bits_of_set(files)
            for view in pool.map(lambda k: _load(files[k], k, sizing, bits[k], mask_files[k]), range(len(files))):
                views.append(view)
                if progress is not None:
                    progress(1)
        finally:
            pool.shutdown(cancel_futures=True)  # else a bad file or Ctrl-C would wait for all the other images
    _warn_of_crops(views)
    _warn_of_unused(views)
    return views


def load_image(path: str | Path, index: int = 0, sizing: ImageSizing | None = None) -> View:
    """Loads one file as view `index`: upright, 8-bit RGB, resized with Pillow's filters and cropped to patches.

    Raises InputError that names the file if it cannot be read or decoded, or if nothing of it is left by the crop.
    """
    with quiet_pillow():
        (bits,) = sample_bits_of_set([Path(path)])
        view = _load(Path(path), index, sizing or ImageSizing(), bits)
    _warn_of_crops([view])
    return view


def check_footage(path: Path) -> None:
    """Decodes a photo to its last pixel, or opens a clip: whether the file is what its name says.

    Raises InputError that names the file.
    """
    if is_clip(path):
        check_clip_library([path])
        open_clip(path)
    else:
        decode_image(_bytes_of(path), str(path))


def read_photo(view: View) -> tuple[Image.Image, np.ndarray | None]:
    """The whole photo of a view, upright RGB, and (H, W) bool True where it is used (None: everywhere).

    Raises InputError as `load_image`, and for a mask file that is gone or has changed its shape.
    """
    with quiet_pillow():
        decoded = decode_image(_bytes_of(view.path), str(view.path), view.sample_bits)
        alpha = opacity(decoded.alpha, view.mask_file, decoded.rgb.size)
    if alpha is None:
        return decoded.rgb, None
    used = np.asarray(alpha) >= USED
    return decoded.rgb, used if is_usable(view) else np.zeros_like(used)


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


def _bytes_of(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise unreadable(path, error) from error


def _load(path: Path, index: int, sizing: ImageSizing, sample_bits: int, mask_file: Path | None = None) -> View:
    data = _bytes_of(path)  # hashed and decoded from the same bytes: the file may change between two reads
    decoded = decode_image(data, str(path), sample_bits)
    transform = network_transform(decoded.rgb.size, sizing, f"{path} ({byte_count(len(data))})")
    rgb = _resize_and_crop(decoded.rgb, transform)
    used = opacity(decoded.alpha, mask_file, decoded.rgb.size)
    alpha = None if used is None else _resize_and_crop(used, transform)
    if alpha is not None and (alpha >= USED).mean() < LEAST_USED:
        alpha = np.zeros_like(alpha)
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
        frame=decoded.frame,
        sample_bits=sample_bits,
        mask_file=mask_file,
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


def is_usable(view: View) -> bool:
    """Whether some of the photo can be used: not if it is (almost) wholly transparent or masked."""
    return view.mask is None or bool(view.mask.any())


def _warn_of_unused(views: Sequence[View]) -> None:
    """Names the photos that are (almost) wholly transparent or masked. Raises InputError if all are."""
    unused = [view for view in views if not is_usable(view)]
    if not unused:
        return
    named = listed((view.path.name for view in unused), 10)
    masked = [view.mask_file.name for view in unused if view.mask_file is not None]
    why = f"black in their masks ({masked[0]}) or transparent" if masked else "transparent"
    what = f"{named}: less than {LEAST_USED:.1%} of the pixels can be used, the others are {why}"
    if len(unused) == len(views):
        raise InputError(f"{what}; white (128 and above) is what a mask lets be used, so check photos and masks")
    logger.warning("%s; left out", what)
