"""Photos with `cameras.csv`, which RealityScan (formerly RealityCapture), Postshot and Brush read.

The table is RealityScan's "Internal/External camera parameters". Its world has z up. Of a camera whose axes are x
right, y up, z backward, the rotation world from camera is Rz(-heading) Rx(pitch) Ry(roll): looking down with the top of
the picture to the north, all three are 0. f is in millimetres of a sensor whose long edge has 36; px and py are how far
the principal point lies from the middle of the picture, in units of its long edge; k1 is the lens in units of the focal
length.

Sources: the template of this table in RealityScan 2.2's calibration.xml ({0CA18733-1EBC-4254-9974-17197EB409BD}), as
public notes quote it, fills the columns f_35mm, px_norm, py_norm (f, px, py in earlier versions; Brush asks for those
names) with $(f*36), $(px), $(py). The one for OpenCV there has the same in pixels: $(f*scale), $(px*scale+width*0.5),
$(py*scale+height*0.5). By RealityCapture's help (Functions and Variables Available in the Reports, Cameras) scale is
the larger of width and height. nerfstudio and Brush read the table so. The label [mm] that RealityScan's windows give
the principal point is not true of these columns.
"""

from __future__ import annotations

import csv
import io
import logging
import re
import warnings
from pathlib import Path

import numpy as np
from scipy.spatial.transform import Rotation

from mast3r_sfm.export.optics import PictureCamera
from mast3r_sfm.export.orientation import z_up_from_world
from mast3r_sfm.export.photos import IMAGES, MASKS, WrittenPhoto, folder_with_photos
from mast3r_sfm.geometry import OPENGL_FROM_OPENCV
from mast3r_sfm.options import PhotoOptions, SceneOptions
from mast3r_sfm.types import ReconstructedScene, ReconstructedView

logger = logging.getLogger(__name__)

TABLE = "cameras.csv"
OWN_ENTRY = re.compile(rf"({IMAGES}|{MASKS})(/[^/]+)?|{re.escape(TABLE)}")
COLUMNS = ("#name", "x", "y", "alt", "heading", "pitch", "roll", "f", "px", "py", "k1", "k2", "k3", "k4", "t1", "t2")

_SENSOR_MM = 36.0
_CORNER = 0.5  # pixels there minus ours
_WORTH_TELLING_PX = 0.01


def write_realityscan(
    scene: ReconstructedScene, folder: Path, scene_options: SceneOptions, options: PhotoOptions
) -> None:
    """Writes the registered views into `folder`, which appears complete or not at all, and replaces an earlier export.

    Raises InputError if a photo cannot be read, if no view is registered, and if `folder` holds anything that is not of
    such an export.
    """
    with folder_with_photos(scene, folder, OWN_ENTRY, options) as (staging, photos):
        z_up = z_up_from_world(scene, scene_options)
        table = io.StringIO()
        rows = csv.writer(table, lineterminator="\n")
        rows.writerow(COLUMNS)
        rows.writerows(_row(view, photo, z_up) for view, photo in zip(scene.registered, photos, strict=True))
        (staging / TABLE).write_text(table.getvalue(), encoding="utf-8")
    off = max(_oblong_px(photo.camera) for photo in photos)
    if off > _WORTH_TELLING_PX:
        logger.warning(
            "RealityScan's table has one focal length for both axes, these cameras have two: points at the edge of a "
            "photo are up to %.2f px off; reconstruct with refined cameras for one",
            off,
        )


def _row(view: ReconstructedView, photo: WrittenPhoto, z_up_from_world: np.ndarray) -> list[str]:
    pose = z_up_from_world @ view.world_from_cam @ OPENGL_FROM_OPENCV
    with warnings.catch_warnings():  # a level camera, pitch 90, leaves heading and roll open; any that fit will do
        warnings.simplefilter("ignore", UserWarning)
        angle_z, pitch, roll = Rotation.from_matrix(pose[:3, :3]).as_euler("ZXY", degrees=True)
    camera = photo.camera
    long_edge = max(camera.size)
    focal = float(np.sqrt(camera.focal_xy.prod()))
    px, py = (camera.centre + _CORNER - np.array(camera.size) / 2) / long_edge
    numbers = [*pose[:3, 3], -angle_z, pitch, roll, focal * _SENSOR_MM / long_edge, px, py, camera.distortion]
    return [photo.name, *(f"{float(number):.15g}" for number in numbers), *("0" for _ in range(5))]


def _oblong_px(camera: PictureCamera) -> float:
    """How far the mean of the two focal lengths moves a point at the edge of the picture, pixels."""
    mean = np.sqrt(camera.focal_xy.prod())
    return float(np.max(np.abs(mean / camera.focal_xy - 1) * np.array(camera.size) / 2))
