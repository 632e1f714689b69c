"""Colours as a file's ICC profile means them, in sRGB."""

from __future__ import annotations

import io
import logging
from functools import lru_cache

import numpy as np
from PIL import Image, ImageCms

logger = logging.getLogger(__name__)

_SAME = 4
"""Levels of 255. Profiles that state sRGB in other words differ by up to 3; Display P3 and Adobe RGB by some 60."""


def in_srgb(rgb: Image.Image, original: Image.Image, name: str) -> Image.Image:
    """`rgb`, converted from the profile of `original`, the image that it was made of; the same without a profile, and
    with one that means sRGB, bit for bit.

    The intent is relative colorimetric with black point compensation. A profile that is damaged is ignored, with a
    warning; so is one of other colours than the image has (of a printer's inks in an RGB file).
    """
    data = original.info.get("icc_profile")
    if not data:
        return rgb
    try:
        space = _space_to_convert(data)
        if space is None:
            return rgb
        source = {"RGB": rgb, "L": rgb.getchannel("R"), "CMYK": original}[space]
        if source.mode != space or (space == "L" and not _is_grey(original)):
            raise ValueError(f"it is for {space}, the image has {original.mode}")
        return _converted(source, data)
    except Exception as error:  # the pixels are fine; lcms and Pillow raise many types
        reason = " ".join(str(error).split()) or type(error).__name__
        logger.warning("%s: its colour profile cannot be used and is ignored (%s)", name, reason)
        return rgb


def changes_colours(image: Image.Image) -> bool:
    """Whether the profile of an image means something else than sRGB."""
    data = image.info.get("icc_profile")
    try:
        return bool(data) and _space_to_convert(data) is not None
    except Exception:
        return False


@lru_cache(maxsize=16)  # the photos of a set have one profile, mostly
def _space_to_convert(data: bytes) -> str | None:
    """Mode of the images that the profile is for; None if it says what sRGB says."""
    spaces = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}
    stated = ImageCms.ImageCmsProfile(io.BytesIO(data)).profile.xcolor_space.strip()
    if stated not in spaces:
        raise ValueError(f"colours of the kind {stated}")
    space = spaces[stated]
    if space == "CMYK":
        return space
    levels = np.linspace(0, 255, 18).astype(np.uint8)
    if space == "RGB":
        grid = np.stack(np.meshgrid(levels, levels, levels), -1).reshape(1, -1, 3)
        same = grid
    else:
        grid = levels[None]
        same = np.repeat(grid[..., None], 3, -1)
    converted = np.asarray(_converted(Image.fromarray(grid), data))
    return None if np.abs(converted.astype(int) - same).max() <= _SAME else space


def _converted(image: Image.Image, data: bytes) -> Image.Image:
    result = ImageCms.profileToProfile(
        image,
        ImageCms.ImageCmsProfile(io.BytesIO(data)),
        ImageCms.createProfile("sRGB"),
        renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
        outputMode="RGB",
        flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
    )
    assert result is not None  # it is, in place only
    return result


def _is_grey(image: Image.Image) -> bool:
    return image.mode in ("1", "L", "LA", "I", "F") or image.mode.startswith("I;16")
