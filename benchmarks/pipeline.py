"""Times every stage of a reconstruction on this machine, and the error of every precision.

    python benchmarks/pipeline.py                             7 and 30 views, published network size
    python benchmarks/pipeline.py --views 7 30 200 1000       with the large sets
    python benchmarks/pipeline.py --device cpu --small        small network, 7 views

The network has random weights of the published sizes: it costs what the real one costs, but predicts nothing. For
matching and alignment its predictions are replaced by ideal ones of a rendered scene: exact pointmaps with 2 %
smooth depth noise, and descriptors that vary smoothly with the place in the world, with a little noise. Stages are
timed with the device synchronised at their borders, after one warm-up run on 4 views; the making of ideal
predictions is not counted.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from accuracy import measure, views_of
from mast3r_sfm import pairwise
from mast3r_sfm.alignment import align, build_problem, reprojection_errors
from mast3r_sfm.checkpoint import Model, load_model
from mast3r_sfm.config import DEFAULT_MODEL, PRESETS, ModelConfig
from mast3r_sfm.device import compute_dtype, resolve_device, resolve_precision
from mast3r_sfm.inference import encode_views, predict_batches
from mast3r_sfm.memory import peak_memory
from mast3r_sfm.network import TwoViewNetwork
from mast3r_sfm.network.blocks import LayerNorm
from mast3r_sfm.pairwise import PairwiseCollector
from mast3r_sfm.pipeline import ReconstructionOptions, _assemble
from mast3r_sfm.scene_graph import make_pairs
from mast3r_sfm.synthetic import RenderedScene, ideal_pair_prediction, render_orbit
from mast3r_sfm.types import PairPrediction, ViewPrediction

SEED = 900_001
WARM_UP_VIEWS = 4


class Clock:
    """Seconds by stage, the device's work included."""

    def __init__(self, device: torch.device) -> None:
        self.seconds: dict[str, float] = {}
        self.device = device

    def synchronise(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    @contextmanager
    def stage(self, name: str):
        self.synchronise()
        start = time.perf_counter()
        yield
        self.synchronise()
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start


def random_model(config: ModelConfig, device: torch.device, precision: str) -> Model:
    """A network of the configuration with random weights, made on the device."""
    generator = torch.Generator(device).manual_seed(0)
    with torch.device("meta"):
        network = TwoViewNetwork(config)
    dtype = compute_dtype(precision)
    for module in network.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if isinstance(module, LayerNorm):
                tensor = torch.ones(parameter.shape, device=device) if name == "weight" else torch.zeros(
                    parameter.shape, device=device
                )  # fmt: skip
            else:
                fan_in = max(1, parameter[0].numel()) if parameter.dim() > 1 else 1
                scale = fan_in**-0.5 if parameter.dim() > 1 else 0.02
                tensor = scale * torch.randn(parameter.shape, device=device, generator=generator)
                tensor = tensor.to(dtype)
                if tensor.dim() == 4 and device.type == "cuda":
                    tensor = tensor.to(memory_format=torch.channels_last)
            setattr(module, name, torch.nn.Parameter(tensor, requires_grad=False))
    for module in network.modules():  # the state dict's aliases share their tensors
        if hasattr(module, "layer_rn"):
            for k in range(4):
                module.layer_rn[k].weight = getattr(module, f"layer{k + 1}_rn").weight
    return Model(network.eval(), config, "random", None, "none", device, precision)


class IdealPredictor:
    """Ideal predictions with descriptors: random Fourier features of the place in the world, plus noise."""

    def __init__(self, scene: RenderedScene, desc_dim: int) -> None:
        self.scene = scene
        device = scene.rgb.device
        generator = torch.Generator().manual_seed(1)
        depth = scene.depth[scene.depth > 0].median().item()
        half = desc_dim // 2
        scales = torch.logspace(-0.5, 1.3, half)[:, None]  # from the whole scene to a few pixels
        self.frequencies = (torch.randn(half, 3, generator=generator) * scales / depth).to(device)
        self.noise = torch.Generator(device).manual_seed(2)

    def _described(self, view: ViewPrediction, index: int, frame: int) -> ViewPrediction:
        world_from_frame = self.scene.world_from_cam[index].float()
        own = ideal_points(self.scene, index)
        world = own @ world_from_frame[:3, :3].T + world_from_frame[:3, 3]
        phase = world @ self.frequencies.T
        desc = torch.cat([phase.cos(), phase.sin()], -1)
        desc = desc + 0.05 * torch.randn(desc.shape, generator=self.noise, device=desc.device)
        return ViewPrediction(view.points, view.conf, torch.nn.functional.normalize(desc, dim=-1), view.conf / 2)

    def __call__(self, i: int, j: int) -> PairPrediction:
        pair = ideal_pair_prediction(self.scene, i, j, seed=i * 10_007 + j)
        return PairPrediction(
            i,
            j,
            self._described(pair.i_in_i, i, i),
            self._described(pair.j_in_i, j, i),
            self._described(pair.j_in_j, j, j),
            self._described(pair.i_in_j, i, j),
        )


def ideal_points(scene: RenderedScene, index: int) -> torch.Tensor:
    """(H, W, 3) float32 own pointmap of a view."""
    from mast3r_sfm.synthetic.ideal import camera_points

    return camera_points(scene, index).float()


def run_views(
    model: Model, scene: RenderedScene, graph: str, options: ReconstructionOptions, batch_size: int | None
) -> dict[str, Any]:
    """One reconstruction with the network's cost and ideal predictions: seconds by stage, memory, accuracy."""
    device = model.device
    clock = Clock(device)
    views = views_of(scene)
    pairs = make_pairs(graph, len(views))
    ideal = IdealPredictor(scene, model.config.desc_dim or 24)
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device) if device.type == "cuda" else 0
    with clock.stage("encode"):
        encoded = encode_views(model, views, batch_size)
    collector = PairwiseCollector(
        [view.shape for view in views],
        [view.path.name for view in views],
        pairs,
        options.alignment.subsample,
        options.verification,
    )
    match_pairs = pairwise.match_pairs

    def timed_match(*arguments: Any) -> Any:
        with clock.stage("match"):
            return match_pairs(*arguments)

    pairwise.match_pairs = timed_match
    try:
        batches = predict_batches(model, encoded, pairs, batch_size)
        while True:
            with clock.stage("decode"):
                batch = next(batches, None)
            if batch is None:
                break
            numbers = [(p.i, p.j) for p in batch]
            del batch
            # one at a time where memory counts; the batch as the pipeline has it otherwise
            predictions = [ideal(i, j) for i, j in numbers]
            with clock.stage("match + verify + canonical"), torch.inference_mode():
                collector.add(predictions)
            del predictions
    finally:
        pairwise.match_pairs = match_pairs
    clock.seconds["verify + canonical"] = clock.seconds.pop("match + verify + canonical") - clock.seconds["match"]
    del encoded
    data = collector.finish()
    chosen = list(range(len(views)))
    with clock.stage("align"):
        problem = build_problem(data.canonical, data.correspondences, data.fallback, options.alignment)
        aligned = align(problem, options.alignment)
        errors = reprojection_errors(problem, aligned)
        num_matches = sum(len(m) for m in data.correspondences)
        del problem
    with clock.stage("dense"):
        reconstruction = _assemble(views, data.canonical, chosen, aligned, errors, data.correspondences, pairs, options)
    found = measure(reconstruction, scene, 1.0)
    seconds = dict(clock.seconds)
    return {
        "views": len(views),
        "pairs": len(pairs),
        "matches": num_matches,
        "seconds": seconds,
        "all": sum(seconds.values()),
        "peak": peak_memory(device) | {"gpu_before": before},
        "rotation_deg": found.rotation_deg,
        "ate_percent": found.ate_percent,
        "depth_percent": found.depth_percent,
    }


def precision_errors(reference: Model, other: Model, images: torch.Tensor) -> dict[str, float]:
    """Median relative error of points and confidences and median angle of descriptors against float32."""
    from mast3r_sfm.device import matmul_precision

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
    """Errors against float32 and seconds of one symmetric pair for every precision."""
    reference = make("fp32")
    table = {}
    for name in names:
        model = reference if name == "fp32" else make(name)
        table[name] = precision_errors(reference, model, images)
        del model
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--views", type=int, nargs="+", default=[7, 30])
    parser.add_argument("--size", type=int, nargs=2, default=(512, 384), metavar=("W", "H"))
    parser.add_argument("--degrees", type=float, default=150.0)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--small", action="store_true", help="the bundled network instead of the published size")
    parser.add_argument("--graph", help="default: complete up to 30 views, logwin-8-noncyclic above")
    parser.add_argument("--precisions", action="store_true", help="also the error of every precision")
    parser.add_argument("--memory-gb", type=float, help="let this process use only so much GPU memory")
    parser.add_argument("--output", type=Path, help="write the figures as JSON")
    arguments = parser.parse_args()
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
        return random_model(PRESETS[DEFAULT_MODEL], device, wanted)

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
    model = make(precision)
    options = ReconstructionOptions()
    scene = render_orbit(SEED, WARM_UP_VIEWS, tuple(arguments.size), 40, device)
    run_views(model, scene, "complete", options, arguments.batch_size)
    for count in arguments.views:
        graph = arguments.graph or ("complete" if count <= 30 else "logwin-8-noncyclic")
        # neighbours stay a few degrees apart at least; large sets go round in several turns
        scene = render_orbit(
            SEED, count, tuple(arguments.size), min(359.0, max(arguments.degrees, 3.0 * count)), device
        )
        figure = run_views(model, scene, graph, options, arguments.batch_size)
        figures["runs"].append(figure | {"graph": graph})
        print(
            f"{count} views, {figure['pairs']} pairs ({graph}), {figure['matches']} matches: "
            + ", ".join(f"{k} {v:.3f} s" for k, v in figure["seconds"].items())
            + f"; all {figure['all']:.3f} s; "
            + ", ".join(f"{k} {v / 1e9:.2f} GB" for k, v in figure["peak"].items())
            + f"; rotation {figure['rotation_deg']:.2f} deg, ATE {figure['ate_percent']:.2f} %, "
            f"depth {figure['depth_percent']:.2f} %",
            flush=True,
        )
        del scene
    if arguments.output:
        arguments.output.write_text(json.dumps(figures, indent=1, default=lambda x: np.asarray(x).tolist()))


if __name__ == "__main__":
    main()
