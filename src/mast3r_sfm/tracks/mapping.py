"""Cameras from local features alone: COLMAP's incremental mapper over matches that were found without the network.

Where the network's idea of a scene is wrong (views from the air, photos of very different cameras), this one may be
right; `refine` decides between the two.

Source: J. Schönberger, J.-M. Frahm, "Structure-from-Motion Revisited", CVPR 2016.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pycolmap

from mast3r_sfm.tracks.cameras import CameraGroup, camera_group, colmap_camera

_MIN_PHOTOS = 3
_SEED = 0


@dataclass(frozen=True)
class MappedCameras:
    """What the mapper made of the photos; the frame and the unit of length are its own.

    registered      (n,) bool
    cam_from_world  (n, 4, 4), the identity for photos that are not registered
    groups          intrinsics of every camera
    depths          n arrays (N,): z-depth of every feature's point, nan without
    """

    registered: np.ndarray
    cam_from_world: np.ndarray
    groups: tuple[CameraGroup, ...]
    depths: tuple[np.ndarray, ...]


def map_features(
    groups: Sequence[CameraGroup],
    focals_known: Sequence[bool],
    group_of: Sequence[int],
    features: Sequence[np.ndarray],
    confirmed: Mapping[tuple[int, int], pycolmap.TwoViewGeometry],
) -> MappedCameras | None:
    """The largest model that the mapper finds; None if it has fewer than three photos.

    groups     the cameras to begin with
    focals_known  of each: whether its focal length is close to the truth (EXIF)
    group_of   (n,) the camera of every photo
    features   n arrays (N, 2): pixels of every photo's features
    confirmed  by pair: the matches that a two-view geometry confirms
    """
    options = pycolmap.IncrementalPipelineOptions()
    options.random_seed = _SEED
    options.num_threads = 1  # with more, the order of sums and so the result changes from run to run
    options.min_model_size = _MIN_PHOTOS
    with tempfile.TemporaryDirectory(prefix="mast3r-sfm-") as folder:
        database = Path(folder) / "matches.db"
        _write_database(database, groups, focals_known, group_of, features, confirmed)
        models = pycolmap.incremental_mapping(database, folder, Path(folder) / "models", options)
    if not models:
        return None
    model = max(models.values(), key=lambda one: (one.num_reg_images(), one.num_points3D()))
    if model.num_reg_images() < _MIN_PHOTOS:
        return None
    registered = np.zeros(len(features), dtype=bool)
    poses = np.tile(np.eye(4), (len(features), 1, 1))
    depths = [np.full(len(xy), np.nan) for xy in features]
    found = list(groups)
    for image in model.images.values():
        if not image.has_pose:
            continue
        k = image.image_id - 1
        registered[k] = True
        poses[k, :3] = image.cam_from_world().matrix()
        found[group_of[k]] = camera_group(model.cameras[image.camera_id])
        index = list(image.get_observation_point2D_idxs())
        points = np.array([model.points3D[image.points2D[p].point3D_id].xyz for p in index]).reshape(-1, 3)
        depths[k][index] = points @ poses[k, 2, :3] + poses[k, 2, 3]
    return MappedCameras(registered, poses, tuple(found), tuple(depths))


def _write_database(
    path: Path,
    groups: Sequence[CameraGroup],
    focals_known: Sequence[bool],
    group_of: Sequence[int],
    features: Sequence[np.ndarray],
    confirmed: Mapping[tuple[int, int], pycolmap.TwoViewGeometry],
) -> None:
    database = pycolmap.Database.open(path)
    try:
        for k, (group, known) in enumerate(zip(groups, focals_known, strict=True), 1):
            database.write_camera(colmap_camera(group, k, known), use_camera_id=True)
            rig = pycolmap.Rig(rig_id=k)
            rig.add_ref_sensor(pycolmap.sensor_t(pycolmap.SensorType.CAMERA, k))
            database.write_rig(rig, use_rig_id=True)
        for k, (own, xy) in enumerate(zip(group_of, features, strict=True), 1):
            image = pycolmap.Image(image_id=k, camera_id=own + 1, name=str(k))
            database.write_image(image, use_image_id=True)
            frame = pycolmap.Frame(frame_id=k, rig_id=own + 1)
            frame.add_data_id(image.data_id)
            database.write_frame(frame, use_frame_id=True)
            database.write_keypoints(k, (xy + 0.5).astype(np.float32))
        for (i, j), geometry in sorted(confirmed.items(), key=lambda item: item[0]):
            database.write_matches(i + 1, j + 1, geometry.inlier_matches)
            database.write_two_view_geometry(i + 1, j + 1, geometry)
    finally:
        database.close()
