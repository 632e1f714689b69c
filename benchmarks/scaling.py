"""How time and memory grow with the number of views: runs `benchmarks.pipeline` and draws its figures.

    python -m benchmarks.scaling scaling.png [--views 7 30 100 200 500 1000] [options of benchmarks.pipeline]
    python -m benchmarks.scaling scaling.png --from figures.json      draws what `benchmarks.pipeline --output` wrote

Needs matplotlib (`pip install matplotlib`).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

VIEWS = (7, 30, 100, 200, 500, 1000)


def draw(figures: Mapping[str, Any], picture: Path) -> None:
    """Seconds by stage and peaks of memory over the number of views, both axes logarithmic."""
    from matplotlib.figure import Figure

    runs: Sequence[Mapping[str, Any]] = sorted(
        (run for run in figures["runs"] if "all" in run), key=lambda run: run["views"]
    )
    views = [run["views"] for run in runs]
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    time, memory = figure.subplots(1, 2)
    for stage in runs[0]["seconds"]:
        time.plot(views, [run["seconds"][stage] for run in runs], marker=".", label=stage)
    time.plot(views, [run["all"] for run in runs], marker="o", color="black", label="all")
    time.set_ylabel("seconds")
    for key, label in (("gpu", "GPU"), ("ram", "RAM")):
        if key in runs[0]["peak"]:
            memory.plot(views, [run["peak"][key] / 1e9 for run in runs], marker="o", label=label)
    memory.set_ylabel("peak, GB")
    for axes in (time, memory):
        axes.set(xlabel="views", xscale="log", yscale="log")
        axes.grid(alpha=0.3, which="both")
        axes.legend()
    figure.suptitle(f"{figures['machine']}, PyTorch {figures['torch']}, {figures['precision']}")
    figure.savefig(picture, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.scaling", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("picture", type=Path)
    parser.add_argument("--from", dest="figures", type=Path, help="figures that are there already")
    parser.add_argument("--views", type=int, nargs="+", default=list(VIEWS))
    arguments, others = parser.parse_known_args()
    figures = arguments.figures or arguments.picture.with_suffix(".json")
    if arguments.figures is None:
        views = [str(count) for count in arguments.views]
        command = [sys.executable, "-m", "benchmarks.pipeline", "--views", *views, "--output", str(figures), *others]
        subprocess.run(command, check=True)
    draw(json.loads(figures.read_text()), arguments.picture)


if __name__ == "__main__":
    main()
