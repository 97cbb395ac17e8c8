"""Where a running job's progress, log lines and results go: its event file, throttled."""

import contextlib
import threading
import time
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

from fleet_agent.jobs.model import JobEvent, LogLine, Progress
from fleet_agent.jobs.store import EventWriter
from fleet_agent.redaction import redacted

PROGRESS_INTERVAL_SECONDS = 0.25
LOG_LINES_PER_STEP = 5000
LINE_CHARACTERS = 2000


class Emitter:
    """Appends events from any thread. Progress and log lines are dropped where the disk is full: the step's own
    write says so better.

    `redact` is put over what a program may have printed: log lines and problems; results come in redacted.
    """

    def __init__(self, writer: EventWriter) -> None:
        self._writer = writer
        self._lock = threading.Lock()
        self._last_progress_seconds: dict[str, float] = {}
        self._log_lines = 0
        self.step_index = 0
        self.redact: Callable[[str], str] = str

    def begin_step(self, step_index: int) -> None:
        self.step_index = step_index
        self._log_lines = 0
        self._last_progress_seconds.clear()

    def event(self, **content: Any) -> JobEvent:
        """Append one durable event. Raises OSError."""
        if content.get("problem") is not None:
            told = {field.name: getattr(content["problem"], field.name) for field in fields(content["problem"])}
            content["problem"] = replace(content["problem"], **redacted(told, self.redact))
        with self._lock:
            return self._writer.append(self.step_index, **content)

    def progress(self, done: int, total: int | None, unit: str, label: str) -> None:
        """At most a few events a second for each label, and always the last one (done == total)."""
        now = time.monotonic()
        last = self._last_progress_seconds.get(label)
        if last is not None and now - last < PROGRESS_INTERVAL_SECONDS and done != total:
            return
        self._last_progress_seconds[label] = now
        with contextlib.suppress(OSError):
            self.event(progress=Progress(done, total, unit, label))

    def document(self, text: str) -> None:
        """One JSON object that tells how it goes; lost where the disk is full."""
        with contextlib.suppress(OSError):
            self.event(document=text)

    def log(self, text: str, stream: str = "agent") -> None:
        """One line; beyond a bound a step's lines are dropped, and one line says so."""
        self._log_lines += 1
        if self._log_lines > LOG_LINES_PER_STEP and stream != "agent":
            return
        if self._log_lines == LOG_LINES_PER_STEP and stream != "agent":
            stream, text = "agent", f"more than {LOG_LINES_PER_STEP} lines of output: the rest is not kept"
        with contextlib.suppress(OSError):
            self.event(log=LogLine(stream, self.redact(text)[:LINE_CHARACTERS]))
