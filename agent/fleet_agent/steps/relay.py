"""One host's part in a pull: the relay as a process of its own, its orders handed down and its events handed up.

Tells, as documents: {"event": "prepared", cache, link_bytes_per_second, wifi, missing_bytes, free_bytes} before it
waits for certificates; {"event": "reached", peers: {name: whether a connection was taken}} when ordered to "probe";
{"event": "ended", exit_code} when the relay's process ended by itself; everything that the relay tells.

Result: {"complete": bool, "snapshot": folder, "source_bytes": n, "received_bytes": n, "sent_bytes": n}.
"""

import asyncio
import contextlib
import json
import socket
import sys
import time
from dataclasses import dataclass, field
from typing import Any

from fleet_agent.artifacts.cache import HubCache
from fleet_agent.jobs.codec import canonical_json, encode
from fleet_agent.jobs.errors import JobProblem, SpecProblem
from fleet_agent.jobs.model import RelayStep
from fleet_agent.jobs.steering import CREDENTIAL_FILES, OrderReader, Steering, latest
from fleet_agent.jobs.store import write_json
from fleet_agent.relay.control import RelaySpec, TlsFiles, check_spec
from fleet_agent.relay.manifest import Manifest
from fleet_agent.steps.cache_marker import cache_marker
from fleet_agent.steps.context import StepContext
from fleet_agent.steps.network_link import network_link
from fleet_agent.steps.output import free_bytes

# No byte in or out and no order for that long: whoever began the pull is not coming back, and a port stands open.
QUIET_SECONDS = 1800.0
LOOK_SECONDS = 2.0
PROBE_SECONDS = 2.0
PROBES_AT_ONCE = 32
# A relay that is killed over and over without a new byte in between is not started again.
FRUITLESS_STARTS = 5
RESTART_PAUSE_SECONDS = 0.2
STOP = {"order": "stop"}
# What a relay that was started again is told first.
KEPT_ORDERS = ("allow", "limits", "route", "stop")


def check(step: RelayStep) -> None:
    if not 0 <= step.first_port <= step.last_port < 1 << 16:
        raise SpecProblem(f"{step.first_port}-{step.last_port} is no range of ports")
    check_spec(_spec(step, "/", "/", None, 0))


async def run(step: RelayStep, context: StepContext) -> dict[str, Any]:
    return await _Part(step, context).run()


@dataclass
class _Told:
    """What the relay said, over all its processes."""

    complete: bool = False
    snapshot: str = ""
    failure: dict[str, Any] | None = None
    counters: dict[str, int] = field(default_factory=dict)  # of the present process
    before: dict[str, int] = field(default_factory=dict)  # of those that ended

    def total(self, name: str) -> int:
        return self.before.get(name, 0) + self.counters.get(name, 0)

    def process_ended(self) -> None:
        self.before = {name: self.total(name) for name in ("source_bytes", "received_bytes", "sent_bytes")}
        self.counters = {}

    @property
    def moved_bytes(self) -> int:
        return sum(self.total(name) for name in ("source_bytes", "received_bytes", "sent_bytes"))


class _Part:
    """One attempt at the step."""

    def __init__(self, step: RelayStep, context: StepContext) -> None:
        self._step = step
        self._context = context
        self._steering = Steering(context.job)
        self._orders: list[dict[str, Any]] = []
        self._stopped = asyncio.Event()
        self._told = _Told()
        self._active_at = time.monotonic()
        self._ordered = asyncio.Event()
        self._probes: set[asyncio.Task[None]] = set()

    async def run(self) -> dict[str, Any]:
        try:
            with self._steering.following() as reader:
                # Questions of before were answered, or nobody waits for the answer any more.
                self._take([order for order in reader.read() if order.get("order") != "probe"])
                await self._tell_prepared()
                taker = asyncio.create_task(self._take_orders(reader))
                try:
                    await self._serve()
                finally:
                    for task in (taker, *self._probes):
                        task.cancel()
                    await asyncio.gather(taker, *self._probes, return_exceptions=True)
        except asyncio.CancelledError:
            if self._context.job.cancel_requested:  # else the host goes down, and a new runner goes on with them
                self._steering.remove_credentials()
            raise
        except Exception:
            self._steering.remove_credentials()
            raise
        self._steering.remove_credentials()
        return {
            "complete": self._told.complete,
            "snapshot": self._told.snapshot,
            **{name: self._told.total(name) for name in ("source_bytes", "received_bytes", "sent_bytes")},
        }

    # -- before -----------------------------------------------------------------------------------------------

    async def _tell_prepared(self) -> None:
        hf_home = self._context.layout.hf_home
        cache = HubCache(hf_home)
        files, repository = self._step.files, self._step.repository
        missing = sum(max(0, file.size_bytes - cache.present_bytes(repository, file)) for file in files)
        link = await asyncio.to_thread(network_link)
        self._tell(
            {
                "event": "prepared",
                "cache": await asyncio.to_thread(cache_marker, cache.folder),
                "link_bytes_per_second": link.bytes_per_second,
                "wifi": link.wifi,
                "missing_bytes": missing,
                "free_bytes": free_bytes(cache.folder),
            }
        )

    def _tell(self, document: dict[str, Any]) -> None:
        self._context.emitter.document(canonical_json(document))

    # -- orders -----------------------------------------------------------------------------------------------

    async def _take_orders(self, reader: OrderReader) -> None:
        while True:
            self._take(reader.read())
            await reader.changed()

    def _take(self, orders: list[dict[str, Any]]) -> None:
        for order in orders:
            if order.get("order") == "probe":
                self._begin_probe(order)
            else:
                self._orders.append(order)
            if order.get("order") == "stop":
                self._stopped.set()
        self._active_at = time.monotonic()
        self._ordered.set()

    def _begin_probe(self, order: dict[str, Any]) -> None:
        task = asyncio.create_task(self._probe([peer for peer in order.get("peers", ()) if isinstance(peer, dict)]))
        self._probes.add(task)
        task.add_done_callback(self._probes.discard)

    async def _probe(self, peers: list[dict[str, Any]]) -> None:
        gate = asyncio.Semaphore(PROBES_AT_ONCE)

        async def reached(peer: dict[str, Any]) -> bool:
            async with gate:
                try:
                    connecting = asyncio.open_connection(str(peer.get("address")), int(peer.get("port", 0)))
                    _, writer = await asyncio.wait_for(connecting, PROBE_SECONDS)
                except (OSError, ValueError, OverflowError, asyncio.TimeoutError):
                    return False
                writer.close()
                with contextlib.suppress(OSError):
                    await writer.wait_closed()
                return True

        answers = await asyncio.gather(*(reached(peer) for peer in peers))
        names = [str(peer.get("name")) for peer in peers]
        self._tell({"event": "reached", "peers": dict(zip(names, answers, strict=True))})

    # -- the process ------------------------------------------------------------------------------------------

    async def _serve(self) -> None:
        """Until it is stopped; a process that was killed is followed by another one."""
        fruitless = 0
        while True:
            if not await self._until_credentials():
                return
            before = self._told.moved_bytes
            result = await self._one_process()
            self._told.process_ended()
            if result == 0:
                return
            if self._told.failure is not None:
                failure = self._told.failure
                raise JobProblem(str(failure.get("code")), str(failure.get("message")), str(failure.get("remedy", "")))
            self._tell({"event": "ended", "exit_code": result})
            if self._stopped.is_set():
                return
            fruitless = 0 if self._told.moved_bytes > before else fruitless + 1
            if fruitless >= FRUITLESS_STARTS:
                raise JobProblem(
                    "relay-died",
                    f"the relay's process ended {fruitless} times in a row (the last time with {result})",
                    "see the agent's log on the host (out of memory? killed?); repeat the command",
                )
            self._context.log(f"the relay's process ended with {result}; starting it again")
            await asyncio.sleep(RESTART_PAUSE_SECONDS)

    async def _until_credentials(self) -> bool:
        """False where the job is stopped before they come."""
        while True:
            self._ordered.clear()
            if self._steering.has_credentials or self._stopped.is_set():
                return self._steering.has_credentials
            self._demand_company()
            await self._something_ordered()

    async def _something_ordered(self) -> None:
        """Returns once something was ordered since `_ordered` was cleared, or after a moment.

        Unlike wait_for it never takes a cancel for an answer.
        """
        waiter = asyncio.ensure_future(self._ordered.wait())
        try:
            await asyncio.wait([waiter], timeout=LOOK_SECONDS)
        finally:
            waiter.cancel()

    async def _one_process(self) -> int:
        """The exit code; negative where a signal ended it."""
        folder, layout = self._steering.credentials, self._context.layout
        authority, certificate, key = (str(folder / name) for name in CREDENTIAL_FILES)
        port = await asyncio.to_thread(free_port, self._step.listen_host, self._step.first_port, self._step.last_port)
        spec = _spec(
            self._step, str(layout.hf_home), str(layout.machine_dir), TlsFiles(authority, certificate, key), port
        )
        path = self._context.job.path / "relay.json"
        write_json(path, encode(spec))
        result = await self._context.run_child(
            [sys.executable, "-u", "-m", "fleet_agent.relay", path, "--stdin"],
            cwd=self._context.job.path,
            on_line=self._hear,
            feed=self._feed,
        )
        return result.exit_code

    async def _feed(self, stdin: asyncio.StreamWriter) -> None:
        """Hands orders down; the last of each kind first, where there were some before this process."""
        sent = 0
        with contextlib.suppress(OSError):
            while True:
                self._ordered.clear()
                fresh = self._orders[sent:]
                for order in latest(fresh, KEPT_ORDERS) if sent == 0 else fresh:
                    stdin.write(json.dumps(order, separators=(",", ":")).encode() + b"\n")
                sent += len(fresh)
                await stdin.drain()
                await self._something_ordered()
                if self._is_forsaken() and STOP not in self._orders:
                    self._orders.append(STOP)

    def _is_forsaken(self) -> bool:
        return time.monotonic() - self._active_at > QUIET_SECONDS

    def _demand_company(self) -> None:
        if self._is_forsaken():
            raise JobProblem("forsaken", "nobody gave this pull its certificates", "repeat the command")

    def _hear(self, stream: str, line: str) -> bool:
        """Whether the line was an event, and so none for the log."""
        if stream != "stdout" or not line.startswith("{"):
            return False
        try:
            event = json.loads(line)
        except ValueError:
            return False
        self._context.emitter.document(line)
        kind = event.get("event")
        if kind == "complete":
            self._told.complete, self._told.snapshot = True, str(event.get("snapshot", ""))
        elif kind == "damaged-part":
            self._told.complete = False
        elif kind == "failed":
            self._told.failure = event
        elif kind == "progress":
            moved = self._told.moved_bytes
            for name in ("source_bytes", "received_bytes", "sent_bytes"):
                self._told.counters[name] = int(event.get(name, 0))
            if self._told.moved_bytes != moved:
                self._active_at = time.monotonic()
        return True


def _spec(step: RelayStep, hf_home: str, machine_dir: str, tls: TlsFiles | None, port: int) -> RelaySpec:
    manifest = Manifest(step.repository, step.commit, step.revision, step.files, step.piece_bytes)
    return RelaySpec(
        rollout=step.rollout,
        node=step.node,
        manifest=manifest,
        hf_home=hf_home,
        machine_dir=machine_dir,
        allowed=step.allowed,
        tls=tls,
        listen_host=step.listen_host,
        listen_port=port,
        upload_bytes_per_second=step.upload_bytes_per_second,
        download_bytes_per_second=step.download_bytes_per_second,
    )


def free_port(address: str, first: int, last: int) -> int:
    """The first port of the range that nobody listens on; 0 where any will do. Raises JobProblem."""
    if not first:
        return 0
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    for port in range(first, last + 1):
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with contextlib.suppress(OSError):
                probe.bind((address, port))
                probe.listen(1)
                return port
    raise JobProblem(
        "port-taken",
        f"no port of {first}-{last} is free for a pull",
        "widen `limits: ports` of this host in hosts.yaml",
    )
