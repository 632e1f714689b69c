"""The original photos as textures, and how their pixels lie to those of the network's images."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from PIL import Image

from mast3r_sfm.errors import InputError
from mast3r_sfm.export.files import encode_jpeg
from mast3r_sfm.export.optics import (
    PictureCamera,
    map_pixels,
    reduced,
    reduced_picture,
    straightened_picture,
    without_distortion,
)
from mast3r_sfm.export.photos import read_photo
from mast3r_sfm.images.decoding import quiet_pillow
from mast3r_sfm.types import ReconstructedView

logger = logging.getLogger(__name__)

_QUALITY = 85
_FAST = Image.Resampling.HAMMING
"""Nearly as sharp as the best filter, in a third of the time."""

_BUDGET_PX = 64e6
"""Pixels of all textures together: a third of a gigabyte of a graphics card."""

_STRAIGHT_ENOUGH_PX = 0.5
"""A lens that moves no pixel of the photo by more than this is taken for straight."""

SMALL_PX = 256
"""Long edge of the small copy of a photo, which a drawn camera shows if no mesh has the photo."""


@dataclass(frozen=True)
class Texture:
    """A photo to put on a surface.

    camera    of the picture, with the distortion of the lens
    jpeg      the file
    is_straight     the lens bends nothing that one could see
    straight  the camera without distortion
    small_jpeg      small copy of the photo as `straight` takes it
    """

    camera: PictureCamera
    jpeg: bytes
    is_straight: bool
    straight: PictureCamera
    small_jpeg: bytes


def photo_textures(views: Sequence[ReconstructedView], texture_size: int) -> list[Texture]:
    """The photos of the views with at most `texture_size` pixels on an edge, and all together within a budget.

    Where a photo cannot be read any more, or is another one now, the network's image of it stands in, with a warning.
    """
    edge = min(texture_size, max(16, int(math.sqrt(_BUDGET_PX / max(1, len(views))))))
    # few threads: each holds a photo at full size
    with quiet_pillow(), ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        made = list(pool.map(lambda view: _texture(view, edge), views))
    missing = [view.file for view, (_, found) in zip(views, made, strict=True) if not found]
    if missing:
        logger.warning(
            "%d of %d photos are not where they were, or changed (%s, for one): the scene shows the network's small "
            "images of them instead; put the photos back and run `mast3r-sfm export` for sharp ones",
            len(missing),
            len(views),
            missing[0],
        )
    return [texture for texture, _ in made]


def texture_coordinates(xy: np.ndarray, view: ReconstructedView, camera: PictureCamera) -> np.ndarray:
    """(N, 2) float64 coordinates of glTF, (0, 0) at the top left corner, of pixels (N, 2) of the network's image."""
    network = PictureCamera((view.depth.shape[1], view.depth.shape[0]), view.K, view.distortion)
    return (map_pixels(xy, network, camera) + 0.5) / camera.size


def _texture(view: ReconstructedView, edge: int) -> tuple[Texture, bool]:
    """The texture, and whether it is that of the photo."""
    found = True
    try:
        rgb, source = np.asarray(read_photo(view).rgb), PictureCamera.of_photo(view)
    except InputError:
        found = False
        rgb, source = view.rgb, PictureCamera((view.rgb.shape[1], view.rgb.shape[0]), view.K, view.distortion)
    camera = reduced(source, edge)
    rgb = reduced_picture(rgb, source, camera, _FAST)
    jpeg = encode_jpeg(rgb, _QUALITY, full_colour=False) if found else encode_jpeg(rgb)
    is_straight = _largest_shift(camera) < _STRAIGHT_ENOUGH_PX
    straight = PictureCamera(camera.size, camera.K) if is_straight else without_distortion(camera)
    picture = rgb if is_straight else straightened_picture(rgb, camera, straight)
    small = reduced(straight, SMALL_PX)
    small_jpeg = encode_jpeg(reduced_picture(picture, straight, small, _FAST), _QUALITY, full_colour=False)
    return Texture(camera, jpeg, is_straight, straight, small_jpeg), found


def _largest_shift(camera: PictureCamera) -> float:
    """Pixels that the distortion moves the corners by."""
    corners = np.array([[0, 0], [0, 1], [1, 0], [1, 1]]) * (np.array(camera.size) - 1)
    radius = np.linalg.norm((corners - camera.centre) / camera.focal_xy, axis=1).max()
    return float(abs(camera.distortion) * radius**3 * camera.focal_xy.max())
