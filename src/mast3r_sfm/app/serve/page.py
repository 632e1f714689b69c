"""The files of the server's page; its look is the report's."""

from __future__ import annotations

from functools import cache
from importlib.resources import files

from mast3r_sfm.export.report.page import stylesheet

SCRIPTS = ("api.js", "photos.js", "job.js", "main.js")
"""In the order in which the page reads them, as one."""


@cache
def page() -> str:
    return _asset("page.html")


@cache
def sign_in_page() -> str:
    """Asks for the token."""
    return _asset("sign_in.html")


@cache
def style() -> str:
    return f"{stylesheet()}\n{_asset('serve.css')}"


@cache
def script() -> str:
    return "\n".join(map(_asset, SCRIPTS))


def _asset(name: str) -> str:
    return (files(__package__) / "assets" / name).read_text(encoding="utf-8")
