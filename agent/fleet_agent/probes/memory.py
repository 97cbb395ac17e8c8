"""Main memory, within what a container or service manager lets us use."""

import re
import sys
from pathlib import Path

from fleet_agent.probes.model import MemoryFacts, ProbeContext
from fleet_agent.probes.reading import read_text


def read(context: ProbeContext) -> MemoryFacts:
    if sys.platform == "darwin":
        return _read_mac()
    facts = parse_meminfo(read_text("/proc/meminfo") or "")
    for folder in _cgroup_folders(read_text("/proc/self/cgroup") or ""):
        facts = within_limit(
            facts, read_text(folder / "memory.max"), read_text(folder / "memory.current"),
            read_text(folder / "memory.stat"),
        )  # fmt: skip
    return facts


def parse_meminfo(text: str) -> MemoryFacts:
    """Facts from /proc/meminfo, which counts in KiB."""
    kib = {name: int(value) for name, value in re.findall(r"^(\w+):\s+(\d+) kB$", text, re.MULTILINE)}

    def size(name: str) -> int | None:
        return kib[name] * 1024 if name in kib else None

    return MemoryFacts(size("MemTotal"), size("MemAvailable"), size("SwapTotal"), size("SwapFree"))


def within_limit(facts: MemoryFacts, maximum: str | None, current: str | None, statistics: str | None) -> MemoryFacts:
    """`facts` cut to a cgroup's memory.max; inactive file cache counts as available, as the kernel reclaims it first.

    (Documentation/admin-guide/cgroup-v2.rst: memory.max is "max" without a limit.)
    """
    if maximum is None or not maximum.strip().isdigit() or facts.total_bytes is None:
        return facts
    limit = int(maximum)
    if limit >= facts.total_bytes:
        return facts
    available = facts.available_bytes
    if current is not None and available is not None:
        cache = re.search(r"^inactive_file (\d+)$", statistics or "", re.MULTILINE)
        available = min(available, max(0, limit - int(current) + (int(cache.group(1)) if cache else 0)))
    return MemoryFacts(limit, available, facts.swap_total_bytes, facts.swap_free_bytes)


def _cgroup_folders(text: str) -> list[Path]:
    """Our cgroup (version 2) and those above it: each may hold a limit."""
    found = re.search(r"^0::(/.*)$", text, re.MULTILINE)
    if found is None:
        return []
    own = Path("/sys/fs/cgroup") / found.group(1).lstrip("/")
    return [folder for folder in (own, *own.parents) if folder.is_relative_to("/sys/fs/cgroup")]


def _read_mac() -> MemoryFacts:
    import psutil

    memory, swap = psutil.virtual_memory(), psutil.swap_memory()
    return MemoryFacts(memory.total, memory.available, swap.total, swap.free)
