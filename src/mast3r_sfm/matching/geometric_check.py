"""Matches that the geometry of their own prediction denies (not part of the published method).

A symmetric prediction holds two opinions on the place of every match (p in i, q in j): in the camera of i
the own map of i at p and the map of j at q, in the camera of j likewise. A right match has both in
agreement; descriptors that merely look alike (repetition, views from opposite sides) seldom do. Reading
the maps at the matches costs nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from mast3r_sfm.matching.maps import xy_to_flat
from mast3r_sfm.options import VerificationLimits
from mast3r_sfm.types import Correspondences, PairPrediction, ViewPrediction

SURE_SHARE = 0.1
"""Share of the confirmed matches that must reach `VerificationLimits.min_conf`."""


def disagreement(predictions: Sequence[PairPrediction], matches: Sequence[Correspondences]) -> torch.Tensor:
    """Larger of the two relative distances of each match (inf where a point is at the camera).

    Of all pairs end to end: (sum of M,) float32. Only the reading of the maps goes pair by pair.
    """
    read: list[list[torch.Tensor]] = [[], [], [], []]
    for prediction, found in zip(predictions, matches, strict=True):
        p = xy_to_flat(found.xy_i, prediction.i_in_i.conf.shape[1])
        q = xy_to_flat(found.xy_j, prediction.j_in_j.conf.shape[1])
        maps = (prediction.i_in_i, p), (prediction.j_in_i, q), (prediction.j_in_j, q), (prediction.i_in_j, p)
        for column, (view, index) in zip(read, maps, strict=True):
            column.append(_points_at(view, index))
    own_i, other_i, own_j, other_j = (torch.cat(column) for column in read)
    return torch.maximum(_relative_distance(own_i, other_i), _relative_distance(own_j, other_j))


def _points_at(view: ViewPrediction, index: torch.Tensor) -> torch.Tensor:
    return view.points.flatten(0, 1).index_select(0, index)


def _relative_distance(own: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    ratio = (own - other).norm(dim=-1) / own.norm(dim=-1)
    return ratio.nan_to_num(nan=torch.inf, posinf=torch.inf)


def verify_matches(
    prediction: PairPrediction, matches: Correspondences, limits: VerificationLimits
) -> tuple[Correspondences, bool]:
    """`verify_batch` of one pair."""
    return verify_batch([prediction], [matches], limits)[0]


def verify_batch(
    predictions: Sequence[PairPrediction], matches: Sequence[Correspondences], limits: VerificationLimits
) -> list[tuple[Correspondences, bool]]:
    """Of every pair the matches that both opinions confirm, and whether enough survived to believe the pair at all.

    Waits for the device two or three times, however many pairs there are.
    """
    if not matches:
        return []
    sizes = [len(found) for found in matches]
    keep = disagreement(predictions, matches) <= limits.max_distance
    counts = torch.stack([part.sum() for part in keep.split(sizes)]).tolist()
    if limits.min_conf is None:
        sure = counts
    else:
        confident = keep & (torch.cat([found.conf for found in matches]) >= limits.min_conf)
        sure = torch.stack([part.sum() for part in confident.split(sizes)]).tolist()
    chosen = keep.nonzero()[:, 0]
    fields = (torch.cat([getattr(found, name) for found in matches])[chosen] for name in ("xy_i", "xy_j", "conf"))
    parts = zip(*(field.split(counts) for field in fields), strict=True)
    return [
        (
            Correspondences(found.i, found.j, *part),
            count >= max(limits.min_matches, limits.min_share * size) and certain >= SURE_SHARE * count,
        )
        for found, part, count, certain, size in zip(matches, parts, counts, sure, sizes, strict=True)
    ]
