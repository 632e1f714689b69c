"""Photos beside exported cameras: copied as they are where any program reads them rightly, else written anew."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from mast3r_sfm.errors import InputError
from mast3r_sfm.export.files import LOSSLESS, encode_jpeg, encode_lossless, write_png
from mast3r_sfm.export.folders import check_replaceable, replaced_folder
from mast3r_sfm.export.optics import (
    PictureCamera,
    reduced,
    reduced_picture,
    straightened_picture,
    without_distortion,
)
from mast3r_sfm.images.decoding import DecodedImage, decode_image, plain_file, quiet_pillow
from mast3r_sfm.images.masks import USED, opacity
from mast3r_sfm.options import PhotoOptions
from mast3r_sfm.text import unique_stems
from mast3r_sfm.types import ReconstructedScene, ReconstructedView

IMAGES, MASKS = "images", "masks"
"""Folders of an export with photos."""

_JPEG = (".jpg", ".jpeg")
_QUALITY = 95


@dataclass(frozen=True)
class WrittenPhoto:
    """A photo of the export.

    name     of its file, unique
    camera   that of the picture in the file
    """

    name: str
    camera: PictureCamera

    @property
    def mask_name(self) -> str:
        """Of its mask, if it has one, where COLMAP looks for it: the name of a PNG itself, else that and .png."""
        return self.name if self.name.lower().endswith(".png") else f"{self.name}.png"


@contextlib.contextmanager
def folder_with_photos(
    scene: ReconstructedScene, folder: Path, own: re.Pattern[str], options: PhotoOptions
) -> Iterator[tuple[Path, list[WrittenPhoto]]]:
    """A folder that holds the photos of the registered views, and these, to write their cameras beside: it becomes
    `folder`, or takes the place of an earlier export, when the block ends well, and vanishes otherwise.

    own  matches the paths, relative to the folder, that the export writes

    Raises InputError if a photo cannot be read, if no view is registered, and if `folder` holds anything that is not of
    such an export.
    """
    if not scene.registered:
        raise InputError("No image is registered: there are no cameras to write")
    folder = folder.resolve()
    with replaced_folder(folder, lambda: check_replaceable(folder, own)) as staging:
        yield staging, _write_scene_photos(scene, staging / IMAGES, staging / MASKS, options)


def _write_scene_photos(
    scene: ReconstructedScene, folder: Path, masks: Path, options: PhotoOptions
) -> list[WrittenPhoto]:
    """Writes the photos of the registered views, in their order, as `write_photos` does."""
    stems = unique_stems([view.file for view in scene.views])
    own = [stem for view, stem in zip(scene.views, stems, strict=True) if view.registered]
    return write_photos(scene.registered, own, folder, masks, options)


def write_photos(
    views: Sequence[ReconstructedView], stems: Sequence[str], folder: Path, masks: Path, options: PhotoOptions
) -> list[WrittenPhoto]:
    """Writes the photo of every view into `folder`; where it has transparency or a mask file, also its mask.

    stems   of the file names (`unique_stems`)
    masks   folder that is created if there is a mask to write (`WrittenPhoto.mask_name`): 255 where the photo is used,
            else 0

    Upright JPEG, PNG, TIFF and BMP files of 8 bits in sRGB are copied byte for byte if they are to be neither
    straightened nor reduced. Everything else is written anew, upright and of 8 bits, under its own name if that is one
    of a JPEG, PNG, TIFF or BMP file; a photo with transparency becomes a PNG, other kinds a JPEG.

    Raises InputError that names the file if a photo or mask cannot be read, or is not the one that was reconstructed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if any(view.mask is not None for view in views):
        masks.mkdir(parents=True, exist_ok=True)
    # few threads: each holds a photo at full size
    with quiet_pillow(), ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        try:
            return list(pool.map(lambda view, stem: _write_photo(view, stem, folder, masks, options), views, stems))
        finally:
            pool.shutdown(cancel_futures=True)


def read_photo(view: ReconstructedView) -> DecodedImage:
    """The original photo, upright. Raises InputError if it cannot be read, or has another size now."""
    decoded = decode_image(_bytes_of(view), view.file, view.sample_bits)
    _check_size(view, decoded.rgb.size)
    return decoded


def _write_photo(view: ReconstructedView, stem: str, folder: Path, masks: Path, options: PhotoOptions) -> WrittenPhoto:
    data = _bytes_of(view)
    source = PictureCamera.of_photo(view)
    straight = without_distortion(source) if options.undistort else source
    target = reduced(straight, options.max_image_size)
    suffix = Path(view.file).suffix
    plain = plain_file(data, view.file) if target is source else None
    is_transparent = view.mask is not None and view.mask_file is None
    if plain is not None and is_transparent and ".png" not in plain.suffixes:
        plain = None  # the mask of a transparent photo has its name and is a PNG, so the photo becomes one
    if plain is not None:
        _check_size(view, plain.size)
        name = stem + (suffix if suffix.lower() in plain.suffixes else plain.suffixes[0])
        (folder / name).write_bytes(data)
        if view.mask is None:
            return WrittenPhoto(name, target)
    decoded = decode_image(data, view.file, view.sample_bits)
    _check_size(view, decoded.rgb.size)

    def as_written(picture: Image.Image) -> np.ndarray:
        return reduced_picture(straightened_picture(np.asarray(picture), source, straight), straight, target)

    if plain is None:
        name = stem + _suffix_of_new(suffix, decoded.alpha is not None)
        (folder / name).write_bytes(_encoded(as_written(decoded.rgb), Path(name).suffix))
    photo = WrittenPhoto(name, target)
    used = _opacity(view, decoded)
    if used is not None:
        write_png(masks / photo.mask_name, np.where(as_written(used) >= USED, 255, 0).astype(np.uint8))
    return photo


def _suffix_of_new(suffix: str, is_transparent: bool) -> str:
    """Of a photo that is written anew: its own, unless its kind of file is not written or has no place for a mask."""
    kept = (".png",) if is_transparent else (*_JPEG, *LOSSLESS)
    return suffix if suffix.lower() in kept else ".png" if is_transparent else ".jpg"


def _encoded(picture: np.ndarray, suffix: str) -> bytes:
    return encode_jpeg(picture, _QUALITY) if suffix.lower() in _JPEG else encode_lossless(picture, suffix)


def _opacity(view: ReconstructedView, decoded: DecodedImage) -> Image.Image | None:
    """What of a photo is used; None: all of it. Raises InputError if its mask file is not what it was."""
    if view.mask is None:
        return None
    try:
        return opacity(decoded.alpha, view.mask_path, decoded.rgb.size)
    except InputError as error:
        raise InputError(f"{error} (the export needs the masks where they were when they were used)") from error


def _bytes_of(view: ReconstructedView) -> bytes:
    try:
        return view.path.read_bytes()
    except OSError as error:
        hint = "" if view.path.is_absolute() else ", or start from the folder that this path is relative to"
        raise InputError(
            f"{view.path}: cannot be read ({error.strerror or error}); the export needs the photos where they were "
            f"when they were reconstructed: put them back{hint}"
        ) from error


def _check_size(view: ReconstructedView, size: tuple[int, int]) -> None:
    if size != view.transform.original_size:
        width, height = view.transform.original_size
        raise InputError(
            f"{view.file}: is {size[0]}x{size[1]} pixels now and was {width}x{height} when it was reconstructed; "
            "put the photo back, or run the reconstruction again"
        )
