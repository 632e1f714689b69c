"""The cameras of the tracks, and COLMAP's cameras that stand for them.

COLMAP's pixels have their origin at the corner of the image, ours at the centre of the first pixel: 0.5 is added on the
way in and taken off on the way out.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import pycolmap

from mast3r_sfm.options import CameraModel


@dataclass(frozen=True)
class CameraGroup:
    """One camera with one zoom: the intrinsics of all photos that share it, of the original photos.

    size        (width, height) pixels
    focal_px, principal_point   pixels, centres at integers
    distortion  k1 of x (1 + k1 |x|^2), x in units of the focal length
    model       which of these numbers there are: SIMPLE_PINHOLE has no distortion
    """

    size: tuple[int, int]
    focal_px: float
    principal_point: tuple[float, float]
    distortion: float = 0.0
    model: CameraModel = CameraModel.SIMPLE_RADIAL

    @property
    def K(self) -> np.ndarray:
        """(3, 3) intrinsics of the original photos, pixel centres at integers."""
        x, y = self.principal_point
        return np.array([[self.focal_px, 0, x], [0, self.focal_px, y], [0, 0, 1]], dtype=np.float64)


def colmap_camera(group: CameraGroup, camera_id: int, focal_known: bool = False) -> pycolmap.Camera:
    """The camera in COLMAP's terms.

    focal_known  it is close to the truth, so that geometry may build on it
    """
    camera = pycolmap.Camera(
        camera_id=camera_id,
        model=str(group.model),
        width=group.size[0],
        height=group.size[1],
        params=params_of(group),
    )
    camera.has_prior_focal_length = focal_known
    return camera


def camera_group(camera: pycolmap.Camera) -> CameraGroup:
    """The inverse of `colmap_camera`."""
    focal, x, y, *distortion = camera.params
    size, model = (camera.width, camera.height), CameraModel(camera.model_name)
    return CameraGroup(size, focal, (x - 0.5, y - 0.5), distortion[0] if distortion else 0.0, model)


def free_intrinsics(groups: Sequence[CameraGroup], centre: bool, held: Collection[int] = ()) -> np.ndarray:
    """(groups, 4) bool: the intrinsics f, cx, cy and k1 that an adjustment finds; `centre`: cx and cy as well."""
    free = np.array([[True, centre, centre, group.model is CameraModel.SIMPLE_RADIAL] for group in groups])
    free[list(held)] = False
    return free


def params_of(group: CameraGroup) -> list[float]:
    """f, cx, cy of SIMPLE_PINHOLE, and k1 of SIMPLE_RADIAL."""
    x, y = group.principal_point
    bend = [group.distortion] if group.model is CameraModel.SIMPLE_RADIAL else []
    return [group.focal_px, x + 0.5, y + 0.5, *bend]


def project_with(camera: pycolmap.Camera, points: np.ndarray) -> np.ndarray:
    """(N, 2) pixels, centres at integers, of points (N, 3) in front of the camera."""
    pixels = camera.img_from_cam(points)
    assert pixels is not None  # it is None for a single point behind the camera only
    return np.asarray(pixels) - 0.5
