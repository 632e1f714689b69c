"""Scenes whose photos lie on the disk, with points and tracks that are known."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from export_scene import pose, view
from PIL import Image

from mast3r_sfm.export.optics import PictureCamera
from mast3r_sfm.geometry import distort
from mast3r_sfm.reconstruction import Reconstruction
from mast3r_sfm.types import ImageTransform, ReconstructedView, Tracks

SIZE = (320, 240)
K = np.array([[250.0, 0, 163.25], [0, 250, 116.5], [0, 0, 1]])
POINTS = np.random.default_rng(5).uniform([-1.6, -1.2, 3], [1.6, 1.2, 5], (200, 3))
TRANSFORM = ImageTransform(SIZE, (160, 120), (0, 8), (160, 104))


def project(camera: PictureCamera, world_from_cam: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Pixels (N, 2) of points (N, 3), centres at integers."""
    inside = (points - world_from_cam[:3, 3]) @ world_from_cam[:3, :3]
    return distort(inside[:, :2] / inside[:, 2:], camera.distortion) * camera.focal_xy + camera.centre


def picture_of_dots(xy: np.ndarray, size: tuple[int, int] = SIZE) -> np.ndarray:
    """Soft white dots on black."""
    x, y = np.meshgrid(np.arange(size[0]), np.arange(size[1]))
    light = np.zeros(x.shape)
    for cx, cy in xy:
        light = np.maximum(light, np.exp(-((x - cx) ** 2 + (y - cy) ** 2) / (2 * 2.0**2)))
    return np.repeat((255 * light).astype(np.uint8)[..., None], 3, -1)


def camera_view(index: int, file: Path | str, distortion: float = 0.0, **changes: object) -> ReconstructedView:
    """A view of the points near z = 4, half a unit from its neighbour."""
    made = view(np.full((104, 160), 4.0), index=index, pose=pose(4.0 * (index - 2), [0.5 * (2 - index), 0, 0]))
    made = dataclasses.replace(
        made,
        file=str(file),
        transform=TRANSFORM,
        K=TRANSFORM.K_to_network(K),
        distortion=distortion,
        refined=True,
    )
    return dataclasses.replace(made, **changes)  # type: ignore[arg-type]


def turned_jpeg(picture: np.ndarray, path: Path, orientation: int) -> None:
    """Stores an upright picture the way a camera does that was turned: on its side, with an EXIF tag (6 or 8)."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    turn = {6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}[orientation]
    Image.fromarray(picture).transpose(turn).save(path, exif=exif, quality=97)


def mixed_photos(folder: Path) -> Reconstruction:
    """Views of the points by photos with dots on six of them, and their tracks: landscape; portrait by EXIF, turned
    either way; portrait without EXIF; a smaller one. All have lens distortion, and the network saw all cropped."""
    folder.mkdir(parents=True, exist_ok=True)
    upright = ImageTransform((240, 320), (120, 160), (4, 0), (112, 160))
    small = ImageTransform((200, 151), (160, 121), (0, 8), (160, 104))
    cameras = {
        "landscape.JPG": (TRANSFORM, K, -0.1),
        "sixth.jpeg": (upright, np.array([[260.0, 0, 121.5], [0, 260, 158.25], [0, 0, 1]]), 0.05),
        "eighth.jpg": (upright, np.array([[250.0, 0, 118.5], [0, 250, 163.0], [0, 0, 1]]), -0.1),
        "portrait.tif": (upright, np.array([[250.0, 0, 122.0], [0, 250, 157.5], [0, 0, 1]]), -0.15),
        "small.bmp": (small, np.array([[158.0, 0, 101.75], [0, 158, 73.5], [0, 0, 1]]), -0.08),
    }
    views = []
    for index, (name, (transform, own_K, distortion)) in enumerate(cameras.items()):
        width, height = transform.network_size
        shape = (height, width)
        one = camera_view(
            index,
            folder / name,
            distortion,
            transform=transform,
            K=transform.K_to_network(own_K),
            depth=np.full(shape, 4, np.float32),
            conf=np.full(shape, 10, np.float32),
            conf_clean=np.full(shape, 10, np.float32),
            rgb=np.zeros((*shape, 3), np.uint8),
        )
        dots = project(PictureCamera.of_photo(one), one.world_from_cam, POINTS[:6])
        picture = picture_of_dots(dots, transform.original_size)
        if name in ("sixth.jpeg", "eighth.jpg"):
            turned_jpeg(picture, folder / name, 6 if name == "sixth.jpeg" else 8)
        else:
            Image.fromarray(picture).save(folder / name, quality=97)  # which JPEG alone minds
        views.append(one)
    return Reconstruction(tuple(views), (), tracks_of(views))


def tracks_of(views: Sequence[ReconstructedView], noise_px: float = 0.3) -> Tracks:
    """Every point in every view that shows it, with some noise."""
    rng = np.random.default_rng(1)
    point_of, view_of, xy, errors = [], [], [], []
    for one in views:
        exact = project(PictureCamera.of_photo(one), one.world_from_cam, POINTS)
        seen = exact + rng.normal(0, noise_px, exact.shape)
        inside = np.flatnonzero(((seen > 0) & (seen < np.array(one.transform.original_size) - 1)).all(1))
        point_of.append(inside)
        view_of.append(np.full(len(inside), one.index))
        xy.append(seen[inside])
        errors.append(np.linalg.norm(seen - exact, axis=1)[inside])
    points = np.concatenate(point_of)
    order = np.argsort(points, kind="stable")
    sums = np.bincount(points, np.concatenate(errors), len(POINTS))
    return Tracks(
        points=POINTS,
        colours=rng.integers(0, 256, (len(POINTS), 3)).astype(np.uint8),
        errors_px=(sums / np.maximum(np.bincount(points, minlength=len(POINTS)), 1)).astype(np.float32),
        point_of=points[order],
        view_of=np.concatenate(view_of)[order],
        xy=np.concatenate(xy)[order],
    )


def scene_of(folder: Path, distortion: float = 0.0, count: int = 5) -> Reconstruction:
    """Views of one camera with dots for photos, and their tracks."""
    folder.mkdir(parents=True, exist_ok=True)
    views = []
    for k in range(count):
        one = camera_view(k, folder / f"photo {k}.png", distortion)
        picture = picture_of_dots(project(PictureCamera.of_photo(one), one.world_from_cam, POINTS[:6]))
        Image.fromarray(picture).save(one.file)
        views.append(one)
    return Reconstruction(tuple(views), (), tracks_of(views))
