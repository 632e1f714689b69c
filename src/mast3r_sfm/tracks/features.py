"""Local features of a photo: SIFT at up to a given size, with descriptors that compare by their dot product.

Sources: D. Lowe, "Distinctive image features from scale-invariant keypoints", IJCV 60(2), 2004; the square root of the
descriptors: R. Arandjelovic, A. Zisserman, "Three things everyone should know to improve object retrieval", CVPR 2012.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

_CONTRAST = 0.01  # weak texture counts too: the geometry says where to look for a partner


@dataclass(frozen=True)
class LocalFeatures:
    """Features of one photo.

    xy           (N, 2) float64 pixels of the original photo (after its EXIF rotation), pixel centres at integers
    descriptors  (N, 128) float32 of unit length
    strengths    (N,) float32 how clearly each stands out
    colours      (N, 3) uint8 RGB of the photo there
    num_described  features that have a descriptor, which come first; the others are places that were found again from
                   other photos (`templates`). None: all of them
    """

    xy: np.ndarray
    descriptors: np.ndarray
    strengths: np.ndarray
    colours: np.ndarray
    num_described: int | None = None

    @classmethod
    def none(cls) -> LocalFeatures:
        """Those of a photo that shows nothing."""
        return cls(
            np.zeros((0, 2)),
            np.zeros((0, 128), dtype=np.float32),
            np.zeros(0, dtype=np.float32),
            np.zeros((0, 3), dtype=np.uint8),
        )

    def __len__(self) -> int:
        return len(self.xy)

    @property
    def described(self) -> LocalFeatures:
        """Those with a descriptor."""
        n = len(self) if self.num_described is None else self.num_described
        return LocalFeatures(self.xy[:n], self.descriptors[:n], self.strengths[:n], self.colours[:n])

    def with_places(self, xy: np.ndarray, colours: np.ndarray) -> LocalFeatures:
        """These, and places (K, 2) without a descriptor behind them."""
        nothing = np.zeros((len(xy), self.descriptors.shape[1]), dtype=np.float32)
        return LocalFeatures(
            np.concatenate([self.xy, xy]),
            np.concatenate([self.descriptors, nothing]),
            np.concatenate([self.strengths, np.zeros(len(xy), dtype=np.float32)]),
            np.concatenate([self.colours, colours]),
            len(self) if self.num_described is None else self.num_described,
        )

    def strongest(self, count: int) -> np.ndarray:
        """Indices of the `count` features that stand out most, ascending."""
        return np.sort(np.argsort(-self.strengths, kind="stable")[:count])


def extract_features(
    rgb: Image.Image, max_size: int, max_features: int, mask: np.ndarray | None = None
) -> LocalFeatures:
    """The strongest features of a photo, in order of their place.

    rgb       the upright photo
    max_size  longer edge in pixels that the photo is reduced to
    mask      (H, W) bool, True where features may lie; None: everywhere
    """
    import cv2

    W, H = rgb.size
    scale = min(1.0, max_size / max(H, W))
    size = max(1, round(W * scale)), max(1, round(H * scale))
    grey = rgb.convert("L")
    small = np.asarray(grey if size == (W, H) else grey.resize(size, Image.Resampling.LANCZOS))
    # the precise upscale: without it OpenCV's first octave is a quarter of a pixel off
    most = max_features if mask is None else 0  # of those that the mask keeps, not of all, the strongest are wanted
    sift = cv2.SIFT_create(nfeatures=most, contrastThreshold=_CONTRAST, enable_precise_upscale=True)  # type: ignore[attr-defined]
    keypoints, found = sift.detectAndCompute(small, None)
    if not keypoints:
        return LocalFeatures.none()
    xy = (np.array([point.pt for point in keypoints], dtype=np.float64) + 0.5) * [W / size[0], H / size[1]] - 0.5
    descriptors = np.sqrt(found / (found.sum(1, keepdims=True) + 1e-9)).astype(np.float32)
    descriptors /= np.linalg.norm(descriptors, axis=1, keepdims=True) + 1e-9
    strengths = np.array([point.response for point in keypoints], dtype=np.float32)
    order = np.lexsort((*descriptors[:, :2].T, xy[:, 0], xy[:, 1]))  # whatever the order in which threads found them
    column, row = np.clip(np.rint(xy).astype(int), 0, [W - 1, H - 1]).T
    if mask is not None:
        order = order[mask[row, column][order]]
        order = order[np.sort(np.argsort(-strengths[order], kind="stable")[:max_features])]
    colours = np.asarray(rgb)[row, column]
    return LocalFeatures(xy[order], descriptors[order], strengths[order], colours[order])
