"""The library names parameters, as `image_size` or `device='cpu'`; a person at the shell knows them as flags, and a
client of the server as options."""

from __future__ import annotations

import re

from mast3r_sfm.errors import Mast3rSfmError

_FLAG_OF = {
    "niter_coarse": "--niter",
    "niter_fine": "--niter",
    "verification=None": "--no-verify-matches",
    "refinement=RefinementOptions()": "--refine-cameras",
    "dense=None": "--no-agree-depth",
    "inputs": "--input",
}
"""Parameters that go by another name on the command line than their own with dashes."""

_OPTION_OF = {
    "niter_coarse": "niter",
    "niter_fine": "niter",
    "verification=None": "verify_matches=false",
    "refinement=RefinementOptions()": "refine_cameras=true",
    "dense=None": "agree_depth=false",
    "inputs": "files",
}
"""Parameters that go by another name in the REST API."""

_NOT_FLAGS = {"kind", "tree", "camera_size", "depth_jump"}


def as_flags(message: str) -> str:
    """A message with its parameters in backquotes written as flags: `device='cpu'` becomes --device cpu."""
    return re.sub(r"`([a-z_]+)(?:=([^`]*))?`", _flag, message)


def as_options(message: str) -> str:
    """A message with its parameters written as the options of the REST API: `device='cpu'` becomes device=cpu."""
    return re.sub(r"`([a-z_]+)(?:=([^`]*))?`", _option, message)


def in_words(error: BaseException) -> str:
    """What a person at the shell is told of a failure, in one line."""
    if isinstance(error, Mast3rSfmError):
        return " ".join(as_flags(str(error)).split())
    message = " ".join(str(error).split())
    return f"unexpected {type(error).__name__}: {message} (run again with --debug for the details)"


def _option(match: re.Match[str]) -> str:
    name, value = match[1], match[2]
    if (whole := match[0].strip("`")) in _OPTION_OF:
        return _OPTION_OF[whole]
    name = _OPTION_OF.get(name, name)
    if value is None:
        return name
    return f"{name}={value.lower() if value in ('True', 'False') else value.strip(chr(39))}"


def _flag(match: re.Match[str]) -> str:
    name, value = match[1], match[2]
    if name in _NOT_FLAGS:
        return match[0].strip("`")
    if (whole := match[0].strip("`")) in _FLAG_OF:
        return _FLAG_OF[whole]
    flag = _FLAG_OF.get(name, f"--{name.replace('_', '-')}")
    if value is None or value == "True":
        return flag
    if value == "False":
        return f"--no-{flag.removeprefix('--')}"
    return f"{flag} {value.strip(chr(39))}"
