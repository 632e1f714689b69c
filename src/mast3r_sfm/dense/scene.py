"""What the dense stage is given and what it makes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from mast3r_sfm.dense.observations import TrackedPixels
from mast3r_sfm.dense.views import DenseCameras
from mast3r_sfm.types import CanonicalView, Correspondences


@dataclass(frozen=True)
class DenseScene:
    """n registered views of a group, and what was found of them before; H and W are those of the network's images.

    canonical    of each view; its tensors say on which device the stage runs
    photos       of each view (H, W, 3) uint8
    cameras      of all
    core_depths  of each view (rows, columns) or flat: aligned depth of the anchors, scene units
    neighbours   of each view: others by position in the group, those with the most matches first
    group        `Correspondences.i` and `.j` of the views, in their order
    matches      of the group, in main memory
    tracked      pixels of each view whose depth tracks tell, in main memory; None: there are no tracks
    subsample    block size S of the alignment
    """

    canonical: Sequence[CanonicalView]
    photos: Sequence[np.ndarray]
    cameras: DenseCameras
    core_depths: Sequence[torch.Tensor]
    neighbours: Sequence[Sequence[int]]
    group: Sequence[int]
    matches: Sequence[Correspondences]
    tracked: Sequence[TrackedPixels] | None
    subsample: int

    @property
    def device(self) -> torch.device:
        return self.canonical[0].conf.device

    def usual_factors(self) -> torch.Tensor:
        """(n,) float32 on the device: log of the median ratio of each view's aligned and predicted anchors."""
        predicted = [one.core_depth.reshape(-1) for one in self.canonical]
        aligned = [one.to(like).reshape(-1) for one, like in zip(self.core_depths, predicted, strict=True)]
        if len({len(one) for one in predicted}) > 1:
            return torch.stack([(a / p).median() for a, p in zip(aligned, predicted, strict=True)]).log()
        return (torch.stack(aligned) / torch.stack(predicted)).median(1).values.log()


@dataclass(frozen=True)
class DenseResult:
    """Maps (H, W) float32 of every view: z-depth in scene units, confidence, and confidence after cleaning."""

    depths: tuple[torch.Tensor, ...]
    confs: tuple[torch.Tensor, ...]
    clean: tuple[torch.Tensor, ...]
