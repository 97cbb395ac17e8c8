"""A stand-in for the address of a maker's install script, on loopback."""

import http.server
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class ScriptServer:
    """Answers each request with the next of `bodies`; the last one stays."""

    def __init__(self, body: bytes) -> None:
        self.bodies = [body]
        self.requests = 0
        self.url = ""

    @property
    def body(self) -> bytes:
        return self.bodies[0]

    @property
    def variables(self) -> dict[str, str]:
        """What points fleet here; loopback is asked without any proxy."""
        return {"FLEET_LM_STUDIO_INSTALLER": self.url, "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}

    def take(self) -> bytes:
        self.requests += 1
        return self.bodies.pop(0) if len(self.bodies) > 1 else self.bodies[0]


def script_that_brings(lms: Path) -> str:
    """Puts a program where the real script puts lms, counts its runs in ~/runs, and takes no answers and arguments."""
    return f"""#!/bin/bash
[ $# = 0 ] || exit 9
cat  # nobody answers: stdin must be at its end
mkdir -p ~/.lmstudio/bin
printf '#!/bin/sh\\nexec {lms} "$@"\\n' > ~/.lmstudio/bin/lms
chmod 755 ~/.lmstudio/bin/lms
echo ran >> ~/runs
"""


@contextmanager
def script_server(text: str) -> Iterator[ScriptServer]:
    made = ScriptServer(text.encode())

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = made.take()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    made.url = f"http://127.0.0.1:{server.server_address[1]}/install.sh"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield made
    finally:
        server.shutdown()
        server.server_close()
