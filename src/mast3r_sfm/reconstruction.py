"""The result in a user's hands: its cameras and depth, and their way into files."""

from __future__ import annotations

import dataclasses
import logging
import math
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mast3r_sfm._version import __version__
from mast3r_sfm.errors import InputError
from mast3r_sfm.export.cameras import verdict_entry
from mast3r_sfm.export.folders import explained_writing, scene_folder
from mast3r_sfm.export.formats import exporter_of
from mast3r_sfm.export.georeference import georeference_of
from mast3r_sfm.export.glb import SceneStatistics
from mast3r_sfm.export.result import STORE, ResultPart, stored_threshold, write_result
from mast3r_sfm.export.store import load_reconstruction
from mast3r_sfm.options import ExportFormat, PhotoOptions, ReconstructionOptions, SceneOptions
from mast3r_sfm.types import ModelDescription, PairSummary, ReconstructedScene

logger = logging.getLogger(__name__)

LEAST_SHARE = 0.03
"""Share of the pixels below which a scene is next to empty, so that the default threshold gives way."""

SHARE_INSTEAD = 0.2
"""Share of the pixels, the most confident ones, that the scene is written from then."""


@dataclass(frozen=True)
class Reconstruction(ReconstructedScene):
    """Cameras, depth and confidence of every image, and how they came about.

    views    of all images, in their order (`ReconstructedView`); those that connect are `registered`
    matches  that entered the alignment, one `Correspondences` a pair of images
    model, options   that made it; None for a result that was read from a folder
    image_hashes     sha256 of every image file
    pairs    every pair looked at
    seconds  of every stage
    others   results of further groups of three images and more, each with its own images and frame; `save` writes them
             into scene_1, scene_2, ... of the folder
    default_min_conf_thr   threshold of the scene unless one is named; of a result that was read: that of its own scene
    """

    model: ModelDescription | None = None
    options: ReconstructionOptions | None = None
    image_hashes: tuple[str, ...] = ()
    pairs: tuple[PairSummary, ...] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)
    others: tuple[Reconstruction, ...] = ()
    default_min_conf_thr: float | None = None

    @classmethod
    def load(cls, folder: str | Path) -> Reconstruction:
        """The result in a folder that `save` wrote, without its history. Raises InputError if there is none."""
        scene = load_reconstruction(Path(folder) / STORE)
        own = {one.name: getattr(scene, one.name) for one in dataclasses.fields(ReconstructedScene)}
        return cls(**own, default_min_conf_thr=stored_threshold(Path(folder)))

    def georeferenced(self, scene: SceneOptions | None = None, seed: int = 0) -> Reconstruction:
        """The same with its place on the earth by the photos' GPS positions; exports are in its metres then.

        Further scenes are placed as well (`with_others_georeferenced`). Raises InputError if fewer than three photos
        have a position, or if they do not settle the place.
        """
        place = georeference_of(self, self._with_threshold(scene), seed)
        return dataclasses.replace(self.with_others_georeferenced(scene, seed), georeference=place)

    def with_others_georeferenced(self, scene: SceneOptions | None = None, seed: int = 0) -> Reconstruction:
        """The same with the further scenes placed, each by the GPS positions of its own photos.

        One whose photos do not settle its place stays without, with a warning.
        """
        others = []
        for number, other in enumerate(self.others, start=1):
            try:
                others.append(other.georeferenced(scene, seed))
            except InputError as error:
                logger.warning("%s has no place on the earth: %s", scene_folder(number), error)
                others.append(other)
        return dataclasses.replace(self, others=tuple(others))

    def save(
        self,
        output: str | Path,
        scene: SceneOptions | None = None,
        *,
        overwrite: bool = False,
        details: Mapping[str, Any] | None = None,
        exports: Sequence[ExportFormat | str] = (),
        photos: PhotoOptions | None = None,
        report: bool = True,
    ) -> SceneStatistics:
        """Writes the folder `output`: scene.glb, depth, confidence, cameras, matches, all at once or not at all.

        scene      what goes into scene.glb; the threshold is the model's own unless it names one
        overwrite  replace an earlier result
        details    more entries of run.json, which says how the result came about
        exports    further formats (`ExportFormat`), each in a folder of its name
        photos     how photos are written in those
        report     whether report.html, the result in one file for a browser, is written as well

        Raises InputError if `output` cannot be written or holds other files, or if the scene would be empty or an
        export fails; everything else is then written all the same.
        """
        kinds = [ExportFormat.parse(kind) for kind in exports]
        parts = [
            ResultPart(one, one._with_threshold(scene), {**one._run_document(), **(details or {})})
            for one in (self, *self.others)
        ]
        return write_result(parts, Path(output), overwrite, kinds, photos, report)

    def export(
        self, kind: str, path: str | Path, scene: SceneOptions | None = None, photos: PhotoOptions | None = None
    ) -> None:
        """Writes one format (see `export.formats`) to `path`: "glb", "cameras", "colmap", "nerfstudio", "report", ...

        scene   what goes into a GLB file
        photos  how photos are written beside the cameras of "colmap", "nerfstudio" and "realityscan"

        Raises InputError for a format that is not known, for a scene that would be empty, and for photos that are gone.
        """
        write = exporter_of(kind)
        with explained_writing(Path(path)):
            write(self, Path(path), self._with_threshold(scene), photos or PhotoOptions(), self._run_document())

    def _with_threshold(self, scene: SceneOptions | None) -> SceneOptions:
        """The options with a threshold: the one asked for; else the default, lowered if it left next to nothing."""
        own = self.default_min_conf_thr if self.model is None else self.model.min_conf_thr
        options = (scene or SceneOptions()).with_threshold(own)
        if scene is not None and scene.min_conf_thr is not None:
            return options
        conf = np.concatenate([np.zeros(0), *(view.conf_clean.ravel() for view in self.registered)])
        if not len(conf) or (conf > options.threshold).mean() >= LEAST_SHARE:
            return options
        lower = math.floor(100 * float(np.quantile(conf, 1 - SHARE_INSTEAD))) / 100
        if not 0 < lower < options.threshold:
            return options
        logger.warning(
            "less than %.0f %% of the pixels are above the confidence of %g; the scene is written from those above "
            "%.2f instead (see `min_conf_thr`)",
            100 * LEAST_SHARE,
            options.threshold,
            lower,
        )
        return dataclasses.replace(options, min_conf_thr=lower)

    def _run_document(self) -> dict[str, Any]:
        """Content of run.json: all that is needed to run it again, and what happened."""
        files = [view.file_in_result for view in self.views]
        hashes = self.image_hashes or ("",) * len(files)
        return {
            "command": "reconstruct",
            "versions": versions(),
            "model": None if self.model is None else dataclasses.asdict(self.model),
            "options": None if self.options is None else plain(self.options),
            "images": [
                {"index": k, "file": file, "sha256": sha256}
                for k, (file, sha256) in enumerate(zip(files, hashes, strict=True))
            ],
            "pairs": [dataclasses.asdict(pair) for pair in self.pairs],
            "groups": [list(group) for group in self.groups],
            "verdict": verdict_entry(None if self.verdict is None else self.verdict.overall),
            "seconds": dict(self.seconds),
        }


def versions() -> dict[str, str]:
    """Of what a result depends on."""
    return {
        "mast3r_sfm": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "platform": platform.platform(),
    }


def plain(value: Any) -> Any:
    """JSON values of an option, or of a class of options; what is parsed from a string stands as that string."""
    if dataclasses.is_dataclass(value) and type(value).__str__ is object.__str__:
        return {one.name: plain(getattr(value, one.name)) for one in dataclasses.fields(value)}
    if isinstance(value, tuple | list):
        return [plain(one) for one in value]
    return value if value is None or isinstance(value, bool | int | float) else str(value)
