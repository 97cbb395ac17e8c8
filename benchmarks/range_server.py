"""`python -m benchmarks.range_server FOLDER ADDRESS PORT`: FOLDER/<owner>/<name>/<path> as a hub serves it, with Range.

By sendfile, so that the server is not what is measured. Answers GET /<owner>/<name>/resolve/<commit>/<path>, and
GET /counted with the bytes of files that it gave to the network so far and in how many answers.
"""

import contextlib
import json
import os
import re
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

BLOCK_BYTES = 1 << 20


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    folder = Path()
    counting = threading.Lock()
    sent_bytes = answers = 0

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        if self.path == "/counted":
            self.send_counts()
            return
        found = re.fullmatch(r"/([\w.-]+/[\w.-]+)/resolve/[0-9a-f]+/([\w.-]+)", self.path)
        path = self.folder / found[1] / found[2] if found else None
        if path is None or not path.is_file():
            self.send_error(404)
            return
        size = path.stat().st_size
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
        start = int(asked[1]) if asked else 0
        self.send_response(206 if asked else 200)
        self.send_header("Content-Length", str(size - start))
        if asked:
            self.send_header("Content-Range", f"bytes {start}-{size - 1}/{size}")
        self.end_headers()
        self.wfile.flush()
        with contextlib.suppress(OSError):  # a head that was killed
            self.send_from(path, start)

    def send_from(self, path: Path, start: int) -> None:
        with self.counting:
            Handler.answers += 1
        with path.open("rb") as stream:
            while sent := os.sendfile(self.connection.fileno(), stream.fileno(), start, BLOCK_BYTES):
                start += sent
                with self.counting:
                    Handler.sent_bytes += sent

    def send_counts(self) -> None:
        with self.counting:
            body = json.dumps({"sent_bytes": Handler.sent_bytes, "answers": Handler.answers}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def main() -> None:
    Handler.folder = Path(sys.argv[1])
    server = ThreadingHTTPServer((sys.argv[2], int(sys.argv[3])), Handler)
    server.daemon_threads = True
    print("ready", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
