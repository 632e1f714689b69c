"""The scenes of the alignment goldens: pair predictions are regenerated, matches are stored.

A scene has n small views of a synthetic surface. Every prediction is the true depth with smooth noise, moved
to the reference view's camera and scaled by a factor of the pair.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mast3r_sfm.canonical import CanonicalAccumulator
from mast3r_sfm.types import CanonicalView, Correspondences, PairPrediction, ViewPrediction

DATA = Path(__file__).parent / "data"
ALIGNMENT_SCENES = ("orbit5", "mixed4", "shared4", "fallback4", "swin6")


@cache
def load_scene(name: str) -> GoldenScene:
    """The scene of `alignment_{name}.npz`."""
    with np.load(DATA / f"alignment_{name}.npz") as stored:
        return GoldenScene(name, dict(stored))


@dataclass(frozen=True, eq=False)
class GoldenScene:
    """`golden` holds the arrays of the file; see 8.1 to 8.3 of the goldens' description for their meaning."""

    name: str
    golden: dict[str, np.ndarray]

    @cached_property
    def options(self) -> dict[str, Any]:
        return json.loads(str(self.golden["options"]))

    @property
    def num_views(self) -> int:
        return int(self.options["n"])

    @cached_property
    def pairs(self) -> list[tuple[int, int]]:
        """Oriented pairs, as the reference got them before it appended the reversed ones."""
        return [(int(i), int(j)) for i, j in self.golden["pairs"]]

    @cache  # noqa: B019  the scenes live as long as the test session
    def prediction(self, reference: int, other: int, view: int) -> ViewPrediction:
        """Pixels of `view` in the camera of `reference`, as predicted for the pair of `reference` and `other`."""
        golden, tag = self.golden, f"{reference}_{other}_{view}"
        depth = golden[f"depth{view}"].astype(np.float64)
        H, W = depth.shape
        K = golden[f"K{view}"]
        x, y = np.meshgrid(np.arange(W), np.arange(H))
        rays = np.stack([(x - K[0, 2]) / K[0, 0], (y - K[1, 2]) / K[1, 1], np.ones((H, W))], -1)
        own = depth[..., None] * rays * (1 + 0.02 * _upsample(golden[f"nz_{tag}"], H, W))[..., None]
        world_from_view, world_from_reference = golden[f"cam2w{view}"], golden[f"cam2w{reference}"]
        world = own @ world_from_view[:3, :3].T + world_from_view[:3, 3]
        points = (world - world_from_reference[:3, 3]) @ world_from_reference[:3, :3]
        points *= float(golden[f"scale_{reference}_{other}"])
        visible = np.unpackbits(golden[f"vis_{tag}"])[: H * W].reshape(H, W)
        conf = np.where(visible, 8.0, 2.5) * np.exp(-0.15 * depth) * np.exp(0.2 * _upsample(golden[f"nc_{tag}"], H, W))
        return ViewPrediction(
            points=torch.from_numpy(points.astype(np.float32)), conf=torch.from_numpy((1 + conf).astype(np.float32))
        )

    def pair_predictions(self) -> list[PairPrediction]:
        return [
            PairPrediction(
                i=i,
                j=j,
                i_in_i=self.prediction(i, j, i),
                j_in_i=self.prediction(i, j, j),
                j_in_j=self.prediction(j, i, j),
                i_in_j=self.prediction(j, i, i),
            )
            for i, j in self.pairs
        ]

    def accumulators(self, subsample: int = 8) -> list[CanonicalAccumulator]:
        """One per view, filled with all pairs."""
        shapes = [self.golden[f"depth{i}"].shape for i in range(self.num_views)]
        accumulators = [CanonicalAccumulator(H, W, subsample) for H, W in shapes]
        for i, j in self.pairs:
            for own, other in ((i, j), (j, i)):
                prediction = self.prediction(own, other, own)
                accumulators[own].add(prediction.points, prediction.conf, pair=(i, j))
        return accumulators

    @cached_property
    def canonical_views(self) -> list[CanonicalView]:
        return [accumulator.finish(i) for i, accumulator in enumerate(self.accumulators())]

    @cached_property
    def correspondences(self) -> list[Correspondences]:
        return [
            Correspondences(
                i=i,
                j=j,
                xy_i=torch.from_numpy(self.golden[f"match_{i}_{j}_xy1"].astype(np.int32)),
                xy_j=torch.from_numpy(self.golden[f"match_{i}_{j}_xy2"].astype(np.int32)),
                conf=torch.from_numpy(self.golden[f"match_{i}_{j}_conf"]),
            )
            for i, j in self.pairs
        ]

    def tensor(self, key: str) -> torch.Tensor:
        return torch.from_numpy(self.golden[key])


def _upsample(grid: np.ndarray, height: int, width: int) -> np.ndarray:
    """Bilinear upsampling with aligned corners, float64."""
    grid = grid.astype(np.float64)

    def axis(size: int, cells: int) -> tuple[np.ndarray, np.ndarray]:
        at = np.arange(size) * (cells / (size - 1))
        low = np.minimum(np.floor(at).astype(int), cells - 1)
        return low, at - low

    (row, dy), (column, dx) = axis(height, grid.shape[0] - 1), axis(width, grid.shape[1] - 1)
    dy = dy[:, None]
    top = grid[np.ix_(row, column)] * (1 - dx) + grid[np.ix_(row, column + 1)] * dx
    bottom = grid[np.ix_(row + 1, column)] * (1 - dx) + grid[np.ix_(row + 1, column + 1)] * dx
    return top * (1 - dy) + bottom * dy
