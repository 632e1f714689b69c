"""From rays to colours, depths and surfaces. The renderer is chosen here: plain torch or the kernel for CUDA GPUs."""

from __future__ import annotations

from collections.abc import Callable

import torch

from mast3r_sfm.device import has_triton

from .layout import Scenes
from .raycast import MISS, cast, cast_to_ground, shortlist
from .shading import OCTAVES, shade

Renderer = Callable[..., tuple[torch.Tensor, torch.Tensor, torch.Tensor]]


def render_rays(
    scenes: Scenes, o: torch.Tensor, d: torch.Tensor, pixel_angle: torch.Tensor, octaves: int = OCTAVES
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Casts and shades rays.

    o, d         (B, P, 3) float32 origins and directions
    pixel_angle  (B, P) width of a pixel at unit ray parameter, metres: finer texture is faded out
    octaves      detail of the textures
    Returns linear colours (B, P, 3), ray parameters t (B, P) (0 for the sky) and surface ids (B, P) int64.
    """
    t, surface = cast(scenes, o, d, cast_to_ground(scenes, o, d))
    colour = shade(scenes, o, d, t, surface, pixel_angle, octaves=octaves)
    return colour, torch.where(t < MISS, t, 0.0), surface


def render_rays_culled(
    scenes: Scenes,
    o: torch.Tensor,
    d: torch.Tensor,
    pixel_angle: torch.Tensor,
    octaves: int = OCTAVES,
    chunk: int = 4096,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """`render_rays` by short runs of rays of one scene, each with the objects near it: fast on a CPU."""
    rows = []
    for b in range(o.shape[0]):
        one = scenes.rows(b, b + 1)
        outdoor = bool(one.outdoor.any())
        runs = []
        for start in range(0, o.shape[1], chunk):
            part = slice(b, b + 1), slice(start, start + chunk)
            ray_o, ray_d = o[part], d[part]
            ground = cast_to_ground(one, ray_o, ray_d) if outdoor else torch.full_like(ray_o[..., 0], MISS)
            t, surface = cast(one, ray_o, ray_d, ground, shortlist(one, ray_o, ray_d))
            colour = shade(one, ray_o, ray_d, t, surface, pixel_angle[part], True, octaves)
            runs.append((colour, torch.where(t < MISS, t, 0.0), surface))
        rows.append([torch.cat(column, 1) for column in zip(*runs, strict=True)])
    colour, t, surface = (torch.cat(column) for column in zip(*rows, strict=True))
    return colour, t, surface


def renderer_for(device: torch.device) -> Renderer:
    """The fastest of the functions with the arguments and results of `render_rays`; they agree up to rounding."""
    if device.type == "cpu":
        return render_rays_culled
    if device.type == "cuda" and has_triton():
        from .shading_triton import render_rays_fused

        return render_rays_fused
    return render_rays
