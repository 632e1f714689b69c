"""Cameras that look at the cluster of a scene, and the sequences of views they make."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from .cameras import clamp_to_hull, look_at, pixel_rays
from .compose import clear_view, compose, scene_scale
from .draws import Draws
from .layout import Scenes
from .materials import faded
from .photo import PhotoEffects, develop, draw_effects
from .rendering import render_rays_culled, renderer_for
from .shading import OCTAVES

TILE = 64
"""Edge of the square tiles that a view is rendered in on a CPU, pixels: few objects are near the rays of one tile."""

RAYS_AT_ONCE = 1 << 17
"""Rays traced at once on other devices, against all objects: which of them are near would be a question to the host."""


@dataclass(frozen=True)
class RenderedScene:
    """n views of one synthetic scene with their exact geometry. OpenCV axes, pixel centres at integers, metres.

    rgb             (n, H, W, 3) uint8
    depth           (n, H, W) float32 z-depth; 0 where the ray leaves the scene (sky)
    K               (n, 3, 3) float64 intrinsics, pixels
    world_from_cam  (n, 4, 4) float64 camera-to-world; the world's y axis points down
    """

    rgb: torch.Tensor
    depth: torch.Tensor
    K: torch.Tensor
    world_from_cam: torch.Tensor

    @property
    def num_views(self) -> int:
        return int(self.rgb.shape[0])

    @property
    def shape(self) -> tuple[int, int]:
        """(H, W) of every view."""
        return int(self.depth.shape[1]), int(self.depth.shape[2])


def orbit_cameras(
    draws: Draws, scenes: Scenes, outdoor: torch.Tensor, azimuth: torch.Tensor, jitter: float = 1.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Camera centres (B, V, 3) and rotations (B, V, 3, 3) at azimuths (B, V) radians around the cluster."""
    V = azimuth.shape[1]
    scale = scene_scale(outdoor)[:, None]
    floor = scenes.half[:, 1:2]
    elevation = (draws.uniform(4, 34, 1) + jitter * draws.uniform(-4, 4, V)) * (math.pi / 180)
    radius = draws.uniform(2.0, 2.9, 1) * scale * torch.exp(jitter * draws.uniform(-0.08, 0.08, V))
    height = draws.uniform(0.25, 0.75, 1) * scale
    target = torch.stack(
        [
            0.15 * jitter * scale * draws.normal(V),
            floor - height + 0.05 * jitter * scale * draws.normal(V),
            0.15 * jitter * scale * draws.normal(V),
        ],
        -1,
    )
    outward = torch.stack([elevation.cos() * azimuth.cos(), -elevation.sin(), elevation.cos() * azimuth.sin()], -1)
    eye = clamp_to_hull(scenes, target + radius[..., None] * outward)
    return eye, look_at(eye, target, 0.04 * jitter * draws.normal(V).clamp(-2, 2))


def render_orbit(
    seed: int,
    num_views: int,
    size: tuple[int, int],
    degrees: float,
    device: torch.device | str = "cpu",
    *,
    outdoor: bool | None = None,
    fov_deg: float = 62.0,
    samples: int = 1,
    effects: float = 0.4,
    octaves: int = OCTAVES,
    items: Sequence[str] | None = None,
    contrast: float = 1.0,
    views: Sequence[int] | None = None,
) -> RenderedScene:
    """Renders a random scene from cameras on an arc around it; the same seed gives the same scene on every device.

    size      (W, H) in pixels, multiples of 8
    degrees   arc between the first and the last camera; 360 or more: a closed circle without a doubled view
    outdoor   True or False to ask for open ground or a room; None lets the seed decide
    fov_deg   field of view along the longer side, the same for all views
    samples   rays per pixel along each axis (supersampling); depth is always that of the pixel's centre
    effects   strength of exposure changes, blur and noise (0: none)
    octaves   detail of the textures
    items     names of the five templates that stand there (see `templates`); None lets the seed decide
    contrast  of the textures: less than 1 for weakly textured surfaces
    views     render only these of the views (they look the same as in the whole orbit); None: all
    """
    draws = Draws(seed, 1)
    is_outdoor = draws.chance(0.3)
    if outdoor is not None:
        is_outdoor = torch.full_like(is_outdoor, outdoor)
    scenes = compose(draws, is_outdoor, items)
    if contrast != 1:
        scenes = scenes._replace(materials=faded(scenes.materials, contrast))
    closed = degrees >= 360
    steps = num_views if closed else max(num_views - 1, 1)
    arc = math.radians(360.0 if closed else degrees)
    azimuth = draws.uniform(0, 2 * math.pi, 1) + arc / steps * torch.arange(num_views)
    eye, rotation = orbit_cameras(draws, scenes, is_outdoor, azimuth)
    focal = 0.5 * max(size) / math.tan(math.radians(fov_deg) / 2)
    return render_views(
        clear_view(scenes, eye), eye, rotation, focal, draw_effects(draws, num_views, effects), size, device,
        samples=samples, octaves=octaves, views=views,
    )  # fmt: skip


def render_views(
    scenes: Scenes,
    eye: torch.Tensor,
    rotation: torch.Tensor,
    focal: float,
    photo: PhotoEffects,
    size: tuple[int, int],
    device: torch.device | str,
    *,
    unit: float = 1.0,
    samples: int = 1,
    octaves: int = OCTAVES,
    views: Sequence[int] | None = None,
) -> RenderedScene:
    """Renders the views of one scene from cameras `eye` (1, n, 3), `rotation` (1, n, 3, 3) of `focal` pixels.

    unit  metres that the scene's unit of length stands for; the other arguments are those of `render_orbit`
    """
    W, H = size
    if views is not None:
        eye, rotation = eye[:, list(views)], rotation[:, list(views)]
        photo = PhotoEffects(*(tensor[:, list(views)] for tensor in photo))
    num_views = eye.shape[1]
    rgb, depth = _render_views(
        scenes.to(device), eye.to(device), rotation.to(device), focal, (H, W), samples, octaves, photo.to(device)
    )
    pose = torch.eye(4, dtype=torch.float64).repeat(num_views, 1, 1)
    pose[:, :3, :3], pose[:, :3, 3] = rotation[0].double(), eye[0].double() * unit
    K = torch.tensor([[focal, 0, (W - 1) / 2], [0, focal, (H - 1) / 2], [0, 0, 1]], dtype=torch.float64)
    return RenderedScene(rgb, depth * unit, K.repeat(num_views, 1, 1).to(device), pose.to(device))


def _render_views(
    scenes: Scenes,
    eye: torch.Tensor,
    rotation: torch.Tensor,
    focal: float,
    shape: tuple[int, int],
    samples: int,
    octaves: int,
    photo: PhotoEffects,
) -> tuple[torch.Tensor, torch.Tensor]:
    """rgb (n, H, W, 3) uint8 and depth (n, H, W) of the views of one scene, a tile at a time."""
    H, W = shape
    rays = pixel_rays(torch.tensor(focal, device=eye.device), shape).reshape(H, W, 3)
    steps = [((k + 0.5) / samples - 0.5) / focal for k in range(samples)]
    offsets = [torch.tensor([dx, dy, 0.0], device=eye.device) for dy in steps for dx in steps]
    tiles = _tiles(shape, eye.device)
    images, depths = [], []
    for view in range(eye.shape[1]):
        colour, depth = torch.zeros_like(rays), torch.zeros_like(rays[..., 0])
        for tile in tiles:
            part = rays[tile]
            for offset in offsets:
                c, t = _trace(scenes, eye[0, view], rotation[0, view], part + offset, 1 / focal / samples, octaves)
                colour[tile] += c.clamp(max=1.2) / len(offsets)
            if samples != 1:
                t = _trace(scenes, eye[0, view], rotation[0, view], part, 1 / focal, 1)[1]
            depth[tile] = t
        one = PhotoEffects(*(tensor[:, view : view + 1] for tensor in photo))
        image = develop(colour.reshape(1, 1, H * W, 3), one, shape)[0, 0]
        images.append((image * 255).round().to(torch.uint8).permute(1, 2, 0))
        depths.append(depth)
    return torch.stack(images), torch.stack(depths)


def _tiles(shape: tuple[int, int], device: torch.device) -> list[tuple[slice, slice]]:
    H, W = shape
    rows, columns = (TILE, TILE) if renderer_for(device) is render_rays_culled else (max(1, RAYS_AT_ONCE // W), W)
    return [
        (slice(top, top + rows), slice(left, left + columns))
        for top in range(0, H, rows)
        for left in range(0, W, columns)
    ]


def _trace(
    scenes: Scenes, eye: torch.Tensor, rotation: torch.Tensor, rays: torch.Tensor, pixel_angle: float, octaves: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Colours (h, w, 3) and depths (h, w) of camera-frame rays (h, w, 3) of one camera."""
    d = rays.reshape(-1, 3) @ rotation.T
    o, angle = eye.expand_as(d)[None], torch.full_like(d[:, 0], pixel_angle)[None]
    colour, t, _ = renderer_for(d.device)(scenes, o, d[None], angle, octaves)
    return colour[0].reshape(rays.shape), t[0].reshape(rays.shape[:-1])
