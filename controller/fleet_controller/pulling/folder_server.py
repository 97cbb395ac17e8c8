"""A folder of this machine as the part of a hub that a relay reads: ranged GETs of the files of one commit.

It listens on loopback only. What it gives is hashed by whoever takes it.
"""

from __future__ import annotations

import re
import threading
import urllib.parse
from collections.abc import Sequence
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from fleet_controller.domain.steps import ArtifactFile

BLOCK_BYTES = 1 << 20
_RANGE = re.compile(r"bytes=(\d+)-(\d*)\Z")


class FolderServer:
    """`url` is the endpoint: <url>/<repository>/resolve/<commit>/<path>. Only the files given are there."""

    def __init__(self, folder: str, repository: str, commit: str, files: Sequence[ArtifactFile]) -> None:
        places = {f"/{repository}/resolve/{commit}/{file.path}": Path(folder) / file.path for file in files}
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler_of(places))
        self._server.daemon_threads = True
        self.port = self._server.server_port
        self.url = f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        threading.Thread(target=self._server.serve_forever, args=(0.1,), name="folder", daemon=True).start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def _handler_of(places: dict[str, Path]) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            path = places.get(urllib.parse.unquote(urllib.parse.urlsplit(self.path).path))
            if path is None:
                self.send_error(HTTPStatus.NOT_FOUND)
                return
            try:
                with path.open("rb") as stream:
                    self._send(stream, path.stat().st_size)
            except OSError:
                self.close_connection = True

        def _send(self, stream: Any, size: int) -> None:
            wanted = _RANGE.match(self.headers.get("Range", ""))
            first = int(wanted[1]) if wanted else 0
            last = min(int(wanted[2]), size - 1) if wanted and wanted[2] else size - 1
            if wanted and first >= size:
                self.send_response(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self.send_response(HTTPStatus.PARTIAL_CONTENT if wanted else HTTPStatus.OK)
            if wanted:
                self.send_header("Content-Range", f"bytes {first}-{last}/{size}")
            self.send_header("Content-Length", str(last - first + 1))
            self.end_headers()
            stream.seek(first)
            left = last - first + 1
            while left and (block := stream.read(min(BLOCK_BYTES, left))):
                self.wfile.write(block)
                left -= len(block)

        def log_message(self, format: str, *arguments: Any) -> None:
            pass

    return Handler
