"""What the command `compare` does and prints, and the run of `reconstruct --engine upstream`."""

from __future__ import annotations

import gc
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from mast3r_sfm.app.compare import engine
from mast3r_sfm.app.compare.comparison import Comparison, Cost, compare, measured
from mast3r_sfm.app.compare.published import import_upstream
from mast3r_sfm.app.console import logging_to_console, say
from mast3r_sfm.app.requests import CompareRequest
from mast3r_sfm.errors import InputError
from mast3r_sfm.images.finding import find_images
from mast3r_sfm.images.loading import ImageSizing, load_views
from mast3r_sfm.model.checkpoint import load_model
from mast3r_sfm.options import DEFAULT_MODEL, AlignmentConfig, IntrinsicsGroups, Precision, ReconstructionOptions
from mast3r_sfm.pipeline import plan_pairs
from mast3r_sfm.pipeline import reconstruct as run_pipeline
from mast3r_sfm.reconstruction import Reconstruction
from mast3r_sfm.text import byte_count
from mast3r_sfm.types import ModelDescription, View

_PUBLISHED_PATCH = 16
_PUBLISHED_SIZE = 512
_TABLE_WIDTH = 110
_NAME_WIDTH = 24


def compare_engines(request: CompareRequest) -> bool:
    """The `compare` command: both engines on the same photos and weights. Returns whether they agree."""
    quiet = request.display.quiet
    name = request.model.model_name or DEFAULT_MODEL
    image_size = request.model.image_size
    precision = Precision.FP32 if request.model.precision is Precision.AUTO else request.model.precision
    with logging_to_console(request.display.debug), import_upstream() as published:
        paths = find_images(request.inputs)
        pairs = published_pairs(plan_pairs(request.options.scene_graph, paths), request.options)
        views = read_published_views(paths, image_size)
        say(f"{len(views)} images, {len(pairs)} pairs, {name} in {precision}; native engine ...", quiet)
        model = load_model(name, request.model.device, precision, request.model.revision)
        device = model.device
        native, native_cost = measured(partial(run_pipeline, views, model, request.options, pairs=pairs), device)
        del model
        gc.collect()  # the native weights make room for the published ones
        say("published engine ...", quiet)
        network = engine.load_model(published, name, device)
        settings = published_options(request.options, image_size)
        run = partial(engine.reconstruct, published, network, views, pairs, device, settings)
        other, other_cost = measured(run, device)
    comparison = compare(native, other)
    show_comparison(comparison, {"native": native_cost, "upstream": other_cost})
    return comparison.agrees


def reconstruct_upstream(
    paths: Sequence[Path],
    pairs: Sequence[tuple[int, int]] | None,
    options: ReconstructionOptions,
    name: str,
    device: torch.device,
    image_size: int | None,
) -> Reconstruction:
    """The run of `reconstruct --engine upstream`: the published method's result on the photos."""
    with import_upstream() as published:
        start = time.perf_counter()
        views = read_published_views(paths, image_size)
        network = engine.load_model(published, name, device)
        loaded = time.perf_counter()
        settings = published_options(options, image_size)
        scene = engine.reconstruct(published, network, views, published_pairs(pairs, options), device, settings)
    return Reconstruction(
        scene.views,
        scene.matches,
        model=ModelDescription(name=name, requested=name, device=str(device), engine="upstream"),
        options=options,
        image_hashes=tuple(view.sha256 for view in views),
        groups=(tuple(range(len(views))),),
        seconds={"Load": loaded - start, "Published method": time.perf_counter() - loaded},
    )


def read_published_views(paths: Sequence[Path], image_size: int | None) -> list[View]:
    """The photos at the sizes that the published loader makes of them."""
    return load_views(paths, ImageSizing.for_model(image_size or _PUBLISHED_SIZE, _PUBLISHED_PATCH, False))


def published_pairs(
    pairs: Sequence[tuple[int, int]] | None, options: ReconstructionOptions
) -> Sequence[tuple[int, int]]:
    """The planned pairs. Raises InputError for a graph that depends on an engine's features."""
    if pairs is None:
        raise InputError(
            f"`scene_graph={options.scene_graph}` chooses pairs by our own network's features, which the published "
            "engine does not have; use complete, swin, logwin, oneref or pairs:FILE"
        )
    return pairs


def published_options(options: ReconstructionOptions, image_size: int | None) -> engine.UpstreamOptions:
    """The published method's settings for ours. Raises InputError for one that it does not have."""
    alignment = options.alignment
    if alignment.subsample != AlignmentConfig().subsample:
        raise InputError("`subsample`: the published engine is used with its default only")
    return engine.UpstreamOptions(
        image_size=image_size or _PUBLISHED_SIZE,
        niter_coarse=alignment.niter_coarse,
        niter_fine=alignment.niter_fine,
        optimize_depth=alignment.optimize_depth,
        shared_intrinsics=options.intrinsics_groups is IntrinsicsGroups.SHARED,
        matching_conf_thr=alignment.matching_conf_thr,
    )


def show_comparison(comparison: Comparison, costs: Mapping[str, Cost]) -> None:
    """Prints differences per view, the limits, what each engine took, and the verdict."""
    output = Console(highlight=False)
    if output.width < _TABLE_WIDTH:  # rather broken lines than columns cut short
        output = Console(highlight=False, width=_TABLE_WIDTH)
    output.print("Differences per image; the matches, and which share of them holds in the scene of each engine:")
    table = Table(box=None, padding=(0, 2, 0, 0))
    for name in ("image", "depth", "rotation", "position", "focal", "matches", "native", "upstream", "both"):
        table.add_column(name, justify="left" if name == "image" else "right", no_wrap=True)
    for view in comparison.views:
        held = (view.held_native, view.held_upstream, view.held_both)
        table.add_row(
            _short(Path(view.file).name),
            *_differences(view.depth, view.rotation_deg, view.position, view.focal),
            str(view.matches),
            *(f"{share:.1%}" for share in held),
            style=None if view.within(comparison.limits) else "red",
        )
    limits = comparison.limits
    table.add_row("limit", *_differences(limits.depth, limits.rotation_deg, limits.position, limits.focal), style="dim")
    output.print(table)
    for name, cost in costs.items():
        gpu = "" if cost.gpu_bytes is None else f", {byte_count(cost.gpu_bytes)} GPU"
        ram = "" if cost.ram_bytes is None else f", {byte_count(cost.ram_bytes)} RAM"
        output.print(f"{name}: {cost.seconds:.1f} s{gpu}{ram} at the peak, loading the model excluded")
    if comparison.alone:
        output.print(f"placed by one engine only: {', '.join(Path(file).name for file in comparison.alone)}")
    far = sum(not view.within(limits) for view in comparison.views)
    output.print("The engines agree." if comparison.agrees else f"The engines differ on {far} images.")


def _differences(depth: float, rotation_deg: float, position: float, focal: float) -> list[str]:
    return [f"{depth:.2%}", f"{rotation_deg:.2f}\N{DEGREE SIGN}", f"{position:.2%}", f"{focal:.2%}"]


def _short(name: str) -> str:
    """A name of at most _NAME_WIDTH characters that keeps its beginning and its end."""
    half = _NAME_WIDTH // 2
    return name if len(name) <= _NAME_WIDTH else f"{name[: half - 1]}\N{HORIZONTAL ELLIPSIS}{name[-half:]}"
