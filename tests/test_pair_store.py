"""What is kept of pairs: the same result with and without, after every end, and never in the way of the run."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections import namedtuple
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from model_files import TINY, random_state, write_folder

from mast3r_sfm import canonical, pair_store, pairwise, tile_files
from mast3r_sfm.model.checkpoint import Model, load_model
from mast3r_sfm.model.fingerprint import weights_fingerprint
from mast3r_sfm.options import AlignmentConfig, ReconstructionOptions, RefinementOptions
from mast3r_sfm.pair_store import PairStore
from mast3r_sfm.pairwise import PairwiseData
from mast3r_sfm.progress import StageTimer
from mast3r_sfm.types import ImageTransform, View

OPTIONS = ReconstructionOptions(verification=None)
"""Weights are random: no geometry confirms a match."""

PAIRS, TILES = 15, 3  # of six images


@pytest.fixture(scope="module")
def folder_of_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("tiny"), TINY, random_state(TINY))


@pytest.fixture(scope="module")
def model(folder_of_model: Path) -> Model:
    return load_model(folder_of_model, "cpu")


def made_views(count: int, first: int = 0) -> list[View]:
    """Smooth random pictures; every third one stands upright, the second has a mask."""
    views = []
    for k in range(first, first + count):
        shape = (48, 32) if k % 3 == 2 else (32, 48)
        coarse = np.random.default_rng(k).uniform(0, 255, (*(size // 8 for size in shape), 3))
        rgb = np.kron(coarse, np.ones((8, 8, 1))).astype(np.uint8)
        alpha = np.where(np.arange(shape[1]) < 24, 255, 0).astype(np.uint8) + np.zeros(shape, np.uint8)
        transform = ImageTransform(shape[::-1], shape[::-1], (0, 0), shape[::-1])
        views.append(View(k, Path(f"view_{k}.png"), rgb, transform, alpha if k == 1 else None))
    return views


@pytest.fixture(scope="module", autouse=True)
def small_tiles() -> Iterator[None]:
    """And depths of random weights, half of which are negative, are repaired."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pairwise, "pairs_per_tile", lambda device, parameters: 4)
        patch.setattr(canonical, "MAX_BAD_BLOCKS", 1.0)
        yield


def predicted(
    model: Model, views: Sequence[View], store: PairStore | None = None, options: ReconstructionOptions = OPTIONS
) -> tuple[PairwiseData, int]:
    """What the pairs leave, and how many of them were predicted."""
    done: list[int] = []
    decode = pairwise.PairwiseCollector.add

    def counted(self: pairwise.PairwiseCollector, batch: Sequence[Any]) -> None:
        done.append(len(batch))
        decode(self, batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pairwise.PairwiseCollector, "add", counted)
        data = pairwise.predict_pairwise(model, views, options, StageTimer(None, torch.device("cpu")), store=store)
    if store is not None:
        store.flush()
    return data, sum(done)


def assert_same(a: PairwiseData, b: PairwiseData) -> None:
    """Bit by bit."""
    assert a.pairs == b.pairs and a.summaries == b.summaries and a.fallback.keys() == b.fallback.keys()
    for x, y in zip(a.canonical, b.canonical, strict=True):
        assert x is not None and y is not None and x.focal_px == y.focal_px
        for name in ("relative_depth", "conf", "core_depth"):
            assert getattr(x, name).numpy().tobytes() == getattr(y, name).numpy().tobytes()  # some are nan
    for one, other in zip(a.correspondences, b.correspondences, strict=True):
        assert (one.i, one.j) == (other.i, other.j)
        for name in ("xy_i", "xy_j", "conf"):
            own, its = getattr(one, name), getattr(other, name)
            assert own.dtype == its.dtype and torch.equal(own, its)
    for key, own in a.fallback.items():
        assert torch.equal(own.points, b.fallback[key].points) and torch.equal(own.conf, b.fallback[key].conf)


@pytest.fixture(scope="module")
def views() -> list[View]:
    return made_views(6)


@pytest.fixture(scope="module")
def plain(model: Model, views: list[View]) -> PairwiseData:
    return predicted(model, views)[0]


@pytest.fixture(scope="module")
def state_of_a_run(model: Model, views: list[View], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "state"
    predicted(model, views, PairStore(folder))
    return folder


@pytest.fixture
def filled(state_of_a_run: Path, tmp_path: Path) -> PairStore:
    return PairStore(shutil.copytree(state_of_a_run, tmp_path / "state"))


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Those of the store; others are of what random weights predict."""
    return [record.getMessage() for record in caplog.records if record.name == pair_store.__name__]


def tile_paths(store: PairStore) -> list[Path]:
    return sorted((store.folder / "tiles").iterdir())


def test_the_result_is_the_same_with_a_store_and_from_it(model: Model, views: list[View], tmp_path: Path) -> None:
    """With pairs that have fallback predictions, and with some that the geometry denies."""
    for k, options in enumerate(
        (replace(OPTIONS, alignment=AlignmentConfig(matching_conf_thr=1e9)), ReconstructionOptions())
    ):
        plain, num_predicted = predicted(model, views, None, options)
        assert num_predicted == PAIRS and (len(plain.fallback) == 2 * PAIRS) == (k == 0)
        said: list[str] = []
        store = PairStore(tmp_path / str(k), report=said.append)
        first, num_predicted = predicted(model, views, store, options)
        assert num_predicted == PAIRS and not said and len(tile_paths(store)) == TILES
        again, num_predicted = predicted(model, views, store, options)
        assert num_predicted == 0 and said == [f"15 of 15 pairs found in {store.folder}"]
        assert_same(plain, first)
        assert_same(plain, again)
        assert not list(store.folder.rglob(".*")), "temporary files are left"


def test_a_small_set_is_summed_in_the_order_of_its_pairs(
    model: Model, views: list[View], plain: PairwiseData, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One tile is what sums over all pairs are; several differ from it by rounding only."""
    monkeypatch.setattr(pairwise, "pairs_per_tile", lambda device, parameters: PAIRS)
    one, _ = predicted(model, views)
    assert one.summaries == plain.summaries
    for a, b in zip(one.canonical, plain.canonical, strict=True):
        assert a is not None and b is not None
        torch.testing.assert_close(a.relative_depth, b.relative_depth, rtol=1e-4, atol=1e-5)
        assert b.focal_px == pytest.approx(a.focal_px, rel=1e-5)


def test_missing_tiles_are_predicted_and_only_their_images_encoded(
    model: Model, views: list[View], plain: PairwiseData, filled: PairStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    tile_paths(filled)[0].unlink()
    again, num_predicted = predicted(model, views, filled)
    assert 0 < num_predicted <= 5 and len(tile_paths(filled)) == TILES
    assert_same(plain, again)

    encoded: list[int] = []
    run = pairwise.ViewEncoder._run

    def counted(self: pairwise.ViewEncoder, batch: Sequence[int]) -> torch.Tensor:
        encoded.extend(batch)
        return run(self, batch)

    monkeypatch.setattr(pairwise.ViewEncoder, "_run", counted)
    assert predicted(model, views, filled)[1] == 0
    assert not encoded


@pytest.mark.parametrize("harm", ["truncated", "altered", "emptied", "of another tile"])
def test_a_spoilt_file_is_named_and_its_pairs_are_predicted_again(
    model: Model, views: list[View], plain: PairwiseData, filled: PairStore, harm: str, caplog: pytest.LogCaptureFixture
) -> None:
    path, other = tile_paths(filled)[1:3]
    content = bytearray(path.read_bytes())
    match harm:
        case "truncated":
            path.write_bytes(content[: len(content) // 2])
        case "altered":
            content[-1000] ^= 1
            path.write_bytes(content)
        case "emptied":
            path.write_bytes(b"")
        case _:
            shutil.copy(other, path)
    again, num_predicted = predicted(model, views, filled)
    assert 0 < num_predicted <= 5
    assert_same(plain, again)
    (warning,) = warnings_of(caplog)
    assert f"{path}: spoilt" in warning
    assert predicted(model, views, filled)[1] == 0  # written again


def test_a_folder_that_cannot_be_written_costs_one_warning(
    model: Model, views: list[View], plain: PairwiseData, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("in the way of a folder, as permissions are not for root")
    data, _ = predicted(model, views, PairStore(tmp_path / "file" / "state"))
    assert_same(plain, data)
    (warning,) = warnings_of(caplog)
    assert str(tmp_path / "file" / "state") in warning


@pytest.mark.parametrize("which", ["written half", "no room for the result"])
def test_a_full_disk_costs_one_warning(
    model: Model,
    views: list[View],
    plain: PairwiseData,
    tmp_path: Path,
    which: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    store = PairStore(tmp_path / "state", reserve_bytes=10**6)
    usage = namedtuple("usage", "total used free")
    save, calls = tile_files.save_file, []

    def full(tensors: dict[str, torch.Tensor], path: Path, metadata: dict[str, str]) -> None:
        calls.append(path)
        if len(calls) == 2:
            path.write_bytes(b"half a file")
            raise OSError(errno.ENOSPC, "No space left on device")
        save(tensors, path, metadata)

    if which == "written half":
        monkeypatch.setattr(tile_files, "save_file", full)
    else:
        monkeypatch.setattr(pair_store.shutil, "disk_usage", lambda path: usage(10**12, 0, 10**6 + 1))
    data, _ = predicted(model, views, store)
    assert_same(plain, data)
    (warning,) = warnings_of(caplog)
    assert str(store.folder) in warning
    monkeypatch.setattr(tile_files, "save_file", save)
    monkeypatch.setattr(pair_store.shutil, "disk_usage", lambda path: usage(10**12, 0, 10**12))
    assert len(tile_paths(store) if (store.folder / "tiles").exists() else []) == len(calls[:1])
    assert_same(plain, predicted(model, views, store)[0])


@pytest.mark.parametrize(
    ("changes", "num_predicted"),
    [
        ({"alignment": AlignmentConfig(niter_coarse=7, lr_fine=0.1)}, 0),
        ({"refinement": None, "dense": None, "sky": True, "seed": 5}, 0),
        ({"refinement": RefinementOptions(max_feature_size=800)}, 0),
        ({"scene_graph": "swin-1"}, 6),
        ({"alignment": AlignmentConfig(subsample=4)}, PAIRS),
        ({"alignment": AlignmentConfig(matching_conf_thr=0.5)}, PAIRS),
        ({"verification": ReconstructionOptions().verification}, PAIRS),
        ({"batch_size": 3}, PAIRS),
    ],
)
def test_what_invalidates_pairs(
    model: Model, views: list[View], filled: PairStore, changes: dict[str, Any], num_predicted: int
) -> None:
    """As docs/state.md says: what the pairs do not depend on changes nothing; and nothing is lost by trying."""
    options = replace(OPTIONS, **changes)
    data, found = predicted(model, views, filled, options)
    assert found == num_predicted
    assert_same(data, predicted(model, views, None, options)[0])
    assert predicted(model, views, filled)[1] == 0 or "scene_graph" in changes


def test_other_weights_are_told_by_name(
    views: list[View], model: Model, filled: PairStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    other = load_model(write_folder(tmp_path / "other", TINY, random_state(TINY, seed=1)), "cpu")
    data, num_predicted = predicted(other, views, filled)
    assert num_predicted == PAIRS
    (warning,) = warnings_of(caplog)
    assert f"other weights ({model.name})" in warning
    assert_same(data, predicted(other, views)[0])


def test_weights_differ_by_their_values_names_and_types(model: Model, folder_of_model: Path) -> None:
    same = load_model(folder_of_model, "cpu")
    assert weights_fingerprint(same.network) == weights_fingerprint(model.network)
    half = load_model(folder_of_model, "cpu", "bf16")
    parameter = next(p for p in same.network.parameters() if p.numel() > 100 and p.is_contiguous())
    with torch.no_grad():
        first, second = parameter.view(-1)[3].clone(), parameter.view(-1)[4].clone()
        parameter.view(-1)[3], parameter.view(-1)[4] = second, first
    found = {weights_fingerprint(network) for network in (model.network, same.network, half.network)}
    assert len(found) == 3


def test_added_images_cost_only_their_own_pairs(model: Model, filled: PairStore, views: list[View]) -> None:
    """Also one that comes first, by which all others have another number, and one that is there twice."""
    added = [replace(view, index=k) for k, view in enumerate([made_views(1, 6)[0], *views, views[0]])]
    data, num_predicted = predicted(model, added, filled)
    assert num_predicted == 8 * 7 // 2 - PAIRS
    assert [(one.i, one.j) for one in data.summaries] == list(data.pairs) and len(data.pairs) == 28
    assert all(view is not None for view in data.canonical)
    again, num_predicted = predicted(model, added, filled)
    assert num_predicted == 0
    assert_same(data, again)


def test_an_image_that_was_replaced_is_noticed(model: Model, filled: PairStore, views: list[View]) -> None:
    other = replace(views[2], rgb=255 - views[2].rgb)
    data, num_predicted = predicted(model, [*views[:2], other, *views[3:]], filled)
    assert num_predicted >= 5
    assert_same(data, predicted(model, [*views[:2], other, *views[3:]])[0])


def test_starting_afresh_deletes_what_is_there_but_nothing_else(
    model: Model, views: list[View], filled: PairStore
) -> None:
    (filled.folder / "notes.txt").write_text("of the user")
    _, num_predicted = predicted(model, views, PairStore(filled.folder, resume=False))
    assert num_predicted == PAIRS and len(tile_paths(filled)) == TILES
    filled.delete()
    assert [path.name for path in filled.folder.iterdir()] == ["notes.txt"]
    (filled.folder / "notes.txt").unlink()
    filled.delete()
    assert not filled.folder.exists()


def test_short_runs_write_nothing_and_long_ones_begin_with_their_first_tile(
    model: Model, views: list[View], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    predicted(model, views, PairStore(tmp_path / "short", min_seconds=1e6))
    assert not (tmp_path / "short").exists()
    clock = iter(range(0, 10**6, 10))  # ten seconds a look
    monkeypatch.setattr(pair_store.time, "perf_counter", lambda: float(next(clock)))
    store = PairStore(tmp_path / "long", min_seconds=30)
    predicted(model, views, store)
    assert len(tile_paths(store)) == TILES


def test_a_manifest_that_cannot_be_read_costs_nothing_for_the_same_images(
    model: Model, views: list[View], filled: PairStore
) -> None:
    (manifest,) = filled.folder.glob("manifest-*.json")
    manifest.write_text(manifest.read_text()[:50])
    assert predicted(model, views, filled)[1] == 0
    assert len(json.loads(manifest.read_text())["tiles"]) == TILES


def test_two_runs_on_one_store(model: Model, views: list[View], plain: PairwiseData, tmp_path: Path) -> None:
    """Both end well, whoever writes first."""
    results: list[PairwiseData] = []
    timer = StageTimer(None, torch.device("cpu"))

    def run() -> None:
        store = PairStore(tmp_path / "state")
        results.append(pairwise.predict_pairwise(model, views, OPTIONS, timer, store=store))

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 2
    for data in results:
        assert_same(plain, data)
    assert len(tile_paths(PairStore(tmp_path / "state"))) == TILES


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import torch
from mast3r_sfm import pairwise, tile_files
from mast3r_sfm.model.checkpoint import load_model
from mast3r_sfm.pair_store import PairStore
from mast3r_sfm.progress import StageTimer
from test_pair_store import OPTIONS, made_views

_, _, folder_of_model, state, moment = sys.argv
pairwise.pairs_per_tile = lambda device, parameters: 4
save, replace, written = tile_files.save_file, Path.replace, []

def end():
    os.kill(os.getpid(), signal.SIGKILL)

def save_until(tensors, path, metadata):
    save(tensors, path, metadata)
    written.append(path)
    if len(written) == 2 and moment == "half a file":
        os.truncate(path, 1000)
        end()
    if len(written) == 3 and moment == "before the renaming":
        end()

def replace_until(self, target):
    replace(self, target)
    if len(written) == 3 and moment == "after the renaming":
        end()
    if not written and moment == "after the manifest":
        end()

tile_files.save_file, Path.replace = save_until, replace_until
timer = StageTimer(None, torch.device("cpu"))
pairwise.predict_pairwise(load_model(folder_of_model, "cpu"), made_views(6), OPTIONS, timer, store=PairStore(state))
"""


@pytest.mark.parametrize(
    ("moment", "num_kept"),
    [("after the manifest", 0), ("half a file", 1), ("before the renaming", 2), ("after the renaming", 3)],
)
def test_after_kill_9_the_run_goes_on_to_the_same_result(
    model: Model,
    views: list[View],
    plain: PairwiseData,
    folder_of_model: Path,
    tmp_path: Path,
    moment: str,
    num_kept: int,
) -> None:
    store = PairStore(tmp_path / "state")
    command = [
        sys.executable,
        "-c",
        KILLED,
        str(Path(__file__).parent),
        str(folder_of_model),
        str(store.folder),
        moment,
    ]
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=os.environ)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert len(list(store.folder.glob("tiles/*.safetensors"))) == num_kept
    again, num_predicted = predicted(model, views, store)
    assert num_predicted <= PAIRS - 3 * num_kept
    assert_same(plain, again)
    store.delete()
    assert not store.folder.exists()
