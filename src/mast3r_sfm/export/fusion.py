"""One mesh through the depth maps of all views: a truncated signed distance in a sparse grid of voxels, and its zero.

Each view says of every voxel near its surface how far in front of the surface it lies; the mean over the views,
weighted by confidence, is zero on the surface that they agree on. Source: B. Curless, M. Levoy, "A volumetric method
for building complex models from range images", SIGGRAPH 1996. The zero is meshed by naive surface nets: a vertex in
every cell that it crosses, a quad around every edge of the grid that it crosses (S. Gibson, "Constrained elastic
surface nets", 1998).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations, product

import numpy as np

from mast3r_sfm.errors import InputError
from mast3r_sfm.export.surface import PhotoMesh, PlacedView
from mast3r_sfm.geometry import project
from mast3r_sfm.graphs import component_labels

_VOXEL_PX = 1.5
"""Side of a voxel in pixels of the network's images, at the median depth."""

_BAND = 4
"""Voxels in front of and behind the surface whose distance is kept, the truncation."""

_BLOCK = 4
"""Voxels on the side of a block, all of which exist if one is near a surface."""

_BITS = 20
_LEAST_ISLAND = 1e-3
"""Connected pieces below this share of all faces are left out."""

_FACING = 0.1
"""Least cosine of the angle under which a photo may cover a face."""

_CORNERS = np.array(list(product((0, 1), repeat=3)))
_EDGES = [(a, b) for a, b in combinations(range(8), 2) if np.abs(_CORNERS[a] - _CORNERS[b]).sum() == 1]


@dataclass(frozen=True)
class _Grid:
    """A sparse grid: voxel k has integer coordinates cells[k], its centre lies at origin + voxel * cells[k].

    keys  (n,) ascending int64, one number for the three coordinates
    """

    origin: np.ndarray
    voxel: float
    cells: np.ndarray
    keys: np.ndarray

    def find(self, cells: np.ndarray) -> np.ndarray:
        """(m,) places of cells (m, 3) in the grid, -1 where it has none."""
        keys = _keys(cells)
        place = np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)
        return np.where(self.keys[place] == keys, place, -1)


def fused_meshes(placed: Sequence[PlacedView], masks: Sequence[np.ndarray], max_faces: int) -> list[PhotoMesh]:
    """The surface that the views agree on, with at most `max_faces`, split by the photo that covers each face best.

    masks  (H, W) bool pixels of each view that take part

    Raises InputError if no size of voxel keeps the budget.
    """
    placed = [replace(one, kept=mask) for one, mask in zip(placed, masks, strict=True)]
    if not any(one.kept.any() for one in placed):
        return []
    depths = np.concatenate([one.view.depth[one.kept] / one.view.K[0, 0] for one in placed])
    voxel = _VOXEL_PX * float(np.median(depths))
    for _ in range(12):
        grid = _voxels_near_surfaces(placed, voxel)
        vertices, faces = _zero_of(grid, *_distances(grid, placed))
        faces = _without_islands(faces, len(vertices))
        if len(faces) <= max_faces:
            return _covered_by_photos(vertices, faces, placed, voxel)
        voxel *= max(1.05, math.sqrt(len(faces) / max_faces))
    raise InputError(f"`max_points={max_faces}` is too small for a fused mesh: raise it, or use `as_pointcloud=True`")


def _voxels_near_surfaces(placed: Sequence[PlacedView], voxel: float) -> _Grid:
    """The voxels of all blocks that the band around any kept point reaches.

    Blocks and not single voxels, because far away or edge on the points of neighbouring pixels lie voxels apart.
    """
    origin = np.min([one.points[one.kept].min(axis=0) for one in placed if one.kept.any()], axis=0) - 2 * _BAND * voxel
    found = []
    for one in placed:
        points = one.points[one.kept].astype(np.float64)
        normals = np.nan_to_num(one.normals[one.kept])
        for step in (-_BAND, 0, _BAND):
            blocks = np.floor((points + step * voxel * normals - origin) / (voxel * _BLOCK)).astype(np.int64)
            if len(blocks) and blocks.max() * _BLOCK >= 2**_BITS - _BLOCK - 2:
                raise InputError("the scene is too large for its finest details to be fused: use `scene=per-view`")
            found.append(np.unique(_keys(blocks)))
    blocks = _cells(np.unique(np.concatenate(found)))
    inside = np.array(list(product(range(_BLOCK), repeat=3)))
    keys = np.sort(_keys(_BLOCK * blocks[:, None] + inside).reshape(-1))
    return _Grid(origin, voxel, _cells(keys), keys)


def _distances(grid: _Grid, placed: Sequence[PlacedView]) -> tuple[np.ndarray, np.ndarray]:
    """(n,) mean distance in units of the band, positive in front of the surface, and (n,) bool: known to a view."""
    centres = grid.origin + grid.voxel * grid.cells
    band = _BAND * grid.voxel
    total, weights = np.zeros(len(centres)), np.zeros(len(centres))
    for one in placed:
        view = one.view
        z, place, seen = one.look_up(centres)
        # the distance along the line of sight times the cosine of its angle with the normal is that to the plane
        facing = np.clip(np.nan_to_num(one.facing, nan=1.0), _FACING, 1)
        weight = (view.conf * facing).flat[place]
        with np.errstate(invalid="ignore"):
            ahead = (view.depth.flat[place] - z) * facing.flat[place]
            near = seen & one.kept.flat[place] & (ahead > -band)
        total[near] += weight[near] * np.minimum(ahead[near] / band, 1)
        weights[near] += weight[near]
    known = weights > 0
    return np.divide(total, weights, out=np.ones(len(centres)), where=known), known


def _zero_of(grid: _Grid, distance: np.ndarray, known: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Vertices (N, 3) in the world and faces (F, 3) of the zero, counter-clockwise seen from the positive side."""
    corner_places = np.stack([grid.find(grid.cells + corner) for corner in _CORNERS], axis=1)
    complete = (corner_places >= 0).all(axis=1) & known[corner_places].all(axis=1)
    values = distance[corner_places]
    crossed = np.flatnonzero(complete & (values > 0).any(axis=1) & (values <= 0).any(axis=1))
    values = values[crossed]
    # a vertex is the mean of the places where the zero crosses the twelve edges of its cell
    total, count = np.zeros((len(crossed), 3)), np.zeros(len(crossed))
    for a, b in _EDGES:
        changes = (values[:, a] > 0) != (values[:, b] > 0)
        share = values[changes, a] / (values[changes, a] - values[changes, b])
        total[changes] += _CORNERS[a] + share[:, None] * (_CORNERS[b] - _CORNERS[a])
        count[changes] += 1
    vertices = grid.origin + grid.voxel * (grid.cells[crossed] + total / count[:, None])
    vertex_of = np.full(len(grid.keys), -1)
    vertex_of[crossed] = np.arange(len(crossed))
    quads = []
    for axis in range(3):
        step, (u, v) = np.eye(3, dtype=np.int64)[axis], np.eye(3, dtype=np.int64)[[(axis + 1) % 3, (axis + 2) % 3]]
        end = grid.find(grid.cells + step)
        changes = np.flatnonzero((end >= 0) & known & known[end] & ((distance > 0) != (distance[end] > 0)))
        around = np.stack([grid.find(grid.cells[changes] - offset) for offset in (0 * u, u, u + v, v)], axis=1)
        corners = np.where(around >= 0, vertex_of[around], -1)
        whole = (corners >= 0).all(axis=1)
        corners, outward = corners[whole], distance[changes[whole]] <= 0
        quads.append(np.where(outward[:, None], corners, corners[:, ::-1]))
    quad = np.concatenate(quads)
    # the shorter diagonal splits a quad
    diagonal = np.linalg.norm(vertices[quad[:, [0, 1]]] - vertices[quad[:, [2, 3]]], axis=2)
    quad = np.where((diagonal[:, 0] <= diagonal[:, 1])[:, None], quad, np.roll(quad, -1, axis=1))
    return vertices, np.concatenate([quad[:, [0, 1, 2]], quad[:, [0, 2, 3]]])


def _without_islands(faces: np.ndarray, num_vertices: int) -> np.ndarray:
    if not len(faces):
        return faces
    label = component_labels(num_vertices, np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]]]))[faces[:, 0]]
    return faces[(np.bincount(label) >= _LEAST_ISLAND * len(faces))[label]]


def _covered_by_photos(
    vertices: np.ndarray, faces: np.ndarray, placed: Sequence[PlacedView], voxel: float
) -> list[PhotoMesh]:
    """The faces by the photo that resolves them best among those that see them; without one, by any that looks there.

    Faces that no photo can show are left out.
    """
    normal = np.cross(vertices[faces[:, 1]] - vertices[faces[:, 0]], vertices[faces[:, 2]] - vertices[faces[:, 0]])
    normal /= np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-12)
    middle = vertices[faces].mean(axis=1)
    best, choice = np.full(len(faces), -np.inf), np.full(len(faces), -1)
    order = np.argsort([-np.count_nonzero(one.kept) for one in placed], kind="stable")
    for rank, position in enumerate(order):
        one = placed[position]
        z, place, seen = one.look_up(vertices)
        with np.errstate(invalid="ignore"):
            visible = seen & (np.abs(one.view.depth.flat[place] - z) < 2 * _BAND * voxel)
        rays = middle - one.centre
        facing = -np.sum(rays * normal, axis=1) / np.linalg.norm(rays, axis=1)
        with np.errstate(invalid="ignore", divide="ignore"):
            level = np.floor(np.log2(one.view.K[0, 0] * np.clip(facing, 1e-6, 1) / z[faces].mean(axis=1)))
        inside, shown = seen[faces].all(axis=1), visible[faces].all(axis=1)
        # a level is twice the resolution; views of one level take their turn by size, so that patches are large
        score = level - rank / len(placed) - 1000.0 * ~shown - 2000.0 * (facing <= _FACING)
        score = np.where(inside, score, -np.inf)
        choice[score > best] = position
        best = np.maximum(best, score)
    meshes = []
    for position, one in enumerate(placed):
        own = faces[choice == position]
        if not len(own):
            continue
        used, local = np.unique(own, return_inverse=True)
        seen_points = (vertices[used] - one.centre) @ one.view.world_from_cam[:3, :3]
        xy = project(seen_points, one.view.K, one.view.distortion)
        meshes.append(PhotoMesh(vertices[used], local.reshape(-1, 3), xy, position))
    return meshes


def _cells(keys: np.ndarray) -> np.ndarray:
    """(n, 3) int64 coordinates of which `_keys` made the numbers (n,)."""
    mask = 2**_BITS - 1
    return np.stack([keys >> 2 * _BITS, keys >> _BITS & mask, keys & mask], axis=1)


def _keys(cells: np.ndarray) -> np.ndarray:
    """(..., ) int64: one number for coordinates (..., 3) of 0 to 2^20 - 1."""
    return (cells[..., 0] << 2 * _BITS) | (cells[..., 1] << _BITS) | cells[..., 2]
