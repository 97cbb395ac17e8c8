"""A package index over a folder of wheels (PEP 503), for hosts that reach no other; it can hold an answer back."""

from __future__ import annotations

import hashlib
import html
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import unquote

from fleet_controller.bringup.wheelhouse import wheel_platforms
from support.agent_wheels import this_platform


def wheels_of(requirements: tuple[str, ...], python: tuple[int, int]) -> Path:
    """A folder with the wheels of pinned requirements for the hosts' Python, fetched once from this machine's index."""
    base = Path(os.environ.get("FLEET_CI_CACHE") or Path("~/.cache/fleet-ci").expanduser())
    digest = hashlib.sha256("\n".join(requirements).encode()).hexdigest()[:12]
    folder = base / "engine-wheels" / f"{digest}-cp{python[0]}{python[1]}"
    if not (folder / "complete").exists():
        draft = folder.with_name(f"{folder.name}.{os.getpid()}")
        draft.mkdir(parents=True)
        platforms = [item for tag in wheel_platforms(this_platform()) for item in ("--platform", tag)]
        target = ["--only-binary", ":all:", "--python-version", f"{python[0]}.{python[1]}", *platforms]
        subprocess.run([*_pip(), "download", "--quiet", *target, "-d", str(draft), *requirements], check=True)
        (draft / "complete").touch()
        try:
            draft.rename(folder)
        except OSError:
            shutil.rmtree(draft)  # another test run was first
    return folder


def _pip() -> list[str]:
    return [sys.executable, "-m", "pip"] if importlib.util.find_spec("pip") else ["uv", "tool", "run", "pip"]


class WheelIndex:
    """Serves <url>/simple/<project>/ and the wheels. `requests` lists the paths asked for, in order."""

    def __init__(self, host: str) -> None:
        self.folder = Path("/nonexistent")  # stock() fills it
        self.requests: list[str] = []
        self.changed = threading.Condition()
        self._held = ""
        self._server = ThreadingHTTPServer((host, 0), _handler(self))
        self._server.daemon_threads = True
        self.url = f"http://{host}:{self._server.server_port}/simple"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)

    def __enter__(self) -> WheelIndex:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def stock(self, requirements: tuple[str, ...], python: tuple[int, int]) -> None:
        """Have the wheels of these requirements, and of all that they need."""
        self.folder = wheels_of(requirements, python)

    def hold(self, project: str) -> None:
        """The page of this project is not answered until release()."""
        with self.changed:
            self._held = project

    def release(self) -> None:
        with self.changed:
            self._held = ""
            self.changed.notify_all()

    def asked(self, project: str) -> int:
        with self.changed:
            return self.requests.count(f"/simple/{project}/")

    def wait_until_asked(self, project: str, times: int, seconds: float = 60.0) -> None:
        with self.changed:
            if not self.changed.wait_for(lambda: self.requests.count(f"/simple/{project}/") >= times, seconds):
                raise TimeoutError(f"{project} was not asked for {times} times in {seconds:g} s: {self.requests}")

    def await_turn(self, path: str) -> None:
        with self.changed:
            self.requests.append(path)
            self.changed.notify_all()
            self.changed.wait_for(lambda: not self._held or path != f"/simple/{self._held}/")

    def page(self, project: str) -> bytes | None:
        names = [path.name for path in sorted(self.folder.glob("*.whl")) if _project_of(path.name) == project]
        links = [f'<a href="/files/{html.escape(name)}">{html.escape(name)}</a>' for name in names]
        return f"<!DOCTYPE html><html><body>{''.join(links)}</body></html>".encode() if names else None


def _project_of(wheel: str) -> str:
    return re.sub(r"[-_.]+", "-", wheel.split("-")[0]).lower()


def _handler(index: WheelIndex) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: Any) -> None:
            pass

        def handle(self) -> None:
            try:
                super().handle()
            except (OSError, ValueError):  # the client was killed
                self.close_connection = True

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            path = unquote(self.path)
            index.await_turn(path)
            file = index.folder / path.rpartition("/")[2]
            if path.startswith("/simple/"):
                self._answer(index.page(path.split("/")[2]), "text/html")
            elif path.startswith("/files/") and file.is_file():
                self._answer(file.read_bytes(), "application/octet-stream")
            else:
                self._answer(None, "")

        def _answer(self, body: bytes | None, kind: str) -> None:
            self.send_response(200 if body is not None else 404)
            self.send_header("Content-Type", kind or "text/plain")
            self.send_header("Content-Length", str(len(body or b"")))
            self.send_header("Cache-Control", "no-store")
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body or b"")

    return Handler
