"""What a person asks of each command, with every value parsed: built in `cli`, carried out in `commands`.

A field's default and help text are what the command line shows; those of nested options stand in `mast3r_sfm.options`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mast3r_sfm.options import (
    Device,
    Engine,
    ExportFormat,
    FootageOptions,
    PhotoOptions,
    Precision,
    ReconstructionOptions,
    SceneOptions,
    ServeLimits,
    choice,
)

EXIT_PARTIAL = 5
"""Exit code of a run that wrote all its files but could not register every image."""

EXIT_DIFFERS = 6
"""Exit code of `compare` when the engines disagree."""

EXIT_SCENE_FAILED = 7
"""Exit code of a batch of which some scene failed."""

EXIT_INTERRUPTED = 130
"""Exit code after Ctrl-C."""


SERVER_PACKAGES = {"fastapi": "fastapi", "uvicorn": "uvicorn", "python_multipart": "python-multipart"}
"""Modules of the extra `serve`, and the packages that have them."""

MIN_TOKEN = 16
"""Characters of a token that nobody guesses."""


@dataclass(frozen=True)
class ModelRequest:
    """Which network, where and how."""

    model_name: str | None = choice(
        None,
        "Hugging Face name, folder, file, or 'small' [default: the published MASt3R 512 model; offline and not "
        "cached: 'small'].",
    )
    revision: str | None = choice(None, "Branch, tag or commit of the model on the hub.")
    image_size: int | None = choice(
        None,
        "Long edge of the network's images [default: the model's own, 512 for the published; for 'small' 320 on a GPU "
        "and for up to nine photos, else 224].",
    )
    device: Device = choice(Device(), "auto, cuda, cuda:N, cpu, mps.")
    precision: Precision = choice(Precision.AUTO, "Of the matrix products.")


@dataclass(frozen=True)
class Display:
    """What is shown."""

    quiet: bool = choice(False, "Show warnings and errors only.")
    debug: bool = choice(False, "Show tracebacks and debug messages.")


@dataclass(frozen=True)
class StateRequest:
    """Where a run keeps what its pairs leave, so that one that is interrupted can go on from there."""

    folder: Path | None = choice(
        None,
        "Keep what pairs leave in this folder, and take what is there [default: beside OUTPUT, for pairs that take a "
        "minute or more, until the result is written].",
    )
    resume: bool = choice(True, "Go on from where an interrupted run left off; --no-resume deletes what it left.")
    keep: bool = choice(
        False, "Keep the folder beside OUTPUT after the result is written, to try other options on the same pairs."
    )


@dataclass(frozen=True)
class ReconstructRequest:
    """`reconstruct`. `output` None: a new folder in outputs/.

    flags      all of them as given, for run.json only, as are the
    arguments  of the command line
    """

    inputs: tuple[str, ...]
    batch: Path | None = choice(
        None, "Instead of --input: each subfolder is a scene, whose result goes into a folder of its name in OUTPUT."
    )
    output: Path | None = choice(None, "Result folder [default: a new one, outputs/<name of the input>].")
    overwrite: bool = choice(False, "Replace an existing result, as a whole.")
    engine: Engine = choice(
        Engine.NATIVE,
        "upstream: the published code, where it is installed (see `compare`); only to compare with.",
    )
    footage: FootageOptions = field(default_factory=FootageOptions)
    model: ModelRequest = field(default_factory=ModelRequest)
    options: ReconstructionOptions = field(default_factory=ReconstructionOptions)
    scene: SceneOptions = field(default_factory=SceneOptions)
    exports: tuple[ExportFormat, ...] = choice(
        (), f"Also write these formats, separated by commas, into OUTPUT: {', '.join(ExportFormat)}."
    )
    photos: PhotoOptions = field(default_factory=PhotoOptions)
    georeference: bool = choice(
        False, "Place the scene on the earth by the photos' GPS positions; exports are in metres east, north and up."
    )
    report: bool = choice(True, "Write report.html, the result in one file for a browser.")
    state: StateRequest = field(default_factory=StateRequest)
    display: Display = field(default_factory=Display)
    flags: Mapping[str, Any] = field(default_factory=dict, compare=False)
    arguments: tuple[str, ...] = ()


@dataclass(frozen=True)
class MatchRequest:
    """`match`. Of the options only the step of the seeds and the check of the matches count."""

    image_a: str
    image_b: str
    output: Path
    overwrite: bool = choice(False, "Replace existing files of an earlier match.")
    model: ModelRequest = field(default_factory=ModelRequest)
    options: ReconstructionOptions = field(default_factory=ReconstructionOptions)
    display: Display = field(default_factory=Display)
    flags: Mapping[str, Any] = field(default_factory=dict, compare=False)


@dataclass(frozen=True)
class ExportRequest:
    """`export`. `changes`: the fields of `SceneOptions` that differ from those of the run.

    With `exports`, the scene is written anew only if there are changes.
    """

    folder: Path
    changes: Mapping[str, Any] = field(default_factory=dict)
    exports: tuple[ExportFormat, ...] = choice(
        (), f"Write these formats, separated by commas, into OUTDIR, not scene.glb: {', '.join(ExportFormat)}."
    )
    photos: PhotoOptions = field(default_factory=PhotoOptions)
    georeference: bool = choice(
        False, "Place the result on the earth by the photos' GPS positions; exports, also later ones, are in metres."
    )
    display: Display = field(default_factory=Display)


@dataclass(frozen=True)
class EvaluateRequest:
    """`evaluate`."""

    folder: Path
    truth: Path
    json_file: Path | None = choice(None, "Write the figures to this file as well.")
    display: Display = field(default_factory=Display)


@dataclass(frozen=True)
class ViewRequest:
    """`view`. `port` None: a free one."""

    folder: Path
    port: int | None = choice(None, "Port on this machine [default: a free one].", minimum=1)
    browser: bool = choice(True, "Open the address in the browser.")
    display: Display = field(default_factory=Display)


@dataclass(frozen=True)
class ServeRequest:
    """`serve`. `token` None: none on this machine alone, else a new one, which is printed."""

    host: str = choice("127.0.0.1", "Address to listen at; any but this machine's own asks for a token.")
    port: int = choice(8000, "Port to listen at.", minimum=1)
    token: str | None = choice(
        None,
        f"What clients have to know, {MIN_TOKEN} characters and more [default: $MAST3R_SFM_TOKEN; a new one, which is "
        "printed, where other machines can ask].",
    )
    output: Path = choice(Path("outputs/serve"), "Folder of the reconstructions; finished ones stay there.")
    limits: ServeLimits = field(default_factory=ServeLimits)
    model: ModelRequest = field(default_factory=ModelRequest)
    browser: bool = choice(False, "Open the page in the browser.")
    display: Display = field(default_factory=Display)


@dataclass(frozen=True)
class CompareRequest:
    """`compare`, which runs both engines."""

    inputs: tuple[str, ...]
    model: ModelRequest = field(default_factory=ModelRequest)
    options: ReconstructionOptions = field(default_factory=ReconstructionOptions)
    display: Display = field(default_factory=Display)
