"""The agent's server: one per user and machine, on a unix socket of mode 0600."""

import asyncio
import contextlib
import fcntl
import logging
import logging.handlers
import os
import signal
import socket
import stat
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import IO, Any

import grpc

import fleet_proto
from fleet_agent.configuration import AgentConfiguration, read_configuration
from fleet_agent.layout import Layout, LayoutError
from fleet_agent.probes import PROBES
from fleet_agent.probes.model import Probe, ProbeContext
from fleet_agent.problem import ProblemError
from fleet_agent.server.facts import FactsCalls
from fleet_agent.server.problems import ProblemInterceptor
from fleet_agent.version import software_version
from fleet_proto.v1 import agent_pb2, agent_pb2_grpc, common_pb2

_log = logging.getLogger(__name__)

_LOG_BYTES = 2 * 1024 * 1024
_LOG_FILES_KEPT = 3
_HAND_OVER_SECONDS = 5.0  # how long we wait for a predecessor that has closed its socket and is ending
_CALLS_GRACE_SECONDS = 1.0
_OPTIONS = (
    ("grpc.max_receive_message_length", 16 * 1024 * 1024),
    ("grpc.max_send_message_length", 64 * 1024 * 1024),
    # A controller keeps one warm connection through SSH and may ping it: that is no abuse on a private socket.
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
)


class AlreadyRunningError(ProblemError):
    """Another agent of this user serves this machine."""

    def __init__(self, layout: Layout, holder: str) -> None:
        super().__init__(
            "already-running",
            f"an agent already runs on {layout.socket_path}{f' (pid {holder})' if holder else ''}",
            "use it, or end it first with `fleet agent restart HOST`",
        )


class CoreCalls:
    """Who we are, and how to end us."""

    def __init__(self, layout: Layout, stop: asyncio.Event) -> None:
        self._layout = layout
        self._stop = stop
        self._started_unix_ms = int(time.time() * 1000)

    async def Handshake(self, request: common_pb2.HandshakeRequest, context: Any) -> common_pb2.HandshakeReply:
        refuse_skew(request.protocol, request.minimum_protocol, request.software_version)
        return common_pb2.HandshakeReply(
            protocol=fleet_proto.PROTOCOL,
            minimum_protocol=fleet_proto.MINIMUM_PROTOCOL,
            software_version=software_version(),
            machine_id=self._layout.machine_id,
            started_unix_ms=self._started_unix_ms,
            pid=os.getpid(),
        )

    async def Shutdown(self, request: agent_pb2.ShutdownRequest, context: Any) -> agent_pb2.ShutdownReply:
        _log.info("asked to shut down")
        self._stop.set()
        return agent_pb2.ShutdownReply()


def refuse_skew(protocol: int, minimum_protocol: int, software_version_of_caller: str) -> None:
    """Raises ProblemError where the caller's range of protocols and ours do not meet, naming the command to run."""
    ours = f"{fleet_proto.MINIMUM_PROTOCOL} to {fleet_proto.PROTOCOL}"
    theirs = f"{minimum_protocol} to {protocol}"
    speakers = f"fleet {software_version_of_caller or '?'} speaks protocol {theirs}, this agent {ours}"
    if minimum_protocol > fleet_proto.PROTOCOL:
        raise ProblemError("protocol-skew", f"the agent is too old: {speakers}", "run `fleet agent upgrade HOST`")
    if protocol < fleet_proto.MINIMUM_PROTOCOL:
        raise ProblemError("protocol-skew", f"fleet is too old: {speakers}", "upgrade fleet where you run it")


class Servicer:
    """Every call of the contract, each taken from the first part that has it. Raises TypeError for a missing one."""

    def __init__(self, *parts: Any) -> None:
        for method in agent_pb2.DESCRIPTOR.services_by_name["Agent"].methods:
            call = next((getattr(part, method.name) for part in parts if hasattr(part, method.name)), None)
            if call is None:
                raise TypeError(f"no part serves {method.name}")
            setattr(self, method.name, call)


def run(probes: Sequence[Probe] = PROBES) -> int:
    """Serves until SIGTERM, SIGINT or Shutdown; services and runners go on. Returns the exit code.

    Raises ProblemError where it cannot start.
    """
    layout = Layout.from_environment()
    layout.ensure()
    configuration = read_configuration(layout.configuration_path)
    with single_instance(layout):
        _log_to_file(layout.log_path)
        try:
            asyncio.run(_serve(layout, configuration, probes))
        except Exception:
            _log.exception("the agent ended with an error")
            raise
    return 0


@contextlib.contextmanager
def single_instance(layout: Layout) -> Any:
    """Holds this user's and machine's lock, with a dead predecessor's socket removed. Raises AlreadyRunningError."""
    descriptor = os.open(layout.lock_path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "r+", encoding="ascii") as lock:
        _take_lock(lock, layout)
        if _answers(layout.socket_path):  # somebody removed the lock file of a running agent
            raise AlreadyRunningError(layout, "")
        layout.socket_path.unlink(missing_ok=True)
        lock.seek(0)
        lock.truncate()
        lock.write(f"{os.getpid()}\n")
        lock.flush()
        yield


def _take_lock(lock: IO[str], layout: Layout) -> None:
    """An agent that still answers keeps its place; one that has closed its socket is about to free the lock."""
    deadline = time.monotonic() + _HAND_OVER_SECONDS
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() >= deadline or _answers(layout.socket_path):
                raise AlreadyRunningError(layout, lock.read().strip()) from None
            time.sleep(0.05)


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(2.0)
        try:
            probe.connect(str(path))
        except OSError:
            return False
        return True


def _log_to_file(path: Path) -> None:
    handler = logging.handlers.RotatingFileHandler(
        path, maxBytes=_LOG_BYTES, backupCount=_LOG_FILES_KEPT, encoding="utf-8", delay=True
    )
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger()
    root.addHandler(handler)
    root.setLevel(logging.INFO)


async def _serve(layout: Layout, configuration: AgentConfiguration, probes: Sequence[Probe]) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with _parts(layout, configuration, probes, stop) as parts, _listener(layout, parts) as serve:
        server = serve()
        _bind(server, layout.socket_path)
        await server.start()
        _log.info("agent %s serves on %s as pid %d", software_version(), layout.socket_path, os.getpid())
        with contextlib.suppress(OSError):  # whoever started us may have hung up already
            print(f"fleet-agent: serving on {layout.socket_path}", file=sys.stderr, flush=True)
        await stop.wait()
        _log.info("shutting down; services and jobs go on")
        await server.stop(_CALLS_GRACE_SECONDS)


@contextlib.asynccontextmanager
async def _listener(layout: Layout, parts: tuple[Any, ...]) -> AsyncIterator[Callable[..., Any]]:
    """The listener on TCP, where this host is enrolled; gives what makes a server with all calls."""
    from fleet_agent.identity.store import IdentityStore
    from fleet_agent.server.identity import IdentityCalls
    from fleet_agent.server.tls import OPTIONS, TlsListener

    def serve(*guards: Any) -> Any:
        options = _OPTIONS + OPTIONS if guards else _OPTIONS
        server = grpc.aio.server(interceptors=(*guards, ProblemInterceptor()), options=options)
        agent_pb2_grpc.add_AgentServicer_to_server(servicer, server)
        return server

    store = IdentityStore.of(layout)
    listener = TlsListener(store, serve)
    servicer: Any = Servicer(*parts, IdentityCalls(store, listener))  # it has every method of the generated base
    await listener.apply()
    try:
        yield serve
    finally:
        await listener.close()


@contextlib.asynccontextmanager
async def _parts(
    layout: Layout, configuration: AgentConfiguration, probes: Sequence[Probe], stop: asyncio.Event
) -> AsyncIterator[tuple[Any, ...]]:
    """The supervisors, started (they have re-adopted what runs), and the calls on them; closed at the end."""
    from fleet_agent.jobs.supervisor import JobSupervisor
    from fleet_agent.leases.keeper import LeaseKeeper
    from fleet_agent.leases.store import LeaseStore
    from fleet_agent.secrets import SecretStore
    from fleet_agent.server.artifacts import ArtifactCalls
    from fleet_agent.server.engines import EngineCalls
    from fleet_agent.server.jobs import JobCalls
    from fleet_agent.server.secrets import SecretCalls
    from fleet_agent.server.servers import ServerCalls
    from fleet_agent.server.services import ServiceCalls
    from fleet_agent.services.supervisor import ServiceSupervisor

    jobs = JobSupervisor(layout)
    services = ServiceSupervisor(layout, configuration)
    leases = LeaseStore.of(layout)
    facts = FactsCalls(
        ProbeContext(layout, configuration),
        probes,
        own_processes=lambda: (*jobs.active_identities(), *services.active_identities()),
        leases=leases.live,
    )
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(jobs.close)
        await jobs.start()
        stack.push_async_callback(services.close)
        await services.start()
        keeper = LeaseKeeper(leases, services)
        stack.push_async_callback(keeper.close)
        await keeper.start()
        yield (
            CoreCalls(layout, stop),
            facts,
            JobCalls(jobs),
            ArtifactCalls(layout, services, jobs),
            ServiceCalls(services, SecretStore.of(layout)),
            EngineCalls(layout, services, jobs),
            SecretCalls(SecretStore.of(layout)),
            ServerCalls(services),
        )


def _bind(server: Any, path: Path) -> None:
    """The umask, not a chmod afterwards, so that the socket is at no moment open to others."""
    before = os.umask(0o177)
    try:
        bound = server.add_insecure_port(f"unix:{path}")
    except RuntimeError as error:
        raise LayoutError("socket", f"cannot listen on {path}: {error}", "set FLEET_RUNTIME_DIR") from error
    finally:
        os.umask(before)
    mode = stat.S_IMODE(path.lstat().st_mode)
    if not bound or mode != 0o600:
        raise LayoutError("socket", f"{path} was created with mode {mode:04o}, not 0600", "set FLEET_RUNTIME_DIR")
