"""Whether a server answers, and whether one that does not yet is getting on.

A fixed limit would kill a healthy server: vLLM needs minutes for its first compilation, a 70 GB model longer on a slow
disk. So the limit counts from the last sign of progress: the log grew, or the process tree computed or read.
"""

import asyncio
import contextlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from fleet_agent.process import ProcessIdentity
from fleet_agent.services.model import ServiceSpec

PROBE_SECONDS = 5.0
# Less than this share of one core is a server that only waits (timers, heartbeats).
_BUSY_SHARE = 0.02
_READ_BYTES = 1 << 20


@dataclass(frozen=True)
class ProbeOutcome:
    """status is None where nothing answered; then `reason` says why."""

    status: int | None
    reason: str = ""

    @property
    def ready(self) -> bool:
        return self.status is not None and 200 <= self.status < 300

    def describe(self) -> str:
        if self.status == 503:
            return "it is still loading (HTTP 503)"
        return f"it answers with HTTP {self.status}" if self.status is not None else self.reason


def probe_address(bind_address: str) -> str:
    """Where a server bound to this address is reached from its own host."""
    return {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1", "*": "127.0.0.1"}.get(bind_address, bind_address)


async def probe(spec: ServiceSpec, timeout_seconds: float = PROBE_SECONDS) -> ProbeOutcome:
    """One GET of the readiness path. Never raises: an answer that is none is an outcome."""
    host = probe_address(spec.bind_address)
    try:
        status = await asyncio.wait_for(_get_status(host, spec.port, spec.readiness.path), timeout_seconds)
        return ProbeOutcome(status)
    except (asyncio.TimeoutError, TimeoutError):
        return ProbeOutcome(None, f"no answer within {timeout_seconds:g} s")
    except ConnectionRefusedError:
        return ProbeOutcome(None, "it does not listen on its port yet")
    except (OSError, ValueError, asyncio.IncompleteReadError) as error:
        return ProbeOutcome(None, f"no HTTP answer: {error}")


async def _get_status(host: str, port: int, path: str) -> int:
    reader, writer = await asyncio.open_connection(host, port)
    try:
        name = f"[{host}]" if ":" in host else host
        request = f"GET {path} HTTP/1.1\r\nHost: {name}:{port}\r\nConnection: close\r\nAccept: */*\r\n\r\n"
        writer.write(request.encode("ascii"))
        await writer.drain()
        parts = (await reader.readline()).split(None, 2)
        if len(parts) < 2 or not parts[0].startswith(b"HTTP/"):
            raise ValueError("the answer is not HTTP")
        return int(parts[1])
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


@dataclass(frozen=True)
class Effort:
    """What a process tree has done so far: CPU seconds, bytes read from storage, bytes of log written."""

    cpu_seconds: float
    read_bytes: int
    log_bytes: int


class ProgressMeter:
    """Seconds since the last sign of progress; `observe` is called at each probe."""

    def __init__(self, now: float) -> None:
        self._last_progress_at = now
        self._reference: Effort | None = None

    def observe(self, effort: Effort, now: float) -> float:
        """Takes a measurement at monotonic time `now`; returns for how many seconds nothing moved."""
        before = self._reference
        if before is None:
            self._reference = effort
        elif self._moved(before, effort, now - self._last_progress_at):
            self._reference, self._last_progress_at = effort, now
        return now - self._last_progress_at

    @staticmethod
    def _moved(before: Effort, after: Effort, seconds: float) -> bool:
        return (
            after.log_bytes != before.log_bytes
            or after.read_bytes - before.read_bytes >= _READ_BYTES
            # A worker that ended takes its seconds along: a difference either way is a sign of life.
            or abs(after.cpu_seconds - before.cpu_seconds) > max(_BUSY_SHARE * seconds, 0.01)
        )


def measure(members: Iterable[ProcessIdentity], log_bytes: int) -> Effort:
    """The effort of these processes. What cannot be read counts as none."""
    import psutil

    cpu_seconds, read_bytes = 0.0, 0
    for member in members:
        with contextlib.suppress(psutil.Error, OSError):
            times = psutil.Process(member.pid).cpu_times()
            cpu_seconds += times.user + times.system
        with contextlib.suppress(OSError, ValueError, IndexError):
            text = Path(f"/proc/{member.pid}/io").read_text(encoding="ascii")
            read_bytes += int(text.split("read_bytes:")[1].split()[0])
    return Effort(cpu_seconds, read_bytes, log_bytes)
