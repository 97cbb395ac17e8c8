"""`python -m fleet_agent.relay SPEC [--stdin] [--plain]`: one node of a rollout.

SPEC is a JSON file (control.py, RelaySpec). Events go to stdout, one JSON object a line. Orders come through the unix
socket that the spec names, and with --stdin from standard input, whose end stops the relay. Exit codes: 0 stopped, 1
failed (the last event says why), 2 wrong usage, 3 refused.
"""

import argparse
import contextlib
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import FrameType

from fleet_agent.problem import ProblemError
from fleet_agent.relay.control import Event, Failed, Note, Order, Stop, event_line, parse_order, read_spec
from fleet_agent.relay.node import RelayNode

EXIT_REFUSED = 3
LONGEST_LINE_BYTES = 1 << 20


class EventWriter:
    """Events from any thread, as whole lines. A reader that has gone away does not stop the relay."""

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def __call__(self, event: Event) -> None:
        with self._lock, contextlib.suppress(OSError, ValueError):
            sys.stdout.write(event_line(event))
            sys.stdout.flush()


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m fleet_agent.relay", description=__doc__)
    parser.add_argument("spec", type=Path, help="the relay's spec, a JSON file")
    parser.add_argument("--stdin", action="store_true", help="take orders from standard input; its end stops the relay")
    parser.add_argument("--plain", action="store_true", help="without TLS: for benchmarks on a closed network only")
    given = parser.parse_args(arguments)
    emit = EventWriter()
    try:
        spec = read_spec(given.spec.read_text(encoding="utf-8"))
        node = RelayNode(spec, emit, plain=given.plain)
    except ProblemError as problem:
        emit(Failed(problem.code, problem.message, problem.remedy))
        return EXIT_REFUSED
    except OSError as error:
        emit(Failed("relay-failed", f"the relay cannot start: {error}", ""))
        return EXIT_REFUSED
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _stopper(node.order))
    if given.stdin:
        threading.Thread(target=_from_stdin, args=(node.order, emit), daemon=True).start()
    with _control_socket(spec.control_socket, node.order, emit):
        return node.run()


def _stopper(order: Callable[[Order], None]) -> Callable[[int, FrameType | None], None]:
    def stop(number: int, frame: FrameType | None) -> None:
        order(Stop())

    return stop


def _from_stdin(order: Callable[[Order], None], emit: Callable[[Event], None]) -> None:
    _take_orders(sys.stdin, order, emit)
    order(Stop())


def _take_orders(lines: Iterable[str], order: Callable[[Order], None], emit: Callable[[Event], None]) -> None:
    for line in lines:
        try:
            order(parse_order(line))
        except ProblemError as problem:
            emit(Note(problem.message))


@contextlib.contextmanager
def _control_socket(path: str, order: Callable[[Order], None], emit: Callable[[Event], None]):  # type: ignore[no-untyped-def]
    """Takes orders, one a line, from whoever this user is; the socket's mode keeps others out."""
    if not path:
        yield
        return
    Path(path).unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    mask = os.umask(0o177)
    try:
        listener.bind(path)
    finally:
        os.umask(mask)
    listener.listen(8)
    threading.Thread(target=_accept_orders, args=(listener, order, emit), daemon=True).start()
    try:
        yield
    finally:
        listener.close()
        Path(path).unlink(missing_ok=True)


def _accept_orders(listener: socket.socket, order: Callable[[Order], None], emit: Callable[[Event], None]) -> None:
    while True:
        try:
            connection, _ = listener.accept()
        except OSError:
            return
        with connection, connection.makefile("r", encoding="utf-8", errors="replace") as lines:
            connection.settimeout(5.0)
            with contextlib.suppress(OSError):
                _take_orders(iter(lambda: lines.readline(LONGEST_LINE_BYTES), ""), order, emit)


if __name__ == "__main__":
    sys.exit(main())
