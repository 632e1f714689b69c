"""Which intrinsics are unknown: the focal lengths and principal points that views share, and what each makes of them.

A network sees a photo resized, and by another factor if its shape is another: 4032x3024 becomes 512x384, a 1:1 crop
of it with 3024x3024 becomes 512x512. What such photos share is therefore a focal length in pixels of the originals.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from mast3r_sfm.graphs import number_by_first
from mast3r_sfm.types import ImageTransform


@dataclass(frozen=True)
class CameraLayout:
    """Of n views with F focal lengths f and C principal points p among them, view i having the numbers F_i and C_i:

        focal length     a_i f[F_i]
        principal point  c_i + u_i (p[C_i] - 1/2)

    focal_of, centre_of   (n,) int64 F_i and C_i, numbered by first appearance
    focal_factors         (n,) float32 a: network pixels per unit of the focal length
    centres               (n, 2) float32 c: the image centre, network pixels; where the principal point starts
    centre_units          (n, 2) float32 u: network pixels per unit of the principal point
    stated_focals         (F,) float32 focal lengths known beforehand, in their units; nan for those that are not
    """

    focal_of: torch.Tensor
    centre_of: torch.Tensor
    focal_factors: torch.Tensor
    centres: torch.Tensor
    centre_units: torch.Tensor
    stated_focals: torch.Tensor

    @property
    def num_focals(self) -> int:
        return len(self.stated_focals)

    @property
    def num_centres(self) -> int:
        return int(self.centre_of.max()) + 1

    @classmethod
    def published(cls, shapes: Sequence[tuple[int, int]], shared: bool) -> CameraLayout:
        """Of views of `shapes` (H, W): everything in network pixels, around (W/2, H/2), for each view or for all."""
        sizes = torch.tensor([(W, H) for H, W in shapes], dtype=torch.float32)
        numbers = torch.zeros(len(shapes), dtype=torch.int64) if shared else torch.arange(len(shapes))
        return cls(
            focal_of=numbers,
            centre_of=numbers,
            focal_factors=torch.ones(len(shapes)),
            centres=sizes / 2,
            centre_units=sizes,
            stated_focals=torch.full((1 if shared else len(shapes),), torch.nan),
        )

    @classmethod
    def of_photos(
        cls,
        transforms: Sequence[ImageTransform],
        group_of: Sequence[int],
        stated_focals: Sequence[float | None] | None = None,
    ) -> CameraLayout:
        """Of photos that are in groups: one focal length each, in pixels of the original photos.

        A group has one principal point for its landscape and square photos and another for its upright ones, because
        the camera's offset turns with it. It counts from the centre of the pixels of the original photo,
        ((W - 1) / 2, (H - 1) / 2), in units of the largest W and the largest H of those photos.

        group_of       (n,) any numbers
        stated_focals  of the group of every photo, original pixels, None for one that is not known
        """
        upright = [height > width for width, height in (t.original_size for t in transforms)]
        focal_of = number_by_first(group_of)
        centre_of = number_by_first(list(zip(group_of, upright, strict=True)))
        sizes = np.array([t.original_size for t in transforms], dtype=np.float64).reshape(-1, 2)
        largest = np.zeros((max(centre_of) + 1, 2))
        np.maximum.at(largest, np.array(centre_of), sizes)
        scales = np.stack([np.diag(t.network_from_original)[:2] for t in transforms])
        centres = [t.to_network(0.5 * (size - 1)) for t, size in zip(transforms, sizes, strict=True)]
        stated = [np.nan] * (max(focal_of) + 1)
        for number, focal in zip(focal_of, stated_focals or [None] * len(transforms), strict=True):
            stated[number] = np.nan if focal is None else focal
        return cls(
            focal_of=torch.tensor(focal_of),
            centre_of=torch.tensor(centre_of),
            focal_factors=torch.tensor([t.network_per_original for t in transforms]).float(),
            centres=torch.from_numpy(np.stack(centres)).float(),
            centre_units=torch.from_numpy(largest[list(centre_of)] * scales).float(),
            stated_focals=torch.tensor(stated).float(),
        )
