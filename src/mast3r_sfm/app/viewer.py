"""`mast3r-sfm view`: the page of `report.html` for this machine's own browser, with all points and large pictures.

No address of a request names a file: everything comes out of the loaded result.
"""

from __future__ import annotations

import errno
import logging
import re
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np

from mast3r_sfm.errors import InputError
from mast3r_sfm.export.files import encode_jpeg, encode_png
from mast3r_sfm.export.photos import read_photo
from mast3r_sfm.export.report.document import report_document
from mast3r_sfm.export.report.page import embeddable_json, page
from mast3r_sfm.export.report.pictures import PHOTO, PictureMaker
from mast3r_sfm.export.report.points import PointChunk, PointCloud
from mast3r_sfm.images.decoding import quiet_pillow
from mast3r_sfm.options import SceneOptions
from mast3r_sfm.types import ReconstructedScene, ReconstructedView

logger = logging.getLogger(__name__)

_ADDRESS = "127.0.0.1"
_LARGE_PX, _SMALL_PX = 1600, 320
"""Long edges of the photo that was chosen, and of the pictures on the sheet."""

_IDLE_S = 60
"""After which a silent connection is closed."""

_POLICY = "img-src 'self' data:; connect-src 'self'"


@dataclass(frozen=True)
class Answer:
    """What an address holds."""

    kind: str
    body: bytes


class ServedResult:
    """The answers to all addresses that the page asks for."""

    def __init__(self, scene: ReconstructedScene, options: SceneOptions, run: Mapping[str, Any]) -> None:
        cloud = PointCloud.of_scene(scene, options)
        self._chunks: list[PointChunk] = []
        if cloud is not None:
            self._chunks = [cloud.chunk(position) for position in range(len(cloud.placed))]
        document = report_document(scene, options, run, cloud)
        described = [chunk.described() for chunk in self._chunks]
        data = embeddable_json({"document": document, "chunks": described})
        self._fixed = {
            "/": Answer("text/html; charset=utf-8", page(None, {}, _POLICY)),
            "/data.json": Answer("application/json", data.encode("ascii")),
        }
        self._view_of = {view.index: view for view in scene.views}
        self._pictures = PictureMaker(scene)
        self._photos = threading.Lock()  # one photo at full size in memory at a time

    def answer(self, path: str) -> Answer | None:
        """None if there is nothing at `path`."""
        if path in self._fixed:
            return self._fixed[path]
        if match := re.fullmatch(r"/points/(\d{1,9})", path, flags=re.ASCII):
            number = int(match[1])
            return Answer("application/octet-stream", self._chunks[number].data) if number < len(self._chunks) else None
        if match := re.fullmatch(r"/(small|large)/(photo|depth|confidence)/(\d{1,9})", path, flags=re.ASCII):
            view = self._view_of.get(int(match[3]))
            return None if view is None else self._picture(view, match[2], match[1] == "large")
        return None

    def _picture(self, view: ReconstructedView, kind: str, large: bool) -> Answer:
        if not large:
            return Answer("image/webp", self._pictures.small(view, kind, _SMALL_PX))
        if kind == PHOTO:
            return Answer("image/jpeg", encode_jpeg(self._large_photo(view)))
        return Answer("image/png", encode_png(self._pictures.picture(view, kind)))

    def _large_photo(self, view: ReconstructedView) -> np.ndarray:
        """The photo itself, reduced; the network's image of it if it is not where it was."""
        try:
            with self._photos, quiet_pillow():
                photo = read_photo(view).rgb
                photo.thumbnail((_LARGE_PX, _LARGE_PX))
                return np.asarray(photo)
        except InputError as error:
            logger.debug("%s", error)
            return view.rgb


class ResultServer(ThreadingHTTPServer):
    """Answers requests from this machine that name this machine, so that no page of another site can ask.

    port  None: a free one

    Raises InputError if the port cannot be had.
    """

    result: ServedResult
    """To be set before the first request is answered."""

    def __init__(self, port: int | None) -> None:
        try:
            super().__init__((_ADDRESS, port or 0), _Handler)
        except OSError as error:
            if error.errno not in (errno.EADDRINUSE, errno.EACCES):
                raise
            reason = "is in use" if error.errno == errno.EADDRINUSE else "is not allowed to you"
            raise InputError(f"`port={port}` {reason}: name another one, or leave it out for a free one") from error
        self.hosts = {f"{name}:{self.server_port}" for name in (_ADDRESS, "localhost")}

    @property
    def url(self) -> str:
        return f"http://{_ADDRESS}:{self.server_port}/"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that went away is no error."""
        if not isinstance(sys.exc_info()[1], OSError):
            logger.exception("a request could not be answered")


class _Handler(BaseHTTPRequestHandler):
    server: ResultServer
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "mast3r-sfm", ""
    timeout = _IDLE_S

    def do_GET(self) -> None:
        self._respond(with_body=True)

    def do_HEAD(self) -> None:
        self._respond(with_body=False)

    def _respond(self, with_body: bool) -> None:
        if self.headers.get("Host", "").lower() not in self.server.hosts:
            # a foreign name that was made to lead here (DNS rebinding)
            self.send_error(HTTPStatus.FORBIDDEN, "This server answers to its own address only")
            return
        answer = self.server.result.answer(self.path.partition("?")[0])
        if answer is None:
            self.send_error(HTTPStatus.NOT_FOUND)
            return
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", answer.kind)
        self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        if with_body:
            self.wfile.write(answer.body)

    def end_headers(self) -> None:
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("X-Frame-Options", "DENY")
        self.send_header("Cross-Origin-Resource-Policy", "same-origin")
        super().end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        logger.debug(format, *args)
