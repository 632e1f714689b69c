"""Matches that the geometry of their own prediction denies (not part of the published method).

A symmetric prediction holds two opinions on the place of every match (p in i, q in j): in the camera of i
the own map of i at p and the map of j at q, in the camera of j likewise. A right match has both in
agreement; descriptors that merely look alike (repetition, views from opposite sides) seldom do. Reading
the maps at the matches costs nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
import torch.nn.functional as F

from mast3r_sfm.matching.maps import xy_to_flat
from mast3r_sfm.options import VerificationLimits
from mast3r_sfm.types import Correspondences, PairPrediction

SURE_SHARE = 0.1
"""Share of the confirmed matches that must reach `VerificationLimits.min_conf`."""


def disagreement(predictions: Sequence[PairPrediction], matches: Sequence[Correspondences]) -> torch.Tensor:
    """Larger of the two relative distances of each match (inf where a point is at the camera).

    Of all pairs end to end: (sum of M,) float32. The pairs agree in the shapes of their views.
    """
    device = predictions[0].i_in_i.conf.device
    sizes = torch.tensor([len(found) for found in matches])
    pair = torch.arange(len(matches)).repeat_interleave(sizes).to(device, non_blocking=True)
    xy_i, xy_j = (torch.cat([getattr(found, name) for found in matches]) for name in ("xy_i", "xy_j"))

    def points(name: str, xy: torch.Tensor) -> torch.Tensor:
        maps = torch.stack([getattr(prediction, name).points for prediction in predictions])
        _, H, W, _ = maps.shape
        return maps.flatten(0, 2).index_select(0, pair * (H * W) + xy_to_flat(xy, W))

    return torch.maximum(
        _relative_distance(points("i_in_i", xy_i), points("j_in_i", xy_j)),
        _relative_distance(points("j_in_j", xy_j), points("i_in_j", xy_i)),
    )


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

    The pairs agree in the shapes of their views. Waits for the device twice, however many pairs there are.
    """
    if not matches:
        return []
    sizes = [len(found) for found in matches]
    keep = disagreement(predictions, matches) <= limits.max_distance
    conf = torch.cat([found.conf for found in matches])
    confident = keep if limits.min_conf is None else keep & (conf >= limits.min_conf)
    # sums within each pair are differences of running sums
    ends = torch.tensor([0, *accumulate(sizes)]).to(keep.device, non_blocking=True)
    running = F.pad(torch.stack([keep, confident]).cumsum(1), (1, 0))
    counts, sure = running[:, ends].diff(dim=1).tolist()
    chosen = keep.nonzero()[:, 0]
    fields = [torch.cat([getattr(found, name) for found in matches])[chosen] for name in ("xy_i", "xy_j")]
    fields.append(conf[chosen])
    parts = zip(*(field.split(counts) for field in fields), strict=True)
    return [
        (
            Correspondences(found.i, found.j, *part),
            count >= max(limits.min_matches, limits.min_share * size) and certain >= SURE_SHARE * count,
        )
        for found, part, count, certain, size in zip(matches, parts, counts, sure, sizes, strict=True)
    ]
