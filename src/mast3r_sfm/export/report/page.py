"""The HTML page from the files in `assets/`, with a policy that lets nothing run or load but what it was made with."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Any

from mast3r_sfm.export.files import to_strict_json

SCRIPTS = ("source.js", "cloud.js", "controls.js", "viewer.js", "panels.js", "main.js")
"""Our own scripts in the order in which the page reads them, as one."""


def page(document: Mapping[str, Any] | None, blocks: Mapping[str, str], policy: str) -> bytes:
    """The page as UTF-8.

    document  what the page says (`document.report_document`); None: it asks its server
    blocks    further text to embed, by id; the text must not have "<" in it
    policy    sources besides scripts and style, as in "img-src data:"
    """
    assert not any("<" in text for text in blocks.values())
    embedded = [] if document is None else [_block("document", embeddable_json(document))]
    embedded += [_block(name, text) for name, text in blocks.items()]
    style, three, script = _asset("style.css"), _asset("three.min.js"), "\n".join(map(_asset, SCRIPTS))
    parts = {
        "policy": f"default-src 'none'; base-uri 'none'; form-action 'none'; {policy}; "
        f"style-src {_hash(style)}; script-src {_hash(three)} {_hash(script)}",
        "licence": _asset("three.LICENSE").strip(),
        "style": style,
        "embedded": "\n".join(embedded),
        "three": three,
        "script": script,
    }
    # in one pass: what is put in is not looked at again
    text = re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], _asset("page.html"))
    return text.encode("utf-8")


def stylesheet() -> str:
    """Colours, type and controls of the page, for other pages of the same look."""
    return _asset("style.css")


def embeddable_json(value: Any) -> str:
    """Strict JSON in ASCII that may stand in a script element, whatever strings it holds."""
    text = json.dumps(to_strict_json(value), allow_nan=False, separators=(",", ":"))
    # "</script" and "<!--" would end or change the element; ASCII has no U+2028
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def base64_text(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


@cache
def _asset(name: str) -> str:
    return (files(__package__) / "assets" / name).read_text(encoding="utf-8")


def _block(name: str, text: str) -> str:
    return f'<script type="text/plain" id="{name}">{text}</script>'


def _hash(text: str) -> str:
    return f"'sha256-{base64_text(hashlib.sha256(text.encode('utf-8')).digest())}'"
