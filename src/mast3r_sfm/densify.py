"""The aligned scene at every pixel: dense depth maps, their confidences, and the finished views.

The maps are made by the package `dense`, or as published by `dense_depth` and `clean_confidences` (docs/method.md,
Dense depth, Published dense depth, and Cleaning of confidences).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np
import torch

from mast3r_sfm.alignment import AlignedGroup
from mast3r_sfm.canonical import block_centres, nearest_pixels, spread_blocks
from mast3r_sfm.dense import DenseCameras, DenseResult, DenseScene, TrackedPixels, agree, sky_of, tracked_pixels
from mast3r_sfm.dense.packed import runs_of_size
from mast3r_sfm.device import matmul_precision
from mast3r_sfm.geometry import invert, pixels_without_distortion
from mast3r_sfm.graphs import strongest_neighbours
from mast3r_sfm.options import DenseOptions, ReconstructionOptions
from mast3r_sfm.pairwise import PairwiseData
from mast3r_sfm.types import CanonicalView, FeatureSupport, ReconstructedView, Refinement, Tracks, View

_ALL_PAIRS_CLEANED = 40  # views up to which every view is cleaned against all others

_COPIED_AT_ONCE = 1 << 23  # pixels of maps that come to main memory together

# points in flight, times views they are compared with: in cache on a CPU, in memory on a GPU
_CHUNK = {"cpu": 1 << 17, "cuda": 1 << 23}


class Maps(NamedTuple):
    """Depth, confidence and cleaned confidence of a view, (H, W) float32 each."""

    depth: np.ndarray
    conf: np.ndarray
    clean: np.ndarray


def densify_views(
    views: Sequence[View], data: PairwiseData, aligned: AlignedGroup, options: ReconstructionOptions
) -> tuple[ReconstructedView, ...]:
    """All views with depth, confidence and camera, on the CPU; those outside the group stay in their own camera."""
    subsample = options.alignment.subsample
    position_of = {index: k for k, index in enumerate(aligned.group)}
    # the first registered camera is the origin: the alignment's own frame has no meaning
    world_from_root = aligned.cameras.world_from_cam.cpu().numpy()
    world_from_cam = np.linalg.inv(world_from_root[0]) @ world_from_root
    K = aligned.cameras.K.cpu().numpy()
    with matmul_precision("fp32"):
        if options.dense is None:
            made = _published_maps(data, aligned, world_from_cam, subsample)
        else:
            made = _agreed_maps(views, data, aligned, world_from_cam, subsample, options.dense)
    known = _known_maps(made)
    counts = np.zeros(len(views), dtype=np.int64)
    for m in aligned.matches:
        counts[[m.i, m.j]] += len(m)

    errors_px = aligned.errors_px.tolist()
    result = []
    for view in views:
        common = (view.index, str(view.path), view.transform, view.rgb)
        if view.index in position_of:
            k = position_of[view.index]
            maps = known[k]
            if options.sky:
                maps = _without_sky(maps, view, aligned)
            placed = (True, K[k], world_from_cam[k])
            error = errors_px[k]
            of_features = {} if aligned.refinement is None else _refined_fields(aligned.refinement, k)
            if aligned.support is not None:
                of_features |= _support_fields(aligned.support, k)
        else:
            alone, own_K = _alone_maps(view, data.canonical[view.index], subsample)
            (maps,) = _known_maps(alone)
            placed = (False, own_K, np.eye(4))
            error = float("nan")
            of_features = {}
        result.append(
            ReconstructedView(
                *common,
                *placed,
                *maps,
                error,
                int(counts[view.index]),
                view.mask,
                gps=view.gps,
                frame=view.frame,
                sample_bits=view.sample_bits,
                mask_file=None if view.mask_file is None else str(view.mask_file),
                **of_features,
            )
        )
    return tuple(result)


def _without_sky(maps: Maps, view: View, aligned: AlignedGroup) -> Maps:
    """The maps of a view with confidences that are 0 in the sky."""
    depth, conf, clean = maps
    nothing = torch.zeros(0, 2, dtype=torch.int64)
    matched = torch.cat(
        [nothing]
        + [nearest_pixels(m.xy_i) for m in aligned.matches if m.i == view.index]
        + [nearest_pixels(m.xy_j) for m in aligned.matches if m.j == view.index]
    )
    sky = sky_of(depth, conf, view.rgb, matched.cpu().numpy())
    return Maps(depth, np.where(sky, np.float32(0), conf), np.where(sky, np.float32(0), clean))


def _agreed_maps(
    views: Sequence[View],
    data: PairwiseData,
    aligned: AlignedGroup,
    world_from_cam: np.ndarray,
    subsample: int,
    options: DenseOptions,
) -> DenseResult:
    """Maps of the group's views that agree with each other."""
    refinement = aligned.refinement
    position_of = {index: k for k, index in enumerate(aligned.group)}
    shared = ((position_of[m.i], position_of[m.j], len(m)) for m in aligned.matches)
    tracked = None
    if refinement is not None:
        tracked = [
            _tracked(views[index], refinement.tracks, world_from_cam[k]) for k, index in enumerate(aligned.group)
        ]
    scene = DenseScene(
        canonical=[data.usable(index) for index in aligned.group],
        photos=[views[index].rgb for index in aligned.group],
        cameras=DenseCameras(aligned.cameras.K.cpu().numpy(), aligned.distortion, world_from_cam),
        core_depths=aligned.cameras.core_depths,
        neighbours=strongest_neighbours(len(aligned.group), shared, options.num_neighbours),
        group=aligned.group,
        matches=aligned.matches,
        tracked=tracked,
        subsample=subsample,
    )
    return agree(scene, options.num_rounds)


def _tracked(view: View, tracks: Tracks, world_from_cam: np.ndarray) -> TrackedPixels:
    """The pixels of a view that see points of tracks."""
    own = tracks.view_of == view.index
    xy = view.transform.to_network(tracks.xy[own])
    return tracked_pixels(tracks.points[tracks.point_of[own]], xy, world_from_cam, view.shape)


def _published_maps(
    data: PairwiseData, aligned: AlignedGroup, world_from_cam: np.ndarray, subsample: int
) -> DenseResult:
    """Maps of the group's views as published: every pixel follows its anchor."""
    K = aligned.cameras.K.cpu().numpy()
    canonical = [data.usable(index) for index in aligned.group]
    depths = [
        dense_depth(one, aligned.cameras.core_depths[k], float(K[k, 0, 0]), subsample)
        for k, one in enumerate(canonical)
    ]
    clean = confs = [one.conf for one in canonical]
    if len(canonical) > 1:
        device = depths[0].device
        position_of = {index: k for k, index in enumerate(aligned.group)}
        clean = clean_confidences(
            depths,
            confs,
            torch.from_numpy(K).float().to(device),
            torch.from_numpy(world_from_cam).float().to(device),
            None if len(canonical) <= _ALL_PAIRS_CLEANED else _neighbours(data.pairs, position_of),
            distortion=aligned.distortion.tolist(),
        )
    return DenseResult(tuple(depths), tuple(confs), tuple(clean))


def _known_maps(made: DenseResult) -> list[Maps]:
    """Maps of every view on the CPU; a depth that is not positive or not finite is nan, with confidence 0."""
    shapes = [(int(depth.shape[0]), int(depth.shape[1])) for depth in made.depths]
    result: list[Maps] = []
    for run in runs_of_size(shapes, _COPIED_AT_ONCE):  # few large copies take a fraction of the time of many small ones
        depth, conf, clean = (
            torch.cat([maps[k].reshape(-1) for k in run]) for maps in (made.depths, made.confs, made.clean)
        )
        known = depth.isfinite() & (depth > 0)
        columns = [
            _to_main_memory(torch.where(known, one, other))
            for one, other in ((depth, torch.nan), (conf, 0.0), (clean, 0.0))
        ]
        begin = 0
        for H, W in shapes[run.start : run.stop]:
            result.append(Maps(*(column[begin : begin + H * W].reshape(H, W) for column in columns)))
            begin += H * W
    return result


def _to_main_memory(values: torch.Tensor) -> np.ndarray:
    """The same there; numpy asks for large pages, which are mapped much faster than those torch gets."""
    copied = np.empty(values.shape, np.float32)
    torch.from_numpy(copied).copy_(values)
    return copied


def _refined_fields(refinement: Refinement, k: int) -> dict[str, Any]:
    """What the k-th view of the group says of its refinement."""
    if not refinement.refined[k]:
        return {}
    return {
        "refined": True,
        "distortion": float(refinement.distortion[k]),
        "num_track_observations": int(refinement.num_observations[k]),
        "track_error_px": float(refinement.errors_px[k]),
        "focal_std_px": float(refinement.focal_std_px[k]),
        "position_std": float(refinement.position_std[k]),
    }


def _support_fields(support: FeatureSupport, k: int) -> dict[str, Any]:
    """What local features say of the k-th view of the group."""
    return {
        "apart_error_px": float(support.apart_errors_px[k]),
        "num_confirmed": int(support.num_confirmed[k]),
        "num_explained": int(support.num_explained[k]),
    }


def _neighbours(pairs: Sequence[tuple[int, int]], position_of: Mapping[int, int]) -> list[list[int]]:
    """For every view of a group the views that it shares pairs with, by their position in the group."""
    found: list[set[int]] = [set() for _ in position_of]
    for i, j in pairs:
        if i in position_of and j in position_of:
            found[position_of[i]].add(position_of[j])
            found[position_of[j]].add(position_of[i])
    return [sorted(group) for group in found]


def _alone_maps(view: View, canonical: CanonicalView | None, subsample: int) -> tuple[DenseResult, np.ndarray]:
    """Depth, confidences and K of a view that is not registered: its own prediction, nan if it has none."""
    H, W = view.shape
    K = np.array([[max(H, W), 0, W / 2], [0, max(H, W), H / 2], [0, 0, 1]], dtype=np.float64)
    if canonical is None:
        nothing = torch.zeros(H, W)
        return DenseResult((nothing,), (nothing,), (nothing,)), K
    K[0, 0] = K[1, 1] = canonical.focal_px
    depth = dense_depth(canonical, canonical.core_depth, canonical.focal_px, subsample)
    return DenseResult((depth,), (canonical.conf,), (canonical.conf,)), K


def dense_depth(
    canonical: CanonicalView, core_depth: torch.Tensor, focal_px: float, subsample: int = 8
) -> torch.Tensor:
    """(H, W) float32 z-depth in scene units: the aligned anchors with the relief of the canonical view.

    core_depth  aligned depth of the anchors, (rows, columns) or flat, scene units
    focal_px    aligned focal length: the relief was estimated at `canonical.focal_px`, and a longer lens
                flattens it
    subsample   block size S of the alignment
    """
    relative = canonical.relative_depth
    shape = (int(relative.shape[0]), int(relative.shape[1]))
    grid = canonical.core_depth.shape
    core = core_depth.to(device=relative.device, dtype=relative.dtype).reshape(grid)
    at_centres = relative.index_select(0, block_centres(shape[0], subsample, relative.device))
    at_centres = at_centres.index_select(1, block_centres(shape[1], subsample, relative.device))
    offset = relative / spread_blocks(at_centres, shape, subsample)
    return spread_blocks(core, shape, subsample) * (1 + (offset - 1) * (canonical.focal_px / focal_px))


def clean_confidences(
    depths: Sequence[torch.Tensor],
    confs: Sequence[torch.Tensor],
    K: torch.Tensor,
    world_from_cam: torch.Tensor,
    neighbours: Sequence[Sequence[int]] | None = None,
    tolerance: float = 1e-3,
    distortion: Sequence[float] | None = None,
) -> list[torch.Tensor]:
    """Confidences in which points that float in front of a more confident surface of another view are 0.

    depths, confs   n maps (H, W) each, z-depth and confidence; sizes may differ between views
    K               (n, 3, 3) pixels
    world_from_cam  (n, 4, 4)
    neighbours      views that each view is compared with; default: all others. The work is one projection of
                    every pixel for every neighbour, so large sets should name the views that share pairs.
    tolerance       relative depth by which a point must lie in front of the surface
    distortion      (n) k1 of the lenses (`geometry.project`), None: no lens has any

    Views are cleaned in turn, and later views see the cleaned confidences of earlier ones (docs/method.md, Cleaning of
    confidences). Within a view the order of the comparisons cannot matter: a point only ever goes to zero, and the
    other views' confidences do not change meanwhile; so the neighbours are compared in one batch.

    A depth that is zero or not finite is neither tested nor does it test others. Inputs are not changed.
    """
    n = len(depths)
    device = depths[0].device
    sizes = torch.tensor([depth.shape for depth in depths], dtype=torch.float32, device=device)
    bounds = [0, *accumulate(depth.numel() for depth in depths)]
    starts = torch.tensor(bounds, device=device)
    surface = torch.cat([_known(depth).reshape(-1) for depth in depths])
    conf = torch.cat([conf.reshape(-1).float() for conf in confs])  # one buffer, cleaned in place

    K64, world_from_cam64 = K.to(device, torch.float64), world_from_cam.to(device, torch.float64)
    project = K64 @ invert(world_from_cam64)[:, :3]
    back_project = world_from_cam64.clone()
    back_project[:, :3, :3] @= invert(K64)

    lenses = _Lenses.of(distortion, K) if distortion is not None and any(distortion) else None
    for i in range(n):
        others = torch.tensor([j for j in (range(n) if neighbours is None else neighbours[i]) if j != i], device=device)
        if len(others) == 0:
            continue
        # h = depth * (A (x, y, 1)) + b: homogeneous pixel of the point in each other view
        h_from_i = (project[others] @ back_project[i]).float()
        own = slice(bounds[i], bounds[i + 1])
        depth_i, conf_i = surface[own].view(depths[i].shape), conf[own].view(depths[i].shape)
        bad = torch.zeros_like(depth_i, dtype=torch.bool)
        x, y = _pixels(depth_i.shape, K[i], 0.0 if distortion is None else distortion[i], device)
        theirs = None if lenses is None else lenses.select(others)
        rows = max(1, _CHUNK.get(device.type, _CHUNK["cpu"]) // (len(others) * depth_i.shape[1]))
        for top in range(0, len(depth_i), rows):
            part = slice(top, top + rows)
            bad[part] = _in_front(
                (x if len(x) == 1 else x[part], y[part]),
                depth_i[part],
                conf_i[part],
                h_from_i,
                theirs,
                surface,
                conf,
                starts[others],
                sizes[others],
                tolerance,
            ).any(0)
        conf_i.masked_fill_(bad & (conf_i > 0), 0.0)
    return [conf[bounds[i] : bounds[i + 1]].view(depths[i].shape) for i in range(n)]


def _known(depth: torch.Tensor) -> torch.Tensor:
    """Depth in float32 with zero for "unknown"."""
    depth = depth.float()
    return torch.where(depth.isfinite(), depth, 0.0)


class _Lenses(NamedTuple):
    """What bends the pixels of n views: k1, focal lengths and principal points in x and y, (n, 1, 1) float32 each."""

    k1: torch.Tensor
    focal_x: torch.Tensor
    focal_y: torch.Tensor
    centre_x: torch.Tensor
    centre_y: torch.Tensor

    @classmethod
    def of(cls, distortion: Sequence[float], K: torch.Tensor) -> _Lenses:
        k1 = torch.tensor(distortion, dtype=torch.float32, device=K.device)
        numbers = (k1, K[:, 0, 0], K[:, 1, 1], K[:, 0, 2], K[:, 1, 2])
        return cls(*(number.float()[:, None, None] for number in numbers))

    def select(self, views: torch.Tensor) -> _Lenses:
        return _Lenses(*(number[views] for number in self))

    def bend(self, u: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """Moves pixels (n, H, W) of cameras without distortion, in place, to where the lenses show them.

        Returns whether they show them at all: far off the axis of a lens of negative k1 they would come back inwards.
        """
        x, y = u - self.centre_x, v - self.centre_y
        share = self.k1 * ((x / self.focal_x) ** 2 + (y / self.focal_y) ** 2)
        u += x * share
        v += y * share
        return 1 + 3 * share > 0


def _pixels(
    shape: torch.Size, K: torch.Tensor, distortion: float, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """x and y of the pixels of a view where its camera would show them without distortion, float32 (H or 1, W or 1)."""
    H, W = shape
    if not distortion:
        x = torch.arange(W, device=device, dtype=torch.float32)
        y = torch.arange(H, device=device, dtype=torch.float32)
        return x[None], y[:, None]
    xy = torch.from_numpy(pixels_without_distortion((H, W), K.double().cpu().numpy(), distortion))
    return xy[..., 0].float().to(device), xy[..., 1].float().to(device)


def _in_front(
    xy: tuple[torch.Tensor, torch.Tensor],
    depth: torch.Tensor,
    conf: torch.Tensor,
    h_from_cam: torch.Tensor,
    lenses: _Lenses | None,
    surface: torch.Tensor,
    surface_conf: torch.Tensor,
    starts: torch.Tensor,
    sizes: torch.Tensor,
    tolerance: float,
) -> torch.Tensor:
    """(J, H, W) bool: the point of each pixel hides a more confident surface of view j.

    xy, depth, conf (H, W) are some rows of a view;  lenses  of the views j, None without distortion;
    h_from_cam (J, 3, 4) maps (depth * (x, y, 1), 1) to homogeneous pixels of view j, third entry its depth;
    `surface` and `surface_conf` are all maps end to end, `starts` and `sizes` (H, W) those of the views j.
    """
    x, y = xy
    u, v, z = (
        ((row[:, 0, None, None] * x + row[:, 1, None, None] * y) + row[:, 2, None, None])
        .mul_(depth)
        .add_(row[:, 3, None, None])
        for row in h_from_cam.unbind(1)
    )
    u, v = u.div_(z), v.div_(z)  # nan and inf fail the comparisons below
    shown = depth != 0 if lenses is None else (depth != 0) & lenses.bend(u, v)
    u, v = u.round_(), v.round_()  # half to even
    height, width = sizes[:, 0, None, None], sizes[:, 1, None, None]
    visible = shown & (z > 0) & (u >= 0) & (u < width) & (v >= 0) & (v < height)
    flat = torch.where(visible, v * width + u, 0.0).long() + starts[:, None, None]
    return visible & (z < (1 - tolerance) * surface[flat]) & (conf < surface_conf[flat])
