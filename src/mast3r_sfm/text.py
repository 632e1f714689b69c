"""Numbers as people read them."""

from __future__ import annotations


def counted(number: int, singular: str) -> str:
    """`1 image`, `2 images`; for words whose plural takes an s."""
    return f"{number} {singular}" if number == 1 else f"{number} {singular}s"


def byte_count(num_bytes: float) -> str:
    """`87 bytes`, `3.4 kB`, `140.0 MB` or `2.1 GB`; powers of 1000."""
    if num_bytes < 1e3:
        return f"{num_bytes:.0f} bytes"
    for limit, unit in ((1e6, "kB"), (1e9, "MB")):
        if num_bytes < limit:
            return f"{num_bytes / limit * 1e3:.1f} {unit}"
    return f"{num_bytes / 1e9:.1f} GB"
