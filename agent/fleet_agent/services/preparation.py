"""What must hold before a server is started on this host, and what is started then."""

import os
from collections.abc import Callable, Iterable, Sequence

from fleet_agent.configuration import AgentConfiguration, child_environment, resolve_tool
from fleet_agent.layout import Layout
from fleet_agent.leases.store import LeaseStore
from fleet_agent.process import ProcessIdentity, resident_bytes
from fleet_agent.secrets import SecretStore
from fleet_agent.services.admission import Devices, check_devices, check_memory, check_port
from fleet_agent.services.api_keys import hand_over
from fleet_agent.services.claims import Claims
from fleet_agent.services.damaged import DamagedServices
from fleet_agent.services.launch import Launch
from fleet_agent.services.managed import ManagedService
from fleet_agent.services.model import ServiceSpec, ServiceState, ToolRun


class Preparation:
    """`services` tells every server of ours, also those that are on their way to be a service."""

    def __init__(
        self,
        layout: Layout,
        configuration: AgentConfiguration,
        devices: Devices,
        claims: Claims,
        damaged: DamagedServices,
        services: Callable[[], Iterable[ManagedService]],
    ) -> None:
        self._layout, self._configuration, self._devices = layout, configuration, devices
        self._claims, self._damaged, self._services = claims, damaged, services
        self._leases, self._secrets = LeaseStore.of(layout), SecretStore.of(layout)

    async def prepare(self, spec: ServiceSpec, service: ManagedService | None) -> Launch:
        """What will be started, once everything allows it. Raises ProblemError."""
        program = resolve_tool(spec.tool.install_key, spec.tool.name, self._layout, self._configuration)
        environment = child_environment(self._configuration, dict(spec.environment))
        if spec.tool.install_key:
            # As `uv run` does: engines start helpers of their own by bare name (FlashInfer calls ninja).
            environment["PATH"] = f"{program.parent}{os.pathsep}{environment['PATH']}"
        own = service.members() if service is not None else self._damaged.members(spec.name)
        own_pids = [one.pid for one in own]
        self._claims.check(spec)
        self._leases.refuse(spec.name, spec.gpu_indices)
        for run in (*spec.before_start, *spec.after_stop):
            self.command(spec, run)
        await check_port(spec, own_pids)
        if not self._joins_server(spec):  # else the server that is shared is what is seen on the device
            check_devices(spec, self._devices, self.all_pids() if spec.gpu_indices else ())
        released = self._held_bytes(spec, own_pids, own) or 0
        if service is not None and service.record.spec.shared_port_path and service.state is ServiceState.READY:
            released = service.record.spec.promised_memory_bytes  # held by processes that are not ours
        check_memory(spec, self._devices, released - self.outstanding_bytes(spec, service))
        key = hand_over(spec, self._secrets)
        return Launch((str(program), *spec.arguments, *key.arguments), {**environment, **key.environment})

    def _joins_server(self, spec: ServiceSpec) -> bool:
        shared = spec.shared_port_path
        ready = (one for one in self._services() if one.state is ServiceState.READY)
        return bool(shared) and any(one.record.spec.shared_port_path == shared for one in ready)

    def command(self, spec: ServiceSpec, run: ToolRun) -> Launch:
        """A tool of the service's before its start or after its end. Raises ProblemError."""
        program = resolve_tool(run.tool.install_key, run.tool.name, self._layout, self._configuration)
        return Launch((str(program), *run.arguments), child_environment(self._configuration, dict(spec.environment)))

    def _held_bytes(self, spec: ServiceSpec, pids: Sequence[int], members: Sequence[ProcessIdentity]) -> int | None:
        if not members:
            return 0
        return self._devices.used_bytes(pids) if spec.gpu_indices else resident_bytes(members)

    def outstanding_bytes(self, spec: ServiceSpec, service: ManagedService | None) -> int:
        """What others than `service` on the same devices were promised and have not taken yet: the device still calls
        it free.
        """
        outstanding = 0
        for other in self._services():
            theirs = other.record.spec
            shared = set(theirs.gpu_indices) & set(spec.gpu_indices) or not (theirs.gpu_indices or spec.gpu_indices)
            if other is service or not shared or not other.wanted or other.state is ServiceState.FAILED:
                continue
            members = other.members()
            held = self._held_bytes(theirs, [one.pid for one in members], members)
            # The driver does not say, or processes that are not ours hold it: once ready, it has taken everything.
            if held is None or theirs.shared_port_path:
                held = theirs.promised_memory_bytes if other.state is ServiceState.READY else 0
            outstanding += max(theirs.promised_memory_bytes - held, 0)
        return outstanding

    def all_pids(self) -> Sequence[int]:
        return [member.pid for service in self._services() for member in service.all_members()]
