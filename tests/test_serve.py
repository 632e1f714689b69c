"""The server of `serve` by its routes: jobs, uploads, limits, who may ask."""

from __future__ import annotations

import ast
import dataclasses
import io
import json
import logging
import re
import shutil
import socket
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from model_files import TINY, random_state, write_folder
from test_batch import photo
from test_cli import run

pytest.importorskip("fastapi")
pytest.importorskip("python_multipart")

from starlette.testclient import TestClient

import mast3r_sfm.app.serve.worker
from mast3r_sfm.app.flags import as_options
from mast3r_sfm.app.requests import ModelRequest, ServeRequest
from mast3r_sfm.app.scene import reconstruct_scene
from mast3r_sfm.app.serve.api import Service, create_app
from mast3r_sfm.app.serve.guard import is_loopback
from mast3r_sfm.app.serve.jobs import Jobs, State
from mast3r_sfm.app.serve.options import JobOptions
from mast3r_sfm.app.serve.server import token_of
from mast3r_sfm.app.serve.uploads import Checker, RefusedError, harmless_name
from mast3r_sfm.app.serve.worker import Worker
from mast3r_sfm.errors import InputError
from mast3r_sfm.model.checkpoint import Model, load_model
from mast3r_sfm.options import Device, ServeLimits

ORIGIN = "http://127.0.0.1:8000"
QUICK = {"niter": 5, "min_conf_thr": 0, "refine_cameras": False}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random network: of a single photo it makes a scene, and no two photos connect."""
    return write_folder(tmp_path_factory.mktemp("model") / "tiny", TINY, random_state(TINY))


@pytest.fixture(scope="module")
def model(weights: Path) -> Model:
    return load_model(str(weights), "cpu")


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    folder = tmp_path_factory.mktemp("picture")
    photo(folder)
    return (folder / "photo.png").read_bytes()


class Client:
    """A client of a server in this process, whose folder it knows."""

    def __init__(self, http: TestClient, folder: Path, jobs: Jobs) -> None:
        self.http = http
        self.folder = folder
        self.jobs = jobs

    def post(self, *files: tuple[str, bytes], options: Any = QUICK, **request: Any) -> Any:
        data = {} if options is None else {"options": options if isinstance(options, str) else json.dumps(options)}
        return self.http.post("/reconstructions", files=[("files", file) for file in files], data=data, **request)

    def submit(self, *files: tuple[str, bytes], options: Any = QUICK) -> str:
        answer = self.post(*files, options=options)
        assert answer.status_code == 202, answer.text
        assert answer.headers["location"] == f"/reconstructions/{answer.json()['id']}"
        return str(answer.json()["id"])

    def job(self, job_id: str) -> dict[str, Any]:
        return dict(self.http.get(f"/reconstructions/{job_id}").json())

    def wait(self, job_id: str, *states: str) -> dict[str, Any]:
        """The job once it is in one of `states`, by default once it is over."""
        end = time.monotonic() + 60
        while (job := self.job(job_id))["state"] not in (states or ("done", "failed", "cancelled")):
            assert time.monotonic() < end, job
            time.sleep(0.01)
        return job

    def refused(self, answer: Any, status: int, *parts: str) -> None:
        """The answer says why in one line, names no path of the server, and nothing of the upload is left."""
        assert answer.status_code == status, answer.text
        detail = answer.json()["detail"]
        assert all(part in detail for part in parts) and "\n" not in detail, detail
        assert str(self.folder) not in answer.text and "Traceback" not in answer.text
        assert [path.name for path in self.folder.iterdir()] == [".lock"]


Start = Callable[..., Client]


@pytest.fixture
def start(tmp_path: Path, model: Model) -> Iterator[Start]:
    """Starts a server in a folder, by default a new one."""
    with contextmanager(_starter)(tmp_path, model) as starter:
        yield starter


def _starter(tmp_path: Path, model: Model) -> Iterator[Start]:
    running: list[TestClient] = []

    def start(folder: Path = tmp_path / "out", token: str | None = None, **limits: int) -> Client:
        bounds = dataclasses.replace(ServeLimits(), **limits)
        jobs = Jobs(folder, bounds.max_waiting)
        request = ModelRequest(image_size=32, device=Device("cpu"))
        service = Service(jobs, Worker(jobs, model, request, bounds), Checker(), model, request, bounds)
        http = TestClient(create_app(service, 8000, token), base_url=ORIGIN, follow_redirects=False)
        http.__enter__()  # starts the worker
        running.append(http)
        return Client(http, folder, jobs)

    try:
        yield start
    finally:
        for http in running:
            http.__exit__(None, None, None)


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Jobs go on from the stage of alignment only once this is set; they hear until then that they are to end."""
    gate = threading.Event()

    def held_back(request: Any, output: Path, load: Any, progress: Any, warnings: Any, tell: Any) -> Any:
        def wait_at_alignment(stage: str, done: int, total: int) -> None:
            progress(stage, done, total)
            while stage == "Align cameras" and not gate.wait(0.01):
                progress(stage, done, total)

        return reconstruct_scene(request, output, load, wait_at_alignment, warnings, tell)

    monkeypatch.setattr(mast3r_sfm.app.serve.worker, "reconstruct_scene", held_back)
    yield gate
    gate.set()


# ------------------------------------------------------------------ from photos to a result
def test_a_job_writes_what_a_single_run_writes(
    start: Start, picture: bytes, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["mast3r-sfm", "serve", "--token", "a secret of the server"])
    client = start()
    posted = client.post(("photo.png", picture)).json()
    assert posted["state"] in ("waiting", "running") and posted["photos"] == ["photo.png"]
    job = client.wait(posted["id"])
    assert job["state"] == "done" and job["error"] is None and job["options"] == QUICK
    assert job["outcome"]["num_registered"] == job["outcome"]["num_photos"] == 1
    assert job["outcome"]["verdict"] == "doubtful" and "one photo" in job["outcome"]["reasons"][0]
    assert job["created"] <= job["started"] <= job["finished"] and job["place_in_queue"] is None
    times = job["seconds"]
    assert 0 < times["upload"] < 60 and 0 <= times["wait"] < 60
    assert {"Set up and read images", "Align cameras", "Write files"} <= set(times["stages"])
    assert sum(times["stages"].values()) == pytest.approx(times["work"], abs=0.3)

    alone, folder = tmp_path / "alone", client.folder / job["id"]
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "photo.png").write_bytes(picture)
    arguments = ["--input", tmp_path / "photos", "--output", alone, "--model-name", weights, "--image-size", 32]
    quick = ["--niter", 5, "--min-conf-thr", 0, "--no-refine-cameras", "--device", "cpu", "--quiet"]
    assert run("reconstruct", *arguments, *quick) == 0
    names = {path.name for path in alone.iterdir()}
    assert names == {path.name for path in (folder / "result").iterdir()}
    for name in ("scene.glb", "depth_000.npy", "confidence_000.png"):
        assert (alone / name).read_bytes() == (folder / "result" / name).read_bytes(), name
    document = json.loads((folder / "result" / "run.json").read_text())
    assert document["arguments"] == [] and document["options"]["niter"] == 5

    address = f"/reconstructions/{job['id']}"
    listed = client.http.get(f"{address}/files").json()["files"]
    assert {file["name"]: file["bytes"] for file in listed} == {
        name: (folder / "result" / name).stat().st_size for name in names
    }
    one = client.http.get(f"{address}/files/cameras.json")
    assert one.content == (folder / "result" / "cameras.json").read_bytes()
    assert one.headers["content-disposition"] == 'attachment; filename="cameras.json"'
    packed = client.http.get(f"{address}/result.zip")
    assert packed.headers["content-type"] == "application/zip"
    with zipfile.ZipFile(io.BytesIO(packed.content)) as archive:
        assert archive.testzip() is None
        top = f"reconstruction-{job['id']}"
        assert {entry.partition("/")[2]: entry.partition("/")[0] for entry in archive.namelist()} == dict.fromkeys(
            names, top
        )
        assert archive.read(f"{top}/scene.glb") == (folder / "result" / "scene.glb").read_bytes()
    report = client.http.get(f"{address}/view")
    assert report.content == (folder / "result" / "report.html").read_bytes()
    assert "frame-ancestors 'self'" in report.headers["content-security-policy"]


def test_a_report_that_was_not_asked_for_is_made_to_be_looked_at(start: Start, picture: bytes) -> None:
    client = start()
    job_id = client.submit(("photo.png", picture), options=QUICK | {"report": False})
    client.wait(job_id)
    assert not (client.folder / job_id / "result" / "report.html").exists()
    assert b"<title>Reconstruction" in client.http.get(f"/reconstructions/{job_id}/view").content


def test_a_job_that_fails_says_why_in_the_words_of_the_api(start: Start, picture: bytes) -> None:
    client = start()
    job = client.wait(client.submit(("a.png", picture), ("b.png", picture[:-1] + picture[-1:])))
    assert job["state"] == "failed" and job["outcome"] is None
    assert "no two of the 2 images connect" in job["error"] and "verify_matches=false" in job["error"]
    assert str(client.folder) not in json.dumps(job)
    for what in ("files", "files/scene.glb", "result.zip", "view"):
        answer = client.http.get(f"/reconstructions/{job['id']}/{what}")
        assert answer.status_code == 409 and "failed" in answer.json()["detail"]


def test_a_result_that_lacks_one_thing_is_there_all_the_same(start: Start, picture: bytes) -> None:
    client = start()
    job = client.wait(client.submit(("a.png", picture), options=QUICK | {"min_conf_thr": 1e6}))
    assert job["state"] == "done" and job["outcome"]["num_registered"] == 1
    assert "keeps no triangle" in job["error"] and str(client.folder) not in job["error"]
    names = {file["name"] for file in client.http.get(f"/reconstructions/{job['id']}/files").json()["files"]}
    assert "depth_000.npy" in names and "scene.glb" not in names


def test_a_bug_costs_one_job_and_not_the_server(
    start: Start, picture: bytes, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    client = start()
    with monkeypatch.context() as patched:
        patched.setattr("mast3r_sfm.app.scene.plan_pairs", lambda *_: 1 / 0)
        job = client.wait(client.submit(("a.png", picture)))
    assert job["state"] == "failed" and job["error"].startswith("unexpected ZeroDivisionError")
    assert "Traceback" in caplog.text
    assert client.wait(client.submit(("a.png", picture)))["state"] == "done"


def test_warnings_are_those_of_the_job_alone(
    start: Start, picture: bytes, held: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = start()
    job_id = client.submit(("a.png", picture))
    client.wait(job_id, "running")
    check = mast3r_sfm.app.serve.uploads.check_footage

    def check_and_warn(path: Path) -> None:
        logging.getLogger("mast3r_sfm.images.decoding").warning("of an upload")
        check(path)

    monkeypatch.setattr(mast3r_sfm.app.serve.uploads, "check_footage", check_and_warn)
    client.submit(("b.png", picture))
    logging.getLogger("mast3r_sfm.dense").warning("of the job: see `niter_coarse`")
    held.set()
    warnings = client.wait(job_id)["warnings"]
    assert "of the job: see niter" in warnings and "of an upload" not in warnings


# ------------------------------------------------------------------ options
@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"output": "/etc"}, "output"),
        ({"masks": "/etc"}, "masks"),
        ({"device": "cuda"}, "device"),
        ({"scene_graph": "pairs:/etc/passwd"}, "scene_graph"),
        ({"scene_graph": "ring"}, "complete, swin"),
        ({"niter": 1_000_000}, "niter"),
        ({"image_size": 100_000}, "image_size"),
        ({"min_conf_thr": "NaN"}, "min_conf_thr"),
        ({"scene": "../fused"}, "scene"),
        ({"exports": ["colmap", "/tmp"]}, "exports.1"),
        ({"as_pointcloud": True, "compress": "draco"}, "compress=draco"),
        ("[]", "JSON object"),
        ("{", "no JSON"),
        ("[" * 9000, "no JSON"),
    ],
)
def test_options_that_are_not_offered_are_refused(start: Start, picture: bytes, options: Any, part: str) -> None:
    client = start()
    client.refused(client.post(("a.png", picture), options=options), 422, part)


def test_options_reach_the_run(start: Start, picture: bytes) -> None:
    client = start()
    options = QUICK | {"as_pointcloud": True, "exports": ["ply"], "image_size": 64, "seed": 3}
    job = client.wait(client.submit(("a.png", picture), options=options))
    result = client.folder / job["id"] / "result"
    assert (result / "scene.ply").exists()
    document = json.loads((result / "run.json").read_text())
    assert document["options"]["seed"] == 3 and document["scene"]["as_pointcloud"]
    assert json.loads((result / "cameras.json").read_text())["images"][0]["network_size"][0] == 64
    job = client.wait(client.submit(("a.png", picture), options=None))  # none at all: all by default
    assert job["options"] == {}


def test_messages_name_options_of_the_api() -> None:
    message = "use `device='cpu'`, `niter_coarse`, `verification=None`, `overwrite=True` or `min_conf_thr=2.5`"
    assert as_options(message) == "use device=cpu, niter, verify_matches=false, overwrite=true or min_conf_thr=2.5"


# ------------------------------------------------------------------ uploads
@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("IMG_1.JPG", "IMG_1.JPG"),
        ("../../etc/passwd.png", "passwd.png"),
        ("/etc/passwd.png", "passwd.png"),
        ("C:\\photos\\a.jpg", "a.jpg"),
        ("..\\..\\a.jpg", "a.jpg"),
        ("a\0b.jpg", "a_b.jpg"),
        ("a\nb\r.jpg", "a_b_.jpg"),
        (".hidden.jpg", "hidden.jpg"),
        ("  spaces .jpg", "spaces.jpg"),
        ("<img src=x onerror=alert(1)>.png", "_img src=x onerror=alert(1)_.png"),
        ("$(reboot)`;.png", "_(reboot)__.png"),
        ("a\u202egpj.png", "a_gpj.png"),
        ("\u65e5\u672c \u00e9e\u0301.heic", "\u65e5\u672c \u00e9\u00e9.heic"),
        ("x" * 5000 + ".jpg", "x" * 80 + ".jpg"),
        ("\u65e5" * 300 + ".webp", "\u65e5" * 53 + ".webp"),
        ("clip.MOV", "clip.MOV"),
    ],
)
def test_names_become_harmless(given: str, name: str) -> None:
    assert harmless_name(given, {}) == name
    assert len(name.encode()) < 200


@pytest.mark.parametrize(
    "given", ["a.zip", "a.exe", "a.html", "a.svg", "a", "", "..", ".jpg", "a.jpg/", "a.jpg.php", "\udcff"]
)
def test_names_of_no_photo_are_refused(given: str) -> None:
    with pytest.raises(RefusedError, match="not a photo or clip by its suffix") as refused:
        harmless_name(given, {})
    assert refused.value.status == 415


def test_photos_of_one_name_are_told_apart(start: Start, picture: bytes, held: threading.Event) -> None:
    client = start()
    job_id = client.submit(("a/1.png", picture), ("b/1.png", picture), ("1.PNG", picture), ("../1-2.png", picture))
    names = ["1.png", "1-2.png", "1-3.PNG", "1-2-2.png"]
    assert client.job(job_id)["photos"] == names
    assert sorted(path.name for path in (client.folder / job_id / "photos").iterdir()) == sorted(names)
    assert {path.name for path in client.folder.iterdir()} == {".lock", job_id}
    assert not list(client.folder.parent.glob("*.png"))


def _zip() -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("../../evil.sh", "reboot")
    return packed.getvalue()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("zip.jpg", _zip()),
        ("page.png", b"<!doctype html><script>alert(1)</script>"),
        ("program.jpg", b"\x7fELF\x02\x01\x01" + bytes(200)),
        ("program.tif", b"MZ" + bytes(200)),
        ("drawing.png", b"<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'/>"),
        ("script.bmp", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"),
        ("empty.jpg", b""),
        ("zip.mp4", _zip()),
        ("list.mp4", b"ffconcat version 1.0\nfile other.mp4\n"),
        ("list.mov", b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n"),
        ("raw.dng", b"II*\0" + bytes(300)),
        ("page.gif", b"GIF89a<script>"),
    ],
)
def test_files_that_are_no_photo_are_refused_by_what_they_hold(
    start: Start, picture: bytes, name: str, content: bytes
) -> None:
    client = start()
    client.refused(client.post(("good.png", picture), (name, content)), 415, name)


def test_a_damaged_photo_is_refused(start: Start, picture: bytes) -> None:
    client = start()
    client.refused(client.post(("cut.png", picture[: len(picture) // 2])), 415, "cut.png", "damaged or truncated")


def _form(*parts: bytes, boundary: bytes = b"frontier") -> dict[str, Any]:
    body = b"".join(b"--" + boundary + b"\r\n" + part + b"\r\n" for part in parts) + b"--" + boundary + b"--\r\n"
    return {"content": body, "headers": {"Content-Type": f"multipart/form-data; boundary={boundary.decode()}"}}


def test_bodies_that_are_no_form_of_photos_are_refused(start: Start, picture: bytes) -> None:
    client = start()
    disposition = b'Content-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'
    whole = _form(disposition + picture)
    cases: list[tuple[dict[str, Any], int, str]] = [
        ({"json": {"files": []}}, 415, "multipart/form-data"),
        ({"content": b"x", "headers": {"Content-Type": "multipart/form-data"}}, 415, "multipart/form-data"),
        ({"content": b"no form", "headers": whole["headers"]}, 400, "not multipart"),
        (whole | {"content": whole["content"][:-60]}, 400, "not complete"),
        (whole | {"content": b""}, 422, "no photo"),
        (_form(disposition.replace(b'"files"', b'"../x"') + picture), 422, "unknown field '___x'"),
        (_form(disposition.replace(b'filename="a.png"', b'filename=""') + b""), 422, "no photo"),
        (_form(b'Content-Disposition: form-data; name="options"\r\n\r\n{}'), 422, "no photo"),
        (_form(b"X: 1\r\n\r\nnothing"), 422, "unknown field ''"),
        (_form(b"X: " + b"1" * 9000 + b"\r\n\r\nlong"), 400, "not multipart"),
        (_form(disposition + picture, boundary=b"b" * 300), 400, "oundary"),
    ]
    for request, status, part in cases:
        client.refused(client.http.post("/reconstructions", **request), status, part)


# ------------------------------------------------------------------ limits
def test_limits_on_what_is_sent(start: Start, picture: bytes) -> None:
    client = start(max_upload_mb=1, max_photos=2)
    large = picture + bytes(1_100_000)
    client.refused(client.post(("a.png", large)), 413, "1 MB")
    request = _form(b'Content-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n' + large)

    def pieces() -> Iterator[bytes]:
        """Sent without a word on their length."""
        for k in range(0, len(request["content"]), 50_000):
            yield request["content"][k : k + 50_000]

    answer = client.http.post("/reconstructions", content=pieces(), headers=request["headers"])
    client.refused(answer, 413, "1 MB")
    client.refused(client.post(*[(f"{k}.png", picture) for k in range(3)]), 413, "2 files")
    client.refused(client.post(("a.png", picture), options={"x": "y" * 30_000}), 413, "options")
    assert client.wait(client.submit(("a.png", picture)))["state"] == "done"  # the places in the queue are free again


def test_no_more_jobs_wait_than_may(start: Start, picture: bytes, held: threading.Event) -> None:
    client = start(max_waiting=2)
    first = client.submit(("a.png", picture))
    client.wait(first, "running")
    others = [client.submit(("a.png", picture)) for _ in range(2)]
    assert [client.job(job_id)["place_in_queue"] for job_id in others] == [1, 2]
    answer = client.post(("a.png", picture))
    assert answer.status_code == 429 and answer.headers["retry-after"] == "30" and "2 reconstr" in answer.text
    assert [job["id"] for job in client.http.get("/reconstructions").json()["reconstructions"]] == [
        *reversed(others),
        first,
    ]
    held.set()
    assert {client.wait(job_id)["state"] for job_id in (first, *others)} == {"done"}
    finished = [client.job(job_id)["finished"] for job_id in (first, *others)]
    assert finished == sorted(finished)


def test_a_job_that_takes_too_long_is_ended(start: Start, picture: bytes) -> None:
    client = start(max_minutes=0)
    answer = client.post(("a.png", picture))
    assert answer.status_code == 408  # not even the upload is in time
    client.jobs._max_waiting = 1
    upload = client.jobs.begin_upload()
    (upload.photos / "a.png").write_bytes(picture)
    job = client.wait(client.jobs.submit(upload, ("a.png",), QUICK).id)
    assert job["state"] == "failed" and "longer than 0 minutes" in job["error"]


# ------------------------------------------------------------------ cancel, delete
def test_a_running_job_is_cancelled_soon_and_the_model_stays(
    start: Start, picture: bytes, held: threading.Event
) -> None:
    client = start()
    running, waiting = client.submit(("a.png", picture)), client.submit(("b.png", picture))
    client.wait(running, "running")
    cancelled = client.http.post(f"/reconstructions/{waiting}/cancel").json()
    assert cancelled["state"] == "cancelled" and cancelled["place_in_queue"] is None
    assert client.http.post(f"/reconstructions/{running}/cancel").status_code == 200
    assert client.wait(running)["state"] == "cancelled"
    for job_id in (running, waiting):
        assert [path.name for path in (client.folder / job_id).iterdir()] == ["job.json"]
        assert client.http.get(f"/reconstructions/{job_id}/result.zip").status_code == 409
    held.set()
    done = client.submit(("c.png", picture))
    assert client.wait(done)["state"] == "done"
    assert client.http.post(f"/reconstructions/{done}/cancel").json()["state"] == "done"


def test_a_deleted_job_is_gone_in_every_state(start: Start, picture: bytes, held: threading.Event) -> None:
    client = start()
    running, waiting = client.submit(("a.png", picture)), client.submit(("b.png", picture))
    client.wait(running, "running")
    for job_id in (waiting, running):
        assert client.http.delete(f"/reconstructions/{job_id}").status_code == 204
        assert not (client.folder / job_id / "job.json").exists()  # so that no restart takes it up
        assert client.http.get(f"/reconstructions/{job_id}").status_code == 404
        assert client.http.delete(f"/reconstructions/{job_id}").status_code == 404
    held.set()
    done = client.submit(("c.png", picture))
    client.wait(done)
    assert {path.name for path in client.folder.iterdir()} == {".lock", done}
    client.http.delete(f"/reconstructions/{done}")
    assert [path.name for path in client.folder.iterdir()] == [".lock"]
    assert client.http.get("/reconstructions").json() == {"reconstructions": []}


@pytest.mark.parametrize(
    "path",
    ["nothing", "../x", "%2e%2e", "20261126-161954-3cb0c0c46af1", "{id}/files/../job.json",
     "{id}/files/%2e%2e/job.json", "{id}/files//etc/passwd", "{id}/files/scene.glb%00", "{id}/files/photos/a.png",
     "{id}/photos/a.png", "{id}/job.json"],
)  # fmt: skip
def test_no_path_of_a_client_is_followed(start: Start, picture: bytes, path: str) -> None:
    client = start()
    job_id = client.submit(("a.png", picture))
    client.wait(job_id)
    answer = client.http.get(f"/reconstructions/{path.format(id=job_id)}")
    assert answer.status_code == 404 and "root:" not in answer.text


# ------------------------------------------------------------------ restart
def test_a_restart_keeps_finished_jobs_and_takes_up_the_others(
    start: Start, picture: bytes, held: threading.Event, tmp_path: Path
) -> None:
    client = start()
    held.set()
    done = client.submit(("a.png", picture))
    before = client.wait(done)
    held.clear()
    running, waiting = client.submit(("b.png", picture)), client.submit(("c.png", picture))
    client.wait(running, "running")
    client.http.__exit__(None, None, None)  # in good order
    states = {path.parent.name: json.loads(path.read_text()) for path in client.folder.glob("*/job.json")}
    assert [states[job_id]["state"] for job_id in (done, running, waiting)] == ["done", "waiting", "waiting"]
    assert states[running]["starts"] == 0
    held.set()
    again = start(client.folder)
    assert again.job(done) == before
    assert {again.wait(job_id)["state"] for job_id in (running, waiting)} == {"done"}
    assert again.job(running)["finished"] < again.job(waiting)["started"]


def test_what_a_dead_server_left_is_taken_up_once(start: Start, picture: bytes, tmp_path: Path) -> None:
    client = start()
    finished = client.submit(("a.png", picture))
    client.wait(finished)
    jobs = {}
    for name, starts in (("first", 1), ("second", 2)):
        upload = client.jobs.begin_upload()
        (upload.photos / "a.png").write_bytes(picture)
        jobs[name] = client.jobs.submit(upload, ("a.png",), QUICK)
        client.wait(jobs[name].id)
        state = client.folder / jobs[name].id / "job.json"
        state.write_text(json.dumps(json.loads(state.read_text()) | {"state": "running", "starts": starts}))
        if name == "first":
            (client.folder / jobs[name].id / "result" / "run.json").unlink()
            (client.folder / jobs[name].id / "result").rename(client.folder / jobs[name].id / ".result.partial-1")
        else:
            shutil.rmtree(client.folder / jobs[name].id / "result")
    state = client.folder / finished / "job.json"  # the server died between the result and its last word
    state.write_text(json.dumps(json.loads(state.read_text()) | {"state": "running", "starts": 2, "outcome": None}))
    unfinished = client.jobs.begin_upload()
    (client.folder / "20261126-161954-aaaaaaaaaaaa").mkdir()
    (client.folder / "20261126-161954-aaaaaaaaaaaa" / "job.json").write_text("{ half")
    (client.folder / "mine").mkdir()
    client.http.__exit__(None, None, None)

    again = start(client.folder)
    assert again.wait(jobs["first"].id)["state"] == "done"
    assert not list((client.folder / jobs["first"].id).glob(".result*"))
    job = again.job(jobs["second"].id)
    assert job["state"] == "failed" and "twice" in job["error"]
    job = again.job(finished)
    assert job["state"] == "done" and job["outcome"]["num_registered"] == 1
    assert not unfinished.folder.exists() and (client.folder / "mine").exists()
    assert (client.folder / "20261126-161954-aaaaaaaaaaaa" / "job.json").exists()
    assert len(again.jobs.all()) == 3


def test_a_folder_has_one_server(start: Start) -> None:
    client = start()
    with pytest.raises(InputError, match="in use by another server"):
        Jobs(client.folder, 1)


def test_a_state_that_cannot_be_written_does_not_stop_the_work(
    start: Start, picture: bytes, held: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = start()
    job_id = client.submit(("a.png", picture))
    client.wait(job_id, "running")

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Jobs, "_write", full)
    held.set()
    assert client.wait(job_id)["state"] == "done"
    answer = client.post(("b.png", picture))
    assert answer.status_code == 507 and "full" in answer.json()["detail"]
    assert {path.name for path in client.folder.iterdir()} == {".lock", job_id}


# ------------------------------------------------------------------ who may ask
def test_only_requests_that_name_this_machine_are_answered(start: Start) -> None:
    client = start()
    for host in ("127.0.0.1:8000", "localhost:8000", "LOCALHOST:8000", "[::1]:8000"):
        assert client.http.get("/about", headers={"Host": host}).status_code == 200
    for host in ("evil.example", "evil.example:8000", "127.0.0.1", "127.0.0.1:8001", "0.0.0.0:8000", ""):
        for path in ("/", "/about", "/style.css", "/openapi.json"):
            assert client.http.get(path, headers={"Host": host}).status_code == 403


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 202),
        ({"Origin": ORIGIN, "Sec-Fetch-Site": "same-origin"}, 202),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "http://127.0.0.1:8001"}, 403),
        ({"Origin": "null"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
    ],
)
def test_pages_of_other_sites_cannot_post(start: Start, picture: bytes, headers: dict[str, str], status: int) -> None:
    client = start()
    assert client.post(("a.png", picture), headers=headers).status_code == status
    if status == 403:
        assert client.jobs.all() == []
        assert client.http.delete("/reconstructions/x", headers=headers).status_code == 403


def test_with_a_token_nothing_is_answered_without_it(start: Start) -> None:
    token = "correct horse battery"
    client = start(token=token)
    for path in ("/about", "/reconstructions", "/reconstructions/x", "/openapi.json", "/main.js", "/nothing"):
        assert client.http.get(path).status_code == 401
    for wrong in ("Bearer", f"Bearer {token}x", f"Basic {token}", token, "Bearer \u00fc"):
        answer = client.http.get("/about", headers={b"Authorization": wrong.encode("latin-1")})
        assert answer.status_code == 401 and answer.headers["www-authenticate"] == "Bearer"
    assert client.post(("a.png", b"")).status_code == 401
    right = {"Authorization": f"Bearer {token}"}
    assert client.http.get("/about", headers=right).status_code == 200
    assert client.http.get("/about", headers=right | {"Host": "gpu-machine.example:80"}).status_code == 200

    page = client.http.get("/", headers={"Accept": "text/html"})
    assert page.status_code == 401 and "<form" in page.text and "'unsafe" not in page.headers["content-security-policy"]
    assert client.http.get("/?token=wrong", headers={"Accept": "text/html"}).status_code == 401
    assert client.http.post("/session", data={"token": "wrong"}).status_code == 401
    assert "wrong" in client.http.post("/session", data={"token": "wrong"}).text
    assert client.http.post("/session", content=b"token=" + b"x" * 5000).status_code == 413
    for enter in (
        lambda: client.http.get("/", params={"token": token}),
        lambda: client.http.post("/session", data={"token": f" {token} "}),
    ):
        client.http.cookies.clear()
        answer = enter()
        assert answer.status_code == 303 and answer.headers["location"] == "/"
        cookie = answer.headers["set-cookie"]
        assert "HttpOnly" in cookie and "SameSite=lax" in cookie and token.split()[0] not in cookie
        assert client.http.get("/").status_code == 200 and client.http.get("/about").status_code == 200
    client.http.cookies.set("mast3r_sfm_8000", "0" * 64)
    client.http.cookies.clear()
    assert client.http.get("/about", headers={"Cookie": "mast3r_sfm_8000=00"}).status_code == 401


def test_without_a_token_there_is_no_way_to_sign_in(start: Start) -> None:
    client = start()
    assert client.http.post("/session", data={"token": ""}).status_code == 401
    assert "set-cookie" not in client.http.get("/?token=").headers


def test_headers_let_browsers_do_nothing_but_what_the_page_needs(start: Start) -> None:
    client = start()
    page = client.http.get("/")
    assert page.headers["content-security-policy"].startswith(
        "default-src 'none'; script-src 'self'; style-src 'self';"
    )
    assert "style=" not in page.text and "onclick" not in page.text and page.text.count("<script") == 1
    for path in ("/", "/main.js", "/style.css", "/about", "/nothing"):
        headers = client.http.get(path).headers
        assert headers["x-content-type-options"] == "nosniff" and headers["referrer-policy"] == "same-origin"
        assert headers["x-frame-options"] == "DENY" and headers["cross-origin-resource-policy"] == "same-origin"
        assert headers["content-security-policy"].startswith("default-src 'none'; s")
    assert client.http.get("/docs").status_code == 404  # which would load scripts from elsewhere
    schema = client.http.get("/openapi.json").json()
    assert {"/reconstructions", "/reconstructions/{job_id}", "/reconstructions/{job_id}/cancel"} <= set(schema["paths"])


def test_the_document_names_every_option_and_route(start: Start) -> None:
    document = (Path(__file__).parents[1] / "docs" / "serve.md").read_text()
    for name in JobOptions.model_fields:
        assert f"`{name}`" in document, name
    for path, methods in start().http.get("/openapi.json").json()["paths"].items():
        for method in methods:
            shown = path.replace("{job_id}", "ID").replace("{name}", "NAME")
            assert f"`{method.upper()} {shown}" in document, f"{method} {path}"


# ------------------------------------------------------------------ the command
def test_a_token_is_asked_for_wherever_other_machines_can_ask() -> None:
    assert [is_loopback(host) for host in ("127.0.0.1", "::1", "localhost", "127.9.9.9")] == [True] * 4
    assert [is_loopback(host) for host in ("0.0.0.0", "::", "192.168.1.2", "example.org", "")] == [False] * 5
    assert token_of(ServeRequest()) is None
    made = [token_of(ServeRequest(host="0.0.0.0")) for _ in range(2)]
    assert made[0] != made[1] and all(one is not None and len(one) >= 32 for one in made)
    assert token_of(ServeRequest(token="x" * 16)) == "x" * 16
    for weak in ("", "x" * 15, "\u00fc" * 20, "x" * 20 + "\n"):
        with pytest.raises(InputError, match="`token`"):
            token_of(ServeRequest(token=weak))


def test_what_keeps_it_from_starting_is_told_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    output = ["--output", tmp_path / "out"]
    (tmp_path / "file").touch()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        cases: list[tuple[list[object], int, str]] = [
            (["--port", port, *output], 2, f"--port {port} is in use"),
            (["--host", "192.0.2.1", *output], 2, "--host 192.0.2.1 is no address of this machine"),
            (["--token", "short", *output], 2, "--token must have 16 characters"),
            (["--max-photos", 0, *output], 2, "--max-photos"),
            (["--output", tmp_path / "file", "--port", _free_port()], 2, "file"),
            (["--model-name", "nobody", "--port", _free_port(), *output], 3, "nobody"),
        ]
        for arguments, code, part in cases:
            assert run("serve", *arguments) == code, arguments
            error = capsys.readouterr().err
            assert error.count("\n") == 1 and error.startswith("Error: ") and part in error, error
    monkeypatch.setattr("mast3r_sfm.app.commands.find_spec", lambda name: None)
    assert run("serve", *output) == 2
    assert "pip install 'mast3r-sfm[serve]'" in capsys.readouterr().err


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        return int(found.getsockname()[1])


def test_nothing_of_it_is_imported_for_other_commands() -> None:
    """No other module imports it, or what it needs, before a function of it runs."""
    package = Path(mast3r_sfm.__file__).parent
    for path in package.rglob("*.py"):
        if "serve" in path.relative_to(package).parts:
            continue
        for node in ast.parse(path.read_text()).body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not [name for name in names if re.search(r"app\.serve|fastapi|starlette|uvicorn|pydantic", name)], (
                path
            )


def test_states_that_are_final() -> None:
    assert [state for state in State if state.is_final] == [State.DONE, State.FAILED, State.CANCELLED]
