"""Masks: pictures that say what of a photo is used. White is used, black is not."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageChops

from mast3r_sfm.errors import InputError
from mast3r_sfm.images.decoding import decode_image
from mast3r_sfm.images.finding import IMAGE_SUFFIXES, natural_key, unreadable

logger = logging.getLogger(__name__)

USED = 128
"""Grey values, and opacities, from which a pixel is used."""


def find_masks(folder: Path, photos: Sequence[Path], clips: Sequence[str | None]) -> list[Path | None]:
    """The mask of every photo, None for those without.

    folder  searched with its subfolders
    clips   name of the clip that a photo is a frame of, None for other photos

    The mask of photo.jpg is called photo.jpg.png, or photo with any suffix of pictures. A frame of a clip has one of
    its own, or that of the clip's name. Of several masks of one name that counts whose subfolders are called as those
    of the photo; and so does, of several photos of one name, that of the mask.

    Raises InputError for a folder that does not exist or has no mask for any photo, and for two masks of one photo.
    """
    if not folder.is_dir():
        raise InputError(f"`masks={folder}`: no such folder; name the folder with the masks")
    by_name: dict[str, list[Path]] = {}
    try:
        files = sorted((path for path in folder.rglob("*") if path.is_file()), key=natural_key)
    except OSError as error:
        raise unreadable(folder, error) from error
    for path in files:
        if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith("."):
            by_name.setdefault(path.stem.lower(), []).append(path)
    found = [_mask_of(photo, clip, by_name) for photo, clip in zip(photos, clips, strict=True)]
    closest: dict[Path, int] = {}
    for photo, mask in zip(photos, found, strict=True):
        if mask is not None:
            closest[mask] = max(closest.get(mask, 0), _common_folders(photo, mask))
    masks = [
        mask if mask is not None and _common_folders(photo, mask) == closest[mask] else None
        for photo, mask in zip(photos, found, strict=True)
    ]
    if not any(masks):
        of_clip = f", that of all frames of {clips[0]} {Path(clips[0]).stem}.png" if clips[0] else ""
        raise InputError(
            f"`masks={folder}`: none of its {len(files)} file(s) is the mask of a photo; the mask of "
            f"{photos[0].name} is called {photos[0].stem}.png or {photos[0].name}.png{of_clip}"
        )
    return masks


def warn_of_missing(folder: Path, photos: Sequence[Path], masks: Sequence[Path | None]) -> None:
    """One warning that counts the photos without a mask."""
    missing = [photo for photo, mask in zip(photos, masks, strict=True) if mask is None]
    if missing:
        logger.warning(
            "%d of %d photos have no mask in %s and are used whole, the first is %s",
            len(missing),
            len(photos),
            folder,
            missing[0].name,
        )


def without_masks(folder: Path, photos: Sequence[Path]) -> list[Path]:
    """The photos that do not lie in the folder of the masks, which a search of subfolders may have met.

    Raises InputError if there is no other photo.
    """
    inside = folder.resolve()
    kept = [photo for photo in photos if inside not in photo.resolve().parents]
    if not kept:
        raise InputError(
            f"`masks={folder}`: the photos lie in this folder too; put the masks into a folder of their own"
        )
    return kept


def read_mask(path: Path, size: tuple[int, int]) -> Image.Image:
    """The mask of an upright photo of `size` (width, height): mode L, 255 where the photo is used, else 0.

    Grey values from `USED` are used, transparent pixels are not. A mask of another size but the photo's shape (to a
    pixel of the mask) is enlarged or reduced.

    Raises InputError that names the file if it cannot be read or has another shape.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise unreadable(path, error) from error
    decoded = decode_image(data, str(path))
    grey = decoded.rgb.convert("L")
    if decoded.alpha is not None:
        grey = ImageChops.darker(grey, decoded.alpha)
    (width, height), (W, H) = grey.size, size
    if abs(width - height * W / H) > 1 and abs(height - width * H / W) > 1:
        turned = " as it is shown" if (height, width) == size else ""
        raise InputError(
            f"{path}: the mask has {width}x{height} pixels and its photo {W}x{H}{turned}; "
            "make it of the photo's size, or of its shape"
        )
    used = Image.fromarray(np.where(np.asarray(grey) >= USED, 255, 0).astype(np.uint8))
    return used if used.size == size else used.resize(size, Image.Resampling.NEAREST)


def opacity(alpha: Image.Image | None, mask_file: Path | None, size: tuple[int, int]) -> Image.Image | None:
    """What of a photo is used, mode L: its own opacity, and 0 where its mask is black; None: all of it.

    Raises InputError as `read_mask`.
    """
    if mask_file is None:
        return alpha
    mask = read_mask(mask_file, size)
    return mask if alpha is None else ImageChops.darker(alpha, mask)


def _mask_of(photo: Path, clip: str | None, by_name: dict[str, list[Path]]) -> Path | None:
    names = [photo.name, photo.stem] + ([] if clip is None else [clip, Path(clip).stem])
    found = next((by_name[name.lower()] for name in names if name.lower() in by_name), [])
    if not found:
        return None
    closeness = [_common_folders(photo, mask) for mask in found]
    nearest = [mask for mask, close in zip(found, closeness, strict=True) if close == max(closeness)]
    if len(nearest) > 1:
        raise InputError(f"{photo}: has two masks, {nearest[0]} and {nearest[1]}; keep one of them")
    return nearest[0]


def _common_folders(photo: Path, mask: Path) -> int:
    """How many folders above both files have the same names, counted from the files."""
    count = 0
    for a, b in zip(reversed(photo.absolute().parent.parts), reversed(mask.absolute().parent.parts), strict=False):
        if a.lower() != b.lower():
            break
        count += 1
    return count
