"""Cameras of written pictures: without lens distortion, or of a smaller copy; and the pictures that go with them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

from mast3r_sfm.geometry import distort, undistort
from mast3r_sfm.types import ReconstructedView


@dataclass(frozen=True)
class PictureCamera:
    """The intrinsics of one picture.

    size        (width, height) pixels
    K           (3, 3) float64, pixel centres at integers
    distortion  k1 of the lens (`ReconstructedView.distortion`)
    """

    size: tuple[int, int]
    K: np.ndarray
    distortion: float = 0.0

    @classmethod
    def of_photo(cls, view: ReconstructedView) -> PictureCamera:
        """That of the original photo."""
        return cls(view.transform.original_size, view.K_original, view.distortion)

    @property
    def focal_xy(self) -> np.ndarray:
        """(2,) focal lengths, pixels."""
        return np.diag(self.K)[:2]

    @property
    def centre(self) -> np.ndarray:
        """(2,) principal point, pixels."""
        return self.K[:2, 2]

    def same(self, other: PictureCamera) -> bool:
        """Whether the two agree, up to what was rounded on the way from the network's image and back."""
        return (
            self.size == other.size
            and bool(np.allclose(self.K, other.K, rtol=1e-9, atol=1e-9))
            and self.distortion == other.distortion
        )


def without_distortion(camera: PictureCamera) -> PictureCamera:
    """A camera without distortion and with the same focal length, whose picture has no empty pixel.

    Its picture is the largest upright rectangle between the straightened edges, whole pixels apart from the original's.
    """
    if not camera.distortion:
        return camera
    W, H = camera.size
    x, y = np.arange(W), np.arange(H)

    def straightened(x: np.ndarray | int, y: np.ndarray | int) -> np.ndarray:
        seen = (np.stack(np.broadcast_arrays(x, y), -1) - camera.centre) / camera.focal_xy
        return undistort(seen, camera.distortion) * camera.focal_xy + camera.centre

    # a distortion that no lens has must not give a picture of any size
    limit = np.array([W, H]) / 2
    low = np.maximum([straightened(0, y)[:, 0].max(), straightened(x, 0)[:, 1].max()], -limit)
    high = np.minimum([straightened(W - 1, y)[:, 0].min(), straightened(x, H - 1)[:, 1].min()], 3 * limit)
    # the edges of a picture without distortion would miss integers by rounding
    corner = np.ceil(low - 1e-6)
    width, height = np.maximum(np.floor(high + 1e-6) - corner + 1, 1).astype(int)
    K = camera.K.copy()
    K[:2, 2] -= corner
    return PictureCamera((int(width), int(height)), K)


def reduced(camera: PictureCamera, max_size: int | None) -> PictureCamera:
    """The camera of a copy whose long edge has at most `max_size` pixels (None: any).

    Both axes have the same scale exactly; up to one pixel of the copy's short edge is cut off for it.
    """
    if max_size is None or max(camera.size) <= max_size:
        return camera
    scale = max_size / max(camera.size)
    K = camera.K.copy()
    K[:2] *= scale
    K[:2, 2] += 0.5 * scale - 0.5  # pixel centres are integers: x_small + 0.5 = (x + 0.5) scale
    width, height = (max(1, int(edge * scale + 1e-6)) for edge in camera.size)
    return PictureCamera((width, height), K, camera.distortion)


def map_pixels(xy: np.ndarray, source: PictureCamera, target: PictureCamera) -> np.ndarray:
    """Where the target shows what the source shows at the pixels (..., 2); the target has no distortion of its own or
    that of the source."""
    seen = (xy - source.centre) / source.focal_xy
    if source.distortion != target.distortion:
        assert not target.distortion
        seen = undistort(seen, source.distortion)
    return seen * target.focal_xy + target.centre


def original_pixels(xy: np.ndarray, view: ReconstructedView, camera: PictureCamera) -> np.ndarray:
    """Where the photo of the view shows what `camera`, of that photo straightened or reduced, shows at (..., 2)."""
    photo = PictureCamera.of_photo(view)
    rays = (xy - camera.centre) / camera.focal_xy
    if camera.distortion != photo.distortion:
        assert not camera.distortion
        rays = distort(rays, photo.distortion)
    return rays * photo.focal_xy + photo.centre


def straightened_picture(rgb: np.ndarray, camera: PictureCamera, straight: PictureCamera) -> np.ndarray:
    """The picture (H, W[, 3]) uint8 of `camera` as `straight`, that camera without distortion, shows it; or as it
    is, if the two have the same distortion."""
    if camera.distortion == straight.distortion:
        return rgb
    import cv2

    width, height = straight.size
    rays_x = (np.arange(width) - straight.centre[0]) / straight.focal_xy[0]
    rays_y = (np.arange(height) - straight.centre[1]) / straight.focal_xy[1]
    rays = np.stack(np.meshgrid(rays_x, rays_y), -1)
    seen = (distort(rays, camera.distortion) * camera.focal_xy + camera.centre).astype(np.float32)
    # beyond the edge, by less than a pixel: what is at the edge
    return cv2.remap(rgb, seen[..., 0], seen[..., 1], cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)


def reduced_picture(
    rgb: np.ndarray,
    camera: PictureCamera,
    small: PictureCamera,
    resampling: Image.Resampling = Image.Resampling.LANCZOS,
) -> np.ndarray:
    """The picture (H, W[, 3]) uint8 of `camera` as `small`, that camera reduced, shows it."""
    if small.size == camera.size:
        return rgb
    scale = camera.focal_xy[0] / small.focal_xy[0]
    box = (0.0, 0.0, min(small.size[0] * scale, camera.size[0]), min(small.size[1] * scale, camera.size[1]))
    return np.asarray(Image.fromarray(rgb).resize(small.size, resampling, box))
