"""What the commands do: ask the library, show progress, and write what came of it."""

from __future__ import annotations

import contextlib
import dataclasses
import threading
import traceback
import webbrowser
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from mast3r_sfm.app.console import ProgressDisplay, complain, logging_to_console, say, show_table, warn
from mast3r_sfm.app.flags import in_words
from mast3r_sfm.app.requests import (
    EXIT_PARTIAL,
    EXIT_SCENE_FAILED,
    SERVER_PACKAGES,
    EvaluateRequest,
    ExportRequest,
    MatchRequest,
    ModelRequest,
    ReconstructRequest,
    ServeRequest,
    ViewRequest,
)
from mast3r_sfm.app.scene import WrittenScene, pair_store, reconstruct_scene
from mast3r_sfm.app.viewer import ResultServer, ServedResult
from mast3r_sfm.errors import InputError, ReconstructionError
from mast3r_sfm.evaluation import Evaluation, evaluate_views, read_true_depth, read_truth
from mast3r_sfm.export.files import write_json
from mast3r_sfm.export.folders import explained_writing, scene_folder
from mast3r_sfm.export.formats import check_extras
from mast3r_sfm.export.glb import SceneStatistics
from mast3r_sfm.export.match_result import write_match_result
from mast3r_sfm.export.result import (
    STORE,
    check_output,
    georeference_result,
    is_result,
    read_run,
    read_scene_options,
    rewrite_scene,
    write_exports,
)
from mast3r_sfm.export.store import load_reconstruction
from mast3r_sfm.images.finding import find_images, is_clip, natural_key
from mast3r_sfm.model.checkpoint import Model, load_model
from mast3r_sfm.options import Engine, SceneOptions
from mast3r_sfm.pipeline import load_images, match_images
from mast3r_sfm.reconstruction import Reconstruction, plain, versions
from mast3r_sfm.text import byte_count, counted
from mast3r_sfm.types import Georeference


def reconstruct(request: ReconstructRequest) -> bool:
    """The `reconstruct` command. Returns whether some images could not be registered."""
    quiet = request.display.quiet
    output = _free_output(request.inputs) if request.output is None else request.output
    return not _reconstruct_and_show(request, output, lambda: _load_model(request.model, quiet)).is_complete


def reconstruct_batch(request: ReconstructRequest) -> int:
    """The `reconstruct --batch` command: each subfolder is a scene. Returns the exit code.

    A scene that fails is named, and the others go on. Raises InputError if there is no scene at all, or if the output
    cannot hold any.
    """
    assert request.batch is not None
    if request.engine is Engine.UPSTREAM:
        raise InputError("`batch`: the published engine reconstructs one scene at a time; leave `engine=upstream` out")
    quiet = request.display.quiet
    output = _free_output([str(request.batch)]) if request.output is None else request.output
    scenes = find_scenes(request.batch, output)
    if output.resolve() == request.batch.resolve():
        raise InputError(f"`output={output}` is the folder of the scenes: name another one for the results")
    if output.exists() and is_result(output):
        raise InputError(f"`output={output}` is a result, and is to hold one for every scene: name another folder")
    with logging_to_console(request.display.debug):
        model = _load_model(request.model, quiet)
    outcomes: dict[str, str] = {}
    failed = partial = 0
    for number, scene in enumerate(scenes, start=1):
        say(f"Scene {number} of {len(scenes)}: {scene.name}", quiet)
        try:
            written = _reconstruct_and_show(_of_scene(request, scene), output / scene.name, lambda: model)
            partial += not written.is_complete
            outcomes[scene.name] = _outcome(written)
        except Exception as error:  # one that is not expected is no reason to lose the other scenes either
            failed += 1
            if request.display.debug:
                traceback.print_exc()
            outcomes[scene.name] = f"failed: {in_words(error)}"
            complain(f"{scene.name}: {in_words(error)}")
    say(f"{counted(len(scenes), 'scene')}, {failed} failed. Results in {output}", quiet)
    show_table(outcomes, quiet)
    return EXIT_SCENE_FAILED if failed else EXIT_PARTIAL if partial else 0


def find_scenes(batch: Path, output: Path) -> list[Path]:
    """The subfolders of `batch` in natural order, without hidden ones, results, and the folder that results go to.

    Raises InputError if there is none.
    """
    if not batch.is_dir():
        raise InputError(f"`batch={batch}`: no such folder; name one whose subfolders are scenes")
    scenes = [
        folder
        for folder in sorted(batch.iterdir(), key=natural_key)
        if folder.is_dir()
        and not folder.name.startswith(".")
        and not is_result(folder)
        and not output.resolve().is_relative_to(folder.resolve())
    ]
    if not scenes:
        raise InputError(f"`batch={batch}` has no subfolder with photos: photos of a single scene are for `inputs`")
    return scenes


def _of_scene(request: ReconstructRequest, scene: Path) -> ReconstructRequest:
    """The request for one scene of a batch. Its masks are in the folder of its name, if there is one."""
    footage = request.footage
    if footage.masks is not None:
        masks = Path(footage.masks) / scene.name
        if not masks.is_dir():
            warn(f"{masks} is not there: the photos of {scene.name} are used whole")
        footage = dataclasses.replace(footage, masks=str(masks) if masks.is_dir() else None)
    state = request.state
    if state.folder is not None:
        state = dataclasses.replace(state, folder=state.folder / scene.name)
    return dataclasses.replace(request, inputs=(str(scene),), batch=None, footage=footage, state=state)


def _reconstruct_and_show(request: ReconstructRequest, output: Path, load_model: Callable[[], Model]) -> WrittenScene:
    """One scene with progress, warnings, and the tables at its end."""
    quiet = request.display.quiet
    with logging_to_console(request.display.debug) as log:
        try:
            with ProgressDisplay(quiet) as display:
                written = reconstruct_scene(
                    request, output, load_model, display, log.messages, lambda line: say(line, quiet)
                )
        except (KeyboardInterrupt, ReconstructionError):
            store = pair_store(request, output)
            if store.holds_pairs:
                say(f"Pairs are kept in {store.folder}; a run with the same --output or --state goes on from there")
            raise
        result = written.result
        show_table(_summary(written), quiet)
        for number, one in enumerate((result, *result.others)):
            if one.georeference is not None:
                heading = {"Place of": scene_folder(number)} if number else {}
                show_table(heading | _residual_rows(one.georeference, [view.file for view in one.views]), quiet)
        if written.misplaced is not None:
            raise InputError(
                f"{written.misplaced}. Everything but the georeference is in {output}"
            ) from written.misplaced
    return written


def _outcome(written: WrittenScene) -> str:
    """What the last table of a batch says of a scene that was written."""
    result = written.result
    verdict = f"{result.verdict.overall.level}, " if result.verdict is not None else ""
    seconds = sum(written.seconds.values())
    return f"{verdict}{len(result.registered)} of {counted(len(result.views), 'photo')} registered, {seconds:.0f} s"


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


def serve(request: ServeRequest) -> None:
    """The `serve` command. Returns after Ctrl-C."""
    if missing := [package for module, package in SERVER_PACKAGES.items() if find_spec(module) is None]:
        raise InputError(f"serve needs the packages {', '.join(missing)}: pip install 'mast3r-sfm[serve]'")
    from mast3r_sfm.app.serve.server import run_server

    def load() -> Model:
        with logging_to_console(request.display.debug):
            return _load_model(request.model, request.display.quiet)

    run_server(request, load)


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


def _summary(written: WrittenScene) -> dict[str, str]:
    """The table at the end."""
    result, statistics = written.result, written.statistics
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
        "Time": ", ".join(f"{name} {value:.1f} s" for name, value in written.seconds.items()),
        "Peak memory": ", ".join(
            f"{name.upper()} {byte_count(value)}" for name, value in written.peak_memory_bytes.items()
        ),
        "Files": str(written.output),
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
