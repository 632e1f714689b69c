"""From a request to files that are photos or clips. Nothing that a client says is trusted: names become harmless, sizes
are counted while they come, kinds are told by decoding, and no path is taken over."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import re
import unicodedata
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from time import monotonic
from typing import IO, Any

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from mast3r_sfm.errors import InputError
from mast3r_sfm.images.finding import CLIP_SUFFIXES, IMAGE_SUFFIXES, RAW_SUFFIXES
from mast3r_sfm.images.loading import check_footage
from mast3r_sfm.options import ServeLimits
from mast3r_sfm.text import counted

ACCEPTED = (*IMAGE_SUFFIXES, *RAW_SUFFIXES, *CLIP_SUFFIXES)
"""Suffixes of files that are taken, in lower case."""

CHECKING = "check of uploads"
"""Start of the names of threads that decode photos to see whether they are photos."""

FILES, OPTIONS = "files", "options"
"""Names of the fields of the form."""

_MAX_NAME, _MAX_NAME_BYTES = 80, 160
_MAX_OPTIONS = 20_000
_MAX_PARTS_BESIDES = 4
_IDLE_S = 60.0
_CHUNK = 1 << 20


class RefusedError(Exception):
    """An upload that is not taken: a status of HTTP, and why."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


@contextlib.contextmanager
def disk_full_refused() -> Iterator[None]:
    """Inside, a full disk is a reason to refuse an upload."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise RefusedError(507, "the server's disk is full") from error


def harmless_name(given: str, taken: Mapping[str, object]) -> str:
    """A file name that is only a name: of letters, digits and a few signs, not hidden, not long, not yet `taken`.

    taken  names in lower case, as not every file system tells upper and lower case apart

    Raises RefusedError for a name that is of no photo or clip.
    """
    last = unicodedata.normalize("NFC", given).replace("\\", "/").rpartition("/")[2]
    clean = "".join(sign if sign.isalnum() or sign in " ._-+()[],'&@=" else "_" for sign in last).strip(" .")
    path = PurePosixPath(clean)
    if path.suffix.lower() not in ACCEPTED:
        shown = clean[:_MAX_NAME] or "a file without a name"
        raise RefusedError(415, f"{shown}: not a photo or clip by its suffix; accepted: {', '.join(ACCEPTED)}")
    stem = path.stem[:_MAX_NAME].encode()[:_MAX_NAME_BYTES].decode(errors="ignore").rstrip(" .") or "photo"
    name, number = f"{stem}{path.suffix}", 1
    while name.lower() in taken:
        number += 1
        name = f"{stem}-{number}{path.suffix}"
    return name


class Checker:
    """Decodes uploaded files in a few threads, because each takes the memory of a whole photo."""

    def __init__(self, threads: int = 2) -> None:
        self._pool = ThreadPoolExecutor(threads, CHECKING)

    def begin(self, path: Path) -> Future[None]:
        """The check of one file; its result raises RefusedError if it is no photo or clip."""
        return self._pool.submit(self._check, path)

    @staticmethod
    def _check(path: Path) -> None:
        try:
            check_footage(path)
        except InputError as error:
            raise RefusedError(415, str(error).replace(f"{path.parent}/", "")) from error

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)


class _Form:
    """Takes a form apart as it comes, and writes its files to a folder.

    The parser's callbacks note events, and `carry_out` acts on them, away from the event loop.
    """

    def __init__(self, boundary: bytes, folder: Path, limits: ServeLimits, checker: Checker) -> None:
        self.names: dict[str, str] = {}
        self.checks: list[Future[None]] = []
        self.options = bytearray()
        self._folder = folder
        self._limits = limits
        self._checker = checker
        self._events: list[Callable[[], None]] = []
        self._header_name = self._header_value = b""
        self._disposition = b""
        self._num_parts = 0
        self._file: IO[bytes] | None = None
        self._is_options = False
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._on_part_begin,
                "on_header_field": self._on_header_field,
                "on_header_value": self._on_header_value,
                "on_header_end": self._on_header_end,
                "on_headers_finished": lambda: self._note(self._begin, self._disposition),
                "on_part_data": lambda data, start, end: self._note(self._add, data[start:end]),
                "on_part_end": lambda: self._note(self._end),
            },
        )

    def feed(self, data: bytes) -> None:
        """Parses, and does what follows from it. Raises RefusedError."""
        try:
            self._parser.write(data)
        except FormParserError as error:
            raise RefusedError(400, "the body is not multipart/form-data as its header says") from error
        events, self._events = self._events, []
        with disk_full_refused():
            for event in events:
                event()

    def finish(self) -> None:
        """Raises RefusedError for a form that broke off, and for one without a photo."""
        try:
            self._parser.finalize()
        except FormParserError as error:
            raise RefusedError(400, "the form is not complete") from error
        if self._file is not None:
            raise RefusedError(400, "the form is not complete")
        if not self.names:
            raise RefusedError(422, f"no photo and no clip: send them as `{FILES}`")

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
        for check in self.checks:
            check.cancel()

    # ------------------------------------------------------------------ what the parser calls
    def _note(self, event: Callable[..., None], *arguments: bytes) -> None:
        self._events.append(lambda: event(*arguments))

    def _on_part_begin(self) -> None:
        self._disposition = b""

    def _on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._header_name += data[start:end]

    def _on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._header_value += data[start:end]

    def _on_header_end(self) -> None:
        if self._header_name.lower() == b"content-disposition":
            self._disposition = self._header_value
        self._header_name = self._header_value = b""

    # ------------------------------------------------------------------ what follows from it
    def _begin(self, disposition: bytes) -> None:
        self._num_parts += 1
        if self._num_parts > self._limits.max_photos + _MAX_PARTS_BESIDES:
            raise self._too_many()
        fields = parse_options_header(disposition)[1]
        name = fields.get(b"name", b"")
        self._is_options = name == OPTIONS.encode() and b"filename" not in fields
        if self._is_options:
            return
        if name != FILES.encode():
            shown = re.sub(r"\W", "_", name.decode(errors="replace"))[:_MAX_NAME]
            raise RefusedError(422, f"unknown field {shown!r}: there are `{FILES}` and `{OPTIONS}`")
        given = fields.get(b"filename", b"").decode(errors="replace")
        if not given:
            return  # a form whose choice of files was left empty
        if len(self.names) >= self._limits.max_photos:
            raise self._too_many()
        file_name = harmless_name(given, self.names)
        self.names[file_name.lower()] = file_name
        self._file = (self._folder / file_name).open("xb")

    def _add(self, data: bytes) -> None:
        if self._file is not None:
            self._file.write(data)
        elif self._is_options:
            self.options += data
            if len(self.options) > _MAX_OPTIONS:
                raise RefusedError(413, f"`{OPTIONS}` are longer than {_MAX_OPTIONS} bytes")

    def _end(self) -> None:
        if self._file is not None:
            self._file.close()
            self.checks.append(self._checker.begin(Path(self._file.name)))
            self._file = None
        self._is_options = False

    def _too_many(self) -> RefusedError:
        return RefusedError(
            413, f"more than {counted(self._limits.max_photos, 'file')}, the most that the server takes"
        )


async def receive(
    headers: Mapping[str, str],
    body: AsyncIterator[bytes],
    folder: Path,
    limits: ServeLimits,
    checker: Checker,
) -> tuple[tuple[str, ...], dict[str, Any]]:
    """Writes the photos of a request's body to `folder`. Returns their names and the options as they are.

    A fault is told when the whole body has come, as browsers do not read an answer before, but for one that is too
    large or too slow.

    Raises RefusedError.
    """
    kind, parameters = parse_options_header(headers.get("content-type"))
    if kind != b"multipart/form-data" or b"boundary" not in parameters:
        raise RefusedError(415, f"send multipart/form-data with `{FILES}` and, if need be, `{OPTIONS}`")
    _check_size(int(headers["content-length"]) if headers.get("content-length", "").isdecimal() else 0, limits)
    try:
        form = _Form(parameters[b"boundary"], folder, limits, checker)
    except FormParserError as error:
        raise RefusedError(400, str(error)) from error
    fault: RefusedError | None = None
    try:
        async for chunk in _in_time(body, limits):
            if fault is None:
                try:
                    await asyncio.to_thread(form.feed, chunk)
                except RefusedError as error:
                    fault = error
        if fault is not None:
            raise fault
        await asyncio.to_thread(form.finish)
        for check in form.checks:
            await asyncio.wrap_future(check)
    finally:
        form.close()
        # a file that is still being decoded must not vanish
        await asyncio.shield(_ended(form.checks))
    return tuple(form.names.values()), _parsed_options(bytes(form.options))


async def _ended(checks: list[Future[None]]) -> None:
    for check in checks:
        with contextlib.suppress(BaseException):
            await asyncio.wrap_future(check)


async def _in_time(body: AsyncIterator[bytes], limits: ServeLimits) -> AsyncIterator[bytes]:
    """The body in large pieces. Raises RefusedError for one that is too large, stops coming, or takes too long."""
    deadline = monotonic() + 60.0 * limits.max_minutes
    size, kept = 0, bytearray()
    while True:
        try:
            chunk = await asyncio.wait_for(_following(body), min(_IDLE_S, max(0.0, deadline - monotonic())))
        except TimeoutError as error:
            raise RefusedError(408, "the upload came too slowly") from error
        if chunk is None:
            break
        size += len(chunk)
        _check_size(size, limits)
        kept += chunk
        if len(kept) >= _CHUNK:
            yield bytes(kept)
            kept.clear()
    if kept:
        yield bytes(kept)


async def _following(body: AsyncIterator[bytes]) -> bytes | None:
    return await anext(body, None)


def _check_size(size: int, limits: ServeLimits) -> None:
    if size > limits.max_upload_mb * 1_000_000:
        raise RefusedError(413, f"more than {limits.max_upload_mb} MB, the most that the server takes")


def _parsed_options(text: bytes) -> dict[str, Any]:
    """Raises RefusedError for what is no JSON object."""
    try:
        options = json.loads(text or b"{}")
    except (ValueError, RecursionError) as error:
        raise RefusedError(422, f"`{OPTIONS}` are no JSON: {error}") from error
    if not isinstance(options, dict):
        raise RefusedError(422, f"`{OPTIONS}` are to be a JSON object")
    return options
