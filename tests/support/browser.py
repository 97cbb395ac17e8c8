"""A real browser without a window, over its DevTools pipe: no port, no driver, no package.

with Browser.start(folder) as browser:
    page = browser.open(path, width=360)
    assert page.evaluate("document.title") == "fleet"

The protocol: JSON messages that end with a zero byte, file descriptor 3 towards the browser and 4 back.
https://chromedevtools.github.io/devtools-protocol/
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
ANSWER_SECONDS = 60.0
END_SECONDS = 10.0
PAGE_HEIGHT = 800


def find_browser() -> str | None:
    """FLEET_BROWSER, else one of NAMES on the path."""
    return os.environ.get("FLEET_BROWSER") or next(filter(None, map(shutil.which, NAMES)), None)


class BrowserError(Exception):
    """The browser refused a command, or the page's script failed."""


class Browser:
    """One process; pages do not share what they see."""

    def __init__(self, process: subprocess.Popen[bytes], to_browser: int, from_browser: int) -> None:
        self._process, self._out, self._in = process, to_browser, from_browser
        self._buffer = b""
        self._number = 0
        self._events: list[dict[str, Any]] = []

    @classmethod
    @contextlib.contextmanager
    def start(cls, folder: Path) -> Iterator[Browser]:
        program = find_browser()
        assert program is not None, "no browser on this machine"
        theirs_in, to_browser = os.pipe()
        from_browser, theirs_out = os.pipe()
        # The shell puts the pipe's ends where the browser looks for them.
        script = f'exec "$0" "$@" 3<&{theirs_in} 4>&{theirs_out}'
        options = ["--headless", "--remote-debugging-pipe", f"--user-data-dir={folder / 'profile'}", "--no-sandbox"]
        options += ["--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--hide-scrollbars"]
        with (folder / "browser.log").open("wb") as log:
            process = subprocess.Popen(
                ["bash", "-c", script, program, *options],
                pass_fds=(theirs_in, theirs_out),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        os.close(theirs_in)
        os.close(theirs_out)
        try:
            yield cls(process, to_browser, from_browser)
        finally:
            os.close(to_browser)  # the browser ends with its pipe, and leaves its folder in peace
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(END_SECONDS)
            process.kill()
            process.wait()
            os.close(from_browser)

    def open(self, path: Path, width: int = 1280, scripts: bool = True, dark: bool = False, hash_: str = "") -> Page:
        """A page that has loaded, `width` CSS pixels wide, and everything that it did meanwhile."""
        target = self.call("Target.createTarget", {"url": "about:blank"})["targetId"]
        session = self.call("Target.attachToTarget", {"targetId": target, "flatten": True})["sessionId"]
        page = Page(self, session)
        for domain in ("Page", "Runtime", "Log", "Network"):
            page.call(f"{domain}.enable")
        metrics = {"width": width, "height": PAGE_HEIGHT, "deviceScaleFactor": 1, "mobile": width < 600}
        page.call("Emulation.setDeviceMetricsOverride", metrics)
        page.call("Emulation.setScriptExecutionDisabled", {"value": not scripts})
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        page.call("Emulation.setEmulatedMedia", {"features": [scheme]})
        page.call("Page.navigate", {"url": f"{path.as_uri()}{hash_}"})
        page.wait_for("Page.loadEventFired")
        return page

    def call(self, method: str, parameters: dict[str, Any] | None = None, session: str = "") -> dict[str, Any]:
        """One command and its answer; events that come in between are kept."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters or {}}
        os.write(self._out, json.dumps(message | ({"sessionId": session} if session else {})).encode() + b"\0")
        while (answer := self._read()).get("id") != self._number:
            if "method" in answer:
                self._events.append(answer)
        if "error" in answer:
            raise BrowserError(f"{method}: {answer['error']['message']}")
        result: dict[str, Any] = answer["result"]
        return result

    def events(self, session: str) -> list[dict[str, Any]]:
        """Those that have come so far."""
        return [event for event in self._events if event.get("sessionId") == session]

    def wait_for(self, session: str, method: str) -> None:
        while not any(event["method"] == method for event in self.events(session)):
            self._events.append(self._read())

    def _read(self) -> dict[str, Any]:
        deadline = time.monotonic() + ANSWER_SECONDS
        while b"\0" not in self._buffer:
            if not select.select([self._in], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise TimeoutError(f"the browser did not answer within {ANSWER_SECONDS:g} s")
            chunk = os.read(self._in, 1 << 20)
            if not chunk:
                raise BrowserError(f"the browser ended with {self._process.wait()}")
            self._buffer += chunk
        message, _, self._buffer = self._buffer.partition(b"\0")
        decoded: dict[str, Any] = json.loads(message)
        return decoded


@dataclass
class Page:
    """One tab."""

    browser: Browser
    session: str
    _seen: int = field(default=0)

    def call(self, method: str, parameters: dict[str, Any] | None = None) -> dict[str, Any]:
        return self.browser.call(method, parameters, self.session)

    def wait_for(self, method: str) -> None:
        self.browser.wait_for(self.session, method)

    def evaluate(self, expression: str) -> Any:
        """The value of an expression, as JSON has it. Raises BrowserError with what the script threw."""
        wanted = {"expression": expression, "returnByValue": True, "awaitPromise": True}
        answer = self.call("Runtime.evaluate", wanted)
        if "exceptionDetails" in answer:
            raise BrowserError(str(answer["exceptionDetails"].get("exception", answer["exceptionDetails"])))
        return answer["result"].get("value")

    def press(self, key: str, code: int) -> None:
        """A key of the keyboard, by name and Windows virtual key code."""
        for kind in ("rawKeyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", {"type": kind, "key": key, "windowsVirtualKeyCode": code})

    def requests(self) -> list[str]:
        """The addresses that were asked for, the document's own first."""
        sent = self._of("Network.requestWillBeSent")
        return [event["params"]["request"]["url"] for event in sent]

    def complaints(self) -> list[str]:
        """Errors and warnings: of scripts, of the console, and of the browser about the page."""
        thrown = [event["params"]["exceptionDetails"]["text"] for event in self._of("Runtime.exceptionThrown")]
        logged = [event["params"]["entry"]["text"] for event in self._of("Log.entryAdded")]
        console = [str(event["params"]["args"]) for event in self._of("Runtime.consoleAPICalled")]
        return thrown + logged + console

    def _of(self, method: str) -> list[dict[str, Any]]:
        self.call("Runtime.evaluate", {"expression": "0"})  # what was sent before its answer has arrived
        return [event for event in self.browser.events(self.session) if event["method"] == method]

    def as_printed(self) -> None:
        """From now on the page looks as on paper."""
        self.call("Emulation.setEmulatedMedia", {"media": "print"})

    def pdf(self) -> bytes:
        answer = self.call("Page.printToPDF", {"preferCSSPageSize": True, "printBackground": True})
        return base64.b64decode(answer["data"])

    def screenshot(self, target: Path, whole: bool = True) -> None:
        """A PNG of the window, or of the whole page."""
        answer = self.call("Page.captureScreenshot", {"captureBeyondViewport": whole})
        target.write_bytes(base64.b64decode(answer["data"]))
