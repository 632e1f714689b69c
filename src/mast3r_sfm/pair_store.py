"""What tiles of pairs left, in a folder: an interrupted run goes on from there (docs/state.md).

    manifest-KEY.json          which tiles a run has: the images by hashes of their pixels, the pairs of each tile
    tiles/KEY.safetensors      what a tile left

A tile's key is a hash of all that its result depends on: the pixels and masks of its images, its pairs, the weights,
precision, device type and options; a manifest's of all of that which is not of single images. Files are written under
other names, flushed and renamed, so that one that is there is whole, whoever else writes the same; and a hash of its
content is compared when it is read.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from mast3r_sfm._version import __version__
from mast3r_sfm.model.checkpoint import Model
from mast3r_sfm.model.fingerprint import weights_fingerprint
from mast3r_sfm.text import counted
from mast3r_sfm.tile_files import AT_ONCE, SpoiltFileError, hash_of, read_tile, write_tile, write_whole
from mast3r_sfm.tiles import Tile, TileResult, images_of
from mast3r_sfm.types import View

logger = logging.getLogger(__name__)

FORMAT = 1
"""Of the files; another one's are not read."""

_AHEAD = 1  # tiles that are read before they are asked for


@dataclass(frozen=True)
class PairsIdentity:
    """All that the results of pairs depend on, but the pairs.

    options  those that shape pairs, by name; plain values
    """

    model: Model
    views: tuple[View, ...]
    options: Mapping[str, Any]

    @cached_property
    def context(self) -> dict[str, Any]:
        """What is not of single images, by name."""
        return {
            "program": __version__,
            "format": FORMAT,
            "weights": weights_fingerprint(self.model.network),
            "precision": str(self.model.precision),
            "device": self.model.device.type,
            **self.options,
        }

    @cached_property
    def key(self) -> str:
        """Of the context."""
        return hash_of(json.dumps(self.context, sort_keys=True))

    @cached_property
    def images(self) -> list[str]:
        """Of every view what the network sees of it, and its mask; two views may be the same."""

        def image(view: View) -> str:
            return hash_of(str(view.shape), view.rgb.tobytes(), b"" if view.mask is None else view.mask.tobytes())

        with ThreadPoolExecutor(AT_ONCE) as threads:
            return list(threads.map(image, self.views))


class PairStore:
    """A folder for the tiles of pairs, of one run or of several.

    folder     made when it is first written to
    resume     False: what the folder holds of earlier runs is deleted first
    min_seconds  nothing is written before the pairs are expected to take so long, unless the folder is there already
    reserve_bytes  that are left free on the disk, for the result
    report     is told what was found; None: logged
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        resume: bool = True,
        min_seconds: float = 0.0,
        reserve_bytes: int = 0,
        report: Callable[[str], None] | None = None,
    ) -> None:
        self.folder = Path(folder)
        self.min_seconds = min_seconds
        self.reserve_bytes = reserve_bytes
        self.report = report or logger.info
        self.writing: Future[None] | None = None
        self._resume = resume

    def open(self, identity: PairsIdentity) -> PairState:
        """The tiles of one run. A folder that cannot be used costs a warning, never the run."""
        if not self._resume:
            self.delete()
            self._resume = True
        return PairState(self, identity)

    @property
    def holds_pairs(self) -> bool:
        """Whether a tile is there."""
        return next(self._tiles.glob("*.safetensors"), None) is not None

    def flush(self) -> None:
        """Waits for what is being written, as the end of the program does."""
        if self.writing is not None:
            self.writing.result()
            self.writing = None  # and with it goes what was written

    def delete(self) -> None:
        """Deletes what runs have written, and the folder if nothing else is in it."""
        self.flush()
        own = [*self.folder.glob("manifest-*.json"), *self.folder.glob(".*.new"), *self._tiles.glob("*.safetensors")]
        for path in [*own, *self._tiles.glob(".*.new")]:
            with contextlib.suppress(OSError):
                path.unlink()
        for folder in (self._tiles, self.folder):
            with contextlib.suppress(OSError):
                folder.rmdir()

    @property
    def _tiles(self) -> Path:
        return self.folder / "tiles"

    def manifest_file(self, key: str) -> Path:
        """The manifest of a context."""
        return self.folder / f"manifest-{key}.json"

    def tile_file(self, key: str) -> Path:
        """What a tile left."""
        return self._tiles / f"{key}.safetensors"


class PairState:
    """The tiles of one run in a `PairStore`: those found there, and those that are written as they come.

    A context in which tiles are loaded and saved. What is still being written on leaving it is finished while other
    work goes on, or is waited for if the context ends by an error.
    """

    def __init__(self, store: PairStore, identity: PairsIdentity) -> None:
        self._store = store
        self._identity = identity
        self._device = identity.model.device
        self._used = store.min_seconds <= 0 or store.folder.is_dir()  # else it is not even looked at
        self._writable = True
        self._manifest = self._read_manifest() if self._used else None
        self._sizes: dict[tuple[int, int], int] = {}
        self._keys: dict[Tile, str] = {}
        self._tiles: list[Tile] = []
        self._reads: dict[Tile, Future[TileResult | None]] = {}
        self._start = 0.0
        self._num_saved = 0
        self._threads = ThreadPoolExecutor(1 + _AHEAD, "tiles")

    @property
    def batch_sizes(self) -> dict[tuple[int, int], int]:
        """Pairs of a batch by the shape (H, W) of the first view, as the run that is gone on with had them."""
        sizes = [] if self._manifest is None else self._manifest["batch_sizes"]
        return {(height, width): size for height, width, size in sizes}

    @property
    def tiles(self) -> list[Tile]:
        """Of the run that is gone on with, those whose images are all given now."""
        if self._manifest is None:
            return []
        places: dict[str, list[int]] = {}
        for k, image in enumerate(self._identity.images):
            places.setdefault(image, []).append(k)
        now = {
            k: places[image].pop(0) for k, image in enumerate(self._manifest["images"]) if places.get(image)
        }  # the same image several times: in its order
        return [
            tuple((now[i], now[j]) for i, j in tile)
            for tile in self._manifest["tiles"]
            if all(i in now and j in now for i, j in tile)
        ]

    def plan(self, tiles: Sequence[Tile], sizes: Mapping[tuple[int, int], int]) -> list[bool]:
        """Which of the run's tiles are there; `sizes` as `batch_sizes`. Reports how many pairs that are."""
        self._tiles, self._sizes = list(tiles), dict(sizes)
        self._start = time.perf_counter()
        if not self._used:
            return [False] * len(tiles)
        found = [self._is_there(tile) for tile in tiles]
        if num_found := sum(len(tile) for tile, there in zip(tiles, found, strict=True) if there):
            every = counted(sum(map(len, tiles)), "pair")
            self._store.report(f"{num_found} of {every} found in {self._store.folder}")
        self._try(self._write_manifest)
        return found

    def load(self, tile: Tile) -> TileResult | None:
        """What the tile left, None if that is not there. A file that is not whole is named, and does not count."""
        if not self._used:
            return None
        place = self._tiles.index(tile)
        for one in self._tiles[place : place + 1 + _AHEAD]:
            if one not in self._reads and self._is_there(one):
                self._reads[one] = self._threads.submit(self._read_tile, one)
        read = self._reads.pop(tile, None)
        return None if read is None else read.result()

    def save(self, tile: Tile, result: TileResult) -> None:
        """Has what a tile left written while the run goes on; waits for the one before, if that is not yet done."""
        self._num_saved += len(tile)
        if not self._used:
            expected = (time.perf_counter() - self._start) / self._num_saved * sum(map(len, self._tiles))
            if expected < self._store.min_seconds:
                return
            self._used = True
            self._try(self._write_manifest)
        if not self._writable:
            return
        self._store.flush()
        ready = None
        if self._device.type == "cuda":
            ready = torch.cuda.Event()
            ready.record(torch.cuda.current_stream(self._device))
        self._store.writing = self._threads.submit(self._try, lambda: self._write_tile(tile, result, ready))

    def __enter__(self) -> PairState:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        for read in self._reads.values():
            read.cancel()
        self._threads.shutdown(wait=False)
        if kind is not None:
            self._store.flush()

    def _try(self, write: Callable[[], None]) -> None:
        """Writes; on failure once a warning, and nothing more is written."""
        try:
            if self._writable:
                write()
        except (OSError, MemoryError, RuntimeError) as error:  # torch raises the last for want of memory
            self._writable = False
            reason = getattr(error, "strerror", None) or str(error)
            logger.warning(
                "%s: pairs cannot be kept there any more (%s); the run goes on, and if interrupted does them again. "
                "Free some space, or name another folder as `state`",
                self._store.folder,
                reason,
            )

    # ------------------------------------------------------------------ manifest
    def _read_manifest(self) -> dict[str, Any] | None:
        """Of the run with all the same but the images; None without one, and a warning if there are only others."""
        file = self._store.manifest_file(self._identity.key) if self._store.folder.is_dir() else None
        if file is None:
            return None
        if not file.exists():
            self._warn_of_others()
            return None
        return _manifest(file)

    def _warn_of_others(self) -> None:
        """Says in what the newest of the runs that the folder knows differs from this one."""
        files = sorted(self._store.folder.glob("manifest-*.json"), key=lambda file: file.stat().st_mtime)
        other = _manifest(files[-1]) if files else None
        if other is None:
            return
        words = {
            "weights": f"other weights ({other['model']})",
            "program": "another version of this program",
            "verification": "another check of the matches (`verify_matches`)",
        }
        here = self._identity.context
        names = [name for name in here if other["context"].get(name) != here[name]]
        logger.warning(
            "%s: what it holds was made with %s; all pairs are predicted anew",
            self._store.folder,
            ", ".join(words.get(name, f"another `{name}`") for name in names),
        )

    def _write_manifest(self) -> None:
        manifest = {
            "model": self._identity.model.name,
            "context": self._identity.context,
            "batch_sizes": [[*shape, size] for shape, size in self._sizes.items()],
            "images": self._identity.images,
            "tiles": self._tiles,
        }
        text = json.dumps(manifest)
        if self._manifest is not None and json.loads(text) == self._manifest:
            return

        def write(path: Path) -> None:
            path.write_text(text, encoding="utf-8")

        write_whole(self._store.manifest_file(self._identity.key), write)

    # ------------------------------------------------------------------ tiles
    def _key(self, tile: Tile) -> str:
        if tile not in self._keys:
            images = images_of(tile)
            number = {index: k for k, index in enumerate(images)}
            shapes = {self._identity.views[index].shape for index in images}
            content = {
                "context": self._identity.key,
                "batch_sizes": sorted([*shape, self._sizes[shape]] for shape in shapes),
                "images": [self._identity.images[index] for index in images],
                "pairs": [(number[i], number[j]) for i, j in tile],
            }
            self._keys[tile] = hash_of(json.dumps(content))
        return self._keys[tile]

    def _is_there(self, tile: Tile) -> bool:
        return self._store.tile_file(self._key(tile)).is_file()

    def _read_tile(self, tile: Tile) -> TileResult | None:
        path = self._store.tile_file(self._key(tile))
        try:
            return read_tile(path, tile, self._identity.options["subsample"], self._device)
        except FileNotFoundError:  # deleted by another run, at its end
            return None
        except (OSError, SpoiltFileError) as error:
            logger.warning("%s: spoilt (%s); its %s are predicted again", path, error, counted(len(tile), "pair"))
            return None

    @torch.inference_mode()
    def _write_tile(self, tile: Tile, result: TileResult, ready: torch.cuda.Event | None) -> None:
        """ready: when the device has computed it; None: it has"""
        path = self._store.tile_file(self._key(tile))
        with contextlib.nullcontext() if ready is None else torch.cuda.stream(torch.cuda.Stream(self._device)):
            if ready is not None:
                ready.wait()
            write_tile(path, tile, result, self._check_room)

    def _check_room(self, num_bytes: int) -> None:
        """Raises OSError if so many more would not leave the room that the result takes."""
        existing = next(folder for folder in (self._store.folder, *self._store.folder.parents) if folder.exists())
        disk = shutil.disk_usage(existing)
        if disk.total and disk.free < num_bytes + self._store.reserve_bytes:  # some file systems do not tell: all zero
            raise OSError(errno.ENOSPC, "the disk would be too full for the result")


def _manifest(file: Path) -> dict[str, Any] | None:
    """The content of a manifest, None if it cannot be read; that costs the reuse of tiles by other sets of images."""
    try:
        manifest: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        return manifest if {"model", "context", "batch_sizes", "images", "tiles"} <= manifest.keys() else None
    except (OSError, ValueError, AttributeError) as error:
        logger.warning("%s: cannot be read (%s)", file, error)
        return None
