"""Accuracy of cameras on sets of photo files: rendered ones of several kinds, and folders with known cameras.

    python -m benchmarks.cameras --output FOLDER                                   every kind but `large`, ten seeds
    python -m benchmarks.cameras --sets orbit wide --seeds 3 --output FOLDER --colmap
    python -m benchmarks.cameras --photos DIR --output FOLDER                      DIR holds photos and a truth.json
    ... --variant aligned:refinement=none --variant refined:refinement=default     several ways over the same photos

Rendered photos are kept in FOLDER/photos/SET/SEED and used again. A variant is NAME:KEY=VALUE,KEY=VALUE with the
fields of ReconstructionOptions as keys, dots for those within (alignment.niter_fine=500), and none, true, false,
default (the option's own class with its defaults), numbers or words as values.

Prints for each set and variant every scene and the median over scenes: photos registered, medians of the errors of
relative rotations and directions of motion, area under the accuracy curve up to 1 and 5 degrees, ATE, error of the
focal lengths (median and worst) and seconds; then how the variants differ from the first on the same photos. A
reconstruction that fails counts as none of its photos registered. All figures go to FOLDER/cameras.json.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.accuracy import FIRST_SEED
from benchmarks.photo_sets import SETS, TRUTH, write_sets
from mast3r_sfm.errors import InputError, Mast3rSfmError
from mast3r_sfm.evaluation import TrueCamera, evaluate_views, read_truth
from mast3r_sfm.images.finding import find_images
from mast3r_sfm.model.checkpoint import Model, load_model
from mast3r_sfm.options import ReconstructionOptions
from mast3r_sfm.pipeline import load_images, reconstruct
from mast3r_sfm.reconstruction import versions
from mast3r_sfm.types import ReconstructedView

COLMAP = "colmap"
NAN = float("nan")


@dataclass(frozen=True)
class Row:
    """One variant on one set of photos. Angles in degrees, shares in [0, 1]; nan where there is nothing to measure.

    rotation_deg, direction_deg, auc_1, auc_5, ate   as in `evaluation.Evaluation`
    focal, focal_worst   median and largest |f / f true - 1| of the registered photos
    seconds              of each stage
    error                why the reconstruction failed, if it did
    """

    set: str
    scene: str
    variant: str
    images: int
    registered: int
    rotation_deg: float
    direction_deg: float
    auc_1: float
    auc_5: float
    ate: float
    focal: float
    focal_worst: float
    seconds: Mapping[str, float]
    error: str | None = None

    @property
    def total_seconds(self) -> float:
        return sum(self.seconds.values())


@dataclass(frozen=True)
class Scene:
    """A folder of photos and what is known of their cameras, by file name."""

    set: str
    name: str
    folder: Path
    truth: Mapping[str, TrueCamera]

    @classmethod
    def read(cls, set_name: str, name: str, folder: Path) -> Scene:
        return cls(set_name, name, folder, read_truth(folder / TRUTH))

    @property
    def photos(self) -> list[Path]:
        """The photos whose cameras are known, in the order of their names."""
        return [path for path in find_images([self.folder]) if path.name in self.truth]

    def has_one_camera(self) -> bool:
        """Whether all photos have the same size and true intrinsics."""
        intrinsics = [camera.K for camera in self.truth.values()]
        if intrinsics[0] is None or any(K is None or not np.allclose(K, intrinsics[0]) for K in intrinsics):
            return False
        sizes = set()
        for photo in self.photos:
            with Image.open(photo) as image:
                sizes.add(image.size)
        return len(sizes) == 1


# ------------------------------------------------------------------ variants
def parse_variant(text: str, base: ReconstructionOptions) -> tuple[str, ReconstructionOptions]:
    """Name and options of `NAME` or `NAME:KEY=VALUE,...`. Raises InputError for keys that are no options."""
    name, _, overrides = text.partition(":")
    return name, with_overrides(base, overrides)


def with_overrides(options: ReconstructionOptions, text: str) -> ReconstructionOptions:
    """The options with `KEY=VALUE,...` instead of their own values; see the module for what these may be."""
    for one in filter(None, text.split(",")):
        key, equals, value = one.partition("=")
        if not equals:
            raise InputError(f"`{one}`: an option is KEY=VALUE")
        options = _replaced(options, key.split("."), value)
    return options


def _replaced(options: Any, path: Sequence[str], value: str) -> Any:
    name, *deeper = path
    names = [one.name for one in fields(options)]
    if name not in names:
        raise InputError(f"`{name}` is no option of {type(options).__name__}; it has {', '.join(names)}")
    kind = typing.get_type_hints(type(options))[name]
    own_class = next(
        (one for one in (kind, *typing.get_args(kind)) if isinstance(one, type) and is_dataclass(one)), None
    )
    if not deeper:
        return replace(options, **{name: own_class() if value == "default" and own_class else _parsed(value)})
    inner = getattr(options, name)
    if inner is None and own_class is not None:
        inner = own_class()
    if not is_dataclass(inner):
        raise InputError(f"`{name}` has no options within, so not `{'.'.join(path)}`")
    return replace(options, **{name: _replaced(inner, deeper, value)})


def _parsed(value: str) -> Any:
    words = {"none": None, "true": True, "false": False}
    if value.lower() in words:
        return words[value.lower()]
    for number in (int, float):
        try:
            return number(value)
        except ValueError:
            continue
    return value


# ------------------------------------------------------------------ measuring
def measure(
    scene: Scene, variant: str, run: Callable[[], tuple[Sequence[ReconstructedView], Mapping[str, float]]]
) -> Row:
    """Runs and evaluates a reconstruction of a scene."""
    count, start = len(scene.photos), time.perf_counter()
    try:
        views, seconds = run()
    except Mast3rSfmError as error:
        spent = {"until it failed": time.perf_counter() - start}
        return Row(
            scene.set, scene.name, variant, count, 0, 180.0, 180.0, 0.0, 0.0, NAN, NAN, NAN, spent, error=str(error)
        )  # fmt: skip
    found = evaluate_views(views, scene.truth)
    return Row(
        scene.set,
        scene.name,
        variant,
        found.num_images,
        found.num_registered,
        found.rotation_deg,
        found.direction_deg,
        found.auc[1],
        found.auc[5],
        found.ate,
        found.focal,
        _worst_focal(views, scene.truth),
        seconds,
    )


def _worst_focal(views: Sequence[ReconstructedView], truth: Mapping[str, TrueCamera]) -> float:
    errors = [
        abs(view.K_original[0, 0] / np.mean(np.diag(K)[:2]) - 1)
        for view in views
        if view.registered and (camera := truth.get(Path(view.file).name)) and (K := camera.K) is not None
    ]
    return float(max(errors, default=NAN))


def run_ours(
    scene: Scene, model: Model, options: ReconstructionOptions
) -> tuple[Sequence[ReconstructedView], Mapping[str, float]]:
    """Views and seconds of each stage of the library on the files of a scene."""
    start = time.perf_counter()
    images = load_images(scene.photos, model)
    reading = time.perf_counter() - start
    result = reconstruct(images, model, options)
    return result.views, {"Read images": reading, **result.seconds}


# ------------------------------------------------------------------ showing
COLUMNS = "registered  rotation  direction  AUC@1  AUC@5     ATE %  focal %  worst %  seconds"


def shown(row: Row) -> str:
    return (
        f"{row.registered:4d} of {row.images:<3d} {row.rotation_deg:8.3f}  {row.direction_deg:9.3f}  "
        f"{100 * row.auc_1:5.1f}  {100 * row.auc_5:5.1f}  {100 * row.ate:8.3f}  {100 * row.focal:7.2f}  "
        f"{100 * row.focal_worst:7.2f}  {row.total_seconds:7.1f}"
    )


def median_row(rows: Sequence[Row]) -> Row:
    """Medians over the rows of one variant (of those that have a figure); images and registered photos are summed."""

    def median(values: Iterable[float]) -> float:
        finite = [value for value in values if np.isfinite(value)]
        return float(np.median(finite)) if finite else NAN

    measured = ("rotation_deg", "direction_deg", "auc_1", "auc_5", "ate", "focal", "focal_worst")
    medians: dict[str, Any] = {name: median(getattr(row, name) for row in rows) for name in measured}
    stages = list(dict.fromkeys(stage for row in rows for stage in row.seconds))
    return replace(
        rows[0],
        scene="median",
        images=sum(row.images for row in rows),
        registered=sum(row.registered for row in rows),
        seconds={stage: median(row.seconds.get(stage, NAN) for row in rows) for stage in stages},
        error=None,
        **medians,
    )


def differences(first: Sequence[Row], other: Sequence[Row]) -> dict[str, float]:
    """How `other` differs from `first` scene by scene: median and worst change (up is worse) of rotation and ATE."""
    changes = {}
    for name in ("rotation_deg", "ate"):
        by_scene = {row.scene: getattr(row, name) for row in first}
        change = np.array([getattr(row, name) - by_scene[row.scene] for row in other if row.scene in by_scene])
        change = change[np.isfinite(change)]
        changes[f"{name}_median"] = float(np.median(change)) if len(change) else NAN
        changes[f"{name}_worst"] = float(change.max()) if len(change) else NAN
    return changes


def summarise(rows: Sequence[Row], variants: Sequence[str]) -> list[str]:
    """Lines on one set: medians and seconds by stage of each variant, and differences from the first."""
    width = max(map(len, variants))
    by_variant = {variant: [row for row in rows if row.variant == variant] for variant in variants}
    lines = []
    for variant, own in by_variant.items():
        middle = median_row(own)
        stages = ", ".join(f"{stage} {seconds:.1f}" for stage, seconds in middle.seconds.items())
        lines += [f"  {'median':<12} {variant:<{width}}  {shown(middle)}", f"  {'':<12} {variant}: {stages} s"]
    for variant in variants[1:]:
        change = differences(by_variant[variants[0]], by_variant[variant])
        lines.append(
            f"  {variant} minus {variants[0]}: rotation median {change['rotation_deg_median']:+.3f} worst "
            f"{change['rotation_deg_worst']:+.3f} deg, ATE median {100 * change['ate_median']:+.3f} worst "
            f"{100 * change['ate_worst']:+.3f} %"
        )
    return lines


def write_json(path: Path, rows: Sequence[Row], variants: Sequence[str], settings: Mapping[str, Any]) -> None:
    sets = list(dict.fromkeys(row.set for row in rows))
    medians = [
        asdict(median_row(own))
        for name in sets
        for variant in variants
        if (own := [row for row in rows if (row.set, row.variant) == (name, variant)])
    ]
    content = {"settings": settings, "versions": versions(), "rows": [asdict(row) for row in rows], "medians": medians}
    path.write_text(json.dumps(_without_nan(content), indent=1) + "\n")


def _without_nan(value: Any) -> Any:
    """The same with None for nan, which JSON does not have."""
    if isinstance(value, Mapping):
        return {key: _without_nan(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(one) for one in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value


# ------------------------------------------------------------------ the command
def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python -m benchmarks.cameras", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--sets", nargs="*", choices=SETS, default=None, help="kinds of rendered sets")
    made.add_argument("--photos", nargs="*", type=Path, default=[], metavar="DIR", help="folders with a truth.json")
    made.add_argument("--seeds", type=int, default=10, help="scenes of each kind")
    made.add_argument("--first-seed", type=int, default=FIRST_SEED)
    made.add_argument("--output", type=Path, required=True, metavar="FOLDER")
    made.add_argument("--variant", action="append", metavar="NAME:KEY=VALUE,...", help="repeat it for several")
    made.add_argument("--reconstruct-options", default="", metavar="KEY=VALUE,...", help="of all variants")
    made.add_argument("--colmap", action="store_true", help="COLMAP as one more variant")
    made.add_argument("--render-only", action="store_true")
    made.add_argument("--model-name", default="small")
    made.add_argument("--device", default="auto")
    made.add_argument("--precision", default="auto")
    made.add_argument("--processes", type=int, default=1, help="that render, where the device is the CPU")
    made.add_argument("--threads", type=int, default=None)
    made.add_argument("--shrink", type=int, default=1, help="divide all sizes of rendered photos by this")
    return made


def main(arguments: Sequence[str] | None = None) -> None:
    command = parser()
    given = command.parse_args(arguments)
    if given.threads:
        torch.set_num_threads(given.threads)
    try:
        base = with_overrides(ReconstructionOptions(), given.reconstruct_options)
        variants = dict(parse_variant(text, base) for text in given.variant or ["default"])
    except InputError as error:
        command.error(str(error))
    names = [*variants, *([COLMAP] if given.colmap else [])]
    kinds = given.sets if given.sets is not None else [] if given.photos else [name for name in SETS if name != "large"]
    model = load_model(given.model_name, given.device, given.precision)
    jobs = [
        (kind, seed, given.output / "photos" / kind / str(seed))
        for kind in kinds
        for seed in range(given.first_seed, given.first_seed + given.seeds)
    ]
    write_sets(jobs, str(model.device), given.processes, given.shrink)
    if given.render_only:
        return
    scenes = [Scene.read(kind, str(seed), folder) for kind, seed, folder in jobs]
    scenes += [Scene.read(folder.name, folder.name, folder) for folder in given.photos]
    settings = {name: str(value) for name, value in vars(given).items()}
    width = max(map(len, names))
    rows: list[Row] = []
    for kind in dict.fromkeys(scene.set for scene in scenes):
        print(f"{kind}\n  {'scene':<12} {'variant':<{width}}  {COLUMNS}", flush=True)
        for scene in (scene for scene in scenes if scene.set == kind):
            for name in names:
                row = measure(scene, name, _runner(scene, name, model, variants, given.threads))
                rows.append(row)
                print(f"  {scene.name:<12} {name:<{width}}  {shown(row)}", flush=True)
                if row.error:
                    logging.warning("%s %s, %s: %s", scene.set, scene.name, name, row.error)
            write_json(given.output / "cameras.json", rows, names, settings)
        print("\n".join(summarise([row for row in rows if row.set == kind], names)), flush=True)


def _runner(
    scene: Scene, name: str, model: Model, variants: Mapping[str, ReconstructionOptions], threads: int | None
) -> Callable[[], tuple[Sequence[ReconstructedView], Mapping[str, float]]]:
    if name in variants:
        return lambda: run_ours(scene, model, variants[name])
    from benchmarks.colmap import run_colmap

    return lambda: run_colmap(scene.photos, scene.has_one_camera(), threads or -1)


if __name__ == "__main__":
    main()
