"""The command line. It displays and configures; heavy imports happen inside the commands, so that --help is instant."""

from __future__ import annotations

import signal
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from mast3r_sfm import __version__
from mast3r_sfm.errors import EXIT_INTERRUPTED, EXIT_PARTIAL, Mast3rSfmError

_Command = TypeVar("_Command", bound=Callable[..., Any])

EXIT_CODES = """\b
Exit codes: 0 done, 2 wrong usage or input, 3 model not found or unusable,
4 no reconstruction, 5 done but some images did not connect, 130 interrupted."""


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command line and ends the process with the documented exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _interrupt)  # as `docker stop` and job schedulers send it
    try:
        code = cli.main(arguments, prog_name="mast3r-sfm", standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except click.exceptions.Exit as error:
        sys.exit(error.exit_code)
    except click.ClickException as error:
        _fail(error.format_message(), 2)
    except (KeyboardInterrupt, click.Abort):
        _fail("interrupted; nothing was written", EXIT_INTERRUPTED)
    except Mast3rSfmError as error:
        if "--debug" in arguments:
            traceback.print_exc()
        _fail(str(error), error.exit_code)
    except BrokenPipeError:
        sys.exit(1)
    except Exception as error:
        if "--debug" in arguments:
            traceback.print_exc()
        _fail(f"unexpected {type(error).__name__}: {error} (run again with --debug for the details)", 1)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def _fail(message: str, code: int) -> None:
    one_line = " ".join(message.split())
    click.echo(f"Error: {one_line}", err=True)
    sys.exit(code)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110}, epilog=EXIT_CODES)
@click.version_option(__version__, prog_name="mast3r-sfm")
def cli() -> None:
    """Photos of a scene in; cameras, depth and a 3D scene out."""


def model_options(command: _Command) -> _Command:
    """Options of every command that runs the network."""
    for option in reversed(
        [
            click.option("--model-name", metavar="NAME", help="Hugging Face name, folder, file, or 'small' "
                         "[default: the published MASt3R 512 model; offline and not cached: 'small']."),
            click.option("--revision", metavar="REV", help="Branch, tag or commit of the model on the hub."),
            click.option("--image-size", type=int, metavar="PIXELS",
                         help="Long edge of the network's images [default: the model's own, 512 for the published]."),
            click.option("--device", default="auto", show_default=True, metavar="DEVICE",
                         help="auto, cuda, cuda:N, cpu, mps."),
            click.option("--precision", default="auto", show_default=True,
                         type=click.Choice(["auto", "fp32", "tf32", "bf16", "fp16"]), help="Of the matrix products."),
        ]
    ):  # fmt: skip
        command = option(command)
    return command


def display_options(command: _Command) -> _Command:
    """Options on what is shown."""
    command = click.option("--debug", is_flag=True, help="Show tracebacks and debug messages.")(command)
    return click.option("--quiet", is_flag=True, help="Show warnings and errors only.")(command)


niter_option = click.option(
    "--niter", type=click.IntRange(min=0), default=300, show_default=True, help="Iterations of each of the two stages."
)


@cli.command()
@click.option(
    "--input",
    "inputs",
    multiple=True,
    required=True,
    metavar="PATH",
    help="Folder, image file or quoted glob; may be given several times.",
)
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Result folder [default: a new one, outputs/<name of the input>].",
)
@model_options
@click.option(
    "--scene-graph",
    default="complete",
    show_default=True,
    metavar="GRAPH",
    help="complete, swin[-k][-noncyclic], logwin[-k][-noncyclic], oneref[-i], retrieval[-Na-k], auto, pairs:FILE.",
)
@niter_option
@click.option("--no-refine", is_flag=True, help="Stop after the first stage (3D loss, intrinsics fixed).")
@click.option("--shared-intrinsics", is_flag=True, help="One focal length and principal point for all images.")
@click.option(
    "--subsample",
    type=click.IntRange(min=2),
    default=8,
    show_default=True,
    help="Grid step of seeds and depth anchors, pixels.",
)
@click.option(
    "--matching-conf-thr",
    type=float,
    default=0.0,
    show_default=True,
    help="Pairs whose best match is not above this use their pointmaps instead of their matches.",
)
@click.option(
    "--verify-matches/--no-verify-matches",
    default=True,
    show_default=True,
    help="Drop matches that the predicted geometry denies; the published method keeps them.",
)
@click.option(
    "--min-conf-thr",
    type=float,
    metavar="CONF",
    help="Pixels above this confidence go into the scene [default: 3, or the model's own].",
)
@click.option("--as-pointcloud", is_flag=True, help="Points instead of meshes in scene.glb.")
@click.option(
    "--max-points",
    type=click.IntRange(min=1),
    default=2_000_000,
    show_default=True,
    help="Budget of points or triangles in scene.glb.",
)
@click.option(
    "--clean-depth/--no-clean-depth",
    default=True,
    show_default=True,
    help="Leave out points that float in front of a more confident surface.",
)
@click.option(
    "--batch-size", type=click.IntRange(min=1), metavar="N", help="Pairs per batch [default: by the free memory]."
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of all random choices.")
@click.option(
    "--engine",
    type=click.Choice(["native", "upstream"]),
    default="native",
    show_default=True,
    help="upstream: the published code, where it is installed (see `verify`); only to compare with.",
)
@click.option("--overwrite", is_flag=True, help="Replace an existing result, as a whole.")
@display_options
def reconstruct(inputs: tuple[str, ...], output: Path | None, **options: Any) -> int:
    """Reconstruct a scene from photos.

    Writes scene.glb, depth and confidence maps, cameras.json, matches.npz, reconstruction.npz and run.json.
    """
    from mast3r_sfm.app import commands

    return EXIT_PARTIAL if commands.reconstruct(list(inputs), output, options) else 0


@cli.command()
@click.argument("image_a", metavar="A")
@click.argument("image_b", metavar="B")
@click.option("--output", type=click.Path(path_type=Path), required=True, metavar="DIR", help="Result folder.")
@model_options
@click.option(
    "--subsample", type=click.IntRange(min=2), default=8, show_default=True, help="Grid step of the seeds, pixels."
)
@click.option(
    "--verify-matches/--no-verify-matches",
    default=True,
    show_default=True,
    help="Drop matches that the predicted geometry denies.",
)
@click.option("--overwrite", is_flag=True, help="Replace existing files of an earlier match.")
@display_options
def match(image_a: str, image_b: str, output: Path, **options: Any) -> None:
    """Match two images: matches.npz, a picture of the matches, depth and confidence of both."""
    from mast3r_sfm.app import commands

    commands.match(image_a, image_b, output, options)


@cli.command()
@click.argument("folder", type=click.Path(path_type=Path), metavar="OUTDIR")
@click.option("--min-conf-thr", type=float, default=None, metavar="CONF", help="[default: that of the run]")
@click.option("--as-pointcloud/--as-mesh", default=None, help="[default: that of the run]")
@click.option("--max-points", type=click.IntRange(min=1), default=None, help="[default: that of the run]")
@click.option("--clean-depth/--no-clean-depth", default=None, help="[default: that of the run]")
@display_options
def export(folder: Path, **options: Any) -> None:
    """Write scene.glb of a finished result anew, without the network."""
    from mast3r_sfm.app import commands

    commands.export(folder, options)


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
@click.option(
    "--input", "inputs", multiple=True, required=True, metavar="PATH", help="Folder, .jpg or .png file, or quoted glob."
)
@model_options
@click.option(
    "--scene-graph",
    default="complete",
    show_default=True,
    metavar="GRAPH",
    help="complete, swin, logwin, oneref, pairs:FILE.",
)
@niter_option
@display_options
def verify(inputs: tuple[str, ...], **options: Any) -> int:
    """Compare with the published MASt3R code on the same photos and weights.

    The code is found in $MAST3R_UPSTREAM or /opt/mast3r (the container). Runs in fp32 unless --precision says
    otherwise, and as the published method does: matches are not verified, and the alignment has its settings. Exit
    code 0 if the engines agree, 6 if they differ.
    """
    from mast3r_sfm.app.compare import command as cross_check
    from mast3r_sfm.app.compare.comparison import EXIT_DIFFERS

    return 0 if cross_check.verify(inputs, options) else EXIT_DIFFERS
