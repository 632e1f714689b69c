"""Seconds from a request to its result on a server whose model is loaded (`mast3r-sfm serve`).

    python -m benchmarks.serving                  7 photos of 512x384, a network of the published size
    python -m benchmarks.serving --tiny           a tiny network on photos of 64x48, to try the benchmark itself

Starts a server in a process of its own with the random checkpoint and the rendered photos of `benchmarks.command`,
sends the photos several times, one request after the other, and asks every 5 ms whether the result is there. Cameras
are not refined and no report is written, as in the other tables; `--options` changes what is asked for. The first
request finds a server whose kernels are not yet loaded; the figure is the median of the others.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2

from benchmarks.command import PUBLISHED, TINY, write_model, write_photos
from mast3r_sfm.device import resolve_device

OPTIONS = {"refine_cameras": False, "report": False, "verify_matches": False}
POLL_S = 0.005


@contextlib.contextmanager
def server(folder: Path, hub: Path, options: list[str]) -> Iterator[tuple[httpx2.Client, float]]:
    """A client of a server that is ready, and the seconds from its start to that."""
    with socket.create_server(("127.0.0.1", 0)) as found:
        port = found.getsockname()[1]
    command = [sys.executable, "-m", "mast3r_sfm", "serve", "--port", str(port), "--output", str(folder), *options]
    environment = os.environ | {"HF_HUB_CACHE": str(hub), "HF_HUB_OFFLINE": "1"}
    start = time.perf_counter()
    process = subprocess.Popen(command, env=environment)
    try:
        with httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=600) as client:
            while True:
                with contextlib.suppress(httpx2.TransportError):
                    client.get("/about").raise_for_status()
                    break
                if process.poll() is not None:
                    raise SystemExit(f"the server ended with {process.returncode}")
                time.sleep(0.05)
            yield client, time.perf_counter() - start
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


def request(client: httpx2.Client, photos: list[Path], options: dict[str, Any]) -> dict[str, Any]:
    """The finished job, and in `wall` the seconds that its client waited."""
    files = [("files", (path.name, path.read_bytes())) for path in photos]
    start = time.perf_counter()
    answer = client.post("/reconstructions", files=files, data={"options": json.dumps(options)}).raise_for_status()
    job: dict[str, Any] = answer.json()
    while job["state"] in ("waiting", "running"):
        time.sleep(POLL_S)
        job = client.get(f"/reconstructions/{job['id']}").raise_for_status().json()
    if job["state"] != "done":
        raise SystemExit(f"the job {job['state']}: {job['error']}")
    return {**job, "wall": time.perf_counter() - start}


def shown(job: dict[str, Any]) -> str:
    seconds = job["seconds"]
    stages = ", ".join(f"{name} {value:.2f} s" for name, value in seconds["stages"].items())
    return f"{job['wall']:.2f} s (upload {seconds['upload']:.2f} s, work {seconds['work']:.2f} s: {stages})"


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.serving", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--views", type=int, default=7)
    parser.add_argument("--requests", type=int, default=6, help="all, the first included")
    parser.add_argument("--options", type=json.loads, default={}, help="JSON, on top of the usual ones")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--tiny", action="store_true", help="a tiny network and tiny photos")
    parser.add_argument("--output", type=Path, help="write the jobs as JSON")
    arguments = parser.parse_args()
    device = resolve_device(arguments.device)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        write_model(work / "hub", TINY if arguments.tiny else PUBLISHED, device)
        write_photos(work / "photos", arguments.views, (64, 48) if arguments.tiny else (512, 384), device)
        photos = sorted((work / "photos").iterdir())
        flags = ["--device", arguments.device, "--precision", arguments.precision]
        with server(work / "jobs", work / "hub", flags) as (client, ready):
            print(f"{arguments.views} photos on {device}; the server was ready after {ready:.1f} s", flush=True)
            jobs = []
            for number in range(arguments.requests):
                jobs.append(request(client, photos, OPTIONS | arguments.options))
                print(f"request {number + 1}: {shown(jobs[-1])}", flush=True)
    if arguments.output:
        arguments.output.write_text(json.dumps(jobs, indent=1))
    print(f"median of the requests after the first: {statistics.median(job['wall'] for job in jobs[1:]):.2f} s")


if __name__ == "__main__":
    main()
