"""Trains the bundled model on rendered pairs, for a given time.

    python -m training.train --init src/mast3r_sfm/data/small --seconds 480 --output run1

    torchrun --nproc-per-node 2 -m training.train --init run1 --seconds 480 --output run2

The output is a model folder in hub layout (fp16, three shards), which `--init` takes again, with `train.log`
and `run.json`. See training/README.md.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import click
import torch
import torch.distributed as dist

from mast3r_sfm.model.network import TwoViewNetwork
from synthetic import RESERVED_SEEDS
from synthetic.pairs import PairPlan, plan_mixed, render_plan

from .graphs import GraphedStep, Step
from .losses import Losses, LossOptions, Shapes, draw_samples, pair_losses
from .optimiser import Optimiser, OptimiserOptions
from .schedule import FINAL_SHARE, RESOLUTIONS, Resolution, batch_for, choose_shapes, learning_rate
from .speed import allow_any_shape, compile_regions, use_fast_heads
from .weights import load_trainable, new_network, read_raw_config, save_weights

logger = logging.getLogger("training")

SYNC_EVERY = 10
"""Steps between looks at the clock, which all GPUs must agree on."""

LOG_EVERY = 50

COMPILED_AFTER = 40
"""Steps after which the functions are compiled for all sizes; the learning rate falls over the time from there on."""
SAVE_EVERY_S = 120.0


@dataclass(frozen=True)
class RunOptions:
    """Everything that decides a run. `steps` ends it even if time is left (0: only time does).

    max_angle_deg  between the cameras of pairs in rooms and on open ground
    new_kinds      share of the pairs from the air, of facades and of tables (`synthetic.pairs.NEW_KINDS`)
    photos         share of the pairs that differ like photos of different days and cameras (`synthetic.photograph`)
    """

    init: Path
    output: Path
    seconds: float
    steps: int = 0
    pairs: float = 96
    lr: float = 1e-3
    warmup_steps: int = 200
    final_share: float = FINAL_SHARE
    seed: int = 0
    compile: bool = True
    cuda_graphs: bool = True
    max_angle_deg: float = 150.0
    new_kinds: float = 0.5
    photos: float = 0.5
    resolutions: tuple[Resolution, ...] = RESOLUTIONS
    loss: LossOptions = field(default_factory=LossOptions)
    optimiser: OptimiserOptions = field(default_factory=OptimiserOptions)


@dataclass(frozen=True)
class Worker:
    """One process of a run."""

    rank: int
    count: int
    device: torch.device

    @property
    def leads(self) -> bool:
        return self.rank == 0


def start_worker() -> Worker:
    """Joins the other processes if torchrun started this one."""
    count = int(os.environ.get("WORLD_SIZE", "1"))
    rank, local = int(os.environ.get("RANK", "0")), int(os.environ.get("LOCAL_RANK", "0"))
    device = torch.device("cuda", local) if torch.cuda.is_available() else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
        torch.cuda.set_stream(torch.cuda.Stream())  # what runs on the default stream cannot be recorded
    if count > 1:
        if device.type == "cuda":
            dist.init_process_group("nccl", device_id=device)
        else:
            dist.init_process_group("gloo")
    return Worker(rank, count, device)


LossFunction = Callable[..., Losses]


def prepare(network: TwoViewNetwork, options: RunOptions) -> LossFunction:
    """Gives the network fast heads and compiles its blocks and the losses, which are returned, if asked for.

    A compiler that fails ends the run: --no-compile does without.
    """
    use_fast_heads(network)
    if not options.compile:
        return pair_losses
    allow_any_shape()
    compile_regions(network)
    return torch.compile(pair_losses, dynamic=True)


def training_seed(options: RunOptions, step: int, worker: Worker) -> int:
    """A seed that no other step, GPU (of up to 1,024) or run with another `options.seed` uses, never a reserved one."""
    return RESERVED_SEEDS + options.seed * 10**10 + step * 1024 + worker.rank


def train_step(
    network: TwoViewNetwork, plan: PairPlan, shapes: Shapes, options: LossOptions, loss_function: LossFunction
) -> Losses:
    """Renders a batch, forward and backward; gradients add up in the parameters."""
    with torch.no_grad():
        pairs = render_plan(plan, shapes)
    device = pairs.points.device
    samples = draw_samples(pairs.points.shape[0], shapes, options, device)
    with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
        view1, view2 = network(pairs.images1, pairs.images2)
    losses = loss_function(view1, view2, pairs, samples, shapes, options)
    losses.total.backward()
    return Losses(*(loss.detach() for loss in losses))


class Clock:
    """Share of the run that is over, the same on all GPUs: the slowest one's, looked at every few steps."""

    def __init__(self, options: RunOptions, worker: Worker, started: float) -> None:
        self._options, self._worker, self._started = options, worker, started
        self._progress = 0.0

    def progress(self, step: int) -> float:
        by_steps = step / self._options.steps if self._options.steps else 0.0
        if step % SYNC_EVERY == 0:
            elapsed = torch.tensor([time.monotonic() - self._started], device=self._worker.device)
            if self._worker.count > 1:
                dist.all_reduce(elapsed, dist.ReduceOp.MAX)
            self._progress = float(elapsed) / self._options.seconds
        return max(self._progress, by_steps)


class Log:
    """Lines of figures, to the console and to a file; sums stay on the GPU between lines."""

    def __init__(self, path: Path, started: float) -> None:
        self._path, self._started = path, started
        self._sum: torch.Tensor | None = None
        self._steps = self._pairs = 0
        self._last = time.monotonic()
        self.total_pairs = 0

    def add(self, losses: Losses, norm: torch.Tensor, pairs: int) -> None:
        values = torch.stack([*losses, norm, (~norm.isfinite()).float()]).nan_to_num(0.0, 0.0, 0.0)
        self._sum = values if self._sum is None else self._sum + values
        self._steps, self._pairs = self._steps + 1, self._pairs + pairs
        self.total_pairs += pairs

    def write(self, step: int, lr: float) -> None:
        if self._sum is None:
            return
        total, regression, matching, error1, error2, norm, skipped = (self._sum / self._steps).tolist()
        now = time.monotonic()
        line = (
            f"{now - self._started:7.1f} s  step {step:6d}  loss {total:7.4f}  regression {regression:7.4f}  "
            f"matching {matching:7.3f}  e1 {error1:.4f}  e2 {error2:.4f}  norm {norm:6.2f}  "
            f"skipped {skipped * self._steps:.0f}  lr {lr:.2e}  {self._pairs / (now - self._last):6.0f} pairs/s"
        )
        logger.info("%s", line)
        with self._path.open("a") as file:
            file.write(line + "\n")
        self._sum, self._steps, self._pairs, self._last = None, 0, 0, now


def train(options: RunOptions) -> TwoViewNetwork:
    """Runs the training; returns the trained network (the same on all GPUs). The leader writes the output."""
    started = time.monotonic()
    worker = start_worker()
    if worker.leads:
        options.output.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(options.seed * 1000 + worker.rank)
    torch.set_float32_matmul_precision("high")
    from_folder = options.init.is_dir()
    network = (load_trainable if from_folder else new_network)(options.init, worker.device)
    config = read_raw_config(options.init)
    optimiser = Optimiser(network, options.optimiser)
    loss_function = prepare(network, options)

    def gradients(plan: PairPlan, shapes: Shapes) -> Losses:
        return train_step(network, plan.to(worker.device), shapes, options.loss, loss_function)

    recorded = options.cuda_graphs and worker.device.type == "cuda"
    compute: Step = GraphedStep(gradients, worker.device) if recorded else gradients
    log = Log(options.output / "train.log", started)
    clock = Clock(options, worker, started)
    step, saved, begun = 0, time.monotonic(), 0.0

    def plan(step: int) -> tuple[Shapes, PairPlan]:
        shapes = choose_shapes(options.seed * 1_000_003 + step, options.resolutions)
        batch = batch_for(shapes[0], options.pairs)
        seed = training_seed(options, step, worker)
        return shapes, plan_mixed(seed, batch, options.new_kinds, options.max_angle_deg, options.photos)

    with ThreadPoolExecutor(1) as planner:
        coming = planner.submit(plan, 0)
        while (progress := clock.progress(step)) < 1:
            shapes, drawn = coming.result()
            coming = planner.submit(plan, step + 1)
            optimiser.zero_grad()
            losses = compute(drawn, shapes)
            if worker.count > 1:
                dist.all_reduce(optimiser.gradient)
                optimiser.gradient.div_(worker.count)
            if step <= COMPILED_AFTER:
                begun = progress
            decayed = (progress - begun) / (1 - begun)
            lr = learning_rate(options.lr, step, decayed, options.warmup_steps, options.final_share)
            norm = optimiser.step(lr)
            log.add(losses, norm, worker.count * drawn.related.shape[0])
            step += 1
            if worker.leads and (step == 1 or step % LOG_EVERY == 0):
                log.write(step, lr)
            if worker.leads and time.monotonic() - saved > SAVE_EVERY_S:
                save_weights(network, config, options.output)
                saved = time.monotonic()
    if worker.leads:
        log.write(step, 0.0)
        save_weights(network, config, options.output)
        _write_run(options, worker, step, log.total_pairs, time.monotonic() - started)
    return network


def _write_run(options: RunOptions, worker: Worker, steps: int, pairs: int, seconds: float) -> None:
    device = torch.cuda.get_device_name() if worker.device.type == "cuda" else "cpu"
    written = asdict(options) | {"resolutions": [max(r.shapes[0]) for r in options.resolutions]}
    content = {
        "options": written,
        "steps": steps,
        "pairs": pairs,
        "seconds": round(seconds, 1),
        "processes": worker.count,
        "device": device,
        "torch": torch.__version__,
    }
    (options.output / "run.json").write_text(json.dumps(content, indent=1, default=str) + "\n")


@click.command(help=__doc__)
@click.option(
    "--init",
    type=click.Path(exists=True, path_type=Path),
    required=True,
    help="Model folder to go on from, or a config.json for random weights.",
)
@click.option("--output", type=click.Path(path_type=Path, file_okay=False), required=True)
@click.option("--seconds", type=click.FloatRange(min=1), required=True, help="Time budget, compiling included.")
@click.option("--steps", type=click.IntRange(min=0), default=0, help="End after this many steps; 0: when time is up.")
@click.option(
    "--pairs", default=96.0, show_default=True, help="Pairs a step and GPU at 160x160; fewer at larger sizes."
)
@click.option("--lr", default=1e-3, show_default=True)
@click.option("--warmup-steps", type=click.IntRange(min=1), default=200, show_default=True)
@click.option(
    "--final-share",
    type=click.FloatRange(0, 1),
    default=FINAL_SHARE,
    show_default=True,
    help="Last learning rate over the peak; larger where another run goes on from here.",
)
@click.option("--seed", default=0, show_default=True, help="Another number for every run: no scene comes twice.")
@click.option("--max-angle", "max_angle_deg", default=150.0, show_default=True)
@click.option(
    "--new-kinds",
    type=click.FloatRange(0, 1),
    default=0.5,
    show_default=True,
    help="Share of the pairs from the air, of facades and of tables; the rest: rooms and open ground.",
)
@click.option(
    "--photos",
    type=click.FloatRange(0, 1),
    default=0.5,
    show_default=True,
    help="Share of the pairs whose views differ like photos: light, camera, weather, things in one view only.",
)
@click.option("--long-edge", "long_edges", type=int, multiple=True, help="Train on these sizes only (160, 224, 320).")
@click.option("--compile/--no-compile", default=True, show_default=True)
@click.option(
    "--cuda-graphs/--no-cuda-graphs", default=True, show_default=True, help="Record a step and replay it (GPUs only)."
)
@click.option("--evaluate", "evaluation_pairs", default=64, show_default=True, help="Held-out pairs; 0: none.")
def main(evaluation_pairs: int, long_edges: tuple[int, ...], **arguments: Any) -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    resolutions = tuple(r for r in RESOLUTIONS if not long_edges or max(r.shapes[0]) in long_edges)
    if not resolutions:
        raise click.BadParameter(
            f"{long_edges}: known are {[max(r.shapes[0]) for r in RESOLUTIONS]}", param_hint="--long-edge"
        )
    options = RunOptions(resolutions=resolutions, **arguments)
    network = train(options)
    if dist.is_initialized():
        dist.destroy_process_group()
    if evaluation_pairs and int(os.environ.get("RANK", "0")) == 0:
        from .evaluate import add_figures, evaluate

        del network
        add_figures(evaluate(options.output, evaluation_pairs), options.output / "run.json")


if __name__ == "__main__":
    main()
