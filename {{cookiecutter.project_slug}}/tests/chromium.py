"""A headless Chromium, Debian's, driven over its DevTools protocol.

https://chromedevtools.github.io/devtools-protocol/
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

from debian import lacking
from websocket import WebSocket, create_connection

MISSING = "Chromium is not installed: run `make test` as root, or put it on the PATH"
PATIENCE = 60.0


class Chromium:
    """One browser process; each page is opened in a tab of its own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        self._line: WebSocket | None = None
        self._calls = 0
        self.events: list[dict[str, Any]] = []

    def start(self) -> None:
        names = ("chromium", "google-chrome", "chromium-browser")
        program = next(filter(None, map(shutil.which, names)), None)
        if program is None:
            lacking(MISSING)
        command = [program, "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run"]
        command += ["--disable-dev-shm-usage", f"--user-data-dir={self._folder}"]
        # A group of its own, which is stopped as one: the browser has many processes.
        self._process = subprocess.Popen(
            [*command, "--remote-debugging-port=0", "about:blank"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            address = f"ws://127.0.0.1:{self._told(self._process)}"
            self._line = create_connection(address, timeout=PATIENCE, suppress_origin=True)
        except BaseException:
            self.stop()
            raise

    def _told(self, process: subprocess.Popen[bytes]) -> str:
        """The port and path that it listens at, which it writes into its folder."""
        told = self._folder / "DevToolsActivePort"
        until = time.monotonic() + PATIENCE
        while not told.exists() or "\n" not in told.read_text():
            assert process.poll() is None, "Chromium stopped at once"
            assert time.monotonic() < until, "Chromium did not start"
            time.sleep(0.05)
        return "".join(told.read_text().splitlines())

    def stop(self) -> None:
        if self._line is not None:
            self._line.close()
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def open(self, file: Path, width: int = 1280) -> Tab:
        """The file in a window so many CSS pixels wide, once it is loaded."""
        return Tab(self, file, width)

    def call(self, method: str, session: str | None = None, **words: Any) -> dict[str, Any]:
        """The method's result. What happens meanwhile is put into `events`."""
        assert self._line is not None
        self._calls += 1
        number = self._calls
        call: dict[str, Any] = {"id": number, "method": method, "params": words}
        self._line.send(json.dumps(call | ({"sessionId": session} if session else {})))
        while (said := self.receive()).get("id") != number:
            self.events.append(said)
        assert "error" not in said, f"{method}: {said['error']}"
        result: dict[str, Any] = said["result"]
        return result

    def receive(self) -> dict[str, Any]:
        assert self._line is not None
        said: dict[str, Any] = json.loads(self._line.recv())
        return said


class Tab:
    def __init__(self, browser: Chromium, file: Path, width: int) -> None:
        self._browser = browser
        made = browser.call("Target.createTarget", url="about:blank")
        target = {"targetId": made["targetId"], "flatten": True}
        self._session = browser.call("Target.attachToTarget", **target)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        self.call("Emulation.setDeviceMetricsOverride", **size)
        self.url = file.resolve().as_uri()
        self.call("Page.navigate", url=self.url)
        while not self._events("Page.loadEventFired"):
            browser.events.append(browser.receive())
        # Whatever the page does once it is loaded has had two frames' time when this is back.
        self.evaluate(
            "new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))"
        )

    def call(self, method: str, **words: Any) -> dict[str, Any]:
        return self._browser.call(method, self._session, **words)

    def evaluate(self, script: str) -> Any:
        """What the expression is, awaited when it is a promise."""
        words = {"expression": script, "returnByValue": True, "awaitPromise": True}
        found = self.call("Runtime.evaluate", **words)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    @property
    def requested(self) -> list[str]:
        """The addresses that were asked for, the page's own first."""
        sent = self._events("Network.requestWillBeSent")
        return [event["request"]["url"] for event in sent]

    @property
    def complaints(self) -> list[dict[str, Any]]:
        """What was written to the console, and exceptions."""
        methods = ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded")
        return [event for method in methods for event in self._events(method)]

    def pdf(self) -> bytes:
        """As it is printed, on paper of the page's own size."""
        printed = self.call("Page.printToPDF", preferCSSPageSize=True, printBackground=False)
        return base64.b64decode(printed["data"])

    def screenshot(self) -> bytes:
        """A PNG of the whole page, not only of what the window shows."""
        shot = self.call("Page.captureScreenshot", captureBeyondViewport=True)
        return base64.b64decode(shot["data"])

    def _events(self, method: str) -> list[dict[str, Any]]:
        return [
            event["params"]
            for event in self._browser.events
            if event.get("sessionId") == self._session and event.get("method") == method
        ]
