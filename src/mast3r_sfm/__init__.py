"""Uncalibrated photos in; cameras, depth and a 3D scene out.

    from mast3r_sfm import load_images, load_model, reconstruct

    model = load_model("small")
    result = reconstruct(load_images("photos", model), model)
    result.save("result")

Everything below is loaded when it is first used, so that `import mast3r_sfm` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from mast3r_sfm._version import __version__ as __version__

if TYPE_CHECKING:
    from mast3r_sfm.errors import EmptySceneError as EmptySceneError
    from mast3r_sfm.errors import InputError as InputError
    from mast3r_sfm.errors import Mast3rSfmError as Mast3rSfmError
    from mast3r_sfm.errors import ModelError as ModelError
    from mast3r_sfm.errors import ReconstructionError as ReconstructionError
    from mast3r_sfm.model.checkpoint import Model as Model
    from mast3r_sfm.model.checkpoint import load_model as load_model
    from mast3r_sfm.options import AlignmentConfig as AlignmentConfig
    from mast3r_sfm.options import DenseOptions as DenseOptions
    from mast3r_sfm.options import FootageOptions as FootageOptions
    from mast3r_sfm.options import IntrinsicsGroups as IntrinsicsGroups
    from mast3r_sfm.options import PhotoOptions as PhotoOptions
    from mast3r_sfm.options import ReconstructionOptions as ReconstructionOptions
    from mast3r_sfm.options import RefinementOptions as RefinementOptions
    from mast3r_sfm.options import SceneGraph as SceneGraph
    from mast3r_sfm.options import SceneOptions as SceneOptions
    from mast3r_sfm.options import VerificationLimits as VerificationLimits
    from mast3r_sfm.pipeline import PairMatches as PairMatches
    from mast3r_sfm.pipeline import load_images as load_images
    from mast3r_sfm.pipeline import match_images as match_images
    from mast3r_sfm.pipeline import reconstruct as reconstruct
    from mast3r_sfm.reconstruction import Reconstruction as Reconstruction
    from mast3r_sfm.types import Correspondences as Correspondences
    from mast3r_sfm.types import ReconstructedView as ReconstructedView
    from mast3r_sfm.types import View as View

_HOME = {
    "errors": ("EmptySceneError", "InputError", "Mast3rSfmError", "ModelError", "ReconstructionError"),
    "model.checkpoint": ("Model", "load_model"),
    "options": (
        "AlignmentConfig",
        "DenseOptions",
        "FootageOptions",
        "IntrinsicsGroups",
        "PhotoOptions",
        "ReconstructionOptions",
        "RefinementOptions",
        "SceneGraph",
        "SceneOptions",
        "VerificationLimits",
    ),
    "pipeline": ("PairMatches", "load_images", "match_images", "reconstruct"),
    "reconstruction": ("Reconstruction",),
    "types": ("Correspondences", "ReconstructedView", "View"),
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}

__all__ = ["__version__", *sorted(_MODULE_OF)]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    return list(__all__)
