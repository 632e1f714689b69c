"""The dense stage: from predicted depth, matches and tracks to depth maps that agree, and their confidence."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from mast3r_sfm.dense.agreement import Surfaces, opinions
from mast3r_sfm.dense.edges import sharpen_edges
from mast3r_sfm.dense.field import Stiffness, solve_field
from mast3r_sfm.dense.observations import Observed
from mast3r_sfm.dense.trust import judge
from mast3r_sfm.dense.views import DenseView

_FIRST_SPREADS = (0.1, 0.05, 0.03)  # observations further from the field count less; round by round
_SPREAD = 0.03
_FIRST_ITERATIONS, _ITERATIONS = 40, 20
_PIXELS_AT_ONCE = 1 << 22  # that are solved for together


@dataclass(frozen=True)
class DenseResult:
    """Maps (H, W) float32 of every view: z-depth in scene units, confidence, and confidence after cleaning."""

    depths: tuple[torch.Tensor, ...]
    confs: tuple[torch.Tensor, ...]
    clean: tuple[torch.Tensor, ...]


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
    for spread in _FIRST_SPREADS:
        for batch in batches:
            _improve(fields, views, batch, [observed], [spread], _FIRST_ITERATIONS)
    surfaces = Surfaces.of(views, _log_depths(views, fields))
    for _ in range(num_rounds):
        surfaces = surfaces.moved(_log_depths(views, fields))
        for batch in batches:
            heard = {i: opinions(views, i, surfaces) for i in batch}
            _improve(fields, views, batch, [observed, heard], [_SPREAD, math.inf], _ITERATIONS)
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
