"""The accelerators of this host as admission and listings need them, read through the NVIDIA probe."""

import logging
import threading
import time
from collections.abc import Callable, Collection, Sequence
from datetime import datetime
from pathlib import Path
from typing import TypeVar

from fleet_agent.probes.model import GpuFacts, GpuProcess, NoData
from fleet_agent.probes.nvidia import ProcessesUnknown, foreign_gpu_processes, read_facts

_CONTROL_DEVICE = Path("/dev/nvidiactl")
_KEPT_SECONDS = 1.0
# As the NVIDIA probe's: a driver without persistence mode wakes the device first.
_LIMIT_SECONDS = 8.0

_logger = logging.getLogger(__name__)

Answer = TypeVar("Answer")


class DriverHangsError(Exception):
    """A call into the driver does not come back."""


class NvidiaDevices:
    """Devices through NVML. A host without the driver has none, and is asked nothing."""

    def __init__(self, limit_seconds: float = _LIMIT_SECONDS) -> None:
        self._limit_seconds = limit_seconds
        self._kept: tuple[float, tuple[GpuFacts, ...]] | None = None
        self._asking: threading.Thread | None = None

    def strangers(self, gpu_indices: Sequence[int], own_pids: Collection[int]) -> Sequence[str]:
        """Who else computes there. A driver that does not tell is taken for "nobody", and that is logged."""
        if not _CONTROL_DEVICE.exists():
            return ()
        try:
            found = self._within_limit(lambda: foreign_gpu_processes(gpu_indices, own_pids))
            return [describe_process(one) for one in found]
        except (ProcessesUnknown, DriverHangsError) as error:
            _logger.warning("cannot tell whether others use the device: %s", error)
            return ()

    def free_bytes(self, gpu_indices: Sequence[int]) -> int | None:
        chosen = [gpu for gpu in self._gpus(fresh=True) if not gpu_indices or gpu.index in gpu_indices]
        known = [gpu.memory_free_bytes for gpu in chosen if gpu.memory_free_bytes is not None]
        return sum(known) if known and len(known) == len(chosen) else None

    def used_bytes(self, pids: Collection[int]) -> int | None:
        processes = [one for gpu in self._gpus(fresh=False) for one in gpu.processes if one.pid in pids]
        known = [one.memory_bytes for one in processes if one.memory_bytes is not None]
        return sum(known) if known else None

    def _gpus(self, fresh: bool) -> tuple[GpuFacts, ...]:
        """One reading serves a whole listing: opening NVML costs tens of milliseconds."""
        now = time.monotonic()
        if not _CONTROL_DEVICE.exists():
            return ()
        if self._kept is None or fresh or now - self._kept[0] > _KEPT_SECONDS:
            try:
                self._kept = (now, self._within_limit(lambda: read_facts().gpus))
            except NoData:
                self._kept = (now, ())
            except Exception as error:  # NVML's own errors: a broken driver must not take the listing down
                _logger.warning("the NVIDIA driver cannot be read: %s", error)
                self._kept = (now, ())
        return self._kept[1]

    def _within_limit(self, ask: Callable[[], Answer]) -> Answer:
        """The answer of a call into the driver, which may hang for ever: then the agent must still serve.

        Raises DriverHangsError, at once while an earlier call hangs, and what `ask` raises.
        """
        if self._asking is not None and self._asking.is_alive():
            raise DriverHangsError("an earlier call into the NVIDIA driver still hangs")
        answers: list[Answer] = []
        errors: list[Exception] = []

        def work() -> None:
            try:
                answers.append(ask())
            except Exception as error:
                errors.append(error)

        self._asking = threading.Thread(target=work, name="nvidia", daemon=True)
        self._asking.start()
        self._asking.join(self._limit_seconds)
        if errors:
            raise errors[0]
        if not answers:
            raise DriverHangsError(f"the NVIDIA driver did not answer within {self._limit_seconds:g} s")
        return answers[0]


def describe_process(process: GpuProcess) -> str:
    """In a user's words: "alice, python, 18.2 GB since 14:02"."""
    parts = [process.user or "somebody", process.command or f"pid {process.pid}"]
    text = ", ".join(parts)
    if process.memory_bytes is not None:
        text += f", {process.memory_bytes / 1e9:.1f} GB"
    if process.started_unix_ms is not None:
        started = datetime.fromtimestamp(process.started_unix_ms / 1000)
        same_day = started.date() == datetime.now().date()
        text += f" since {started:%H:%M}" if same_day else f" since {started:%Y-%m-%d %H:%M}"
    return text
