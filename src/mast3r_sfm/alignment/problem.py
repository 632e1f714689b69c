"""The alignment problem: what the optimisation reads of the views and of their matches."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from mast3r_sfm.alignment.execution.packing import (
    FallbackChunks,
    MatchChunks,
    observe,
    pack_fallback,
    pack_matches,
)
from mast3r_sfm.alignment.kinematic_tree import KinematicTree, build_tree
from mast3r_sfm.alignment.layout import CameraLayout
from mast3r_sfm.alignment.thinning import thin_matches
from mast3r_sfm.canonical import block_grid
from mast3r_sfm.errors import ReconstructionError
from mast3r_sfm.graphs import connected_components
from mast3r_sfm.options import AlignmentConfig
from mast3r_sfm.types import CanonicalView, Correspondences, FallbackPrediction

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class AlignmentProblem:
    """n views with A anchors each (the largest number of any view; surplus anchors are never observed).

    view_indices            `CanonicalView.index` of each view, which are numbered by position here
    grids                   (rows, columns) of the anchors of each view
    sizes                   (n, 2) float32 (W, H) pixels
    base_focals             (n,) float32 pixels
    median_depths           (n,) float32 median of `CanonicalView.core_depth`, the depth of the anchors
    normalized_core_depths  (n, A) float32 core depth / median depth
    mean_confs              (n,) float32 mean of the canonical confidence
    layout                  the intrinsics that views share
    num_matches             (n,) numpy int64: matches of each view, all pairs, also those beyond the budget
    scores                  (n, n) numpy float32 number of matches of every pair, likewise
    fallback                None if every pair is good
    """

    view_indices: tuple[int, ...]
    grids: tuple[tuple[int, int], ...]
    sizes: torch.Tensor
    base_focals: torch.Tensor
    median_depths: torch.Tensor
    normalized_core_depths: torch.Tensor
    mean_confs: torch.Tensor
    layout: CameraLayout
    num_matches: np.ndarray
    scores: np.ndarray
    tree: KinematicTree
    matches: MatchChunks
    fallback: FallbackChunks | None

    @property
    def num_views(self) -> int:
        return len(self.view_indices)

    @property
    def device(self) -> torch.device:
        return self.normalized_core_depths.device


def build_problem(
    canonical: Sequence[CanonicalView],
    correspondences: Sequence[Correspondences],
    fallback: Mapping[tuple[int, int], FallbackPrediction],
    config: AlignmentConfig,
    layout: CameraLayout | None = None,
) -> AlignmentProblem:
    """Packs the views and the matches of all their pairs, on the device of the canonical views.

    correspondences  every unordered pair once, views named by `CanonicalView.index`
    fallback         key (r, v): view v's points in the camera of view r (`pairwise.sample_fallback`); needed for both
                     orientations of every pair whose best match is not above `config.matching_conf_thr`
    layout           of the views in their order, None: as published (`CameraLayout.published`)

    Raises ReconstructionError if the matches do not connect all views, or if a view has no positive depth.
    """
    position_of = {view.index: k for k, view in enumerate(canonical)}
    pairs = [matches for matches in correspondences if len(matches)]
    if len(pairs) < len(correspondences):
        empty = [f"{matches.i}-{matches.j}" for matches in correspondences if not len(matches)]
        logger.warning(
            "%d of %d pairs have no match and are left out: %s%s",
            len(empty),
            len(correspondences),
            ", ".join(empty[:10]),
            ", ..." if len(empty) > 10 else "",
        )
    views = np.array([(position_of[m.i], position_of[m.j]) for m in pairs], dtype=np.int64).reshape(-1, 2)
    scores = _scores(views, [len(m) for m in pairs], len(canonical))
    _require_connected(views, canonical)
    shapes = [_checked_shape(view, config.subsample) for view in canonical]
    median_depths = torch.stack([view.core_depth.median() for view in canonical])
    for view, median in zip(canonical, median_depths.tolist(), strict=True):
        if not median > 0:
            raise ReconstructionError(f"image {view.index}: its median depth is {median:.3g}, must be positive")

    num_anchors = np.array([(H // config.subsample) * (W // config.subsample) for H, W in shapes])
    per_view = max(view.core_depth.numel() for view in canonical)
    core_depths = _pad_rows([view.core_depth.reshape(-1) for view in canonical], per_view)
    if config.matches_per_pair is not None:
        pairs = thin_matches(pairs, config.matches_per_pair, median_depths.device)
    sides = observe(canonical, pairs, position_of, per_view, config.subsample)
    good = _are_good(pairs, config.matching_conf_thr)
    return AlignmentProblem(
        view_indices=tuple(view.index for view in canonical),
        grids=tuple(block_grid(shape, config.subsample) for shape in shapes),
        sizes=torch.tensor([(W, H) for H, W in shapes], dtype=torch.float32, device=median_depths.device),
        base_focals=median_depths.new_tensor([view.focal_px for view in canonical]),
        median_depths=median_depths,
        normalized_core_depths=core_depths / median_depths[:, None],
        mean_confs=torch.stack([view.conf.mean() for view in canonical]),
        layout=layout or CameraLayout.published(shapes, config.shared_intrinsics),
        num_matches=scores.sum(1).astype(np.int64),
        scores=scores,
        tree=build_tree(scores, num_anchors, config.tree),
        matches=pack_matches(pairs, views, sides, good, (len(canonical), per_view), median_depths.device),
        fallback=pack_fallback(pairs, views, sides, good, fallback, canonical, per_view),
    )


def _checked_shape(view: CanonicalView, subsample: int) -> tuple[int, int]:
    shape = (int(view.conf.shape[0]), int(view.conf.shape[1]))
    if tuple(view.core_depth.shape) != block_grid(shape, subsample):
        raise ValueError(
            f"view {view.index} of {shape} has core depth {tuple(view.core_depth.shape)}, not of {subsample=}"
        )
    return shape


def _scores(views: np.ndarray, counts: Sequence[int], n: int) -> np.ndarray:
    scores = np.zeros((n, n), dtype=np.float32)
    for (i, j), count in zip(views, counts, strict=True):
        if i == j or scores[i, j]:
            raise ValueError(f"pair ({i}, {j}) is a view with itself or occurs twice")
        scores[i, j] = scores[j, i] = count
    return scores


def _require_connected(pairs: np.ndarray, canonical: Sequence[CanonicalView]) -> None:
    """`pairs` (P, 2) are positions in `canonical`."""
    found = connected_components(len(canonical), pairs)
    if len(found) > 1:
        shown = "; ".join(", ".join(str(canonical[k].index) for k in group) for group in found)
        raise ReconstructionError(
            f"the images fall apart into {len(found)} groups without a match between them ({shown}); "
            "add pairs or photos that connect them, or reconstruct one group"
        )


def _are_good(pairs: Sequence[Correspondences], threshold: float) -> list[bool]:
    if not pairs:
        return []
    best = torch.stack([matches.conf.max() for matches in pairs])
    return (best > threshold).tolist()


def _pad_rows(rows: Sequence[torch.Tensor], width: int) -> torch.Tensor:
    """Rows of different lengths -> (n, width), padded with ones (a positive depth that nothing observes)."""
    return torch.stack([torch.nn.functional.pad(row, (0, width - len(row)), value=1.0) for row in rows])
