"""report.html and `mast3r-sfm view`: what they hold, and what a browser makes of it."""

import base64
import dataclasses
import hashlib
import http.client
import json
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from browser import Page, browser_page
from export_scene import matches, pose, two_views, view
from PIL import Image

from mast3r_sfm.app.cli import main
from mast3r_sfm.app.viewer import ResultServer, ServedResult
from mast3r_sfm.errors import InputError
from mast3r_sfm.export.depth import ColourScale
from mast3r_sfm.export.orientation import frame_of_scene
from mast3r_sfm.export.report import MAX_BYTES, write_report
from mast3r_sfm.export.report.document import MAX_PAIRS, report_document
from mast3r_sfm.export.report.page import embeddable_json
from mast3r_sfm.export.report.pictures import small_pictures
from mast3r_sfm.export.report.points import PointCloud, even_shares
from mast3r_sfm.export.result import ResultPart, rewrite_scene, write_result
from mast3r_sfm.options import SceneOptions
from mast3r_sfm.reconstruction import Reconstruction
from mast3r_sfm.types import Level, ReconstructedView, SceneVerdict, Verdict

OPTIONS = SceneOptions(min_conf_thr=3.0)

HOSTILE = (
    "<script>document.title='broken'<img src=x onerror=document.title='broken'>.jpg",
    "<!--<script> \"quotes\" & 'more'\nin two lines\u2028.jpg",
    "not UTF-8 \udcff.jpg",
)
"""Names that a file can have, and that a page must show as they are."""


def scene() -> Reconstruction:
    """A slanted wall with a box before it, seen by three cameras side by side, and a photo that did not connect."""
    y, x = np.mgrid[:96, :128]
    # the wall z = 4 + x / 8 of the world: seen from (c, 0, 0) along z through pixel u, z = (4 + c / 8) / (1 - u / 8)
    rng = np.random.default_rng(7)
    views = []
    for k, name in enumerate(HOSTILE):
        centre = 0.6 * (k - 1)
        wall = (4 + centre / 8) / (1 - (x - 63.5) / 100 / 8)
        depth = np.where((abs(x - 80 + 25 * k) < 12) & (abs(y - 48) < 16), 2.5, wall)
        conf = 4 + 20 * rng.random((96, 128))
        checks = 90 + 130 * ((x // 8 + y // 8) % 2)
        rgb = np.stack([checks, 255 - checks, np.full_like(x, 60 * k)], -1)
        views.append(view(depth, conf, k, pose(0, [centre, 0, 0]), rgb, focal=100.0, file=f"photos/{name}"))
    lost = dataclasses.replace(view(np.full((96, 128), 3.0), 5.0, 3, focal=100.0), registered=False, file="lost.png")
    pairs = (
        matches(0, 1, [[4, 1], [5, 2], [6, 3]], [[2, 1], [3, 2], [4, 3]], [0.5, 1.5, 2.5]),
        matches(1, 2, [[4, 1]], [[2, 1]], [0.5]),
    )
    return Reconstruction((*views, lost), pairs)


RUN = {
    "pairs": [
        {"i": 0, "j": 1, "num_matches": 9, "num_verified": 5, "kept": True, "num_features": 4},
        {"i": 0, "j": 2, "num_matches": 2, "num_verified": 0, "kept": False, "num_features": None},
        {"i": 1, "j": 2, "num_matches": 3, "num_verified": 1, "kept": True, "num_features": None},
    ],
    "groups": [[0, 1, 2], [3]],
    "options": {"seed": 0, "alignment": {"subsample": 8}, "dense": None},
    "model": {"name": "small"},
    "seconds": {"Align cameras": 1.5},
    "warnings": ["photos/</script><script>document.title='broken'</script>/lost.png does not connect"],
}


def block(html: str, name: str) -> str:
    """The text of an embedded block."""
    found = re.search(rf'<script type="text/plain" id="{name}">([^<]*)</script>', html)
    assert found is not None
    return found[1]


def unpacked(chunk: dict[str, Any], data: bytes) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Positions (n, 3), colours (n, 3) and levels of confidence (n,) of a chunk, as its documentation says."""
    n = chunk["count"]
    stored = np.frombuffer(data, "<u2", 3 * n).reshape(n, 3)
    colours = np.frombuffer(data, np.uint8, 3 * n, 6 * n).reshape(n, 3)
    levels = np.frombuffer(data, np.uint8, n, 9 * n)
    return np.array(chunk["offset"]) + np.array(chunk["scale"]) * stored, colours, levels


class TestPoints:
    def test_shares_are_even_as_far_as_each_has_so_many(self) -> None:
        assert even_shares([10, 2, 10], 12) == [5, 2, 5]
        assert even_shares([1, 2, 3], 100) == [1, 2, 3]
        assert even_shares([4, 4, 4], 2) == [0, 1, 1] and even_shares([], 5) == []

    def test_all_points_are_those_of_the_result_in_the_axes_of_the_scene_file(self) -> None:
        result = scene()
        cloud = PointCloud.of_scene(result, OPTIONS)
        frame = frame_of_scene(result, OPTIONS)
        assert cloud is not None and frame is not None and cloud.num_points == 3 * 96 * 128
        for k, one in enumerate(result.registered):
            chunk = cloud.chunk(k)
            positions, colours, levels = unpacked(chunk.described(), chunk.data)
            pixels = np.random.default_rng(k).permutation(96 * 128)
            expected = frame.apply(one.points_world().reshape(-1, 3)[pixels])
            size = np.ptp(expected, axis=0).max()
            assert np.abs(positions - expected).max() < size / 1e5
            np.testing.assert_array_equal(colours, one.rgb.reshape(-1, 3)[pixels])
            low, high = cloud.confidence.low, cloud.confidence.high
            confidence = low * (high / low) ** (levels / 255)
            # half a level, and the top two per cent are clipped
            np.testing.assert_allclose(confidence, np.minimum(one.conf.reshape(-1)[pixels], high), rtol=0.005)

    def test_a_budget_takes_a_first_part_of_every_view(self) -> None:
        cloud = PointCloud.of_scene(scene(), OPTIONS)
        assert cloud is not None
        thin = cloud.thinned(999)
        assert thin.counts == (333, 333, 333)
        whole, part = (unpacked(one.chunk(1).described(), one.chunk(1).data)[1] for one in (cloud, thin))
        np.testing.assert_array_equal(part, whole[:333])
        assert thin.chunk(1).data == cloud.thinned(999).chunk(1).data
        # a third as many points per length, which are three times as large
        assert thin.chunk(1).pitch / cloud.chunk(1).pitch == pytest.approx(np.sqrt(96 * 128 / 333))

    def test_only_what_the_scene_file_shows_is_there(self) -> None:
        result = two_views()
        conf = np.full((12, 16), 10.0, dtype=np.float32)
        conf[:, :4] = 2.0
        half = dataclasses.replace(result.views[0], conf=conf, conf_clean=conf)
        cloud = PointCloud.of_scene(dataclasses.replace(result, views=(half, result.views[1])), OPTIONS)
        assert cloud is not None and cloud.counts == (12 * 12, 12 * 16)

    def test_one_point_and_no_point_make_chunks(self) -> None:
        conf = np.zeros((12, 16), dtype=np.float32)
        conf[3, 5] = 9.0
        one = view(np.full((12, 16), 2.0), conf)
        cloud = PointCloud.of_scene(Reconstruction((one, view(np.full((12, 16), 2.0), 0.0, 1)), ()), OPTIONS)
        assert cloud is not None and cloud.counts == (1, 0)
        positions, _, _ = unpacked(cloud.chunk(0).described(), cloud.chunk(0).data)
        np.testing.assert_allclose(positions[0], cloud.frame.apply(one.points_world()[3, 5]), atol=1e-9)
        assert cloud.chunk(1).data == b""


class TestDocument:
    def document(self) -> dict[str, Any]:
        result = scene()
        return report_document(result, OPTIONS, RUN, PointCloud.of_scene(result, OPTIONS))

    def test_pairs_say_what_was_found_confirmed_and_used(self) -> None:
        pairs = self.document()["pairs"]
        assert pairs["i"] == [0, 0, 1] and pairs["j"] == [1, 2, 2]
        assert pairs["found"] == [9, 2, 3] and pairs["confirmed"] == [5, 0, 1] and pairs["used"] == [3, 0, 1]
        assert pairs["features"] == [4, None, None] and pairs["num_all"] == 3 and pairs["num_used"] == 2

    def test_a_result_without_history_knows_its_matches(self) -> None:
        pairs = report_document(scene(), OPTIONS, {}, None)["pairs"]
        assert pairs["found"] == [None, None] and pairs["used"] == [3, 1]

    def test_very_many_pairs_are_the_strongest_ones(self) -> None:
        count = MAX_PAIRS + 10
        summary = {"num_matches": 7, "num_verified": 7, "kept": True}
        run = {"pairs": [{"i": k, "j": k + 1, **summary} for k in range(count)]}
        pairs = report_document(scene(), OPTIONS, run, None)["pairs"]
        assert len(pairs["i"]) == MAX_PAIRS and pairs["num_all"] == count + 0
        assert pairs["used"][:2] == [3, 1]

    def test_views_say_what_is_known_of_them(self) -> None:
        first, _, _, lost = self.document()["views"]
        assert first["registered"] and first["size"] == [256, 192] and first["picture_size"] == [128, 96]
        assert first["share_kept"] == 1.0 and first["num_matches"] == 3 and first["focal_px"] == pytest.approx(200)
        assert first["camera"]["width_at_1"] == pytest.approx(1.28)
        assert lost["name"] == "lost.png" and lost["camera"] is None and not lost["registered"]

    def test_the_corners_of_a_camera_are_those_of_its_picture(self) -> None:
        result = scene()
        frame = frame_of_scene(result, OPTIONS)
        assert frame is not None
        camera = self.document()["views"][2]["camera"]
        corner = result.views[2].world_from_cam[:3, :3] @ [(-0.5 - 63.5) / 100, (-0.5 - 47.5) / 100, 1.0]
        np.testing.assert_allclose(camera["corners"][0], frame.gltf_from_world[:3, :3] @ corner, atol=1e-6)
        np.testing.assert_allclose(camera["centre"], frame.apply(np.array([0.6, 0, 0])), atol=1e-6)

    def test_verdicts_stand_where_they_are_given(self) -> None:
        assert self.document()["verdict"] is None
        good, poor = Verdict(Level.GOOD), Verdict(Level.POOR, ("blurred",))
        verdict = SceneVerdict(Verdict(Level.DOUBTFUL, ("few matches",)), (good, poor, good, good))
        document = report_document(dataclasses.replace(scene(), verdict=verdict), OPTIONS, RUN, None)
        assert document["verdict"] == {"level": "doubtful", "reasons": ["few matches"]}
        assert document["views"][1]["verdict"] == {"level": "poor", "reasons": ["blurred"]}
        assert document["views"][0]["verdict"] == {"level": "good", "reasons": []}

    def test_settings_are_flat_text(self) -> None:
        settings = self.document()["settings"]
        assert settings["Run"] == {"seed": "0", "alignment.subsample": "8", "dense": "none"}
        assert settings["Scene"]["min_conf_thr"] == "3.0" and settings["Versions"] == {}

    def test_a_doubtful_camera_says_why(self) -> None:
        result = scene()
        bad = dataclasses.replace(result.views[0], median_reprojection_error_px=9.0)
        result = dataclasses.replace(result, views=(bad, *result.views[1:]))
        assert "reproject 9 px off" in report_document(result, OPTIONS, {}, None)["views"][0]["doubt"]


class TestFile:
    def write(self, path: Path, result: Reconstruction, **arguments: Any) -> str:
        write_report(result, path, OPTIONS, RUN, **arguments)
        return path.read_text(encoding="utf-8")

    def test_names_neither_end_a_script_nor_get_lost(self, tmp_path: Path) -> None:
        html = self.write(tmp_path / "report.html", scene())
        assert "broken" in html and "<script>document.title='broken'" not in html and "<!--<" not in html
        document = json.loads(block(html, "document"))
        assert tuple(one["name"] for one in document["views"][:3]) == HOSTILE
        assert document["warnings"] == RUN["warnings"]

    def test_nothing_is_fetched_and_nothing_else_may_run(self, tmp_path: Path) -> None:
        html = self.write(tmp_path / "report.html", scene())
        policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', html)
        assert policy is not None and policy[1].startswith("default-src 'none'; ") and "unsafe" not in policy[1]
        texts = re.findall(r"<script>(.*?)</script>", html, re.S) + re.findall(r"<style>(.*?)</style>", html, re.S)
        assert len(texts) == 3
        for text in texts:
            assert base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() in policy[1]
        assert not re.search(r"""(src|href)=["']?(https?:)?//""", html)
        assert "Permission is hereby granted" in html  # the licence of three.js

    def test_points_of_the_file_are_those_of_the_cloud(self, tmp_path: Path) -> None:
        result = scene()
        html = self.write(tmp_path / "report.html", result)
        cloud = PointCloud.of_scene(result, OPTIONS)
        assert cloud is not None
        described = json.loads(block(html, "chunks"))
        assert [one["count"] for one in described] == [96 * 128] * 3
        for k in range(3):
            assert base64.b64decode(block(html, f"points-{k}")) == cloud.chunk(k).data

    def test_equal_results_make_equal_files(self, tmp_path: Path) -> None:
        assert self.write(tmp_path / "a.html", scene()) == self.write(tmp_path / "b.html", scene())

    def test_without_a_registered_photo_it_is_written_all_the_same(self, tmp_path: Path) -> None:
        result = scene()
        lost = tuple(dataclasses.replace(one, registered=False) for one in result.views)
        html = self.write(tmp_path / "report.html", dataclasses.replace(result, views=lost))
        assert json.loads(block(html, "document"))["kept_points"] == 0

    def test_a_thousand_photos_stay_below_the_limit(self, tmp_path: Path) -> None:
        rng = np.random.default_rng(0)

        def noise(k: int) -> ReconstructedView:  # which no format of pictures makes small
            depth, rgb = rng.uniform(2, 4, (48, 64)), rng.integers(0, 256, (48, 64, 3))
            return view(depth, rng.uniform(3.1, 50, (48, 64)), k, pose(k, [k, 0, 0]), rgb, focal=60.0)

        views = tuple(noise(k) for k in range(1000))
        write_report(Reconstruction(views, ()), tmp_path / "report.html", OPTIONS, RUN)
        size = (tmp_path / "report.html").stat().st_size
        assert 6e6 < size <= MAX_BYTES
        html = (tmp_path / "report.html").read_text(encoding="utf-8")
        assert sum(one["count"] for one in json.loads(block(html, "chunks"))) > 200_000

    def test_pictures_shrink_with_their_number_and_end_with_the_photos(self) -> None:
        result = scene()
        pictures = small_pictures(result, 1_000_000)
        assert set(pictures[3]) == {"photo", "depth", "confidence"}
        header, _, data = pictures[0]["photo"].partition(",")
        photo = cv2.imdecode(np.frombuffer(base64.b64decode(data), np.uint8), cv2.IMREAD_COLOR)
        assert header == "data:image/webp;base64" and photo is not None and photo.shape == (96, 128, 3)
        few = len(embeddable_json(small_pictures(result, 5000)))
        assert 1000 < few <= 5000
        assert set(small_pictures(result, 2500)[0]) == {"photo"} and small_pictures(result, 100) == {}


class TestResultFolder:
    def test_every_result_has_one_unless_it_is_not_wanted(self, tmp_path: Path) -> None:
        write_result([ResultPart(two_views(), OPTIONS, RUN)], tmp_path / "with", overwrite=False)
        write_result([ResultPart(two_views(), OPTIONS, RUN)], tmp_path / "without", overwrite=False, report=False)
        assert (tmp_path / "with" / "report.html").exists() and not (tmp_path / "without" / "report.html").exists()
        again = [ResultPart(two_views(), OPTIONS, RUN)]
        write_result(again, tmp_path / "with", overwrite=True)  # it is no foreign file

    def test_it_follows_the_scene_that_is_written_anew(self, tmp_path: Path) -> None:
        for name, report in (("with", True), ("without", False)):
            write_result([ResultPart(two_views(), OPTIONS, RUN)], tmp_path / name, overwrite=False, report=report)
            rewrite_scene(tmp_path / name, dataclasses.replace(OPTIONS, min_conf_thr=4.5))
            assert (tmp_path / name / "report.html").exists() is report
        html = (tmp_path / "with" / "report.html").read_text(encoding="utf-8")
        document = json.loads(block(html, "document"))
        assert document["settings"]["Scene"]["min_conf_thr"] == "4.5" and document["pairs"]["found"] == [9, 2, 3]

    def test_export_writes_it_from_the_folder(self, tmp_path: Path) -> None:
        output = tmp_path / "out"
        write_result([ResultPart(two_views(), OPTIONS, RUN)], output, overwrite=False)
        first = (output / "report.html").read_bytes()
        (output / "report.html").unlink()
        with pytest.raises(SystemExit) as ended:
            main(["export", str(output), "--export", "report", "--quiet"])
        assert not ended.value.code and (output / "report.html").read_bytes() == first
        Reconstruction.load(output).export("report", tmp_path / "other.html")
        assert (tmp_path / "other.html").exists()


# ------------------------------------------------------------------ the server of `view`
@pytest.fixture
def server(tmp_path: Path) -> Iterator[ResultServer]:
    """Of `scene`, whose second photo is there at its full size."""
    result = scene()
    photo = tmp_path / "photo.png"
    Image.fromarray(np.full((192, 256, 3), (10, 200, 30), dtype=np.uint8)).save(photo)
    second = dataclasses.replace(result.views[1], file=str(photo))
    result = dataclasses.replace(result, views=(result.views[0], second, *result.views[2:]))
    with ResultServer(None) as made:
        made.result = ServedResult(result, OPTIONS, RUN)
        thread = threading.Thread(target=made.serve_forever)
        thread.start()
        yield made
        made.shutdown()
        thread.join()


def ask(server: ResultServer, path: str, host: str | None = None, method: str = "GET") -> tuple[int, str, bytes]:
    """Status, content type and body."""
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=30)
    connection.putrequest(method, path, skip_host=True)
    connection.putheader("Host", host or f"127.0.0.1:{server.server_port}")
    connection.endheaders()
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    return answer.status, answer.headers.get("Content-Type", ""), body


class TestServer:
    def test_the_page_and_all_points_are_served(self, server: ResultServer) -> None:
        status, kind, body = ask(server, "/")
        assert status == 200 and kind.startswith("text/html") and b"connect-src 'self'" in body
        data = json.loads(ask(server, "/data.json")[2])
        assert data["document"]["kept_points"] == 3 * 96 * 128 and len(data["chunks"]) == 3
        assert len(ask(server, "/points/2")[2]) == 10 * 96 * 128

    def test_pictures_are_large_where_the_photo_is_there(self, server: ResultServer) -> None:
        def shape(path: str) -> tuple[int, ...]:
            picture = cv2.imdecode(np.frombuffer(ask(server, path)[2], np.uint8), cv2.IMREAD_COLOR)
            assert picture is not None
            return picture.shape[:2]

        assert shape("/large/photo/1") == (192, 256) and shape("/large/photo/0") == (96, 128)
        assert shape("/large/depth/1") == shape("/small/confidence/3") == (96, 128)
        assert ask(server, "/large/photo/1", method="HEAD")[2] == b""

    @pytest.mark.parametrize(
        "path",
        ["/run.json", "/../run.json", "/%2e%2e/run.json", "//etc/passwd", "/points/3", "/points/-1", "/points/0/..",
         "/large/photo/99", "/large/../photo/1", "/small/mask/0", "/points/١", "/small/photo/0\x00"],
    )  # fmt: skip
    def test_nothing_else_is(self, server: ResultServer, path: str) -> None:
        connection = socket.create_connection(("127.0.0.1", server.server_port), timeout=30)
        host = f"127.0.0.1:{server.server_port}"
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
        with connection, connection.makefile("rb") as answer:
            assert answer.readline().split()[1] in (b"404", b"400")

    def test_other_hosts_and_methods_are_refused(self, server: ResultServer) -> None:
        port = server.server_port
        assert ask(server, "/", f"localhost:{port}")[0] == 200
        for host in ("evil.example", f"evil.example:{port}", "127.0.0.1", f"127.0.0.1:{port + 1}", f"0.0.0.0:{port}"):
            assert ask(server, "/data.json", host)[0] == 403
        assert ask(server, "/", method="POST")[0] == 501
        assert server.server_address[0] == "127.0.0.1"

    def test_a_port_in_use_is_told_in_one_line(
        self, server: ResultServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with pytest.raises(InputError, match=f"`port={server.server_port}` is in use"):
            ResultServer(server.server_port)
        write_result([ResultPart(two_views(), OPTIONS, {})], tmp_path / "out", overwrite=False)
        with pytest.raises(SystemExit) as ended:
            main(["view", str(tmp_path / "out"), "--no-browser", "--port", str(server.server_port)])
        assert ended.value.code == 2 and f"Error: --port {server.server_port} is in use" in capsys.readouterr().err

    def test_what_is_no_result_is_told_in_one_line(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        for folder in (tmp_path, tmp_path / "missing"):
            with pytest.raises(SystemExit) as ended:
                main(["view", str(folder), "--no-browser"])
            assert ended.value.code == 2
            assert capsys.readouterr().err == (
                f"Error: {folder} is not a result of mast3r-sfm: name the output folder of a finished reconstruction\n"
            )

    def test_ctrl_c_ends_the_command_well(self, tmp_path: Path) -> None:
        write_result([ResultPart(two_views(), OPTIONS, {})], tmp_path / "out", overwrite=False)
        command = [sys.executable, "-m", "mast3r_sfm", "view", str(tmp_path / "out"), "--no-browser"]
        # a shell that runs the tests in the background lets its children ignore SIGINT; a person's does not
        listen = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # noqa: E731
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, preexec_fn=listen)
        assert process.stderr is not None
        lines = [process.stderr.readline(), process.stderr.readline()]
        address = re.search(r"http://127\.0\.0\.1:(\d+)/ shows", lines[1])
        assert address is not None, lines
        connection = http.client.HTTPConnection("127.0.0.1", int(address[1]), timeout=30)
        connection.request("GET", "/data.json")
        assert connection.getresponse().status == 200
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
        assert process.returncode == 0 and "Traceback" not in errors


# ------------------------------------------------------------------ in a browser
@pytest.fixture(scope="module")
def browser() -> Iterator[Page]:
    with browser_page() as page:
        yield page


@pytest.fixture(scope="module")
def report_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("a folder & more") / "report.html"
    write_report(scene(), path, OPTIONS, RUN)
    return path


@pytest.fixture
def report(browser: Page, report_file: Path) -> Page:
    """The report of `scene`, opened as a file; opened once, as that takes seconds, and as it was then."""
    browser.size(1000, 700)
    if browser.evaluate("location.href") != report_file.as_uri():
        browser.problems.clear()
        browser.open(report_file.as_uri())
    browser.evaluate("document.getElementById('reset').click(); scrollTo(0, 0)")
    browser.settle()
    return browser


def canvas(page: Page) -> np.ndarray:
    """(h, w, 3) what the middle of the 3D view shows, away from its buttons."""
    page.settle()
    box = page.box("#view")
    shot = page.screenshot()
    top, left = int(box["y"]) + 120, int(box["x"]) + 10
    return shot[top : int(box["y"] + box["height"]) - 60, left : int(box["x"] + box["width"]) - 10]


def shown_share(page: Page) -> float:
    """Share of the view's pixels that are not background."""
    picture = canvas(page).astype(int)
    return float((np.abs(picture - picture[0, 0]).max(axis=-1) > 12).mean())


def click_on(page: Page, point: np.ndarray) -> None:
    """Clicks where the 3D view shows a point (3,) of the scene file."""
    x, y = page.evaluate(f"page.viewer.pixelOf(new THREE.Vector3({','.join(map(str, point))}))")
    box = page.box("#view canvas")
    page.click(box["x"] + x, box["y"] + y)


def set_slider(page: Page, name: str, value: float) -> None:
    page.evaluate(
        f"(() => {{ const s = document.getElementById('{name}'); s.value = {value};"
        "s.dispatchEvent(new Event('input')); })()"
    )


class TestBrowser:
    def test_it_opens_as_a_file_without_a_complaint_and_shows_the_scene(self, report: Page) -> None:
        assert report.problems == []
        assert report.evaluate("document.title") == "Reconstruction of 4 photos"  # no name has run as a script
        assert 0.05 < shown_share(report) < 0.95
        assert report.evaluate("document.querySelectorAll('#sheet .card').length") == 4
        assert report.evaluate("performance.getEntriesByType('resource').length") == 0

    def test_names_are_shown_as_they_are(self, report: Page) -> None:
        shown = report.evaluate(
            "[...document.querySelectorAll('#sheet .name span:first-child')].map((e) => e.textContent)"
        )
        assert shown[:2] == list(HOSTILE[:2])
        assert shown[2].startswith("not UTF-8 ") and shown[3] == "lost.png"

    def test_the_slider_changes_the_number_of_points(self, report: Page) -> None:
        counts = []
        for level in (0, 128, 255):
            set_slider(report, "confidence", level)
            counts.append(report.evaluate("page.viewer.numDrawn"))
            text = report.evaluate("document.getElementById('drawn').textContent")
            assert text == f"{counts[-1]:,} of {3 * 96 * 128:,} points drawn"
        cloud = PointCloud.of_scene(scene(), OPTIONS)
        assert cloud is not None
        levels = np.concatenate([np.frombuffer(cloud.chunk(k).data[9 * 96 * 128 :], np.uint8) for k in range(3)])
        assert counts == [np.count_nonzero(levels >= level) for level in (0, 128, 255)]
        few = shown_share(report)
        set_slider(report, "confidence", 0)
        assert few < 0.7 * shown_share(report)

    def test_larger_points_cover_more(self, report: Page) -> None:
        set_slider(report, "size", 0.3)
        small = canvas(report)
        set_slider(report, "size", 3)
        assert np.mean(np.any(small != canvas(report), axis=-1)) > 0.02

    def test_a_measured_distance_is_that_of_the_results_points(self, report: Page) -> None:
        result = scene()
        frame = frame_of_scene(result, OPTIONS)
        assert frame is not None
        own = result.views[1].points_world().astype(np.float64)
        ends = [own[10, 20], own[85, 110]]
        report.press("m")
        for end in ends:
            click_on(report, frame.apply(end))
        expected = float(np.linalg.norm(ends[0] - ends[1]))
        assert report.evaluate("page.viewer.distance") == pytest.approx(expected, rel=5e-3)
        assert report.evaluate("document.getElementById('distance').textContent") == f"{expected:.4g} m"
        report.wait("!document.getElementById('distance').hidden")  # from the next frame on
        report.press("Escape")
        assert report.evaluate("page.viewer.distance") is None and report.problems == []

    def test_a_camera_shows_its_photo_when_clicked(self, report: Page) -> None:
        before = canvas(report)
        base = report.evaluate("page.viewer.placed[0].camera.base.map((corner) => corner.toArray())")
        click_on(report, np.mean(base, axis=0))
        report.wait("page.viewer.pictureOf === page.report.views[0]")
        assert report.evaluate("document.querySelector('#photo h2').textContent") == HOSTILE[0]
        report.wait("document.querySelector('#photo img').naturalWidth === 128")
        assert before.shape != canvas(report).shape  # the panel has its place beside the view
        report.press("Escape")
        report.settle()
        assert report.evaluate("page.viewer.chosen === null && document.getElementById('photo').hidden")
        assert report.problems == []

    def test_walking_stands_where_the_photos_were_taken(self, report: Page) -> None:
        frame = frame_of_scene(scene(), OPTIONS)
        assert frame is not None
        report.press("2")
        for centre in (-0.6, 0.0, 0.6, -0.6):
            report.wait("page.viewer.walk.flight === null")
            expected = frame.apply(np.array([centre, 0, 0]))
            assert np.allclose(report.evaluate("page.viewer.camera.position.toArray()"), expected, atol=1e-4)
            report.press("ArrowRight")
        report.press("r")
        assert report.evaluate("page.viewer.walk.enabled") is False and report.problems == []

    def test_dragging_turns_the_scene_and_reset_undoes_it(self, report: Page) -> None:
        place = "page.viewer.camera.position.toArray()"
        first = report.evaluate(place)
        report.drag((400, 400), (600, 420))
        report.settle()
        assert not np.allclose(report.evaluate(place), first, rtol=1e-3)
        report.evaluate("document.getElementById('reset').click()")
        report.settle()  # though the turn had not faded away
        assert np.allclose(report.evaluate(place), first, rtol=1e-3)

    def test_dark_and_light(self, report: Page) -> None:
        report.dark(False)
        report.settle()
        light = canvas(report)[0, 0].sum()
        report.dark(True)
        report.settle()
        assert canvas(report)[0, 0].sum() < light / 2
        report.press("t")  # which switches to light
        assert report.evaluate("document.documentElement.dataset.theme") == "light"
        assert canvas(report)[0, 0].sum() == light
        report.evaluate("localStorage.clear(); delete document.documentElement.dataset.theme")
        report.dark(False)

    def test_on_a_telephone_nothing_is_wider_than_the_screen(self, report: Page) -> None:
        report.size(390, 844, telephone=True)
        report.settle()
        assert report.evaluate("document.documentElement.scrollWidth") == 390
        box = report.box("#view")
        assert box["width"] > 350 and 300 < box["height"] < 800

    def test_help_opens_by_the_question_mark(self, report: Page) -> None:
        report.press("?")
        assert report.evaluate("document.getElementById('keys').open")
        report.press("Escape")
        report.wait("!document.getElementById('keys').open")

    def test_matrix_plan_and_table_say_what_they_show(self, report: Page) -> None:
        report.evaluate("document.getElementById('matches').scrollIntoView()")
        report.settle()
        box = report.box("#matrix")
        x, y = box["x"] + 0.375 * box["width"], box["y"] + 0.125 * box["height"]  # row 0, column 1 of four
        report.ask("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
        report.wait("document.getElementById('matrix-reading').textContent.trim()")
        reading = report.evaluate("document.getElementById('matrix-reading').textContent")
        assert reading.endswith("9 found, 5 confirmed, 4 of local features, 3 took part")
        head = "document.querySelectorAll('#table thead button')[1]"
        report.evaluate(f"{head}.click()")
        rows = "[...document.querySelectorAll('#table tbody th')].map((e) => e.textContent)"
        assert report.evaluate(rows) == sorted(report.evaluate(rows))
        assert report.evaluate("document.querySelectorAll('#table tbody tr').length") == 4 and report.problems == []

    def test_without_a_place_for_any_photo_the_page_says_so(self, browser: Page, tmp_path: Path) -> None:
        result = scene()
        lost = tuple(dataclasses.replace(one, registered=False) for one in result.views)
        write_report(dataclasses.replace(result, views=lost), tmp_path / "report.html", OPTIONS, {})
        browser.problems.clear()
        browser.open((tmp_path / "report.html").as_uri())
        assert "No photo has a place" in browser.evaluate("document.getElementById('empty').textContent")
        assert browser.problems == []

    def test_verdicts_are_badges_with_their_reasons(self, browser: Page, tmp_path: Path) -> None:
        own = (Verdict(Level.DOUBTFUL, ("dark",)), *(Verdict(Level.GOOD),) * 3)
        judged = dataclasses.replace(
            scene(), verdict=SceneVerdict(Verdict(Level.POOR, ("too <b>few</b> photos",)), own)
        )
        write_report(judged, tmp_path / "report.html", OPTIONS, RUN)
        browser.open((tmp_path / "report.html").as_uri())
        assert browser.evaluate("document.querySelector('.top .badge').textContent") == "poor"
        assert "too <b>few</b> photos" in browser.evaluate("document.getElementById('notices').textContent")
        assert browser.evaluate("document.querySelector('#sheet .badge').textContent") == "doubtful"

    def test_the_server_shows_the_same(self, browser: Page, server: ResultServer) -> None:
        browser.problems.clear()
        browser.size(1000, 700)
        browser.open(server.url)
        assert browser.evaluate("page.viewer.numDrawn") == 3 * 96 * 128 and 0.05 < shown_share(browser) < 0.95
        browser.evaluate("page.viewer.choose(page.viewer.placed[1])")
        browser.wait("document.querySelector('#photo img').naturalWidth === 256")
        browser.wait("page.viewer.pictureOf === page.report.views[1]")
        assert browser.problems == []


def test_confidence_of_one_value_has_a_scale() -> None:
    cloud = PointCloud.of_scene(two_views(), OPTIONS)
    assert cloud is not None and cloud.confidence == ColourScale(10.0, 10.0)
    assert unpacked(cloud.chunk(0).described(), cloud.chunk(0).data)[2].max() == 0
