"""The spanning tree that poses are chained along."""

import numpy as np
import pytest
from golden_scene import ALIGNMENT_SCENES, load_scene

from mast3r_sfm.alignment.kinematic_tree import build_tree

ANCHORS = np.full(10, 100)


def symmetric(n: int, weights: dict[tuple[int, int], float]) -> np.ndarray:
    scores = np.zeros((n, n), dtype=np.float32)
    for (i, j), weight in weights.items():
        scores[i, j] = scores[j, i] = weight
    return scores


def test_a_path_is_rooted_in_its_middle_and_keeps_its_edges() -> None:
    scores = symmetric(5, {(i, i + 1): 50 for i in range(4)})
    tree = build_tree(scores, ANCHORS[:5], "mst")
    assert tree.root == 2
    assert sorted(tuple(sorted(edge)) for edge in tree.edges) == [(0, 1), (1, 2), (2, 3), (3, 4)]


def test_the_strongest_pairs_span_the_tree() -> None:
    # a triangle drops its weakest side; view 3 hangs on view 0
    scores = symmetric(4, {(0, 1): 30, (1, 2): 20, (0, 2): 10, (0, 3): 5})
    tree = build_tree(scores, ANCHORS[:4], "mst")
    assert sorted(tuple(sorted(edge)) for edge in tree.edges) == [(0, 1), (0, 3), (1, 2)]


@pytest.mark.parametrize("mode", ["mst", "hclust-ward", "hclust-average", "hclust-single"])
@pytest.mark.parametrize("n", [2, 3, 7, 10])
def test_every_view_has_one_parent_that_comes_first(mode: str, n: int) -> None:
    rng = np.random.default_rng(n)
    scores = np.triu(rng.integers(1, 400, (n, n)), 1).astype(np.float32)
    tree = build_tree(scores + scores.T, ANCHORS[:n], mode)
    placed = {tree.root}
    for parent, child in tree.edges:
        assert parent in placed and child not in placed
        placed.add(child)
    assert placed == set(range(n))
    parents = tree.parents()
    assert parents[tree.root] == -1
    assert all(parents[child] == parent for parent, child in tree.edges)


def test_one_view_is_its_own_tree() -> None:
    tree = build_tree(np.zeros((1, 1)), ANCHORS[:1], "hclust-ward")
    assert (tree.root, tree.edges) == (0, ())


@pytest.mark.parametrize("name", ALIGNMENT_SCENES)
def test_golden_trees(name: str) -> None:
    scene = load_scene(name)
    golden = scene.golden
    num_anchors = np.array([golden[f"depth{i}"].size // 64 for i in range(scene.num_views)])
    default = scene.options.get("kinematic_mode", "hclust-ward")
    for prefix, mode in (("", default), ("hclust_", "hclust-ward"), ("nopp_", default), ("dedup_", default)):
        if f"{prefix}mst_root" not in golden:
            continue
        tree = build_tree(golden["pairwise_scores"], num_anchors, mode)
        assert tree.root == golden[f"{prefix}mst_root"]
        assert tree.edges == tuple(map(tuple, golden[f"{prefix}mst_edges"].tolist()))
