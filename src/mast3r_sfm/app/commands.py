"""What the commands of the command line do, with everything they need imported."""

from __future__ import annotations

import dataclasses
import platform
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from mast3r_sfm import __version__
from mast3r_sfm.alignment import AlignmentConfig
from mast3r_sfm.app.compare.command import reconstruct_upstream
from mast3r_sfm.app.console import ProgressDisplay, WarningCollector, logging_to_console, say, show_table
from mast3r_sfm.app.memory import estimate_matches, estimate_memory, gigabytes, peak_memory
from mast3r_sfm.device import resolve_device
from mast3r_sfm.errors import InputError
from mast3r_sfm.export.glb import SceneOptions, SceneStatistics
from mast3r_sfm.export.match_result import write_match_result
from mast3r_sfm.export.result import check_output, expected_bytes, read_scene_options, rewrite_scene, write_result
from mast3r_sfm.images.loading import ImageSizing, find_images, load_images
from mast3r_sfm.inference import NotFiniteError, encode_views, predict_pairs
from mast3r_sfm.matching import VerificationLimits, match_pair, verify_matches
from mast3r_sfm.model.checkpoint import Model, load_model
from mast3r_sfm.model.config import DEFAULT_MODEL, SMALL_MODEL
from mast3r_sfm.model.hub import HubUnreachableError
from mast3r_sfm.pipeline import ReconstructionOptions, RunReport, plan_pairs
from mast3r_sfm.pipeline import reconstruct as run_pipeline
from mast3r_sfm.scene_graph import resolve_graph
from mast3r_sfm.types import Reconstruction, View

DEFAULT_MIN_CONF_THR = 3.0

Result = TypeVar("Result")

_OVERLAPPING = 10  # images that one shows the same part of a scene with, at a guess


@dataclasses.dataclass(frozen=True)
class _Outcome:
    """What an engine made of the photos. `model` is the section of run.json, `min_conf_thr` the model's own."""

    views: Sequence[View]
    reconstruction: Reconstruction
    report: RunReport
    model: dict[str, Any]
    device: torch.device
    min_conf_thr: float | None


def reconstruct(inputs: list[str], output: Path | None, options: Mapping[str, Any]) -> bool:
    """The `reconstruct` command. Returns whether some images could not be registered."""
    quiet = options["quiet"]
    start = time.perf_counter()
    with logging_to_console(options["debug"]) as log:
        output = _free_output(inputs) if output is None else output
        check_output(output, options["overwrite"])
        scene = SceneOptions(
            min_conf_thr=_first(options["min_conf_thr"], DEFAULT_MIN_CONF_THR),
            as_pointcloud=options["as_pointcloud"],
            max_points=options["max_points"],
            clean_depth=options["clean_depth"],
        )
        paths = find_images(inputs)
        resolve_graph(options["scene_graph"], len(paths))  # a misspelt graph should not wait for the model
        if options["engine"] == "upstream":
            outcome = _run_upstream(paths, options, log)
        else:
            outcome = _run_native(paths, options, log, partial(_check_disk, output, options["overwrite"], scene))
        if options["min_conf_thr"] is None and outcome.min_conf_thr is not None:
            scene = dataclasses.replace(scene, min_conf_thr=outcome.min_conf_thr)
        writing = time.perf_counter()
        set_up = writing - start - sum(outcome.report.seconds.values())
        seconds = {"Set up and read images": set_up, **outcome.report.seconds}
        run = _run_document(inputs, outcome, options, seconds, log)
        statistics = write_result(outcome.reconstruction, output, scene, run, options["overwrite"])
        seconds["Write files"] = time.perf_counter() - writing
        show_table(_summary(outcome, statistics, seconds, output), quiet)
    return len(outcome.reconstruction.registered) < len(outcome.reconstruction.views)


def match(image_a: str, image_b: str, output: Path, options: Mapping[str, Any]) -> None:
    """The `match` command."""
    quiet = options["quiet"]
    with logging_to_console(options["debug"]) as log:
        check_output(output, options["overwrite"])
        paths = find_images([image_a, image_b])
        if len(paths) != 2:
            raise InputError(f"match takes two image files; {image_a} and {image_b} name {len(paths)}")
        model = _load_model(options, log, quiet)
        with ProgressDisplay(quiet) as display:
            first, second = _load_views(paths, model, options, display)
        model, prediction = _predict(
            model,
            options,
            log,
            lambda network: next(predict_pairs(network, encode_views(network, [first, second]), [(0, 1)])),
        )
        matches = match_pair(prediction, options["subsample"]) if model.config.has_descriptors else None
        found = None if matches is None else len(matches)
        if matches is not None and options["verify_matches"]:
            matches, _ = verify_matches(prediction, matches, VerificationLimits())
        run = {
            "command": "match",
            "versions": _versions(),
            "model": _model_document(model),
            "options": _plain(options),
            "images": [{"file": str(view.path), "sha256": view.sha256} for view in (first, second)],
            "num_matches": found,
            "num_verified": None if matches is None else len(matches),
            "warnings": log.messages,
        }
        write_match_result((first, second), prediction, matches, output, run, options["overwrite"])
    if matches is None:
        say(f"This model predicts no descriptors: depth and confidence only. Files in {output}", quiet)
    else:
        kept = f", {len(matches)} confirmed by the geometry" if options["verify_matches"] else ""
        say(f"{found} matches{kept}. Files in {output}", quiet)


def export(folder: Path, options: Mapping[str, Any]) -> None:
    """The `export` command."""
    with logging_to_console(options["debug"]):
        names = ("min_conf_thr", "as_pointcloud", "max_points", "clean_depth")
        changes = {name: options[name] for name in names if options[name] is not None}
        scene = dataclasses.replace(read_scene_options(folder), **changes)
        statistics = rewrite_scene(folder, scene)
        say(_scene_line(statistics, scene), options["quiet"])


def _first(*values: float | None) -> float:
    return next(value for value in values if value is not None)


def _free_output(inputs: Sequence[str]) -> Path:
    """outputs/<name of the first input>, with -2, -3, ... appended if it is taken."""
    first = Path(inputs[0])
    name = (first.name if first.is_dir() else first.resolve().parent.name) or first.resolve().name or "scene"
    base = Path("outputs") / name
    number, folder = 1, base
    while folder.exists():
        number += 1
        folder = base.with_name(f"{name}-{number}")
    return folder


def _load_model(options: Mapping[str, Any], log: WarningCollector, quiet: bool) -> Model:
    """The model asked for; the bundled one if none was asked for and the published one cannot be had."""
    name, device, precision = options["model_name"], options["device"], options["precision"]
    try:
        model = load_model(name or DEFAULT_MODEL, device, precision, options["revision"])
    except HubUnreachableError as error:
        if name is not None:
            raise
        model = load_model(SMALL_MODEL, device, precision)
        log.warn(
            f"{error}. The small model bundled with this tool ({SMALL_MODEL}) is used instead of {DEFAULT_MODEL}: "
            "expect coarse depth; it was trained on rendered scenes only"
        )
    say(f"Model {model.name} ({model.precision} on {model.device}), weights under {model.licence}", quiet)
    return model


def _predict(
    model: Model, options: Mapping[str, Any], log: WarningCollector, work: Callable[[Model], Result]
) -> tuple[Model, Result]:
    """The result of `work`; if half precision that nobody asked for overflows, again in bfloat16, and says so."""
    try:
        return model, work(model)
    except NotFiniteError:
        if options["precision"] != "auto" or model.precision != "fp16":
            raise
        log.warn("the network overflows in fp16; it runs again in bf16, which is less accurate (see --precision)")
        model = load_model(model.name, options["device"], "bf16", model.revision)
        return model, work(model)


def _load_views(
    paths: Sequence[Path], model: Model, options: Mapping[str, Any], display: ProgressDisplay
) -> list[View]:
    config = model.config
    sizing = ImageSizing.for_model(options["image_size"] or config.image_size, config.patch_size, config.accept_squares)
    display.start("Read images", len(paths))
    views = load_images(paths, sizing, progress=display.advance)
    display.finish()
    return views


def _check_disk(output: Path, overwrite: bool, scene: SceneOptions, views: Sequence[View], num_matches: float) -> None:
    """Raises InputError if the disk has too little room for the result: that should not be found out at the end."""
    num_pixels = sum(view.shape[0] * view.shape[1] for view in views)
    check_output(output, overwrite, expected_bytes(num_pixels, int(num_matches), scene))


def _run_native(
    paths: Sequence[Path],
    options: Mapping[str, Any],
    log: WarningCollector,
    check_disk: Callable[[Sequence[View], float], None],
) -> _Outcome:
    """Our own engine. `check_disk` is asked before the work starts, with the views and the matches to expect."""
    quiet = options["quiet"]
    model = _load_model(options, log, quiet)
    chosen = _pipeline_options(options)
    with ProgressDisplay(quiet) as display:
        views = _load_views(paths, model, options, display)
        pairs = plan_pairs(views, chosen, None)  # None: chosen by similarity, later
        overlapping = _OVERLAPPING * len(views)
        num_pairs = overlapping if pairs is None else len(pairs)
        check_disk(views, estimate_matches(views, min(num_pairs, overlapping), chosen.alignment.subsample))
        say(_announcement(model, views, chosen, pairs is not None, num_pairs), quiet)
        model, (reconstruction, report) = _predict(
            model, options, log, lambda network: run_pipeline(views, network, chosen, display)
        )
    document = _model_document(model)
    return _Outcome(views, reconstruction, report, document, model.device, model.config.min_conf_thr)


def _run_upstream(paths: Sequence[Path], options: Mapping[str, Any], log: WarningCollector) -> _Outcome:
    """The published code: its own network, matching and alignment on the same photos and weights."""
    if options["revision"] is not None:
        raise InputError("--revision: the published engine loads the newest; name a downloaded folder as --model-name")
    name = options["model_name"] or DEFAULT_MODEL
    device = resolve_device(options["device"])
    say(f"Published engine, model {name} on {device}; its matches are not verified", options["quiet"])
    views, reconstruction, report = reconstruct_upstream(
        paths, _pipeline_options(options), name, device, options["image_size"]
    )
    document = {"name": name, "engine": "upstream", "device": str(device)}
    return _Outcome(views, reconstruction, report, document, device, None)


def _pipeline_options(options: Mapping[str, Any]) -> ReconstructionOptions:
    return ReconstructionOptions(
        scene_graph=options["scene_graph"],
        batch_size=options["batch_size"],
        verification=VerificationLimits() if options["verify_matches"] else None,
        alignment=AlignmentConfig(
            subsample=options["subsample"],
            niter_coarse=options["niter"],
            niter_fine=0 if options["no_refine"] else options["niter"],
            shared_intrinsics=options["shared_intrinsics"],
            matching_conf_thr=options["matching_conf_thr"],
        ),
        clean_depth=options["clean_depth"],
        seed=options["seed"],
    )


def _announcement(
    model: Model, views: Sequence[View], chosen: ReconstructionOptions, planned: bool, num_pairs: int
) -> str:
    """One line before the work starts: what it is, and what memory it will take."""
    shown = f"{num_pairs} pairs" if planned else "pairs chosen by similarity"
    memory = estimate_memory(model, views, num_pairs, chosen.alignment.subsample, chosen.batch_size)
    height, width = views[0].shape
    return (
        f"{len(views)} images of about {width}x{height}, {shown}, "
        f"estimated {model.device.type.upper()} memory {gigabytes(memory)}"
    )


def _versions() -> dict[str, str]:
    return {
        "mast3r_sfm": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "platform": platform.platform(),
    }


def _model_document(model: Model) -> dict[str, Any]:
    document = {
        "name": model.name,
        "revision": model.revision,
        "licence": model.licence,
        "precision": model.precision,
        "device": str(model.device),
    }
    if model.device.type == "cuda":
        document["gpu"] = torch.cuda.get_device_name(model.device)
    return document


def _plain(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: str(value) if isinstance(value, Path) else value for name, value in options.items()}


def _run_document(
    inputs: Sequence[str],
    outcome: _Outcome,
    options: Mapping[str, Any],
    seconds: Mapping[str, float],
    log: WarningCollector,
) -> dict[str, Any]:
    """Content of run.json: all that is needed to run it again, and what happened."""
    return {
        "command": "reconstruct",
        "arguments": sys.argv[1:],
        "versions": _versions(),
        "model": {**outcome.model, "requested": options["model_name"] or DEFAULT_MODEL},
        "inputs": list(inputs),
        "options": _plain(options),
        "images": [{"index": view.index, "file": str(view.path), "sha256": view.sha256} for view in outcome.views],
        "pairs": [dataclasses.asdict(pair) for pair in outcome.report.pairs],
        "groups": [list(group) for group in outcome.report.groups],
        "seconds": dict(seconds),
        "peak_memory_bytes": peak_memory(outcome.device),
        "warnings": log.messages,
    }


def _summary(
    outcome: _Outcome, statistics: SceneStatistics, seconds: Mapping[str, float], output: Path
) -> dict[str, str]:
    """The table at the end."""
    reconstruction, report = outcome.reconstruction, outcome.report
    registered = reconstruction.registered
    focals = [float(view.K_original[0, 0]) for view in registered]
    errors = [view.median_reprojection_error_px for view in registered]
    dropped = sum(not pair.kept for pair in report.pairs)
    kept = len(report.pairs) - dropped
    peak = peak_memory(outcome.device)
    rows = {
        "Images registered": f"{len(registered)} of {len(reconstruction.views)}",
        "Pairs used": f"{kept} of {len(report.pairs)}" + (f" ({dropped} denied or empty)" if dropped else ""),
        "Median reprojection error": f"{np.nanmedian(errors):.2f} px" if np.isfinite(errors).any() else "none",
        "Points kept": f"{statistics.share_kept:.0%} of the pixels",
        "Focal length": f"{min(focals):.0f} to {max(focals):.0f} px of the original images",
        "Time": ", ".join(f"{name} {value:.1f} s" for name, value in seconds.items()),
        "Peak memory": ", ".join(f"{name.upper()} {gigabytes(value)}" for name, value in peak.items()),
        "Files": str(output),
    }
    if not report.pairs:  # the published engine does not say
        del rows["Pairs used"]
    return rows


def _scene_line(statistics: SceneStatistics, scene: SceneOptions) -> str:
    what = "points" if scene.as_pointcloud else "triangles"
    number = statistics.num_vertices if scene.as_pointcloud else statistics.num_faces
    return f"{number} {what}, {statistics.share_kept:.0%} of the pixels kept"
