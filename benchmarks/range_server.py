"""`python -m benchmarks.range_server FOLDER ADDRESS PORT`: FOLDER/<owner>/<name>/<path> as a hub serves it, with Range.

By sendfile, so that the server is not what is measured. Answers GET /<owner>/<name>/resolve/<commit>/<path>.
"""

import contextlib
import re
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    folder = Path()

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
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
        with path.open("rb") as stream:
            self.wfile.flush()
            with contextlib.suppress(OSError):  # a head that was killed
                self.connection.sendfile(stream, start)


def main() -> None:
    Handler.folder = Path(sys.argv[1])
    server = ThreadingHTTPServer((sys.argv[2], int(sys.argv[3])), Handler)
    server.daemon_threads = True
    print("ready", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
