"""The command line as a person uses it: what it writes, and one line with the right exit code when it cannot."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import trimesh
from model_files import TINY, random_state, write_folder
from PIL import Image

from mast3r_sfm.app.cli import main
from mast3r_sfm.app.console import ProgressDisplay
from mast3r_sfm.model.config import DEFAULT_MODEL
from mast3r_sfm.text import counted
from synthetic import render_orbit

SMALL = ["--model-name", "small", "--device", "cpu"]


def run(*arguments: object) -> int:
    """Exit code of the command line."""
    with pytest.raises(SystemExit) as caught:
        main([str(argument) for argument in arguments])
    return int(caught.value.code or 0)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    scene = render_orbit(900_100, 3, (128, 96), 30, effects=0)
    for k, image in enumerate(scene.rgb):
        Image.fromarray(image.numpy()).resize((256, 192)).save(folder / f"photo {k}.jpg", quality=95)
    return folder


@pytest.fixture(scope="module")
def result(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("work") / "new folder" / "result"
    code = run("reconstruct", "--input", photos, "--output", output, *SMALL, "--image-size", 128, "--niter", 60,
               "--min-conf-thr", 1.2, "--quiet")  # fmt: skip
    assert code == 0
    return output


def test_every_file_is_there_and_readable(result: Path) -> None:
    names = {"scene.glb", "cameras.json", "matches.npz", "reconstruction.npz", "report.html", "run.json"}
    for k in range(3):
        names |= {f"{kind}_{k:03d}.{suffix}" for kind in ("depth", "confidence") for suffix in ("png", "npy")}
    assert {path.name for path in result.iterdir()} == names
    assert not [path for path in result.parent.iterdir() if path != result]
    assert np.load(result / "depth_000.npy").shape == (96, 128)
    scene = trimesh.load_scene(result / "scene.glb")
    assert len(scene.geometry) > 3
    with np.load(result / "matches.npz") as matches:
        assert matches["offsets"][-1] == len(matches["conf"]) > 100


def test_cameras_say_how_to_use_them(result: Path) -> None:
    cameras = json.loads((result / "cameras.json").read_text())
    assert "OpenCV" in cameras["convention"] and cameras["units"] == "metres (approximate)"
    first = cameras["images"][0]
    assert first["original_size"] == [256, 192] and first["network_size"] == [128, 96] and first["registered"]
    # half the size: pixel centres at integers, so x_network = x / 2 - 1 / 4
    assert first["network_from_original"] == [[0.5, 0, -0.25], [0, 0.5, -0.25], [0, 0, 1]]
    np.testing.assert_allclose(
        np.array(first["network_from_original"]) @ first["K_original"], first["K_network"], atol=1e-9
    )


def test_run_is_documented(result: Path) -> None:
    document = json.loads((result / "run.json").read_text())
    assert document["model"]["name"] == "small" and document["model"]["licence"] == "Apache-2.0"
    assert len(document["images"]) == 3 and all(len(image["sha256"]) == 64 for image in document["images"])
    assert document["options"]["niter"] == 60 and document["versions"]["torch"]
    assert document["options"]["exports"] == []  # a list, not the words of one
    assert {"i", "j", "num_matches", "num_verified", "kept", "num_features"} == set(document["pairs"][0])
    assert document["seconds"]["Align cameras"] > 0 and document["peak_memory_bytes"]["ram"] > 1e8


def test_export_rewrites_the_scene(result: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (result / "scene.glb").read_bytes()
    assert run("export", result, "--as-pointcloud", "--min-conf-thr", 1.1) == 0
    assert "points" in capsys.readouterr().err
    assert (result / "scene.glb").read_bytes() != before
    assert run("export", result, "--as-mesh", "--min-conf-thr", 1.2, "--quiet") == 0
    assert (result / "scene.glb").read_bytes() == before
    assert run("export", result, "--as-pointcloud") == 0
    capsys.readouterr()
    assert run("export", result, "--scene", "per-view") == 0  # how the meshes are: meshes are meant
    assert "triangles" in capsys.readouterr().err
    assert (result / "scene.glb").read_bytes() == before
    assert run("export", result, "--min-conf-thr", 1e6) == 2
    assert (result / "scene.glb").read_bytes() == before
    assert "1e+06" in (error := capsys.readouterr().err) or "1000000" in error


def test_existing_result_is_replaced_only_when_asked(
    result: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (result / "run.json").read_bytes()
    assert run("reconstruct", "--input", photos, "--output", result, *SMALL) == 2
    assert "--overwrite" in capsys.readouterr().err and (result / "run.json").read_bytes() == before


def test_match(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "pair"
    arguments = ["match", photos / "photo 0.jpg", photos / "photo 1.jpg", "--output", output, *SMALL]
    assert run(*arguments, "--image-size", 128) == 0
    assert "confirmed by the geometry" in capsys.readouterr().err
    with np.load(output / "matches.npz") as matches:
        assert matches["xy_i"].shape == matches["xy_j"].shape and len(matches["conf"]) > 100
        assert matches["pairs"].tolist() == [[0, 1]] and matches["offsets"].tolist() == [0, len(matches["conf"])]
        expected = np.array([[2, 0, 0.5], [0, 2, 0.5], [0, 0, 1]])  # half the size, pixel centres at integers
        np.testing.assert_allclose(matches["original_from_network"], [expected, expected])
    assert Image.open(output / "matches.png").size[0] > 256
    assert np.load(output / "depth_001.npy").shape == (96, 128) and (output / "confidence_001.png").exists()
    assert run(*arguments) == 2
    assert "--overwrite" in capsys.readouterr().err


def test_dust3r_model_gives_depth_but_no_matches(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    raw = {k: v for k, v in TINY.items() if k not in ("two_confs", "desc_conf_mode")}
    raw |= {"head_type": "dpt", "output_mode": "pts3d"}
    folder = write_folder(tmp_path / "dust3r", raw, random_state(raw))
    model = ["--model-name", folder, "--image-size", 64]
    pair = [photos / "photo 0.jpg", photos / "photo 1.jpg"]
    assert run("match", *pair, "--output", tmp_path / "out", *model) == 0
    assert (tmp_path / "out" / "depth_000.npy").exists() and not (tmp_path / "out" / "matches.npz").exists()
    assert run("reconstruct", "--input", photos, "--output", tmp_path / "o", *model) == 2
    assert "no descriptors" in capsys.readouterr().err


def test_default_model_falls_back_to_the_bundled_one(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    inputs = ["--input", photos / "photo 0.jpg", "--input", photos / "photo 1.jpg", "--device", "cpu"]
    options = ["--image-size", 128, "--niter", 10, "--min-conf-thr", 0]
    assert run("reconstruct", *inputs, "--output", tmp_path / "out", *options) == 0
    shown = " ".join(capsys.readouterr().err.split())
    assert DEFAULT_MODEL in shown and "small" in shown and "Warning" in shown
    document = json.loads((tmp_path / "out" / "run.json").read_text())
    assert document["model"]["requested"] == DEFAULT_MODEL and document["model"]["name"] == "small"
    assert any("small" in warning and DEFAULT_MODEL in warning for warning in document["warnings"])
    code = run("reconstruct", *inputs, "--output", tmp_path / "other", "--model-name", DEFAULT_MODEL)
    assert code == 3 and not (tmp_path / "other").exists()


def _bad_inputs(tmp_path: Path, photos: Path) -> dict[str, tuple[list[object], int, str]]:
    """Name of the case -> arguments, exit code, a part of the message."""
    folder = {name: tmp_path / name for name in ("empty", "text", "broken", "panorama", "weights", "config")}
    for path in folder.values():
        path.mkdir()
    (folder["text"] / "notes.txt").write_text("no image")
    (folder["broken"] / "cut.jpg").write_bytes((photos / "photo 0.jpg").read_bytes()[:900])
    (folder["broken"] / "zero.png").touch()
    (folder["broken"] / "words.png").write_text("these are words")
    Image.new("RGB", (4000, 60)).save(folder["panorama"] / "wide.png")
    state = random_state(TINY)
    write_folder(folder["weights"], TINY | {"enc_depth": 3}, state)
    write_folder(folder["config"], {k: v for k, v in TINY.items() if k != "conf_mode"}, state)
    out = ["--output", tmp_path / "out"]
    with_small = [*out, *SMALL]
    good = ["--input", photos]
    return {
        "no input": ([*out], 2, "--input"),
        "no such path": (["--input", tmp_path / "nowhere", *with_small], 2, "nowhere"),
        "empty folder": (["--input", folder["empty"], *with_small], 2, "empty"),
        "no image in the folder": (["--input", folder["text"], *with_small], 2, "text"),
        "not an image file": (["--input", folder["text"] / "notes.txt", *with_small], 2, "notes.txt"),
        "truncated": (["--input", folder["broken"] / "cut.jpg", *with_small], 2, "cut.jpg"),
        "zero bytes": (["--input", folder["broken"] / "zero.png", *with_small], 2, "zero.png"),
        "text named png": (["--input", folder["broken"] / "words.png", *with_small], 2, "words.png"),
        "nothing left of the crop": (["--input", folder["panorama"], *with_small], 2, "wide.png"),
        "unknown model": ([*good, *out, "--model-name", "nobody"], 3, DEFAULT_MODEL),
        "unknown hub model, offline": ([*good, *out, "--model-name", "no/body"], 3, "no/body"),
        "config without a field": ([*good, *out, "--model-name", folder["config"]], 3, "conf_mode"),
        "weights of another config": ([*good, *out, "--model-name", folder["weights"]], 3, "enc_blocks.2"),
        "unknown device": ([*good, *with_small, "--device", "tpu"], 2, "tpu"),
        "tf32 on a CPU": ([*good, *with_small, "--precision", "tf32"], 2, "tf32"),
        "shared and not": (
            [*good, *with_small, "--shared-intrinsics", "--intrinsics-groups", "auto"],
            2,
            "--shared-intrinsics contradicts --intrinsics-groups auto",
        ),
        "unknown camera": ([*good, *with_small, "--camera-model", "FISHEYE"], 2, "SIMPLE_RADIAL"),
        "unknown groups": ([*good, *with_small, "--intrinsics-groups", "some"], 2, "per-image"),
        "unknown precision": ([*good, *with_small, "--precision", "int4"], 2, "int4"),
        "unknown option": ([*good, *with_small, "--speed", "9"], 2, "--speed"),
        "unknown graph": ([*good, *with_small, "--scene-graph", "ring"], 2, "ring"),
        "reference out of range": ([*good, *with_small, "--scene-graph", "oneref-7"], 2, "oneref-7"),
        "pairs file missing": ([*good, *with_small, "--scene-graph", "pairs:none.txt"], 2, "none.txt"),
        "negative iterations": ([*good, *with_small, "--niter", "-1"], 2, "--niter"),
        "image size below two patches": ([*good, *with_small, "--image-size", "8"], 2, "--image-size"),
        "output is a file": ([*good, *SMALL, "--output", photos / "photo 0.jpg"], 2, "photo 0.jpg"),
        "output holds other files": ([*good, *SMALL, "--output", photos], 2, "--output"),
    }


def test_bad_input(
    tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    cases = _bad_inputs(tmp_path, photos)
    if not torch.cuda.is_available():
        cases["CUDA absent"] = (
            ["--input", photos, "--output", tmp_path / "out", "--model-name", "small", "--device", "cuda"],
            2,
            "--device cuda",
        )
    for name, (arguments, code, message) in cases.items():
        assert run("reconstruct", *arguments, "--quiet") == code, name
        shown = capsys.readouterr().err
        errors = [line for line in shown.splitlines() if line.startswith("Error: ")]
        assert len(errors) == 1 and message in errors[0], f"{name}: {shown}"
        assert "Traceback" not in shown and not (tmp_path / "out").exists(), name


def test_words_of_a_count() -> None:
    assert [counted(number, "pair") for number in (0, 1, 2)] == ["0 pairs", "1 pair", "2 pairs"]


def test_without_arguments_the_help_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert run() == 2
    shown = capsys.readouterr().err
    assert shown.startswith("Usage: ") and "\n  reconstruct " in shown and "Error" not in shown


def test_wrong_usage_names_the_help(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("reconstruct", tmp_path) == 2  # a folder without --input in front
    assert "(see mast3r-sfm reconstruct -h)" in capsys.readouterr().err
    assert run("nonsense") == 2
    assert capsys.readouterr().err == "Error: No such command 'nonsense'. (see mast3r-sfm -h)\n"


def test_a_full_disk_is_told_before_the_work(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def no_work(*arguments: object) -> None:
        raise AssertionError("the images were encoded first")

    monkeypatch.setattr("mast3r_sfm.pairwise.ViewEncoder.encode", no_work)
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(total=10**12, free=10**5))
    code = run("reconstruct", "--input", photos, "--output", tmp_path / "out", *SMALL)
    assert code == 2
    assert re.search(r"0 MB free, the result takes up to \d+ MB", capsys.readouterr().err)
    assert not (tmp_path / "out").exists()


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mast3r_sfm", "reconstruct", "--input", str(tmp_path / "no"), "--debug"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "Traceback" in done.stderr and done.returncode == 2


def test_interrupt(photos: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mast3r_sfm", "reconstruct", "--input", str(photos),
               "--output", str(tmp_path / "out"), *SMALL, "--niter", "1000000"]  # fmt: skip
    # a shell that runs the tests in the background lets its children ignore SIGINT; a person's does not
    listen = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # noqa: E731
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, preexec_fn=listen)
    assert process.stderr is not None and "Model small" in process.stderr.readline()  # the work has begun
    time.sleep(2)
    process.send_signal(signal.SIGINT)
    _, shown = process.communicate(timeout=60)
    assert process.returncode == 130 and "interrupted" in shown and "Traceback" not in shown
    assert not list(tmp_path.iterdir())


def test_the_scripts_help_is_the_commands(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """`./predict.sh --help` shows a copy, because there may be no environment yet. To renew it: CONTRIBUTING.md."""
    monkeypatch.setenv("COLUMNS", "110")
    for command in ("reconstruct", "serve"):
        assert run(command, "--help") == 0
        copy = Path(__file__).parents[1] / "docs" / f"{command}_help.txt"
        assert capsys.readouterr().out == copy.read_text()


def test_help_names_every_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--help") == 0
    shown = " ".join(capsys.readouterr().out.split())
    codes = re.findall(r"\b(\d+) ", shown.partition("Exit codes:")[2])
    assert codes == ["0", "1", "2", "3", "4", "5", "6", "7", "130"]
    assert " verify " not in shown  # the old name of `compare` still works, and is not shown
    assert run("verify", "--help") == 0


def test_cleaning_is_chosen_at_export(photos: Path, tmp_path: Path) -> None:
    """A run with --no-clean-depth can be cleaned later, and gives the scene of a run with --clean-depth."""
    output = tmp_path / "out"
    options = [*SMALL, "--image-size", 128, "--niter", 30, "--min-conf-thr", 0.5, "--quiet"]
    assert run("reconstruct", "--input", photos, "--output", output, *options, "--no-clean-depth") == 0
    raw = (output / "scene.glb").read_bytes()
    assert run("export", output, "--clean-depth", "--quiet") == 0
    cleaned = (output / "scene.glb").read_bytes()
    assert len(cleaned) < len(raw)
    assert run("reconstruct", "--input", photos, "--output", output, "--overwrite", *options) == 0
    assert (output / "scene.glb").read_bytes() == cleaned


def test_help_is_instant() -> None:
    code = "import sys, mast3r_sfm.app.cli; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
    start = time.perf_counter()
    subprocess.run([sys.executable, "-m", "mast3r_sfm", "--help"], check=True, capture_output=True)
    assert time.perf_counter() - start < 3  # 0.1 s by itself; other processes may be using this machine


def test_a_log_file_is_told_where_a_long_stage_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [100.0]
    monkeypatch.setattr("mast3r_sfm.app.console.time.monotonic", lambda: now[0])
    with ProgressDisplay(quiet=False) as display:
        for done in range(6):  # 20 s a step, so that every second one is worth a line
            display("Predict and match pairs", done, 5)
            now[0] += 20
        display("Dense depth", 0, 1)
        display("Dense depth", 1, 1)
    assert [" ".join(line.split()) for line in capsys.readouterr().err.splitlines()] == [
        "Predict and match pairs 2/5 after 40 s",
        "Predict and match pairs 4/5 after 80 s",
        "Predict and match pairs 5/5 after 100 s",
        "Dense depth 1/1 after 0 s",
    ]
    with ProgressDisplay(quiet=True) as display:
        display("Dense depth", 1, 1)
    assert capsys.readouterr().err == ""
