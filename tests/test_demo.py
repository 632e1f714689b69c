"""The demo's photos through the command, measured by `evaluate` against their true cameras; twice the same result."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mast3r_sfm.app.cli import main

DEMO = Path(__file__).parents[1] / "demo_data"
PHOTOS = [DEMO / f"view_{k:02d}.jpg" for k in (1, 2, 3)]


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as done:
        main([str(argument) for argument in arguments])
    return int(done.value.code or 0)


def reconstruct(output: Path) -> Path:
    inputs = [argument for photo in PHOTOS for argument in ("--input", photo)]
    options = ["--model-name", "small", "--device", "cpu", "--image-size", 160, "--niter", 100]
    options += ["--max-feature-size", 640, "--quiet"]
    assert run("reconstruct", *inputs, "--output", output, *options) == 0
    return output


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return reconstruct(tmp_path_factory.mktemp("demo") / "first")


def test_the_demo_is_right(result: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("evaluate", result, "--truth", DEMO / "truth.json", "--json", tmp_path / "figures.json") == 0
    assert "3 of 3" in capsys.readouterr().err
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["num_registered"] == 3
    assert figures["rotation_deg"] < 0.1 and figures["direction_deg"] < 0.2 and figures["ate"] < 0.005
    assert figures["focal"] < 0.005 and figures["auc"]["1"] > 0.8


def test_two_runs_give_the_same_cameras(result: Path, tmp_path: Path) -> None:
    again = reconstruct(tmp_path / "second")
    assert (again / "cameras.json").read_bytes() == (result / "cameras.json").read_bytes()
    assert b'"refined": true' in (result / "cameras.json").read_bytes()
