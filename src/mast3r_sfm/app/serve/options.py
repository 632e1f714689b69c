"""What a client may ask of a reconstruction: options without paths, within bounds, by the names of the library."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from mast3r_sfm.app.requests import ModelRequest, ReconstructRequest
from mast3r_sfm.options import (
    AlignmentConfig,
    CameraModel,
    Compression,
    DenseOptions,
    ExportFormat,
    FootageOptions,
    IntrinsicsGroups,
    PhotoOptions,
    ReconstructionOptions,
    RefinementOptions,
    SceneGraph,
    SceneKind,
    SceneOptions,
    ServeLimits,
    Up,
    VerificationLimits,
)


def _of(owner: type, name: str, **bounds: Any) -> Any:
    """The field `name` of an option class: its default, its help text, and `bounds` of pydantic."""
    one = next(one for one in dataclasses.fields(owner) if one.name == name)
    minimum = {} if one.metadata["minimum"] is None else {"ge": one.metadata["minimum"]}
    return Field(one.default, description=one.metadata["help"], **(minimum | bounds))


class JobOptions(BaseModel):
    """Options of one reconstruction, all of them optional. They mean what the flags of `reconstruct` mean."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    image_size: int | None = Field(
        None, ge=32, le=1024, description="Long edge of the network's images [default: the server's]."
    )
    fps: float = _of(FootageOptions, "fps", gt=0, le=60)
    max_frames: int = _of(FootageOptions, "max_frames", le=100_000)
    scene_graph: str = Field(
        "usual",
        max_length=60,
        pattern=r"^[a-z0-9-]+$",  # of no file
        description="usual, complete, auto, video[-k], swin[-k][-noncyclic], logwin[-k][-noncyclic], oneref[-i], "
        "retrieval[-Na-k].",
    )
    niter: int = _of(AlignmentConfig, "niter_coarse", le=2000)
    refine_cameras: bool = Field(True, description="Adjust the aligned cameras to local features of the photos.")
    camera_model: CameraModel = _of(RefinementOptions, "camera_model")
    intrinsics_groups: IntrinsicsGroups = _of(ReconstructionOptions, "intrinsics_groups")
    verify_matches: bool = Field(True, description="Drop matches that the predicted geometry denies.")
    agree_depth: bool = Field(True, description="Smooth depth that the views agree on, and confidence by that.")
    sky: bool = _of(ReconstructionOptions, "sky")
    seed: int = _of(ReconstructionOptions, "seed", ge=0, lt=2**31)
    min_conf_thr: float | None = _of(SceneOptions, "min_conf_thr", allow_inf_nan=False)
    as_pointcloud: bool = _of(SceneOptions, "as_pointcloud")
    max_points: int = _of(SceneOptions, "max_points", le=20_000_000)
    clean_depth: bool = _of(SceneOptions, "clean_depth")
    scene: SceneKind = _of(SceneOptions, "scene")
    up: Up = _of(SceneOptions, "up")
    texture_size: int = _of(SceneOptions, "texture_size", le=8192)
    compress: Compression = _of(SceneOptions, "compress")
    exports: list[ExportFormat] = Field(
        default_factory=list, max_length=len(ExportFormat), description="Further formats of the result."
    )
    undistort: bool = _of(PhotoOptions, "undistort")
    max_image_size: int | None = _of(PhotoOptions, "max_image_size", le=20_000)
    georeference: bool = _of(ReconstructRequest, "georeference")
    report: bool = Field(True, description="Write report.html with the result; the page shows it in any case.")

    def request(self, photos: Path, model: ModelRequest, limits: ServeLimits) -> ReconstructRequest:
        """What the worker carries out on a folder of photos. Raises InputError for options that contradict."""
        return ReconstructRequest(
            inputs=(str(photos),),
            footage=FootageOptions(fps=self.fps, max_frames=max(2, min(self.max_frames, limits.max_photos))),
            model=model if self.image_size is None else dataclasses.replace(model, image_size=self.image_size),
            options=ReconstructionOptions(
                scene_graph=SceneGraph.parse(self.scene_graph),
                verification=VerificationLimits() if self.verify_matches else None,
                alignment=AlignmentConfig(niter_coarse=self.niter, niter_fine=self.niter),
                intrinsics_groups=self.intrinsics_groups,
                refinement=RefinementOptions(camera_model=self.camera_model) if self.refine_cameras else None,
                dense=DenseOptions() if self.agree_depth else None,
                sky=self.sky,
                seed=self.seed,
            ),
            scene=SceneOptions(
                min_conf_thr=self.min_conf_thr,
                as_pointcloud=self.as_pointcloud,
                max_points=self.max_points,
                clean_depth=self.clean_depth,
                scene=self.scene,
                up=self.up,
                texture_size=self.texture_size,
                compress=self.compress,
            ),
            exports=tuple(dict.fromkeys(self.exports)),
            photos=PhotoOptions(undistort=self.undistort, max_image_size=self.max_image_size),
            georeference=self.georeference,
            report=self.report,
            flags=self.model_dump(),
        )
