"""Stand-in for the scene graphs."""

from __future__ import annotations

from typing import Any


def make_pairs(
    imgs: list[Any], scene_graph: str = "complete", prefilter: str | None = None, symmetrize: bool = True
) -> list[tuple[Any, Any]]:
    assert scene_graph == "complete", scene_graph
    assert prefilter is None
    pairs = [(imgs[i], imgs[j]) for i in range(len(imgs)) for j in range(i)]
    return pairs + [(b, a) for a, b in pairs] if symmetrize else pairs
