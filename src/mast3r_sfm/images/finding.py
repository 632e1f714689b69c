"""Which files an input means: photos and clips, in folders, by patterns or by name."""

from __future__ import annotations

import glob
import logging
import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from mast3r_sfm.errors import InputError

logger = logging.getLogger(__name__)

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp", ".heic", ".heif", ".avif", ".gif")
"""Accepted file name suffixes of photos, in lower case; compared without regard to case."""

_RAW = "dng cr2 cr3 crw nef nrw arw sr2 orf rw2 raf pef srw rwl 3fr iiq erf mrw kdc"
_CLIPS = "mp4 mov m4v mkv webm avi mts m2ts mpg mpeg wmv 3gp ogv"

RAW_SUFFIXES = tuple(f".{name}" for name in _RAW.split())
"""Of photos as the sensor saw them, which rawpy develops."""

CLIP_SUFFIXES = tuple(f".{name}" for name in _CLIPS.split())
"""Of clips. A GIF or WebP is a clip as well if it has several frames."""

_ANIMATED = {".gif": "GIF", ".webp": "WEBP"}
_COMPANIONS = (".json", ".txt", ".md", ".csv", ".xml", ".xmp", ".yaml", ".yml")
_SIDECARS = (".aae", ".thm", ".lrv", ".lrf", ".srt")  # of telephones, action cameras and drones
_LITTER = {"thumbs.db", "desktop.ini", "ehthumbs.db"}
_FOREIGN_FOLDERS = {"@eadir", "__macosx"}  # of file servers and archives: small copies of the photos, or nothing
_RESULT = "reconstruction.npz"  # its folder holds a result, whose pictures are no photos


def find_footage(inputs: Sequence[str | Path], recursive: bool = False) -> list[Path]:
    """The photos and clips (`is_clip`) that `inputs` name, in the order given; what a path holds decides what it is.

    A folder gives its photos in natural order (img2 before img10), without hidden files, and without subfolders unless
    `recursive`; a glob gives its matches in natural order. Clips of a folder or glob are taken only if there is no
    photo among its files, with a warning: people film beside photographing. Not taken either, without a warning: the
    film of a live photo, and the RAW file of a photo that is there developed. Other files met on the way are skipped
    with one warning, data that lies beside photos (json, txt, ...) without. A file named explicitly must have an
    accepted suffix and is taken in any case. A file named twice is kept twice.

    Raises InputError for no input, a path or glob that matches nothing, and a folder without a photo or clip.
    """
    if not inputs:
        raise InputError(f"no input: name a folder, image files or a glob ({_suffixes()})")
    found = _Found()
    for item in inputs:
        try:
            _find(str(item), recursive, found)
        except OSError as error:
            raise unreadable(item, error) from error
    found.tell()
    return found.files


def find_images(inputs: Sequence[str | Path], recursive: bool = False) -> list[Path]:
    """As `find_footage`, where only photos are wanted. Raises InputError for a clip as well."""
    paths = find_footage(inputs, recursive)
    if (clip := next(filter(is_clip, paths), None)) is not None:
        raise InputError(f"{clip}: is a clip, and here photos are wanted; name photos")
    return paths


def is_clip(path: Path) -> bool:
    """By its suffix; of a GIF or WebP by its number of frames."""
    suffix = path.suffix.lower()
    if suffix in CLIP_SUFFIXES:
        return True
    if suffix not in _ANIMATED:
        return False
    try:
        with Image.open(path, formats=(_ANIMATED[suffix],)) as image:
            return getattr(image, "n_frames", 1) > 1
    except Exception:  # as in `decode_image`, which says what is wrong
        return False


def unreadable(path: str | Path, error: OSError) -> InputError:
    """Of a failure of the file system."""
    return InputError(f"{path}: cannot be read ({error.strerror or error}); check the path and its permissions")


@dataclass
class _Found:
    """What is taken, and what is left and why."""

    files: list[Path] = field(default_factory=list)
    clips_beside_photos: list[Path] = field(default_factory=list)
    films_of_photos: list[Path] = field(default_factory=list)
    raw_of_photos: list[Path] = field(default_factory=list)
    sidecars: list[Path] = field(default_factory=list)
    others: list[Path] = field(default_factory=list)

    def tell(self) -> None:
        """One line for each reason to leave files out."""
        others = [path for path in self.others if path.suffix.lower() not in _COMPANIONS]
        for tell, files, reason in (
            (logger.info, self.films_of_photos, "films of live photos are not used"),
            (logger.info, self.raw_of_photos, "RAW files are not used, because the developed photos are there"),
            (logger.info, self.sidecars, "files that cameras and file managers write beside photos are not used"),
            (logger.warning, self.clips_beside_photos, "clip(s) among photos are not used; name them to use them"),
        ):
            if files:
                tell("%d %s: %s", len(files), reason, _named(files))
        if others:
            logger.warning("skipped %d file(s) that are not images by their suffix: %s", len(others), _named(others))


def _find(item: str, recursive: bool, found: _Found) -> None:
    path = Path(item)
    if not item.strip():
        raise InputError(f"an input is empty; name a folder, image files or a glob ({_suffixes()})")
    if path.is_dir():
        _take_folder(path, item, recursive, found)
    elif path.exists():
        if path.suffix.lower() not in IMAGE_SUFFIXES + RAW_SUFFIXES + CLIP_SUFFIXES:
            raise InputError(f"{item}: not an image by its suffix; accepted: {_suffixes()}")
        found.files.append(path)
    elif re.search(r"[*?\[]", item):
        matches = sorted(map(Path, glob.glob(item, recursive=True)), key=natural_key)  # noqa: PTH207 (absolute too)
        if not matches:
            raise InputError(f"{item}: no file matches this pattern; accepted: {_suffixes()}")
        folders = [path for path in matches if path.is_dir()]
        files = [path for path in matches if path not in folders]
        if not _take_among(files, found):
            raise _nothing_found(f"{item}: no image among the matches of this pattern", files, len(folders), "")
    else:
        raise InputError(f"{item}: no such file or folder; name a folder, image files or a glob ({_suffixes()})")


def _take_folder(folder: Path, item: str, recursive: bool, found: _Found) -> None:
    entries = [path for path in folder.iterdir() if not path.name.startswith(".")]
    folders = [path for path in entries if path.is_dir()]
    files = [path for path in entries if path not in folders]
    below = _files_below(folders)
    if recursive:
        files, below = files + below, []
    nested = [path for path in below if path.suffix.lower() in IMAGE_SUFFIXES + RAW_SUFFIXES]
    nested_in = len({path.parent for path in nested})
    if not _take_among(sorted(files, key=natural_key), found):
        hint = "; subfolders are not searched, name one" if folders and not recursive else ""
        if nested:
            hint = f"; {len(nested)} photo(s) in {nested_in} subfolder(s): use `recursive=True`, or name one"
        raise _nothing_found(f"{item}: no image in this folder", files, len(folders), hint)
    if nested:
        logger.warning(
            "%s: %d photo(s) in %d subfolder(s) are not used; take them too by `recursive=True`",
            item,
            len(nested),
            nested_in,
        )


def _files_below(folders: Iterable[Path]) -> list[Path]:
    """The files in `folders` and all that is in them, without what is hidden and without results of this package."""
    files = []
    for folder in folders:
        if folder.name.lower() in _FOREIGN_FOLDERS or (folder / _RESULT).exists():
            continue
        for place, names, contents in os.walk(folder):
            names[:] = [
                name
                for name in names
                if not name.startswith(".")
                and name.lower() not in _FOREIGN_FOLDERS
                and not Path(place, name, _RESULT).exists()
            ]
            files += [Path(place, name) for name in contents if not name.startswith(".")]
    return files


def _take_among(files: Sequence[Path], found: _Found) -> bool:
    """Takes the photos of a folder or pattern, else its clips. Returns whether there is any."""

    def sorted_out(into: list[Path], belongs: Callable[[Path], bool]) -> None:
        nonlocal files
        into += [path for path in files if belongs(path)]
        files = [path for path in files if not belongs(path)]

    sorted_out(found.sidecars, lambda path: path.suffix.lower() in _SIDECARS or path.name.lower() in _LITTER)
    developed = {_twin_key(path) for path in files if path.suffix.lower() in IMAGE_SUFFIXES}
    sorted_out(found.raw_of_photos, lambda path: path.suffix.lower() in RAW_SUFFIXES and _twin_key(path) in developed)
    photographed = {_twin_key(path) for path in files if path.suffix.lower() in (".jpg", ".jpeg", ".heic", ".heif")}
    sorted_out(found.films_of_photos, lambda path: path.suffix.lower() == ".mov" and _twin_key(path) in photographed)
    clips: list[Path] = []
    photos: list[Path] = []
    sorted_out(clips, is_clip)
    sorted_out(photos, lambda path: path.suffix.lower() in IMAGE_SUFFIXES + RAW_SUFFIXES)
    found.others += files
    found.files += photos or clips
    found.clips_beside_photos += clips if photos else []
    return bool(photos or clips)


def _twin_key(path: Path) -> tuple[Path, str]:
    """What files of one shot have in common: the folder, and the name without its suffix."""
    return path.parent, path.stem.lower()


def _nothing_found(complaint: str, files: Sequence[Path], num_folders: int, hint: str) -> InputError:
    holds = f"{len(files)} other file(s), {num_folders} subfolder(s)" if files or num_folders else "it is empty"
    return InputError(f"{complaint} ({holds}); accepted: {_suffixes()}{hint}")


def natural_key(path: Path) -> tuple[list[str | int], str]:
    """Sorts img2 before img10, without regard to case; ties by the exact name."""
    parts = re.split(r"([0-9]+)", str(path).lower())  # text and numbers take turns, text first
    return [int(part) if k % 2 else part for k, part in enumerate(parts)], str(path)


def _named(files: Sequence[Path]) -> str:
    return ", ".join(path.name for path in files[:3]) + (", ..." if len(files) > 3 else "")


def _suffixes() -> str:
    names = ", ".join(suffix[1:] for suffix in IMAGE_SUFFIXES)
    return f"{names}, RAW (dng, cr2, nef, ...), clips (mp4, mov, ...)"
