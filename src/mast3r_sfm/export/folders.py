"""Folders that appear completely or not at all, and failures of the file system in plain words."""

from __future__ import annotations

import contextlib
import errno
import logging
import re
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from mast3r_sfm.errors import InputError

logger = logging.getLogger(__name__)

DESKTOP_LITTER = {".DS_Store", "Thumbs.db", "desktop.ini"}
"""Left by file managers that looked at a folder."""


@contextlib.contextmanager
def replaced_folder(output: Path, check: Callable[[], None]) -> Iterator[Path]:
    """A hidden folder beside `output` to write to; it takes the output's place when the block ends well.

    Otherwise it vanishes, and `output` stays as it was.

    check  raises InputError if `output` must not be replaced; it is called before the block and again after it
    """
    check()
    with scratch_folder(output, "partial") as staging:
        yield staging
        _move_into_place(staging, output, check)


@contextlib.contextmanager
def replaced_files(folder: Path, names: Iterable[str]) -> Iterator[dict[str, Path]]:
    """Paths, by the names of files in `folder`, to write their successors to; these take their places, one after the
    other, when the block ends well, and vanish otherwise."""
    new = {name: sibling(folder / name, "new") for name in names}
    try:
        yield new
        for name, path in new.items():
            path.replace(folder / name)
    finally:
        for path in new.values():
            path.unlink(missing_ok=True)


def scene_folder(number: int | str) -> str:
    """The folder of a further scene within a result; of group `number`, counted from 0 for the result itself."""
    return f"scene_{number}"


def check_replaceable(folder: Path, own: re.Pattern[str]) -> None:
    """Raises InputError if `folder` exists and holds anything that an export of several files does not write.

    own  matches the paths, relative to the folder, that the export writes
    """
    if not folder.exists():
        return
    if not folder.is_dir():
        raise InputError(f"{folder} is a file: name a folder")
    if is_mount_point(folder) or Path.cwd().is_relative_to(folder):
        raise InputError(f"{folder} is a mount point or holds the current folder: name a folder in it")
    if (foreign := foreign_entry(folder, own)) is not None:
        raise InputError(
            f"{folder} holds {foreign}, which is not of this export and would be deleted: move it elsewhere, or export "
            "to another folder"
        )


def foreign_entry(folder: Path, own: re.Pattern[str]) -> str | None:
    """The first entry below `folder` that `own` does not match, as a path relative to it; None without one."""
    entries = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.name not in DESKTOP_LITTER)
    return next((entry for entry in entries if not own.fullmatch(entry)), None)


@contextlib.contextmanager
def scratch_folder(output: Path, role: str) -> Iterator[Path]:
    """A hidden folder beside `output`, on the same disk, that is gone afterwards, whatever happens."""
    with _parents_of(output), _staging_folder(output, role) as folder:
        yield folder


@contextlib.contextmanager
def explained_writing(folder: Path) -> Iterator[None]:
    """Turns failures of the file system into an InputError that names the folder and the cure."""
    try:
        yield
    except OSError as error:
        raise InputError(_explanation(error, folder)) from error


def _explanation(error: OSError, folder: Path) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"The disk of {folder} is full: free some space, or name an `output` on another disk"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"{folder} cannot be written to ({error.strerror}): change its permissions, or name another `output`"
    return f"Writing to {folder} failed ({error.strerror or error}): name another `output`"


def sibling(path: Path, role: str) -> Path:
    """A new hidden name beside `path`, on the same disk, so that renaming is possible and atomic."""
    return path.with_name(f".{path.name}.{role}-{secrets.token_hex(4)}")


def is_mount_point(folder: Path) -> bool:
    if folder.is_mount():
        return True
    try:  # a bind mount from the same disk, as containers have them, shows only here
        mounts = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return False
    # the fifth field; blanks and the like are octal there
    points = {re.sub(r"\\([0-7]{3})", lambda m: chr(int(m[1], 8)), line.split()[4]) for line in mounts}
    return str(folder) in points


@contextlib.contextmanager
def _parents_of(output: Path) -> Iterator[None]:
    """Creates the folders above `output`; takes those that it created away again on failure."""
    missing = [folder for folder in output.parents if not folder.exists()]
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        for folder in missing:
            with contextlib.suppress(OSError):  # not there, or no longer empty
                folder.rmdir()
        raise


@contextlib.contextmanager
def _staging_folder(output: Path, role: str) -> Iterator[Path]:
    """A folder beside `output` that is gone afterwards, whatever happens, unless it was moved into place."""
    staging = sibling(output, role)
    try:
        staging.mkdir()
        yield staging
    finally:
        _remove(staging)


def _move_into_place(staging: Path, output: Path, check: Callable[[], None]) -> None:
    """Renames `staging` to `output`; a result that was there is deleted afterwards, or put back on failure."""
    old = sibling(output, "old")
    try:
        check()  # again: hours may have passed
        if output.exists():
            output.rename(old)
        staging.rename(output)
    except (OSError, InputError) as error:
        rescued = output.with_name(f"{output.name}-{secrets.token_hex(4)}")
        staging.rename(rescued)
        raise InputError(f"{error}. The finished result is in {rescued}") from error
    finally:
        # Ctrl-C may come between any two steps, so look at what is there
        if not output.exists() and old.exists():
            old.rename(output)
        _remove(old)
    if old.exists():
        logger.warning("The replaced result could not be deleted: %s", old)


def _remove(folder: Path) -> None:
    """Deletes a folder as far as possible, and does not let Ctrl-C leave half of it."""
    try:
        shutil.rmtree(folder, ignore_errors=True)
    except KeyboardInterrupt:
        shutil.rmtree(folder, ignore_errors=True)
        raise
