"""Wall-clock time of the whole command `mast3r-sfm reconstruct`, weights in the page cache.

    python -m benchmarks.command                  7 photos of 512x384, a network of the published size
    python -m benchmarks.command --tiny           a tiny network on photos of 64x48, to try the benchmark itself

Writes a random checkpoint of the published size (float32 safetensors, 2.75 GB) in the layout of the hub's cache and
rendered photos as JPEG into a temporary folder, runs the command once to warm up, then three times, each in a new
process, and prints the medians: of the whole, and of the tool's own stages from its run.json.

The bytecode of all modules is kept in that folder too, as every installation by pip keeps it: without, each process
compiles the source of PyTorch again.

Random weights predict points on either side of the camera, of which nothing can be reconstructed. So the last layer
of the point heads is weakened and biased: every pixel lies 1 to 2 units in front of the camera, with a confidence
of about 20, and `--no-verify-matches` keeps the matches. The scene that comes out means nothing; only its cost is
measured. It keeps every pixel, so the scene file is as large as it gets.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import astuple, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import save_file

from benchmarks.stand_ins import random_weights
from mast3r_sfm.app.requests import EXIT_PARTIAL
from mast3r_sfm.device import resolve_device
from mast3r_sfm.model.config import PRESETS, ModelConfig
from mast3r_sfm.options import DEFAULT_MODEL
from synthetic import render_orbit

SEED = 900_001
SIDES, SIZES = ("enc", "dec"), ("embed_dim", "depth", "num_heads")
COMMIT = "0" * 40
LAST_LAYER = ("downstream_head1.dpt.head.4.", "downstream_head2.dpt.head.4.")
WEAKENED = 0.01  # at the published size the features that the last layer reads would move z by 13, with a spread of 3
POINT_BIAS = (0.0, 0.0, 1.0, 3.0)  # x, y, z, confidence before their activations

PUBLISHED = PRESETS[DEFAULT_MODEL]
TINY = replace(
    PUBLISHED,
    image_shape=(64, 64),
    enc_embed_dim=32,
    enc_depth=2,
    enc_num_heads=2,
    dec_embed_dim=24,
    dec_depth=10,
    dec_num_heads=2,
)


def raw_config(config: ModelConfig) -> dict[str, Any]:
    """What `ModelConfig.from_dict` reads from a published model's config.json."""
    assert config.desc_dim is not None and config.desc_conf_mode is not None
    modes = {name: astuple(getattr(config, name)) for name in ("depth_mode", "conf_mode", "desc_conf_mode")}
    others = (
        "head_type",
        "patch_size",
        "two_confs",
        *(f"{side}_{size}" for side in SIDES for size in SIZES),
    )
    return {
        "img_size": config.image_shape,
        "pos_embed": f"RoPE{config.rope_base:g}",
        "output_mode": f"pts3d+desc{config.desc_dim}",
        **modes,
        **{name: getattr(config, name) for name in others},
    }


def write_model(hub: Path, config: ModelConfig, device: torch.device) -> int:
    """A random checkpoint as the default model in the cache folder `hub`; returns its bytes."""
    repository = hub / f"models--{DEFAULT_MODEL.replace('/', '--')}"
    snapshot = repository / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    (snapshot / "config.json").write_text(json.dumps(raw_config(config)))
    state = {}
    for name, make in random_weights(config, device).items():
        tensor = make().cpu()
        if name.startswith(LAST_LAYER):
            tensor = torch.tensor(POINT_BIAS) if name.endswith("bias") else WEAKENED * tensor
        state[name] = tensor
    save_file(state, snapshot / "model.safetensors")
    return (snapshot / "model.safetensors").stat().st_size


def write_photos(folder: Path, count: int, size: tuple[int, int], device: torch.device) -> None:
    """JPEG photos of a rendered scene."""
    folder.mkdir()
    for k, image in enumerate(render_orbit(SEED, count, size, 20.0 * count, device).rgb.cpu().numpy()):
        Image.fromarray(image).save(folder / f"{k:04d}.jpg", quality=92)


def wall_clock(command: list[str], environment: dict[str, str]) -> tuple[float, str]:
    """Seconds of a process from start to end, and what it said; ends this program with those words if it fails."""
    start = time.perf_counter()
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    seconds = time.perf_counter() - start
    if done.returncode not in (0, EXIT_PARTIAL):
        raise SystemExit(f"{' '.join(command)}\nended with {done.returncode}:\n{done.stdout[-6000:]}")
    return seconds, done.stdout


def run_command(photos: Path, output: Path, options: list[str], environment: dict[str, str]) -> dict[str, Any]:
    """One run: its seconds, the tool's own stages, what it used and wrote. Its result is deleted."""
    command = [sys.executable, "-m", "mast3r_sfm", "reconstruct", "--input", str(photos), "--output", str(output)]
    seconds, said = wall_clock([*command, "--no-verify-matches", *options], environment)
    run = json.loads((output / "run.json").read_text())
    writing = re.search(r"Write files ([0-9.]+) s", said)  # run.json is one of the files, and cannot know
    assert writing is not None
    pairs = run["pairs"]
    found = {
        "wall": seconds,
        "stages": run["seconds"] | {"Write files": float(writing[1])},
        "peak": run["peak_memory_bytes"],
        "model": run["model"],
        "warnings": run["warnings"],
        "registered": len(run["groups"][0]),
        "pairs": len(pairs),
        "matches": sum(pair["num_matches"] for pair in pairs),
        "bytes_written": sum(path.stat().st_size for path in output.iterdir()),
    }
    shutil.rmtree(output)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.command", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--views", type=int, default=7)
    parser.add_argument("--runs", type=int, default=3, help="measured runs, after one to warm up")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--tiny", action="store_true", help="a tiny network and tiny photos")
    parser.add_argument("--output", type=Path, help="write the figures as JSON")
    parser.add_argument("options", nargs="*", help="further options of the command, after --")
    arguments = parser.parse_args()
    device = resolve_device(arguments.device)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        size = write_model(work / "hub", TINY if arguments.tiny else PUBLISHED, device)
        write_photos(work / "photos", arguments.views, (64, 48) if arguments.tiny else (512, 384), device)
        print(f"checkpoint {size / 1e9:.3f} GB, {arguments.views} photos, on {device}", flush=True)
        environment = os.environ | {"HF_HUB_CACHE": str(work / "hub"), "HF_HUB_OFFLINE": "1", "COLUMNS": "400"}
        environment |= {"PYTHONPYCACHEPREFIX": str(work / "bytecode"), "PYTHONDONTWRITEBYTECODE": ""}
        options = ["--device", arguments.device, "--precision", arguments.precision, *arguments.options]
        figures: dict[str, Any] = {"views": arguments.views, "checkpoint_bytes": size, "imports": {}, "runs": []}
        for what in ("pass", "import torch", "import mast3r_sfm.app.cli", "import mast3r_sfm.app.commands"):
            seconds = [wall_clock([sys.executable, "-c", what], environment)[0] for _ in range(arguments.runs + 1)][1:]
            figures["imports"][what] = statistics.median(seconds)
            print(f"python -c '{what}': {figures['imports'][what]:.2f} s", flush=True)
        for number in range(arguments.runs + 1):
            run = run_command(work / "photos", work / "result", options, environment)
            stages = ", ".join(f"{name} {value:.2f} s" for name, value in run["stages"].items())
            print(f"{'run' if number else 'warm-up'}: {run['wall']:.2f} s ({stages})", flush=True)
            figures["warm_up" if number == 0 else "runs"] = run if number == 0 else [*figures["runs"], run]
            if arguments.output:
                arguments.output.write_text(json.dumps(figures, indent=1))
    report(figures)


def report(figures: dict[str, Any]) -> None:
    """The medians. What no stage counts is the start of Python, imports, and the end of the process."""
    runs = figures["runs"]
    last = runs[-1]
    print(
        f"{last['registered']} of {figures['views']} images registered, {last['pairs']} pairs, "
        f"{last['matches']} matches, {last['bytes_written'] / 1e6:.0f} MB written, peak "
        + ", ".join(f"{name} {value / 1e9:.2f} GB" for name, value in last["peak"].items())
    )
    wall = statistics.median(run["wall"] for run in runs)
    print(f"whole command, median of {len(runs)}: {wall:.2f} s, of that")
    for name in last["stages"]:
        print(f"  {name}: {statistics.median(run['stages'][name] for run in runs):.2f} s")
    inside = statistics.median(sum(run["stages"].values()) for run in runs)
    print(f"  not in a stage (start of Python, imports, exit): {wall - inside:.2f} s")


if __name__ == "__main__":
    main()
