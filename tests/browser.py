"""A page in headless Chromium, by the DevTools protocol: what it logs, what a script in it finds, what it shows."""

import base64
import contextlib
import json
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

TIMEOUT_S = 60.0
"""For the browser to start, and for a page to be ready, on a machine that is busy."""


def chromium() -> str:
    """Path of the browser; skips the test where there is none."""
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if found := shutil.which(name):
            return found
    pytest.skip("no Chromium is installed: the page is not looked at (apt install chromium)")


class Page:
    """One page. `problems`: uncaught errors, errors and warnings in the console, what the page's policy refused."""

    def __init__(self, address: str) -> None:
        import websocket

        self.problems: list[str] = []
        self._socket = websocket.create_connection(address, timeout=TIMEOUT_S, suppress_origin=True)
        self._sent = 0
        for domain in ("Page", "Runtime", "Log"):
            self.ask(f"{domain}.enable")

    def ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        """The result of one command of the protocol."""
        self._sent += 1
        self._socket.send(json.dumps({"id": self._sent, "method": method, "params": parameters}))
        while True:
            answer = json.loads(self._socket.recv())
            if answer.get("id") == self._sent:
                assert "error" not in answer, (method, answer["error"])
                return dict(answer["result"])
            self._note(answer)

    def _note(self, event: dict[str, Any]) -> None:
        parameters = event.get("params", {})
        if event.get("method") == "Runtime.exceptionThrown":
            self.problems.append(json.dumps(parameters["exceptionDetails"]))
        elif event.get("method") == "Runtime.consoleAPICalled" and parameters["type"] in ("error", "warning", "assert"):
            self.problems.append(json.dumps(parameters["args"]))
        elif event.get("method") == "Log.entryAdded" and parameters["entry"]["level"] in ("error", "warning"):
            if "GPU stall due to ReadPixels" in parameters["entry"]["text"]:
                return  # what a screenshot costs without a graphics card
            self.problems.append(json.dumps(parameters["entry"]))

    def open(self, address: str) -> None:
        """Loads the page and waits until it says that it is ready, or has failed."""
        self.ask("Page.navigate", url=address)
        self.wait("window.page && page.ready || document.getElementById('empty')?.textContent")

    def evaluate(self, script: str) -> Any:
        """The value of a JavaScript expression, a promise waited for."""
        answer = self.ask("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def wait(self, condition: str) -> None:
        """Until a JavaScript expression is true."""
        end = time.monotonic() + TIMEOUT_S
        while not self.evaluate(f"Boolean({condition})"):
            assert time.monotonic() < end, f"{condition} did not come true; {self.problems}"
            time.sleep(0.05)

    def settle(self) -> None:
        """Until two frames have been drawn."""
        self.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => done(1))))")

    def size(self, width: int, height: int, telephone: bool = False) -> None:
        self.ask(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=2 if telephone else 1,
            mobile=telephone,
        )

    def dark(self, dark: bool) -> None:
        features = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.ask("Emulation.setEmulatedMedia", features=features)

    def click(self, x: float, y: float) -> None:
        for kind in ("mousePressed", "mouseReleased"):
            self.ask("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def drag(self, start: tuple[float, float], end: tuple[float, float]) -> None:
        self.ask("Input.dispatchMouseEvent", type="mousePressed", x=start[0], y=start[1], button="left", clickCount=1)
        for share in (0.25, 0.5, 0.75, 1.0):
            x, y = (a + share * (b - a) for a, b in zip(start, end, strict=True))
            self.ask("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y, button="left", buttons=1)
        self.ask("Input.dispatchMouseEvent", type="mouseReleased", x=end[0], y=end[1], button="left", clickCount=1)

    def press(self, key: str) -> None:
        # the browser itself acts on codes, as in closing a dialog
        code = {"text": key} if len(key) == 1 else {"windowsVirtualKeyCode": {"Escape": 27}.get(key, 0)}
        self.ask("Input.dispatchKeyEvent", type="keyDown", key=key, **code)
        self.ask("Input.dispatchKeyEvent", type="keyUp", key=key, **code)

    def screenshot(self, whole: bool = False) -> np.ndarray:
        """(H, W, 3) uint8 RGB of what is seen, or of the whole page."""
        shot = self.ask("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        picture = cv2.imdecode(np.frombuffer(base64.b64decode(shot["data"]), np.uint8), cv2.IMREAD_COLOR)
        assert picture is not None
        return cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)

    def box(self, selector: str) -> dict[str, float]:
        """x, y, width and height of an element in the window, pixels."""
        box = self.evaluate(f"document.querySelector({json.dumps(selector)}).getBoundingClientRect().toJSON()")
        return {name: box[name] for name in ("x", "y", "width", "height")}

    def close(self) -> None:
        self._socket.close()


@contextlib.contextmanager
def browser_page() -> Iterator[Page]:
    """A page of 1000 x 700 pixels in a browser of its own that draws without a graphics card."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        command = [
            chromium(),
            *("--headless=new", "--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"),
            *("--remote-debugging-port=0", f"--user-data-dir={profile}", "--no-first-run", "--disable-extensions"),
            *("--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1", "--mute-audio", "about:blank"),
        ]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            page = Page(_address_of_page(Path(profile), process))
            page.size(1000, 700)
            yield page
            page.close()
        finally:
            process.terminate()
            process.wait(timeout=TIMEOUT_S)


def _address_of_page(profile: Path, process: subprocess.Popen[bytes]) -> str:
    """The websocket of the first page; the browser writes its port to a file."""
    import urllib.request

    end = time.monotonic() + TIMEOUT_S
    while time.monotonic() < end and process.poll() is None:
        with contextlib.suppress(OSError, ValueError, StopIteration):
            port = int((profile / "DevToolsActivePort").read_text().split()[0])
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list", timeout=5) as answer:
                pages = json.load(answer)
            return str(next(page["webSocketDebuggerUrl"] for page in pages if page["type"] == "page"))
        time.sleep(0.1)
    pytest.skip("Chromium does not start here: the page is not looked at")
