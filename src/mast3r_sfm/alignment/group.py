"""The alignment as a stage: what the pairs of a connected group left in, its cameras and depths out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from mast3r_sfm.alignment.layout import CameraLayout
from mast3r_sfm.alignment.problem import build_problem
from mast3r_sfm.alignment.reprojection import reprojection_errors
from mast3r_sfm.alignment.solver import AlignmentResult, align
from mast3r_sfm.options import AlignmentConfig
from mast3r_sfm.progress import Advance
from mast3r_sfm.types import CanonicalView, Correspondences, FallbackPrediction, FeatureSupport, Refinement


@dataclass(frozen=True)
class AlignedGroup:
    """The aligned views of one connected group of images.

    group      indices of the images, in the order of the cameras
    cameras    of each
    errors_px  (n,) float64 median reprojection error of each view's matches, network pixels; nan without matches
    matches    those that entered the alignment
    support     what local features say of the cameras; None if they were not looked for
    refinement  of the cameras by tracks of local features, in the order of the cameras; None if they are as aligned
    """

    group: tuple[int, ...]
    cameras: AlignmentResult
    errors_px: torch.Tensor
    matches: tuple[Correspondences, ...]
    refinement: Refinement | None = None
    support: FeatureSupport | None = None

    @property
    def distortion(self) -> np.ndarray:
        """(n,) k1 of every view's lens, 0 unless its camera is refined."""
        return np.zeros(len(self.group)) if self.refinement is None else self.refinement.distortion


def align_group(
    group: Sequence[int],
    canonical: Sequence[CanonicalView | None],
    correspondences: Sequence[Correspondences],
    fallback: Mapping[tuple[int, int], FallbackPrediction],
    config: AlignmentConfig,
    advance: Advance | None = None,
    layout: CameraLayout | None = None,
) -> AlignedGroup:
    """Aligns the images of `group`; `canonical` is by image, and matches with other images do not count.

    layout  of the images of `group` in their order, None: as published

    Raises ReconstructionError as `build_problem` and `align`.
    """
    inside = set(group)
    matches = tuple(m for m in correspondences if m.i in inside and m.j in inside)
    views = [view for k in group if (view := canonical[k]) is not None]
    problem = build_problem(views, matches, fallback, config, layout)
    cameras = align(problem, config, advance)
    return AlignedGroup(tuple(group), cameras, reprojection_errors(problem, cameras), matches)
