"""The dense stage: from predicted depth, matches and tracks to depth maps that agree, and their confidence."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import torch

from mast3r_sfm.dense.agreement import Surfaces, opinions
from mast3r_sfm.dense.edges import sharpen_edges
from mast3r_sfm.dense.field import Stiffness, solve_field
from mast3r_sfm.dense.observations import Observed, observe, sightings_of_matches
from mast3r_sfm.dense.scene import DenseResult, DenseScene
from mast3r_sfm.dense.trust import judge
from mast3r_sfm.dense.views import DenseView
from mast3r_sfm.device import current, has_triton

FIRST_SPREADS = (0.1, 0.05, 0.03)  # observations further from the field count less; round by round
SPREAD = 0.03
FIRST_ITERATIONS, ITERATIONS = 40, 20
_PIXELS_AT_ONCE = 1 << 22  # that are solved for together


def agree(scene: DenseScene, num_rounds: int = 2) -> DenseResult:
    """Depth, confidence and cleaned confidence of all views; on a CUDA device with Triton by fused kernels.

    num_rounds  times that every view hears what its neighbours say of its depth
    """
    if scene.device.type == "cuda" and has_triton():
        from mast3r_sfm.dense.stage_cuda import agree_fused

        with current(scene.device):
            return agree_fused(scene, num_rounds)
    cameras = scene.cameras
    views = [
        DenseView.of(
            one, photo, cameras.K[k], float(cameras.distortion[k]), cameras.world_from_cam[k], scene.neighbours[k],
            scene.subsample,
        )
        for k, (one, photo) in enumerate(zip(scene.canonical, scene.photos, strict=True))
    ]  # fmt: skip
    sightings = sightings_of_matches(views, scene.group, scene.matches)
    observed = [
        observe(views, k, seen, None if scene.tracked is None else scene.tracked[k].to(scene.device))
        for k, seen in enumerate(sightings)
    ]
    return agreed_depth(views, observed, scene.usual_factors().tolist(), num_rounds)


def agreed_depth(
    views: Sequence[DenseView], observed: Sequence[Observed], usual: Sequence[float], num_rounds: int = 2
) -> DenseResult:
    """Depth, confidence and cleaned confidence of all views.

    observed  what matches and tracks say of each view
    usual     log factor of each view's predicted depth where nothing is observed
    num_rounds  times that every view hears what its neighbours say of its depth
    """
    fields = [torch.full_like(view.relief, start) for view, start in zip(views, usual, strict=True)]
    batches = list(_batches(views))
    for spread in FIRST_SPREADS:
        for batch in batches:
            _improve(fields, views, batch, [observed], [spread], FIRST_ITERATIONS)
    surfaces = Surfaces.of(views, _log_depths(views, fields))
    for _ in range(num_rounds):
        surfaces = surfaces.moved(_log_depths(views, fields))
        for batch in batches:
            heard = {i: opinions(views, i, surfaces) for i in batch}
            _improve(fields, views, batch, [observed, heard], [SPREAD, math.inf], ITERATIONS)
    log_depths = [
        sharpen_edges(log_depth, view.rgb, view.conf)
        for view, log_depth in zip(views, _log_depths(views, fields), strict=True)
    ]
    trust = judge(views, surfaces.moved(log_depths))
    return DenseResult(tuple(one.exp() for one in log_depths), trust.conf, trust.clean)


def _log_depths(views: Sequence[DenseView], fields: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    return [view.relief + field for view, field in zip(views, fields, strict=True)]


def _batches(views: Sequence[DenseView]) -> Iterator[list[int]]:
    """Views of one size, as many as fit into one solution."""
    by_shape: dict[tuple[int, int], list[int]] = {}
    for i, view in enumerate(views):
        by_shape.setdefault(view.shape, []).append(i)
    for (H, W), members in by_shape.items():
        step = max(1, _PIXELS_AT_ONCE // (H * W))
        yield from (members[k : k + step] for k in range(0, len(members), step))


def _improve(
    fields: list[torch.Tensor],
    views: Sequence[DenseView],
    batch: Sequence[int],
    sources: Sequence[Sequence[Observed] | Mapping[int, Observed]],
    spreads: Sequence[float],
    iterations: int,
) -> None:
    """Solves the fields (H, W) of the views of a batch anew, in their place.

    sources  of log depths, each by view
    spreads  of each source: what lies further from the field counts less
    """
    start = torch.stack([fields[i] for i in batch])
    relief = torch.stack([views[i].relief for i in batch])
    total, pull = torch.zeros_like(start), torch.zeros_like(start)
    for source, spread in zip(sources, spreads, strict=True):
        factor = torch.stack([source[i].log_depth for i in batch]) - relief
        weight = torch.stack([source[i].weight for i in batch]) / (1 + ((factor - start) / spread) ** 2)
        total, pull = total + weight, pull + weight * factor
    solved = solve_field(Stiffness.of(relief), total, pull / total.clamp_min(1e-6), start, iterations)
    for i, field in zip(batch, solved.unbind(0), strict=True):
        fields[i] = field
