"""NVIDIA devices through NVML. Any single query may be unsupported: then that fact is absent, never zero.

Reading (`read_raw`: NVML's own answers, None where it refused) and assembling (`assemble`: units and names) are two
functions. NVML is opened for one reading and closed again: an idle agent keeps no device awake.
"""

import contextlib
import os
import sys
import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fleet_agent.probes.model import GpuFacts, GpuProcess, NoData, NvidiaDriverFacts, NvidiaFacts, ProbeContext

# nvml.h, nvmlClocksEventReason*: bit -> NVML's name in kebab-case.
THROTTLE_REASONS = {
    0x1: "gpu-idle",
    0x2: "applications-clocks-setting",
    0x4: "sw-power-cap",
    0x8: "hw-slowdown",
    0x10: "sync-boost",
    0x20: "sw-thermal-slowdown",
    0x40: "hw-thermal-slowdown",
    0x80: "hw-power-brake-slowdown",
    0x100: "display-clock-setting",
}


@dataclass(frozen=True)
class Owner:
    """Who runs a process and since when; None for what cannot be told."""

    user: str | None = None
    command: str | None = None
    started_unix_ms: int | None = None


@dataclass(frozen=True)
class RawProcess:
    pid: int
    memory_bytes: int | None
    compute: bool


@dataclass(frozen=True)
class RawGpu:
    """NVML's answers for one device in NVML's units: bytes, milliwatts, MHz; None where it refused to answer."""

    index: int
    uuid: str | None = None
    name: str | None = None
    memory: tuple[int, int, int] | None = None  # total, free, used
    compute_capability: tuple[int, int] | None = None
    power_limit_milliwatts: int | None = None
    power_draw_milliwatts: int | None = None
    sm_clock_mhz: int | None = None
    memory_clock_mhz: int | None = None
    temperature_celsius: int | None = None
    utilization_percent: int | None = None
    event_reasons: int | None = None
    persistence_mode: int | None = None
    mig_mode: int | None = None
    compute_processes: tuple[RawProcess, ...] | None = None
    graphics_processes: tuple[RawProcess, ...] | None = None


@dataclass(frozen=True)
class RawNvidia:
    driver_version: str | None = None
    cuda_driver_version: int | None = None
    gpus: tuple[RawGpu, ...] = ()


def read(context: ProbeContext) -> NvidiaFacts:
    facts = read_facts(own_pids=frozenset(context.own_pids()))
    if not facts.gpus:
        raise NoData("the NVIDIA driver answers, but sees no device")
    return facts


def read_facts(nvml: Any = None, own_pids: Collection[int] = frozenset()) -> NvidiaFacts:
    """Every device as it stands now. Raises NoData without a driver, NVML's own error where the driver is broken."""
    with opened(nvml) as library:
        raw = read_raw(library)
    return assemble(raw, process_owner, own_pids)


def foreign_gpu_processes(
    indices: Collection[int], own_pids: Iterable[int] = (), nvml: Any = None
) -> tuple[GpuProcess, ...]:
    """Compute processes of others on these devices (all devices where `indices` is empty), largest first.

    Each has user, command, memory_bytes and started_unix_ms where the host tells them. A process that only draws is
    left out: a desktop does not occupy a device. Empty without an NVIDIA driver; raises ProcessesUnknown where the
    driver does not tell a device's processes, since "unknown" is not "none".
    """
    try:
        facts = read_facts(nvml, frozenset(own_pids))
    except NoData:
        return ()
    chosen = [gpu for gpu in facts.gpus if not indices or gpu.index in indices]
    unknown = [gpu.index for gpu in chosen if not gpu.processes_known]
    if unknown:
        raise ProcessesUnknown(f"the driver does not tell the processes of GPU {', '.join(map(str, unknown))}")
    foreign = {p.pid: p for gpu in chosen for p in gpu.processes if p.compute and not p.ours}
    return tuple(sorted(foreign.values(), key=lambda one: -(one.memory_bytes or 0)))


class ProcessesUnknown(Exception):
    """The driver refuses to list a device's processes."""


@contextlib.contextmanager
def opened(nvml: Any = None) -> Any:
    """NVML, open for as long as the block runs. Raises NoData without a driver, RuntimeError where it is broken."""
    if nvml is None:
        nvml = _load()
    try:
        nvml.nvmlInit()
    except (nvml.NVMLError_LibraryNotFound, nvml.NVMLError_DriverNotLoaded) as error:
        raise NoData(f"no NVIDIA driver: {error}") from error
    except nvml.NVMLError_LibRmVersionMismatch as error:
        raise RuntimeError(
            f"{error}: the driver was updated under the running kernel module; reboot the host"
        ) from error
    try:
        yield nvml
    finally:
        nvml.nvmlShutdown()


def _load() -> Any:
    """pynvml, but only where there is a driver for it: its import takes 50 ms and some memory."""
    if sys.platform == "darwin":
        raise NoData("no NVIDIA driver on macOS")
    import ctypes

    try:
        ctypes.CDLL("libnvidia-ml.so.1")
    except OSError as error:
        raise NoData("no NVIDIA driver: libnvidia-ml.so.1 is not installed") from error
    import pynvml

    return pynvml


def read_raw(nvml: Any) -> RawNvidia:
    """Asks an opened NVML everything; each question on its own, so that one refusal costs one fact."""
    count = _ask(nvml, nvml.nvmlDeviceGetCount) or 0
    return RawNvidia(
        driver_version=_ask(nvml, nvml.nvmlSystemGetDriverVersion),
        cuda_driver_version=_ask(nvml, nvml.nvmlSystemGetCudaDriverVersion_v2),
        gpus=tuple(_read_gpu(nvml, index) for index in range(count)),
    )


def _ask(nvml: Any, question: Callable[..., Any], *arguments: Any) -> Any:
    try:
        return question(*arguments)
    except nvml.NVMLError:
        return None


def _read_gpu(nvml: Any, index: int) -> RawGpu:
    handle = _ask(nvml, nvml.nvmlDeviceGetHandleByIndex, index)
    if handle is None:
        return RawGpu(index)

    def ask(name: str, *arguments: Any) -> Any:
        return _ask(nvml, getattr(nvml, name), handle, *arguments)

    memory = ask("nvmlDeviceGetMemoryInfo")
    utilization = ask("nvmlDeviceGetUtilizationRates")
    limit = ask("nvmlDeviceGetEnforcedPowerLimit")
    mig = ask("nvmlDeviceGetMigMode")
    return RawGpu(
        index=index,
        uuid=ask("nvmlDeviceGetUUID"),
        name=ask("nvmlDeviceGetName"),
        memory=None if memory is None else (memory.total, memory.free, memory.used),
        compute_capability=ask("nvmlDeviceGetCudaComputeCapability"),
        power_limit_milliwatts=limit if limit is not None else ask("nvmlDeviceGetPowerManagementLimit"),
        power_draw_milliwatts=ask("nvmlDeviceGetPowerUsage"),
        sm_clock_mhz=ask("nvmlDeviceGetClockInfo", nvml.NVML_CLOCK_SM),
        memory_clock_mhz=ask("nvmlDeviceGetClockInfo", nvml.NVML_CLOCK_MEM),
        temperature_celsius=ask("nvmlDeviceGetTemperature", nvml.NVML_TEMPERATURE_GPU),
        utilization_percent=None if utilization is None else utilization.gpu,
        event_reasons=_event_reasons(nvml, handle),
        persistence_mode=ask("nvmlDeviceGetPersistenceMode"),
        mig_mode=None if mig is None else mig[0],
        compute_processes=_processes(ask("nvmlDeviceGetComputeRunningProcesses"), compute=True),
        graphics_processes=_processes(ask("nvmlDeviceGetGraphicsRunningProcesses"), compute=False),
    )


def _event_reasons(nvml: Any, handle: Any) -> int | None:
    """The question has a new name since driver 535; older drivers know only the old one."""
    known: int | None = _ask(nvml, nvml.nvmlDeviceGetCurrentClocksEventReasons, handle)
    if known is None:
        known = _ask(nvml, nvml.nvmlDeviceGetCurrentClocksThrottleReasons, handle)
    return known


def _processes(answer: Any, compute: bool) -> tuple[RawProcess, ...] | None:
    if answer is None:
        return None
    return tuple(RawProcess(int(one.pid), one.usedGpuMemory, compute) for one in answer)


def assemble(raw: RawNvidia, owner: Callable[[int], Owner], own_pids: Collection[int] = frozenset()) -> NvidiaFacts:
    """Facts from NVML's answers; `owner` tells who runs a pid, `own_pids` are processes of our services and jobs."""
    cuda = raw.cuda_driver_version
    driver = NvidiaDriverFacts(
        driver_version=raw.driver_version,
        cuda_version=None if cuda is None else f"{cuda // 1000}.{cuda % 1000 // 10}",
    )
    return NvidiaFacts(driver, tuple(_assemble_gpu(gpu, owner, own_pids) for gpu in raw.gpus))


def _assemble_gpu(raw: RawGpu, owner: Callable[[int], Owner], own_pids: Collection[int]) -> GpuFacts:
    total, free, used = raw.memory or (None, None, None)
    major, minor = raw.compute_capability or (None, None)
    return GpuFacts(
        index=raw.index,
        uuid=raw.uuid or "",
        name=raw.name or "",
        memory_total_bytes=total,
        memory_free_bytes=free,
        memory_used_bytes=used,
        compute_capability_major=major,
        compute_capability_minor=minor,
        power_limit_watts=_watts(raw.power_limit_milliwatts),
        power_draw_watts=_watts(raw.power_draw_milliwatts),
        sm_clock_mhz=raw.sm_clock_mhz,
        memory_clock_mhz=raw.memory_clock_mhz,
        temperature_celsius=raw.temperature_celsius,
        utilization_percent=raw.utilization_percent,
        throttle_reasons=throttle_names(raw.event_reasons or 0),
        throttle_reasons_known=raw.event_reasons is not None,
        persistence_mode=None if raw.persistence_mode is None else raw.persistence_mode == 1,
        mig_enabled=None if raw.mig_mode is None else raw.mig_mode == 1,
        processes=_assemble_processes(raw, owner, own_pids),
        processes_known=raw.compute_processes is not None,
    )


def _watts(milliwatts: int | None) -> float | None:
    return None if milliwatts is None else milliwatts / 1000


def throttle_names(bits: int) -> tuple[str, ...]:
    """Names of the set bits; one that we do not know is named by its value."""
    set_bits = (1 << position for position in range(bits.bit_length()) if bits & (1 << position))
    return tuple(THROTTLE_REASONS.get(bit, f"bit-{bit:#x}") for bit in set_bits)


def _assemble_processes(
    raw: RawGpu, owner: Callable[[int], Owner], own_pids: Collection[int]
) -> tuple[GpuProcess, ...]:
    """One entry a pid: a process that computes and draws is in both of NVML's lists, with the same memory."""
    merged: dict[int, RawProcess] = {}
    for one in (*(raw.graphics_processes or ()), *(raw.compute_processes or ())):
        before = merged.get(one.pid)
        known = [size for size in (one.memory_bytes, before.memory_bytes if before else None) if size is not None]
        merged[one.pid] = replace(one, memory_bytes=max(known, default=None))
    return tuple(
        GpuProcess(
            pid=one.pid,
            memory_bytes=one.memory_bytes,
            user=(who := owner(one.pid)).user,
            command=who.command,
            started_unix_ms=who.started_unix_ms,
            ours=one.pid in own_pids,
            compute=one.compute,
        )
        for one in sorted(merged.values(), key=lambda one: one.pid)
    )


def process_owner(pid: int) -> Owner:
    """User, executable name and start of a process, from /proc; empty where it has ended or is not visible here."""
    import pwd

    if sys.platform != "linux":
        return Owner()
    folder = Path(f"/proc/{pid}")
    try:
        user_id = folder.stat().st_uid
        command = (folder / "comm").read_text(encoding="utf-8", errors="replace").strip()
        fields = (folder / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return Owner()
    try:
        user = pwd.getpwuid(user_id).pw_name
    except KeyError:
        user = str(user_id)
    seconds_since_boot = int(fields[19]) / os.sysconf("SC_CLK_TCK")
    booted = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
    return Owner(user, command, int((booted + seconds_since_boot) * 1000))
