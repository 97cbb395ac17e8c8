"""All services of this host: re-adopted at the start, applied, stopped, listed, watched.

It never ends a server by its own end: close() leaves everything running, and the next start() takes it up again.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Coroutine, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from fleet_agent.configuration import AgentConfiguration
from fleet_agent.engines.served import ServedJournal, note_ready
from fleet_agent.layout import Layout
from fleet_agent.leases.store import LeaseStore
from fleet_agent.problem import ProblemError
from fleet_agent.process import ProcessIdentity
from fleet_agent.redaction import Redactor
from fleet_agent.secrets import SecretStore
from fleet_agent.services.admission import Devices, shortage_beside
from fleet_agent.services.api_keys import check_api_key, forget_key
from fleet_agent.services.claims import Claims
from fleet_agent.services.damaged import DamagedServices
from fleet_agent.services.devices import NvidiaDevices
from fleet_agent.services.journal import ServiceRecord
from fleet_agent.services.logs import LogLimits, ServiceLog
from fleet_agent.services.managed import DEFAULT_GRACE_SECONDS, ManagedService, ServiceContext
from fleet_agent.services.model import (
    DesiredState,
    Problem,
    ServiceSpec,
    ServiceState,
    ServiceStatus,
    UnknownServiceError,
    check_spec,
)
from fleet_agent.services.preparation import Preparation
from fleet_agent.services.succession import Successions, free_port, on_port, reason_to_end_first
from fleet_agent.services.transitions import Condition, RestartPolicy

_logger = logging.getLogger(__name__)
_Result = TypeVar("_Result")

_RUNNING = (ServiceState.STARTING, ServiceState.READY, ServiceState.UNHEALTHY)


class ServiceSupervisor:
    """The one owner of this host's services; all calls from one event loop. Refusals are ProblemErrors."""

    def __init__(
        self,
        layout: Layout,
        configuration: AgentConfiguration,
        policy: RestartPolicy | None = None,
        log_limits: LogLimits | None = None,
        devices: Devices | None = None,
    ) -> None:
        self._layout = layout
        self._configuration = configuration
        self._log_limits = log_limits or LogLimits()
        self._devices = devices or NvidiaDevices()
        self._leases = LeaseStore.of(layout)
        self._journal = ServedJournal(layout.services_dir, layout.engines_dir)
        self._secrets = SecretStore.of(layout)
        self._redactor = Redactor(self._secrets)
        self._services: dict[str, ManagedService] = {}
        self._damaged = DamagedServices(layout.services_dir)
        most_services = configuration.limits.get("max_services")
        self._claims = Claims(self._services, lambda: self._successions.ports(), most_services)
        preparation = Preparation(layout, configuration, self._devices, self._claims, self._damaged, self._all)
        self._preparation = preparation
        self._context = ServiceContext(
            self._journal, policy or RestartPolicy(), self._devices, preparation.prepare, layout.services_dir,
            preparation.command,
        )  # fmt: skip
        self._locks: dict[str, asyncio.Lock] = {}
        self._changes: set[asyncio.Task[Any]] = set()
        self._successions: Successions = Successions(self._context, self._lock, self._unbroken, self._settled)

    async def start(self) -> None:
        """Takes up the journal: running servers are adopted, desired ones started, half-done stops finished."""
        records, corrupt = self._journal.load()
        for broken in corrupt:
            _logger.error("the journal of %s is damaged (%s); kept as %s", broken.name, broken.reason, broken.kept_as)
            self._damaged.add(broken)
        held = self._leases.paused()
        for record in records:
            note_ready(record, self._layout.engines_dir)
            service = self._add(record)
            self._claims.claim(record.spec)
            lease = held.get(record.spec.name)
            if lease is not None:
                service.hold_from_start(Problem("paused", f"paused by {lease.describe()}"))
            service.adopt()
            self._successions.adopt(service)
            if lease is not None or not service.wanted:
                await self._successions.end(service)

    async def close(self) -> None:
        """Lets go of the servers; they go on running. Changes under way are finished first."""
        await self._successions.unfollow()
        await asyncio.gather(*self._changes, return_exceptions=True)
        await self._successions.release()
        await asyncio.gather(*(service.release() for service in self._services.values()))

    async def apply(self, spec: ServiceSpec, keep_former: bool = False) -> ServiceStatus:
        """Makes `spec` what should run. Same digest and running: changes nothing. Another one: the former ends first.

        keep_former: where the former is ready and both have room, it goes on until the new one is ready (see
        succession.py); else the status says why not. Answers before the server is ready. Raises ProblemError: a broken
        spec, too-many-services, port-taken, device-busy, memory-short, tool-missing; then what ran before still runs.
        """
        check_spec(spec)
        check_api_key(spec)
        return await self._unbroken(self._apply(spec, keep_former))

    async def _apply(self, spec: ServiceSpec, keep_former: bool) -> ServiceStatus:
        async with self._lock(spec.name):
            service = self._services.get(spec.name)
            ended_first = ""
            if service is not None:
                if self._successions.spec_of(spec.name) == spec:
                    return service.status()
                await self._successions.end(service)
                if self._unchanged(service, spec):
                    return service.status()
                if keep_former and service.members():
                    ended_first = self._reason_to_end_first(service, spec)
                    if not ended_first:
                        return await self._begin_beside(service, spec)
                await service.release()  # no restart of the former in between
            try:
                self._claims.check_count(spec)
                await self._preparation.prepare(spec, service)
                if service is not None:  # before the former ends: a full disk must not cost a running model
                    with self._writing(spec.name):
                        self._journal.write(service.record)
            except ProblemError:
                self._forget_key(spec)
                if service is not None:
                    service.resume()
                raise
            former = service.record.spec if service is not None else None
            self._claims.claim(spec)
            await self._damaged.end(spec.name)
            if service is not None:
                await self._replace_former(service)
            else:
                service = self._add(ServiceRecord(spec, DesiredState.RUNNING, Condition(ServiceState.STOPPED)))
            with self._writing(spec.name):
                service.request(spec)
            service.log.beside().remove()
            if former is not None:
                self._forget_key(former)
            return replace(service.status(), ended_first_because=ended_first)

    def _reason_to_end_first(self, service: ManagedService, spec: ServiceSpec) -> str:
        reason = reason_to_end_first(service.record, spec)
        return reason or shortage_beside(spec, self._devices, self._preparation.outstanding_bytes(spec, None))

    async def _begin_beside(self, service: ManagedService, spec: ServiceSpec) -> ServiceStatus:
        """The former is left alone, whatever is refused here. Raises ProblemError."""
        trial: ServiceSpec | None = spec
        if spec.port == service.record.spec.port:
            trial = on_port(spec, free_port(spec.bind_address, self._claims.ports()))
        assert trial is not None
        try:
            self._claims.check_count(spec)
            await self._preparation.prepare(trial, None)
            with self._writing(spec.name):
                self._successions.begin(service, spec, trial)
        except ProblemError:
            self._forget_key(spec)
            raise
        return service.status()

    def _settled(self, gone: ServiceSpec) -> None:
        """A succession ended: the service's port and key are what its record says now."""
        self._claims.claim(self._services[gone.name].record.spec)
        self._forget_key(gone)

    async def stop(self, name: str, grace_seconds: float = 0.0, remove: bool = False) -> ServiceStatus:
        """SIGTERM to the whole tree, SIGKILL after the grace (0 = 20 s); blocks until it is gone. remove: forget it.

        Raises UnknownServiceError, and ProblemError "process-stuck" where not even SIGKILL helps.
        """
        return await self._unbroken(self._stop(name, grace_seconds, remove))

    async def _unbroken(self, change: Coroutine[Any, Any, _Result]) -> _Result:
        """A change goes on to its end even when its caller goes away: half a replacement is an outage."""
        task = asyncio.ensure_future(change)
        self._changes.add(task)
        task.add_done_callback(self._changes.discard)
        return await asyncio.shield(task)

    async def _stop(self, name: str, grace_seconds: float, remove: bool) -> ServiceStatus:
        async with self._lock(name):
            service = self._services.get(name)
            if service is None:
                return await self._damaged.stop(name, grace_seconds, remove)
            service.unwanted()
            await self._successions.end(service)
            await service.stop(grace_seconds)
            status = service.status()
            if remove:
                self._journal.remove(name)
                service.log.remove()
                service.log.beside().remove()
                del self._services[name]
                self._claims.forget(name)
                self._forget_key(status.spec)
                service.removed()
            return status

    async def hold(self, reasons: Mapping[str, Problem]) -> None:
        """Exactly these services are paused from now on: ended although wanted; the others come back."""
        for name, service in tuple(self._services.items()):
            async with self._lock(name):
                if name in reasons:
                    await self._successions.end(service)
                    await service.pause(reasons[name])
                else:
                    await service.unpause()

    def list(self) -> tuple[ServiceStatus, ...]:
        """Every service by name; one whose journal is damaged is among them, as failed."""
        known = [service.status() for service in self._services.values()]
        return tuple(sorted([*known, *self._damaged.statuses()], key=lambda status: status.spec.name))

    def specs(self) -> tuple[ServiceSpec, ...]:
        """What may be started here: of every service, and of the servers on their way to be one."""
        waiting = (self._successions.spec_of(name) for name in self._services)
        return (*(status.spec for status in self.list()), *(spec for spec in waiting if spec is not None))

    def watch(self, name: str) -> AsyncIterator[ServiceStatus]:
        """The present status, then each change, until the service is removed. Raises UnknownServiceError."""
        return self._find(name).watch()

    async def read_log(self, name: str, tail_lines: int = 0, follow: bool = False) -> AsyncIterator[bytes]:
        """The last lines (0 = all kept) in chunks; with `follow`, then what is added. Raises UnknownServiceError."""
        service = None if name in self._damaged else self._find(name)
        log = self._log(name) if service is None else service.log
        async for chunk in log.read(tail_lines, follow):
            yield chunk
        if service is not None and log.beside().size_bytes() and not follow:
            yield b"[fleet] the log of the last server that was started beside it:\n"
            async for chunk in log.beside().read(tail_lines, follow=False):
                yield chunk

    def active_identities(self) -> tuple[ProcessIdentity, ...]:
        """The servers' top processes: what of this host's processes is ours."""
        return tuple(s.record.process for s in self._all() if s.record.process is not None)

    def own_pids(self) -> frozenset[int]:
        """Every running process of every service, also of those whose journal is damaged."""
        damaged = (one.pid for status in self._damaged.statuses() for one in self._damaged.members(status.spec.name))
        return frozenset((*self._preparation.all_pids(), *damaged))

    # --- inner ---

    def _all(self) -> Iterator[ManagedService]:
        """Also the servers that were started beside their services."""
        yield from self._services.values()
        yield from self._successions.servers()

    def _lock(self, name: str) -> asyncio.Lock:
        return self._locks.setdefault(name, asyncio.Lock())

    def _find(self, name: str) -> ManagedService:
        service = self._services.get(name)
        if service is None:
            raise UnknownServiceError(name)
        return service

    def _log(self, name: str) -> ServiceLog:
        return ServiceLog(log_path(self._layout, name), self._log_limits, self._redactor)

    def _forget_key(self, spec: ServiceSpec) -> None:
        forget_key(spec, [service.record.spec for service in self._all()], self._secrets)

    def _add(self, record: ServiceRecord) -> ManagedService:
        service = ManagedService(record, self._context, self._log(record.spec.name))
        self._services[record.spec.name] = service
        return service

    @staticmethod
    def _unchanged(service: ManagedService, spec: ServiceSpec) -> bool:
        same = service.record.spec.digest() == spec.digest()
        return same and service.wanted and service.state in _RUNNING

    @staticmethod
    async def _replace_former(service: ManagedService) -> None:
        try:
            await service.halt(DEFAULT_GRACE_SECONDS)
        except ProblemError:
            service.resume()
            raise

    @contextlib.contextmanager
    def _writing(self, name: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise ProblemError(
                "journal-not-writable",
                f"the journal of {name} cannot be written: {error}",
                f"free space or permissions in {self._layout.services_dir}, then deploy again",
            ) from error


def log_path(layout: Layout, name: str) -> Path:
    """Where the log of this service lies."""
    return layout.logs_dir / f"service-{name}.log"
