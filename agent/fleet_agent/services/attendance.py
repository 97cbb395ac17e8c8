"""One server from its start to its end: asked whether it is ready, judged by what it prints, given up where it stands
still.
"""

import asyncio
import logging
import time
from collections.abc import Sequence
from typing import Any, Protocol

from fleet_agent.process import ProcessIdentity, tree_members, wait_gone
from fleet_agent.services.admission import listens
from fleet_agent.services.causes import hopeless
from fleet_agent.services.journal import ServiceRecord
from fleet_agent.services.logs import ServiceLog
from fleet_agent.services.model import (
    DEFAULT_INTERVAL_SECONDS,
    DEFAULT_START_LIMIT_SECONDS,
    Problem,
    ServiceSpec,
    ServiceState,
)
from fleet_agent.services.readiness import ProbeOutcome, ProgressMeter, measure, probe
from fleet_agent.services.transitions import Event, ProbeFailed, ProbeSucceeded

_CAUSE_LINES = 200
_FIRST_POLL_SECONDS = 0.05
_LONGEST_POLL_SECONDS = 1.0
_DOUBT_POLL_SECONDS = 2.0  # after a failed probe, so that "unhealthy" is not three long intervals late

_logger = logging.getLogger(__name__)


class Watched(Protocol):
    """The service whose server is attended."""

    record: ServiceRecord

    @property
    def name(self) -> str: ...

    @property
    def state(self) -> ServiceState: ...

    def members(self) -> Sequence[ProcessIdentity]: ...

    def note_members(self) -> None:
        """What runs now is all of it: it is ready."""

    def change(self, event: Event | None, *, persist: bool = False, **fields: Any) -> None: ...


class Attendance:
    """`ending`: why the server must end, or had to, where we know better than its log; None otherwise."""

    def __init__(self, service: Watched, log: ServiceLog, process: ProcessIdentity) -> None:
        self._service, self._log, self._process = service, log, process
        self.ending: Problem | None = None

    async def run(self) -> None:
        """Returns once it has ended, or must be ended: then `ending` says why."""
        process = self._process
        gone = asyncio.ensure_future(wait_gone(process))
        meter = ProgressMeter(time.monotonic())
        delay = _FIRST_POLL_SECONDS
        try:
            while not gone.done():
                outcome = await probe(self._service.record.spec)
                if gone.done():
                    return
                self._note_probe(outcome)
                if self._service.state is ServiceState.READY:
                    meter = ProgressMeter(time.monotonic())
                    delay = self._service.record.spec.readiness.interval_seconds or DEFAULT_INTERVAL_SECONDS
                    if self._service.record.condition.failed_probes:
                        delay = min(delay, _DOUBT_POLL_SECONDS)
                elif self.ending is not None or self._stalled(meter, outcome):
                    return
                else:
                    delay = min(delay * 1.5, _LONGEST_POLL_SECONDS)
                self._rotate_log()
                await asyncio.wait({gone}, timeout=delay)
        finally:
            gone.cancel()

    def _note_probe(self, outcome: ProbeOutcome) -> None:
        before = self._service.state
        if not outcome.ready:
            self._note_failed_probe(outcome)
            return
        if before is ServiceState.STARTING and not self._truly_ready():
            return
        if before is not ServiceState.READY:
            self._service.note_members()
        self._service.change(ProbeSucceeded(), problem=None, persist=before is not ServiceState.READY)

    def _note_failed_probe(self, outcome: ProbeOutcome) -> None:
        before = self._service.state
        self._service.change(ProbeFailed())
        if self._service.state is ServiceState.STARTING:
            self._service.change(None, problem=Problem("not-ready", outcome.describe()))
            if outcome.status is not None:
                self.ending = hopeless(since_start(self._log, self._service.record.spec))
        elif self._service.state is ServiceState.UNHEALTHY:
            problem = Problem(
                "unhealthy", f"it was ready, now {outcome.describe()}", f"see: fleet logs {self._service.name}"
            )
            self._service.change(None, problem=problem, persist=before is ServiceState.READY)

    def _truly_ready(self) -> bool:
        """The answer must be our server's, and no server whose model failed to load behind a working front."""
        shared = bool(self._service.record.spec.shared_port_path)  # then it is nobody of ours who listens
        if not shared and listens(tree_members(self._process), self._service.record.spec.port) is False:
            what = f"port {self._service.record.spec.port} is answered by another process"
            self._service.change(ProbeFailed(), problem=Problem("port-taken", what, "deploy on another port: --port N"))
            return False
        self.ending = hopeless(since_start(self._log, self._service.record.spec))
        return self.ending is None

    def _stalled(self, meter: ProgressMeter, outcome: ProbeOutcome) -> bool:
        effort = measure(self._service.members(), self._log.size_bytes())
        limit = self._service.record.spec.readiness.start_limit_seconds or DEFAULT_START_LIMIT_SECONDS
        if meter.observe(effort, time.monotonic()) < limit:
            return False
        self.ending = Problem(
            "stalled",
            f"no progress for {limit:g} s: {outcome.describe()}, nothing was logged, computed or read",
            "see its log (`fleet logs`); a slow disk or driver may need a longer start limit",
        )
        return True

    def _rotate_log(self) -> None:
        try:
            self._log.rotate_if_large()
        except OSError as error:
            _logger.warning("%s: its log could not be rotated: %s", self._service.name, error)


def since_start(log: ServiceLog, spec: ServiceSpec) -> str:
    """What was printed since the last start; without what people asked and were told."""
    text = log.tail(_CAUSE_LINES).decode(errors="replace")
    text = text[max(text.rfind("[fleet] "), 0) :]
    if spec.shared_port_path:  # its records hold what people asked and were told: no cause is in there
        text = "\n".join(line for line in text.splitlines() if not line.startswith("{"))
    return text
