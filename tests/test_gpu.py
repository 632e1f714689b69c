"""The fast paths of a CUDA device against the plain ones: run with `./test.sh --gpu` on a machine with a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from test_pipeline import view_of

from mast3r_sfm import canonical, pairwise
from mast3r_sfm.alignment import solver
from mast3r_sfm.dense import stage as dense_stage
from mast3r_sfm.device import has_triton
from mast3r_sfm.inference import encode_views, predict_batches
from mast3r_sfm.matching import RepeatedMatching, match_pairs
from mast3r_sfm.matching import pairs as matching_pairs
from mast3r_sfm.matching.reciprocal import match_plain
from mast3r_sfm.model.checkpoint import load_model
from mast3r_sfm.model.network import operations
from mast3r_sfm.pair_store import PairStore
from mast3r_sfm.pipeline import ReconstructionOptions, reconstruct
from mast3r_sfm.progress import StageTimer
from mast3r_sfm.reconstruction import Reconstruction
from mast3r_sfm.types import Correspondences, View
from synthetic import render_orbit

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


def _views(count: int, size: tuple[int, int] = (160, 120), degrees: float = 60) -> list[View]:
    return [view_of(image.numpy(), k) for k, image in enumerate(render_orbit(900_100, count, size, degrees).rgb)]


@contextmanager
def plain_paths() -> Iterator[None]:
    """The same device and precision without fused kernels and without a recorded alignment."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (canonical, dense_stage, matching_pairs, operations):
            patch.setattr(module, "has_triton", lambda: False)
        patch.setattr(solver, "record", lambda stage: stage.step)
        yield


def _in_common(first: list[Correspondences], second: list[Correspondences]) -> float:
    """Share of the matches of either side that both have."""
    rows = [
        {(m.i, m.j, *row) for m in side for row in torch.cat([m.xy_i, m.xy_j], 1).tolist()} for side in (first, second)
    ]
    return len(rows[0] & rows[1]) / len(rows[0] | rows[1])


def _worst_rotation_deg(first: Reconstruction, second: Reconstruction) -> float:
    """Largest difference of the relative rotations of two views; |R - S| = sqrt(8) sin(angle / 2) keeps small ones."""
    worst = 0.0
    for i in range(len(first.views)):
        for j in range(i):
            a, b = (r.views[i].world_from_cam.T @ r.views[j].world_from_cam for r in (first, second))
            worst = max(worst, 2 * np.degrees(np.arcsin(np.linalg.norm((a - b)[:3, :3]) / 8**0.5)))
    return worst


def test_fast_paths_reconstruct_what_the_plain_ones_do() -> None:
    model = load_model("small", "cuda", "fp32")
    views = _views(4, degrees=45)
    fast = reconstruct(views, model)
    with plain_paths():
        plain = reconstruct(views, model)
    assert sum(len(m) for m in plain.matches) > 1000
    assert _in_common(list(fast.matches), list(plain.matches)) >= 0.99
    assert _worst_rotation_deg(fast, plain) <= 0.02
    for a, b in zip(fast.views, plain.views, strict=True):
        assert np.median(np.abs(a.depth / b.depth - 1)) <= 0.002


def test_fused_network_in_half_precision_predicts_what_the_plain_one_does() -> None:
    # matches of half-precision descriptors change with their last bit, so the same maps go to both searches
    model = load_model("small", "cuda", "fp16")
    views = _views(4, degrees=45)
    pairs = [(i, j) for i in range(4) for j in range(i)]
    fast = [pair for batch in predict_batches(model, encode_views(model, views), pairs) for pair in tuple(batch)]
    with plain_paths():
        plain = [pair for batch in predict_batches(model, encode_views(model, views), pairs) for pair in tuple(batch)]
        plain_matches = match_pairs(fast, 8)
    assert _in_common(match_pairs(fast, 8), plain_matches) >= 0.99
    for a, b in zip(fast, plain, strict=True):
        for one, other in ((a.i_in_i, b.i_in_i), (a.j_in_i, b.j_in_i), (a.j_in_j, b.j_in_j), (a.i_in_j, b.i_in_j)):
            distance = (one.points - other.points).norm(dim=-1) / other.points.norm(dim=-1)
            assert float(distance.median()) <= 0.002
            assert float((one.conf / other.conf - 1).abs().median()) <= 0.002
            assert one.desc is not None and other.desc is not None
            assert float((one.desc - other.desc).norm(dim=-1).median()) <= 0.004


def test_fused_matching_finds_the_plain_matches() -> None:
    assert has_triton()
    from mast3r_sfm.matching.reciprocal_cuda import match_batch

    model = load_model("small", "cuda", "fp32")
    views = [*_views(3), *_views(2, (120, 160))]
    encoded = encode_views(model, views)
    common = total = 0
    pairs = [(1, 0), (2, 0), (2, 1), (3, 0), (4, 0), (3, 4)]
    for batch in predict_batches(model, encoded, pairs, batch_size=4):
        for fast, prediction in zip(match_batch(batch, 8), batch, strict=True):
            plain = match_plain(prediction, 8)
            a, b = ({tuple(row) for row in torch.cat([m.xy_i, m.xy_j], 1).tolist()} for m in (fast, plain))
            common, total = common + len(a & b), total + len(a | b)
    assert total > 500 and common / total >= 0.99


def test_recorded_decoding_and_matching_find_what_the_usual_ones_do() -> None:
    """Bit by bit, over enough batches to be recorded; sizes are mixed, and the last batches are shorter."""
    model = load_model("small", "cuda", "fp16")
    views = [*_views(6), *_views(4, (120, 160))]
    encoded = encode_views(model, views)
    pairs = [(i, j) for i in range(len(views)) for j in range(i)]
    recorded = RepeatedMatching()
    found = []
    for batch in predict_batches(model, encoded, pairs, batch_size=2, overwrite=True):
        maps = [view.points.clone() for one in batch for view in (one.i_in_i, one.j_in_i, one.j_in_j, one.i_in_j)]
        found.append((maps, recorded(batch, 8)))
    usual = predict_batches(model, encoded, pairs, batch_size=2)
    for (maps, matches), batch in zip(found, usual, strict=True):
        views_of = [view.points for one in batch for view in (one.i_in_i, one.j_in_i, one.j_in_j, one.i_in_j)]
        assert all(torch.equal(a, b) for a, b in zip(maps, views_of, strict=True))
        for a, b in zip(matches, match_pairs(batch, 8), strict=True):
            assert (a.i, a.j) == (b.i, b.j)
            assert torch.equal(a.xy_i, b.xy_i) and torch.equal(a.xy_j, b.xy_j) and torch.equal(a.conf, b.conf)


def test_pairs_that_were_kept_give_the_same_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit by bit, though batches that were recorded in the first run are not in the second; sizes are mixed."""
    monkeypatch.setattr(pairwise, "pairs_per_tile", lambda device, parameters: 24)
    model = load_model("small", "cuda", "fp16")
    views = [view_of(view.rgb, k) for k, view in enumerate([*_views(9), *_views(5, (120, 160))])]
    timer = StageTimer(None, model.device)

    def predicted(store: PairStore | None) -> pairwise.PairwiseData:
        return pairwise.predict_pairwise(model, views, ReconstructionOptions(batch_size=2), timer, store=store)

    store = PairStore(tmp_path / "state")
    results = [predicted(None), predicted(store)]
    store.flush()
    tiles = sorted((store.folder / "tiles").iterdir(), key=lambda path: path.stat().st_mtime)
    assert len(tiles) >= 4
    for path in tiles[2:]:
        path.unlink()
    results += [predicted(store), predicted(store)]
    plain = results[0]
    assert sum(one.kept for one in plain.summaries) > 20
    for data in results[1:]:
        assert data.summaries == plain.summaries
        for one, other in zip(data.canonical, plain.canonical, strict=True):
            assert one is not None and other is not None and one.focal_px == other.focal_px
            assert one.conf.is_cuda and torch.equal(one.conf, other.conf)
            assert torch.equal(one.relative_depth, other.relative_depth)
        for a, b in zip(data.correspondences, plain.correspondences, strict=True):
            assert torch.equal(a.xy_i, b.xy_i) and torch.equal(a.xy_j, b.xy_j) and torch.equal(a.conf, b.conf)


def test_whole_reconstruction_equals_that_of_the_cpu() -> None:
    # looser than the test against the plain paths: the CPU's network rounds differently, so other seeds match
    views = _views(4)
    results = [reconstruct(views, load_model("small", device, "fp32"), ReconstructionOptions())
               for device in ("cpu", "cuda")]  # fmt: skip
    cpu, gpu = (result.views for result in results)
    for a, b in zip(cpu, gpu, strict=True):
        relative = a.world_from_cam[:3, :3].T @ b.world_from_cam[:3, :3]
        assert np.degrees(np.arccos(np.clip((np.trace(relative) - 1) / 2, -1, 1))) < 0.3
        assert np.median(np.abs(a.depth / b.depth - 1)) < 0.02


def test_same_input_gives_the_same_result() -> None:
    views = _views(4)
    model = load_model("small", "cuda", "fp32")
    first, second = (reconstruct(views, model) for _ in range(2))
    for a, b in zip(first.views, second.views, strict=True):
        assert np.array_equal(a.world_from_cam, b.world_from_cam) and np.array_equal(a.depth, b.depth)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one CUDA device")
def test_second_gpu_reconstructs_what_the_first_does() -> None:
    """While the first stays the current one, where kernels would go by themselves."""
    views = _views(4)
    first, second = (reconstruct(views, load_model("small", f"cuda:{k}", "fp16")) for k in range(2))
    for a, b in zip(first.views, second.views, strict=True):
        assert np.array_equal(a.world_from_cam, b.world_from_cam) and np.array_equal(a.depth, b.depth)


def test_little_memory_is_survived(caplog: pytest.LogCaptureFixture) -> None:
    model = load_model("small", "cuda", "fp32")
    views = _views(6, (320, 240))
    total = torch.cuda.get_device_properties(0).total_memory
    held = torch.cuda.memory_allocated()
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction((held + 0.6e9) / total)
    try:
        encoded = encode_views(model, views)
        pairs = [(i, j) for i in range(6) for j in range(i)]
        assert sum(len(batch) for batch in predict_batches(model, encoded, pairs, batch_size=64)) == len(pairs)
        assert "GPU memory ran out" in caplog.text
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
