"""Apple silicon: chip, GPU cores, unified memory, and what Metal may use of it."""

import functools
import json
import os
import re
import sys
from typing import Any

from fleet_agent.probes.cpu import parse_sysctl
from fleet_agent.probes.model import AppleFacts, NoData, ProbeContext
from fleet_agent.probes.reading import ReadingError, run_text

_GIB = 1024**3
_SYSCTL_NAMES = (
    "machdep.cpu.brand_string", "hw.memsize", "hw.perflevel0.physicalcpu", "hw.perflevel1.physicalcpu",
    "iogpu.wired_limit_mb",
)  # fmt: skip


def read(context: ProbeContext) -> AppleFacts:
    if sys.platform != "darwin" or os.uname().machine != "arm64":
        raise NoData("not Apple silicon")
    # sysctl reports a name it does not know and goes on: older systems have no iogpu.wired_limit_mb.
    return assemble(run_text(["/usr/sbin/sysctl", *_SYSCTL_NAMES], check=False), _displays())


@functools.lru_cache(maxsize=1)
def _displays() -> str:
    """Asked once: it takes most of a second, and GPU cores do not change."""
    try:
        return run_text(["/usr/sbin/system_profiler", "SPDisplaysDataType", "-json"], limit_seconds=7.0)
    except ReadingError:
        return ""


def assemble(sysctl_text: str, displays_json: str) -> AppleFacts:
    """Facts from sysctl's lines and the JSON of `system_profiler SPDisplaysDataType -json` (may be empty)."""
    values = parse_sysctl(sysctl_text)

    def number(name: str) -> int | None:
        text = values.get(name, "")
        return int(text) if re.fullmatch(r"\d+", text) else None

    memory = number("hw.memsize")
    model, cores = parse_displays(displays_json)
    return AppleFacts(
        chip=values.get("machdep.cpu.brand_string") or model,
        gpu_cores=cores,
        unified_memory_bytes=memory,
        metal_working_set_bytes=metal_working_set_bytes(memory, number("iogpu.wired_limit_mb")),
        performance_cores=number("hw.perflevel0.physicalcpu"),
        efficiency_cores=number("hw.perflevel1.physicalcpu"),
    )


def parse_displays(text: str) -> tuple[str | None, int | None]:
    """(model, GPU cores) of the built-in GPU in system_profiler's JSON; None for what it does not tell."""
    try:
        document: Any = json.loads(text)
    except ValueError:
        return None, None
    entries = document.get("SPDisplaysDataType", []) if isinstance(document, dict) else []
    for entry in entries:
        cores = str(entry.get("sppci_cores", ""))
        if cores.isdigit():
            return entry.get("sppci_model"), int(cores)
    return None, None


def metal_working_set_bytes(memory_bytes: int | None, wired_limit_mb: int | None) -> int | None:
    """Bytes that Metal may wire: iogpu.wired_limit_mb where somebody set it (0 = default), else macOS's default.

    The default is MTLDevice.recommendedMaxWorkingSetSize. Apple publishes no formula; what llama.cpp prints on real
    machines is 2/3 of memory on small ones (16 GiB M4: 11453 MB, in ggml-org/ci's log) and 3/4 from 36 GiB up.
    """
    if wired_limit_mb:
        return wired_limit_mb * 1024 * 1024
    if memory_bytes is None:
        return None
    return memory_bytes * 3 // 4 if memory_bytes >= 36 * _GIB else memory_bytes * 2 // 3
