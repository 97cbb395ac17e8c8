"""The network link that leads out of this host, as far as the operating system tells it."""

import contextlib
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

BYTES_PER_MEGABIT = 125_000


@dataclass(frozen=True)
class NetworkLink:
    """bytes_per_second: what the link was negotiated to; None where nobody tells."""

    bytes_per_second: int | None = None
    wifi: bool = False


def network_link(system: Path = Path("/")) -> NetworkLink:
    """Of the interface with the default route. `system` is the root of /proc and /sys."""
    if sys.platform == "darwin":
        return _of_macos()
    routes = ""
    with contextlib.suppress(OSError):
        routes = (system / "proc/net/route").read_text()
    name = default_interface(routes)
    return _of_linux(system / "sys/class/net" / name) if name else NetworkLink()


def default_interface(routes: str) -> str:
    """From /proc/net/route: the interface of the default route with the lowest metric; else the first one; else ""."""
    rows = [line.split() for line in routes.splitlines()[1:]]
    rows = [row for row in rows if len(row) > 7]
    default = [row for row in rows if row[1] == row[7] == "00000000"]
    if default:
        return min(default, key=lambda row: int(row[6]))[0]
    return rows[0][0] if rows else ""


def _of_linux(interface: Path) -> NetworkLink:
    speed: int | None = None
    with contextlib.suppress(OSError, ValueError):
        megabits = int((interface / "speed").read_text())
        speed = megabits * BYTES_PER_MEGABIT if megabits > 0 else None
    wifi = (interface / "wireless").exists() or (interface / "phy80211").exists()
    return NetworkLink(speed, wifi)


def _of_macos() -> NetworkLink:
    """Whether the default route goes over Wi-Fi. No plain file or tool of macOS tells the speed."""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        route = _output("/sbin/route", "-n", "get", "default")
        name = next((line.split()[-1] for line in route.splitlines() if "interface:" in line), "")
        return NetworkLink(wifi=bool(name) and name in wifi_devices(_output(
            "/usr/sbin/networksetup", "-listallhardwareports"
        )))  # fmt: skip
    return NetworkLink()


def wifi_devices(listing: str) -> tuple[str, ...]:
    """Devices of `networksetup -listallhardwareports` whose port is Wi-Fi."""
    found, port = [], ""
    for line in listing.splitlines():
        key, _, value = line.partition(":")
        if key == "Hardware Port":
            port = value.strip()
        elif key == "Device" and port in ("Wi-Fi", "AirPort"):
            found.append(value.strip())
    return tuple(found)


def _output(*argv: str) -> str:
    return subprocess.run(argv, capture_output=True, text=True, timeout=5.0, check=False).stdout
