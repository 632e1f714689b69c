"""What the network is asked to learn of a pair: points with confidence, descriptors with confidence.

Regression: the confidence-weighted loss of DUSt3R (Wang et al. 2024, section 3.3) on pointmaps divided by their
mean distance, plus the logarithm of the scale ratio, so that the raw output is metric. Matching: the two-way
InfoNCE of MASt3R (Leroy et al. 2024, section 3.2), each term weighted by a learned descriptor confidence.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch

from mast3r_sfm.model.network import HeadOutput
from synthetic import PairBatch, correspond
from synthetic.layout import UNKNOWN

Shapes = tuple[tuple[int, int], tuple[int, int]]


@dataclass(frozen=True)
class LossOptions:
    """Weights and constants of the losses.

    conf_alpha         reward of a high point confidence
    scale_weight       of |log(predicted scale / true scale)|
    far_loss           what a far point counts for its confidence (beyond `PairBatch.far`, or the sky: it has no exact
                       target and must only be far); unusable_loss: a view that cannot be placed,
                       and pixels of an unknown surface (see `PairBatch.surface`)
    min_covisibility   share of view 2 that view 1 must see before view 2's points are asked for
    matching_weight, temperature, desc_conf_alpha   of the descriptors
    unmatched_loss     InfoNCE that a pixel without a counterpart counts for its descriptor confidence
    num_samples        pixels of view 1 that are matched; a quarter as many of view 2 look for missing counterparts
    """

    conf_alpha: float = 0.2
    scale_weight: float = 0.3
    far_loss: float = 0.5
    far_weight: float = 0.1
    unusable_loss: float = 1.0
    min_covisibility: float = 0.1
    matching_weight: float = 0.12
    temperature: float = 0.05
    desc_conf_alpha: float = 10.0
    unmatched_loss: float = 20.0
    num_samples: int = 1024


class Losses(NamedTuple):
    """Scalars: what is minimised, its parts, and two figures that tell how training goes.

    error1, error2  mean relative distance of own and other view's points from the truth, after scale
    """

    total: torch.Tensor
    regression: torch.Tensor
    matching: torch.Tensor
    error1: torch.Tensor
    error2: torch.Tensor


class Samples(NamedTuple):
    """Flat pixel indices, int64: of view 1 (B, M), half of them in 8 x 8 blocks as near negatives, and of view 2
    (B, M / 4)."""

    first: torch.Tensor
    second: torch.Tensor


def draw_samples(batch: int, shapes: Shapes, options: LossOptions, device: torch.device) -> Samples:
    """Random pixels to match."""
    M = options.num_samples
    (H, W), P = shapes[0], shapes[0][0] * shapes[0][1]
    uniform = torch.randint(P, (batch, M // 2), device=device)
    blocks = M // 2 // 64
    top = torch.randint(H - 7, (batch, blocks, 1), device=device)
    left = torch.randint(W - 7, (batch, blocks, 1), device=device)
    inside = torch.arange(64, device=device)
    near = ((top + inside // 8) * W + left + inside % 8).flatten(1)
    return Samples(torch.cat([uniform, near], 1), torch.randint(P, (batch, M // 4), device=device))


def _mean(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return (values * mask).sum() / mask.sum().clamp(min=1)


def pair_losses(
    view1: HeadOutput, view2: HeadOutput, pairs: PairBatch, samples: Samples, shapes: Shapes, options: LossOptions
) -> Losses:
    """Losses of the network's two outputs against the truth."""
    to_second, seen_in_second = correspond(pairs, 0, samples.first, shapes)
    _, seen_in_first = correspond(pairs, 1, samples.second, shapes)
    usable2 = seen_in_first.float().mean(1) > options.min_covisibility
    regression, scale, error1, error2 = _regression(view1, view2, pairs, usable2, options)
    matching = _matching(view1, view2, samples, to_second, seen_in_second, seen_in_first, options)
    total = regression + options.scale_weight * scale + options.matching_weight * matching
    return Losses(total, regression, matching, error1, error2)


def _regression(
    view1: HeadOutput, view2: HeadOutput, pairs: PairBatch, usable2: torch.Tensor, options: LossOptions
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    predicted = torch.stack([view1.points.flatten(1, 2), view2.points.flatten(1, 2)], 1)
    conf = torch.stack([view1.conf.flatten(1), view2.conf.flatten(1)], 1)
    truth = pairs.points
    distance = (truth * truth).sum(-1).sqrt()
    predicted_distance = ((predicted * predicted).sum(-1) + 1e-12).sqrt()
    usable = torch.stack([torch.ones_like(usable2), usable2], 1)[..., None]
    near = distance < pairs.far[:, None, None]
    known = usable & (pairs.surface != UNKNOWN)
    exact = ((pairs.depth > 0) & near & known).float()
    far = (((pairs.depth <= 0) | ~near) & known).float()
    count = exact.sum((1, 2)).clamp(min=1)
    true_scale = ((distance * exact).sum((1, 2)) / count).clamp(min=1e-3)
    scale = ((predicted_distance * exact).sum((1, 2)) / count).clamp(min=1e-3)

    off = predicted / scale[:, None, None, None] - truth / true_scale[:, None, None, None]
    error = ((off * off).sum(-1) + 1e-12).sqrt()
    farthest = (distance * exact).amax((1, 2), keepdim=True) * (scale / true_scale).detach()[:, None, None]
    too_near = (1 - predicted_distance / (1.2 * farthest).clamp(min=1e-3)).clamp(min=0)
    wanted = error * exact + options.far_loss * far + options.unusable_loss * (~known).float()
    weighted = (conf * wanted - options.conf_alpha * conf.log()).mean()
    regression = weighted + options.far_weight * (too_near * far).mean()
    has_truth = (exact.sum((1, 2)) > 0).float()
    scale_error = _mean((scale / true_scale).log().abs(), has_truth)
    with torch.no_grad():
        relative = error * true_scale[:, None, None] / distance.clamp(min=1e-3)
        error1, error2 = (_mean(relative[:, v], exact[:, v]) for v in range(2))
    return regression, scale_error, error1, error2


def _matching(
    view1: HeadOutput,
    view2: HeadOutput,
    samples: Samples,
    to_second: torch.Tensor,
    seen_in_second: torch.Tensor,
    seen_in_first: torch.Tensor,
    options: LossOptions,
) -> torch.Tensor:
    assert view1.desc is not None and view2.desc is not None
    assert view1.desc_conf is not None and view2.desc_conf is not None
    batch = torch.arange(to_second.shape[0], device=to_second.device)[:, None]
    desc1 = view1.desc.flatten(1, 2)[batch, samples.first]
    desc2 = view2.desc.flatten(1, 2)[batch, to_second]
    conf1 = view1.desc_conf.flatten(1)[batch, samples.first]
    conf2 = view2.desc_conf.flatten(1)[batch, to_second]
    alone2 = view2.desc_conf.flatten(1)[batch, samples.second]
    M = desc1.shape[1]
    similarity = (desc1 @ desc2.transpose(1, 2)).float() / options.temperature
    own = torch.eye(M, dtype=torch.bool, device=desc1.device)
    positive = (similarity * own).sum(-1)

    # a candidate that is no true match, or is the same pixel as the positive, is no negative
    def entropy(rows: torch.Tensor, pixel: torch.Tensor) -> torch.Tensor:
        same = pixel[:, :, None] == pixel[:, None, :]
        ignored = (~seen_in_second[:, None, :] | same) & ~own
        return torch.logsumexp(rows.masked_fill(ignored, -1e4), -1) - positive

    first = entropy(similarity, to_second)
    second = entropy(similarity.transpose(1, 2), samples.first)
    alpha, seen = options.desc_conf_alpha, seen_in_second.float()
    matched = conf1 * first - alpha * conf1.log() + conf2 * second - alpha * conf2.log()
    # pixels without a counterpart: nothing to learn but that their confidence must be low
    lost1 = options.unmatched_loss * conf1 - alpha * conf1.log()
    lost2 = options.unmatched_loss * alone2 - alpha * alone2.log()
    unseen = torch.cat([(1 - seen), (~seen_in_first).float()], 1)
    return 0.5 * _mean(matched, seen) + _mean(torch.cat([lost1, lost2], 1), unseen) * 0.5
