"""A folder as a ZIP archive that is made while it is sent: nothing of it lies on the disk or in memory as a whole."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator
from pathlib import Path

_PIECE = 1 << 20


def files_below(folder: Path) -> dict[str, Path]:
    """The regular files below `folder` by their relative names, in order; links are not followed."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    return {path.relative_to(folder).as_posix(): path for path in paths}


def zipped(folder: Path, top: str) -> Iterator[bytes]:
    """The archive in pieces, with everything in a folder `top`. Stored: photos and arrays do not get smaller."""
    pieces = _Pieces()
    with zipfile.ZipFile(pieces, "w", zipfile.ZIP_STORED) as archive:
        for name, path in files_below(folder).items():
            entry = zipfile.ZipInfo.from_file(path, f"{top}/{name}")
            with path.open("rb") as source, archive.open(entry, "w") as target:
                while piece := source.read(_PIECE):
                    target.write(piece)
                    yield pieces.taken()
    yield pieces.taken()


class _Pieces(io.RawIOBase):
    """What a writer of archives writes to; it cannot go back in it."""

    def __init__(self) -> None:
        self._held = bytearray()

    def writable(self) -> bool:
        return True

    def write(self, data: object) -> int:
        held = bytes(data)  # type: ignore[call-overload]
        self._held += held
        return len(held)

    def taken(self) -> bytes:
        """What has been written since the last call."""
        taken, self._held = bytes(self._held), bytearray()
        return taken
