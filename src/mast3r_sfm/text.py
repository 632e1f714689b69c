"""Numbers and names as people read them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path


def counted(number: int, singular: str) -> str:
    """`1 image`, `2 images`; for words whose plural takes an s."""
    return f"{number} {singular}" if number == 1 else f"{number} {singular}s"


def listed(names: Iterable[str], most: int) -> str:
    """The first names, separated by commas, and how many more there are than `most`."""
    every = list(names)
    rest = len(every) - most
    return ", ".join(every[:most]) + (f" and {rest} more" if rest > 0 else "")


def byte_count(num_bytes: float) -> str:
    """`87 bytes`, `3.4 kB`, `140.0 MB` or `2.1 GB`; powers of 1000."""
    if num_bytes < 1e3:
        return f"{num_bytes:.0f} bytes"
    for limit, unit in ((1e6, "kB"), (1e9, "MB")):
        if num_bytes < limit:
            return f"{num_bytes / limit * 1e3:.1f} {unit}"
    return f"{num_bytes / 1e9:.1f} GB"


def unique_stems(files: Sequence[str]) -> list[str]:
    """A file name without suffix for every file, unique without regard to case: its own; -2, -3, ... if it is taken.

    They depend on nothing but the files and their order. Stems and not names are unique, because the suffix may change,
    and because programs find masks and depth maps by them.
    """
    # names need not be valid Unicode, those in a model must
    own = [Path(file).stem.encode("utf-8", "replace").decode().replace("?", "_") for file in files]
    count = Counter(stem.casefold() for stem in own)
    taken: set[str] = set()
    unique = []
    for stem in own:
        name, number = stem, 1
        while name.casefold() in taken or (number > 1 and name.casefold() in count):
            number += 1
            name = f"{stem}-{number}"
        taken.add(name.casefold())
        unique.append(name)
    return unique
