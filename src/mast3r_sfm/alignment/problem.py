"""The alignment problem: everything the optimisation reads, packed into rectangular tensors.

Matches are cut into chunks of `CHUNK` matches of one pair, padded with weight 0. So every camera quantity is
needed once per chunk, not once per match, and a loss is a few dense products over all chunks.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from mast3r_sfm.alignment.config import AlignmentConfig
from mast3r_sfm.alignment.kinematic_tree import KinematicTree, build_tree, groups
from mast3r_sfm.alignment.segments import SegmentSum
from mast3r_sfm.canonical import anchor_index, block_grid, depth_offsets
from mast3r_sfm.errors import ReconstructionError
from mast3r_sfm.types import CanonicalView, Correspondences, PairPrediction, ViewPrediction

logger = logging.getLogger(__name__)

CHUNK = 256


@dataclass(frozen=True)
class FallbackPrediction:
    """One view's points in another view's camera, at the top-left pixel of every block.

    points  (A, 3) float32 scene units, row-major over the blocks
    conf    (A,) float32
    """

    points: torch.Tensor
    conf: torch.Tensor


@dataclass(frozen=True)
class Observations:
    """Observed pixels of views, in chunks of L = `CHUNK`, padded with a valid anchor and weight 0.

    pixel   (..., 3, L) float32 homogeneous pixels (x, y, 1)
    anchor  (..., L) int32: view * anchors per view + anchor
    offset  (..., L) float32: depth relative to the anchor's, minus 1, at the base focal length
    """

    pixel: torch.Tensor
    anchor: torch.Tensor
    offset: torch.Tensor


@dataclass(frozen=True)
class MatchChunks:
    """Matches of all good pairs, C chunks. Side 0 of a pair (i, j) is view i, side 1 is view j.

    A last pair (0, 0) and a last chunk of it hold padding only: the rows of zeros that the sums need.

    pairs            (P + 1, 2) int64 views (i, j)
    chunk_pair       (C,) int64
    observed         both sides, (C, 2, ...)
    weight           (C, L) float32: confidence of the match / sum of all confidences
    sum_by_pair      rows of chunks (C) -> pairs (P + 1)
    sum_by_view      rows of pair sides (2P + 2) -> views (n)
    sum_by_anchor    observations (2CL) -> anchors (n A)
    """

    pairs: torch.Tensor
    chunk_pair: torch.Tensor
    observed: Observations
    weight: torch.Tensor
    sum_by_pair: SegmentSum
    sum_by_view: SegmentSum
    sum_by_anchor: SegmentSum

    @property
    def num_pairs(self) -> int:
        """Number of real pairs P."""
        return len(self.pairs) - 1


@dataclass(frozen=True)
class FallbackChunks:
    """What stands in for the matches of bad pairs, C chunks: all observations of view a, and where view b's
    prediction puts the blocks they lie in.

    entries        (E + 1, 2) int64 views (a, b), both orientations of every bad pair; a last entry of padding
    chunk_entry    (C,) int64
    observed       of view a, (C, ...)
    target         (C, 3, L) float32 points in camera b
    weight         (C, L) float32: confidence / sum of all
    sum_by_*       as in `MatchChunks`, with entries for pairs
    """

    entries: torch.Tensor
    chunk_entry: torch.Tensor
    observed: Observations
    target: torch.Tensor
    weight: torch.Tensor
    sum_by_entry: SegmentSum
    sum_by_view: SegmentSum
    sum_by_anchor: SegmentSum


@dataclass(frozen=True)
class AlignmentProblem:
    """n views with A anchors each (the largest number of any view; surplus anchors are never observed).

    view_indices   `CanonicalView.index` of each view, which are numbered by position here
    grids          (rows, columns) of the anchors of each view
    sizes          (n, 2) float32 (W, H) pixels
    base_focals    (n,) float32 pixels
    median_depths  (n,) float32 median of the core depth
    relief         (n, A) float32 core depth / median depth
    mean_confs     (n,) float32 mean of the canonical confidence
    num_matches    (n,) numpy int64: matches of each view, all pairs
    scores         (n, n) numpy float32 number of matches of every pair
    fallback       None if every pair is good
    """

    view_indices: tuple[int, ...]
    grids: tuple[tuple[int, int], ...]
    sizes: torch.Tensor
    base_focals: torch.Tensor
    median_depths: torch.Tensor
    relief: torch.Tensor
    mean_confs: torch.Tensor
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
        return self.relief.device


def sample_fallback(pair: PairPrediction, subsample: int) -> dict[tuple[int, int], FallbackPrediction]:
    """What the fallback loss needs of a pair: key (r, v) holds view v's points in the camera of view r."""

    def corners(prediction: ViewPrediction) -> FallbackPrediction:
        return FallbackPrediction(
            points=prediction.points[::subsample, ::subsample].float().reshape(-1, 3),
            conf=prediction.conf[::subsample, ::subsample].float().reshape(-1),
        )

    return {(pair.i, pair.j): corners(pair.j_in_i), (pair.j, pair.i): corners(pair.i_in_j)}


def build_problem(
    canonical: Sequence[CanonicalView],
    correspondences: Sequence[Correspondences],
    fallback: Mapping[tuple[int, int], FallbackPrediction],
    config: AlignmentConfig,
) -> AlignmentProblem:
    """Packs the views and the matches of all their pairs, on the device of the canonical views.

    correspondences  every unordered pair once, views named by `CanonicalView.index`
    fallback         key (r, v): view v's points in the camera of view r (see `sample_fallback`); needed for both
                     orientations of every pair whose best match is not above `config.matching_conf_thr`

    Raises ReconstructionError if the matches do not connect all views, or if a view has no positive depth.
    """
    position = {view.index: k for k, view in enumerate(canonical)}
    pairs = [matches for matches in correspondences if len(matches)]
    if len(pairs) < len(correspondences):
        dropped = [(matches.i, matches.j) for matches in correspondences if not len(matches)]
        logger.warning("%d of %d pairs have no match and are left out", len(dropped), len(correspondences))
    views = np.array([(position[m.i], position[m.j]) for m in pairs], dtype=np.int64).reshape(-1, 2)
    scores = _scores(views, [len(m) for m in pairs], len(canonical))
    _require_connected(scores, canonical)
    median_depths = torch.stack([view.core_depth.median() for view in canonical])
    for view, median in zip(canonical, median_depths.tolist(), strict=True):
        if not median > 0:
            raise ReconstructionError(f"image {view.index}: its median depth is {median:.3g}, must be positive")

    shapes = [(int(view.conf.shape[0]), int(view.conf.shape[1])) for view in canonical]
    num_anchors = np.array([(H // config.subsample) * (W // config.subsample) for H, W in shapes])
    per_view = max(view.core_depth.numel() for view in canonical)
    sides = _observe(canonical, pairs, position, per_view, config.subsample)
    good = _are_good(pairs, config.matching_conf_thr)
    return AlignmentProblem(
        view_indices=tuple(view.index for view in canonical),
        grids=tuple(block_grid(shape, config.subsample) for shape in shapes),
        sizes=torch.tensor([(W, H) for H, W in shapes], dtype=torch.float32, device=median_depths.device),
        base_focals=torch.tensor([view.focal_px for view in canonical], device=median_depths.device),
        median_depths=median_depths,
        relief=_pad_rows([view.core_depth.reshape(-1) for view in canonical], per_view) / median_depths[:, None],
        mean_confs=torch.stack([view.conf.mean() for view in canonical]),
        num_matches=scores.sum(1).astype(np.int64),
        scores=scores,
        tree=build_tree(scores, num_anchors, config.tree),
        matches=_pack_matches(pairs, views, sides, good, (len(canonical), per_view), median_depths.device),
        fallback=_pack_fallback(pairs, views, sides, good, fallback, canonical, per_view),
    )


@dataclass(frozen=True)
class _Side:
    """One view's side of the matches of a pair: (M, 2) pixels, (M,) global anchors, (M,) offsets minus 1."""

    xy: torch.Tensor
    anchor: torch.Tensor
    offset: torch.Tensor


def _scores(views: np.ndarray, counts: Sequence[int], n: int) -> np.ndarray:
    scores = np.zeros((n, n), dtype=np.float32)
    for (i, j), count in zip(views, counts, strict=True):
        if i == j or scores[i, j]:
            raise ValueError(f"pair ({i}, {j}) is a view with itself or occurs twice")
        scores[i, j] = scores[j, i] = count
    return scores


def _require_connected(scores: np.ndarray, canonical: Sequence[CanonicalView]) -> None:
    found = groups(scores)
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


def _observe(
    canonical: Sequence[CanonicalView],
    pairs: Sequence[Correspondences],
    position: Mapping[int, int],
    per_view: int,
    subsample: int,
) -> list[tuple[_Side, _Side]]:
    """Anchors and offsets of both sides of every pair, looked up view by view."""
    owned: list[list[tuple[int, int]]] = [[] for _ in canonical]
    for p, matches in enumerate(pairs):
        owned[position[matches.i]].append((p, 0))
        owned[position[matches.j]].append((p, 1))
    found: dict[tuple[int, int], _Side] = {}
    for k, (view, own) in enumerate(zip(canonical, owned, strict=True)):
        if not own:
            continue
        pixels = [(pairs[p].xy_i, pairs[p].xy_j)[side] for p, side in own]
        xy = torch.cat(pixels).to(view.conf.device)
        shape = (int(view.conf.shape[0]), int(view.conf.shape[1]))
        anchor = anchor_index(xy, shape, subsample) + k * per_view
        offset = depth_offsets(view.relative_depth, xy, subsample) - 1
        counts = [len(pixel) for pixel in pixels]
        parts = zip(xy.split(counts), anchor.split(counts), offset.split(counts), strict=True)
        found |= {key: _Side(*part) for key, part in zip(own, parts, strict=True)}
    return [(found[p, 0], found[p, 1]) for p in range(len(pairs))]


class _Chunking:
    """Where the rows of consecutive blocks of given lengths go, if every block starts a new chunk.

    A last block of one chunk holds nothing.
    """

    def __init__(self, lengths: Sequence[int], device: torch.device) -> None:
        length = torch.tensor([*lengths, 0], device=device)
        chunks = (length + CHUNK - 1) // CHUNK
        chunks[-1] = 1
        self.num_chunks = int(chunks.sum())
        self.block = torch.arange(len(length), device=device).repeat_interleave(chunks)
        shift = (chunks.cumsum(0) - chunks) * CHUNK - (length.cumsum(0) - length)
        self._row = torch.arange(int(length.sum()), device=device) + shift.repeat_interleave(length)

    def place(self, rows: Iterable[torch.Tensor], fill: torch.Tensor | float, dtype: torch.dtype) -> torch.Tensor:
        """Concatenated `rows` -> (C, L); `fill` is a value or one per chunk (C, 1)."""
        packed = torch.empty(self.num_chunks, CHUNK, dtype=dtype, device=self._row.device)
        packed[:] = fill
        values = list(rows)
        if values:
            packed.view(-1)[self._row] = torch.cat(values).to(packed.device, dtype)
        return packed

    def observations(self, sides: Sequence[_Side], first_anchor: torch.Tensor) -> Observations:
        """`first_anchor` (blocks,) is a valid anchor for each block's padding."""
        return Observations(
            pixel=torch.stack(
                [
                    self.place((side.xy[:, 0] for side in sides), 0.0, torch.float32),
                    self.place((side.xy[:, 1] for side in sides), 0.0, torch.float32),
                    torch.ones(self.num_chunks, CHUNK, device=self._row.device),
                ],
                1,
            ),
            anchor=self.place((side.anchor for side in sides), first_anchor[self.block, None].int(), torch.int32),
            offset=self.place((side.offset for side in sides), 0.0, torch.float32),
        )


def _pack_matches(
    pairs: Sequence[Correspondences],
    views: np.ndarray,
    sides: Sequence[tuple[_Side, _Side]],
    good: Sequence[bool],
    num_anchors: tuple[int, int],
    device: torch.device,
) -> MatchChunks:
    kept = [p for p, is_good in enumerate(good) if is_good]
    chunking = _Chunking([len(pairs[p]) for p in kept], device)
    view_of = torch.tensor([*views[kept].tolist(), [0, 0]], device=device)
    first_anchor = view_of * num_anchors[1]
    observed = [chunking.observations([sides[p][side] for p in kept], first_anchor[:, side]) for side in (0, 1)]
    weight = chunking.place((pairs[p].conf for p in kept), 0.0, torch.float32)
    total = weight.sum(dtype=torch.float64)
    both = Observations(
        pixel=torch.stack([side.pixel for side in observed], 1),
        anchor=torch.stack([side.anchor for side in observed], 1),
        offset=torch.stack([side.offset for side in observed], 1),
    )
    return MatchChunks(
        pairs=view_of,
        chunk_pair=chunking.block,
        observed=both,
        weight=(weight / total.clamp_min(1e-30)).float(),
        sum_by_pair=_sum_chunks(chunking),
        sum_by_view=_sum_views(view_of, num_anchors[0]),
        sum_by_anchor=_sum_anchors(both.anchor, (weight > 0)[:, None].expand(-1, 2, -1), num_anchors),
    )


def _pack_fallback(
    pairs: Sequence[Correspondences],
    views: np.ndarray,
    sides: Sequence[tuple[_Side, _Side]],
    good: Sequence[bool],
    fallback: Mapping[tuple[int, int], FallbackPrediction],
    canonical: Sequence[CanonicalView],
    per_view: int,
) -> FallbackChunks | None:
    bad = [p for p, is_good in enumerate(good) if not is_good]
    if not bad:
        return None
    logger.info("%d pairs have no match above the threshold; the fallback loss takes their place", len(bad))
    oriented = [(int(a), int(b)) for p in bad for a, b in (views[p], views[p][::-1])]
    observed = []
    for a, _ in oriented:
        own = [sides[p][side] for p, pair in enumerate(views) for side in (0, 1) if pair[side] == a]
        observed.append(
            _Side(*(torch.cat([getattr(side, name) for side in own]) for name in ("xy", "anchor", "offset")))
        )
    points, confs = [], []
    for (a, b), side in zip(oriented, observed, strict=True):
        key = (canonical[b].index, canonical[a].index)
        if key not in fallback:
            raise ValueError(f"no fallback prediction {key} for a pair without a match above the threshold")
        block = side.anchor - a * per_view
        points.append(fallback[key].points.to(block.device)[block])
        confs.append(fallback[key].conf.to(block.device)[block])

    device = observed[0].xy.device
    num_anchors = (len(canonical), per_view)
    chunking = _Chunking([len(side.xy) for side in observed], device)
    entries = torch.tensor([*oriented, (0, 0)], device=device)
    packed = chunking.observations(observed, entries[:, 0] * per_view)
    weight = chunking.place(confs, 0.0, torch.float32)
    return FallbackChunks(
        entries=entries,
        chunk_entry=chunking.block,
        observed=packed,
        target=torch.stack([chunking.place((p[:, k] for p in points), 0.0, torch.float32) for k in range(3)], 1),
        weight=(weight / weight.sum(dtype=torch.float64)).float(),
        sum_by_entry=_sum_chunks(chunking),
        sum_by_view=_sum_views(entries, num_anchors[0]),
        sum_by_anchor=_sum_anchors(packed.anchor, weight > 0, num_anchors),
    )


def _sum_chunks(chunking: _Chunking) -> SegmentSum:
    return SegmentSum(chunking.block, int(chunking.block[-1]) + 1, zero_row=chunking.num_chunks - 1)


def _sum_views(view_of: torch.Tensor, num_views: int) -> SegmentSum:
    owner = view_of.clone()
    owner[-1] = -1
    return SegmentSum(owner.view(-1), num_views, zero_row=owner.numel() - 1)


def _sum_anchors(anchor: torch.Tensor, real: torch.Tensor, num_anchors: tuple[int, int]) -> SegmentSum:
    owner = torch.where(real, anchor.long(), -1).reshape(-1)
    return SegmentSum(owner, num_anchors[0] * num_anchors[1], zero_row=owner.numel() - 1)


def _pad_rows(rows: Sequence[torch.Tensor], width: int) -> torch.Tensor:
    """Rows of different lengths -> (n, width), padded with ones (a positive depth that nothing observes)."""
    return torch.stack([torch.nn.functional.pad(row, (0, width - len(row)), value=1.0) for row in rows])
