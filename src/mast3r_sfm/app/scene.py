"""One scene, from files to a written result: a single run, every scene of a batch, and every job of the server."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import torch

from mast3r_sfm.app.compare.command import reconstruct_upstream
from mast3r_sfm.app.memory import estimate_matches, estimate_memory, forget_peak, peak_memory
from mast3r_sfm.app.requests import ReconstructRequest
from mast3r_sfm.device import resolve_device
from mast3r_sfm.errors import InputError
from mast3r_sfm.export.compression import check_compression
from mast3r_sfm.export.folders import scratch_folder
from mast3r_sfm.export.formats import check_extras
from mast3r_sfm.export.georeference import check_fixes, check_georeference
from mast3r_sfm.export.glb import SceneStatistics
from mast3r_sfm.export.result import check_output, expected_bytes
from mast3r_sfm.images.finding import find_footage, is_clip
from mast3r_sfm.images.frames import clips_of
from mast3r_sfm.images.masks import find_masks, without_masks
from mast3r_sfm.model.checkpoint import Model
from mast3r_sfm.options import DEFAULT_MODEL, Engine, ExportFormat, SceneOptions
from mast3r_sfm.pair_store import PairStore
from mast3r_sfm.pipeline import load_images, plan_pairs, read_clips
from mast3r_sfm.pipeline import reconstruct as run_pipeline
from mast3r_sfm.progress import Progress
from mast3r_sfm.reconstruction import Reconstruction, plain
from mast3r_sfm.text import byte_count, counted
from mast3r_sfm.types import View

WRITING = "Write files"
"""The last stage."""

_LEAST_WORTH_KEEPING_S = 60.0  # that pairs are expected to take

_OVERLAPPING = 10  # images that one shows the same part of a scene with, at a guess


@dataclass(frozen=True)
class WrittenScene:
    """A result that is in its folder.

    seconds    of every stage, reading and writing included
    peak_memory_bytes   by `memory.peak_memory`, of this scene alone where the system can tell
    misplaced  why it could not be placed on the earth though that was asked for
    """

    result: Reconstruction
    statistics: SceneStatistics
    output: Path
    seconds: dict[str, float]
    peak_memory_bytes: dict[str, float]
    misplaced: InputError | None = None

    @property
    def is_complete(self) -> bool:
        """Whether every image is registered."""
        return len(self.result.registered) == len(self.result.views)


def reconstruct_scene(
    request: ReconstructRequest,
    output: Path,
    load_model: Callable[[], Model],
    progress: Progress,
    warnings: Sequence[str],
    tell: Callable[[str], None],
) -> WrittenScene:
    """Carries out the request, whose result appears in `output` as a whole or not at all.

    load_model  called once, when everything has been checked that needs no model; not for the published engine
    progress    what it raises ends the work, and nothing is written
    warnings    those given so far; read when run.json is written
    tell        called with a line on what is about to be done

    Raises the errors of the stages.
    """
    start = perf_counter()
    forget_peak()
    misplaced: InputError | None = None
    with contextlib.ExitStack() as work:
        check_output(output, request.overwrite)
        check_compression(request.scene.compress)  # what is missing should be told before the work, not after it
        check_extras(request.exports)
        if request.state.folder is not None and request.state.folder.is_file():
            raise InputError(f"`state={request.state.folder}` is a file: name a folder")
        if request.georeference:
            check_georeference()
        paths = find_footage(request.inputs, request.footage.recursive)
        if request.footage.masks is not None:
            paths = without_masks(Path(request.footage.masks), paths)
            if request.engine is Engine.UPSTREAM:
                raise InputError("`masks`: the published engine has none; leave `masks` or `engine=upstream` out")
        if any(map(is_clip, paths)):
            frames = work.enter_context(scratch_folder(output, "frames"))
            paths = read_clips(paths, request.footage, frames, progress)
        if request.footage.masks is not None:  # and neither should masks that are missing
            find_masks(Path(request.footage.masks), paths, clips_of(paths))
        # a pairs file that is missing should not wait for the model
        pairs = plan_pairs(request.options.scene_graph, paths, request.options.seed)
        store = pair_store(request, output, tell)
        if request.engine is Engine.UPSTREAM:
            result = _reconstruct_upstream(paths, pairs, request, tell)
        else:
            result = _reconstruct_native(paths, pairs, request, output, load_model(), progress, tell, store)
        if request.georeference:
            result, misplaced = _placed(result, request)
        writing = perf_counter()
        seconds = {"Set up and read images": writing - start - sum(result.seconds.values()), **result.seconds}
        progress(WRITING, 0, 1)
        statistics = result.save(
            output,
            request.scene,
            overwrite=request.overwrite,
            exports=request.exports,
            photos=request.photos,
            report=request.report,
            details={
                "arguments": list(request.arguments),
                "inputs": list(request.inputs),
                "options": {name: plain(value) for name, value in request.flags.items()},
                "seconds": seconds,
                "peak_memory_bytes": _peak_memory(result),
                "warnings": warnings,
            },
        )
        if request.state.folder is None and not request.state.keep:
            store.delete()
        progress(WRITING, 1, 1)
        seconds = {**seconds, WRITING: perf_counter() - writing}
    return WrittenScene(result, statistics, output, seconds, _peak_memory(result), misplaced)


def state_folder(output: Path) -> Path:
    """Where a run keeps what its pairs leave, unless it is told otherwise."""
    beside = output.resolve()
    return beside.with_name(f".{beside.name}.state")


def pair_store(request: ReconstructRequest, output: Path, tell: Callable[[str], None] | None = None) -> PairStore:
    """Where the pairs of a request are kept: in the folder that it names, or in a hidden one beside the output.

    tell  hears of pairs that are there
    """
    state = request.state
    named = state.folder is not None or state.keep
    return PairStore(
        state.folder or state_folder(output),
        resume=state.resume,
        min_seconds=0.0 if named else _LEAST_WORTH_KEEPING_S,
        report=tell,
    )


def _reconstruct_native(
    paths: Sequence[Path],
    pairs: Sequence[tuple[int, int]] | None,
    request: ReconstructRequest,
    output: Path,
    model: Model,
    progress: Progress,
    tell: Callable[[str], None],
    store: PairStore,
) -> Reconstruction:
    """Our own engine, after a look at the room on the disk and a word on the memory that the work will take."""
    views = load_images(paths, model, request.model.image_size, progress, request.footage)
    if request.georeference:
        check_fixes([view.gps for view in views], [str(view.path) for view in views])
    overlapping = _OVERLAPPING * len(views)
    num_pairs = overlapping if pairs is None else len(pairs)
    subsample = request.options.alignment.subsample
    num_matches = estimate_matches(views, min(num_pairs, overlapping), subsample)
    result_bytes = _result_bytes(views, num_matches, request.scene, request.exports)
    check_output(output, request.overwrite, result_bytes)
    options = request.options
    memory = estimate_memory(model, views, num_pairs, subsample, options.batch_size, options.refinement)
    chosen_by = "time and similarity" if any(view.frame for view in views) else "similarity"
    shown = f"pairs chosen by {chosen_by}" if pairs is None else counted(num_pairs, "pair")
    height, width = views[0].shape
    tell(
        f"{counted(len(views), 'image')} of about {width}x{height}, {shown}, "
        f"estimated {'RAM' if model.device.type == 'cpu' else 'GPU memory'} {byte_count(memory)}"
    )
    store.reserve_bytes = result_bytes
    return run_pipeline(views, model, request.options, progress, pairs, store)


def _result_bytes(
    views: Sequence[View], num_matches: float, scene: SceneOptions, exports: Sequence[ExportFormat]
) -> int:
    """Room that the result takes, to be told of a full disk before the work and not after it."""
    copies = (1 + len(exports)) * sum(view.path.stat().st_size for view in views if view.path.exists())
    return copies + expected_bytes(sum(view.shape[0] * view.shape[1] for view in views), int(num_matches), scene)


def _reconstruct_upstream(
    paths: Sequence[Path],
    pairs: Sequence[tuple[int, int]] | None,
    request: ReconstructRequest,
    tell: Callable[[str], None],
) -> Reconstruction:
    """The published code: its own network, matching and alignment on the same photos and weights."""
    model = request.model
    if model.revision is not None:
        raise InputError("`revision`: the published engine loads the newest; name a downloaded folder as `model_name`")
    name = model.model_name or DEFAULT_MODEL
    device = resolve_device(model.device)
    tell(f"Published engine, model {name} on {device}; its matches are not verified")
    return reconstruct_upstream(paths, pairs, request.options, name, device, model.image_size)


def _peak_memory(result: Reconstruction) -> dict[str, float]:
    return peak_memory(torch.device(result.model.device if result.model else "cpu"))


def _placed(result: Reconstruction, request: ReconstructRequest) -> tuple[Reconstruction, InputError | None]:
    """The georeferenced result; or what speaks against it, and the result as it was, which is not lost for that."""
    try:
        return result.georeferenced(request.scene, request.options.seed), None
    except InputError as error:
        return result.with_others_georeferenced(request.scene, request.options.seed), error
