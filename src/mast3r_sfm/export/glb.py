"""The scene as one GLB file: the photographed surface as meshes or points, and the cameras.

Axes follow glTF: y up, the first registered camera at the origin, looking along +z of the file; lengths are scene
units. Everything is unlit and shows the colours of the photos. A mesh carries its photo as a texture, which is sharp
however far the budget thins the mesh, and which every viewer shows alike. Points have vertex colours; glTF wants
those in linear light, so viewers that follow the standard (three.js, Babylon.js, Blender) show the photo's colours,
while a program that takes them for sRGB (trimesh) shows them too dark.

Surfaces are double-sided by their material. Writing every triangle twice instead would double the faces.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from mast3r_sfm._version import __version__
from mast3r_sfm.errors import EmptySceneError, InputError
from mast3r_sfm.export.files import encode_jpeg
from mast3r_sfm.export.frusta import COLOURS, default_camera_size, frustum_corners, frustum_wires
from mast3r_sfm.export.gltf import GlbBuilder
from mast3r_sfm.export.optics import PictureCamera, straightened_picture, without_distortion
from mast3r_sfm.export.surface import Surface, kept_pixels, thinned_surface
from mast3r_sfm.options import SceneOptions
from mast3r_sfm.types import ReconstructedScene, ReconstructedView

logger = logging.getLogger(__name__)

_CAMERA_TEXTURE_PX = 256
_GLTF_FROM_OPENCV = np.diag([-1.0, -1.0, 1.0])  # half a turn about z: x left, y up, still looking along +z


@dataclass(frozen=True)
class SceneStatistics:
    """What a scene file holds.

    num_views     registered views
    num_pixels    their pixels
    num_kept      those above the confidence threshold, opaque and valid
    num_vertices  points, or vertices of the meshes, after thinning to the budget
    num_faces     triangles, 0 for a point cloud
    stride        pixels between neighbouring vertices of a mesh; 1 if nothing was thinned and for points
    drawn_camera_size  height of the base of the cameras, scene units; None without cameras
    file_bytes    size of the file
    """

    num_views: int
    num_pixels: int
    num_kept: int
    num_vertices: int
    num_faces: int
    stride: float
    drawn_camera_size: float | None
    file_bytes: int

    @property
    def share_kept(self) -> float:
        """Share of the pixels of registered views that passed the confidence threshold."""
        return self.num_kept / self.num_pixels


def write_glb(reconstruction: ReconstructedScene, path: Path, options: SceneOptions) -> SceneStatistics:
    """Writes the registered views of a reconstruction as a GLB file.

    Raises EmptySceneError (an InputError) if no point or triangle is left; nothing is written then.
    """
    views = reconstruction.registered
    if not views:
        raise EmptySceneError("No image is registered: there is no scene to write", None)
    kept = [kept_pixels(view, options.threshold, options.clean_depth) for view in views]
    num_kept = sum(int(np.count_nonzero(k)) for k in kept)
    world_from_first = views[0].world_from_cam
    builder = GlbBuilder(f"mast3r-sfm {__version__}")
    textures: dict[int, int] = {}  # by index of the view
    if options.as_pointcloud:
        stride, num_faces = 1.0, 0
        if not num_kept:
            raise _empty_scene(views, options)
        num_vertices = _add_points(builder, views, kept, world_from_first, options.max_points)
    else:
        stride, surfaces = _surfaces_within_budget(views, kept, options)
        num_faces = sum(surface.num_faces for surface in surfaces)
        if not num_faces:
            raise _empty_scene(views, options)
        num_vertices, textures = _add_meshes(builder, views, surfaces, world_from_first)
    camera_size = None
    if options.cameras:
        camera_size = options.camera_size or _fitting_camera_size(views, kept)
        _add_cameras(builder, views, world_from_first, camera_size, textures)
    file_bytes = builder.write(path)
    logger.info("%s: %d vertices, %d faces, %.1f MB", path.name, num_vertices, num_faces, file_bytes / 1e6)
    return SceneStatistics(
        num_views=len(views),
        num_pixels=sum(view.depth.size for view in views),
        num_kept=num_kept,
        num_vertices=num_vertices,
        num_faces=num_faces,
        stride=stride,
        drawn_camera_size=camera_size,
        file_bytes=file_bytes,
    )


def gltf_from_world(points: np.ndarray, world_from_first: np.ndarray) -> np.ndarray:
    """Points (..., 3) of the world frame in the axes of the file, float64.

    X_gltf = diag(-1, -1, 1) R^T (X - t), with R and t of the first camera's pose `world_from_first` (4, 4).
    """
    return (points - world_from_first[:3, 3]) @ (world_from_first[:3, :3] @ _GLTF_FROM_OPENCV)


def _add_points(
    builder: GlbBuilder,
    views: Sequence[ReconstructedView],
    kept: Sequence[np.ndarray],
    world_from_first: np.ndarray,
    max_points: int,
) -> int:
    """Adds the kept pixels, or a random subset of them (always the same one). Returns the number of points."""
    ends = np.cumsum([np.count_nonzero(k) for k in kept])
    total = int(ends[-1])
    chosen = np.ones(total, dtype=bool)
    if total > max_points:
        # a random subset, because a regular one shows up as stripes
        chosen[:] = False
        chosen[np.random.default_rng(0).choice(total, max_points, replace=False, shuffle=False)] = True
    positions, colours = [], []
    for view, view_kept, view_chosen in zip(views, kept, np.split(chosen, ends[:-1]), strict=True):
        pixels = np.flatnonzero(view_kept)[view_chosen]
        positions.append(_positions(view, pixels, world_from_first))
        colours.append(view.rgb.reshape(-1, 3)[pixels])
    material = builder.add_material("points")
    primitive = builder.points(np.concatenate(positions), np.concatenate(colours), material)
    builder.add_group("points", [builder.add_mesh("points", [primitive])])
    return min(total, max_points)


def _positions(view: ReconstructedView, pixels: np.ndarray, world_from_first: np.ndarray) -> np.ndarray:
    """Points (N, 3) of a view in the axes of the file, for flat indices (N,) of valid pixels."""
    with np.errstate(invalid="ignore"):  # other pixels may be infinite
        return gltf_from_world(view.points_world().reshape(-1, 3)[pixels], world_from_first)


def _surfaces_within_budget(
    views: Sequence[ReconstructedView], kept: Sequence[np.ndarray], options: SceneOptions
) -> tuple[float, list[Surface]]:
    """The surfaces of all views on the finest common stride that keeps the budget, and that stride."""
    coarsest = float(max(max(view.depth.shape) for view in views))
    stride = 1.0
    while True:
        surfaces = [
            thinned_surface(k, view.depth, options.depth_jump, stride) for view, k in zip(views, kept, strict=True)
        ]
        num_faces = sum(surface.num_faces for surface in surfaces)
        if num_faces <= options.max_points and (num_faces or stride == 1):
            return stride, surfaces
        if stride >= coarsest or not num_faces:
            raise InputError(
                f"`max_points={options.max_points}` is too small for meshes of {len(views)} images: "
                f"raise it, for example to {2000 * len(views)}, or use `as_pointcloud=True`"
            )
        # the number of faces goes with the square of the stride
        stride = min(coarsest, stride * max(1.01, math.sqrt(num_faces / options.max_points)))


def _add_meshes(
    builder: GlbBuilder,
    views: Sequence[ReconstructedView],
    surfaces: Sequence[Surface],
    world_from_first: np.ndarray,
) -> tuple[int, dict[int, int]]:
    """Adds a textured mesh for every view that has triangles.

    Returns the number of vertices, and the texture of every view added, by the view's index.
    """
    nodes, num_vertices, textures = [], 0, {}
    for view, surface in zip(views, surfaces, strict=True):
        if not surface.num_faces:
            continue
        pixels, faces = surface.indexed()
        H, W = view.depth.shape
        vertices = _positions(view, pixels[:, 1] * W + pixels[:, 0], world_from_first)
        textures[view.index] = builder.add_texture(encode_jpeg(view.rgb), _label(view))
        material = builder.add_material(_label(view), texture=textures[view.index])
        uv = (pixels + 0.5) / [W, H]
        nodes.append(builder.add_mesh(_label(view), [builder.triangles(vertices, faces, material, uv)]))
        num_vertices += len(vertices)
    builder.add_group("surfaces", nodes)
    return num_vertices, textures


def _add_cameras(
    builder: GlbBuilder,
    views: Sequence[ReconstructedView],
    world_from_first: np.ndarray,
    size: float,
    textures: dict[int, int],
) -> None:
    """Adds a frustum for every view, with the photo on its base: the texture of its mesh or, without, a small copy.

    The base is flat, so the photo of a lens that distorts is straightened for it, always as a small copy.
    """
    wire_materials = [builder.add_material(f"camera {srgb}", srgb=srgb) for srgb in COLOURS[: len(views)]]
    nodes = []
    for number, view in enumerate(views):
        rotation, centre = view.world_from_cam[:3, :3], view.world_from_cam[:3, 3]
        camera = PictureCamera((view.depth.shape[1], view.depth.shape[0]), view.K, view.distortion)
        straight = without_distortion(camera)
        corners = frustum_corners(straight.K, straight.size[::-1], size) @ rotation.T + centre
        wires, wire_faces = frustum_wires(corners, centre, size)
        texture = textures.get(view.index) if straight is camera else None
        if texture is None:
            picture = _small_copy(straightened_picture(view.rgb, camera, straight))
            texture = builder.add_texture(encode_jpeg(picture), _label(view))
        photo = builder.add_material(f"photo {view.index:03d}", texture=texture)
        primitives = [
            builder.triangles(
                gltf_from_world(wires, world_from_first), wire_faces, wire_materials[number % len(COLOURS)]
            ),
            builder.triangles(
                gltf_from_world(corners, world_from_first),
                np.array([[0, 3, 1], [1, 3, 2]]),
                photo,
                np.array([[0, 0], [1, 0], [1, 1], [0, 1]]),
            ),
        ]
        nodes.append(builder.add_mesh(f"camera {view.index:03d}", primitives))
    builder.add_group("cameras", nodes)


def _fitting_camera_size(views: Sequence[ReconstructedView], kept: Sequence[np.ndarray]) -> float:
    depths = np.concatenate([view.depth[k][::16] for view, k in zip(views, kept, strict=True)])
    return default_camera_size(np.stack([view.world_from_cam[:3, 3] for view in views]), float(np.median(depths)))


def _small_copy(rgb: np.ndarray) -> np.ndarray:
    import cv2

    H, W = rgb.shape[:2]
    scale = min(1.0, _CAMERA_TEXTURE_PX / max(H, W))
    return cv2.resize(rgb, (max(1, round(W * scale)), max(1, round(H * scale))), interpolation=cv2.INTER_AREA)


def _label(view: ReconstructedView) -> str:
    name = Path(view.file).name.encode("utf-8", "replace").decode()  # names need not be valid Unicode, JSON must
    return f"{view.index:03d} {name}"


def _empty_scene(views: Sequence[ReconstructedView], options: SceneOptions) -> EmptySceneError:
    """The error for a scene without content, with a threshold that was tried and found to keep something."""
    what = "point" if options.as_pointcloud else "triangle"
    lead = f"`min_conf_thr={options.threshold:g}` keeps no {what}"
    conf = np.concatenate(
        [
            (view.conf_clean if options.clean_depth else view.conf)[kept_pixels(view, 0.0, options.clean_depth)]
            for view in views
        ]
    )
    conf = conf[np.isfinite(conf)]
    if not conf.size:
        return EmptySceneError(f"{lead}, and no other value would: no pixel has a valid depth and confidence", None)
    lead += f" (the highest confidence is {conf.max():.3g})"
    for share in (0.5, 0.75, 0.9, 1.0):
        # two decimals, and strictly below the confidences it is to keep
        threshold = math.ceil(float(np.quantile(conf, 1 - share)) * 100) / 100 - 0.01
        if threshold < options.threshold and _shows_something(views, replace(options, min_conf_thr=threshold)):
            kept_share = np.count_nonzero(conf > threshold) / sum(view.depth.size for view in views)
            message = f"{lead}: `min_conf_thr={threshold:.2f}` would keep {kept_share:.0%} of the pixels"
            return EmptySceneError(message, round(threshold, 2))
    return EmptySceneError(
        f"{lead} and no other value would, as depths jump everywhere: use `as_pointcloud=True`", None
    )


def _shows_something(views: Sequence[ReconstructedView], options: SceneOptions) -> bool:
    for view in views:
        kept = kept_pixels(view, options.threshold, options.clean_depth)
        if options.as_pointcloud and kept.any():
            return True
        if not options.as_pointcloud and thinned_surface(kept, view.depth, options.depth_jump, 1.0).num_faces:
            return True
    return False
