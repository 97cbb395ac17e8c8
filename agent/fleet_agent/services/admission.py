"""Whether a server may be started now: its port, the devices it is for, and the memory that the plan promised it.

Lab machines are shared: what a stranger holds is refused or waited for, never taken.
"""

import contextlib
import errno
import socket
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from fleet_agent.problem import ProblemError
from fleet_agent.process import ProcessIdentity
from fleet_agent.services.http import get
from fleet_agent.services.model import ServiceSpec
from fleet_agent.services.readiness import probe_address


@dataclass(frozen=True)
class PortHolder:
    """Who listens on a port; None and "" where this user may not see it."""

    pid: int | None
    command: str = ""

    def describe(self) -> str:
        if self.pid is None:
            return "a process that this user may not see"
        return f"pid {self.pid} ({self.command})" if self.command else f"pid {self.pid}"


class Devices(Protocol):
    """What is known of the accelerators; the real one is devices.NvidiaDevices, tests have their own."""

    def strangers(self, gpu_indices: Sequence[int], own_pids: Collection[int]) -> Sequence[str]:
        """Who else computes on these devices, each in a user's words: "alice, python, 18.2 GB since 14:02"."""
        ...

    def free_bytes(self, gpu_indices: Sequence[int]) -> int | None:
        """Free memory of these devices together (empty = of all); None where there is none or it is not known."""
        ...

    def used_bytes(self, pids: Collection[int]) -> int | None:
        """Device memory of these processes; None where it is not known. Must be cheap: every listing asks."""
        ...


async def check_port(spec: ServiceSpec, own_pids: Collection[int]) -> None:
    """Raises ProblemError "port-taken" where somebody else holds the service's port.

    A server that several services share may be there already: it is known by its answer to the shared port's path.
    """
    holder = port_holder(spec.bind_address, spec.port)
    if holder is None or holder.pid in own_pids:
        return
    if spec.shared_port_path:
        answer = await get(probe_address(spec.bind_address), spec.port, spec.shared_port_path)
        if answer is not None and 200 <= answer.status < 300:
            return
    raise ProblemError(
        "port-taken",
        f"port {spec.port} of {spec.bind_address} is taken by {holder.describe()}",
        f"stop that process, or deploy {spec.name} on another port: --port N",
    )


def port_holder(bind_address: str, port: int) -> PortHolder | None:
    """Who keeps this address from being bound; None where it is free. Raises ProblemError for no address of ours."""
    family = socket.AF_INET6 if ":" in bind_address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # old connections in TIME_WAIT do not matter
        try:
            trial.bind((bind_address, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return _find_holder(port)
            raise _cannot_bind(bind_address, port, error) from error
    # Elsewhere than on Linux the bind succeeds beside a listener on the wildcard address.
    with socket.socket(family, socket.SOCK_STREAM) as trial:
        trial.settimeout(0.5)
        if trial.connect_ex((probe_address(bind_address), port)) == 0:
            return _find_holder(port)
    return None


def _cannot_bind(bind_address: str, port: int, error: OSError) -> ProblemError:
    if error.errno == errno.EACCES:
        return ProblemError("port-refused", f"port {port} needs root", "deploy on a port above 1023: --port N")
    return ProblemError(
        "address-unusable",
        f"cannot listen on {bind_address}:{port}: {error.strerror}",
        "use 127.0.0.1, or an address that this host has",
    )


def _find_holder(port: int) -> PortHolder:
    import psutil

    with contextlib.suppress(psutil.Error, OSError):
        for connection in psutil.net_connections(kind="tcp"):
            if connection.pid and _listens_on(connection, port):
                return PortHolder(connection.pid, _command(connection.pid))
    return PortHolder(None)


def _command(pid: int) -> str:
    import psutil

    try:
        words = psutil.Process(pid).cmdline()
    except (psutil.Error, OSError):
        return ""
    text = " ".join(words)
    return text if len(text) <= 120 else text[:117] + "..."


def listens(members: Iterable[ProcessIdentity], port: int) -> bool | None:
    """Whether one of these processes listens on the port; None where none of them may be looked into."""
    import psutil

    seen = False
    for member in members:
        with contextlib.suppress(psutil.Error, OSError):
            connections = psutil.Process(member.pid).net_connections(kind="tcp")
            seen = True
            if any(_listens_on(connection, port) for connection in connections):
                return True
    return False if seen else None


def _listens_on(connection: Any, port: int) -> bool:
    return connection.status == "LISTEN" and bool(connection.laddr) and connection.laddr.port == port


def check_devices(spec: ServiceSpec, devices: Devices, own_pids: Collection[int]) -> None:
    """Raises ProblemError "device-busy" where a stranger computes on the devices that the service is for."""
    if not spec.gpu_indices:
        return
    strangers = devices.strangers(spec.gpu_indices, own_pids)
    if strangers:
        raise ProblemError(
            "device-busy", f"busy: {'; '.join(strangers)}", "wait until they are done, or deploy on another host or GPU"
        )


def check_memory(spec: ServiceSpec, devices: Devices, margin_bytes: int) -> None:
    """Raises ProblemError "memory-short" where less is free than the plan promised.

    margin_bytes goes on top of what the device says: what the service's own former process will give back, less what
    other services were promised and have not taken yet. Without devices named, a
    server may use the host's memory and every device, so the two together must hold it.
    """
    if not spec.promised_memory_bytes:
        return
    free = free_bytes(spec, devices)
    if free is None or free + margin_bytes >= spec.promised_memory_bytes:
        return
    where = f"GPU {', '.join(str(i) for i in spec.gpu_indices)}" if spec.gpu_indices else "this host"
    raise ProblemError(
        "memory-short",
        f"{spec.name} was promised {_gigabytes(spec.promised_memory_bytes)}, but {where} has only "
        f"{_gigabytes(max(free + margin_bytes, 0))} free now",
        "free memory there, or deploy with a smaller --context or quantization",
    )


def free_bytes(spec: ServiceSpec, devices: Devices) -> int | None:
    """What is free now where this server would run; None where nobody tells."""
    free = devices.free_bytes(spec.gpu_indices)
    if spec.gpu_indices:
        return free
    import psutil

    return (free or 0) + int(psutil.virtual_memory().available)


def shortage_beside(spec: ServiceSpec, devices: Devices, outstanding_bytes: int) -> str:
    """Why this server has no room beside all that runs; empty where it has. What is not known is no room."""
    free = free_bytes(spec, devices)
    if not spec.promised_memory_bytes or free is None:
        return "how much memory it takes is not known" if free is not None else "how much memory is free is not known"
    short = spec.promised_memory_bytes + outstanding_bytes - free
    return f"needs {_gigabytes(short)} more than is free" if short > 0 else ""


def _gigabytes(size_bytes: int) -> str:
    return f"{size_bytes / 1e9:.1f} GB"
