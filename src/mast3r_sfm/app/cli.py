"""The command line: from arguments to one typed request per command. Heavy imports happen inside the commands."""

from __future__ import annotations

import copy
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import click

from mast3r_sfm._version import __version__
from mast3r_sfm.app.click_options import Command, option, options
from mast3r_sfm.app.flags import in_words
from mast3r_sfm.app.requests import (
    EXIT_DIFFERS,
    EXIT_INTERRUPTED,
    EXIT_PARTIAL,
    EXIT_SCENE_FAILED,
    CompareRequest,
    Display,
    EvaluateRequest,
    ExportRequest,
    MatchRequest,
    ModelRequest,
    ReconstructRequest,
    ServeRequest,
    StateRequest,
    ViewRequest,
)
from mast3r_sfm.errors import InputError, Mast3rSfmError
from mast3r_sfm.options import (
    AlignmentConfig,
    CameraModel,
    Compression,
    DenseOptions,
    Engine,
    ExportFormat,
    FootageOptions,
    IntrinsicsGroups,
    PhotoOptions,
    Precision,
    ReconstructionOptions,
    RefinementOptions,
    SceneOptions,
    ServeLimits,
    VerificationLimits,
)

EXIT_CODES = f"""\b
Exit codes: 0 done, 1 unexpected failure (or `doctor`: a reconstruction cannot run),
2 wrong usage or input, 3 model not found or unusable, 4 no reconstruction,
{EXIT_PARTIAL} done but some images did not connect, {EXIT_DIFFERS} `compare`: the engines differ,
{EXIT_SCENE_FAILED} `--batch`: a scene failed, {EXIT_INTERRUPTED} interrupted."""


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command line and ends the process with the documented exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _interrupt)  # as `docker stop` and job schedulers send it
        if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:  # nohup has it ignored
            signal.signal(signal.SIGHUP, _interrupt)  # the terminal is gone
    # Read when torch is loaded. Threads that spin while they wait for others cost a busy machine twenty times the time.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        code = cli.main(arguments, prog_name="mast3r-sfm", standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except click.exceptions.Exit as error:
        sys.exit(error.exit_code)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)  # the help: the one message of several lines
        sys.exit(2)
    except click.UsageError as error:
        where = f" (see {error.ctx.command_path} -h)" if error.ctx else ""
        _fail(error.format_message() + where, 2)
    except click.ClickException as error:
        _fail(error.format_message(), 2)
    except (KeyboardInterrupt, click.Abort):
        _fail("interrupted; no unfinished result was left behind", EXIT_INTERRUPTED)
    except BrokenPipeError:
        sys.exit(1)
    except Exception as error:
        if "--debug" in arguments:
            traceback.print_exc()
        _fail(in_words(error), error.exit_code if isinstance(error, Mast3rSfmError) else 1)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def _fail(message: str, code: int) -> NoReturn:
    one_line = " ".join(message.split())
    click.echo(f"Error: {one_line}", err=True)
    sys.exit(code)


SCENE_FLAGS = (
    "min_conf_thr",
    "as_pointcloud",
    "max_points",
    "clean_depth",
    "scene",
    "up",
    "texture_size",
    "compress",
)
"""Fields of `SceneOptions` that the command line offers."""

FOOTAGE_FLAGS = ("recursive", "fps", "max_frames", "masks")
"""Fields of `FootageOptions`."""

LIMIT_FLAGS = ("max_upload_mb", "max_photos", "max_minutes", "max_waiting")
"""Fields of `ServeLimits`."""


def _input_option(required: bool) -> Callable[[Command], Command]:
    return click.option(
        "--input",
        "inputs",
        multiple=True,
        required=required,
        metavar="PATH",
        help="Folder, photo, clip (needs the extra `video`) or quoted glob; may be given several times.",
    )


model_options = options(
    option(ModelRequest, "model_name", metavar="NAME"),
    option(ModelRequest, "revision", metavar="REV"),
    option(ModelRequest, "image_size", metavar="PIXELS"),
    option(ModelRequest, "device"),
    option(ModelRequest, "precision"),
)
display_options = options(option(Display, "quiet"), option(Display, "debug"))
verify_option = click.option(
    "--verify-matches/--no-verify-matches",
    default=ReconstructionOptions().verification is not None,
    show_default=True,
    help="Drop matches that the predicted geometry denies; the published method keeps them.",
)
photo_options = options(option(PhotoOptions, "undistort"), option(PhotoOptions, "max_image_size"))


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110}, epilog=EXIT_CODES)
@click.version_option(__version__, prog_name="mast3r-sfm")
def cli() -> None:
    """Photos of a scene in; cameras, depth and a 3D scene out."""


@cli.command()
@_input_option(required=False)
@option(ReconstructRequest, "batch")
@option(ReconstructRequest, "output")
@options(*(option(FootageOptions, name) for name in FOOTAGE_FLAGS[:-1]))
@option(FootageOptions, "masks", metavar="DIR")
@model_options
@option(ReconstructionOptions, "scene_graph")
@option(AlignmentConfig, "niter_coarse", "--niter", "niter")
@click.option("--no-refine", is_flag=True, help="Stop after the first stage (3D loss, intrinsics fixed).")
@option(ReconstructionOptions, "intrinsics_groups")
@option(AlignmentConfig, "shared_intrinsics")
@click.option(
    "--refine-cameras/--no-refine-cameras",
    default=ReconstructionOptions().refinement is not None,
    show_default=True,
    help="Adjust the aligned cameras to local features at the photos' resolution.",
)
@option(RefinementOptions, "camera_model")
@option(RefinementOptions, "max_feature_size")
@click.option(
    "--agree-depth/--no-agree-depth",
    default=ReconstructionOptions().dense is not None,
    show_default=True,
    help="Smooth depth that the views agree on, and confidence by that; the published method has neither.",
)
@option(ReconstructionOptions, "sky")
@option(AlignmentConfig, "subsample")
@option(AlignmentConfig, "matching_conf_thr")
@verify_option
@option(SceneOptions, "min_conf_thr", metavar="CONF")
@option(SceneOptions, "as_pointcloud")
@option(SceneOptions, "max_points")
@option(SceneOptions, "clean_depth")
@option(SceneOptions, "scene")
@option(SceneOptions, "up")
@option(SceneOptions, "texture_size", metavar="PIXELS")
@option(SceneOptions, "compress")
@option(ReconstructRequest, "exports", "--export", "exports", metavar="LIST")
@option(ReconstructRequest, "georeference")
@photo_options
@option(ReconstructRequest, "report")
@option(StateRequest, "folder", "--state", "state")
@option(StateRequest, "resume")
@option(StateRequest, "keep", "--keep-state", "keep_state")
@option(ReconstructionOptions, "batch_size", metavar="N")
@option(ReconstructionOptions, "seed")
@option(ReconstructRequest, "engine")
@option(ReconstructRequest, "overwrite")
@display_options
def reconstruct(**flags: Any) -> int:
    """Reconstruct a scene from photos and clips.

    Writes scene.glb, report.html, depth and confidence maps, cameras.json, matches.npz, reconstruction.npz and
    run.json.
    """
    from mast3r_sfm.app import commands

    if bool(flags["inputs"]) == (flags["batch"] is not None):
        raise click.UsageError("Name the photos by --input, or a folder of scenes by --batch.")
    alignment = AlignmentConfig.within(
        flags["niter"],
        subsample=flags["subsample"],
        matching_conf_thr=flags["matching_conf_thr"],
        **({"niter_fine": 0} if flags["no_refine"] else {}),
    )
    request = ReconstructRequest(
        inputs=flags["inputs"],
        batch=flags["batch"],
        output=flags["output"],
        overwrite=flags["overwrite"],
        engine=Engine(flags["engine"]),
        footage=FootageOptions(**{name: flags[name] for name in FOOTAGE_FLAGS}),
        model=_model_request(flags),
        options=ReconstructionOptions(
            scene_graph=flags["scene_graph"],
            batch_size=flags["batch_size"],
            verification=_verification(flags),
            alignment=alignment,
            intrinsics_groups=_intrinsics_groups(flags),
            refinement=_refinement(flags),
            dense=DenseOptions() if flags["agree_depth"] else None,
            sky=flags["sky"],
            seed=flags["seed"],
        ),
        scene=SceneOptions(**{name: flags[name] for name in SCENE_FLAGS}),
        exports=_exports(flags),
        photos=_photos(flags),
        georeference=flags["georeference"],
        report=flags["report"],
        state=StateRequest(flags["state"], flags["resume"], flags["keep_state"]),
        display=_display(flags),
        flags={name: value for name, value in flags.items() if name not in ("inputs", "batch", "output")},
        arguments=tuple(sys.argv[1:]),
    )
    if request.batch is not None:
        return commands.reconstruct_batch(request)
    return EXIT_PARTIAL if commands.reconstruct(request) else 0


@cli.command()
@click.argument("image_a", metavar="A")
@click.argument("image_b", metavar="B")
@click.option("--output", type=click.Path(path_type=Path), required=True, metavar="DIR", help="Result folder.")
@model_options
@option(AlignmentConfig, "subsample", help="Grid step of the seeds, pixels.")
@verify_option
@option(MatchRequest, "overwrite")
@display_options
def match(**flags: Any) -> None:
    """Match two images: matches.npz, a picture of the matches, depth and confidence of both."""
    from mast3r_sfm.app import commands

    request = MatchRequest(
        image_a=flags["image_a"],
        image_b=flags["image_b"],
        output=flags["output"],
        overwrite=flags["overwrite"],
        model=_model_request(flags),
        options=ReconstructionOptions(
            verification=_verification(flags), alignment=AlignmentConfig(subsample=flags["subsample"])
        ),
        display=_display(flags),
        flags={name: value for name, value in flags.items() if name not in ("image_a", "image_b", "output")},
    )
    commands.match(request)


OF_THE_RUN = {"default": None, "show_default": False}


@cli.command()
@click.argument("folder", type=click.Path(path_type=Path), metavar="OUTDIR")
@option(SceneOptions, "min_conf_thr", metavar="CONF", help="[default: that of the run]")
@option(SceneOptions, "as_pointcloud", "--as-pointcloud/--as-mesh", help="[default: that of the run]", **OF_THE_RUN)
@option(SceneOptions, "max_points", help="[default: that of the run]", **OF_THE_RUN)
@option(SceneOptions, "clean_depth", help="[default: that of the run]", **OF_THE_RUN)
@option(SceneOptions, "scene", help="[default: that of the run]", **OF_THE_RUN)
@option(SceneOptions, "up", help="[default: that of the run]", **OF_THE_RUN)
@option(SceneOptions, "texture_size", metavar="PIXELS", help="[default: that of the run]", **OF_THE_RUN)
@option(SceneOptions, "compress", help="[default: that of the run]", **OF_THE_RUN)
@option(ExportRequest, "exports", "--export", "exports", metavar="LIST")
@option(ExportRequest, "georeference")
@photo_options
@display_options
def export(folder: Path, **flags: Any) -> None:
    """Write scene.glb of a finished result anew, or another format of it, without the network."""
    from mast3r_sfm.app import commands

    changes = {name: flags[name] for name in SCENE_FLAGS if flags[name] is not None}
    if "scene" in changes or changes.get("compress") == Compression.DRACO:  # which says something of meshes alone
        changes.setdefault("as_pointcloud", False)
    commands.export(
        ExportRequest(folder, changes, _exports(flags), _photos(flags), flags["georeference"], _display(flags))
    )


@cli.command()
@click.argument("folder", type=click.Path(path_type=Path), metavar="OUTDIR")
@option(ViewRequest, "port", type=click.IntRange(1, 65535))
@option(ViewRequest, "browser")
@display_options
def view(folder: Path, **flags: Any) -> None:
    """Show a finished result in the browser: the page of report.html, with all points and large pictures.

    Served on this machine only; Ctrl-C ends it, with exit code 0.
    """
    from mast3r_sfm.app import commands

    commands.view(ViewRequest(folder, flags["port"], flags["browser"], _display(flags)))


@cli.command()
@option(ServeRequest, "host", metavar="ADDRESS")
@option(ServeRequest, "port", type=click.IntRange(1, 65535))
@option(ServeRequest, "token", metavar="TOKEN", envvar="MAST3R_SFM_TOKEN")
@option(ServeRequest, "output")
@options(*(option(ServeLimits, name) for name in LIMIT_FLAGS))
@model_options
@option(ServeRequest, "browser")
@display_options
def serve(**flags: Any) -> None:
    """Take photos by a page in the browser or by a REST API, and reconstruct them with a model that stays loaded.

    Ctrl-C ends it, with exit code 0; what was not finished is taken up by the next start. Needs the extra `serve`.
    """
    from mast3r_sfm.app import commands

    commands.serve(
        ServeRequest(
            **{name: flags[name] for name in ("host", "port", "token", "output", "browser")},
            limits=ServeLimits(**{name: flags[name] for name in LIMIT_FLAGS}),
            model=_model_request(flags),
            display=_display(flags),
        )
    )


@cli.command()
@click.argument("folder", type=click.Path(path_type=Path), metavar="OUTDIR")
@click.option(
    "--truth",
    type=click.Path(path_type=Path),
    required=True,
    metavar="PATH",
    help="COLMAP model (folder), truth.json, cameras.json, or TUM trajectory (.txt, with file names for times).",
)
@option(EvaluateRequest, "json_file", "--json", "json_file", metavar="FILE")
@display_options
def evaluate(folder: Path, truth: Path, json_file: Path | None, **flags: Any) -> None:
    """Compare the cameras of a finished result with known ones.

    Photos are matched by file name. Frame and scale need not agree; a photo that is not registered counts as 180
    degrees off.
    """
    from mast3r_sfm.app import commands

    commands.evaluate(EvaluateRequest(folder, truth, json_file, _display(flags)))


@cli.command()
def doctor() -> int:
    """Say what this machine has for a reconstruction, what it lacks, and the cure.

    Exit code 0 if a reconstruction can run, 1 if not.
    """
    from mast3r_sfm.app import doctor as diagnosis

    checks = diagnosis.run_checks()
    click.echo(diagnosis.report(checks))
    return 0 if diagnosis.can_reconstruct(checks) else 1


@cli.command()
@_input_option(required=True)
@model_options
@option(ReconstructionOptions, "scene_graph", help="complete, swin, logwin, oneref, pairs:FILE.", default="complete")
@option(AlignmentConfig, "niter_coarse", "--niter", "niter", help="Iterations of each of the two stages.")
@display_options
def compare(**flags: Any) -> int:
    """Compare with the published MASt3R code on the same photos and weights.

    The code is found in $MAST3R_UPSTREAM or /opt/mast3r (the container). Runs in fp32 unless --precision says
    otherwise, and as the published method does: matches are not verified, and the alignment has its settings. Exit
    code 0 if the engines agree, 6 if they differ.
    """
    from mast3r_sfm.app.compare import command

    request = CompareRequest(
        inputs=flags["inputs"],
        model=_model_request(flags),
        options=ReconstructionOptions(
            scene_graph=flags["scene_graph"],
            verification=None,  # the published method keeps every match
            alignment=AlignmentConfig.published(niter_coarse=flags["niter"], niter_fine=flags["niter"]),
            refinement=None,
            dense=None,
        ),
        display=_display(flags),
    )
    return 0 if command.compare_engines(request) else EXIT_DIFFERS


_verify = copy.copy(compare)  # the name that the command had first
_verify.hidden = True
cli.add_command(_verify, "verify")


def _model_request(flags: dict[str, Any]) -> ModelRequest:
    return ModelRequest(
        model_name=flags["model_name"],
        revision=flags["revision"],
        image_size=flags["image_size"],
        device=flags["device"],
        precision=Precision(flags["precision"]),
    )


def _verification(flags: dict[str, Any]) -> VerificationLimits | None:
    return VerificationLimits() if flags["verify_matches"] else None


def _refinement(flags: dict[str, Any]) -> RefinementOptions | None:
    if not flags["refine_cameras"]:
        return None
    return RefinementOptions(
        max_feature_size=flags["max_feature_size"], camera_model=CameraModel.parse(flags["camera_model"])
    )


def _exports(flags: dict[str, Any]) -> tuple[ExportFormat, ...]:
    return tuple(ExportFormat(value) for value in flags["exports"])


def _photos(flags: dict[str, Any]) -> PhotoOptions:
    """Raises click.UsageError for options of photos without an export that writes photos."""
    photos = PhotoOptions(undistort=flags["undistort"], max_image_size=flags["max_image_size"])
    if photos != PhotoOptions() and not flags["exports"]:
        raise click.UsageError("--undistort and --max-image-size are for exported photos: add --export colmap")
    return photos


def _intrinsics_groups(flags: dict[str, Any]) -> IntrinsicsGroups:
    """Raises InputError if both options are given and differ."""
    groups = IntrinsicsGroups(flags["intrinsics_groups"])
    if not flags["shared_intrinsics"] or groups is IntrinsicsGroups.SHARED:
        return groups
    source = click.get_current_context().get_parameter_source("intrinsics_groups")
    if source is not click.core.ParameterSource.DEFAULT:
        raise InputError(f"`shared_intrinsics` contradicts `intrinsics_groups={groups}`; give one of them")
    return IntrinsicsGroups.SHARED


def _display(flags: dict[str, Any]) -> Display:
    return Display(quiet=flags["quiet"], debug=flags["debug"])
