"""Depth edges moved onto those of the photo.

A network blurs the edge between two surfaces over some pixels, which then float between them. The depth of a pixel near
an edge becomes the weighted median of its neighbourhood (Ma and others, "Constant time weighted median filtering", ICCV
2013), in which pixels of similar colour and of high confidence count: one of the two surfaces, the one of its colour.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

RADIUS = 3
COLOUR_SIGMA = 0.08
DISTANCE_SIGMA = 3.0
LEAST_RANGE = 0.04
"""Only pixels in whose neighbourhood log depths differ by this much are touched."""

CONF_FLOOR = 0.9  # confidences of up to 1 count for a tenth
MOST_CONF = 20.0


def sharpen_edges(log_depth: torch.Tensor, rgb: torch.Tensor, conf: torch.Tensor) -> torch.Tensor:
    """(H, W) log depths with sharp edges; rgb (H, W, 3) uint8, conf (H, W)."""
    H, W = log_depth.shape
    padded = F.pad(log_depth[None, None], (RADIUS,) * 4, mode="replicate")
    side = 2 * RADIUS + 1
    spread = F.max_pool2d(padded, side, 1) + F.max_pool2d(-padded, side, 1)
    near_edge = (spread.reshape(-1) > LEAST_RANGE).nonzero()[:, 0]
    if not len(near_edge):
        return log_depth
    offsets = torch.arange(-RADIUS, RADIUS + 1, device=log_depth.device)
    rows = (near_edge[:, None] // W + offsets).clamp_(0, H - 1)
    columns = (near_edge[:, None] % W + offsets).clamp_(0, W - 1)
    around = (rows[:, :, None] * W + columns[:, None]).reshape(len(near_edge), -1)  # beyond the border those at it
    depths = log_depth.reshape(-1)[around]
    colours = rgb.reshape(-1, 3)[around].permute(0, 2, 1).float() / 255
    centre = colours.shape[2] // 2
    colour_sq = (colours - colours[:, :, centre, None]).square().sum(1)
    distance_sq = (offsets.square()[:, None] + offsets.square()).reshape(-1)
    weight = torch.exp(-colour_sq / (2 * COLOUR_SIGMA**2) - distance_sq / (2 * DISTANCE_SIGMA**2))
    trusted = torch.where(conf > 0, conf.clamp(1, MOST_CONF) - CONF_FLOOR, 0.0)
    weight = weight * trusted.reshape(-1)[around]
    depths, order = depths.sort(1)
    share = weight.gather(1, order).cumsum(1)
    median = (share < 0.5 * share[:, -1:]).sum(1, keepdim=True).clamp_max(depths.shape[1] - 1)
    result = log_depth.reshape(-1).clone()
    result[near_edge] = depths.gather(1, median)[:, 0]
    return result.view(log_depth.shape)
