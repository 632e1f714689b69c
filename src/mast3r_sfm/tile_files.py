"""What one tile leaves, as a file that is there completely or not at all, and is checked when it is read.

A safetensors file (docs/state.md has the names in it), with a hash of its content in its header.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from mast3r_sfm.canonical import CanonicalAccumulator
from mast3r_sfm.tiles import ImageSums, Pair, Tile, TileResult, images_of
from mast3r_sfm.types import Correspondences, FallbackPrediction, PairSummary

AT_ONCE = 4
"""Threads that read and hash: a gigabyte a second each."""


_OF_DEVICE = ("sums.", "fallback.")  # tensors that go there


class SpoiltFileError(Exception):
    """A file that is not as it was written."""


def write_tile(path: Path, tile: Tile, result: TileResult, check_room: Callable[[int], None]) -> None:
    """Writes what a tile left, which may lie on a GPU; `check_room` hears of its bytes before, and may raise OSError.

    Raises OSError if it cannot be written.
    """
    tensors = _packed(result, tile)
    check_room(sum(tensor.numel() * tensor.element_size() for tensor in tensors.values()))
    # one after the other: the program may be at its end, where no thread can be started any more
    metadata = {"digest": _hashed(path, (_with_hash(name, tensors[name]) for name in sorted(tensors)))}

    def write(new: Path) -> None:
        try:
            save_file(tensors, new, metadata)
        except SafetensorError as error:  # which hides the system's own error
            raise OSError(str(error)) from error

    write_whole(path, write)


def read_tile(path: Path, tile: Tile, subsample: int, device: torch.device) -> TileResult:
    """What `write_tile` was given, all but the matches on `device`. Raises OSError, SpoiltFileError."""
    try:
        with safe_open(path, framework="pt") as file, ThreadPoolExecutor(AT_ONCE) as threads:
            names = sorted(file.keys())

            def read(name: str) -> tuple[torch.Tensor, str]:
                mapped, digest = _with_hash(name, file.get_tensor(name))
                # a copy in any case: the file may be gone later
                return mapped.to(device if name.startswith(_OF_DEVICE) else "cpu", copy=True), digest

            hashed = list(threads.map(read, names))
            whole = _hashed(path, hashed) == (file.metadata() or {}).get("digest")
    except SafetensorError as error:
        raise SpoiltFileError(str(error)) from error
    if not whole:
        raise SpoiltFileError("its content is not what was written")
    return _unpacked({name: tensor for name, (tensor, _) in zip(names, hashed, strict=True)}, tile, subsample)


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """A file that is there completely or not at all, also after the power has failed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}.{secrets.token_hex(4)}.new")
    try:
        new.touch()
        mode = new.stat().st_mode  # as files have it here; the library makes them private
        write(new)
        new.chmod(mode)
        _flush(new)
        new.replace(path)
        _flush(path.parent)
    finally:
        new.unlink(missing_ok=True)


def _flush(path: Path) -> None:
    """Has a file, or the names in a folder, written to the disk itself."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _packed(result: TileResult, tile: Tile) -> dict[str, torch.Tensor]:
    """A tile's result as tensors in main memory; images are numbered by their place in the tile.

    summaries  (P, 3) int32: number of matches, of those confirmed, whether the pair takes part
    lengths    matches of the pairs that do; `xy_i`, `xy_j` (M, 2) uint16 and `conf` (M,) float32 of all of them
    images     (n, 2) int32: whether the sums are of believed pairs, number of pointmaps; `check_pairs` and `checks` of
               these, and `sums.K` (7, H, W) float32
    fallback.I.J.points, .conf   as `FallbackPrediction`
    """
    number = {index: k for k, index in enumerate(images_of(tile))}
    tensors = {
        "summaries": torch.tensor(
            [[one.num_matches, one.num_verified, one.kept] for one in result.summaries], dtype=torch.int32
        ),
        "lengths": torch.tensor([len(one) for one in result.matches], dtype=torch.int64),
    }
    if result.matches:
        tensors["xy_i"] = torch.cat([one.xy_i for one in result.matches]).to(torch.uint16)
        tensors["xy_j"] = torch.cat([one.xy_j for one in result.matches]).to(torch.uint16)
        tensors["conf"] = torch.cat([one.conf for one in result.matches])
    images, check_pairs, checks = [], [], []
    for index, k in number.items():
        own = result.sums[index]
        tensors[f"sums.{k}"] = own.sums.sums.cpu()
        images.append([int(own.believed), len(own.sums.checks)])
        for total, pair in own.sums.checks:
            assert pair is not None
            check_pairs.append([number[pair[0]], number[pair[1]]])
            checks.append(total)
    tensors |= {
        "images": torch.tensor(images, dtype=torch.int32),
        "check_pairs": torch.tensor(check_pairs, dtype=torch.int32),
        "checks": torch.stack(checks).float().cpu(),
    }
    for (i, j), one in result.fallback.items():
        tensors[f"fallback.{number[i]}.{number[j]}.points"] = one.points.cpu()
        tensors[f"fallback.{number[i]}.{number[j]}.conf"] = one.conf.cpu()
    return {name: tensor.contiguous() for name, tensor in tensors.items()}


def _unpacked(tensors: Mapping[str, torch.Tensor], tile: Tile, subsample: int) -> TileResult:
    """What `_packed` was given, from such tensors."""
    index_of = images_of(tile)
    rows = tensors["summaries"].tolist()
    pairs = [pair for pair, row in zip(tile, rows, strict=True) if row[2]]
    matches: list[Correspondences] = []
    if pairs:
        lengths = tensors["lengths"].tolist()
        columns = (tensors["xy_i"].to(torch.int32), tensors["xy_j"].to(torch.int32), tensors["conf"])
        parts = zip(*(column.split(lengths) for column in columns), strict=True)
        matches = [Correspondences(*pair, *own) for pair, own in zip(pairs, parts, strict=True)]
    sums, start = {}, 0
    check_pairs, checks = tensors["check_pairs"].tolist(), tensors["checks"]
    for k, (index, (believed, count)) in enumerate(zip(index_of, tensors["images"].tolist(), strict=True)):
        own = tensors[f"sums.{k}"]
        named = [(checks[c], (index_of[i], index_of[j])) for c, (i, j) in enumerate(check_pairs[:count], start)]
        check_pairs, start = check_pairs[count:], start + count
        sums[index] = ImageSums(
            CanonicalAccumulator(own.shape[1], own.shape[2], subsample, sums=own, checks=named), bool(believed)
        )
    fallback: dict[Pair, FallbackPrediction] = {}
    for name in tensors:
        if name.startswith("fallback.") and name.endswith(".points"):
            i, j = (index_of[int(k)] for k in name.split(".")[1:3])
            fallback[i, j] = FallbackPrediction(tensors[name], tensors[name.removesuffix("points") + "conf"])
    summaries = tuple(PairSummary(*pair, row[0], row[1], bool(row[2])) for pair, row in zip(tile, rows, strict=True))
    return TileResult(summaries, tuple(matches), fallback, sums)


def _hashed(path: Path, tensors: Iterable[tuple[torch.Tensor, str]]) -> str:
    """Of the file's name, which says what is in it, and of the hashes of all tensors in the order of their names."""
    return hash_of(path.name, *(digest for _, digest in tensors))


def _with_hash(name: str, tensor: torch.Tensor) -> tuple[torch.Tensor, str]:
    """The tensor, and a hash of its name, type, shape and values."""
    head = f"{name} {tensor.dtype} {tuple(tensor.shape)}"
    return tensor, hash_of(head, tensor.numpy().reshape(-1).view(np.uint8).data)


def hash_of(*parts: str | bytes | memoryview) -> str:
    """32 hex digits of texts and bytes."""
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        content = part.encode() if isinstance(part, str) else part
        digest.update(f"{memoryview(content).nbytes} ".encode())
        digest.update(content)
    return digest.hexdigest()
