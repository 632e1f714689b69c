"""The scene's meshes as USDZ, which phones of Apple show at a tap; by usd-core, an optional extra."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mast3r_sfm.errors import InputError
from mast3r_sfm.export.extras import require_for
from mast3r_sfm.export.meshes import scene_meshes
from mast3r_sfm.export.orientation import SceneFrame, shown_scene
from mast3r_sfm.export.surface import PhotoMesh, PlacedView
from mast3r_sfm.export.textures import Texture, photo_textures, texture_coordinates
from mast3r_sfm.options import ExportFormat, SceneOptions
from mast3r_sfm.types import ReconstructedScene


def write_usdz(scene: ReconstructedScene, path: Path, options: SceneOptions) -> None:
    """Writes the meshes with their photos, in the frame of the scene file, in metres and with y up; no cameras.

    Raises InputError if the library is missing, or if there is no triangle.
    """
    require_for(ExportFormat.USDZ)
    from pxr import Sdf, Usd, UsdGeom

    shown = shown_scene(scene, options)
    placed = () if shown is None else shown.placed
    _, meshes = scene_meshes(placed, scene.matches, options)
    if shown is None or not meshes:
        raise InputError(f"`min_conf_thr={options.threshold:g}` keeps no triangle: there is no scene to write")
    frame, textures = shown.frame, photo_textures(scene.registered, options.texture_size)
    with tempfile.TemporaryDirectory() as folder:
        stage = Usd.Stage.CreateNew(str(Path(folder) / "scene.usdc"))
        UsdGeom.SetStageUpAxis(stage, UsdGeom.Tokens.y)
        UsdGeom.SetStageMetersPerUnit(stage, 1.0)
        stage.SetDefaultPrim(UsdGeom.Xform.Define(stage, "/scene").GetPrim())
        _add_meshes(stage, Path(folder), placed, meshes, textures, frame)
        stage.GetRootLayer().Save()
        made = Path(folder) / "scene.usdz"
        package = Sdf.ZipFileWriter.CreateNew(str(made))
        for name in ("scene.usdc", *sorted(photo.name for photo in Path(folder).glob("*.jpg"))):
            package.AddFile(str(Path(folder) / name), name)  # the scene comes first
        package.Save()
        path.write_bytes(made.read_bytes())


def _add_meshes(
    stage: Any,
    folder: Path,
    placed: Sequence[PlacedView],
    meshes: Sequence[PhotoMesh],
    textures: Sequence[Texture],
    frame: SceneFrame,
) -> None:
    from pxr import Sdf, UsdGeom, UsdShade, Vt

    for number, mesh in enumerate(meshes):
        name, texture = f"/scene/surface_{number:03d}", textures[mesh.position]
        photo = folder / f"photo_{mesh.position:03d}.jpg"
        photo.write_bytes(texture.jpeg)
        uv = texture_coordinates(mesh.xy, placed[mesh.position].view, texture.camera)
        surface = UsdGeom.Mesh.Define(stage, name)
        surface.CreatePointsAttr(Vt.Vec3fArray.FromNumpy(frame.apply(mesh.vertices).astype(np.float32)))
        surface.CreateFaceVertexIndicesAttr(Vt.IntArray.FromNumpy(mesh.faces.reshape(-1).astype(np.int32)))
        surface.CreateFaceVertexCountsAttr(Vt.IntArray.FromNumpy(np.full(len(mesh.faces), 3, dtype=np.int32)))
        surface.CreateSubdivisionSchemeAttr(UsdGeom.Tokens.none)
        upwards = np.stack([uv[:, 0], 1 - uv[:, 1]], axis=1).astype(np.float32)  # v counts from the bottom in USD
        primvar = UsdGeom.PrimvarsAPI(surface).CreatePrimvar(
            "st", Sdf.ValueTypeNames.TexCoord2fArray, UsdGeom.Tokens.vertex
        )
        primvar.Set(Vt.Vec2fArray.FromNumpy(upwards))
        material = UsdShade.Material.Define(stage, f"{name}/material")
        shader = UsdShade.Shader.Define(stage, f"{name}/material/surface")
        shader.CreateIdAttr("UsdPreviewSurface")
        shader.CreateInput("diffuseColor", Sdf.ValueTypeNames.Color3f).Set((0.0, 0.0, 0.0))
        shader.CreateInput("roughness", Sdf.ValueTypeNames.Float).Set(1.0)
        reader = UsdShade.Shader.Define(stage, f"{name}/material/st")
        reader.CreateIdAttr("UsdPrimvarReader_float2")
        reader.CreateInput("varname", Sdf.ValueTypeNames.String).Set("st")
        image = UsdShade.Shader.Define(stage, f"{name}/material/photo")
        image.CreateIdAttr("UsdUVTexture")
        image.CreateInput("file", Sdf.ValueTypeNames.Asset).Set(f"./{photo.name}")
        image.CreateInput("sourceColorSpace", Sdf.ValueTypeNames.Token).Set("sRGB")
        for wrap in ("wrapS", "wrapT"):
            image.CreateInput(wrap, Sdf.ValueTypeNames.Token).Set("clamp")
        reader_output = reader.CreateOutput("result", Sdf.ValueTypeNames.Float2)
        image.CreateInput("st", Sdf.ValueTypeNames.Float2).ConnectToSource(reader_output)
        # the photos carry their light already: what they show shines by itself
        glow = shader.CreateInput("emissiveColor", Sdf.ValueTypeNames.Color3f)
        glow.ConnectToSource(image.CreateOutput("rgb", Sdf.ValueTypeNames.Float3))
        material.CreateSurfaceOutput().ConnectToSource(shader.CreateOutput("surface", Sdf.ValueTypeNames.Token))
        UsdShade.MaterialBindingAPI.Apply(surface.GetPrim()).Bind(material)
