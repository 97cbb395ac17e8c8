"""The probes: one file each, and this table of those that run, in the order in which they are reported."""

from fleet_agent.probes import apple, cpu, disk, engines, memory, nvidia, system, tools
from fleet_agent.probes.model import Probe

PROBES: tuple[Probe, ...] = (
    Probe("system", system.read),
    Probe("cpu", cpu.read),
    Probe("memory", memory.read),
    Probe("disk", disk.read),
    Probe("nvidia", nvidia.read, limit_seconds=8.0),  # a driver without persistence mode wakes the device first
    Probe("apple", apple.read, limit_seconds=8.0),  # system_profiler
    Probe("engines", engines.read),
    Probe("tools", tools.read),
)
