"""`mast3r-sfm serve` as a process: many clients, clients that leave, sudden ends, and a browser from drop to viewer."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import Page, browser_page
from model_files import TINY, random_state, write_folder
from test_batch import photo

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")

import httpx2

QUICK = {"niter": 5, "min_conf_thr": 0, "refine_cameras": False}
TIMEOUT_S = 60


class Server:
    """A server in a process of its own, with a random network: of a single photo it makes a scene."""

    def __init__(self, weights: Path, folder: Path, *arguments: str) -> None:
        self.folder = folder
        with socket.create_server(("127.0.0.1", 0)) as found:
            self.port = int(found.getsockname()[1])
        self.command = [
            *(sys.executable, "-m", "mast3r_sfm", "serve", "--port", str(self.port), "--output", str(folder)),
            *("--model-name", str(weights), "--image-size", "32", "--device", "cpu", *arguments),
        ]
        self.start()

    def start(self, *arguments: str) -> None:
        """Returns when it has said that it takes photos."""
        # a shell that runs the tests in the background lets its children ignore SIGINT; a person's does not
        listen = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # noqa: E731
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [*self.command, *arguments], stderr=subprocess.PIPE, text=True, preexec_fn=listen, env=environment
        )
        assert self.process.stderr is not None
        self.said = [self.process.stderr.readline(), self.process.stderr.readline()]
        assert "takes photos" in self.said[1], self.said
        self.http = httpx2.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=TIMEOUT_S)

    def end(self, how: signal.Signals) -> int:
        """Exit code."""
        self.http.close()
        self.process.send_signal(how)
        code = self.process.wait(TIMEOUT_S)
        assert self.process.stderr is not None
        self.process.stderr.close()
        return code

    def submit(self, picture: bytes, client: httpx2.Client | None = None, **options: Any) -> str:
        answer = (client or self.http).post(
            "/reconstructions",
            files=[("files", ("photo.png", picture))],
            data={"options": json.dumps(QUICK | options)},
        )
        assert answer.status_code == 202, answer.text
        return str(answer.json()["id"])

    def wait(self, job_id: str, *states: str) -> dict[str, Any]:
        end = time.monotonic() + TIMEOUT_S
        while (job := self.http.get(f"/reconstructions/{job_id}").json())["state"] not in (
            states or ("done", "failed")
        ):
            assert time.monotonic() < end, job
            time.sleep(0.1)
        return dict(job)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("model") / "tiny", TINY, random_state(TINY))


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    folder = tmp_path_factory.mktemp("picture")
    photo(folder)
    return (folder / "photo.png").read_bytes()


@pytest.fixture(scope="module")
def server(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    made = Server(weights, tmp_path_factory.mktemp("work") / "out", "--max-upload-mb", "3")
    yield made
    if made.process.poll() is None:
        assert made.end(signal.SIGINT) == 0


def test_twenty_clients_at_once(server: Server, picture: bytes) -> None:
    def one(_: int) -> dict[str, Any]:
        with httpx2.Client(base_url=server.http.base_url, timeout=TIMEOUT_S) as client:
            job_id = server.submit(picture, client)
        return server.wait(job_id)  # though the client has left

    with ThreadPoolExecutor(20) as pool:
        jobs = list(pool.map(one, range(20)))
    assert {job["state"] for job in jobs} == {"done"} and len({job["id"] for job in jobs}) == 20
    jobs.sort(key=lambda job: job["started"])
    for before, after in pairwise(jobs):
        assert before["finished"] <= after["started"]  # one at a time


def _half_an_upload(server: Server, picture: bytes) -> socket.socket:
    """A connection over which the first half of a photo has been sent, of which there will be no more."""
    head = b'--b\r\nContent-Disposition: form-data; name="files"; filename="half.png"\r\n\r\n'
    connection = socket.create_connection(("127.0.0.1", server.port), timeout=TIMEOUT_S)
    connection.sendall(
        f"POST /reconstructions HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\nContent-Length: 2000000\r\n"
        "Content-Type: multipart/form-data; boundary=b\r\n\r\n".encode()
    )
    connection.sendall(head + picture * (1_500_000 // len(picture)))
    return connection


def test_a_client_that_leaves_within_its_upload_leaves_nothing(server: Server, picture: bytes) -> None:
    before = {path.name for path in server.folder.iterdir()}

    def new() -> set[str]:
        return {path.name for path in server.folder.iterdir()} - before

    def wait_until(is_there: bool) -> None:
        end = time.monotonic() + TIMEOUT_S
        while bool(new()) != is_there:
            assert time.monotonic() < end, new()
            time.sleep(0.02)

    connection = _half_an_upload(server, picture)
    wait_until(is_there=True)
    connection.close()
    wait_until(is_there=False)
    assert len(server.http.get("/reconstructions").json()["reconstructions"]) == len(before) - 1  # without the lock
    assert server.wait(server.submit(picture))["state"] == "done"


def test_an_upload_that_is_too_large_is_answered_while_it_comes(server: Server, picture: bytes) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=TIMEOUT_S)
    connection.putrequest("POST", "/reconstructions")
    connection.putheader("Content-Type", "multipart/form-data; boundary=b")
    connection.putheader("Content-Length", str(10**12))
    connection.endheaders()
    answer = connection.getresponse()  # though nothing of the body has been sent
    assert answer.status == 413 and b"3 MB" in answer.read()
    connection.close()


def drop(page: Page, files: list[Path]) -> None:
    """Drops files as a person does, on the middle of the page's field for it."""
    box = page.box("#drop")
    place = {"x": box["x"] + box["width"] / 2, "y": box["y"] + box["height"] / 2}
    data = {"items": [], "files": [str(path) for path in files], "dragOperationsMask": 1}
    for kind in ("dragEnter", "dragOver", "drop"):
        page.ask("Input.dispatchDragEvent", type=kind, data=data, **place)


def click_on(page: Page, selector: str) -> None:
    page.evaluate(f"document.querySelector({json.dumps(selector)}).scrollIntoView({{ block: 'center' }})")
    page.settle()
    box = page.box(selector)
    page.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)


VIEWER = "document.getElementById('viewer').contentWindow.page"


def test_a_person_drops_a_photo_and_sees_the_scene(server: Server, picture: bytes, tmp_path: Path) -> None:
    hostile = tmp_path / "<img src=x onerror=document.title='broken'>.png"
    hostile.write_bytes(picture)
    (tmp_path / "notes.txt").write_text("no photo")
    with browser_page() as page:
        page.ask("Page.navigate", url=f"http://127.0.0.1:{server.port}/")
        page.wait("window.page && page.ready")
        drop(page, [hostile, tmp_path / "notes.txt"])
        page.wait("document.querySelectorAll('.thumb').length")
        assert page.evaluate("document.getElementById('chosen-title').textContent").startswith("1 photo, ")
        assert "notes.txt" in page.evaluate("document.getElementById('notice').textContent")
        page.wait("document.querySelector('.thumb img').naturalWidth === 128")
        page.evaluate("document.querySelector('[name=refine_cameras]').click()")
        click_on(page, "#send")
        page.wait(f"!document.getElementById('viewer').hidden && {VIEWER} && {VIEWER}.ready")
        assert page.evaluate("location.hash").startswith("#2")
        assert page.evaluate(f"{VIEWER}.viewer.numDrawn") > 100
        page.settle()
        box = page.box("#viewer")
        shot = page.screenshot()[int(box["y"]) + 300 : int(box["y"] + box["height"]) - 60, 100:-100].astype(int)
        assert (np.abs(shot - shot[0, 0]).max(axis=-1) > 12).mean() > 0.02  # points are seen

        page.evaluate("document.getElementById('theme').click()")  # the frame hears of it
        theme = "document.documentElement.dataset.theme"
        page.wait(f"document.getElementById('viewer').contentDocument.documentElement.dataset.theme === {theme}")
        href = page.evaluate("document.querySelector('#actions a').href")
        packed = server.http.get(href)
        assert packed.status_code == 200 and packed.content[:2] == b"PK"

        page.evaluate("location.hash = ''")
        name = "_img src=x onerror=document.title='broken'_.png"
        page.wait(f"document.querySelector('.row a').textContent === {json.dumps(name)}")
        assert page.evaluate("document.title") == "mast3r-sfm"
        page.size(390, 844, telephone=True)
        page.settle()
        assert page.evaluate("document.documentElement.scrollWidth") == 390
        assert page.problems == []

        page.evaluate("document.querySelector('.row button').click()")
        page.evaluate("document.querySelector('dialog .primary').click()")
        page.wait("!document.querySelector('.row a').textContent.includes('onerror')")
        # a server that says no is quoted
        (tmp_path / "words.png").write_text("these are words")
        page.size(1000, 700)
        page.evaluate("scrollTo(0, 0)")
        drop(page, [tmp_path / "words.png"])
        page.wait("!document.getElementById('chosen').hidden")
        click_on(page, "#send")
        page.wait("document.getElementById('notice').textContent.includes('words.png')")
        assert not page.evaluate("document.getElementById('start').hidden || document.getElementById('send').disabled")


@dataclass(frozen=True)
class Restarted:
    """What a server had before it was killed, after which it listens to other machines as well.

    finished   a job that was done, and its scene file
    unfinished   jobs that were running and waiting
    """

    server: Server
    finished: dict[str, Any]
    scene: bytes
    unfinished: tuple[str, ...]
    token: str


@pytest.fixture(scope="module")
def restarted(server: Server, picture: bytes) -> Restarted:
    """The tests above do without the server from here on."""
    finished = server.wait(server.submit(picture))
    scene = (server.folder / finished["id"] / "result" / "scene.glb").read_bytes()
    unfinished = (server.submit(picture, niter=2000), *(server.submit(picture) for _ in range(2)))
    server.wait(unfinished[0], "running", "done")
    connection = _half_an_upload(server, picture)
    end = time.monotonic() + TIMEOUT_S
    while not list(server.folder.glob("*/photos/half.png")):
        assert time.monotonic() < end
        time.sleep(0.01)
    assert server.end(signal.SIGKILL) == -signal.SIGKILL
    connection.close()
    server.start("--host", "0.0.0.0")
    token = server.said[1].split()[0].partition("/?token=")[2]
    server.http.headers["Authorization"] = f"Bearer {token}"
    return Restarted(server, finished, scene, unfinished, token)


def test_after_a_sudden_end_finished_jobs_are_there_and_others_go_on(restarted: Restarted) -> None:
    server, done = restarted.server, restarted.finished["id"]
    assert not list(server.folder.glob("*/photos/half.png"))
    assert server.wait(done) == restarted.finished
    assert server.http.get(f"/reconstructions/{done}/files/scene.glb").content == restarted.scene
    assert {server.wait(job_id)["state"] for job_id in restarted.unfinished} == {"done"}
    assert not [path for path in server.folder.rglob(".*") if path.name != ".lock"]


def test_a_person_signs_in_with_the_printed_token(restarted: Restarted) -> None:
    server, token = restarted.server, restarted.token
    assert server.said[1].startswith(f"http://127.0.0.1:{server.port}/?token=") and len(token) >= 32
    assert server.http.get("/about").status_code == 200
    assert server.http.get("/about", headers={"Authorization": f"Bearer {token}x"}).status_code == 401
    with browser_page() as page:
        page.ask("Page.navigate", url=f"http://127.0.0.1:{server.port}/")
        page.wait("document.querySelector('input[name=token]')")
        page.evaluate(f"document.querySelector('input').value = {json.dumps(token)}")
        click_on(page, "button")
        page.wait("window.page && page.ready")
        assert token not in page.evaluate("location.href + document.cookie")
        page.problems.clear()  # the answer 401 was one
        page.ask("Page.navigate", url=f"http://127.0.0.1:{server.port}/?token={token}")
        page.wait("window.page && page.ready && !location.search")
        assert page.problems == []
