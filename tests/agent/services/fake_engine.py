"""A stand-in model server for tests: answers /health, and fails in the ways that are asked of it."""

import argparse
import http.server
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

parser = argparse.ArgumentParser()
parser.add_argument("--port", type=int, required=True)
parser.add_argument("--say", default="")
parser.add_argument("--api-key-file")
parser.add_argument("--config")
parser.add_argument("--exit", type=int, help="end at once with this code")
parser.add_argument("--loading-until", type=Path, help="answer 503 until this file exists")
parser.add_argument("--hang-when", type=Path, help="close every connection without an answer while this file exists")
parser.add_argument("--count-in", type=Path, help="add a line with our pid to this file at each start")
parser.add_argument("--stubborn-child", type=Path, help="start a child that ignores SIGTERM; its pid goes to this file")
parser.add_argument("--hang-on-term", action="store_true", help="SIGTERM closes the port, and nothing else")
parser.add_argument("--finish-on-term", type=Path, help="SIGTERM closes the port; after 2 s of work this file is made")
parser.add_argument("--silent", action="store_true", help="never listen, never compute")
parser.add_argument("--flood-bytes", type=int, default=0, help="write so many bytes of numbered lines at the start")
arguments = parser.parse_args()

if arguments.count_in:
    with arguments.count_in.open("a") as count:
        count.write(f"{os.getpid()}\n")
if arguments.say:
    print(arguments.say, flush=True)
written = 0
line = 0
while written < arguments.flood_bytes:
    written += sys.stdout.write(f"line {line:08d}\n")
    line += 1
sys.stdout.flush()
if arguments.stubborn_child:
    code = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('set', flush=True); time.sleep(600)"
    )
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, start_new_session=True)
    assert child.stdout is not None
    child.stdout.readline()
    arguments.stubborn_child.write_text(str(child.pid))
if arguments.exit is not None:
    sys.exit(arguments.exit)
if arguments.silent:
    signal.pause()


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        if arguments.hang_when and arguments.hang_when.exists():
            return
        loading = arguments.loading_until and not arguments.loading_until.exists()
        self.send_response(503 if loading else 200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


server = http.server.ThreadingHTTPServer(("127.0.0.1", arguments.port), Handler)
print(f"listening since {time.time():.3f}", flush=True)


def close_port(*_: object) -> None:
    server.socket.close()
    if arguments.hang_on_term:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.pause()
    until = time.monotonic() + 2
    while time.monotonic() < until:
        pass
    arguments.finish_on_term.touch()
    os._exit(0)


if arguments.hang_on_term or arguments.finish_on_term:
    signal.signal(signal.SIGTERM, close_port)
server.serve_forever()
