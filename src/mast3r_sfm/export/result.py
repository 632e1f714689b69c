"""The output folder of a reconstruction, which exists completely or not at all.

Everything is written to a hidden folder beside the output, which takes the output's place by renaming when it is
complete. An existing result makes way by renaming too, and comes back if anything goes wrong.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import re
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mast3r_sfm.errors import EmptySceneError, InputError
from mast3r_sfm.export.cameras import write_cameras
from mast3r_sfm.export.depth import write_depth_maps
from mast3r_sfm.export.files import write_json
from mast3r_sfm.export.folders import (
    DESKTOP_LITTER,
    explained_writing,
    foreign_entry,
    is_mount_point,
    replaced_files,
    replaced_folder,
    scene_folder,
    sibling,
)
from mast3r_sfm.export.formats import OWN_ENTRIES, exporter_of
from mast3r_sfm.export.georeference import georeference_of
from mast3r_sfm.export.glb import SceneStatistics, write_glb
from mast3r_sfm.export.matches import write_matches
from mast3r_sfm.export.orientation import shown_scene
from mast3r_sfm.export.report import MAX_BYTES, write_report
from mast3r_sfm.export.store import load_reconstruction, save_reconstruction
from mast3r_sfm.options import ExportFormat, PhotoOptions, SceneOptions
from mast3r_sfm.types import FRAMES, ReconstructedScene

logger = logging.getLogger(__name__)

SCENE, STORE, RUN, CAMERAS = "scene.glb", "reconstruction.npz", "run.json", "cameras.json"
_TOOL = "mast3r-sfm"
_OWN_ENTRY = re.compile(
    r"reconstruction\.npz|run\.json|cameras\.json|matches\.(npz|png)|(depth|confidence)_\d{3,}\.(npy|png)|scene\.glb|"
    r"frames|scene_\d+|" + "|".join(re.escape(kind.entry) for kind in ExportFormat)
)

_FRAME = re.compile(r".*_\d{6,}\.jpg|\.DS_Store|Thumbs\.db|desktop\.ini")


def expected_bytes(num_pixels: int, num_matches: int, options: SceneOptions) -> int:
    """An upper estimate of the size of a result, for images of `num_pixels` in all."""
    # bytes per pixel of depth and confidence, twice each; of the image; of two pictures; of flags and texture
    maps = 2 * (4 + 4) + 3 + 2 * 3 + 2
    scene_items = min(options.max_points, num_pixels * (1 if options.as_pointcloud else 2))
    report = min(MAX_BYTES, 1_000_000 + num_pixels * 15)
    return num_pixels * maps + scene_items * 24 + num_matches * 2 * 20 + report


def check_output(output: Path, overwrite: bool, needed_bytes: int = 0) -> None:
    """Makes sure, before the computation, that a result can be written to `output`.

    Raises InputError if `output` is a file, a folder with anything else than a result, a result and not `overwrite`,
    a mount point, the current folder, or if the folder that is to hold it cannot be written to or its disk has less
    than `needed_bytes` free.
    """
    output = output.resolve()
    parent = next((folder for folder in output.parents if folder.exists()), output)
    with explained_writing(parent):
        _check_replaceable(output, overwrite)
        probe = sibling(parent / output.name, "probe")
        probe.mkdir()
        probe.rmdir()
        disk = shutil.disk_usage(parent)
    if disk.total and disk.free < needed_bytes:  # some file systems do not tell: all zero
        raise InputError(
            f"The disk of {parent} has {disk.free / 1e6:.0f} MB free, the result takes up to "
            f"{needed_bytes / 1e6:.0f} MB: free some space, or name an `output` on another disk"
        )


@dataclass(frozen=True)
class ResultPart:
    """A scene as it is written: the first of a result into its folder, the others into scene_1, scene_2, ... of it.

    options  of its scene file
    run      content of its `run.json`; "tool" and "scene" are added
    """

    scene: ReconstructedScene
    options: SceneOptions
    run: Mapping[str, Any]


def write_result(
    parts: Sequence[ResultPart],
    output: Path,
    overwrite: bool,
    exports: Sequence[ExportFormat] = (),
    photos: PhotoOptions | None = None,
    report: bool = True,
) -> SceneStatistics:
    """Writes all files of a result to the folder `output`, or leaves everything as it was.

    parts    the result, and the scenes of further groups of its photos
    exports  further formats, each under its own name; `photos` says how photos are written there
    report   whether `report.html` is among the files

    Raises InputError for what `check_output` checks, if the disk is full, if there is no scene to write (empty, or an
    impossible budget), and if an export fails (photos that are gone). In the last two cases everything else is written
    all the same, because `rewrite_scene` and `write_exports` mend it. Of the further scenes such faults are warnings.
    """
    photos = photos or PhotoOptions()
    with replaced_result(output, overwrite) as folder:
        statistics, failed = _write_part(parts[0], folder, output, exports, photos, report)
        for number, part in enumerate(parts[1:], start=1):
            name = scene_folder(number)
            (folder / name).mkdir()
            for error in _write_part(part, folder / name, output / name, exports, photos, report)[1]:
                logger.warning("%s", error)
    if failed or statistics is None:
        raise InputError(". ".join(map(str, failed))) from failed[-1]
    return statistics


def _write_part(
    part: ResultPart,
    folder: Path,
    final: Path,
    exports: Sequence[ExportFormat],
    photos: PhotoOptions,
    report: bool,
) -> tuple[SceneStatistics | None, list[InputError]]:
    """Writes one scene with all that belongs to it, and says what could not be written.

    final  where the folder will be
    """
    scene, options, run = part.scene, part.options, part.run
    failed: list[InputError] = []
    statistics = None
    _keep_frames(scene, folder / FRAMES)
    save_reconstruction(scene, folder / STORE)
    write_depth_maps(scene, folder)
    shown = shown_scene(scene, options)
    write_cameras(scene, folder / CAMERAS, options, shown)
    write_matches(scene, folder / "matches.npz")
    try:
        statistics = write_glb(scene, folder / SCENE, options, shown)
        section = _scene_section(options, statistics)
    except InputError as error:
        failed.append(InputError(_with_cure(error, final)))
        section = {**dataclasses.asdict(options), "error": str(error)}
    for kind in exports:
        try:
            exporter_of(kind)(scene, folder / kind.entry, options, photos, run)
        except InputError as error:
            again = f"{_TOOL} export {final} --export {kind}"
            failed.append(InputError(f"{error}. Everything but the {kind} export is in {final}; for it run: {again}"))
    if report and ExportFormat.REPORT not in exports:
        write_report(scene, folder / ExportFormat.REPORT.entry, options, run, shown)
    write_run(folder, {**run, "scene": section})
    return statistics, failed


def _keep_frames(reconstruction: ReconstructedScene, folder: Path) -> None:
    """Copies the frames of clips into the result, which needs them as it needs photos: nobody else keeps them."""
    gone = []
    for view in reconstruction.views:
        if view.frame is not None:
            folder.mkdir(exist_ok=True)
            try:
                shutil.copyfile(view.path, folder / Path(view.file).name)
            except FileNotFoundError:
                gone.append(view.file)
    if gone:
        logger.warning("%d frame(s) of clips are no longer there and not in the result: %s", len(gone), gone[0])


@contextlib.contextmanager
def replaced_result(output: Path, overwrite: bool) -> Iterator[Path]:
    """A folder to write a whole result to; it becomes `output` when the block ends well, and vanishes otherwise.

    Raises InputError for what `check_output` checks, and if the disk is full.
    """
    output = output.resolve()
    with (
        explained_writing(output.parent),
        replaced_folder(output, lambda: _check_replaceable(output, overwrite)) as staging,
    ):
        yield staging


def write_run(folder: Path, run: Mapping[str, Any]) -> None:
    """Writes `run.json`, which also marks the folder as a result of this tool."""
    write_json(folder / RUN, {**run, "tool": _TOOL})


def read_run(output: Path) -> dict[str, Any]:
    """The content of `run.json`. Raises InputError if `output` is not a result."""
    run = _read_run(output)
    if run is None:
        raise InputError(f"{output} is not a result of {_TOOL}: name the output folder of a finished reconstruction")
    return run


def is_result(folder: Path) -> bool:
    """Whether the folder is a result of this tool."""
    return _read_run(folder) is not None


def read_scene_options(output: Path) -> SceneOptions:
    """The options the scene of a result was written with. Raises InputError if `output` is not a result."""
    scene = read_run(output).get("scene")
    if not isinstance(scene, dict):
        raise InputError(f"{output} is not a result of {_TOOL}: name the output folder of a finished reconstruction")
    names = {field.name for field in dataclasses.fields(SceneOptions)}
    return SceneOptions(**{name: value for name, value in scene.items() if name in names})


def stored_threshold(output: Path) -> float | None:
    """The confidence threshold that the scene of a result was written with; None if it does not say."""
    scene = (_read_run(output) or {}).get("scene")
    value = scene.get("min_conf_thr") if isinstance(scene, dict) else None
    return float(value) if isinstance(value, int | float) else None


def rewrite_scene(output: Path, options: SceneOptions) -> SceneStatistics:
    """Writes the scene of an existing result anew, with other options, and notes them in its `run.json`.

    Raises InputError if `output` is not a result or cannot be written to, or if the scene would be empty. The old
    scene stays then.
    """
    output = output.resolve()
    run = read_run(output)
    reconstruction = load_reconstruction(output / STORE)
    report = ExportFormat.REPORT.entry
    names = (SCENE, CAMERAS, RUN, report) if (output / report).exists() else (SCENE, CAMERAS, RUN)
    with explained_writing(output), replaced_files(output, names) as new:
        shown = shown_scene(reconstruction, options)
        statistics = write_glb(reconstruction, new[SCENE], options, shown)
        write_cameras(reconstruction, new[CAMERAS], options, shown)  # which states the frame of the scene
        if report in new:  # it shows what the scene shows
            write_report(reconstruction, new[report], options, run, shown)
        write_json(new[RUN], {**run, "scene": _scene_section(options, statistics)})
    return statistics


def write_exports(output: Path, exports: Sequence[ExportFormat], photos: PhotoOptions) -> None:
    """Writes further formats of an existing result, each under its own name, where it replaces an earlier one.

    Raises InputError if `output` is not a result or cannot be written to, and as the exporters do. An earlier export
    stays then.
    """
    output = output.resolve()
    run = read_run(output)
    reconstruction, options = load_reconstruction(output / STORE), read_scene_options(output)
    for kind in exports:
        with explained_writing(output):
            exporter_of(kind)(reconstruction, output / kind.entry, options, photos, run)


def georeference_result(output: Path, seed: int = 0) -> ReconstructedScene:
    """Georeferences an existing result: writes its `reconstruction.npz` and `cameras.json` anew. Returns it.

    Raises InputError if `output` is not a result or cannot be written to, and as `georeference_of` does; it stays as it
    was then.
    """
    output = output.resolve()
    options = read_scene_options(output)
    scene = load_reconstruction(output / STORE)
    placed = dataclasses.replace(scene, georeference=georeference_of(scene, options, seed))
    with explained_writing(output), replaced_files(output, (STORE, CAMERAS)) as new:
        save_reconstruction(placed, new[STORE])
        write_cameras(placed, new[CAMERAS], options)
    return placed


def _scene_section(options: SceneOptions, statistics: SceneStatistics) -> dict[str, Any]:
    return {**dataclasses.asdict(options), **dataclasses.asdict(statistics), "share_kept": statistics.share_kept}


def _with_cure(error: InputError, output: Path) -> str:
    suggestion = error.suggested_min_conf_thr if isinstance(error, EmptySceneError) else None
    option = "" if suggestion is None else f" --min-conf-thr {suggestion:.2f}"
    return f"{error}. Everything but the scene is in {output}; for the scene run: {_TOOL} export {output}{option}"


def _read_run(folder: Path) -> dict[str, Any] | None:
    """The `run.json` of a result; None if `folder` is not one."""
    try:
        run = json.loads((folder / RUN).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return run if isinstance(run, dict) and run.get("tool") == _TOOL else None


def _check_replaceable(output: Path, overwrite: bool) -> None:
    """Raises InputError unless `output` does not exist, is an empty folder, or a result that may be replaced."""
    if not output.exists():
        return
    if not output.is_dir():
        raise InputError(f"`output={output}` is a file: name a folder")
    if Path.cwd().is_relative_to(output):
        raise InputError(f"`output={output}` holds the current folder: name a new folder, for example {output}/result")
    if is_mount_point(output):
        raise InputError(
            f"`output={output}` is a mount point, which cannot be replaced as a whole: "
            f"name a folder in it, for example {output}/result"
        )
    entries = {entry.name for entry in output.iterdir()} - DESKTOP_LITTER
    if not entries:
        return
    if _read_run(output) is None:
        raise InputError(f"`output={output}` has files in it that are no result of {_TOOL}: name another folder")
    if not overwrite:
        raise InputError(
            f"`output={output}` already holds a result: name another folder, or replace it by `overwrite=True`"
        )
    foreign = _foreign_entry(output, entries)
    if foreign:
        raise InputError(
            f"`output={output}` holds a result and also {foreign}, which `overwrite=True` would delete: "
            "move it elsewhere, or name another folder"
        )


def _foreign_entry(result: Path, entries: Collection[str]) -> str | None:
    """The first file or folder in a result that is not its own, named from there; None if there is none.

    entries  names in the folder that are looked at
    """
    foreign = sorted(name for name in entries if not _OWN_ENTRY.fullmatch(name))
    for kind, own in OWN_ENTRIES.items():
        if kind.entry in entries and (below := foreign_entry(result / kind.entry, own)) is not None:
            foreign.append(f"{kind.entry}/{below}")
    foreign += [f"{FRAMES}/{path.name}" for path in (result / FRAMES).glob("*") if not _FRAME.fullmatch(path.name)]
    for scene in sorted(result.glob(scene_folder("*"))):
        inside = {entry.name for entry in scene.iterdir()} - DESKTOP_LITTER
        if (below := _foreign_entry(scene, inside)) is not None:
            foreign.append(f"{scene.name}/{below}")
    return foreign[0] if foreign else None
