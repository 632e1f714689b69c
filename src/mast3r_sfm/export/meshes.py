"""The surface of the scene as meshes with photos on them: one of every view, of the places that it shows best."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mast3r_sfm.errors import InputError
from mast3r_sfm.export.surface import PlacedView, Surface, thinned_surface


@dataclass(frozen=True)
class PhotoMesh:
    """A surface that one photo covers.

    vertices  (N, 3) world
    faces     (F, 3) int, counter-clockwise seen from the front, the side of the cameras
    xy        (N, 2) pixels of the network's image of the photo, at which it shows the vertices
    position  of the photo's view among those that have a place in the scene
    """

    vertices: np.ndarray
    faces: np.ndarray
    xy: np.ndarray
    position: int


def view_meshes(placed: Sequence[PlacedView], surfaces: Sequence[Surface]) -> list[PhotoMesh]:
    """Of every view whose surface has triangles."""
    meshes = []
    for position, (one, surface) in enumerate(zip(placed, surfaces, strict=True)):
        if not surface.num_faces:
            continue
        xy, faces = surface.indexed()
        meshes.append(PhotoMesh(one.points[xy[:, 1], xy[:, 0]], faces, xy.astype(np.float64), position))
    return meshes


def surfaces_within_budget(
    placed: Sequence[PlacedView], masks: Sequence[np.ndarray], depth_jump: float, max_faces: int
) -> tuple[float, list[Surface]]:
    """The surfaces of the pixels of `masks` on the finest common stride that keeps the budget, and that stride.

    Surfaces without any triangle, at stride 1, are returned too. Raises InputError if the budget is below any stride.
    """
    depths = [one.view.depth for one in placed]
    coarsest = float(max(max(depth.shape) for depth in depths))
    stride = 1.0
    while True:
        surfaces = [
            thinned_surface(mask, depth, depth_jump, stride) for mask, depth in zip(masks, depths, strict=True)
        ]
        num_faces = sum(surface.num_faces for surface in surfaces)
        if num_faces <= max_faces and (num_faces or stride == 1):
            return stride, surfaces
        if stride >= coarsest or not num_faces:
            raise InputError(
                f"`max_points={max_faces}` is too small for meshes of {len(placed)} images: "
                f"raise it, for example to {2000 * len(placed)}, or use `as_pointcloud=True`"
            )
        # the number of faces goes with the square of the stride
        stride = min(coarsest, stride * max(1.01, math.sqrt(num_faces / max_faces)))
