"""`cameras.json`: poses and intrinsics, with their conventions in words."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mast3r_sfm.export.files import write_json
from mast3r_sfm.export.folders import scene_folder
from mast3r_sfm.export.orientation import SceneFrame, ShownScene, frame_of_scene
from mast3r_sfm.options import SceneOptions
from mast3r_sfm.quality import doubts
from mast3r_sfm.types import LEAST_OF_ANOTHER_SCENE, ReconstructedScene, ReconstructedView, Verdict

CONVENTION = (
    "OpenCV axes: x right, y down, z forward. world_from_cam is the 4x4 camera-to-world matrix: X_world = R X_cam + "
    "t; it is null for images that are not registered, which have no place in the scene. Pixel centres lie at "
    "integers, so the centre of the top left pixel is (0, 0). K_network belongs to the network's image, which is the "
    "size of depth_NNN.npy, K_original to the photo as it is shown (after its EXIF rotation); network_from_original "
    "maps homogeneous pixels (x, y, 1). distortion_k1 is the lens: a point X_cam at x = (X / Z, Y / Z) is seen at the "
    "pixel K (x (1 + k1 |x|^2), 1); it is 0 unless the cameras were refined. depth_NNN.npy is float32 z-depth, the "
    "distance along the camera's z axis and not along the ray: X_cam = depth * inverse(K_network) (x, y, 1), with the "
    "distortion taken off first where there is one. median_reprojection_error_px is in pixels of the network's image, "
    "null without matches; track_error_px, of the tracks of local features that refined cameras were adjusted to, is "
    "in pixels of the original photo. focal_std_px (pixels of the original photo) and position_std (of the camera "
    "centre, in the unit of length) are standard deviations by the covariance of that adjustment, null where it says "
    "nothing, in the frame and scale in which all centres together fit best: the uncertainty of the metric scale is "
    "not in them. num_confirmed_features counts the matches of local features that agree with one geometry of the two "
    "photos, over all pairs of the photo with at least 30, num_explained_features those that agree with the cameras. "
    "doubt says why a camera is not to be relied on, null if nothing speaks against it. verdict is good, doubtful or "
    "poor, with reasons; null if the result was not judged. group counts the groups of images that connect, 0 is the "
    "registered one; group 1 and further ones of three images and more are results of their own, in the folder scene "
    "names. Of a frame of a clip, file is relative to this folder, and clip and clip_time_s (seconds since the first "
    "frame) say where it is from; null for photos. scene_glb is the frame of scene.glb, a rotation and a translation "
    "away, y up: X_gltf = gltf_from_world X_world, with homogeneous points. up_from says what told where up is: exif "
    "(gravity as the photos' EXIF has it), planes (level and upright planes, found around the cameras' common up), "
    "cameras (their common up alone), first-camera (the first photo's top, as asked for). georeference, null unless "
    "asked for, says where the scene lies on the earth, by the photos' GPS: X_enu = enu_from_world X_world in metres "
    "east, north and up of the origin, altitudes as the photos state them; residuals_m are what each camera is off "
    "its fix then. Exports other than scene.glb and scene.usdz are in these metres."
)
UNITS = "metres (approximate)"


def cameras_document(reconstruction: ReconstructedScene, frame: SceneFrame | None) -> dict[str, Any]:
    """The content of `cameras.json` (sizes are [width, height]).

    frame  of the scene file, None without one
    """
    found = doubts(reconstruction.views)
    number_of = reconstruction.group_of
    return {
        "convention": CONVENTION,
        "units": UNITS,
        "scene_glb": None if frame is None else _frame_entry(frame),
        "georeference": _georeference_entry(reconstruction, frame),
        "images": [
            _image_entry(view, found.get(view.index))
            | {"verdict": verdict_entry(verdict)}
            | _group_entry(number_of.get(view.index), reconstruction.groups)
            for view, verdict in zip(reconstruction.views, reconstruction.verdicts, strict=True)
        ],
    }


def verdict_entry(verdict: Verdict | None) -> dict[str, Any] | None:
    """A verdict as it stands in JSON files."""
    return None if verdict is None else {"level": str(verdict.level), "reasons": list(verdict.reasons)}


def _group_entry(number: int | None, groups: Sequence[Sequence[int]]) -> dict[str, Any]:
    """The group of an image and the folder of its own scene, if it has one."""
    of_its_own = number is not None and number > 0 and len(groups[number]) >= LEAST_OF_ANOTHER_SCENE
    return {"group": number, "scene": scene_folder(number) if number is not None and of_its_own else None}


def write_cameras(
    reconstruction: ReconstructedScene, path: Path, options: SceneOptions, shown: ShownScene | None = None
) -> None:
    """Writes `cameras.json` beside a scene file that is written with `options`; `shown` is what it shows, if known."""
    frame = frame_of_scene(reconstruction, options) if shown is None else shown.frame
    write_json(path, cameras_document(reconstruction, frame))


def _frame_entry(frame: SceneFrame) -> dict[str, Any]:
    world_from_gltf = np.linalg.inv(frame.gltf_from_world)
    return {
        "up_from": frame.up_from,
        "up_in_world": frame.gltf_from_world[1, :3],
        "gltf_from_world": frame.gltf_from_world,
        "world_from_gltf": world_from_gltf,
    }


def _georeference_entry(reconstruction: ReconstructedScene, frame: SceneFrame | None) -> dict[str, Any] | None:
    place = reconstruction.georeference
    if place is None:
        return None
    residuals = [
        {"file": view.file_in_result, "east_north_up": place.residuals_m[k], "inlier": bool(place.inliers[k])}
        for k, view in enumerate(reconstruction.views)
        if np.isfinite(place.residuals_m[k]).any()
    ]
    from_gltf = None if frame is None else place.enu_from_world @ np.linalg.inv(frame.gltf_from_world)
    return {
        "crs": "metres east, north and up of the origin, WGS 84",
        "origin": {
            "latitude_deg": place.latitude_deg,
            "longitude_deg": place.longitude_deg,
            "altitude_m": place.altitude_m,
        },
        "metres_per_unit": place.scale,
        "enu_from_world": place.enu_from_world,
        "enu_from_gltf": from_gltf,
        "inliers": int(place.inliers.sum()),
        "residuals_m": residuals,
    }


def _image_entry(view: ReconstructedView, doubt: str | None) -> dict[str, Any]:
    return {
        "index": view.index,
        "file": view.file_in_result,
        "clip": view.frame.clip if view.frame else None,
        "clip_time_s": view.frame.time_s if view.frame else None,
        "original_size": view.transform.original_size,
        "network_size": view.transform.network_size,
        "network_from_original": view.transform.network_from_original,
        "K_network": view.K,
        "K_original": view.K_original,
        "world_from_cam": view.world_from_cam if view.registered else None,
        "registered": view.registered,
        "median_reprojection_error_px": view.median_reprojection_error_px,
        "num_matches": view.num_matches,
        "mean_confidence": view.mean_confidence,
        "distortion_k1": view.distortion,
        "refined": view.refined,
        "num_track_observations": view.num_track_observations,
        "track_error_px": view.track_error_px,
        "focal_std_px": view.focal_std_px,
        "position_std": view.position_std,
        "gps": None if view.gps is None else dataclasses.asdict(view.gps),
        "num_confirmed_features": view.num_confirmed,
        "num_explained_features": view.num_explained,
        "doubt": doubt,
    }
