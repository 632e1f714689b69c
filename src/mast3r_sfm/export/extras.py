"""Packages that a few formats need and the core does not: extras, told of in one line where they are missing."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec

from mast3r_sfm.errors import InputError
from mast3r_sfm.options import ExportFormat

_OF_FORMATS: Mapping[str, tuple[str, str, str]] = {
    ExportFormat.USDZ: ("pxr", "usd-core", "usd"),
    ExportFormat.LAS: ("laspy", "laspy", "las"),
    ExportFormat.E57: ("pye57", "pye57", "e57"),
    ExportFormat.EXR: ("OpenEXR", "OpenEXR", "exr"),
}
"""Module, package and extra of formats that need more than the core."""


def require_for(kind: str) -> None:
    """Raises InputError that says how to install what a format needs, if it is not there."""
    if kind in _OF_FORMATS:
        require(f"export={kind}", *_OF_FORMATS[kind])


def require(option: str, module: str, package: str, extra: str) -> None:
    """Raises InputError that says how to install `package`, which has `module`, if it is not there.

    option  that asks for it, with its value, as `export=usdz`
    extra   of this package, which names it
    """
    if find_spec(module) is None:
        raise InputError(f"`{option}` needs the package {package}: pip install 'mast3r-sfm[{extra}]' (or {package})")
