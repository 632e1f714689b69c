"""Matches that the geometry of their own prediction denies (not part of the published method).

A symmetric prediction holds two opinions on the place of every match (p in i, q in j): in the camera of i
the own map of i at p and the map of j at q, in the camera of j likewise. A right match has both in
agreement; descriptors that merely look alike (repetition, views from opposite sides) seldom do. Reading
the maps at the matches costs nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from mast3r_sfm.matching import xy_to_flat
from mast3r_sfm.types import Correspondences, PairPrediction, ViewPrediction


@dataclass(frozen=True)
class VerificationLimits:
    """When a match, and when a whole pair, is believed.

    max_distance  largest distance of the two opinions, relative to the distance of the point from the camera
    min_share     smallest share of a pair's matches that must survive
    min_matches   smallest number that must survive
    """

    max_distance: float = 0.10
    min_share: float = 0.20
    min_matches: int = 16


def disagreement(prediction: PairPrediction, matches: Correspondences) -> torch.Tensor:
    """(M,) float32: larger of the two relative distances of each match (inf where a point is at the camera)."""
    p = xy_to_flat(matches.xy_i, prediction.i_in_i.conf.shape[1])
    q = xy_to_flat(matches.xy_j, prediction.j_in_j.conf.shape[1])

    def at(view: ViewPrediction, index: torch.Tensor) -> torch.Tensor:
        return view.points.flatten(0, 1).index_select(0, index)

    def relative(own: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        ratio = (own - other).norm(dim=-1) / own.norm(dim=-1)
        return ratio.nan_to_num(nan=torch.inf, posinf=torch.inf)

    in_i = relative(at(prediction.i_in_i, p), at(prediction.j_in_i, q))
    in_j = relative(at(prediction.j_in_j, q), at(prediction.i_in_j, p))
    return torch.maximum(in_i, in_j)


def verify_matches(
    prediction: PairPrediction, matches: Correspondences, limits: VerificationLimits
) -> tuple[Correspondences, bool]:
    """The matches that both opinions confirm, and whether enough survived to believe the pair at all."""
    kept = matches.select(disagreement(prediction, matches) <= limits.max_distance)
    return kept, len(kept) >= max(limits.min_matches, limits.min_share * len(matches))
