"""`reconstruct --batch`: every subfolder a scene, one model load."""

from __future__ import annotations

import json
import re
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
from model_files import TINY, random_state, write_folder
from PIL import Image
from test_cli import run

import mast3r_sfm.app.commands

QUICK = ["--device", "cpu", "--image-size", 64, "--niter", 5, "--min-conf-thr", 0]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> list[object]:
    """Options of a random network: of a single photo it makes a scene, and no two photos connect."""
    return ["--model-name", write_folder(tmp_path_factory.mktemp("model") / "tiny", TINY, random_state(TINY)), *QUICK]


def photo(folder: Path, name: str = "photo.png", seed: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((128, 96)).save(folder / name)


def test_each_subfolder_becomes_a_result_as_of_a_single_run(
    tmp_path: Path, tiny: list[object], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    load_model = Mock(wraps=mast3r_sfm.app.commands.load_model)
    monkeypatch.setattr("mast3r_sfm.app.commands.load_model", load_model)
    scenes = tmp_path / "scenes"
    photo(scenes / "scene 2")
    photo(scenes / "scene 10", seed=1)
    (scenes / ".hidden").mkdir()
    (scenes / "notes.txt").write_text("not a scene")
    results = scenes / "results"  # among the scenes, and none of them
    assert run("reconstruct", "--batch", scenes, "--output", results, *tiny) == 0
    load_model.assert_called_once()
    assert sorted(path.name for path in results.iterdir()) == ["scene 10", "scene 2"]
    shown = capsys.readouterr().err
    assert shown.index("Scene 1 of 2: scene 2") < shown.index("Scene 2 of 2: scene 10")
    assert re.search(r"\nscene 10 +\w+, 1 of 1 photo registered, \d+ s *\n", shown), shown

    alone = tmp_path / "alone"
    assert run("reconstruct", "--input", scenes / "scene 2", "--output", alone, *tiny, "--quiet") == 0
    assert {path.name for path in alone.iterdir()} == {path.name for path in (results / "scene 2").iterdir()}
    for name in ("scene.glb", "cameras.json", "depth_000.npy"):
        assert (alone / name).read_bytes() == (results / "scene 2" / name).read_bytes(), name
    run_of = {folder: json.loads((folder / "run.json").read_text()) for folder in (alone, results / "scene 2")}
    for document in run_of.values():
        for what in ("arguments", "seconds", "peak_memory_bytes"):
            del document[what]
        del document["options"]["quiet"]
    assert run_of[alone] == run_of[results / "scene 2"]


def test_a_scene_that_fails_is_named_and_the_others_go_on(
    tmp_path: Path, tiny: list[object], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    scenes, output = tmp_path / "scenes", tmp_path / "out"
    for name in ("a broken", "c apart", "d unexpected", "e good"):
        photo(scenes / name)
    (scenes / "a broken" / "photo.png").write_bytes(b"no photo")
    (scenes / "b empty").mkdir()
    photo(scenes / "c apart", "other.png", seed=1)
    plan = mast3r_sfm.app.scene.plan_pairs

    def plan_unless_unexpected(graph: object, paths: list[Path], seed: int) -> object:
        if paths[0].parent.name.startswith("d "):
            raise RuntimeError("of a bug")
        return plan(graph, paths, seed)  # type: ignore[arg-type]

    monkeypatch.setattr("mast3r_sfm.app.scene.plan_pairs", plan_unless_unexpected)
    assert run("reconstruct", "--batch", scenes, "--output", output, *tiny, "--quiet") == 7
    assert [path.name for path in output.iterdir()] == ["e good"]
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("Error: ")]
    assert [error.split(":")[1].strip() for error in errors] == ["a broken", "b empty", "c apart", "d unexpected"]
    for error, part in zip(errors, ("photo.png", "no image in this folder", "no two", "RuntimeError"), strict=True):
        assert part in error

    assert run("reconstruct", "--batch", scenes, "--output", output, *tiny) == 7  # nor is a result overwritten
    shown = " ".join(capsys.readouterr().err.split())
    assert "5 scenes, 5 failed" in shown and "--overwrite" in shown and "Traceback" not in shown


def test_masks_of_a_batch_are_in_folders_of_the_scenes_names(
    tmp_path: Path, tiny: list[object], capsys: pytest.CaptureFixture[str]
) -> None:
    scenes, masks = tmp_path / "scenes", tmp_path / "masks"
    photo(scenes / "a")
    photo(scenes / "b")
    (masks / "a").mkdir(parents=True)
    mask = np.zeros((96, 128), dtype=np.uint8)
    mask[:, 64:] = 255
    Image.fromarray(mask).save(masks / "a" / "photo.png")
    assert run("reconstruct", "--batch", scenes, "--output", tmp_path / "out", "--masks", masks, *tiny, "--quiet") == 0
    masked, whole = (np.load(tmp_path / "out" / name / "confidence_000.npy") for name in ("a", "b"))
    assert not masked[:, :30].any() and masked[:, 34:].mean() > 0.3 and whole[:, :30].mean() > 0.3
    assert f"{masks / 'b'} is not there" in " ".join(capsys.readouterr().err.split())


def test_what_is_no_batch_is_told_in_one_line(
    tmp_path: Path, tiny: list[object], capsys: pytest.CaptureFixture[str]
) -> None:
    photo(tmp_path / "photos")
    assert run("reconstruct", "--input", tmp_path / "photos", "--output", tmp_path / "result", *tiny, "--quiet") == 0
    capsys.readouterr()
    cases: list[tuple[list[object], str]] = [
        (["--batch", tmp_path / "none"], "no such folder"),
        (["--batch", tmp_path / "photos"], "no subfolder"),
        (["--batch", tmp_path, "--input", tmp_path / "photos"], "--batch"),
        (["--batch", tmp_path, "--engine", "upstream"], "--engine upstream"),
        (["--batch", tmp_path, "--output", tmp_path / "result"], "is a result"),
    ]
    for arguments, message in cases:
        assert run("reconstruct", *arguments, *([] if "--output" in arguments else ["--output", tmp_path / "out"])) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and error.startswith("Error: ") and message in error, error
    assert not (tmp_path / "out").exists()
