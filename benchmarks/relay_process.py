"""One relay of a lab: what it tells is kept, what it is told goes down; in a thread of this process or in its own."""

import contextlib
import json
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.relay_cpu import CpuSeconds, cpu_of_process
from fleet_agent.jobs.codec import encode
from fleet_agent.relay.control import (
    Complete,
    Event,
    Failed,
    Listening,
    Order,
    Progress,
    RelaySpec,
    Stop,
    order_line,
    parse_event,
    parse_order,
)
from fleet_agent.relay.node import RelayNode

START_SECONDS = 60.0


class Told:
    """What a relay has told so far. Events are kept, and given to `on_event` from the thread that hears them."""

    def __init__(
        self, spec: RelaySpec, folder: Path, prefix: Sequence[str], plain: bool, on_event: Callable[[Event], None]
    ) -> None:
        self.spec = spec
        self.events: list[Event] = []
        self._on_event = on_event
        self._changed = threading.Condition()
        self._ended = False

    def order(self, order: Order) -> None:
        self.send(order_line(order))

    def send(self, line: str) -> None:
        """An order as a line, as the controller writes it. A relay that has ended hears nothing."""
        raise NotImplementedError

    def ask_to_stop(self) -> None:
        raise NotImplementedError

    def end(self, seconds: float = 30.0) -> int:
        """Waits until it has ended; its exit code."""
        raise NotImplementedError

    def stop(self) -> int:
        self.ask_to_stop()
        return self.end()

    def _hear(self, event: Event) -> None:
        with self._changed:
            self.events.append(event)
            self._changed.notify_all()
        self._on_event(event)

    def _hear_the_end(self) -> None:
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def log(self) -> str:
        return ""

    def wait_for(self, wanted: Callable[[Event], bool], seconds: float = START_SECONDS) -> Event:
        """The first event, since the start, that is wanted. Raises TimeoutError, or RuntimeError where it ended."""
        with self._changed:
            self._changed.wait_for(lambda: self._ended or any(map(wanted, self.events)), seconds)
            found = next(filter(wanted, self.events), None)
        if found is None:
            told = [event for event in self.events if not isinstance(event, Progress)][-8:]
            kind = RuntimeError if self._ended else TimeoutError
            raise kind(f"{self.spec.node} has not told what was awaited; it told {told}, {self.log()[-2000:]}")
        return found

    def told(self, kind: type[Any]) -> list[Any]:
        """Its events of one kind."""
        return [event for event in self.events if isinstance(event, kind)]

    def port(self) -> int:
        found = self.wait_for(lambda event: isinstance(event, Listening))
        assert isinstance(found, Listening)
        return found.port

    def wait_until_complete(self, seconds: float = START_SECONDS) -> None:
        self.wait_for(lambda event: isinstance(event, Complete), seconds)

    @property
    def progress(self) -> Progress | None:
        return next((event for event in reversed(self.events) if isinstance(event, Progress)), None)

    def failure(self) -> Failed | None:
        return next((event for event in self.events if isinstance(event, Failed)), None)


class RelayThread(Told):
    """A relay in a thread of this process: starts at once, and cannot be killed."""

    def __init__(
        self, spec: RelaySpec, folder: Path, prefix: Sequence[str], plain: bool, on_event: Callable[[Event], None]
    ) -> None:
        super().__init__(spec, folder, prefix, plain, on_event)
        assert not prefix, "a thread lives in this process's own network"
        self.node = RelayNode(spec, self._hear, plain)
        self._code = 0
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        self._code = self.node.run()
        self._hear_the_end()

    def send(self, line: str) -> None:
        self.node.order(parse_order(line))

    def ask_to_stop(self) -> None:
        self.node.order(Stop())

    def end(self, seconds: float = 30.0) -> int:
        self._thread.join(seconds)
        if self._thread.is_alive():
            raise TimeoutError(f"{self.spec.node} does not end")
        return self._code


class RelayProcess(Told):
    """A relay as a process of its own, as on a host."""

    module: tuple[str, ...] = ("fleet_agent.relay",)

    def __init__(
        self, spec: RelaySpec, folder: Path, prefix: Sequence[str], plain: bool, on_event: Callable[[Event], None]
    ) -> None:
        super().__init__(spec, folder, prefix, plain, on_event)
        path = folder / f"{spec.node}.spec.json"
        path.write_text(json.dumps(encode(spec)))
        command = [*prefix, sys.executable, "-m", *self.module, str(path), "--stdin"]
        self._log = (folder / f"{spec.node}.log").open("ab")
        self.process = subprocess.Popen(
            [*command, "--plain"] if plain else command,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, text=True, bufsize=1,
        )  # fmt: skip
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._hear(parse_event(line))
        self._hear_the_end()

    def send(self, line: str) -> None:
        assert self.process.stdin is not None
        with contextlib.suppress(OSError, ValueError):
            self.process.stdin.write(line)
            self.process.stdin.flush()

    def log(self) -> str:
        return Path(self._log.name).read_text(errors="replace")

    def kill(self) -> None:
        """As if the power went, and wait for it."""
        self.process.send_signal(signal.SIGKILL)
        self.end()

    def ask_to_stop(self) -> None:
        with contextlib.suppress(OSError):
            assert self.process.stdin is not None
            self.process.stdin.close()

    def end(self, seconds: float = 30.0) -> int:
        try:
            code = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            code = self.process.wait()
        self._reader.join(5.0)
        for stream in (self.process.stdin, self.process.stdout, self._log):
            with contextlib.suppress(OSError):
                if stream is not None:
                    stream.close()
        return code

    def cpu(self) -> CpuSeconds:
        """Of the running process so far, all its threads."""
        return cpu_of_process(self.process.pid)
