"""What colour a hit has: texture, light, shadow, ambient occlusion, gloss and sky."""

from __future__ import annotations

import torch

from .layout import FACE_X0, NUM_OBJECTS, NUM_SURFACES, SKY, LightColumns, MaterialColumns, ObjectColumns, Scenes
from .materials import BRICKS, CHECKER, DOTS, MIRROR, NOISE, PATCHES, PICTURE, PLANKS, STRIPES, WINDOWS
from .noise import hash3, hash_unit, value_noise
from .pictures import NUM_PICTURES, look_up, picture_bank
from .raycast import normals, occluded, shortlist

OCTAVES = 4
"""Octaves of the textures: enough for images of 320 pixels; larger ones show more detail with more."""

HAZE_M = 90.0
"""Distance over which the air takes on most of the horizon's colour, outdoors."""

PICTURE_NOISE = 0.4
"""Strength of the fractal noise over a picture, which has detail where the picture has none."""

MIRRORED_TILES = 0.25
"""Tiles of a picture that an eighth of the surroundings of a mirror shows, along an edge."""

RIPPLES = 0.25
"""How far the noise of a mirror turns what it reflects."""

SHADOW_OFFSET = 2e-3
"""Metres between a surface and the start of its shadow ray."""


def _dot(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return a[..., 0] * b[..., 0] + a[..., 1] * b[..., 1] + a[..., 2] * b[..., 2]


def _columns(table: torch.Tensor, start: int) -> torch.Tensor:
    return table[..., start : start + 3]


def shade(
    scenes: Scenes,
    o: torch.Tensor,
    d: torch.Tensor,
    t: torch.Tensor,
    surface: torch.Tensor,
    pixel_angle: torch.Tensor,
    cull: bool = False,
    octaves: int = OCTAVES,
) -> torch.Tensor:
    """Linear colours (B, P, 3), mostly within [0, 1], of rays that met `surface` at `t`.

    With `cull`, shadow rays look only at objects near them: for a few rays of one scene, on a CPU.
    """
    batch = torch.arange(t.shape[0], device=t.device)[:, None]
    is_sky = surface == SKY
    is_object = surface < FACE_X0
    g = scenes.objects[batch, surface.clamp(max=NUM_OBJECTS - 1)]
    m = scenes.materials[batch, surface.clamp(max=NUM_SURFACES - 1)]
    lights = scenes.lights[:, None]
    t = torch.where(is_sky, 0.0, t)
    points = o + t[..., None] * d
    view = d * torch.rsqrt(_dot(d, d) + 1e-12)[..., None]
    n = normals(scenes, points, surface, g)
    n = torch.where((_dot(n, view) > 0)[..., None], -n, n)  # inner side of a leaf shell

    mirrored = view - 2 * _dot(view, n)[..., None] * n
    albedo = _texture(g, m, points, n, mirrored, t * pixel_angle, pixel_angle, is_object, octaves)
    occlusion = _ambient_occlusion(scenes, points, n, surface)
    sun, fill = _columns(lights, LightColumns.SUN), _columns(lights, LightColumns.FILL)
    facing_sun, facing_fill = _dot(n, sun), _dot(n, fill).clamp(min=0)
    start, towards_sun = points + SHADOW_OFFSET * (1 + t[..., None]) * n, sun.expand_as(points)
    near = shortlist(scenes, start, towards_sun) if cull else None
    lit = ((facing_sun > 0) & ~occluded(scenes, start, towards_sun, near)).float()
    sun_light = facing_sun.clamp(min=0) * lit * lights[..., LightColumns.SUN_STRENGTH]
    fill_light = facing_fill * lights[..., LightColumns.FILL_STRENGTH] * (0.5 + 0.5 * occlusion)

    # the reflection: highlights of both lights and a smooth surrounding
    gloss, shininess = m[..., MaterialColumns.GLOSS], m[..., MaterialColumns.SHININESS]
    highlight = lit * _dot(mirrored, sun).clamp(min=1e-3) ** shininess * lights[..., LightColumns.SUN_STRENGTH]
    highlight = highlight + 0.6 * _dot(mirrored, fill).clamp(min=1e-3) ** shininess
    fresnel = (1 + _dot(view, n)).clamp(0, 1) ** 3
    up = (0.5 - 0.5 * mirrored[..., 1]).clamp(0, 1)

    haze = (1 - torch.exp(-t / HAZE_M)) * scenes.outdoor[:, None]
    no_sky = cull and not bool(is_sky.any())
    clouds = torch.zeros_like(t) if no_sky else _clouds(lights, view, pixel_angle)
    channels = []
    for c in range(3):
        zenith, horizon = lights[..., LightColumns.SKY_COLOUR + c], lights[..., LightColumns.HORIZON + c]
        tint = 0.75 + 0.5 * zenith / (zenith + horizon + 0.2)
        ambient = lights[..., LightColumns.AMBIENT] * tint * occlusion * (0.8 - 0.2 * n[..., 1])
        light = ambient + sun_light * lights[..., LightColumns.SUN_COLOUR + c] + fill_light
        surrounding = horizon + (zenith - horizon) * up
        colour = albedo[c] * light + gloss * (highlight + (0.08 + 0.5 * fresnel) * surrounding * occlusion)
        colour = colour + (horizon - colour) * haze
        height = (-view[..., 1]).clamp(0, 1) ** 0.6
        sky = (horizon + (zenith - horizon) * height) * (1 - clouds) + clouds * (0.55 + 0.45 * horizon)
        channels.append(torch.where(is_sky, sky, colour))
    return torch.stack(channels, -1).clamp(0, 2)


def _ambient_occlusion(scenes: Scenes, points: torch.Tensor, n: torch.Tensor, surface: torch.Tensor) -> torch.Tensor:
    """Share of open surroundings (B, P): objects count as spheres, floor and walls by their distance."""
    objects = scenes.objects[:, None]
    to = [objects[..., ObjectColumns.CENTRE + k] - points[..., k, None] for k in range(3)]
    distance2 = to[0] * to[0] + to[1] * to[1] + to[2] * to[2] + 1e-4
    facing = (n[..., 0, None] * to[0] + n[..., 1, None] * to[1] + n[..., 2, None] * to[2]) * torch.rsqrt(distance2)
    half = [objects[..., ObjectColumns.HALF_SIZE + k] for k in range(3)]
    r2 = (half[0] * half[1] + half[1] * half[2] + half[2] * half[0]) / 3 * objects[..., ObjectColumns.ACTIVE]
    own = torch.arange(objects.shape[-2], device=points.device) == surface[..., None]
    covered = torch.where(own, 0.0, facing.clamp(min=0) * r2 / (distance2 + r2)).sum(-1)
    outdoor = scenes.outdoor[:, None] > 0.5
    hull = torch.zeros_like(covered)
    for k in range(3):
        for sign in (-1.0, 1.0):
            gap = (scenes.half[:, None, k] - sign * points[..., k]).clamp(min=0)
            open_side = outdoor & ((k != 1) | (sign < 0))
            # the wall that the point lies on does not hide anything from it: it faces away
            shade_k = (0.5 + 0.5 * sign * n[..., k]).clamp(0, 1) * 0.45 * torch.exp(-gap / 0.35)
            behind = (sign * n[..., k]) < -0.9
            hull = hull + torch.where(open_side | behind, 0.0, shade_k)
    return (1 - 0.9 * covered - hull).clamp(0.2, 1)


def _clouds(lights: torch.Tensor, view: torch.Tensor, pixel_angle: torch.Tensor) -> torch.Tensor:
    """Cloud cover (B, P) from 0 to 1 of upward rays."""
    up = (-view[..., 1]).clamp(min=0.04)
    plane = torch.stack([view[..., 0] / (up + 0.15), torch.zeros_like(up), view[..., 2] / (up + 0.15)], -1) * 2.0
    seed = (lights[..., LightColumns.SEED] + torch.zeros_like(up)).to(torch.int32)
    one = torch.ones_like(up)
    cover, _, _ = value_noise(plane, 1.3 * one, 0.55 * one, 2 * pixel_angle / up, seed, 3)
    return ((cover + lights[..., LightColumns.CLOUDS] - 0.6) * 3).clamp(0, 1)


def _texture(
    g: torch.Tensor,
    m: torch.Tensor,
    points: torch.Tensor,
    n: torch.Tensor,
    mirrored: torch.Tensor,
    footprint: torch.Tensor,
    pixel_angle: torch.Tensor,
    is_object: torch.Tensor,
    octaves: int = OCTAVES,
) -> list[torch.Tensor]:
    """Three albedo channels (B, P) of a solid texture, in metres along the object's own axes."""
    A = [[g[..., ObjectColumns.A + 3 * i + k] for k in range(3)] for i in range(3)]
    off = [points[..., k] - g[..., ObjectColumns.CENTRE + k] for k in range(3)]
    q = []
    for i in range(3):
        own = (A[i][0] * off[0] + A[i][1] * off[1] + A[i][2] * off[2]) * g[..., ObjectColumns.HALF_SIZE + i]
        q.append(torch.where(is_object, own, points[..., i]) + m[..., MaterialColumns.OFFSET + i])
    seed = m[..., MaterialColumns.SEED].to(torch.int32)
    frequency, decay = m[..., MaterialColumns.NOISE_FREQUENCY], m[..., MaterialColumns.NOISE_DECAY]
    noise = value_noise(torch.stack(q, -1), frequency, decay, footprint, seed, octaves)

    kind = m[..., MaterialColumns.PATTERN]
    f = m[..., MaterialColumns.PATTERN_FREQUENCY]
    fade = (1.5 - 2.2 * f * footprint).clamp(0, 1)
    along = sum(q[k] * m[..., MaterialColumns.DIRECTION + k] for k in range(3))
    stripes = (torch.sin(6.2831853 * (along * f + 0.35 * noise[1])) * 3).clamp(-1, 1) * 0.5 + 0.5
    cell = [x * f for x in q]
    index = [x.floor() for x in cell]
    inside = [cell[k] - index[k] for k in range(3)]
    checker = (index[0] + index[1] + index[2]) % 2
    lattice = hash3(index[0].to(torch.int32), index[1].to(torch.int32), index[2].to(torch.int32), seed + 99)
    distance = ((inside[0] - 0.5) ** 2 + (inside[1] - 0.5) ** 2 + (inside[2] - 0.5) ** 2).sqrt()
    dots = ((0.2 + 0.3 * hash_unit(lattice, 1) - distance) * 12).clamp(0, 1)
    patches = (0.5 + 7 * noise[2]).clamp(0, 1)
    # rows of bricks, windows and planks: v runs down, u across
    row = (cell[1] * 2).floor()
    down = cell[1] * 2 - row
    shifted = cell[0] + cell[2] + 0.5 * (row % 2)
    plain = cell[0] + cell[2]
    long = 0.2 * shifted + 0.37 * row
    u = torch.where(kind == BRICKS, shifted, torch.where(kind == PLANKS, long, plain))
    column = u.floor()
    across = u - column
    panel = hash3(column.to(torch.int32), row.to(torch.int32), torch.zeros_like(seed), seed + 77)
    tone = hash_unit(panel, 0)
    bricks = torch.where((across < 0.08) | (down < 0.14), 0.0, 0.35 + 0.65 * tone)
    framed = (across > 0.22) & (across < 0.78) & (down > 0.2) & (down < 0.8)
    windows = torch.where(framed, 0.15 * tone, 0.8)
    planks = torch.where((across < 0.012) | (down < 0.05), 0.0, 0.4 + 0.4 * tone + 0.6 * noise[2])

    mix = noise[2] + 0.5
    for code, value in (
        (STRIPES, stripes),
        (CHECKER, checker),
        (BRICKS, bricks),
        (DOTS, dots),
        (PATCHES, patches),
        (WINDOWS, windows),
        (PLANKS, planks),
    ):
        mix = torch.where(kind == code, value, mix)
    mix = 0.5 + (mix - 0.5) * torch.where(kind == NOISE, 1.0, fade)
    mix = (mix + 0.5 * noise[1]).clamp(0, 1)
    panelled = (kind == BRICKS) | (kind == WINDOWS) | (kind == PLANKS)
    cells = torch.where(panelled, panel, lattice)
    varied = (panelled & (kind != WINDOWS)) | (kind == DOTS)
    cell_contrast = torch.where(varied, 0.5 * m[..., MaterialColumns.CELL_CONTRAST] * fade, 0.0)
    pictured = kind >= PICTURE
    if points.is_cuda or bool(pictured.any()):  # a GPU is not asked: that would end the recording of a CUDA graph
        facing = [
            torch.where(
                is_object,
                (A[i][0] * n[..., 0] + A[i][1] * n[..., 1] + A[i][2] * n[..., 2]) * g[..., ObjectColumns.HALF_SIZE + i],
                n[..., i],
            )
            for i in range(3)
        ]
        seen = _picture(kind == MIRROR, q, facing, mirrored, noise, f, footprint, pixel_angle, seed)
        worn = [seen[k] - 0.5 + PICTURE_NOISE * noise[k] for k in range(3)]
        first, second, third = (torch.where(pictured, worn[k], noise[k]) for k in range(3))
        noise = first, second, third
        mix = torch.where(pictured, (0.5 + noise[0]).clamp(0, 1), mix)
    contrast = m[..., MaterialColumns.NOISE_CONTRAST]
    channels = []
    for c in range(3):
        first, second, third = (m[..., MaterialColumns.COLOUR + 3 * k + c] for k in range(3))
        colour = first + (second - first) * mix
        colour = colour + cell_contrast * (hash_unit(cells, c) - 0.5)
        colour = colour + (third - 0.5) * 0.5 * contrast * noise[2]
        colour = colour * (1 + 1.2 * contrast * noise[0]) + 0.2 * contrast * noise[(c + 1) % 3]
        channels.append(colour.clamp(0.01, 1))
    return channels


def _picture(
    is_mirror: torch.Tensor,
    q: list[torch.Tensor],
    facing: list[torch.Tensor],
    mirrored: torch.Tensor,
    noise: tuple[torch.Tensor, ...],
    frequency: torch.Tensor,
    footprint: torch.Tensor,
    pixel_angle: torch.Tensor,
    seed: torch.Tensor,
) -> list[torch.Tensor]:
    """Three channels (B, P) of the pictures that lie on surfaces, or that mirrors reflect.

    A picture is projected along the axis that the surface faces most, upright where that axis lies level. What a
    mirror reflects lies on the faces of a cube around everything.
    """
    bent = [mirrored[..., k] + RIPPLES * noise[k] for k in range(3)]
    x, y, z = (torch.where(is_mirror, bent[k], facing[k]).abs() for k in range(3))
    along_x, along_y = (x > y) & (x > z), (y >= x) & (y > z)
    on_cube = MIRRORED_TILES / torch.maximum(torch.maximum(x, y), z).clamp(min=1e-3)
    place = [torch.where(is_mirror, bent[k] * on_cube, q[k] * frequency) for k in range(3)]
    u = torch.where(along_x, place[2], place[0])
    v = torch.where(along_y, place[2], place[1])
    tiles = torch.where(is_mirror, MIRRORED_TILES * pixel_angle, footprint * frequency)
    return look_up(picture_bank(q[0].device), seed % NUM_PICTURES, u, v, tiles)
