"""Who listens on a port of this host: address, and as far as the host tells it the process and its user."""

import contextlib
import ipaddress
import pwd
import re
import sys
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

_LINUX = sys.platform.startswith("linux")
_LISTEN = "0A"  # TCP_LISTEN of include/net/tcp_states.h
_WILDCARDS = {"0.0.0.0": "127.0.0.1", "::": "::1"}
_PYTHON = re.compile(r"python[0-9.]*\Z")


@dataclass(frozen=True)
class Listener:
    """One listening socket. pid is None where this user may not see it, user_id where the host does not tell it."""

    address: str
    port: int
    user_id: int | None = None
    inode: int = 0
    pid: int | None = None

    @property
    def reached_at(self) -> str:
        """The address to connect to from this host."""
        return _WILDCARDS.get(self.address, self.address)


def find_listeners(ports: Collection[int]) -> tuple[Listener, ...]:
    """The listening sockets on these ports, loopback and wildcard addresses first."""
    found = _linux(ports) if _LINUX else _other(ports)
    return tuple(sorted(found, key=lambda one: (one.port, not one.reached_at.startswith(("127.", "::1")), one.address)))


def _linux(ports: Collection[int]) -> list[Listener]:
    listeners: list[Listener] = []
    for table in ("tcp", "tcp6"):
        with contextlib.suppress(OSError):
            listeners += parse_socket_table(Path(f"/proc/net/{table}").read_text(encoding="ascii"), ports)
    owners = _owners({one.inode for one in listeners})
    return [replace(one, pid=owners.get(one.inode)) for one in listeners]


def parse_socket_table(text: str, ports: Collection[int]) -> list[Listener]:
    """Listening sockets of /proc/net/tcp or tcp6 (proc(5)): addresses are words of 4 bytes in the host's byte order."""
    found = []
    for line in text.splitlines()[1:]:
        fields = line.split()
        if len(fields) < 10 or fields[3] != _LISTEN:
            continue
        address, _, port = fields[1].rpartition(":")
        if int(port, 16) in ports:
            found.append(Listener(_address(address), int(port, 16), int(fields[7]), int(fields[9])))
    return found


def _address(hexadecimal: str) -> str:
    raw = bytes.fromhex(hexadecimal)
    words = [raw[start : start + 4] for start in range(0, len(raw), 4)]
    if sys.byteorder == "little":
        words = [word[::-1] for word in words]
    parsed = ipaddress.ip_address(b"".join(words))
    mapped = getattr(parsed, "ipv4_mapped", None)
    return str(mapped or parsed)


def _owners(inodes: Collection[int]) -> dict[int, int]:
    """The process of each socket, as far as this user may look into processes."""
    wanted = {f"socket:[{inode}]": inode for inode in inodes if inode}
    owners: dict[int, int] = {}
    for folder in Path("/proc").iterdir() if wanted else ():
        if len(owners) == len(wanted):
            break
        if folder.name.isdigit():
            for target in _open_files(folder / "fd"):
                if target in wanted:
                    # Children that inherited the socket have higher pids most of the time: the first one stays.
                    owners.setdefault(wanted[target], int(folder.name))
    return owners


def _open_files(folder: Path) -> Iterable[str]:
    try:
        links = list(folder.iterdir())
    except OSError:  # another user's, or ended meanwhile
        return
    for link in links:
        with contextlib.suppress(OSError):
            yield str(link.readlink())


def _other(ports: Collection[int]) -> list[Listener]:
    """Without /proc: psutil, which sees this user's processes only. Other users' servers are tried on loopback."""
    import psutil

    found: dict[tuple[str, int], Listener] = {}
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            for connection in process.net_connections(kind="tcp"):
                if connection.status == "LISTEN" and connection.laddr.port in ports:
                    address = str(connection.laddr.ip)
                    uid = process.uids().real
                    found[address, connection.laddr.port] = Listener(
                        address, connection.laddr.port, uid, 0, process.pid
                    )
    seen = {port for _, port in found}
    return [*found.values(), *(Listener("127.0.0.1", port) for port in ports if port not in seen)]


def user_name(user_id: int | None) -> str:
    """ "" where it is not known; the number where the host has no name for it."""
    if user_id is None:
        return ""
    try:
        return pwd.getpwuid(user_id).pw_name
    except KeyError:
        return str(user_id)


def command_of(pid: int | None) -> str:
    """The program of a process, without its arguments: those may hold keys."""
    if pid is None:
        return ""
    try:
        if _LINUX:
            words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
        else:
            import psutil

            words = psutil.Process(pid).cmdline()
    except Exception:  # psutil's errors are its own; a process that ended has no name
        return ""
    return program_name(words)


def program_name(words: Sequence[str]) -> str:
    """ "llama-server" of its argv; for Python "python3 -m mlx_lm" or "python3 vllm", since every engine is Python."""
    if not words or not words[0]:
        return ""
    program = Path(words[0]).name
    if not _PYTHON.match(program):
        return program
    for position, word in enumerate(words[1:], start=1):
        if word == "-m" and position + 1 < len(words):
            return f"{program} -m {words[position + 1]}"
        if word and not word.startswith("-"):
            return f"{program} {Path(word).name}"
        if word == "-c":
            break
    return program
