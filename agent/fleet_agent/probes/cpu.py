"""The CPU: model, cores, load, and the instruction sets that model servers are built for."""

import os
import re
import sys
from collections.abc import Iterable
from pathlib import Path

from fleet_agent.probes.model import CpuFacts, ProbeContext
from fleet_agent.probes.reading import read_text, run_text

# Linux's flag names that decide how fast a CPU backend is; the kernel's name first, ours second.
_FEATURES = {
    "sse4_2": "sse4_2", "avx": "avx", "avx2": "avx2", "fma": "fma", "f16c": "f16c", "avx_vnni": "avx_vnni",
    "avx512f": "avx512f", "avx512bw": "avx512bw", "avx512vl": "avx512vl", "avx512_vnni": "avx512_vnni",
    "avx512_bf16": "avx512_bf16", "avx512_fp16": "avx512_fp16", "amx_tile": "amx_tile", "amx_int8": "amx_int8",
    "amx_bf16": "amx_bf16", "asimd": "neon", "asimddp": "dotprod", "asimdhp": "fp16", "i8mm": "i8mm", "bf16": "bf16",
    "sve": "sve", "sve2": "sve2", "sme": "sme",
}  # fmt: skip
_MAC_FEATURES = {
    "AdvSIMD": "neon", "FEAT_DotProd": "dotprod", "FEAT_FP16": "fp16", "FEAT_I8MM": "i8mm", "FEAT_BF16": "bf16",
    "FEAT_SME": "sme",
}  # fmt: skip


def read(context: ProbeContext) -> CpuFacts:
    if sys.platform == "darwin":
        names = ("machdep.cpu.brand_string", "hw.physicalcpu", "hw.logicalcpu")
        text = run_text(["/usr/sbin/sysctl", *names, "hw.optional.arm"], check=False)
        return parse_mac_sysctl(text, os.getloadavg()[0])
    text = read_text("/proc/cpuinfo") or ""
    siblings = [read_text(path) or "" for path in _topology_files()]
    return parse_linux(text, siblings, os.cpu_count(), os.getloadavg()[0], os.uname().machine)


def _topology_files() -> Iterable[Path]:
    return Path("/sys/devices/system/cpu").glob("cpu[0-9]*/topology/thread_siblings_list")


def parse_linux(
    cpuinfo: str, siblings: Iterable[str], logical_cores: int | None, load_average_1m: float, machine: str
) -> CpuFacts:
    """Facts from /proc/cpuinfo and each core's thread_siblings_list: threads of one core share the same list."""
    values = dict(re.findall(r"^([^:\n]+?)[ \t]*: (.*)$", cpuinfo, re.MULTILINE))
    flags = (values.get("flags") or values.get("Features") or "").split()
    cores = {text.strip() for text in siblings if text.strip()}
    return CpuFacts(
        model=values.get("model name") or values.get("Model") or values.get("Hardware") or machine,
        physical_cores=len(cores) or None,
        logical_cores=logical_cores,
        load_average_1m=load_average_1m,
        features=tuple(ours for flag, ours in _FEATURES.items() if flag in flags),
    )


def parse_mac_sysctl(text: str, load_average_1m: float) -> CpuFacts:
    """Facts from the lines "name: value" of sysctl."""
    values = parse_sysctl(text)
    return CpuFacts(
        model=values.get("machdep.cpu.brand_string", "Apple silicon"),
        physical_cores=_number(values.get("hw.physicalcpu")),
        logical_cores=_number(values.get("hw.logicalcpu")),
        load_average_1m=load_average_1m,
        features=tuple(ours for name, ours in _MAC_FEATURES.items() if values.get(f"hw.optional.arm.{name}") == "1"),
    )


def parse_sysctl(text: str) -> dict[str, str]:
    """The lines "name: value" of sysctl; its complaints about unknown names are left out."""
    lines = (line.partition(": ") for line in text.splitlines() if not line.startswith("sysctl:"))
    return {name.strip(): value.strip() for name, separator, value in lines if separator}


def _number(text: str | None) -> int | None:
    return int(text) if text and text.isdigit() else None
