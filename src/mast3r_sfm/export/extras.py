"""Packages that a few formats need and the core does not: extras, told of in one line where they are missing."""

from __future__ import annotations

from importlib.util import find_spec

from mast3r_sfm.errors import InputError


def require(option: str, module: str, package: str, extra: str) -> None:
    """Raises InputError that says how to install `package`, which has `module`, if it is not there.

    option  that asks for it, with its value, as `export=usdz`
    extra   of this package, which names it
    """
    if find_spec(module) is None:
        raise InputError(f"`{option}` needs the package {package}: pip install 'mast3r-sfm[{extra}]' (or {package})")
