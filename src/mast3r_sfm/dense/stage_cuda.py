"""The dense stage on CUDA devices: the steps of `stage`, each by fused kernels for many views at once.

Nothing is asked of the device before the maps are done, and no more maps of all views are alive than a step needs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch

from mast3r_sfm.dense.agreement_triton import write_opinions
from mast3r_sfm.dense.edges_triton import sharpen_packed
from mast3r_sfm.dense.field_triton import FieldSolver
from mast3r_sfm.dense.median_triton import median
from mast3r_sfm.dense.observations_triton import Observations, observe_packed
from mast3r_sfm.dense.packed import PackedViews, runs_of_size
from mast3r_sfm.dense.scene import DenseResult, DenseScene
from mast3r_sfm.dense.stage import FIRST_ITERATIONS, FIRST_SPREADS, ITERATIONS, SPREAD
from mast3r_sfm.dense.trust_triton import judge_packed

_PIXELS_AT_ONCE = 1 << 20  # that are solved for together: what an iteration reads then stays in the GPU's cache
_PHOTO_PIXELS_AT_ONCE = 1 << 23


def agree_fused(scene: DenseScene, num_rounds: int) -> DenseResult:
    """`stage.agree` on a CUDA device with Triton."""
    views = PackedViews.of(scene.canonical, scene.cameras, scene.neighbours, scene.subsample)
    field = _field(scene, views, num_rounds)
    sharp = _sharpened(scene, views, field.add_(views.relief))
    del field
    conf, clean = judge_packed(views, sharp)
    return DenseResult(views.maps_of(sharp.exp_()), views.maps_of(conf), views.maps_of(clean))


def _field(scene: DenseScene, views: PackedViews, num_rounds: int) -> torch.Tensor:
    """(N,) packed log factors of the predicted depths of all views."""
    observed = observe_packed(views, scene.cameras, scene.group, scene.matches, scene.tracked)
    field = views.spread(scene.usual_factors())
    improve(views, observed, field, num_rounds)
    return field


def improve(views: PackedViews, observed: Observations, field: torch.Tensor, num_rounds: int) -> None:
    """Makes the log factors `field` (N,), packed, what matches and tracks observe and neighbours agree on."""
    batches = _Batches(views, observed, field)
    for spread in FIRST_SPREADS:
        for solver in batches:
            solver.solve(spread, FIRST_ITERATIONS, heard=False)
    usual = usual_confidence(views)
    for _ in range(num_rounds):
        log_depth = views.relief + field  # all views hear the depth of the round before
        for solver in batches:
            write_opinions(views, log_depth, usual, solver.members, solver.heard, solver.heard_weight)
            solver.solve(SPREAD, ITERATIONS, heard=True)


def usual_confidence(views: PackedViews) -> torch.Tensor:
    """(1,) median of all that is not 0, as in `Surfaces.of`."""
    usual = median(torch.where(views.conf > 0, views.conf, -1.0))
    return torch.where(usual.isnan(), 1.0, usual).clamp_min(1e-3)


class _Batches:
    """Views of one size that are solved for together: solvers, to each of which several of them are given in turn."""

    def __init__(self, views: PackedViews, observed: Observations, field: torch.Tensor) -> None:
        by_shape: dict[tuple[int, int], list[int]] = {}
        for k, shape in enumerate(views.shapes):
            by_shape.setdefault(shape, []).append(k)
        self._parts: list[tuple[FieldSolver, torch.Tensor]] = []
        for (H, W), members in by_shape.items():
            calls = math.ceil(len(members) / max(1, _PIXELS_AT_ONCE // (H * W)))
            slots = math.ceil(len(members) / calls)
            padded = torch.tensor(members + [-1] * (calls * slots - len(members)), dtype=torch.int32)
            solver = FieldSolver(views, field, observed.factor, observed.weight, (H, W), slots)
            self._parts += [(solver, one) for one in padded.to(field.device).split(slots)]

    def __iter__(self) -> Iterator[FieldSolver]:
        for solver, members in self._parts:
            solver.choose(members)
            yield solver


def _sharpened(scene: DenseScene, views: PackedViews, log_depth: torch.Tensor) -> torch.Tensor:
    """(N,) packed log depths with their edges moved onto those of the photos, which come to the device bit by bit."""
    sharp = torch.empty_like(log_depth)
    most = min(_PHOTO_PIXELS_AT_ONCE + views.most_pixels, views.bounds[-1])
    rgb = torch.empty(most, 3, dtype=torch.uint8, device=log_depth.device)
    for run in runs_of_size(views.shapes, _PHOTO_PIXELS_AT_ONCE):
        base = views.bounds[run.start]
        for k in run:
            begin, end = views.bounds[k] - base, views.bounds[k + 1] - base
            rgb[begin:end].copy_(torch.from_numpy(scene.photos[k]).reshape(-1, 3))
        sharpen_packed(views, run, log_depth, rgb, sharp)
    return sharp
