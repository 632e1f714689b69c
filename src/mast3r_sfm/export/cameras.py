"""`cameras.json`: poses and intrinsics, with their conventions in words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mast3r_sfm.export.files import write_json
from mast3r_sfm.types import ReconstructedScene, ReconstructedView

CONVENTION = (
    "OpenCV axes: x right, y down, z forward. world_from_cam is the 4x4 camera-to-world matrix: X_world = R X_cam + t; "
    "it is null for images that are not registered, which have no place in the scene. Pixel centres lie at integers, "
    "so the centre of the top left pixel is (0, 0). K_network belongs to the network's image, which is the size of "
    "depth_NNN.npy, K_original to the photo as it is shown (after its EXIF rotation); network_from_original maps "
    "homogeneous pixels (x, y, 1). No lens distortion. depth_NNN.npy is float32 z-depth, the distance along the "
    "camera's z axis and not along the ray: X_cam = depth * inverse(K_network) (x, y, 1). "
    "median_reprojection_error_px is in pixels of the network's image, null without matches."
)
UNITS = "metres (approximate)"


def cameras_document(reconstruction: ReconstructedScene) -> dict[str, Any]:
    """The content of `cameras.json` (sizes are [width, height])."""
    return {
        "convention": CONVENTION,
        "units": UNITS,
        "images": [_image_entry(view) for view in reconstruction.views],
    }


def write_cameras(reconstruction: ReconstructedScene, path: Path) -> None:
    write_json(path, cameras_document(reconstruction))


def _image_entry(view: ReconstructedView) -> dict[str, Any]:
    return {
        "index": view.index,
        "file": view.file,
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
    }
