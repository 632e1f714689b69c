"""A nerfstudio dataset, `transforms.json` with its photos, depth and masks: for nerfstudio, LichtFeld, Brush, Postshot.

Its cameras have OpenGL axes (x right, y up, z backward), its world has z up, and its pixels have their origin at the
corner of the image instead of the centre of the first pixel: principal points are half a pixel larger there. Every
frame has intrinsics and distortion of its own, so that photos of several cameras and orientations may stand together;
if they are the same for all, they stand beside the frames as well, where older versions of LichtFeld look for them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from mast3r_sfm.errors import EmptySceneError
from mast3r_sfm.export.depth_steps import DepthSteps, depth_steps
from mast3r_sfm.export.files import encode_png, write_json
from mast3r_sfm.export.optics import PictureCamera, original_pixels
from mast3r_sfm.export.orientation import z_up_from_world
from mast3r_sfm.export.photos import IMAGES, MASKS, WrittenPhoto, folder_with_photos
from mast3r_sfm.export.ply import write_coloured_points
from mast3r_sfm.export.points import scene_points
from mast3r_sfm.export.surface import kept_pixels
from mast3r_sfm.geometry import OPENGL_FROM_OPENCV
from mast3r_sfm.options import PhotoOptions, SceneOptions
from mast3r_sfm.types import ReconstructedScene, ReconstructedView

TRANSFORMS, DEPTHS, POINTS = "transforms.json", "depths", "pointcloud.ply"
OWN_ENTRY = re.compile(rf"({IMAGES}|{MASKS}|{DEPTHS})(/[^/]+)?|{re.escape(TRANSFORMS)}|{re.escape(POINTS)}")

_CORNER = 0.5  # nerfstudio's pixels minus ours
_MAX_POINTS = 200_000
"""Of `pointcloud.ply`, from which splats start: more cost memory and gain little."""

_ROWS = 256
"""Of a depth picture that are made at once: the places of all pixels of a large photo would fill the memory."""


def write_nerfstudio(
    scene: ReconstructedScene, folder: Path, scene_options: SceneOptions, options: PhotoOptions
) -> None:
    """Writes the registered views into `folder`, which appears complete or not at all, and replaces an earlier export.

    Depth pictures have the size of the photos they belong to, 0 where the scene has no confident depth. Masks are
    black where a photo is transparent; if one photo has a mask all have one, as nerfstudio wants.

    Raises InputError if a photo cannot be read, if no view is registered, and if `folder` holds anything that is not of
    such an export.
    """
    views = scene.registered
    with folder_with_photos(scene, folder, OWN_ENTRY, options) as (staging, photos):
        saved_from_world = z_up_from_world(scene, scene_options)
        masks = _complete_masks(photos, staging)
        steps = _write_depths(views, photos, scene_options, staging / DEPTHS)
        frames = [
            _frame(view, photo, mask, saved_from_world) for view, photo, mask in zip(views, photos, masks, strict=True)
        ]
        document: dict[str, Any] = {
            "camera_model": "OPENCV",
            "frames": frames,
            "applied_transform": saved_from_world[:3],
            "depth_unit_scale_factor": steps.metres,
        }
        if all(photo.camera.same(photos[0].camera) for photo in photos):
            document |= _intrinsics(photos[0].camera)
        if _write_points(scene, scene_options, saved_from_world, staging / POINTS):
            document["ply_file_path"] = POINTS
        write_json(staging / TRANSFORMS, document)


def _frame(
    view: ReconstructedView, photo: WrittenPhoto, mask: str | None, saved_from_world: np.ndarray
) -> dict[str, Any]:
    frame = {
        "file_path": f"{IMAGES}/{photo.name}",
        **_intrinsics(photo.camera),
        "transform_matrix": saved_from_world @ view.world_from_cam @ OPENGL_FROM_OPENCV,
        "depth_file_path": f"{DEPTHS}/{_depth_name(photo)}",
    }
    return frame if mask is None else {**frame, "mask_path": mask}


def _intrinsics(camera: PictureCamera) -> dict[str, Any]:
    (fx, fy), (cx, cy) = camera.focal_xy, camera.centre + _CORNER
    width, height = camera.size
    own = {"w": width, "h": height, "fl_x": fx, "fl_y": fy, "cx": cx, "cy": cy, "k1": camera.distortion}
    return {**own, **dict.fromkeys(("k2", "p1", "p2"), 0.0)}


def _depth_name(photo: WrittenPhoto) -> str:
    return f"{Path(photo.name).stem}.png"


def _complete_masks(photos: Sequence[WrittenPhoto], folder: Path) -> list[str | None]:
    """Paths of the masks, relative to `folder`; photos without one get a white one, unless none has one."""
    if not (folder / MASKS).exists():
        return [None] * len(photos)
    names: list[str | None] = []
    for photo in photos:
        name = f"{MASKS}/{photo.mask_name}"
        if not (folder / name).exists():
            width, height = photo.camera.size
            (folder / name).write_bytes(encode_png(np.full((height, width), 255, dtype=np.uint8)))
        names.append(name)
    return names


def _write_depths(
    views: Sequence[ReconstructedView], photos: Sequence[WrittenPhoto], options: SceneOptions, folder: Path
) -> DepthSteps:
    folder.mkdir()
    depths = [np.where(kept_pixels(view, options.threshold, options.clean_depth), view.depth, np.nan) for view in views]
    steps = depth_steps(depths)

    def write(view: ReconstructedView, depth: np.ndarray, photo: WrittenPhoto) -> None:
        picture = depth_of_photo(steps.encoded(depth), view, photo.camera)
        (folder / _depth_name(photo)).write_bytes(encode_png(picture))

    with ThreadPoolExecutor(4) as pool:
        for _ in pool.map(write, views, depths, photos):
            pass
    return steps


def depth_of_photo(values: np.ndarray, view: ReconstructedView, camera: PictureCamera) -> np.ndarray:
    """Values (H, W) of the network's image as the picture of `camera`, that view's photo straightened or reduced, shows
    them: those of the nearest pixel, 0 beyond the edge. A mean of several would lie between a thing and its background.
    """
    width, height = camera.size
    H, W = values.shape
    rows = []
    for top in range(0, height, _ROWS):
        grid = np.stack(np.meshgrid(np.arange(width), np.arange(top, min(top + _ROWS, height))), -1)
        x, y = np.moveaxis(np.rint(view.transform.to_network(original_pixels(grid, view, camera))).astype(int), -1, 0)
        inside = (x >= 0) & (x < W) & (y >= 0) & (y < H)
        rows.append(np.where(inside, values[np.clip(y, 0, H - 1), np.clip(x, 0, W - 1)], values.dtype.type(0)))
    return np.concatenate(rows)


def _write_points(scene: ReconstructedScene, options: SceneOptions, saved_from_world: np.ndarray, path: Path) -> bool:
    """Whether there are points to start from: those of the scene, in the frame of the saved cameras."""
    try:
        points = scene_points(scene, options, min(_MAX_POINTS, options.max_points))
    except EmptySceneError:
        return False
    xyz = points.xyz.astype(np.float64) @ saved_from_world[:3, :3].T + saved_from_world[:3, 3]
    write_coloured_points(path, xyz, points.rgb, "frame of transforms.json")
    return True
