"""Where the published MASt3R packages are, and their import. Needs no torch of its own, so that `doctor` can ask.

Nothing of them is part of this project. They are found at run time, in the folder that MAST3R_UPSTREAM names or in
/opt/mast3r (the container), and are used through their documented functions only.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mast3r_sfm.errors import InputError

UPSTREAM_VARIABLE = "MAST3R_UPSTREAM"
CONTAINER_FOLDER = Path("/opt/mast3r")
_ROOTS = (".", "dust3r")  # of a checkout with its submodules: the packages mast3r and dust3r lie in these


@dataclass(frozen=True)
class UpstreamFunctions:
    """The published functions that the adapter calls."""

    load_model: Any
    load_images: Any
    make_pairs: Any
    align: Any


def find_upstream() -> Path | None:
    """The folder of the published code: $MAST3R_UPSTREAM, or else the container's; None if it is not there."""
    folder = Path(os.environ.get(UPSTREAM_VARIABLE) or CONTAINER_FOLDER)
    return folder if (folder / "mast3r").is_dir() else None


@contextlib.contextmanager
def import_upstream(folder: Path | None = None) -> Iterator[UpstreamFunctions]:
    """The published functions. Their folders are on `sys.path` inside the block only.

    Raises InputError if there is no such folder or a package in it cannot be imported.
    """
    folder = folder or find_upstream()
    if folder is None:
        where = os.environ.get(UPSTREAM_VARIABLE)
        raise InputError(
            f"the published MASt3R code is not in {where or CONTAINER_FOLDER}: use the container "
            f"(built without --no-upstream), or set {UPSTREAM_VARIABLE} to a checkout with its submodules"
        )
    before = list(sys.path)
    sys.path[:0] = [str((folder / root).resolve()) for root in _ROOTS]
    try:
        yield _functions(folder)
    finally:
        sys.path[:] = before


def _functions(folder: Path) -> UpstreamFunctions:
    try:
        return UpstreamFunctions(
            load_model=importlib.import_module("mast3r.model").AsymmetricMASt3R.from_pretrained,
            load_images=importlib.import_module("dust3r.utils.image").load_images,
            make_pairs=importlib.import_module("mast3r.image_pairs").make_pairs,
            align=importlib.import_module("mast3r.cloud_opt.sparse_ga").sparse_global_alignment,
        )
    except (ImportError, AttributeError) as error:
        raise InputError(
            f"the published code in {folder} cannot be imported ({error}): check that its submodules are there, and "
            "install what it needs (pip install -r requirements-upstream.lock, and torchvision)"
        ) from error
