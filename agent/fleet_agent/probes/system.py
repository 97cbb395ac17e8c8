"""The operating system, and whether the home comes over the network."""

import os
import platform
import re
import sys
import time
from pathlib import Path

from fleet_agent.probes.disk import filesystem_of, is_network_filesystem
from fleet_agent.probes.model import ProbeContext, SystemFacts
from fleet_agent.probes.reading import ReadingError, read_text, run_text


def read(context: ProbeContext) -> SystemFacts:
    names = os.uname()
    mac = parse_sw_vers(run_text(["/usr/bin/sw_vers"])) if sys.platform == "darwin" else {}
    return SystemFacts(
        os="darwin" if sys.platform == "darwin" else "linux",
        architecture=names.machine,
        os_name=_mac_name(mac) if mac else parse_os_release(read_text("/etc/os-release") or "") or names.sysname,
        kernel=names.release,
        user=_user(),
        python_version=platform.python_version(),
        macos_build=mac.get("BuildVersion"),
        libc=None if sys.platform == "darwin" else _libc(),
        uptime_seconds=_uptime_seconds(),
        home_is_network=_home_is_network(),
    )


def parse_os_release(text: str) -> str | None:
    """ "Ubuntu 24.04" from os-release(5): NAME and VERSION_ID, or PRETTY_NAME where one is missing."""
    values = dict(re.findall(r'^([A-Z_]+)="?(.*?)"?$', text, re.MULTILINE))
    name, version = values.get("NAME"), values.get("VERSION_ID")
    return f"{name} {version}" if name and version else values.get("PRETTY_NAME") or name


def parse_sw_vers(text: str) -> dict[str, str]:
    """ProductName, ProductVersion and BuildVersion of `sw_vers`."""
    return {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in text.splitlines())}


def _mac_name(values: dict[str, str]) -> str:
    return f"{values.get('ProductName', 'macOS')} {values.get('ProductVersion', '')}".strip()


def parse_musl_version(text: str) -> str | None:
    """The version that musl's loader prints when it is run without arguments."""
    found = re.search(r"^Version (\S+)", text, re.MULTILINE)
    return f"musl {found.group(1)}" if found else None


def _libc() -> str | None:
    try:
        known = os.confstr("CS_GNU_LIBC_VERSION")
    except (ValueError, OSError):
        known = None
    if known:
        return known
    for loader in Path("/lib").glob("ld-musl-*.so.1"):
        try:
            return parse_musl_version(run_text([loader], check=False)) or "musl"
        except ReadingError:
            return "musl"
    return None


def parse_mac_boot_time(text: str) -> int | None:
    """Seconds since 1970 in `sysctl -n kern.boottime`: "{ sec = 1731000000, usec = 0 } ..."."""
    found = re.search(r"\bsec = (\d+)", text)
    return int(found.group(1)) if found else None


def _uptime_seconds() -> float | None:
    if sys.platform == "darwin":
        booted = parse_mac_boot_time(run_text(["/usr/sbin/sysctl", "-n", "kern.boottime"]))
        return None if booted is None else max(0.0, time.time() - booted)
    text = read_text("/proc/uptime")
    return float(text.split()[0]) if text else None


def _user() -> str:
    import pwd

    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())


def _home_is_network() -> bool | None:
    filesystem = filesystem_of(Path.home())
    return None if filesystem is None else is_network_filesystem(filesystem)
