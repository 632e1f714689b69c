"""Scene graphs: which pairs, in which orientation, by hand and against the goldens; similarity of images."""

import json
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import torch

from mast3r_sfm.errors import InputError
from mast3r_sfm.graphs import connected_components
from mast3r_sfm.options import SceneGraph
from mast3r_sfm.scene_graph import Pair, make_pairs, read_pairs, similarity_from_tokens

COMPLETE_UP_TO = SceneGraph.COMPLETE_UP_TO
GOLDEN = json.loads((Path(__file__).parent / "data" / "scene_graphs.json").read_text())


def line_similarity(*positions: float) -> np.ndarray:
    """Images on a line, less similar with distance."""
    x = np.array(positions, dtype=np.float64)
    return 1 - np.abs(x[:, None] - x) / (np.ptp(x) + 1)


def unordered(pairs: Iterable[Pair]) -> list[list[int]]:
    return sorted([min(pair), max(pair)] for pair in pairs)


# ---------------------------------------------------------------- by hand

BY_HAND = {
    # (graph, images): pairs in order
    ("complete", 3): [(1, 0), (2, 0), (2, 1)],
    ("swin-1", 4): [(0, 1), (0, 3), (1, 2), (2, 3)],
    ("swin-1-noncyclic", 4): [(0, 1), (1, 2), (2, 3)],
    ("swin-2-noncyclic", 4): [(0, 1), (0, 2), (1, 2), (1, 3), (2, 3)],
    ("swin", 8): [(i, j) for i in range(8) for j in range(i + 1, 8) if j - i != 4],  # 3 on both sides of a ring of 8
    # 1, 2 and 4 away; 3 and 5 are missing
    ("logwin-noncyclic", 6): [(i, j) for i in range(6) for j in range(i + 1, 6) if j - i in (1, 2, 4)],
    # on the ring of 7, 4 away is 3 away on the other side: all pairs
    ("logwin", 7): [(i, j) for i in range(7) for j in range(i + 1, 7)],
    ("oneref", 4): [(0, 1), (0, 2), (0, 3)],
    ("oneref-2", 4): [(2, 0), (2, 1), (2, 3)],
}


@pytest.mark.parametrize("graph, num_images", BY_HAND)
def test_by_hand(graph: str, num_images: int) -> None:
    assert make_pairs(graph, num_images) == BY_HAND[graph, num_images]


def test_retrieval_by_hand() -> None:
    similarity = line_similarity(0, 1, 2, 10, 11)
    # keys: 0, then 4, the farthest. Others to their nearest key: 1-0, 2-0, 3-4.
    assert make_pairs("retrieval-2-0", 5, similarity) == [(0, 4), (0, 1), (0, 2), (3, 4)]
    # k = 2 is the image and its nearest: 0-1, 1-0 (0 and 2 are as near: the lower), 2-1, 3-4, 4-3
    assert make_pairs("retrieval-2-2", 5, similarity) == [(0, 4), (0, 1), (0, 2), (1, 2), (3, 4)]
    assert make_pairs("retrieval-0-2", 5, similarity) == [(0, 1), (1, 2), (3, 4)]
    # keys 3, 0 (farthest of 3), 2 (2 from 0; 1 and 4 are only 1 from a key); sampling order is the orientation
    assert make_pairs("retrieval-3-0", 5, similarity, seed=3) == [(3, 0), (3, 2), (0, 2), (0, 1), (3, 4)]
    # the seed counts around
    assert make_pairs("retrieval-3-0", 5, similarity, seed=8) == make_pairs("retrieval-3-0", 5, similarity, seed=3)


def test_auto() -> None:
    assert make_pairs("auto", COMPLETE_UP_TO) == make_pairs("complete", COMPLETE_UP_TO)
    n = COMPLETE_UP_TO + 1
    assert (
        str(SceneGraph.parse("auto").resolved(n)) == str(SceneGraph.parse("retrieval").resolved(n)) == "retrieval-20-10"
    )
    similarity = line_similarity(*range(n))
    assert make_pairs("auto", n, similarity) == make_pairs("retrieval-20-10", n, similarity)
    assert str(SceneGraph.parse("retrieval").resolved(4)) == "retrieval-4-10"
    assert SceneGraph.parse("auto").needs_similarity(n) and SceneGraph.parse("retrieval-3-2").needs_similarity(5)
    assert not SceneGraph.parse("auto").needs_similarity(5)


@pytest.mark.parametrize(
    "graph", ["complete", "swin-4", "logwin-2-noncyclic", "oneref-3", "retrieval-3-2", "pairs:a b"]
)
def test_a_parsed_graph_reads_as_it_was_written(graph: str) -> None:
    assert str(SceneGraph.parse(graph)) == graph
    assert SceneGraph.parse(SceneGraph.parse(graph)) == SceneGraph.parse(graph)


# ---------------------------------------------------------------- published graphs

GOLDEN_GRAPHS = [(graph, int(n)) for graph, by_size in GOLDEN["graphs"].items() for n in by_size]


@pytest.mark.parametrize("graph, num_images", GOLDEN_GRAPHS)
def test_published_graphs(graph: str, num_images: int) -> None:
    expected = GOLDEN["graphs"][graph][str(num_images)]
    similarity = np.array(GOLDEN["retrieval_similarity"][str(num_images)])
    if expected.get("error"):
        with pytest.raises(InputError, match=f"`scene_graph={graph}`: image .* of {num_images}"):
            make_pairs(graph, num_images, similarity)
        return
    pairs = make_pairs(graph, num_images, similarity, seed=GOLDEN["retrieval_first_key_image"])
    assert unordered(pairs) == expected["pairs"]
    if "oriented" in expected:
        assert sorted(map(list, pairs)) == expected["oriented"]
    assert (len(connected_components(num_images, pairs)) == 1) == expected["connected"]


# ---------------------------------------------------------------- properties

ALL_GRAPHS = ["complete", "swin", "swin-40", "swin-2-noncyclic", "logwin", "logwin-9", "logwin-9-noncyclic", "oneref"]
ALL_GRAPHS += ["retrieval", "retrieval-50-50", "retrieval-3-2", "retrieval-0-3", "auto"]


@pytest.mark.parametrize("num_images", [1, 2, 3, 5, 8, 13, 30])
@pytest.mark.parametrize("graph", ALL_GRAPHS)
def test_no_self_pairs_and_no_repetition(graph: str, num_images: int) -> None:
    features = np.random.default_rng(num_images).normal(size=(num_images, 5))
    similarity = 1 / (1 + np.linalg.norm(features[:, None] - features, axis=-1))
    pairs = make_pairs(graph, num_images, similarity)
    assert all(i != j and 0 <= i < num_images and 0 <= j < num_images for i, j in pairs)
    assert len({frozenset(pair) for pair in pairs}) == len(pairs)
    assert bool(pairs) == (num_images > 1)
    if "-0-" not in graph:  # without key images, retrieval may leave groups
        assert len(connected_components(num_images, pairs)) == 1
    assert pairs == make_pairs(graph, num_images, similarity.copy())


def test_identical_images_are_paired_too() -> None:
    # all equally near: keys 0, 1, 2 in turn, everything else to key 0
    assert make_pairs("retrieval-3-0", 5, np.ones((5, 5))) == [(0, 1), (0, 2), (1, 2), (0, 3), (0, 4)]
    assert len(connected_components(30, make_pairs("retrieval", 30, np.ones((30, 30))))) == 1


def test_windows_far_larger_than_the_set() -> None:
    start = time.perf_counter()
    for graph in ("swin-1000000000", "logwin-1000000000", "swin-1000000000-noncyclic"):
        assert unordered(make_pairs(graph, 7)) == unordered(make_pairs("complete", 7))
    assert time.perf_counter() - start < 1
    assert make_pairs("logwin-1000000000-noncyclic", 7) == make_pairs("logwin-3-noncyclic", 7)


def test_components() -> None:
    assert connected_components(6, [(1, 3), (5, 3), (4, 0)]) == [[1, 3, 5], [0, 4], [2]]
    assert connected_components(6, [(1, 4), (4, 5), (0, 2)]) == [[1, 4, 5], [0, 2], [3]]
    assert connected_components(3, []) == [[0], [1], [2]]
    assert connected_components(4, [(3, 2), (1, 0)]) == [[0, 1], [2, 3]]
    assert connected_components(0, []) == []
    assert connected_components(3, [(0, 1), (1, 0), (0, 1)]) == [[0, 1], [2]]
    chain = [(i + 1, i) for i in range(4999)]
    assert connected_components(5000, chain) == [list(range(5000))]


# ---------------------------------------------------------------- errors

MALFORMED = ["", "swim", "complete-3", "Complete", "swin-", "swin-0", "swin--2", "swin-x", "swin-2-cyclic", "swin-2.5"]
MALFORMED += ["logwin-noncyclic-3", "oneref-", "oneref--1", "retrieval-5", "retrieval-5-x", "retrieval-5-3-2", "pairs:"]
MALFORMED += ["swin-2\n", "auto-3", "swin-٣"]


@pytest.mark.parametrize("graph", MALFORMED)
@pytest.mark.parametrize("num_images", [1, 6])
def test_malformed_graphs_list_the_accepted_forms(graph: str, num_images: int) -> None:
    with pytest.raises(InputError, match=r"complete, swin\[-k\].*retrieval\[-Na-k\], pairs:FILE, auto") as caught:
        make_pairs(graph, num_images, np.eye(num_images))
    assert "\n" not in str(caught.value)


def test_graphs_that_leave_no_pair() -> None:
    with pytest.raises(InputError, match="retrieval-0-1` makes no pair of 5 images"):
        make_pairs("retrieval-0-1", 5, np.eye(5))
    with pytest.raises(InputError, match="no images"):
        make_pairs("complete", 0)
    assert make_pairs("complete", 1) == []


@pytest.mark.parametrize("similarity", [None, np.eye(4), np.ones(5), np.full((5, 5), np.nan)])
def test_retrieval_without_a_fitting_similarity_is_a_bug_of_the_caller(similarity: np.ndarray | None) -> None:
    with pytest.raises(ValueError, match="similarity matrix"):
        make_pairs("retrieval-2-2", 5, similarity)


# ---------------------------------------------------------------- pairs from a file

NAMES = [Path("a/one.jpg"), Path("a/two.jpg"), Path("b/two.jpg"), Path("my photo.png"), Path("a/one#2.jpg")]


def test_pairs_file(tmp_path: Path) -> None:
    path = tmp_path / "pairs.txt"
    path.write_text(
        "\ufeff# a comment, and a blank line\n"
        "\n"
        "0 1      # two indices\n"
        "  3\t2\n"
        "one.jpg a/two.jpg\n"  # (0, 1) again: kept once
        "2,0\n"
        "my photo.png, b/two.jpg\n"  # (3, 2) again
        "one#2.jpg 1\n",
        encoding="utf-8",
    )
    assert read_pairs(path, 5, NAMES) == [(0, 1), (3, 2), (0, 1), (2, 0), (3, 2), (4, 1)]
    assert make_pairs(f"pairs:{path}", 5, names=NAMES) == [(0, 1), (3, 2), (2, 0), (4, 1)]


BAD_LINES = {
    "0 1\n0 5": r"line 2: image 5 of 5",
    "\n\n0 -1": r"line 3: '-1' is neither an index nor the file name",
    "0": r"line 1: '0' are 1 fields",
    "0 1 2": r"line 1: '0 1 2' are 3 fields",
    "my photo.png 1": r"line 1: .* 3 fields",
    "0 nothere.jpg": r"line 1: 'nothere.jpg' is neither",
    "two.jpg 0": r"line 1: 'two.jpg' may be image 1, 2",
    "3 3": r"line 1: '3 3' pairs image 3 with itself",
    "my photo.png,3": r"line 1: .* pairs image 3 with itself",
    "0,": r"line 1: '' is neither",
}


@pytest.mark.parametrize("text", BAD_LINES)
def test_bad_lines_of_a_pairs_file_are_named(text: str, tmp_path: Path) -> None:
    path = tmp_path / "pairs.txt"
    path.write_text(text)
    with pytest.raises(InputError, match=BAD_LINES[text]) as caught:
        make_pairs(f"pairs:{path}", 5, names=NAMES)
    assert str(path) in str(caught.value)


def test_bad_pairs_files(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere\.txt`: cannot be read \(No such file"):
        make_pairs(f"pairs:{tmp_path}/nowhere.txt", 5)
    (tmp_path / "photo.jpg").write_bytes(b"\xff\xd8\xff\xe0")
    with pytest.raises(InputError, match="not a UTF-8 text file"):
        make_pairs(f"pairs:{tmp_path}/photo.jpg", 5)
    (tmp_path / "empty.txt").write_text("# nothing\n")
    with pytest.raises(InputError, match=r"empty\.txt` makes no pair"):
        make_pairs(f"pairs:{tmp_path}/empty.txt", 5)


# ---------------------------------------------------------------- similarity


def made_tokens(seed: int = 0) -> list[torch.Tensor]:
    """Six images of 60 tokens: 20 of a background that all share, 40 of a wall seen through a sliding window."""
    generator = torch.Generator().manual_seed(seed)
    background = torch.randn(20, 32, generator=generator)
    wall = torch.randn(40 + 5 * 16, 32, generator=generator)
    tokens = []
    for k in range(6):
        seen = torch.cat([background, wall[16 * k : 16 * k + 40]])
        tokens.append(7.0 + seen + 0.1 * torch.randn(60, 32, generator=generator))
    return tokens


def test_similarity_falls_with_overlap() -> None:
    similarity = similarity_from_tokens(made_tokens())
    assert similarity.shape == (6, 6) and similarity.dtype == np.float64
    np.testing.assert_array_equal(similarity, similarity.T)
    np.testing.assert_array_equal(np.diag(similarity), 1.0)
    assert similarity.min() >= 0 and similarity.max() <= 1
    for i in range(6):
        for j in range(i + 1, 6):
            # windows 16 apart share 24 of 40 tokens, 32 apart 8, more none
            assert similarity[i, j] == pytest.approx({1: 0.82, 2: 0.63}.get(j - i, 0.56), abs=0.06), (i, j)
    assert similarity[0, 1] > similarity[0, 2] + 0.1 > similarity[0, 3] + 0.1


def test_similarity_of_copies_is_1() -> None:
    tokens = made_tokens()
    similarity = similarity_from_tokens([*tokens, tokens[2], tokens[4].flip(0)])
    assert similarity[2, 6] == pytest.approx(1, abs=1e-5) and similarity[4, 7] == pytest.approx(1, abs=1e-5)
    np.testing.assert_allclose(similarity[2, :6], similarity[6, :6], atol=1e-5)


def test_similarity_ignores_order_offset_and_scale() -> None:
    tokens = made_tokens()
    expected = similarity_from_tokens(tokens)
    order = [3, 1, 5, 0, 4, 2]
    np.testing.assert_allclose(
        similarity_from_tokens([tokens[k] for k in order]), expected[np.ix_(order, order)], atol=1e-5
    )
    offset = torch.linspace(-3, 3, 32)
    np.testing.assert_allclose(similarity_from_tokens([2.5 * t + offset for t in tokens]), expected, atol=1e-4)
    rotation = torch.linalg.qr(torch.randn(32, 32, generator=torch.Generator().manual_seed(1)))[0]
    np.testing.assert_allclose(similarity_from_tokens([t @ rotation for t in tokens]), expected, atol=1e-4)
    np.testing.assert_allclose(similarity_from_tokens([t.half() for t in tokens]), expected, atol=0.01)


def test_similarity_weighs_rare_directions() -> None:
    # a loud channel that all images share alike must not hide what tells them apart
    tokens = made_tokens()
    loud = 30 * torch.randn(60, 1, generator=torch.Generator().manual_seed(2)) * torch.eye(32)[:1]
    similarity = similarity_from_tokens([t + loud for t in tokens])
    assert all(similarity[i, i + 1] > similarity[i, j] for i in range(4) for j in range(i + 2, 6))


def test_similarity_of_images_of_different_sizes() -> None:
    a, b, c = made_tokens()[:3]
    similarity = similarity_from_tokens([a, b[:35], c[::2]])
    # the 35 tokens left of image 1 are all in image 0; of image 2 only every second token is left
    assert similarity[0, 1] == pytest.approx(similarity[1, 0]) and similarity[0, 1] > similarity[0, 2]
    assert similarity_from_tokens([a]).tolist() == [[1.0]]


def test_blank_images_are_not_told_apart_by_rounding() -> None:
    generator = torch.Generator().manual_seed(0)
    blank = [3.3 + 1e-6 * torch.randn(12, 32, generator=generator) for _ in range(3)]
    off_diagonal = similarity_from_tokens(blank)[~np.eye(3, dtype=bool)]
    assert off_diagonal.max() < 0.05
    np.testing.assert_array_equal(similarity_from_tokens([torch.zeros(4, 8)] * 2), np.eye(2))


def test_similarity_in_parts_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = similarity_from_tokens(made_tokens())
    monkeypatch.setattr("mast3r_sfm.scene_graph._COSINES_AT_ONCE", 1)
    np.testing.assert_allclose(similarity_from_tokens(made_tokens()), expected, atol=1e-6)


@pytest.mark.slow
def test_similarity_finds_the_views_that_overlap() -> None:
    # circles of 24 rendered views: the four most similar hold nearly the overlap of the four best
    from mast3r_sfm.model.checkpoint import load_model
    from synthetic.ideal import visible_in
    from synthetic.orbit import render_orbit

    network = load_model("small", "cpu", "fp32").network
    found = possible = 0.0
    for seed in (100, 102, 104):
        scene = render_orbit(seed, 24, (160, 120), 360.0)
        images = scene.rgb.permute(0, 3, 1, 2) / 127.5 - 1
        with torch.inference_mode():
            tokens = [network.encode(image[None])[0] for image in images]
        others = ~np.eye(24, dtype=bool)
        overlap = np.array([[float(visible_in(scene, i, j).double().mean()) for j in range(24)] for i in range(24)])
        similarity = similarity_from_tokens(tokens)
        for i in range(24):
            best = np.argsort(-np.where(others[i], similarity[i], -1))[:4]
            found += overlap[i, best].sum()
            possible += np.sort(overlap[i][others[i]])[-4:].sum()
    assert found / possible > 0.93
