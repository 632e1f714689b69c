"""Times every stage of a reconstruction on this machine, and the error of every precision.

    python -m benchmarks.pipeline                             7 and 30 views, published network size
    python -m benchmarks.pipeline --views 7 30 200 1000       with the large sets
    python -m benchmarks.pipeline --device cpu --small        small network, 7 views

The network has random weights of the published sizes: it costs what the real one costs, but predicts nothing. For
matching and alignment its predictions are replaced by ideal ones of a rendered scene: exact pointmaps with 2 %
smooth depth noise, and descriptors that vary smoothly with the place in the world, with a little noise. Stages are
timed with the device synchronised at their borders, after one warm-up run on 4 views. Up to 30 views the graph is
complete and the figures are those of the median of several runs; larger sets go once round the scene and run once.

Not counted: rendering and the making of ideal predictions. Peak GPU memory is that of the stages only, the network's
weights and the (ideal) maps of the batch at work included, and nothing is subtracted from it: the scene lies on the
CPU. Peak RAM is the process's own, PyTorch's libraries included; the scene's true depth, which a real run does not
have, is given beside it.
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.accuracy import measure, views_of
from benchmarks.stand_ins import IdealPredictor, random_model
from mast3r_sfm.alignment import align_group
from mast3r_sfm.app.memory import peak_memory
from mast3r_sfm.densify import densify_views
from mast3r_sfm.device import matmul_precision, resolve_device, resolve_precision
from mast3r_sfm.inference import PairPredictor, encode_views
from mast3r_sfm.matching import RepeatedMatching
from mast3r_sfm.model.checkpoint import Model, load_model
from mast3r_sfm.model.config import DEFAULT_MODEL, PRESETS
from mast3r_sfm.options import Precision, ReconstructionOptions
from mast3r_sfm.pairwise import PairwiseCollector, PairwiseData, PairwiseSetting, TileMerger
from mast3r_sfm.scene_graph import make_pairs
from mast3r_sfm.text import byte_count
from mast3r_sfm.tiles import Tile, TileResult, pairs_per_tile, plan_tiles
from mast3r_sfm.types import Correspondences, PairPrediction, ReconstructedScene, View
from synthetic import RenderedScene, render_orbit

SEED = 900_001
WARM_UP_VIEWS = 4
COMPLETE_UP_TO = 30
STAGES = ("encode", "decode", "match", "verify + canonical", "align", "dense")
COLLECT = "match + verify + canonical"


class Clock:
    """Seconds by stage, the device's work included, and the peak of the GPU's memory within the stages."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: dict[str, float] = {}
        self.gpu_peaks: dict[str, float] = {}
        self._depth = 0

    def synchronise(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Stages may lie within each other; each counts the whole of its time."""
        self.synchronise()
        on_gpu = self.device.type == "cuda" and self._depth == 0
        if on_gpu:
            torch.cuda.reset_peak_memory_stats(self.device)
        self._depth += 1
        start = time.perf_counter()
        try:
            yield
            self.synchronise()
        finally:
            self._depth -= 1
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start
            if on_gpu:
                peak = float(torch.cuda.max_memory_allocated(self.device))
                self.gpu_peaks[name] = max(self.gpu_peaks.get(name, 0.0), peak)


def collect_garbage(device: torch.device) -> float:
    """Frees what nothing refers to and forgets the peak of RAM; returns the bytes that are allocated on the GPU."""
    gc.collect()
    with suppress(OSError):  # where this file is not to be written, the peak is that of all sizes so far
        Path("/proc/self/clear_refs").write_text("5")
    if device.type != "cuda":
        return 0.0
    torch.cuda.empty_cache()
    return float(torch.cuda.memory_allocated(device))


def run_views(
    model: Model, scene: RenderedScene, graph: str, options: ReconstructionOptions, batch_size: int | None, clock: Clock
) -> dict[str, Any]:
    """One reconstruction with the network's cost and ideal predictions: seconds by stage, memory, accuracy.

    `clock` keeps what it has measured if a stage fails.
    """
    before = collect_garbage(model.device)
    views = views_of(scene)
    pairs = make_pairs(graph, len(views))
    data = collect_pairs(model, scene, views, pairs, options, batch_size, clock)
    with clock.stage("align"):
        group = range(len(views))
        aligned = align_group(group, data.canonical, data.correspondences, data.fallback, options.alignment)
    with clock.stage("dense"):
        views_found = densify_views(views, data, aligned, options)
    reconstruction = ReconstructedScene(views_found, aligned.matches)
    peak = {"ram": peak_memory(model.device)["ram"], "truth_in_ram": float(scene.depth.nbytes)}
    if model.device.type == "cuda":
        peak |= {"gpu": max(clock.gpu_peaks.values()), "gpu_before": before}
        peak |= {f"gpu_{stage}": value for stage, value in clock.gpu_peaks.items()}
    kept = sum(pair.kept for pair in data.summaries) / len(pairs)
    found = measure(reconstruction, scene, kept)
    seconds = {stage: clock.seconds[stage] for stage in STAGES}
    return {
        "views": len(views),
        "pairs": len(pairs),
        "pairs_kept": kept,
        "matches": sum(len(m) for m in aligned.matches),
        "seconds": seconds,
        "all": sum(seconds.values()),
        "not_counted": {"ideal predictions": clock.seconds["ideal predictions"]},
        "peak": peak,
        "rotation_deg": found.rotation_deg,
        "ate_percent": found.ate_percent,
        "depth_percent": found.depth_percent,
    }


def collect_pairs(
    model: Model,
    scene: RenderedScene,
    views: Sequence[View],
    pairs: Sequence[tuple[int, int]],
    options: ReconstructionOptions,
    batch_size: int | None,
    clock: Clock,
) -> PairwiseData:
    """The pipeline's way from views to matches and canonical views; ideal maps take the place of the network's."""
    ideal = IdealPredictor(scene, model.config.desc_dim or 24, model.device)
    with clock.stage("encode"):
        encoded = encode_views(model, views, batch_size)

    match = RepeatedMatching()

    def timed_match(predictions: Sequence[PairPrediction], subsample: int) -> list[Correspondences]:
        with clock.stage("match"):
            return match(predictions, subsample)

    setting = PairwiseSetting(
        tuple(view.shape for view in views),
        tuple(view.path.name for view in views),
        (None,) * len(views),
        options.alignment.subsample,
        options.verification,
        options.alignment.matching_conf_thr,
    )
    tiles = plan_tiles(pairs, pairs_per_tile(model.device.type, sum(p.numel() for p in model.network.parameters())))
    sizes = None if batch_size is None else dict.fromkeys(encoded.shapes, batch_size)
    predictor, merger = PairPredictor(model, encoded.shapes, sizes, pairs), TileMerger(setting, pairs, tiles)

    def result_of(tile: Tile) -> TileResult:
        collector = PairwiseCollector(setting, tile, timed_match)
        batches = predictor.batches(encoded, tile)
        while True:
            with clock.stage("decode"):
                batch = next(batches, None)
            if batch is None:
                break
            numbers = [(p.i, p.j) for p in batch]
            started = clock.seconds.get("ideal predictions", 0.0)
            clock.synchronise()
            start = time.perf_counter()
            overwrite_maps(batch, ideal(numbers))
            clock.synchronise()
            clock.seconds["ideal predictions"] = started + time.perf_counter() - start
            with clock.stage(COLLECT), torch.inference_mode():
                collector.add(batch)
        with clock.stage(COLLECT), torch.inference_mode():
            return collector.finish()

    try:
        for tile in tiles:
            result = [result_of(tile)]
            with clock.stage(COLLECT), torch.inference_mode():
                merger.add(result.pop())
        with clock.stage(COLLECT), torch.inference_mode():
            return merger.finish()
    finally:
        if COLLECT in clock.seconds:
            clock.seconds["verify + canonical"] = clock.seconds.pop(COLLECT) - clock.seconds["match"]


@torch.inference_mode()
def overwrite_maps(batch: Sequence[PairPrediction], others: Sequence[PairPrediction]) -> None:
    """Puts maps of other predictions in the place of a batch's."""
    for own, other in zip(batch, others, strict=True):
        for view in ("i_in_i", "j_in_i", "j_in_j", "i_in_j"):
            for name in ("points", "conf", "desc", "desc_conf"):
                getattr(getattr(own, view), name).copy_(getattr(getattr(other, view), name))


def default_graph(count: int) -> str:
    """Complete for small sets; 7 pairs a view up to 500 (200: 1,400 pairs), 8 above (1,000: 8,000 pairs)."""
    return "complete" if count <= COMPLETE_UP_TO else "logwin-7" if count <= 500 else "logwin-8"


def orbit(count: int, size: tuple[int, int], degrees: float, device: torch.device) -> RenderedScene:
    """The scene of `count` views, on the CPU; large sets go all the way round."""
    scene = render_orbit(SEED, count, size, degrees if count <= COMPLETE_UP_TO else 360.0, device)
    return replace(scene, **{name: getattr(scene, name).cpu() for name in scene.__dataclass_fields__})


def measure_size(
    model: Model, count: int, arguments: argparse.Namespace, options: ReconstructionOptions
) -> dict[str, Any]:
    """The median run of one size; if a run fails, what was measured of it and the error's message."""
    graph = arguments.graph or default_graph(count)
    repeats = arguments.repeats if count <= COMPLETE_UP_TO else 1
    wall = time.perf_counter()
    runs: list[dict[str, Any]] = []
    clock = Clock(model.device)
    figure: dict[str, Any] = {"views": count, "graph": graph}
    try:
        scene = orbit(count, tuple(arguments.size), arguments.degrees, model.device)
        figure["render_seconds"] = time.perf_counter() - wall
        for _ in range(repeats):
            clock = Clock(model.device)
            runs.append(run_views(model, scene, graph, options, arguments.batch_size, clock))
    except Exception as error:  # the figures of other sizes must not be lost
        logging.exception("%d views failed", count)
        figure |= {"error": f"{type(error).__name__}: {error}", "seconds": clock.seconds, "gpu_peaks": clock.gpu_peaks}
    if runs:
        middle = statistics.median_low([run["all"] for run in runs])
        figure |= next(run for run in runs if run["all"] == middle) | {"all_runs": [run["all"] for run in runs]}
    return figure | {"wall_seconds": time.perf_counter() - wall}


def line_of(figure: dict[str, Any]) -> str:
    """One size for the eyes."""
    seconds = ", ".join(f"{k} {v:.3f} s" for k, v in figure["seconds"].items())
    if "all" not in figure:
        return f"{figure['views']} views ({figure['graph']}) failed: {figure['error']}; measured before: {seconds}"
    return (
        f"{figure['views']} views, {figure['pairs']} pairs ({figure['graph']}), {figure['pairs_kept']:.0%} kept, "
        f"{figure['matches']} matches: {seconds}; all {figure['all']:.3f} s of {len(figure['all_runs'])} runs; "
        + ", ".join(f"{k} {byte_count(v)}" for k, v in figure["peak"].items())
        + f"; rotation {figure['rotation_deg']:.2f} deg, ATE {figure['ate_percent']:.2f} %, "
        f"depth {figure['depth_percent']:.2f} %; not counted: rendering {figure['render_seconds']:.1f} s, "
        f"ideal predictions {figure['not_counted']['ideal predictions']:.1f} s"
    )


def table_of(figures: Sequence[dict[str, Any]]) -> str:
    """All sizes that finished, as Markdown."""
    rows = [["views", "pairs", "matches", *STAGES, "all", "GPU", "RAM"]]
    rows.append(["---"] * len(rows[0]))
    for one in figures:
        if "all" in one:
            peak = one["peak"]
            memory = [byte_count(peak[key]) if key in peak else "none" for key in ("gpu", "ram")]
            times = [f"{one['seconds'][stage]:.3f} s" for stage in STAGES]
            rows.append(
                [*(str(one[key]) for key in ("views", "pairs", "matches")), *times, f"{one['all']:.3f} s", *memory]
            )
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def precision_errors(reference: Model, other: Model, images: torch.Tensor) -> dict[str, float]:
    """Median relative error of points and confidences and median angle of descriptors against float32."""
    outputs = []
    for model in (reference, other):
        with torch.inference_mode(), matmul_precision(model.precision):
            outputs.append(model.network(images[:1].to(model.device), images[1:2].to(model.device)))
    result = {}
    for side, (a, b) in enumerate(zip(*outputs, strict=True), 1):
        result[f"points{side}"] = float(((a.points - b.points).norm(dim=-1) / a.points.norm(dim=-1)).median())
        result[f"conf{side}"] = float(((a.conf - b.conf).abs() / a.conf).median())
        if a.desc is not None and b.desc is not None:
            result[f"desc{side}"] = float((a.desc - b.desc).norm(dim=-1).median())
    return result


def compare_precisions(make: Callable[[str], Model], images: torch.Tensor, names: Sequence[str]) -> dict[str, Any]:
    """Errors of every precision against float32, for one pair."""
    reference = make("fp32")
    table = {}
    for name in names:
        model = reference if name == "fp32" else make(name)
        table[name] = precision_errors(reference, model, images)
        del model
    return table


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.pipeline", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--views", type=int, nargs="+", default=[7, 30])
    parser.add_argument("--size", type=int, nargs=2, default=(512, 384), metavar=("W", "H"))
    parser.add_argument("--degrees", type=float, default=150.0)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--small", action="store_true", help="the bundled network instead of the published size")
    parser.add_argument("--graph", help="default: complete up to 30 views, logwin-7 up to 500, logwin-8 above")
    parser.add_argument("--precisions", action="store_true", help="also the error of every precision")
    parser.add_argument("--memory-gb", type=float, help="let this process use only so much GPU memory")
    parser.add_argument("--output", type=Path, help="write the figures as JSON")
    parser.add_argument("--repeats", type=int, default=3, help="runs of every size up to 30 views")
    parser.add_argument("--budget", type=float, help="skip sizes that would end later than so many seconds from now")
    arguments = parser.parse_args()
    started = time.perf_counter()
    device = resolve_device(arguments.device)
    precision = resolve_precision(arguments.precision, device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "CPU"
    print(f"{name}, torch {torch.__version__}, {precision}, {torch.get_num_threads()} threads", flush=True)
    if arguments.memory_gb and device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(arguments.memory_gb * 1e9 / total, device)
    figures: dict[str, Any] = {"machine": name, "torch": torch.__version__, "precision": precision, "runs": []}

    def make(wanted: str) -> Model:
        if arguments.small:
            return load_model("small", str(device), wanted)
        return random_model(PRESETS[DEFAULT_MODEL], device, Precision.parse(wanted))

    if arguments.precisions:
        names = ["fp32", "tf32", "bf16", "fp16"] if device.type == "cuda" else ["fp32", "bf16"]
        images = torch.stack([view.tensor for view in views_of(render_orbit(SEED, 2, tuple(arguments.size), 20))])
        figures["precisions"] = {"network": compare_precisions(make, images, names)}
        trained = torch.stack([view.tensor for view in views_of(render_orbit(SEED, 2, (160, 120), 20))])
        figures["precisions"]["bundled"] = compare_precisions(
            lambda wanted: load_model("small", str(device), wanted), trained, names
        )
        for which, table in figures["precisions"].items():
            for key, row in table.items():
                print(f"{which:8} {key:5} " + "  ".join(f"{k} {v:.1e}" for k, v in row.items()), flush=True)
        save(figures, arguments.output)
    model = make(precision)
    options = ReconstructionOptions()
    scene = orbit(WARM_UP_VIEWS, tuple(arguments.size), 40, device)
    run_views(model, scene, "complete", options, arguments.batch_size, Clock(device))
    del scene
    per_pair = 0.0
    for count in arguments.views:
        num_pairs = len(make_pairs(arguments.graph or default_graph(count), count))
        expected = time.perf_counter() - started + per_pair * num_pairs
        if arguments.budget and expected > arguments.budget:
            print(
                f"{count} views skipped: would end after {expected:.0f} s, budget {arguments.budget:.0f} s", flush=True
            )
            continue
        figure = measure_size(model, count, arguments, options)
        per_pair = figure["wall_seconds"] / num_pairs / len(figure.get("all_runs", [0]))
        figures["runs"].append(figure)
        print(line_of(figure), flush=True)
        save(figures, arguments.output)
    print(table_of(figures["runs"]))
    if any("error" in figure for figure in figures["runs"]):
        raise SystemExit(1)


def save(figures: dict[str, Any], output: Path | None) -> None:
    """Writes what has been measured so far."""
    if output:
        output.write_text(json.dumps(figures, indent=1, default=lambda x: np.asarray(x).tolist()))


if __name__ == "__main__":
    main()
