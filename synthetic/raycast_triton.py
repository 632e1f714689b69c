"""`raycast` for CUDA devices: one program follows a run of rays of one scene and skips the objects it misses.

The formulas are those of `raycast`, term by term; what they mean is said there. A vector is three blocks of
numbers, one per ray; an object's row is read as scalars.
"""

from __future__ import annotations

import triton
import triton.language as tl

from . import layout, raycast
from .layout import LightColumns, ObjectColumns

NUM_SOLIDS = tl.constexpr(layout.NUM_SOLIDS)
NUM_OBJECTS = tl.constexpr(layout.NUM_OBJECTS)
FACE_X0 = tl.constexpr(layout.FACE_X0)
FACE_FLOOR = tl.constexpr(layout.FACE_FLOOR)
SKY = tl.constexpr(layout.SKY)
OBJECT_WIDTH = tl.constexpr(ObjectColumns.WIDTH)
CENTRE = tl.constexpr(ObjectColumns.CENTRE)
HALF_SIZE = tl.constexpr(ObjectColumns.HALF_SIZE)
SHAPE = tl.constexpr(ObjectColumns.SHAPE)
PROFILE = tl.constexpr(ObjectColumns.PROFILE)
ACTIVE = tl.constexpr(ObjectColumns.ACTIVE)
BOUND = tl.constexpr(ObjectColumns.BOUND)
LIGHT_WIDTH = tl.constexpr(LightColumns.WIDTH)
MISS = tl.constexpr(raycast.MISS)
NEAREST = tl.constexpr(raycast.NEAREST)
TERRAIN_STEPS = tl.constexpr(raycast.TERRAIN_STEPS)
TERRAIN_REFINEMENTS = tl.constexpr(raycast.TERRAIN_REFINEMENTS)
INVERSE_TERRAIN_RADIUS2 = tl.constexpr(1 / layout.TERRAIN_RADIUS**2)
WAVES = tl.constexpr(4)


@triton.jit
def nonzero(x):  # type: ignore[no-untyped-def]  # triton's own types, here and below
    return tl.where(tl.abs(x) < 1e-7, 1e-7, x)


@triton.jit
def hash3(x, y, z, seed):  # type: ignore[no-untyped-def]
    h = (x * 73856093) ^ (y * 19349663) ^ (z * 83492791) ^ (seed * 668265263)
    h = (h ^ (h >> 15)) * 739982445
    h = (h ^ (h >> 12)) * 695872825
    return h ^ (h >> 15)


@triton.jit
def hash_unit(bits, part: tl.constexpr):  # type: ignore[no-untyped-def]
    return ((bits >> (10 * part)) & 1023).to(tl.float32) * (1.0 / 1023)


@triton.jit
def to_local(row, x, y, z):  # type: ignore[no-untyped-def]
    """A times a vector, A being the first nine numbers of an object's row (one row, or one per ray)."""
    u = tl.load(row) * x + tl.load(row + 1) * y + tl.load(row + 2) * z
    v = tl.load(row + 3) * x + tl.load(row + 4) * y + tl.load(row + 5) * z
    w = tl.load(row + 6) * x + tl.load(row + 7) * y + tl.load(row + 8) * z
    return u, v, w


@triton.jit
def _clip(enter, leave, normal_o, normal_d, bound):  # type: ignore[no-untyped-def]
    slope = nonzero(normal_d)
    t = (bound - normal_o) / slope
    return tl.where(slope < 0, tl.maximum(enter, t), enter), tl.where(slope < 0, leave, tl.minimum(leave, t))


@triton.jit
def _inside_interval(row, o0, o1, o2, d0, d1, d2, lean_x, lean_z):  # type: ignore[no-untyped-def]
    """`raycast._inside_interval`; `lean_x` and `lean_z` are the profile's second and fourth number."""
    p0, p2 = tl.load(row + PROFILE), tl.load(row + PROFILE + 2)
    slab = nonzero(d1)
    low, high = (-1 - o1) / slab, (1 - o1) / slab
    enter, leave = tl.minimum(low, high), tl.maximum(low, high)
    if tl.load(row + SHAPE) > 0.5:
        p1 = lean_x
        a = nonzero(d0 * d0 + d2 * d2 - p2 * d1 * d1)
        b = o0 * d0 + o2 * d2 - d1 * (0.5 * p1 + p2 * o1)
        c = o0 * o0 + o2 * o2 - p0 - o1 * (p1 + p2 * o1)
        discriminant = b * b - a * c
        root = tl.sqrt(tl.maximum(discriminant, 0.0))
        t0, t1 = (-b - root) / a, (-b + root) / a
        near, far = tl.minimum(t0, t1), tl.maximum(t0, t1)
        steep = a < 0
        widening = d1 * p1 > 0
        quadric_enter = tl.where(steep, tl.where(widening, far, -MISS), near)
        quadric_leave = tl.where(steep, tl.where(widening, MISS, near), far)
        missed = (discriminant <= 0) & (a >= 0)
        enter = tl.maximum(enter, tl.where(missed, MISS, quadric_enter))
        leave = tl.minimum(leave, tl.where(missed, -MISS, quadric_leave))
    else:
        enter, leave = _clip(enter, leave, o0 - lean_x * o1, d0 - lean_x * d1, p0)
        enter, leave = _clip(enter, leave, -o0 - lean_x * o1, -d0 - lean_x * d1, p0)
        enter, leave = _clip(enter, leave, o2 - lean_z * o1, d2 - lean_z * d1, p2)
        enter, leave = _clip(enter, leave, -o2 - lean_z * o1, -d2 - lean_z * d1, p2)
    return enter, leave


@triton.jit
def _may_meet(row, o0, o1, o2, d0, d1, d2):  # type: ignore[no-untyped-def]
    """Whether any of the rays meets the object's bounding sphere."""
    c0, c1, c2 = tl.load(row + CENTRE) - o0, tl.load(row + CENTRE + 1) - o1, tl.load(row + CENTRE + 2) - o2
    bound = tl.load(row + BOUND) * 1.001 + 1e-3
    along = (c0 * d0 + c1 * d1 + c2 * d2) / (d0 * d0 + d1 * d1 + d2 * d2)
    along = tl.maximum(along, 0.0)
    x, y, z = c0 - along * d0, c1 - along * d1, c2 - along * d2
    return tl.max((x * x + y * y + z * z < bound * bound).to(tl.int32), axis=0) > 0


@triton.jit
def _leaf_at(row, density, o0, o1, o2, d0, d1, d2, t):  # type: ignore[no-untyped-def]
    t = tl.minimum(tl.maximum(t, -1e3), 1e3)
    x = (o0 + t * d0) * tl.load(row + HALF_SIZE) * density
    y = (o1 + t * d1) * tl.load(row + HALF_SIZE + 1) * density
    z = (o2 + t * d2) * tl.load(row + HALF_SIZE + 2) * density
    i, j, k = tl.floor(x), tl.floor(y), tl.floor(z)
    seed = tl.full(t.shape, 5, tl.int32)
    bits = hash3(i.to(tl.int32), j.to(tl.int32), k.to(tl.int32), seed)
    u = x - i - 0.25 - 0.5 * hash_unit(bits, 0)
    v = y - j - 0.25 - 0.5 * hash_unit(bits, 1)
    w = z - k - 0.25 - 0.5 * hash_unit(bits, 2)
    return u * u + v * v + w * w < 0.24


@triton.jit
def nearest_object(objects, o0, o1, o2, d0, d1, d2):  # type: ignore[no-untyped-def]
    """(t, id) of the nearest solid or leaf of one scene's table along the rays, `MISS` and 0 if there is none."""
    best = tl.full(d0.shape, MISS, tl.float32)
    found = tl.zeros(d0.shape, tl.int32)
    for k in range(NUM_OBJECTS):
        row = objects + k * OBJECT_WIDTH
        if tl.load(row + ACTIVE) > 0.5:  # noqa: SIM102  # `and` would not skip the second test
            if _may_meet(row, o0, o1, o2, d0, d1, d2):
                x, y, z = o0 - tl.load(row + CENTRE), o1 - tl.load(row + CENTRE + 1), o2 - tl.load(row + CENTRE + 2)
                u0, u1, u2 = to_local(row, x, y, z)
                v0, v1, v2 = to_local(row, d0, d1, d2)
                lean_x, last = tl.load(row + PROFILE + 1), tl.load(row + PROFILE + 3)
                if k < NUM_SOLIDS:
                    enter, leave = _inside_interval(row, u0, u1, u2, v0, v1, v2, lean_x, last)
                    t = tl.where((enter < leave) & (enter > NEAREST), enter, MISS)
                else:
                    enter, leave = _inside_interval(row, u0, u1, u2, v0, v1, v2, lean_x, 0.0)
                    density = 1.0 / tl.maximum(last, 1e-3)
                    front = (enter < leave) & (enter > NEAREST) & _leaf_at(row, density, u0, u1, u2, v0, v1, v2, enter)
                    back = (enter < leave) & (leave > NEAREST) & _leaf_at(row, density, u0, u1, u2, v0, v1, v2, leave)
                    t = tl.where(front, enter, tl.where(back, leave, MISS))
                found = tl.where(t < best, k, found)
                best = tl.minimum(best, t)
    return best, found


@triton.jit
def _flattening(x, z):  # type: ignore[no-untyped-def]
    far = (x * x + z * z) * INVERSE_TERRAIN_RADIUS2
    return 1 / (1 + far * far)


@triton.jit
def _ground_gap(terrain, floor, o0, o1, o2, d0, d1, d2, t):  # type: ignore[no-untyped-def]
    x, z = o0 + t * d0, o2 + t * d2
    height = tl.zeros(t.shape, tl.float32)
    for wave in tl.static_range(WAVES):
        row = terrain + wave * 4
        height += tl.load(row) * tl.sin(tl.load(row + 1) * x + tl.load(row + 2) * z + tl.load(row + 3))
    return floor - height * _flattening(x, z) - (o1 + t * d1)


@triton.jit
def _newton(terrain, floor, o0, o1, o2, d0, d1, d2, t):  # type: ignore[no-untyped-def]
    h = 1e-2 * tl.maximum(t, 0.1)
    ahead = _ground_gap(terrain, floor, o0, o1, o2, d0, d1, d2, t + h)
    behind = _ground_gap(terrain, floor, o0, o1, o2, d0, d1, d2, t - h)
    slope = (ahead - behind) / (2 * h)
    return t - _ground_gap(terrain, floor, o0, o1, o2, d0, d1, d2, t) / tl.where(slope < -1e-3, slope, -1e9)


@triton.jit
def cast_to_ground(terrain, floor, o0, o1, o2, d0, d1, d2):  # type: ignore[no-untyped-def]
    """`raycast.cast_to_ground`: where the rays cross one scene's ground."""
    top = 0.0
    steepest = 0.0
    for wave in tl.static_range(WAVES):
        row = terrain + wave * 4
        amplitude, k_x, k_z = tl.abs(tl.load(row)), tl.load(row + 1), tl.load(row + 2)
        top += amplitude
        steepest += 1.2 * amplitude * tl.sqrt(k_x * k_x + k_z * k_z)
    closing = d1 + steepest * tl.sqrt(d0 * d0 + d2 * d2)
    down = nonzero(d1)
    t = tl.maximum(tl.where(down > 0, (floor - top - o1) / down, 0.0), 0.0)
    plane = tl.where(down > 1e-3, (floor - o1) / down, MISS)
    far = tl.minimum(plane, 2e3)
    for _ in range(TERRAIN_STEPS):
        t += _ground_gap(terrain, floor, o0, o1, o2, d0, d1, d2, t) / tl.maximum(closing, 1e-4)
    for _ in range(TERRAIN_REFINEMENTS):
        t = _newton(terrain, floor, o0, o1, o2, d0, d1, d2, t)
        far = _newton(terrain, floor, o0, o1, o2, d0, d1, d2, far)
    converged = tl.abs(_ground_gap(terrain, floor, o0, o1, o2, d0, d1, d2, t)) < 1e-4 * (1 + t)
    found = (t > NEAREST) & (t < 300) & converged & (closing > 1e-3)
    return tl.where(found, t, tl.where(plane < MISS, far, MISS))


@triton.jit
def _wall(extent, o, d, face, t, number):  # type: ignore[no-untyped-def]
    along = nonzero(d)
    here = (tl.where(along > 0, extent, -extent) - o) / along
    face = tl.where(here < t, number + (along > 0).to(tl.int32), face)
    return face, tl.minimum(t, here)


@triton.jit
def cast(objects, terrain, half, outdoor, o0, o1, o2, d0, d1, d2):  # type: ignore[no-untyped-def]
    """`raycast.cast` for rays of one scene: t, `MISS` for the sky, and the surface ids (int32)."""
    best, found = nearest_object(objects, o0, o1, o2, d0, d1, d2)
    if outdoor > 0.5:
        hull = cast_to_ground(terrain, tl.load(half + 1), o0, o1, o2, d0, d1, d2)
        face = tl.where(hull < MISS, FACE_FLOOR, SKY)
    else:
        hull = tl.full(d0.shape, MISS, tl.float32)
        face = tl.zeros(d0.shape, tl.int32)
        face, hull = _wall(tl.load(half), o0, d0, face, hull, FACE_X0)
        face, hull = _wall(tl.load(half + 1), o1, d1, face, hull, FACE_X0 + 2)
        face, hull = _wall(tl.load(half + 2), o2, d2, face, hull, FACE_X0 + 4)
    return tl.minimum(best, hull), tl.where(best < hull, found, face)


@triton.jit
def normals(objects, terrain, outdoor, x, y, z, surface):  # type: ignore[no-untyped-def]
    """`raycast.normals`: outward unit normals at the hits of one scene."""
    row = objects + tl.minimum(surface, NUM_OBJECTS - 1) * OBJECT_WIDTH
    off0, off1, off2 = x - tl.load(row + CENTRE), y - tl.load(row + CENTRE + 1), z - tl.load(row + CENTRE + 2)
    u0, u1, u2 = to_local(row, off0, off1, off2)
    p0, p1, p2 = tl.load(row + PROFILE), tl.load(row + PROFILE + 1), tl.load(row + PROFILE + 2)
    leafy = (surface >= NUM_SOLIDS) & (surface < FACE_X0)
    p3 = tl.where(leafy, 0.0, tl.load(row + PROFILE + 3))
    excess_x = tl.abs(u0) - (p0 + p1 * u1)
    excess_y = tl.abs(u1) - 1
    excess_z = tl.abs(u2) - (p2 + p3 * u1)
    on_x = (excess_x >= excess_y) & (excess_x >= excess_z)
    on_y = (excess_y >= excess_z) & ((excess_x < excess_y) | (excess_x < excess_z))
    sign0, sign1, sign2 = tl.where(u0 >= 0, 1.0, -1.0), tl.where(u1 >= 0, 1.0, -1.0), tl.where(u2 >= 0, 1.0, -1.0)
    box0 = tl.where(on_x, sign0, 0.0)
    box1 = tl.where(on_y, sign1, tl.where(on_x, -p1, -p3))
    box2 = tl.where(on_x | on_y, 0.0, sign2)
    cap = 2 * excess_y > u0 * u0 + u2 * u2 - p0 - u1 * (p1 + p2 * u1)
    is_round = tl.load(row + SHAPE) > 0.5
    l0 = tl.where(is_round, tl.where(cap, 0.0, u0), box0)
    l1 = tl.where(is_round, tl.where(cap, sign1, -0.5 * p1 - p2 * u1), box1)
    l2 = tl.where(is_round, tl.where(cap, 0.0, u2), box2)
    n0 = tl.load(row) * l0 + tl.load(row + 3) * l1 + tl.load(row + 6) * l2  # A^T n
    n1 = tl.load(row + 1) * l0 + tl.load(row + 4) * l1 + tl.load(row + 7) * l2
    n2 = tl.load(row + 2) * l0 + tl.load(row + 5) * l1 + tl.load(row + 8) * l2
    if outdoor > 0.5:
        slope_x = tl.zeros(x.shape, tl.float32)
        slope_z = tl.zeros(x.shape, tl.float32)
        for wave in tl.static_range(WAVES):
            wave_row = terrain + wave * 4
            k_x, k_z = tl.load(wave_row + 1), tl.load(wave_row + 2)
            cosine = tl.load(wave_row) * tl.cos(k_x * x + k_z * z + tl.load(wave_row + 3))
            slope_x += k_x * cosine
            slope_z += k_z * cosine
        flattening = _flattening(x, z)
        h0, h1, h2 = -slope_x * flattening, -tl.full(x.shape, 1.0, tl.float32), -slope_z * flattening
    else:
        face = surface - FACE_X0
        inward = tl.where(face % 2 == 0, 1.0, -1.0)
        h0 = tl.where(face // 2 == 0, inward, 0.0)
        h1 = tl.where(face // 2 == 1, inward, 0.0)
        h2 = tl.where(face // 2 == 2, inward, 0.0)
    is_object = surface < FACE_X0
    n0, n1, n2 = tl.where(is_object, n0, h0), tl.where(is_object, n1, h1), tl.where(is_object, n2, h2)
    scale = tl.rsqrt(n0 * n0 + n1 * n1 + n2 * n2 + 1e-12)
    return n0 * scale, n1 * scale, n2 * scale
