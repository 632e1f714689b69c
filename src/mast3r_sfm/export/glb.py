"""The scene as one GLB file: the photographed surface as meshes or points, and the cameras.

Lengths are scene units, y is up by gravity, and the scene lies around the origin so that a viewer that opens looking
along -z looks the way the first cameras look (`orientation`). Everything is unlit and shows the colours of the photos.
A mesh carries its photo as a texture, which is sharp however far the budget thins the mesh, and which every viewer
shows alike. Points have vertex colours; glTF wants those in linear light, so viewers that follow the standard
(three.js, Babylon.js, Blender) show the photo's colours, while a program that takes them for sRGB (trimesh) shows them
too dark.

Surfaces are seen from the side of the cameras only: who looks into a room from outside looks through its near walls.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from mast3r_sfm._version import __version__
from mast3r_sfm.errors import EmptySceneError
from mast3r_sfm.export.compression import check_compression
from mast3r_sfm.export.frusta import COLOURS, default_camera_size, frustum_corners, frustum_wires
from mast3r_sfm.export.gltf import GlbBuilder
from mast3r_sfm.export.meshes import scene_meshes
from mast3r_sfm.export.orientation import SceneFrame, ShownScene, shown_scene
from mast3r_sfm.export.surface import PhotoMesh, PlacedView, chosen_pixels, kept_pixels, thinned_surface
from mast3r_sfm.export.textures import SMALL_PX, Texture, photo_textures, texture_coordinates
from mast3r_sfm.geometry import OPENGL_FROM_OPENCV
from mast3r_sfm.options import SceneOptions
from mast3r_sfm.types import ReconstructedScene, ReconstructedView

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SceneStatistics:
    """What a scene file holds.

    num_views     registered views
    num_pixels    their pixels
    num_kept      those above the confidence threshold, opaque and valid
    num_vertices  points, or vertices of the meshes, without what several views show and within the budget
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


def write_glb(
    reconstruction: ReconstructedScene, path: Path, options: SceneOptions, shown: ShownScene | None = None
) -> SceneStatistics:
    """Writes the registered views of a reconstruction as a GLB file; `shown` is what it shows, if known already.

    Raises EmptySceneError (an InputError) if no point or triangle is left, and InputError if the library of
    `options.compress` is missing; nothing is written then.
    """
    check_compression(options.compress)
    views = reconstruction.registered
    shown = shown or shown_scene(reconstruction, options)
    if shown is None:
        raise EmptySceneError("No image is registered: there is no scene to write", None)
    placed, frame = shown.placed, shown.frame
    builder = GlbBuilder(f"mast3r-sfm {__version__}", options.compress)
    stride, num_faces, textures, on_mesh = 1.0, 0, None, {}
    if options.as_pointcloud:
        if not any(one.kept.any() for one in placed):
            raise _empty_scene(views, options)
        num_vertices = _add_points(builder, placed, frame, options.max_points)
    else:
        stride, meshes = scene_meshes(placed, reconstruction.matches, options)
        num_faces = sum(len(mesh.faces) for mesh in meshes)
        if not num_faces:
            raise _empty_scene(views, options)
        textures = photo_textures(views, options.texture_size)
        num_vertices = sum(len(mesh.vertices) for mesh in meshes)
        on_mesh = _add_meshes(builder, placed, meshes, textures, frame)
    camera_size = None
    if options.cameras:
        textures = textures or photo_textures(views, SMALL_PX)
        camera_size = options.camera_size or _fitting_camera_size(placed)
        _add_cameras(builder, views, frame, camera_size, textures, on_mesh)
    file_bytes = builder.write(path)
    logger.info("%s: %d vertices, %d faces, %.1f MB", path.name, num_vertices, num_faces, file_bytes / 1e6)
    return SceneStatistics(
        num_views=len(views),
        num_pixels=sum(view.depth.size for view in views),
        num_kept=sum(
            int(np.count_nonzero(kept_pixels(view, options.threshold, options.clean_depth))) for view in views
        ),
        num_vertices=num_vertices,
        num_faces=num_faces,
        stride=stride,
        drawn_camera_size=camera_size,
        file_bytes=file_bytes,
    )


def _add_points(builder: GlbBuilder, placed: Sequence[PlacedView], frame: SceneFrame, max_points: int) -> int:
    """Adds the kept pixels, or a random subset of them (always the same one). Returns the number of points."""
    chosen = chosen_pixels(placed, max_points)
    positions = [frame.apply(one.points.reshape(-1, 3)[pixels]) for one, pixels in zip(placed, chosen, strict=True)]
    colours = [one.view.rgb.reshape(-1, 3)[pixels] for one, pixels in zip(placed, chosen, strict=True)]
    material = builder.add_material("points")
    primitive = builder.points(np.concatenate(positions), np.concatenate(colours), material)
    builder.add_group("points", [builder.add_mesh("points", [primitive])])
    return sum(map(len, chosen))


def _add_meshes(
    builder: GlbBuilder,
    placed: Sequence[PlacedView],
    meshes: Sequence[PhotoMesh],
    textures: Sequence[Texture],
    frame: SceneFrame,
) -> dict[int, int]:
    """Adds the meshes with their photos. Returns the texture of every view added, by the view's index."""
    nodes = []
    added: dict[int, int] = {}
    for mesh in meshes:
        view, texture = placed[mesh.position].view, textures[mesh.position]
        added[view.index] = builder.add_texture(texture.jpeg, _label(view))
        material = builder.add_material(_label(view), texture=added[view.index])
        uv = texture_coordinates(mesh.xy, view, texture.camera)
        primitive = builder.triangles(frame.apply(mesh.vertices), mesh.faces, material, uv)
        nodes.append(builder.add_mesh(_label(view), [primitive]))
    builder.add_group("surfaces", nodes)
    return added


def _add_cameras(
    builder: GlbBuilder,
    views: Sequence[ReconstructedView],
    frame: SceneFrame,
    size: float,
    textures: Sequence[Texture],
    on_mesh: dict[int, int],
) -> None:
    """Adds a camera for every view, named after its photo, and in its frame a pyramid with the photo on its base.

    The base is flat, so it shows the photo of a lens that distorts straightened. A camera of glTF has its principal
    point in the middle of the picture: the pyramid shows the true one, and the camera's extras name it.

    on_mesh  textures of the file that meshes have, by index of the view
    """
    wire_materials = [
        builder.add_material(f"camera {srgb}", srgb=srgb, double_sided=True) for srgb in COLOURS[: len(views)]
    ]
    nodes = []
    for number, (view, texture) in enumerate(zip(views, textures, strict=True)):
        straight = texture.straight
        corners = frustum_corners(straight.K, straight.size[::-1], size)
        wires, wire_faces = frustum_wires(corners, np.zeros(3), size)
        picture = on_mesh.get(view.index) if texture.is_straight else None
        if picture is None:
            picture = builder.add_texture(texture.small_jpeg, _label(view))
        photo = builder.add_material(f"photo {view.index:03d}", texture=picture, double_sided=True)
        turn = OPENGL_FROM_OPENCV[:3, :3]
        corner_faces, corner_uv = np.array([[0, 3, 1], [1, 3, 2]]), np.array([[0, 0], [1, 0], [1, 1], [0, 1]])
        primitives = [
            builder.triangles(wires @ turn, wire_faces, wire_materials[number % len(COLOURS)]),
            builder.triangles(corners @ turn, corner_faces, photo, corner_uv),
        ]
        (width, height), (fx, fy) = straight.size, straight.focal_xy
        nodes.append(
            builder.add_camera(
                _file_name(view),
                yfov=2 * math.atan(height / (2 * fy)),
                aspect=(width / fx) / (height / fy),
                near=1.01 * corners[0, 2],  # who looks through the camera does not see its own pyramid
                pose=frame.gltf_from_world @ view.world_from_cam @ OPENGL_FROM_OPENCV,
                children=[builder.add_mesh(f"camera {view.index:03d}", primitives)],
                extras=_camera_extras(view),
            )
        )
    builder.add_group("cameras", nodes)


def _camera_extras(view: ReconstructedView) -> dict[str, Any]:
    """What a camera of glTF cannot say, as `cameras.json` says it."""
    return {
        "K_original": view.K_original.tolist(),
        "original_size": list(view.transform.original_size),
        "distortion_k1": view.distortion,
    }


def _fitting_camera_size(placed: Sequence[PlacedView]) -> float:
    depths = np.concatenate([one.view.depth[one.kept][::16] for one in placed])
    return default_camera_size(np.stack([one.centre for one in placed]), float(np.median(depths)))


def _file_name(view: ReconstructedView) -> str:
    return Path(view.file).name.encode("utf-8", "replace").decode()  # names need not be valid Unicode, JSON must


def _label(view: ReconstructedView) -> str:
    return f"{view.index:03d} {_file_name(view)}"


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
