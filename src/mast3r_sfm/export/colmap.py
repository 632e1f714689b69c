"""A COLMAP model with its photos: `images/` and `sparse/0/`, for COLMAP, gsplat, nerfstudio, Brush.

COLMAP's cameras have OpenCV axes as ours, and its pixels have their origin at the corner of the image instead of the
centre of the first pixel: principal points and features are half a pixel larger there. Every observation of a point was
seen; points are never projected into further photos.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mast3r_sfm.export.optics import PictureCamera, map_pixels
from mast3r_sfm.export.photos import IMAGES, MASKS, WrittenPhoto, folder_with_photos
from mast3r_sfm.options import PhotoOptions
from mast3r_sfm.types import ReconstructedScene, ReconstructedView, Tracks

if TYPE_CHECKING:  # the library loads for an export only
    import pycolmap

logger = logging.getLogger(__name__)

MODEL = "sparse/0"
OWN_ENTRY = re.compile(rf"({IMAGES}|{MASKS})(/[^/]+)?|sparse|{MODEL}(/(cameras|images|points3D|rigs|frames)\.bin)?")
_CORNER = 0.5  # COLMAP's pixels minus ours
_MIN_OBSERVATIONS = 2


def write_colmap(scene: ReconstructedScene, folder: Path, options: PhotoOptions) -> None:
    """Writes the registered views, their photos and tracks into `folder`, which appears complete or not at all.

    An earlier export that was there is replaced. A scene without tracks gives a model without points, with a warning.

    Raises InputError if a photo cannot be read, if no view is registered, and if `folder` holds anything that is not of
    such an export.
    """
    views = scene.registered
    with folder_with_photos(scene, folder, OWN_ENTRY, options) as (staging, photos):
        model = colmap_model(views, photos, scene.tracks, options.undistort)
        (staging / MODEL).mkdir(parents=True)
        model.write(staging / MODEL)
        _check_room(staging)
    if not model.num_points3D():
        logger.warning(
            "The COLMAP model has no points, because the result has no tracks of local features; gsplat and others "
            "start from points; `refinement=RefinementOptions()` gives them, where photos share enough detail"
        )


def colmap_model(
    views: Sequence[ReconstructedView], photos: Sequence[WrittenPhoto], tracks: Tracks | None, undistorted: bool
) -> pycolmap.Reconstruction:
    """The model of views and their photos; image k + 1 is view k. Views with the same intrinsics share a camera.

    undistorted  all cameras are of COLMAP's kind PINHOLE, as its own tool for straightening writes them

    Observations that straightening moved out of the picture are left out, and so are points with less than two.
    """
    import pycolmap

    pycolmap.logging.minloglevel = pycolmap.logging.ERROR.value  # it reports every file otherwise
    model = pycolmap.Reconstruction()
    cameras: list[PictureCamera] = []
    camera_of = []
    for photo in photos:
        camera_of.append(next((k for k, camera in enumerate(cameras) if camera.same(photo.camera)), len(cameras)))
        if camera_of[-1] == len(cameras):
            cameras.append(photo.camera)
            model.add_camera_with_trivial_rig(_colmap_camera(len(cameras), photo.camera, undistorted))
    point_of, position_of, xy = _observations(views, photos, tracks)
    # the place of every observation among those of its own photo; they are in the order of the points
    feature_of = np.zeros(len(xy), dtype=np.int64)
    for k, (view, photo) in enumerate(zip(views, photos, strict=True)):
        own = np.flatnonzero(position_of == k)
        feature_of[own] = np.arange(len(own))
        image = pycolmap.Image(image_id=k + 1, camera_id=camera_of[k] + 1, name=photo.name, keypoints=xy[own] + _CORNER)
        cam_from_world = np.linalg.inv(view.world_from_cam)
        model.add_image_with_trivial_frame(image, pycolmap.Rigid3d(cam_from_world[:3]))
    if tracks is not None:
        points, starts = np.unique(point_of, return_index=True)
        for point, first, end in zip(points, starts, [*starts[1:], len(point_of)], strict=True):
            elements = [pycolmap.TrackElement(int(position_of[k]) + 1, int(feature_of[k])) for k in range(first, end)]
            model.add_point3D(tracks.points[point], pycolmap.Track(elements), tracks.colours[point])
        model.update_point_3d_errors()
    return model


def _observations(
    views: Sequence[ReconstructedView], photos: Sequence[WrittenPhoto], tracks: Tracks | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of the points that stay: (T,) point, (T,) position of the view in `views`, (T, 2) pixels of the written photo."""
    if tracks is None or not len(tracks.xy):
        return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64), np.zeros((0, 2))
    position_of_index: Mapping[int, int] = {view.index: k for k, view in enumerate(views)}
    indices, inverse = np.unique(tracks.view_of, return_inverse=True)
    position = np.array([position_of_index.get(int(index), -1) for index in indices])[inverse]
    xy = tracks.xy.astype(np.float64)
    kept = position >= 0
    for k, (view, photo) in enumerate(zip(views, photos, strict=True)):
        own = np.flatnonzero(position == k)
        xy[own] = map_pixels(xy[own], PictureCamera.of_photo(view), photo.camera)
        kept[own] = ((xy[own] > -_CORNER) & (xy[own] < np.array(photo.camera.size) - _CORNER)).all(1)
    kept &= np.bincount(tracks.point_of[kept], minlength=len(tracks.points))[tracks.point_of] >= _MIN_OBSERVATIONS
    order = np.flatnonzero(kept)
    order = order[np.argsort(tracks.point_of[order], kind="stable")]
    return tracks.point_of[order], position[order], xy[order]


def _colmap_camera(number: int, camera: PictureCamera, undistorted: bool) -> pycolmap.Camera:
    import pycolmap

    (fx, fy), (cx, cy) = camera.focal_xy, camera.centre + _CORNER
    equal = np.isclose(fx, fy, rtol=1e-9)
    if camera.distortion and equal:
        kind, params = "SIMPLE_RADIAL", [fx, cx, cy, camera.distortion]
    elif camera.distortion:
        kind, params = "OPENCV", [fx, fy, cx, cy, camera.distortion, 0.0, 0.0, 0.0]
    elif equal and not undistorted:
        kind, params = "SIMPLE_PINHOLE", [fx, cx, cy]
    else:
        kind, params = "PINHOLE", [fx, fy, cx, cy]
    width, height = camera.size
    return pycolmap.Camera(camera_id=number, model=kind, width=width, height=height, params=params)


def _check_room(folder: Path) -> None:
    """Raises OSError if the disk is full: COLMAP's library does not look whether all of a file was written."""
    disk = shutil.disk_usage(folder)
    if disk.total and not disk.free:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
