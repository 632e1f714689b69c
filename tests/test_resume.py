"""Runs of the command that are ended at any moment, and go on to the result that they would have had."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from synthetic import render_orbit

ENDS = 60
"""Moments at which a run is killed."""


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for k, image in enumerate(render_orbit(900_100, 12, (128, 96), 120, effects=0).rgb):
        Image.fromarray(image.numpy()).save(folder / f"photo_{k:02d}.png")
    return folder


def command(photos: Path, output: Path, *others: object) -> list[str]:
    arguments = ["reconstruct", "--input", photos, "--output", output, "--model-name", "small", "--device", "cpu",
                 "--image-size", 128, "--niter", 40, "--no-report", *others]  # fmt: skip
    return [sys.executable, "-m", "mast3r_sfm", *map(str, arguments)]


def started(line: list[str]) -> subprocess.Popen[str]:
    # a shell that runs the tests in the background lets its children ignore SIGINT; a person's does not
    listen = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # noqa: E731
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        line, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, preexec_fn=listen, env=environment
    )


def content(result: Path) -> dict[str, Any]:
    """All that a result says, but times and places."""
    found: dict[str, Any] = {"scene.glb": (result / "scene.glb").read_bytes()}
    for path in sorted(result.glob("*.np[yz]")):
        loaded = np.load(path)
        arrays = {name: loaded[name] for name in loaded.files} if path.suffix == ".npz" else {"": loaded}
        arrays.pop("meta", None)
        found |= {f"{path.name} {name}": array.tobytes() for name, array in arrays.items()}
    found["cameras.json"] = json.loads((result / "cameras.json").read_text())
    return found


def test_after_ctrl_c_the_same_command_goes_on(photos: Path, tmp_path: Path) -> None:
    """The state of what the first run did is kept, told of, used, and deleted with the result."""
    line = command(photos, tmp_path / "out", "--keep-state")  # as if it took more than a minute
    process = started(line)
    tiles = tmp_path / ".out.state" / "tiles"
    deadline = time.monotonic() + 120
    while not list(tiles.glob("*.safetensors")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, shown = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in shown
    assert f"Pairs are kept in {tiles.parent}" in " ".join(shown.split())
    assert [path.name for path in tmp_path.iterdir()] == [".out.state"]

    process = started(command(photos, tmp_path / "out"))
    _, shown = process.communicate(timeout=300)
    assert process.returncode == 0, shown
    assert "of 66 pairs found in" in shown
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.slow
def test_killed_at_random_moments_it_goes_on_to_the_same_result(photos: Path, tmp_path: Path) -> None:
    """Over all stages; each run is resumed to its end, and then compared bit by bit with one that was left alone."""
    state = tmp_path / "state"
    begin = time.monotonic()
    process = started(command(photos, tmp_path / "alone"))
    _, shown = process.communicate(timeout=600)
    assert process.returncode == 0, shown
    seconds, expected = time.monotonic() - begin, content(tmp_path / "alone")
    draw = random.Random(0)
    with_pairs = 0
    for number in range(ENDS):
        output = tmp_path / f"out_{number}"
        folder = state / str(number)
        process = started(command(photos, output, "--state", folder))
        try:
            process.communicate(timeout=draw.uniform(0.1, 1.0) * seconds)
        except subprocess.TimeoutExpired:
            process.send_signal(draw.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGHUP]))
            process.communicate()
        with_pairs += bool(list(folder.glob("tiles/*.safetensors")))
        if not output.exists():
            process = started(command(photos, output, "--state", folder))
            _, shown = process.communicate(timeout=600)
            assert process.returncode == 0, shown
        found = content(output)
        assert found.keys() == expected.keys()
        assert [name for name in found if found[name] != expected[name]] == [], f"run {number}"
    assert with_pairs > ENDS / 4, "too few were killed after their first tile"
