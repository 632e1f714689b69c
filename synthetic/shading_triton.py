"""`shading` for CUDA devices: casts and shades every ray in one kernel, with the formulas of `shading`."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from mast3r_sfm.device import current

from . import layout, materials, pictures, shading
from .layout import LightColumns, MaterialColumns, Scenes
from .pictures import picture_bank
from .raycast_triton import (
    ACTIVE,
    CENTRE,
    FACE_X0,
    HALF_SIZE,
    LIGHT_WIDTH,
    MISS,
    NUM_OBJECTS,
    OBJECT_WIDTH,
    SKY,
    cast,
    hash3,
    hash_unit,
    nearest_object,
    normals,
    to_local,
)

BLOCK = 64
"""Rays of a program: a short run of a row, so that it meets few objects, and a single warp."""

MATERIAL_WIDTH = tl.constexpr(MaterialColumns.WIDTH)
NUM_SURFACES = tl.constexpr(layout.NUM_SURFACES)
COLOUR = tl.constexpr(MaterialColumns.COLOUR)
PATTERN = tl.constexpr(MaterialColumns.PATTERN)
PATTERN_FREQUENCY = tl.constexpr(MaterialColumns.PATTERN_FREQUENCY)
NOISE_FREQUENCY = tl.constexpr(MaterialColumns.NOISE_FREQUENCY)
NOISE_DECAY = tl.constexpr(MaterialColumns.NOISE_DECAY)
NOISE_CONTRAST = tl.constexpr(MaterialColumns.NOISE_CONTRAST)
DIRECTION = tl.constexpr(MaterialColumns.DIRECTION)
OFFSET = tl.constexpr(MaterialColumns.OFFSET)
MATERIAL_SEED = tl.constexpr(MaterialColumns.SEED)
CELL_CONTRAST = tl.constexpr(MaterialColumns.CELL_CONTRAST)
GLOSS = tl.constexpr(MaterialColumns.GLOSS)
SHININESS = tl.constexpr(MaterialColumns.SHININESS)
NOISE = tl.constexpr(materials.NOISE)
STRIPES = tl.constexpr(materials.STRIPES)
CHECKER = tl.constexpr(materials.CHECKER)
BRICKS = tl.constexpr(materials.BRICKS)
DOTS = tl.constexpr(materials.DOTS)
PATCHES = tl.constexpr(materials.PATCHES)
WINDOWS = tl.constexpr(materials.WINDOWS)
PLANKS = tl.constexpr(materials.PLANKS)
PICTURE = tl.constexpr(materials.PICTURE)
MIRROR = tl.constexpr(materials.MIRROR)
NUM_PICTURES = tl.constexpr(pictures.NUM_PICTURES)
PICTURE_SIZE = tl.constexpr(pictures.SIZE)
PICTURE_LEVELS = tl.constexpr(pictures.LEVELS)
PICTURE_NOISE = tl.constexpr(shading.PICTURE_NOISE)
MIRRORED_TILES = tl.constexpr(shading.MIRRORED_TILES)
RIPPLES = tl.constexpr(shading.RIPPLES)
SUN = tl.constexpr(LightColumns.SUN)
FILL = tl.constexpr(LightColumns.FILL)
AMBIENT = tl.constexpr(LightColumns.AMBIENT)
SUN_STRENGTH = tl.constexpr(LightColumns.SUN_STRENGTH)
FILL_STRENGTH = tl.constexpr(LightColumns.FILL_STRENGTH)
SUN_COLOUR = tl.constexpr(LightColumns.SUN_COLOUR)
SKY_COLOUR = tl.constexpr(LightColumns.SKY_COLOUR)
HORIZON = tl.constexpr(LightColumns.HORIZON)
CLOUDS = tl.constexpr(LightColumns.CLOUDS)
LIGHT_SEED = tl.constexpr(LightColumns.SEED)
HAZE_M = tl.constexpr(shading.HAZE_M)
SHADOW_OFFSET = tl.constexpr(shading.SHADOW_OFFSET)
OCTAVE_STEP = tl.constexpr(2.8)


@triton.jit
def _clamp(x, low, high):  # type: ignore[no-untyped-def]  # triton's own types, here and below
    return tl.minimum(tl.maximum(x, low), high)


@triton.jit
def _lattice(x, frequency, up, weight):  # type: ignore[no-untyped-def]
    """One axis of the noise: corner index and the weight times that corner's share."""
    x = x * frequency
    floor = tl.floor(x)
    s = x - floor
    s = s * s * (3 - 2 * s)
    return floor.to(tl.int32) + up, weight * tl.where(up > 0, s, 1 - s)


@triton.jit
def _value_noise(x, y, z, frequency, decay, footprint, seed, OCTAVES: tl.constexpr):  # type: ignore[no-untyped-def]
    """`noise.value_noise`: three channels."""
    first = tl.zeros(x.shape, tl.float32)
    second = tl.zeros(x.shape, tl.float32)
    third = tl.zeros(x.shape, tl.float32)
    amplitude = tl.full(x.shape, 1.0, tl.float32)
    for octave in range(OCTAVES):
        strength = amplitude * _clamp(1.6 - 2.4 * frequency * footprint, 0.0, 1.0)
        for corner in range(8):
            i, weight = _lattice(x, frequency, corner & 1, strength)
            j, weight = _lattice(y, frequency, (corner >> 1) & 1, weight)
            k, weight = _lattice(z, frequency, (corner >> 2) & 1, weight)
            bits = hash3(i, j, k, seed + octave)
            first += weight * (hash_unit(bits, 0) - 0.5)
            second += weight * (hash_unit(bits, 1) - 0.5)
            third += weight * (hash_unit(bits, 2) - 0.5)
        frequency *= OCTAVE_STEP
        amplitude *= decay
    return first, second, third


@triton.jit
def _clouds(lights, v0, v1, v2, angle):  # type: ignore[no-untyped-def]
    up = tl.maximum(-v1, 0.04)
    zero = tl.zeros(up.shape, tl.float32)
    seed = tl.load(lights + LIGHT_SEED).to(tl.int32) + tl.zeros(up.shape, tl.int32)
    x, z = 2 * v0 / (up + 0.15), 2 * v2 / (up + 0.15)
    cover, _, _ = _value_noise(x, zero, z, zero + 1.3, zero + 0.55, 2 * angle / up, seed, 3)
    return _clamp((cover + tl.load(lights + CLOUDS) - 0.6) * 3, 0.0, 1.0)


@triton.jit
def _mixed(m, noise_a, noise_b, noise_c, mix, cells, cell_contrast, contrast, c: tl.constexpr):  # type: ignore[no-untyped-def]
    """One channel of the albedo; noise_a is the brightness, noise_b this channel's tint, noise_c the third colour's."""
    first, second = tl.load(m + COLOUR + c), tl.load(m + COLOUR + 3 + c)
    colour = first + (second - first) * mix + cell_contrast * (hash_unit(cells, c) - 0.5)
    colour += (tl.load(m + COLOUR + 6 + c) - 0.5) * 0.5 * contrast * noise_c
    return _clamp(colour * (1 + 1.2 * contrast * noise_a) + 0.2 * contrast * noise_b, 0.01, 1.0)


@triton.jit
def _look_up(bank, picture, u, v, footprint):  # type: ignore[no-untyped-def]
    """`pictures.look_up`: three channels."""
    level = tl.floor(tl.log2(tl.maximum(footprint * PICTURE_SIZE, 1e-6)) + 0.5)
    level = _clamp(level, 0.0, PICTURE_LEVELS - 1.0).to(tl.int32)
    size = (tl.zeros(level.shape, tl.int32) + PICTURE_SIZE) >> level
    start = (NUM_PICTURES * 4 * (PICTURE_SIZE * PICTURE_SIZE - size * size)) // 3 + picture * size * size
    x, y = u * size - 0.5, v * size - 0.5
    left, top = tl.floor(x), tl.floor(y)
    across, down = x - left, y - top
    column, row = left.to(tl.int32), top.to(tl.int32)
    first = tl.zeros(u.shape, tl.float32)
    second = tl.zeros(u.shape, tl.float32)
    third = tl.zeros(u.shape, tl.float32)
    for corner in tl.static_range(4):
        i, j = corner & 1, corner >> 1
        bits = tl.load(bank + start + ((row + j) & (size - 1)) * size + ((column + i) & (size - 1)))
        weight = (across * i + (1 - across) * (1 - i)) * (down * j + (1 - down) * (1 - j))
        first += weight * hash_unit(bits, 0)
        second += weight * hash_unit(bits, 1)
        third += weight * hash_unit(bits, 2)
    return first, second, third


@triton.jit
def _picture(  # type: ignore[no-untyped-def]
    bank, is_mirror, q0, q1, q2, f0, f1, f2, r0, r1, r2, n0, n1, n2, frequency, footprint, angle, seed
):
    """`shading._picture`: three channels."""
    b0, b1, b2 = r0 + RIPPLES * n0, r1 + RIPPLES * n1, r2 + RIPPLES * n2
    x = tl.abs(tl.where(is_mirror, b0, f0))
    y = tl.abs(tl.where(is_mirror, b1, f1))
    z = tl.abs(tl.where(is_mirror, b2, f2))
    along_x, along_y = (x > y) & (x > z), (y >= x) & (y > z)
    on_cube = MIRRORED_TILES / tl.maximum(tl.maximum(tl.maximum(x, y), z), 1e-3)
    p0 = tl.where(is_mirror, b0 * on_cube, q0 * frequency)
    p1 = tl.where(is_mirror, b1 * on_cube, q1 * frequency)
    p2 = tl.where(is_mirror, b2 * on_cube, q2 * frequency)
    u, v = tl.where(along_x, p2, p0), tl.where(along_y, p2, p1)
    tiles = tl.where(is_mirror, MIRRORED_TILES * angle, footprint * frequency)
    return _look_up(bank, seed % NUM_PICTURES, u, v, tiles)


@triton.jit
def _texture(  # type: ignore[no-untyped-def]
    g, m, bank, x, y, z, w0, w1, w2, v0, v1, v2, footprint, angle, is_object, OCTAVES: tl.constexpr
):
    """`shading._texture`: three albedo channels from the rows of the objects and materials hit.

    w, v  unit vectors: the surfaces' normals and the rays' directions
    """
    off0, off1, off2 = x - tl.load(g + CENTRE), y - tl.load(g + CENTRE + 1), z - tl.load(g + CENTRE + 2)
    u0, u1, u2 = to_local(g, off0, off1, off2)
    q0 = tl.where(is_object, u0 * tl.load(g + HALF_SIZE), x) + tl.load(m + OFFSET)
    q1 = tl.where(is_object, u1 * tl.load(g + HALF_SIZE + 1), y) + tl.load(m + OFFSET + 1)
    q2 = tl.where(is_object, u2 * tl.load(g + HALF_SIZE + 2), z) + tl.load(m + OFFSET + 2)
    seed = tl.load(m + MATERIAL_SEED).to(tl.int32)
    frequency, decay = tl.load(m + NOISE_FREQUENCY), tl.load(m + NOISE_DECAY)
    n0, n1, n2 = _value_noise(q0, q1, q2, frequency, decay, footprint, seed, OCTAVES)

    kind = tl.load(m + PATTERN)
    f = tl.load(m + PATTERN_FREQUENCY)
    fade = _clamp(1.5 - 2.2 * f * footprint, 0.0, 1.0)
    along = q0 * tl.load(m + DIRECTION) + q1 * tl.load(m + DIRECTION + 1) + q2 * tl.load(m + DIRECTION + 2)
    stripes = _clamp(tl.sin(6.2831853 * (along * f + 0.35 * n1)) * 3, -1.0, 1.0) * 0.5 + 0.5
    c0, c1, c2 = q0 * f, q1 * f, q2 * f
    i0, i1, i2 = tl.floor(c0), tl.floor(c1), tl.floor(c2)
    total = i0 + i1 + i2
    checker = total - 2 * tl.floor(total / 2)
    lattice = hash3(i0.to(tl.int32), i1.to(tl.int32), i2.to(tl.int32), seed + 99)
    s0, s1, s2 = c0 - i0 - 0.5, c1 - i1 - 0.5, c2 - i2 - 0.5
    distance = tl.sqrt(s0 * s0 + s1 * s1 + s2 * s2)
    dots = _clamp((0.2 + 0.3 * hash_unit(lattice, 1) - distance) * 12, 0.0, 1.0)
    patches = _clamp(0.5 + 7 * n2, 0.0, 1.0)
    row = tl.floor(c1 * 2)
    down = c1 * 2 - row
    shifted = c0 + c2 + 0.5 * (row - 2 * tl.floor(row / 2))
    u = tl.where(kind == BRICKS, shifted, tl.where(kind == PLANKS, 0.2 * shifted + 0.37 * row, c0 + c2))
    column = tl.floor(u)
    across = u - column
    panel = hash3(column.to(tl.int32), row.to(tl.int32), 0, seed + 77)
    tone = hash_unit(panel, 0)
    bricks = tl.where((across < 0.08) | (down < 0.14), 0.0, 0.35 + 0.65 * tone)
    framed = (across > 0.22) & (across < 0.78) & (down > 0.2) & (down < 0.8)
    windows = tl.where(framed, 0.15 * tone, 0.8)
    planks = tl.where((across < 0.012) | (down < 0.05), 0.0, 0.4 + 0.4 * tone + 0.6 * n2)

    mix = n2 + 0.5
    mix = tl.where(kind == STRIPES, stripes, mix)
    mix = tl.where(kind == CHECKER, checker, mix)
    mix = tl.where(kind == BRICKS, bricks, mix)
    mix = tl.where(kind == DOTS, dots, mix)
    mix = tl.where(kind == PATCHES, patches, mix)
    mix = tl.where(kind == WINDOWS, windows, mix)
    mix = tl.where(kind == PLANKS, planks, mix)
    mix = 0.5 + (mix - 0.5) * tl.where(kind == NOISE, 1.0, fade)
    mix = _clamp(mix + 0.5 * n1, 0.0, 1.0)
    panelled = (kind == BRICKS) | (kind == WINDOWS) | (kind == PLANKS)
    cells = tl.where(panelled, panel, lattice)
    varied = (kind == BRICKS) | (kind == PLANKS) | (kind == DOTS)
    cell_contrast = tl.where(varied, 0.5 * tl.load(m + CELL_CONTRAST) * fade, 0.0)
    contrast = tl.load(m + NOISE_CONTRAST)
    pictured = kind >= PICTURE
    if tl.max(pictured.to(tl.int32), 0) > 0:
        f0, f1, f2 = to_local(g, w0, w1, w2)
        f0 = tl.where(is_object, f0 * tl.load(g + HALF_SIZE), w0)
        f1 = tl.where(is_object, f1 * tl.load(g + HALF_SIZE + 1), w1)
        f2 = tl.where(is_object, f2 * tl.load(g + HALF_SIZE + 2), w2)
        along = v0 * w0 + v1 * w1 + v2 * w2
        r0, r1, r2 = v0 - 2 * along * w0, v1 - 2 * along * w1, v2 - 2 * along * w2
        p0, p1, p2 = _picture(
            bank, kind == MIRROR, q0, q1, q2, f0, f1, f2, r0, r1, r2, n0, n1, n2, f, footprint, angle, seed
        )
        n0 = tl.where(pictured, p0 - 0.5 + PICTURE_NOISE * n0, n0)
        n1 = tl.where(pictured, p1 - 0.5 + PICTURE_NOISE * n1, n1)
        n2 = tl.where(pictured, p2 - 0.5 + PICTURE_NOISE * n2, n2)
        mix = tl.where(pictured, _clamp(0.5 + n0, 0.0, 1.0), mix)
    red = _mixed(m, n0, n1, n2, mix, cells, cell_contrast, contrast, 0)
    green = _mixed(m, n0, n2, n2, mix, cells, cell_contrast, contrast, 1)
    blue = _mixed(m, n0, n0, n2, mix, cells, cell_contrast, contrast, 2)
    return red, green, blue


@triton.jit
def _hidden_by_wall(extent, p, n, sign):  # type: ignore[no-untyped-def]
    gap = tl.maximum(extent - sign * p, 0.0)
    share = _clamp(0.5 + 0.5 * sign * n, 0.0, 1.0) * 0.45 * tl.exp(-gap / 0.35)
    return tl.where(sign * n < -0.9, 0.0, share)


@triton.jit
def _ambient_occlusion(objects, half, outdoor, x, y, z, n0, n1, n2, surface):  # type: ignore[no-untyped-def]
    covered = tl.zeros(x.shape, tl.float32)
    for k in range(NUM_OBJECTS):
        row = objects + k * OBJECT_WIDTH
        if tl.load(row + ACTIVE) > 0.5:
            to0, to1, to2 = tl.load(row + CENTRE) - x, tl.load(row + CENTRE + 1) - y, tl.load(row + CENTRE + 2) - z
            distance2 = to0 * to0 + to1 * to1 + to2 * to2 + 1e-4
            facing = (n0 * to0 + n1 * to1 + n2 * to2) * tl.rsqrt(distance2)
            h0, h1, h2 = tl.load(row + HALF_SIZE), tl.load(row + HALF_SIZE + 1), tl.load(row + HALF_SIZE + 2)
            r2 = (h0 * h1 + h1 * h2 + h2 * h0) / 3
            covered += tl.where(surface == k, 0.0, tl.maximum(facing, 0.0) * r2 / (distance2 + r2))
    half0, half1, half2 = tl.load(half), tl.load(half + 1), tl.load(half + 2)
    walls = _hidden_by_wall(half0, x, n0, -1.0) + _hidden_by_wall(half0, x, n0, 1.0)
    walls += _hidden_by_wall(half2, z, n2, -1.0) + _hidden_by_wall(half2, z, n2, 1.0)
    walls += _hidden_by_wall(half1, y, n1, -1.0)
    hull = _hidden_by_wall(half1, y, n1, 1.0) + walls * (1 - outdoor)  # outdoors only the ground hides anything
    return _clamp(1 - 0.9 * covered - hull, 0.2, 1.0)


@triton.jit
def _lit_channel(  # type: ignore[no-untyped-def]
    lights, albedo, occlusion, sun_light, fill_light, highlight, gloss, fresnel, up, n1, haze, height, clouds, is_sky,
    c: tl.constexpr,
):  # fmt: skip
    zenith, horizon = tl.load(lights + SKY_COLOUR + c), tl.load(lights + HORIZON + c)
    tint = 0.75 + 0.5 * zenith / (zenith + horizon + 0.2)
    ambient = tl.load(lights + AMBIENT) * tint * occlusion * (0.8 - 0.2 * n1)
    light = ambient + sun_light * tl.load(lights + SUN_COLOUR + c) + fill_light
    surrounding = horizon + (zenith - horizon) * up
    colour = albedo * light + gloss * (highlight + (0.08 + 0.5 * fresnel) * surrounding * occlusion)
    colour += (horizon - colour) * haze
    sky = (horizon + (zenith - horizon) * height) * (1 - clouds) + clouds * (0.55 + 0.45 * horizon)
    return _clamp(tl.where(is_sky, sky, colour), 0.0, 2.0)


@triton.jit
def _render_kernel(  # type: ignore[no-untyped-def]
    half_extents, outdoors, terrains, object_table, material_table, light_table, bank, origins, directions, angles,
    colours, ts, surfaces, rays,
    OCTAVES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    scene = tl.program_id(1).to(tl.int64)
    ray = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    valid = ray < rays
    at = scene * rays + tl.minimum(ray, rays - 1)
    half, terrain = half_extents + scene * 3, terrains + scene * 16
    objects, lights = object_table + scene * NUM_OBJECTS * OBJECT_WIDTH, light_table + scene * LIGHT_WIDTH
    outdoor = tl.load(outdoors + scene)
    o0, o1, o2 = tl.load(origins + 3 * at), tl.load(origins + 3 * at + 1), tl.load(origins + 3 * at + 2)
    d0, d1, d2 = tl.load(directions + 3 * at), tl.load(directions + 3 * at + 1), tl.load(directions + 3 * at + 2)
    angle = tl.load(angles + at)

    t, surface = cast(objects, terrain, half, outdoor, o0, o1, o2, d0, d1, d2)
    is_sky, is_object = surface == SKY, surface < FACE_X0
    t = tl.where(is_sky | (t >= MISS), 0.0, t)
    tl.store(ts + at, t, mask=valid)
    tl.store(surfaces + at, surface.to(tl.int64), mask=valid)

    x, y, z = o0 + t * d0, o1 + t * d1, o2 + t * d2
    length = tl.rsqrt(d0 * d0 + d1 * d1 + d2 * d2 + 1e-12)
    v0, v1, v2 = d0 * length, d1 * length, d2 * length
    n0, n1, n2 = normals(objects, terrain, outdoor, x, y, z, surface)
    flip = tl.where(n0 * v0 + n1 * v1 + n2 * v2 > 0, -1.0, 1.0)  # the inner side of a leaf shell
    n0, n1, n2 = n0 * flip, n1 * flip, n2 * flip

    g = objects + tl.minimum(surface, NUM_OBJECTS - 1) * OBJECT_WIDTH
    m = material_table + (scene * NUM_SURFACES + tl.minimum(surface, NUM_SURFACES - 1)) * MATERIAL_WIDTH
    red, green, blue = _texture(g, m, bank, x, y, z, n0, n1, n2, v0, v1, v2, t * angle, angle, is_object, OCTAVES)
    occlusion = _ambient_occlusion(objects, half, outdoor, x, y, z, n0, n1, n2, surface)

    sun0, sun1, sun2 = tl.load(lights + SUN), tl.load(lights + SUN + 1), tl.load(lights + SUN + 2)
    fill0, fill1, fill2 = tl.load(lights + FILL), tl.load(lights + FILL + 1), tl.load(lights + FILL + 2)
    facing_sun = n0 * sun0 + n1 * sun1 + n2 * sun2
    facing_fill = tl.maximum(n0 * fill0 + n1 * fill1 + n2 * fill2, 0.0)
    away = SHADOW_OFFSET * (1 + t)
    nothing = tl.zeros(t.shape, tl.float32)
    shadow, _ = nearest_object(
        objects, x + away * n0, y + away * n1, z + away * n2, nothing + sun0, nothing + sun1, nothing + sun2
    )
    lit = tl.where((facing_sun > 0) & (shadow >= MISS), 1.0, 0.0)
    sun_strength = tl.load(lights + SUN_STRENGTH)
    sun_light = tl.maximum(facing_sun, 0.0) * lit * sun_strength
    fill_light = facing_fill * tl.load(lights + FILL_STRENGTH) * (0.5 + 0.5 * occlusion)

    facing = v0 * n0 + v1 * n1 + v2 * n2
    r0, r1, r2 = v0 - 2 * facing * n0, v1 - 2 * facing * n1, v2 - 2 * facing * n2
    gloss, shininess = tl.load(m + GLOSS), tl.load(m + SHININESS)
    towards_sun = tl.maximum(r0 * sun0 + r1 * sun1 + r2 * sun2, 1e-3)
    towards_fill = tl.maximum(r0 * fill0 + r1 * fill1 + r2 * fill2, 1e-3)
    highlight = lit * tl.exp(shininess * tl.log(towards_sun)) * sun_strength
    highlight += 0.6 * tl.exp(shininess * tl.log(towards_fill))
    fresnel = _clamp(1 + facing, 0.0, 1.0)
    fresnel = fresnel * fresnel * fresnel
    up = _clamp(0.5 - 0.5 * r1, 0.0, 1.0)
    haze = (1 - tl.exp(-t / HAZE_M)) * outdoor
    height = tl.exp(0.6 * tl.log(_clamp(-v1, 1e-12, 1.0)))
    clouds = nothing
    if outdoor > 0.5:
        clouds = _clouds(lights, v0, v1, v2, angle)
    red = _lit_channel(
        lights, red, occlusion, sun_light, fill_light, highlight, gloss, fresnel, up, n1, haze,
        height, clouds, is_sky, 0,
    )  # fmt: skip
    green = _lit_channel(
        lights, green, occlusion, sun_light, fill_light, highlight, gloss, fresnel, up, n1, haze,
        height, clouds, is_sky, 1,
    )  # fmt: skip
    blue = _lit_channel(
        lights, blue, occlusion, sun_light, fill_light, highlight, gloss, fresnel, up, n1, haze,
        height, clouds, is_sky, 2,
    )  # fmt: skip
    tl.store(colours + 3 * at, red, mask=valid)
    tl.store(colours + 3 * at + 1, green, mask=valid)
    tl.store(colours + 3 * at + 2, blue, mask=valid)


def render_rays_fused(
    scenes: Scenes, o: torch.Tensor, d: torch.Tensor, pixel_angle: torch.Tensor, octaves: int = shading.OCTAVES
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """`rendering.render_rays` in one kernel, for CUDA devices: same arguments, same results up to rounding."""
    B, P = pixel_angle.shape
    tables = [table.contiguous() for table in scenes]
    o, d, pixel_angle = o.contiguous(), d.contiguous(), pixel_angle.contiguous()
    colour = torch.empty(B, P, 3, device=o.device)
    t = torch.empty(B, P, device=o.device)
    surface = torch.empty(B, P, dtype=torch.int64, device=o.device)
    with current(o.device):
        _render_kernel[(triton.cdiv(P, BLOCK), B)](
            *tables,
            picture_bank(o.device),
            o,
            d,
            pixel_angle,
            colour,
            t,
            surface,
            P,
            OCTAVES=octaves,
            BLOCK=BLOCK,
            num_warps=1,
        )
    return colour, t, surface
