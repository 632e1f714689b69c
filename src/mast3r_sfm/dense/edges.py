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

_CONF_FLOOR = 0.9  # confidences of up to 1 count for a tenth
_MOST_CONF = 20.0


def sharpen_edges(log_depth: torch.Tensor, rgb: torch.Tensor, conf: torch.Tensor) -> torch.Tensor:
    """(H, W) log depths with sharp edges; rgb (H, W, 3) uint8, conf (H, W)."""
    depths = _neighbourhoods(log_depth[None])[:, 0]
    near_edge = (depths.amax(1) - depths.amin(1) > LEAST_RANGE).nonzero()[:, 0]
    if not len(near_edge):
        return log_depth
    depths = depths[near_edge]
    colours = _neighbourhoods(rgb.permute(2, 0, 1).float() / 255)[near_edge]
    centre = colours.shape[2] // 2
    colour_sq = (colours - colours[:, :, centre, None]).square().sum(1)
    offsets = torch.arange(-RADIUS, RADIUS + 1, device=log_depth.device)
    distance_sq = (offsets.square()[:, None] + offsets.square()).reshape(-1)
    weight = torch.exp(-colour_sq / (2 * COLOUR_SIGMA**2) - distance_sq / (2 * DISTANCE_SIGMA**2))
    trusted = torch.where(conf > 0, conf.clamp(1, _MOST_CONF) - _CONF_FLOOR, 0.0)
    weight = weight * _neighbourhoods(trusted[None])[near_edge, 0]
    depths, order = depths.sort(1)
    share = weight.gather(1, order).cumsum(1)
    median = (share < 0.5 * share[:, -1:]).sum(1, keepdim=True).clamp_max(depths.shape[1] - 1)
    result = log_depth.reshape(-1).clone()
    result[near_edge] = depths.gather(1, median)[:, 0]
    return result.view(log_depth.shape)


def _neighbourhoods(maps: torch.Tensor) -> torch.Tensor:
    """(H W, C, n) the n pixels around every pixel of maps (C, H, W); beyond the border those at it."""
    padded = F.pad(maps[None], (RADIUS,) * 4, mode="replicate")[0]
    side = 2 * RADIUS + 1
    return padded.unfold(1, side, 1).unfold(2, side, 1).permute(1, 2, 0, 3, 4).reshape(-1, len(maps), side * side)
