"""What keeping the pairs costs, and what it saves: seconds, bytes and peaks of memory with and without a store.

    python -m benchmarks.resume                                  1,000 views of 512x384, published network size
    python -m benchmarks.resume --small --views 24 --device cpu  small network

The network has random weights of the published sizes, the pictures are random blocks, and no geometry confirms matches:
it costs what real pairs cost. After a warm-up the pairs are predicted without a store, with one, and then again with
one that holds a share of the tiles, as an interrupted run leaves it. All results must be the same bit by bit. What was
lost by an interruption is what the second part takes more than its share of the whole.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import platform
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.stand_ins import random_model
from mast3r_sfm import canonical
from mast3r_sfm.app.memory import forget_peak, peak_memory
from mast3r_sfm.device import resolve_device, resolve_precision
from mast3r_sfm.model.checkpoint import Model, load_model
from mast3r_sfm.model.config import DEFAULT_MODEL, PRESETS
from mast3r_sfm.options import ReconstructionOptions
from mast3r_sfm.pair_store import PairStore
from mast3r_sfm.pairwise import PairwiseData, predict_pairwise
from mast3r_sfm.progress import StageTimer
from mast3r_sfm.scene_graph import make_pairs
from mast3r_sfm.text import byte_count
from mast3r_sfm.types import ImageTransform, View


def random_views(count: int, size: tuple[int, int]) -> list[View]:
    """Pictures of blocks of 16 pixels in random colours, `size` (W, H)."""
    views = []
    for k in range(count):
        coarse = np.random.default_rng(k).integers(0, 256, (size[1] // 16, size[0] // 16, 3), np.uint8)
        rgb = coarse.repeat(16, 0).repeat(16, 1)
        views.append(View(k, Path(f"view_{k}.png"), rgb, ImageTransform(size, size, (0, 0), size)))
    return views


def digest(data: PairwiseData) -> str:
    """Of all bits of what the pairs left."""
    found = hashlib.blake2b(repr((data.pairs, data.summaries)).encode())
    for view in data.canonical:
        for tensor in () if view is None else (view.relative_depth, view.conf, view.core_depth):
            found.update(tensor.cpu().numpy().tobytes())
    for one in data.correspondences:
        for tensor in (one.xy_i, one.xy_j, one.conf):
            found.update(tensor.numpy().tobytes())
    return found.hexdigest()


def run(
    model: Model, views: list[View], pairs: list[tuple[int, int]], store: PairStore | None
) -> tuple[dict[str, float], str, int]:
    """Seconds and peaks of the pairs' stages, the digest of what they left, and its matches."""
    forget_peak()
    if model.device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(model.device)
    timer = StageTimer(None, model.device)
    start = time.perf_counter()
    data = predict_pairwise(model, views, ReconstructionOptions(verification=None), timer, pairs, store)
    figures = {"all": time.perf_counter() - start, **timer.seconds, **peak_memory(model.device)}
    return figures, digest(data), sum(map(len, data.correspondences))


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.resume", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--views", type=int, default=1000)
    parser.add_argument("--size", type=int, nargs=2, default=(512, 384), metavar=("W", "H"))
    parser.add_argument("--graph", default="logwin-8")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--small", action="store_true", help="the bundled network instead of the published size")
    parser.add_argument("--kept", type=float, nargs="*", default=[0.6, 1.0], help="shares of the tiles that are there")
    parser.add_argument("--folder", type=Path, help="where the store goes [default: a temporary folder]")
    parser.add_argument("--output", type=Path, help="write the figures as JSON")
    arguments = parser.parse_args()
    canonical.MAX_BAD_BLOCKS = 1.0  # depths of random weights are negative as often as not
    logging.getLogger(canonical.__name__).setLevel(logging.ERROR)
    device = resolve_device(arguments.device)
    precision = resolve_precision("auto", device)
    model = (
        load_model("small", str(device)) if arguments.small else random_model(PRESETS[DEFAULT_MODEL], device, precision)
    )
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "CPU"
    views = random_views(arguments.views, tuple(arguments.size))
    pairs = make_pairs(arguments.graph, len(views))
    print(f"{name}, torch {torch.__version__}, {precision}, {len(views)} views, {len(pairs)} pairs", flush=True)
    run(model, views[:6], make_pairs("complete", 6), None)
    results: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        state = Path(folder) / "state"

        def measure(label: str, store: PairStore | None) -> None:
            figures, found, num_matches = run(model, views, pairs, store)
            if store is not None:
                start = time.perf_counter()
                store.flush()  # beside the stages that follow
                figures["written after"] = time.perf_counter() - start
            same = found == results.get("without", {}).get("digest", found)
            results[label] = {**figures, "digest": found, "matches": num_matches, "same": same}
            shown = ", ".join(
                f"{k} {byte_count(v) if k in ('ram', 'gpu') else f'{v:.2f} s'}" for k, v in figures.items()
            )
            print(f"{label}: {shown}, {num_matches} matches, {'same' if same else 'DIFFERENT'}", flush=True)

        measure("without", None)
        measure("with", PairStore(state))
        size = sum(path.stat().st_size for path in state.rglob("*.safetensors"))
        (manifest,) = state.glob("manifest-*.json")
        tiles = json.loads(manifest.read_text())["tiles"]
        whole, kept = results["without"]["all"], results["with"]["all"]
        print(f"overhead {kept / whole - 1:.1%}; {len(tiles)} tiles of {byte_count(size)}", flush=True)
        results["state"] = {"bytes": size, "tiles": len(tiles)}
        for share in arguments.kept:
            store = PairStore(Path(folder) / f"kept-{share}")
            shutil.copytree(state, store.folder, copy_function=shutil.move)
            written = sorted((store.folder / "tiles").iterdir(), key=lambda path: path.stat().st_mtime)
            for path in written[round(share * len(written)) :]:
                path.unlink()
            there = round(share * len(written)) / len(written)
            measure(f"from {share:.0%}", store)
            print(f"lost {results[f'from {share:.0%}']['all'] - (1 - there) * whole:.1f} s", flush=True)
            shutil.rmtree(state)
            state = store.folder
    if arguments.output:
        arguments.output.write_text(json.dumps(results, indent=1))
    if not all(one.get("same", True) for one in results.values()):
        raise SystemExit("the results differ")


if __name__ == "__main__":
    main()
