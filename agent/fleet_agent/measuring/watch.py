"""Looking at the devices of a measurement once a second, and judging whether somebody else disturbed it.

A look never raises: what a device does not tell is absent. What counts as a disturbance is `judge`, a pure function.
"""

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

from fleet_agent.jobs.model import DeviceWatch
from fleet_agent.measuring.processes import ForeignProcess, ProcessWatch
from fleet_agent.probes.model import GpuFacts, NoData
from fleet_agent.probes.nvidia import assemble, opened, process_owner, read_raw
from fleet_agent.services.devices import describe_process

DEFAULT_INTERVAL_SECONDS = 1.0
# NVML's reasons that mean "hotter or weaker than it should be"; a power limit that somebody set is part of the machine.
SLOWED_DOWN = frozenset({"hw-slowdown", "hw-thermal-slowdown", "sw-thermal-slowdown", "hw-power-brake-slowdown"})
# One look may catch a cron job of milliseconds; two looks in a row are work.
LOOKS_IN_A_ROW = 2
# What looks gives way to what is measured, where both want the same core.
NICENESS = 10
NAMED_FOREIGN = 3


@dataclass(frozen=True)
class Look:
    """What the devices and the foreign processes did at one moment. `foreign_gpu` are compute processes of others."""

    unix_ms: int
    seconds: float
    gpus: tuple[GpuFacts, ...] = ()
    foreign_gpu: tuple[str, ...] = ()
    foreign_cpu: tuple[ForeignProcess, ...] = ()
    load_average_1m: float | None = None

    @property
    def foreign_cpu_percent(self) -> float:
        return sum(process.cpu_percent for process in self.foreign_cpu)

    def document(self) -> dict[str, Any]:
        """For the job's result; what is not known is left out."""
        busiest = [
            f"{one.user}:{one.command}:{one.pid}" for one in self.foreign_cpu[:NAMED_FOREIGN] if one.cpu_percent >= 1
        ]
        values = {
            "unix_ms": self.unix_ms,
            "seconds": round(self.seconds, 3),
            "devices": [_device(gpu) for gpu in self.gpus],
            "foreign_gpu": list(self.foreign_gpu),
            "foreign_cpu": busiest,
            "foreign_cpu_percent": round(self.foreign_cpu_percent, 1),
            "load_average_1m": self.load_average_1m,
        }
        return {name: value for name, value in values.items() if value not in (None, [], ())}


def _device(gpu: GpuFacts) -> dict[str, Any]:
    values = {
        "index": gpu.index,
        "sm_clock_mhz": gpu.sm_clock_mhz,
        "memory_clock_mhz": gpu.memory_clock_mhz,
        "power_watts": gpu.power_draw_watts,
        "temperature_celsius": gpu.temperature_celsius,
        "utilization_percent": gpu.utilization_percent,
        "memory_used_bytes": gpu.memory_used_bytes,
        "throttle_reasons": list(gpu.throttle_reasons) if gpu.throttle_reasons_known else None,
    }
    return {name: value for name, value in values.items() if value is not None}


def judge(looks: Sequence[Look], watch: DeviceWatch) -> str | None:
    """Why the newest looks spoil a measurement, in a user's words; None where they do not."""
    if not looks:
        return None
    if looks[-1].foreign_gpu:
        return f"somebody else computes there: {'; '.join(looks[-1].foreign_gpu)}"
    recent = looks[-LOOKS_IN_A_ROW:]
    if len(recent) < LOOKS_IN_A_ROW:
        return None
    slowed = set.intersection(*({name for gpu in look.gpus for name in gpu.throttle_reasons} for look in recent))
    if slowed & SLOWED_DOWN:
        return f"the device slowed itself down: {', '.join(sorted(slowed & SLOWED_DOWN))}"
    if watch.gpu_indices or watch.foreign_cpu_percent <= 0:
        return None
    if all(look.foreign_cpu_percent > watch.foreign_cpu_percent for look in recent):
        named = "; ".join(process.describe() for process in recent[-1].foreign_cpu[:NAMED_FOREIGN])
        return f"other processes use the CPU: {named}"
    return None


@dataclass
class DeviceLooker:
    """Takes looks. `allowed` are pids of servers that are measured and are not our children, `idle` those that may lie
    on the device while they do nothing; `nvml` is for tests."""

    watch: DeviceWatch
    allowed: Callable[[], Collection[int]] = tuple
    idle: Callable[[], Collection[int]] = tuple
    nvml: Any = None
    processes: ProcessWatch = field(default_factory=ProcessWatch)
    started: float = field(default_factory=time.monotonic)
    _library: Any = None
    _stack: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    def __enter__(self) -> "DeviceLooker":
        if self.watch.gpu_indices:
            with contextlib.suppress(NoData, RuntimeError):
                self._library = self._stack.enter_context(opened(self.nvml))
        self.processes.look(self.allowed())
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def look(self) -> Look:
        foreign_cpu = self.processes.look(self.allowed())
        gpus = self._gpus()
        own = self.processes.own_pids | set(self.idle() if gpus else ())
        foreign_gpu = {
            process.pid: describe_process(process)
            for gpu in gpus
            for process in gpu.processes
            if process.compute and process.pid not in own
        }
        return Look(
            unix_ms=time.time_ns() // 1_000_000,
            seconds=time.monotonic() - self.started,
            gpus=gpus,
            foreign_gpu=tuple(foreign_gpu.values()),
            foreign_cpu=foreign_cpu,
            load_average_1m=os.getloadavg()[0],
        )

    def _gpus(self) -> tuple[GpuFacts, ...]:
        if self._library is None:
            return ()
        try:
            facts = assemble(read_raw(self._library), process_owner)
        except Exception:  # NVML's own errors: a device that stops answering spoils the next run, not this reading
            return ()
        return tuple(gpu for gpu in facts.gpus if gpu.index in self.watch.gpu_indices)


def _give_way() -> None:
    """Makes this thread, and no other, nicer. Only Linux has that."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)


class Sampler:
    """Looks in a thread of its own until stop(). `cause` is set, and `on_cause` called there, at the first spoiling."""

    def __init__(self, looker: DeviceLooker, on_cause: Callable[[str], None]) -> None:
        self.looks: list[Look] = []
        self.cause: str | None = None
        self._looker = looker
        self._on_cause = on_cause
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sampler", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join()

    def _run(self) -> None:
        _give_way()
        interval = self._looker.watch.interval_seconds or DEFAULT_INTERVAL_SECONDS
        due = time.monotonic() + interval
        while not self._stopped.wait(max(0.0, due - time.monotonic())):
            due += interval
            self.looks.append(self._looker.look())
            cause = judge(self.looks, self._looker.watch)
            if cause is not None and self.cause is None:
                self.cause = cause
                self._on_cause(cause)
