"""What the commands do: ask the library, show progress, and write what came of it."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
import threading
import time
import webbrowser
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from mast3r_sfm.app.compare.command import reconstruct_upstream
from mast3r_sfm.app.console import ProgressDisplay, logging_to_console, say, show_table
from mast3r_sfm.app.memory import estimate_matches, estimate_memory, peak_memory
from mast3r_sfm.app.requests import (
    EvaluateRequest,
    ExportRequest,
    MatchRequest,
    ModelRequest,
    ReconstructRequest,
    ViewRequest,
)
from mast3r_sfm.app.viewer import ResultServer, ServedResult
from mast3r_sfm.device import resolve_device
from mast3r_sfm.errors import InputError
from mast3r_sfm.evaluation import Evaluation, evaluate_views, read_true_depth, read_truth
from mast3r_sfm.export.compression import check_compression
from mast3r_sfm.export.files import write_json
from mast3r_sfm.export.folders import explained_writing, scene_folder, scratch_folder
from mast3r_sfm.export.formats import check_extras
from mast3r_sfm.export.georeference import check_fixes, check_georeference
from mast3r_sfm.export.glb import SceneStatistics
from mast3r_sfm.export.match_result import write_match_result
from mast3r_sfm.export.result import (
    STORE,
    check_output,
    expected_bytes,
    georeference_result,
    read_run,
    read_scene_options,
    rewrite_scene,
    write_exports,
)
from mast3r_sfm.export.store import load_reconstruction
from mast3r_sfm.images.finding import find_footage, find_images, is_clip
from mast3r_sfm.images.frames import clips_of
from mast3r_sfm.images.masks import find_masks, without_masks
from mast3r_sfm.model.checkpoint import Model, load_model
from mast3r_sfm.options import DEFAULT_MODEL, Engine, ExportFormat, SceneOptions
from mast3r_sfm.pipeline import load_images, match_images, plan_pairs, read_clips
from mast3r_sfm.pipeline import reconstruct as run_pipeline
from mast3r_sfm.reconstruction import Reconstruction, plain, versions
from mast3r_sfm.text import byte_count, counted
from mast3r_sfm.types import Georeference, View

_OVERLAPPING = 10  # images that one shows the same part of a scene with, at a guess


def reconstruct(request: ReconstructRequest) -> bool:
    """The `reconstruct` command. Returns whether some images could not be registered."""
    quiet = request.display.quiet
    start = time.perf_counter()
    misplaced: InputError | None = None
    with logging_to_console(request.display.debug) as log, contextlib.ExitStack() as work:
        output = _free_output(request.inputs) if request.output is None else request.output
        check_output(output, request.overwrite)
        check_compression(request.scene.compress)  # what is missing should be told before the work, not after it
        check_extras(request.exports)
        if request.georeference:
            check_georeference()
        paths = find_footage(request.inputs, request.footage.recursive)
        if request.footage.masks is not None:
            paths = without_masks(Path(request.footage.masks), paths)
            if request.engine is Engine.UPSTREAM:
                raise InputError("`masks`: the published engine has none; leave `masks` or `engine=upstream` out")
        if any(map(is_clip, paths)):
            frames = work.enter_context(scratch_folder(output, "frames"))
            with ProgressDisplay(quiet) as display:
                paths = read_clips(paths, request.footage, frames, display)
        graph, seed = request.options.scene_graph, request.options.seed
        if request.footage.masks is not None:  # and neither should masks that are missing
            find_masks(Path(request.footage.masks), paths, clips_of(paths))
        pairs = plan_pairs(graph, paths, seed)  # a pairs file that is missing should not wait for the model
        if request.engine is Engine.UPSTREAM:
            result = _reconstruct_upstream(paths, pairs, request)
        else:
            result = _reconstruct_native(paths, pairs, request, output)
        if request.georeference:
            result, misplaced = _placed(result, request)
        writing = time.perf_counter()
        seconds = {"Set up and read images": writing - start - sum(result.seconds.values()), **result.seconds}
        statistics = result.save(
            output,
            request.scene,
            overwrite=request.overwrite,
            exports=request.exports,
            photos=request.photos,
            report=request.report,
            details={
                "arguments": sys.argv[1:],
                "inputs": list(request.inputs),
                "options": {name: plain(value) for name, value in request.flags.items()},
                "seconds": seconds,
                "peak_memory_bytes": _peak_memory(result),
                "warnings": log.messages,
            },
        )
        seconds["Write files"] = time.perf_counter() - writing
        show_table(_summary(result, statistics, seconds, output), quiet)
        for number, one in enumerate((result, *result.others)):
            if one.georeference is not None:
                heading = {"Place of": scene_folder(number)} if number else {}
                show_table(heading | _residual_rows(one.georeference, [view.file for view in one.views]), quiet)
        if misplaced is not None:
            raise InputError(f"{misplaced}. Everything but the georeference is in {output}") from misplaced
    return len(result.registered) < len(result.views)


def _placed(result: Reconstruction, request: ReconstructRequest) -> tuple[Reconstruction, InputError | None]:
    """The georeferenced result; or what speaks against it, and the result as it was, which is not lost for that."""
    try:
        return result.georeferenced(request.scene, request.options.seed), None
    except InputError as error:
        return result.with_others_georeferenced(request.scene, request.options.seed), error


def match(request: MatchRequest) -> None:
    """The `match` command."""
    quiet = request.display.quiet
    with logging_to_console(request.display.debug) as log:
        check_output(request.output, request.overwrite)
        names = (request.image_a, request.image_b)
        paths = find_images(names)
        if len(paths) != 2:
            raise InputError(f"match takes two image files; {names[0]} and {names[1]} name {len(paths)}")
        model = _load_model(request.model, quiet)
        with ProgressDisplay(quiet) as display:
            first, second = load_images(paths, model, request.model.image_size, display)
        found = match_images(first, second, model, request.options)
        matches = found.matches
        run = {
            "command": "match",
            "versions": versions(),
            "model": dataclasses.asdict(found.model),
            "options": {name: plain(value) for name, value in request.flags.items()},
            "images": [{"file": str(view.path), "sha256": view.sha256} for view in (first, second)],
            "num_matches": None if matches is None else found.num_found,
            "num_verified": None if matches is None else len(matches),
            "warnings": log.messages,
        }
        write_match_result((first, second), found.prediction, matches, request.output, run, request.overwrite)
    if matches is None:
        say(f"This model predicts no descriptors: depth and confidence only. Files in {request.output}", quiet)
    else:
        kept = "" if request.options.verification is None else f", {len(matches)} confirmed by the geometry"
        say(f"{found.num_found} matches{kept}. Files in {request.output}", quiet)


def export(request: ExportRequest) -> None:
    """The `export` command."""
    with logging_to_console(request.display.debug):
        check_extras(request.exports)
        if request.georeference:
            placed = georeference_result(request.folder)
            assert placed.georeference is not None
            files = [view.file for view in placed.views]
            show_table(_residual_rows(placed.georeference, files), request.display.quiet)
        if request.changes or not (request.exports or request.georeference):
            scene = dataclasses.replace(read_scene_options(request.folder), **request.changes)
            statistics = rewrite_scene(request.folder, scene)
            say(_scene_line(statistics, scene), request.display.quiet)
        if request.exports:
            write_exports(request.folder, request.exports, request.photos)
            say(
                f"Written: {', '.join(str(request.folder / kind.entry) for kind in request.exports)}",
                request.display.quiet,
            )


def view(request: ViewRequest) -> None:
    """The `view` command. Returns after Ctrl-C."""
    with logging_to_console(request.display.debug):
        options, run = read_scene_options(request.folder), read_run(request.folder)
        with ResultServer(request.port) as server:  # a port that is taken should be told before the result is loaded
            say(f"Loading {request.folder}", request.display.quiet)
            server.result = ServedResult(load_reconstruction(request.folder / STORE), options, run)
            say(f"{server.url} shows {request.folder}; Ctrl-C ends it")
            if request.browser:
                # in a thread: a browser of the terminal would not return before it is closed
                threading.Thread(target=webbrowser.open, args=(server.url,), daemon=True).start()
            with contextlib.suppress(KeyboardInterrupt):
                server.serve_forever()


def evaluate(request: EvaluateRequest) -> None:
    """The `evaluate` command."""
    with logging_to_console(request.display.debug):
        truth = read_truth(request.truth)
        result = Reconstruction.load(request.folder)
        found = evaluate_views(result.views, truth, read_true_depth(request.truth))
        if request.json_file is not None:
            with explained_writing(request.json_file):
                write_json(request.json_file, dataclasses.asdict(found))
        show_table(_evaluation_rows(found), request.display.quiet)


def _residual_rows(place: Georeference, files: Sequence[str]) -> dict[str, str]:
    """What is shown of a georeference: its origin, and how far every camera is off its GPS position."""
    found = place.residuals_m[place.inliers]
    rows = {
        "Origin": f"{place.latitude_deg:.7f} {place.longitude_deg:.7f}, {place.altitude_m:.1f} m",
        "Scale": f"{place.scale:.4f} metres per unit of the scene",
        "GPS positions": f"{len(found)} of {int(np.isfinite(place.residuals_m[:, 0]).sum())} agree, root mean square "
        f"{np.sqrt(np.nanmean(found[:, :2] ** 2) * 2):.2f} m horizontally",
    }
    names = [Path(file).name for file in files]
    labels = files if len(set(names)) < len(names) else names
    for label, off, agrees in zip(labels, place.residuals_m, place.inliers, strict=True):
        if np.isfinite(off[0]):
            up = "" if np.isnan(off[2]) else f", up {off[2]:+.2f}"
            rows[label] = f"east {off[0]:+.2f}, north {off[1]:+.2f}{up} m" + ("" if agrees else " (does not agree)")
    return rows


def _evaluation_rows(found: Evaluation) -> dict[str, str]:
    """What `evaluate` shows."""

    def shares(values: Mapping[int, float]) -> str:
        return ", ".join(f"{value:.1%} at {limit}\N{DEGREE SIGN}" for limit, value in values.items())

    rows = {
        "Images registered": f"{found.num_registered} of {found.num_images}",
        "Rotation, median": f"{found.rotation_deg:.3f}\N{DEGREE SIGN} over all pairs",
        "Direction, median": f"{found.direction_deg:.3f}\N{DEGREE SIGN} over all pairs",
        "Accuracy": shares(found.accuracy),
        "AUC": shares(found.auc),
        "ATE": f"{found.ate:.3%} of the cameras' extent; scale {found.scale:.4f}",
        "Focal length, median": f"{found.focal:.2%}",
    }
    if not np.isnan(found.depth):
        rows["Depth"] = (
            f"median {found.depth:.2%}, within 3 %: {found.depth_within_3_percent:.1%}, "
            f"beyond 10 %: {found.depth_beyond_10_percent:.1%}"
        )
    return rows


def _free_output(inputs: Sequence[str]) -> Path:
    """outputs/<name of the first input: of the folder or clip>, with -2, -3, ... appended if it is taken."""
    first = Path(inputs[0])
    own = first.stem if is_clip(first) else first.resolve().parent.name
    name = (first.name if first.is_dir() else own) or first.resolve().name or "scene"
    base = Path("outputs") / name
    count, folder = 1, base
    while folder.exists():
        count += 1
        folder = base.with_name(f"{name}-{count}")
    return folder


def _load_model(request: ModelRequest, quiet: bool) -> Model:
    model = load_model(request.model_name, request.device, request.precision, request.revision)
    say(f"Model {model.name} ({model.precision} on {model.device}), weights under {model.licence}", quiet)
    return model


def _reconstruct_native(
    paths: Sequence[Path], pairs: Sequence[tuple[int, int]] | None, request: ReconstructRequest, output: Path
) -> Reconstruction:
    """Our own engine, after a look at the room on the disk and a word on the memory that the work will take."""
    quiet = request.display.quiet
    model = _load_model(request.model, quiet)
    with ProgressDisplay(quiet) as display:
        views = load_images(paths, model, request.model.image_size, display, request.footage)
        if request.georeference:
            check_fixes([view.gps for view in views], [str(view.path) for view in views])
        overlapping = _OVERLAPPING * len(views)
        num_pairs = overlapping if pairs is None else len(pairs)
        subsample = request.options.alignment.subsample
        num_matches = estimate_matches(views, min(num_pairs, overlapping), subsample)
        check_output(output, request.overwrite, _result_bytes(views, num_matches, request.scene, request.exports))
        options = request.options
        memory = estimate_memory(model, views, num_pairs, subsample, options.batch_size, options.refinement)
        chosen_by = "time and similarity" if any(view.frame for view in views) else "similarity"
        shown = f"pairs chosen by {chosen_by}" if pairs is None else counted(num_pairs, "pair")
        height, width = views[0].shape
        say(
            f"{counted(len(views), 'image')} of about {width}x{height}, {shown}, "
            f"estimated {'RAM' if model.device.type == 'cpu' else 'GPU memory'} {byte_count(memory)}",
            quiet,
        )
        return run_pipeline(views, model, request.options, display, pairs)


def _result_bytes(
    views: Sequence[View], num_matches: float, scene: SceneOptions, exports: Sequence[ExportFormat]
) -> int:
    """Room that the result takes, to be told of a full disk before the work and not after it."""
    copies = (1 + len(exports)) * sum(view.path.stat().st_size for view in views if view.path.exists())
    return copies + expected_bytes(sum(view.shape[0] * view.shape[1] for view in views), int(num_matches), scene)


def _reconstruct_upstream(
    paths: Sequence[Path], pairs: Sequence[tuple[int, int]] | None, request: ReconstructRequest
) -> Reconstruction:
    """The published code: its own network, matching and alignment on the same photos and weights."""
    model = request.model
    if model.revision is not None:
        raise InputError("`revision`: the published engine loads the newest; name a downloaded folder as `model_name`")
    name = model.model_name or DEFAULT_MODEL
    device = resolve_device(model.device)
    say(f"Published engine, model {name} on {device}; its matches are not verified", request.display.quiet)
    return reconstruct_upstream(paths, pairs, request.options, name, device, model.image_size)


def _peak_memory(result: Reconstruction) -> dict[str, float]:
    return peak_memory(torch.device(result.model.device if result.model else "cpu"))


def _summary(
    result: Reconstruction, statistics: SceneStatistics, seconds: Mapping[str, float], output: Path
) -> dict[str, str]:
    """The table at the end."""
    registered = result.registered
    focals = [float(view.K_original[0, 0]) for view in registered]
    shortest, longest = f"{min(focals):.0f}", f"{max(focals):.0f}"
    errors = [view.median_reprojection_error_px for view in registered]
    dropped = sum(not pair.kept for pair in result.pairs)
    kept = len(result.pairs) - dropped
    tracked = [view for view in registered if view.refined]
    rows = {
        "Verdict": _verdict_shown(result),
        "Images registered": f"{len(registered)} of {len(result.views)}",
        "Pairs used": f"{kept} of {len(result.pairs)}" + (f" ({dropped} denied or empty)" if dropped else ""),
        "Median reprojection error": f"{np.nanmedian(errors):.2f} px" if np.isfinite(errors).any() else "none",
        "Points kept": f"{statistics.share_kept:.0%} of the pixels",
        "Focal length": f"{' to '.join(dict.fromkeys((shortest, longest)))} px of the original images",
    }
    if tracked:
        rows["Refined cameras"] = (
            f"{len(tracked)} of {len(registered)}, median reprojection error "
            f"{np.median([view.track_error_px for view in tracked]):.2f} px of the original photos"
        )
    if result.verdict is None:
        del rows["Verdict"]
    if result.others:
        rows["Further scenes"] = ", ".join(
            f"{scene_folder(number)}: {len(other.registered)} photos"
            for number, other in enumerate(result.others, start=1)
        )
    if not result.pairs:  # the published engine does not say
        del rows["Pairs used"]
    return rows | {
        "Time": ", ".join(f"{name} {value:.1f} s" for name, value in seconds.items()),
        "Peak memory": ", ".join(f"{name.upper()} {byte_count(value)}" for name, value in _peak_memory(result).items()),
        "Files": str(output),
    }


def _verdict_shown(result: Reconstruction) -> str:
    """The verdict and why, a line for every reason."""
    if result.verdict is None:
        return ""
    overall = result.verdict.overall
    return "\n".join([str(overall.level), *(f"- {reason}" for reason in overall.reasons)])


def _scene_line(statistics: SceneStatistics, scene: SceneOptions) -> str:
    what = "points" if scene.as_pointcloud else "triangles"
    count = statistics.num_vertices if scene.as_pointcloud else statistics.num_faces
    return f"{count} {what}, {statistics.share_kept:.0%} of the pixels kept"
