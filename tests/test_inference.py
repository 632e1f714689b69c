"""Encoding once, decoding in batches: the same numbers as the plain call on two images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from model_files import TINY, random_state, write_folder

from mast3r_sfm import inference
from mast3r_sfm.errors import ReconstructionError
from mast3r_sfm.inference import encode_views, predict_pairs
from mast3r_sfm.model.checkpoint import Model, load_model
from mast3r_sfm.types import ImageTransform, PairPrediction, View, ViewPrediction

SHAPES = [(64, 96), (64, 96), (96, 64), (64, 96)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return load_model(write_folder(tmp_path_factory.mktemp("model"), TINY, random_state(TINY)), "cpu")


def make_views(shapes: list[tuple[int, int]]) -> list[View]:
    generator = torch.Generator().manual_seed(1)
    views = []
    for k, (H, W) in enumerate(shapes):
        rgb = torch.randint(256, (H, W, 3), generator=generator, dtype=torch.uint8).numpy()
        transform = ImageTransform((W, H), (W, H), (0, 0), (W, H))
        views.append(View(k, Path(f"{k}.png"), rgb, transform))
    return views


def _maps(view: ViewPrediction) -> list[torch.Tensor]:
    assert view.desc is not None and view.desc_conf is not None
    return [view.points, view.conf, view.desc, view.desc_conf]


def _expected(model: Model, views: list[View], i: int, j: int) -> list[list[torch.Tensor]]:
    with torch.inference_mode():
        own_i, j_in_i = model.network(views[i].tensor[None], views[j].tensor[None])
        own_j, i_in_j = model.network(views[j].tensor[None], views[i].tensor[None])
    return [[m[0] for m in out if m is not None] for out in (own_i, j_in_i, own_j, i_in_j)]


@pytest.mark.parametrize("batch_size", [None, 2, 16])
def test_pairs_equal_the_plain_call(model: Model, batch_size: int | None) -> None:
    views = make_views(SHAPES)
    pairs = [(1, 0), (2, 0), (3, 1), (3, 0), (0, 2)]
    done: list[int] = []
    encoded = encode_views(model, views, batch_size)
    found = {(p.i, p.j): p for p in predict_pairs(model, encoded, pairs, batch_size, done.append)}
    assert found.keys() == set(pairs) and sum(done) == len(pairs)
    for (i, j), pair in found.items():
        actual = [_maps(view) for view in (pair.i_in_i, pair.j_in_i, pair.j_in_j, pair.i_in_j)]
        for maps, expected in zip(actual, _expected(model, views, i, j), strict=True):
            for a, b in zip(maps, expected, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_every_image_is_encoded_once(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    encode = model.network.encode

    def counted(images: torch.Tensor) -> torch.Tensor:
        seen.append(len(images))
        return encode(images)

    monkeypatch.setattr(model.network, "encode", counted)
    encoded = encode_views(model, make_views(SHAPES))
    list(predict_pairs(model, encoded, [(1, 0), (3, 0), (3, 1)]))
    assert sum(seen) == len(SHAPES)
    assert [tuple(t.shape) for t in encoded.tokens] == [(24, 32)] * 4


def test_dust3r_has_no_descriptors(tmp_path: Path) -> None:
    raw: dict[str, Any] = {k: v for k, v in TINY.items() if k not in ("two_confs", "desc_conf_mode")}
    raw |= {"head_type": "dpt", "output_mode": "pts3d"}
    model = load_model(write_folder(tmp_path, raw, random_state(raw)), "cpu")
    (pair,) = predict_pairs(model, encode_views(model, make_views(SHAPES[:2])), [(0, 1)])
    assert pair.j_in_i.desc is None and pair.j_in_i.points.shape == (64, 96, 3)


def test_predictions_are_not_kept(model: Model) -> None:
    """A consumer that holds one prediction holds one batch: earlier maps are freed."""
    import weakref

    encoded = encode_views(model, make_views([(64, 96)] * 3))
    alive: list[weakref.ref[torch.Tensor]] = []
    for pair in predict_pairs(model, encoded, [(1, 0), (2, 0), (2, 1)], batch_size=1):
        alive.append(weakref.ref(pair.i_in_i.points))
        assert sum(ref() is not None for ref in alive) <= 2
        del pair


def test_a_batch_is_let_go_before_the_next_is_decoded(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the consumer's variable still holds the batch, as in a for loop."""
    import weakref

    alive: list[weakref.ref[torch.Tensor]] = []
    decode = inference._decode

    def spied(*arguments: Any) -> Any:
        assert not any(ref() is not None for ref in alive)
        return decode(*arguments)

    monkeypatch.setattr(inference, "_decode", spied)
    encoded = encode_views(model, make_views([(64, 96)] * 3))
    for batch in inference.predict_batches(model, encoded, [(1, 0), (2, 0), (2, 1)], batch_size=1):
        alive += [weakref.ref(pair.i_in_i.points) for pair in batch]
    assert len(alive) == 3


def test_out_of_memory_halves_the_batch(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    decode = inference._decode

    def tight(model: Model, tokens1: torch.Tensor, *others: Any) -> Any:
        sizes.append(len(tokens1))
        if len(tokens1) > 1:
            raise torch.cuda.OutOfMemoryError("stand-in")
        return decode(model, tokens1, *others)

    monkeypatch.setattr(inference, "_decode", tight)
    encoded = encode_views(model, make_views([(64, 96)] * 4))
    pairs = [(1, 0), (2, 0), (3, 0), (2, 1), (3, 1)]
    assert [(p.i, p.j) for p in predict_pairs(model, encoded, pairs, batch_size=4)] == pairs
    assert sizes == [4, 2, 1, 1, 1, 1, 1]


def test_out_of_memory_for_a_single_pair_says_what_to_do(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> list[PairPrediction]:
        raise torch.cuda.OutOfMemoryError("stand-in")

    monkeypatch.setattr(inference, "_decode", never)
    encoded = encode_views(model, make_views(SHAPES[:2]))
    with pytest.raises(ReconstructionError, match="`image_size`"):
        list(predict_pairs(model, encoded, [(1, 0)]))


def test_prediction_that_is_not_finite_names_the_pair(tmp_path: Path) -> None:
    state = random_state(TINY)
    state["dec_norm.weight"][0] = torch.nan
    model = load_model(write_folder(tmp_path, TINY, state), "cpu")
    with pytest.raises(ReconstructionError, match="images 1 and 0 is not finite"):
        list(predict_pairs(model, encode_views(model, make_views(SHAPES[:2])), [(1, 0)]))


@pytest.mark.parametrize("shape", [(64, 96), (96, 64)])
def test_only_the_pair_that_is_not_finite_is_named(model: Model, shape: tuple[int, int]) -> None:
    """Pairs (0, 1), (0, 2), (0, 3) in one batch, of equal and of different shapes: view 2 spoils its own pair."""
    encoded = encode_views(model, make_views([(64, 96), shape, shape, shape]))
    with torch.inference_mode():
        encoded.tokens[2][3] = torch.inf
    with pytest.raises(ReconstructionError, match="images 0 and 2 is not finite"):
        list(predict_pairs(model, encoded, [(0, 1), (0, 2), (0, 3)], batch_size=3))
