"""How the verdict of a result separates right ones from wrong ones: 150 sound and 150 spoiled small scenes.

    python -m benchmarks.verdicts --output FOLDER                 renders, reconstructs and judges 300 scenes
    python -m benchmarks.verdicts --output FOLDER --sets orbit mixed --seeds 5
    python -m benchmarks.verdicts --output FOLDER --judge-only    judges what FOLDER/verdicts.json holds anew

Photos are 160x120 (`benchmarks.spoiled_sets`), the network's images 160 pixels wide. A result is right if the error of
its camera centres (ATE, share of the true cameras' extent) is below 1 %, wrong above 5 %. FOLDER/verdicts.json keeps
the evidence and the true and found cameras of every scene. The table counts scenes by verdict, those of even and of odd
seeds apart too: the limits were chosen on the even ones. A right result that left photos out is never good, and stands
in a row of its own.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.spoiled_sets import SOUND, SPOILED
from mast3r_sfm.errors import Mast3rSfmError
from mast3r_sfm.evaluation import evaluate_views
from mast3r_sfm.model.checkpoint import load_model
from mast3r_sfm.options import ReconstructionOptions
from mast3r_sfm.pipeline import load_images, reconstruct
from mast3r_sfm.quality import doubts
from mast3r_sfm.reconstruction import Reconstruction
from mast3r_sfm.types import Level, PairSummary
from mast3r_sfm.verdict.evidence import PairEvidence, SceneEvidence, ViewEvidence, collect_evidence
from mast3r_sfm.verdict.judgement import judge

FIRST_SEED = 810_000
IMAGE_SIZE = 160
RIGHT, WRONG = 0.01, 0.05
CLASSES = ("right", "right, photos left out", "between", "wrong", "nothing came out")
FIELDS = (
    "index", "registered", "refined", "median_reprojection_error_px", "num_matches", "num_track_observations",
    "track_error_px", "focal_std_px", "position_std", "apart_error_px", "num_confirmed", "num_explained",
)  # fmt: skip


def look_at_scene(job: tuple[str, int], device: str) -> dict[str, Any]:
    """Renders and reconstructs one scene; returns its evidence and cameras as JSON values."""
    name, seed = job
    photos = {**SOUND, **SPOILED}[name](seed, device)
    row: dict[str, Any] = {"set": name, "seed": seed, "sound": name in SOUND, "place": photos.place}
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / f"view_{k:02d}.jpg" for k in range(len(photos.pictures))]
        for file, picture in zip(files, photos.pictures, strict=True):
            Image.fromarray(picture).save(file, quality=92)
        model = load_model("small", device, "auto")
        images = load_images(files, model, IMAGE_SIZE)
        row["true"] = [camera.world_from_cam.tolist() for camera in photos.cameras]
        try:
            result = reconstruct(images, model, ReconstructionOptions())
        except Mast3rSfmError as error:
            return row | {"error": str(error)}
    truth = {file.name: camera for file, camera in zip(files, photos.cameras, strict=True)}
    return row | _measured(result) | {"ate": evaluate_views(result.views, truth).ate}


def _measured(result: Reconstruction) -> dict[str, Any]:
    thr = 1.5 if result.model is None or result.model.min_conf_thr is None else result.model.min_conf_thr
    views = []
    for view in result.views:
        values: dict[str, Any] = {name: getattr(view, name) for name in FIELDS}
        kept = {"kept": float((view.conf_clean > thr).mean()), "confident": float((view.conf > thr).mean())}
        views.append(
            values | kept | {"pose": view.world_from_cam.tolist(), "size": view.depth.shape, "f": view.K[0, 0]}
        )
    return {
        "views": views,
        "doubts": doubts(result.views),
        "evidence": asdict(collect_evidence(result.views, result.matches, result.pairs)),
        "pairs": [asdict(pair) for pair in result.pairs],
        "groups": result.groups,
        "seconds": dict(result.seconds),
    }


# ------------------------------------------------------------------ judging what was measured
def judged(row: Mapping[str, Any]) -> Level:
    """The verdict on a scene of `verdicts.json` that came out, by today's limits."""
    found = row["evidence"]
    evidence = SceneEvidence(
        tuple(ViewEvidence(**values) for values in found["views"]),
        tuple(PairEvidence(**values) for values in found["pairs"]),
        found["angle_deg"],
        found["spread"],
        found["straight"],
    )
    names = [f"view_{k:02d}.jpg" for k in range(len(row["views"]))]
    doubted = {int(index): doubt for index, doubt in row["doubts"].items()}
    summaries = [PairSummary(**values) for values in row["pairs"]]
    return judge(names, evidence, doubted, summaries, row["groups"]).overall.level


def class_of(row: Mapping[str, Any]) -> str:
    """One of `CLASSES`, by the truth."""
    if "views" not in row:
        return CLASSES[4]
    if row["ate"] < RIGHT:
        return CLASSES[0 if all(view["registered"] for view in row["views"]) else 1]
    return CLASSES[3 if row["ate"] > WRONG else 2]


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """How many scenes of every class were called what: all, by half of the seeds, and by set; a Markdown table."""
    levels = [judged(row) if "views" in row else None for row in rows]
    parts: list[tuple[str, Callable[[Mapping[str, Any]], bool]]] = [
        ("all", lambda row: True),
        ("even seeds", lambda row: row["seed"] % 2 == 0),
        ("odd seeds", lambda row: row["seed"] % 2 == 1),
    ]
    parts += [(name, partial(_is_of, name)) for name in dict.fromkeys(row["set"] for row in rows)]
    lines = ["| scenes | result | good | doubtful | poor |", "|---|---|---|---|---|"]
    for title, belongs in parts:
        counts = Counter((class_of(row), level) for row, level in zip(rows, levels, strict=True) if belongs(row))
        for kind in CLASSES[:4]:
            if any(counts[kind, level] for level in Level):
                lines.append(f"| {title} | {kind} | " + " | ".join(str(counts[kind, level]) for level in Level) + " |")
        if counts[CLASSES[4], None]:
            lines.append(f"| {title} | {CLASSES[4]}: {counts[CLASSES[4], None]} | | | |")
    return "\n".join(lines)


def _is_of(name: str, row: Mapping[str, Any]) -> bool:
    return bool(row["set"] == name)


def main(arguments: Sequence[str] | None = None) -> None:
    command = argparse.ArgumentParser(
        prog="python -m benchmarks.verdicts", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    command.add_argument("--output", type=Path, required=True)
    command.add_argument("--sets", nargs="*", choices=[*SOUND, *SPOILED])
    command.add_argument("--seeds", type=int, default=None, help="scenes of each kind (150 of each sort)")
    command.add_argument("--first-seed", type=int, default=FIRST_SEED)
    command.add_argument("--device", default="cpu")
    command.add_argument("--processes", type=int, default=1)
    command.add_argument("--judge-only", action="store_true", help="judge what verdicts.json of the folder holds")
    given = command.parse_args(arguments)
    kept = given.output / "verdicts.json"
    if given.judge_only:
        if not kept.is_file():
            command.error(f"{kept} does not exist: run without --judge-only first")
        print(table(json.loads(kept.read_text())))
        return
    jobs = []
    for sets in (SOUND, SPOILED):
        share = [150 // len(sets) + (k < 150 % len(sets)) for k in range(len(sets))]
        for name, count in zip(sets, share, strict=True):
            if given.sets is None or name in given.sets:
                jobs += [(name, given.first_seed + k) for k in range(given.seeds or count)]
    given.output.mkdir(parents=True, exist_ok=True)
    context = multiprocessing.get_context("spawn")
    rows = []
    with ProcessPoolExecutor(given.processes, context, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        for row in pool.map(partial(look_at_scene, device=given.device), jobs):
            rows.append(row)
            print(row["set"], row["seed"], row.get("error") or f"ATE {100 * row['ate']:.2f} %", flush=True)
            kept.write_text(json.dumps(rows, default=_plain) + "\n")
    print(table(rows))


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else list(value)


if __name__ == "__main__":
    main()
