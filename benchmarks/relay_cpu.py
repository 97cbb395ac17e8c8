"""CPU time, user and system apart: of a running process with all its threads, and of children that have ended."""

import os
import resource
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class CpuSeconds:
    user: float = 0.0
    system: float = 0.0

    @property
    def total(self) -> float:
        return self.user + self.system

    def __add__(self, other: "CpuSeconds") -> "CpuSeconds":
        return CpuSeconds(self.user + other.user, self.system + other.system)

    def __sub__(self, other: "CpuSeconds") -> "CpuSeconds":
        return CpuSeconds(self.user - other.user, self.system - other.system)


def cpu_of_process(pid: int) -> CpuSeconds:
    """In ticks of the kernel, mostly 10 ms. Raises FileNotFoundError where the process is gone."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    tick = os.sysconf("SC_CLK_TCK")
    return CpuSeconds(int(fields[11]) / tick, int(fields[12]) / tick)


def cpu_of_ended_children() -> CpuSeconds:
    """Of all that were waited for, and of those that they waited for."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return CpuSeconds(used.ru_utime, used.ru_stime)
