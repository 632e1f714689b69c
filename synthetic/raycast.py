"""Where rays meet the scene: exact intersections with convex primitives, porous ellipsoids and the hull.

The plain version, for any device; `raycast_triton` has the same formulas in one kernel.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from .layout import (
    FACE_FLOOR,
    FACE_X0,
    NUM_SOLIDS,
    SKY,
    ObjectColumns,
    Scenes,
    terrain_height,
    terrain_slope,
)
from .noise import hash3, hash_unit

MISS = 1e9
"""Ray parameter of a ray that meets nothing."""

NEAREST = 1e-3
"""Hits closer than this (metres along a ray of unit depth) are ignored: the surface that the ray left."""

TERRAIN_STEPS = 20
TERRAIN_REFINEMENTS = 4


def _nonzero(x: torch.Tensor) -> torch.Tensor:
    return torch.where(x.abs() < 1e-7, 1e-7, x)


def _clip_to_plane(
    enter: torch.Tensor, leave: torch.Tensor, normal_o: torch.Tensor, normal_d: torch.Tensor, bound: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Clips the interval [enter, leave] of a ray to the half space normal_o + t normal_d <= bound."""
    slope = _nonzero(normal_d)
    t = (bound - normal_o) / slope
    return torch.where(slope < 0, torch.maximum(enter, t), enter), torch.where(
        slope < 0, leave, torch.minimum(leave, t)
    )


def _inside_interval(
    o: list[torch.Tensor], d: list[torch.Tensor], shape: torch.Tensor, profile: list[torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Ray interval inside a primitive, in its local coordinates; empty (enter >= leave) if it is missed."""
    slab = _nonzero(d[1])
    low, high = (-1 - o[1]) / slab, (1 - o[1]) / slab
    enter, leave = torch.minimum(low, high), torch.maximum(low, high)
    # boxes whose sides may lean
    box_enter, box_leave = enter, leave
    for axis, width, lean in ((0, profile[0], profile[1]), (2, profile[2], profile[3])):
        for sign in (1.0, -1.0):
            box_enter, box_leave = _clip_to_plane(
                box_enter, box_leave, sign * o[axis] - lean * o[1], sign * d[axis] - lean * d[1], width
            )
    # quadrics of revolution
    p0, p1, p2 = profile[0], profile[1], profile[2]
    a = d[0] * d[0] + d[2] * d[2] - p2 * d[1] * d[1]
    b = o[0] * d[0] + o[2] * d[2] - d[1] * (0.5 * p1 + p2 * o[1])
    c = o[0] * o[0] + o[2] * o[2] - p0 - o[1] * (p1 + p2 * o[1])
    a = _nonzero(a)
    discriminant = b * b - a * c
    root = discriminant.clamp(min=0).sqrt()
    t0, t1 = (-b - root) / a, (-b + root) / a
    near, far = torch.minimum(t0, t1), torch.maximum(t0, t1)
    # A steep ray against a cone: inside is outside the roots, on the nappe that the slab cuts.
    steep = a < 0
    widening = d[1] * p1 > 0
    quadric_enter = torch.where(steep, torch.where(widening, far, -MISS), near)
    quadric_leave = torch.where(steep, torch.where(widening, MISS, near), far)
    missed = (discriminant <= 0) & ~steep
    round_enter = torch.maximum(enter, torch.where(missed, MISS, quadric_enter))
    round_leave = torch.minimum(leave, torch.where(missed, -MISS, quadric_leave))
    is_round = shape > 0.5
    return torch.where(is_round, round_enter, box_enter), torch.where(is_round, round_leave, box_leave)


def _local_rays(
    objects: torch.Tensor, o: torch.Tensor, d: torch.Tensor
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Origins and directions in the local coordinates of each object, the objects along the last axis."""
    from_centre = [o[..., k, None] - objects[..., ObjectColumns.CENTRE + k] for k in range(3)]
    along = [d[..., k, None] for k in range(3)]
    A = [[objects[..., ObjectColumns.A + 3 * i + k] for k in range(3)] for i in range(3)]
    local_o = [A[i][0] * from_centre[0] + A[i][1] * from_centre[1] + A[i][2] * from_centre[2] for i in range(3)]
    local_d = [A[i][0] * along[0] + A[i][1] * along[1] + A[i][2] * along[2] for i in range(3)]
    return local_o, local_d


def _leaf_at(
    local_o: list[torch.Tensor], local_d: list[torch.Tensor], t: torch.Tensor, objects: torch.Tensor
) -> torch.Tensor:
    """Whether a porous ellipsoid is solid where a ray crosses its surface: leaves are blobs on a jittered lattice."""
    density = 1.0 / objects[..., ObjectColumns.PROFILE + 3].clamp(min=1e-3)  # leaves per metre
    cell: list[torch.Tensor] = []
    inside: list[torch.Tensor] = []
    t = t.clamp(-1e3, 1e3)
    for k in range(3):
        x = (local_o[k] + t * local_d[k]) * objects[..., ObjectColumns.HALF_SIZE + k] * density
        floor = x.floor()
        cell.append(floor.to(torch.int32))
        inside.append(x - floor)
    bits = hash3(cell[0], cell[1], cell[2], torch.zeros_like(cell[0]) + 5)
    distance2 = torch.zeros_like(t)
    for k in range(3):
        distance2 = distance2 + (inside[k] - 0.25 - 0.5 * hash_unit(bits, k)) ** 2
    return distance2 < 0.24


def _nearest_leaf(objects: torch.Tensor, o: torch.Tensor, d: torch.Tensor) -> torch.Tensor:
    local_o, local_d = _local_rays(objects, o, d)
    profile = [objects[..., ObjectColumns.PROFILE + k] for k in range(3)] + [torch.zeros_like(objects[..., 0])]
    enter, leave = _inside_interval(local_o, local_d, objects[..., ObjectColumns.SHAPE], profile)
    crossed = (enter < leave) & (objects[..., ObjectColumns.ACTIVE] > 0.5)
    front = crossed & (enter > NEAREST) & _leaf_at(local_o, local_d, enter, objects)
    back = crossed & (leave > NEAREST) & _leaf_at(local_o, local_d, leave, objects)
    return torch.where(front, enter, torch.where(back, leave, MISS))


def _nearest_solid(objects: torch.Tensor, o: torch.Tensor, d: torch.Tensor) -> torch.Tensor:
    local_o, local_d = _local_rays(objects, o, d)
    profile = [objects[..., ObjectColumns.PROFILE + k] for k in range(4)]
    enter, leave = _inside_interval(local_o, local_d, objects[..., ObjectColumns.SHAPE], profile)
    hit = (enter < leave) & (enter > NEAREST) & (objects[..., ObjectColumns.ACTIVE] > 0.5)
    return torch.where(hit, enter, MISS)


def ground_gap(scenes: Scenes, o: torch.Tensor, d: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """Height (B, P) of the points o + t d above the ground."""
    height = terrain_height(scenes.terrain, o[..., 0] + t * d[..., 0], o[..., 2] + t * d[..., 2])
    return scenes.half[:, 1:2] - height - (o[..., 1] + t * d[..., 1])


def ground_newton(scenes: Scenes, o: torch.Tensor, d: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """A Newton step towards the crossing of the ground."""
    h = 1e-2 * t.clamp(min=0.1)
    slope = (ground_gap(scenes, o, d, t + h) - ground_gap(scenes, o, d, t - h)) / (2 * h)
    return t - ground_gap(scenes, o, d, t) / torch.where(slope < -1e-3, slope, -1e9)


def cast_to_ground(scenes: Scenes, o: torch.Tensor, d: torch.Tensor) -> torch.Tensor:
    """Where rays (B, P, 3) first cross the ground (B, P), `MISS` if nowhere: safe steps, then Newton's method.

    A safe step is as long as the ground cannot be nearer: its height over the speed at which it can close.
    """
    floor = scenes.half[:, 1:2]
    amplitude = scenes.terrain[:, :, 0].abs()
    top = amplitude.sum(-1, keepdim=True)
    steepest = 1.2 * (amplitude * scenes.terrain[:, :, 1:3].norm(dim=-1)).sum(-1, keepdim=True)
    closing = d[..., 1] + steepest * (d[..., 0] ** 2 + d[..., 2] ** 2).sqrt()
    down = _nonzero(d[..., 1])
    t = torch.where(down > 0, (floor - top - o[..., 1]) / down, 0.0).clamp(min=0)
    # a ray that grazes the ground may need more steps; far away the ground is flat, and its plane a good start
    plane = torch.where(down > 1e-3, (floor - o[..., 1]) / down, MISS)
    far = plane.clamp(max=2e3)
    for _ in range(TERRAIN_STEPS):
        t = t + ground_gap(scenes, o, d, t) / closing.clamp(min=1e-4)
    for _ in range(TERRAIN_REFINEMENTS):
        t, far = ground_newton(scenes, o, d, t), ground_newton(scenes, o, d, far)
    converged = ground_gap(scenes, o, d, t).abs() < 1e-4 * (1 + t)
    found = (t > NEAREST) & (t < 300) & converged & (closing > 1e-3)
    return torch.where(found, t, torch.where(plane < MISS, far, MISS))


class Shortlist(NamedTuple):
    """Ids of the objects that a bundle of rays of one scene may meet: solids (k,) and leaves (m,) int64, not empty."""

    solids: torch.Tensor
    leaves: torch.Tensor


def shortlist(scenes: Scenes, o: torch.Tensor, d: torch.Tensor) -> Shortlist:
    """The objects of a single scene whose bounding sphere meets the cone around all rays o + t d, o and d (1, P, 3).

    What makes small tiles fast on a CPU. On a GPU the host would have to wait for the list's length.
    """
    apex = (o[0].amin(0) + o[0].amax(0)) / 2
    apex_radius = (o[0] - apex).norm(dim=-1).amax()
    unit = torch.nn.functional.normalize(d[0], dim=-1)
    axis = torch.nn.functional.normalize(unit.mean(0), dim=-1)
    opening = torch.acos((unit @ axis).amin().clamp(-1, 1))
    objects = scenes.objects[0]
    towards = objects[:, ObjectColumns.CENTRE : ObjectColumns.CENTRE + 3] - apex
    distance = towards.norm(dim=-1).clamp(min=1e-6)
    reach = (objects[:, ObjectColumns.BOUND] + apex_radius) / distance
    angle = torch.acos((towards @ axis / distance).clamp(-1, 1))
    near = (reach >= 1) | (angle - torch.asin(reach.clamp(max=1)) <= opening + 1e-3)
    near = near & (objects[:, ObjectColumns.ACTIVE] > 0.5)
    near[0] = near[NUM_SOLIDS] = True  # a reduction needs an element
    ids = near.nonzero()[:, 0]
    return Shortlist(ids[ids < NUM_SOLIDS], ids[ids >= NUM_SOLIDS])


def _split(scenes: Scenes, near: Shortlist | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of the solids and of the leaves, (B, 1, n, WIDTH) each."""
    objects = scenes.objects[:, None]
    if near is None:
        return objects[..., :NUM_SOLIDS, :], objects[..., NUM_SOLIDS:, :]
    return objects[..., near.solids, :], objects[..., near.leaves, :]


def cast(
    scenes: Scenes, o: torch.Tensor, d: torch.Tensor, ground: torch.Tensor, near: Shortlist | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Casts rays o + t d into the scenes.

    o, d    (B, P, 3) float32 origins and directions (any length)
    ground  (B, P) where they cross the ground (`cast_to_ground`); read for outdoor scenes only
    near    the only objects to look at (one scene only); None: all
    Returns t (B, P) float32, `MISS` for the sky, and the surface ids (B, P) int64.
    """
    solids, leaves = _split(scenes, near)
    solid_t, solid = _nearest_solid(solids, o, d).min(-1)
    leaf_t, leaf = _nearest_leaf(leaves, o, d).min(-1)
    if near is None:
        leaf = leaf + NUM_SOLIDS
    else:
        solid, leaf = near.solids[solid], near.leaves[leaf]
    t = torch.minimum(solid_t, leaf_t)
    surface = torch.where(leaf_t < solid_t, leaf, solid)

    wall = torch.full_like(t, MISS)
    face = torch.zeros_like(surface)
    for k in range(3):
        extent = scenes.half[:, None, k]
        along = _nonzero(d[..., k])
        t_k = (torch.where(along > 0, extent, -extent) - o[..., k]) / along
        face = torch.where(t_k < wall, FACE_X0 + 2 * k + (along > 0).long(), face)
        wall = torch.minimum(wall, t_k)
    outdoor = scenes.outdoor[:, None] > 0.5
    hull = torch.where(outdoor, ground, wall)
    face = torch.where(outdoor, torch.where(ground < MISS, FACE_FLOOR, SKY), face)
    return torch.minimum(t, hull), torch.where(t < hull, surface, face)


def occluded(scenes: Scenes, o: torch.Tensor, d: torch.Tensor, near: Shortlist | None = None) -> torch.Tensor:
    """Whether an object (the hull casts no shadow) lies along the rays o + t d, t > 0: (B, P) bool."""
    solids, leaves = _split(scenes, near)
    return (_nearest_solid(solids, o, d) < MISS).any(-1) | (_nearest_leaf(leaves, o, d) < MISS).any(-1)


def normals(scenes: Scenes, points: torch.Tensor, surface: torch.Tensor, hit_objects: torch.Tensor) -> torch.Tensor:
    """Outward unit normals at the hits.

    points (B, P, 3), surface (B, P), hit_objects (B, P, ObjectColumns.WIDTH): rows of the objects hit
    (anything for the hull). Returns (B, P, 3).
    """
    g = hit_objects
    A = [[g[..., ObjectColumns.A + 3 * i + k] for k in range(3)] for i in range(3)]
    off = [points[..., k] - g[..., ObjectColumns.CENTRE + k] for k in range(3)]
    u = [A[i][0] * off[0] + A[i][1] * off[1] + A[i][2] * off[2] for i in range(3)]
    p0, p1, p2, p3 = (g[..., ObjectColumns.PROFILE + k] for k in range(4))
    leafy = (surface >= NUM_SOLIDS) & (surface < FACE_X0)
    p3 = torch.where(leafy, 0.0, p3)
    zero = torch.zeros_like(p0)
    # the face whose constraint is tightest
    excess_x = u[0].abs() - (p0 + p1 * u[1])
    excess_y = u[1].abs() - 1
    excess_z = u[2].abs() - (p2 + p3 * u[1])
    on_x = (excess_x >= excess_y) & (excess_x >= excess_z)
    on_y = ~on_x & (excess_y >= excess_z)
    sign = [torch.where(u[k] >= 0, 1.0, -1.0) for k in range(3)]
    box = [
        torch.where(on_x, sign[0], zero),
        torch.where(on_y, sign[1], torch.where(on_x, -p1, -p3)),
        torch.where(on_x | on_y, zero, sign[2]),
    ]
    cap = 2 * excess_y > u[0] * u[0] + u[2] * u[2] - p0 - u[1] * (p1 + p2 * u[1])
    quadric = [
        torch.where(cap, zero, u[0]),
        torch.where(cap, sign[1], -0.5 * p1 - p2 * u[1]),
        torch.where(cap, zero, u[2]),
    ]
    is_round = g[..., ObjectColumns.SHAPE] > 0.5
    local = [torch.where(is_round, quadric[k], box[k]) for k in range(3)]
    world = [A[0][k] * local[0] + A[1][k] * local[1] + A[2][k] * local[2] for k in range(3)]  # A^T n
    # hull: room faces look inwards, the ground upwards
    is_object = surface < FACE_X0
    face = surface - FACE_X0
    slope_x, slope_z = terrain_slope(scenes.terrain, points[..., 0], points[..., 2])
    outdoor = scenes.outdoor[:, None] > 0.5
    inward = [torch.where(face // 2 == k, 1.0 - 2.0 * (face % 2).float(), 0.0) for k in range(3)]
    ground = [-slope_x, -torch.ones_like(slope_x), -slope_z]
    n = [torch.where(is_object, world[k], torch.where(outdoor, ground[k], inward[k])) for k in range(3)]
    scale = torch.rsqrt(n[0] * n[0] + n[1] * n[1] + n[2] * n[2] + 1e-12)
    return torch.stack([n[k] * scale for k in range(3)], -1)
