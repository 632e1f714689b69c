"""The surface of the scene as meshes with photos on them: of every view what it shows best, or one fused from all."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from mast3r_sfm.errors import InputError
from mast3r_sfm.export.flatness import flat_view
from mast3r_sfm.export.fusion import fused_meshes
from mast3r_sfm.export.surface import PhotoMesh, PlacedView, Surface, thinned_surface
from mast3r_sfm.export.thinning import best_view_masks, whole_surfaces
from mast3r_sfm.options import SceneKind, SceneOptions
from mast3r_sfm.types import Correspondences


def scene_meshes(
    placed: Sequence[PlacedView], matches: Sequence[Correspondences], options: SceneOptions
) -> tuple[float, list[PhotoMesh]]:
    """The meshes that `options` ask for, none if nothing is left, and the pixels between neighbouring vertices.

    Raises InputError if the budget is too small.
    """
    step = placed[0].step if placed else 1
    placed = [flat_view(one, options.depth_jump) for one in placed]
    depth_jump = step * options.depth_jump  # over twice the distance a slanted surface changes twice as much
    if options.scene is SceneKind.FUSED:
        return float(step), fused_meshes(placed, whole_surfaces(placed, depth_jump), options.max_points)
    masks = best_view_masks(placed, matches, depth_jump)
    stride, surfaces = surfaces_within_budget(placed, masks, depth_jump, options.max_points)
    return step * stride, view_meshes(placed, surfaces)


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
        surfaces = [thinned_surface(mask, depth, depth_jump, stride) for mask, depth in zip(masks, depths, strict=True)]
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
