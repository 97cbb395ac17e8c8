"""The service calls: wire messages to dataclasses and back. Refusals become statuses in server/problems.py."""

from collections.abc import AsyncIterator
from typing import Any

from fleet_agent.process import ProcessIdentity
from fleet_agent.secrets import SecretStore
from fleet_agent.services.model import (
    DEFAULT_INTERVAL_SECONDS,
    DEFAULT_START_LIMIT_SECONDS,
    ApiKey,
    ConfigurationFile,
    DesiredState,
    MetricsProbe,
    Problem,
    ReadinessProbe,
    ServiceSpec,
    ServiceState,
    ServiceStatus,
    SuccessorStatus,
    ToolReference,
    ToolRun,
)
from fleet_agent.services.rates import with_rates
from fleet_agent.services.supervisor import ServiceSupervisor
from fleet_proto.v1 import common_pb2, jobs_pb2, services_pb2

_CHUNK_BYTES = 64 * 1024

_STATES = {
    ServiceState.STARTING: services_pb2.SERVICE_STATE_STARTING,
    ServiceState.READY: services_pb2.SERVICE_STATE_READY,
    ServiceState.UNHEALTHY: services_pb2.SERVICE_STATE_UNHEALTHY,
    ServiceState.BACKING_OFF: services_pb2.SERVICE_STATE_BACKING_OFF,
    ServiceState.STOPPED: services_pb2.SERVICE_STATE_STOPPED,
    ServiceState.FAILED: services_pb2.SERVICE_STATE_FAILED,
}
_DESIRED = {
    DesiredState.RUNNING: services_pb2.DESIRED_STATE_RUNNING,
    DesiredState.STOPPED: services_pb2.DESIRED_STATE_STOPPED,
}


class ServiceCalls:
    """The calls about services."""

    def __init__(self, supervisor: ServiceSupervisor, secrets: SecretStore) -> None:
        self._supervisor = supervisor
        self._secrets = secrets

    async def ApplyService(self, request: services_pb2.ApplyServiceRequest, context: Any) -> services_pb2.ServiceStatus:
        spec = spec_from_wire(request.spec)
        return status_to_wire(await self._supervisor.apply(spec, keep_former=request.keep_former))

    async def StopService(self, request: services_pb2.StopServiceRequest, context: Any) -> services_pb2.ServiceStatus:
        return status_to_wire(await self._supervisor.stop(request.name, request.grace_seconds, request.remove))

    async def ListServices(
        self, request: services_pb2.ListServicesRequest, context: Any
    ) -> services_pb2.ListServicesReply:
        statuses = self._supervisor.list()
        if request.measure_rates:
            statuses = await with_rates(statuses, self._secrets)
        return services_pb2.ListServicesReply(services=[status_to_wire(status) for status in statuses])

    async def WatchService(
        self, request: services_pb2.WatchServiceRequest, context: Any
    ) -> AsyncIterator[services_pb2.ServiceStatus]:
        async for status in self._supervisor.watch(request.name):
            yield status_to_wire(status)

    async def ReadLog(self, request: services_pb2.ReadLogRequest, context: Any) -> AsyncIterator[services_pb2.LogChunk]:
        async for data in self._supervisor.read_log(request.service, request.tail_lines, request.follow):
            for start in range(0, len(data), _CHUNK_BYTES):
                yield services_pb2.LogChunk(data=data[start : start + _CHUNK_BYTES])


def spec_from_wire(message: services_pb2.ServiceSpec) -> ServiceSpec:
    """The spec of a message; what the message leaves out gets the agent's default."""
    readiness = message.readiness
    return ServiceSpec(
        name=message.name,
        tool=ToolReference(message.tool.name, message.tool.install_key),
        backend=message.backend,
        backend_version=message.backend_version,
        model=message.model,
        quantization=message.quantization,
        context_length=message.context_length,
        max_parallel=message.max_parallel,
        arguments=tuple(message.arguments),
        environment=tuple((variable.name, variable.value) for variable in message.environment),
        bind_address=message.bind_address or "127.0.0.1",
        port=message.port,
        readiness=ReadinessProbe(
            readiness.path or "/health",
            readiness.start_limit_seconds or DEFAULT_START_LIMIT_SECONDS,
            readiness.interval_seconds or DEFAULT_INTERVAL_SECONDS,
        ),
        promised_memory_bytes=message.promised_memory_bytes,
        served_model_name=message.served_model_name,
        gpu_indices=tuple(message.gpu_indices),
        api_key=_api_key_from_wire(message.api_key) if message.HasField("api_key") else None,
        metrics=MetricsProbe(message.metrics.path, tuple(message.metrics.counters), tuple(message.metrics.gauges))
        if message.HasField("metrics")
        else None,
        before_start=tuple(_tool_run_from_wire(run) for run in message.before_start),
        after_stop=tuple(_tool_run_from_wire(run) for run in message.after_stop),
        shared_port_path=message.shared_port_path,
        backend_options=message.backend_options,
    )


def _api_key_from_wire(message: services_pb2.ApiKey) -> ApiKey:
    configuration = message.configuration
    return ApiKey(
        secret=message.secret,
        file_option=message.file_option,
        environment=message.environment,
        configuration=ConfigurationFile(configuration.option, configuration.key)
        if message.HasField("configuration")
        else None,
    )


def _tool_run_from_wire(message: services_pb2.ToolRun) -> ToolRun:
    tool = ToolReference(message.tool.name, message.tool.install_key)
    return ToolRun(tool, tuple(message.arguments), message.limit_seconds)


def _tool_run_to_wire(run: ToolRun) -> services_pb2.ToolRun:
    return services_pb2.ToolRun(
        tool=jobs_pb2.ToolRef(install_key=run.tool.install_key, name=run.tool.name),
        arguments=run.arguments,
        limit_seconds=run.limit_seconds,
    )


def _api_key_to_wire(key: ApiKey) -> services_pb2.ApiKey:
    message = services_pb2.ApiKey(secret=key.secret)
    if key.file_option:
        message.file_option = key.file_option
    if key.environment:
        message.environment = key.environment
    if key.configuration is not None:
        message.configuration.option = key.configuration.option
        message.configuration.key = key.configuration.key
    return message


def spec_to_wire(spec: ServiceSpec) -> services_pb2.ServiceSpec:
    """The message of a spec."""
    return services_pb2.ServiceSpec(
        api_key=_api_key_to_wire(spec.api_key) if spec.api_key else None,
        metrics=services_pb2.MetricsProbe(
            path=spec.metrics.path, counters=spec.metrics.counters, gauges=spec.metrics.gauges
        )
        if spec.metrics
        else None,
        before_start=[_tool_run_to_wire(run) for run in spec.before_start],
        after_stop=[_tool_run_to_wire(run) for run in spec.after_stop],
        shared_port_path=spec.shared_port_path,
        backend_options=spec.backend_options,
        name=spec.name,
        backend=spec.backend,
        backend_version=spec.backend_version,
        model=spec.model,
        quantization=spec.quantization,
        context_length=spec.context_length,
        max_parallel=spec.max_parallel,
        tool=jobs_pb2.ToolRef(install_key=spec.tool.install_key, name=spec.tool.name),
        arguments=spec.arguments,
        environment=[common_pb2.EnvironmentVariable(name=name, value=value) for name, value in spec.environment],
        bind_address=spec.bind_address,
        port=spec.port,
        readiness=services_pb2.ReadinessProbe(
            path=spec.readiness.path,
            start_limit_seconds=spec.readiness.start_limit_seconds,
            interval_seconds=spec.readiness.interval_seconds,
        ),
        promised_memory_bytes=spec.promised_memory_bytes,
        served_model_name=spec.served_model_name,
        gpu_indices=spec.gpu_indices,
    )


def status_to_wire(status: ServiceStatus) -> services_pb2.ServiceStatus:
    """The message of a status; what is not known stays absent."""
    return services_pb2.ServiceStatus(
        spec=spec_to_wire(status.spec),
        state=_STATES[status.state],
        desired=_DESIRED[status.desired],
        restarts=status.restarts,
        spec_digest=status.spec_digest,
        argv=status.argv,
        started_unix_ms=status.started_unix_ms,
        ready_unix_ms=status.ready_unix_ms,
        resident_bytes=status.resident_bytes,
        gpu_memory_bytes=status.gpu_memory_bytes,
        next_start_unix_ms=status.next_start_unix_ms,
        last_exit_code=status.last_exit_code,
        tokens_per_second=status.tokens_per_second,
        ended_first_because=status.ended_first_because,
        process=_process_to_wire(status.process),
        problem=_problem_to_wire(status.problem),
        successor=_successor_to_wire(status.successor) if status.successor is not None else None,
    )


def _successor_to_wire(successor: SuccessorStatus) -> services_pb2.Successor:
    return services_pb2.Successor(
        spec=spec_to_wire(successor.spec),
        spec_digest=successor.spec.digest(),
        state=_STATES[successor.state],
        port=successor.port,
        process=_process_to_wire(successor.process),
        problem=_problem_to_wire(successor.problem),
        resident_bytes=successor.resident_bytes,
        gpu_memory_bytes=successor.gpu_memory_bytes,
    )


def _process_to_wire(process: ProcessIdentity | None) -> common_pb2.ProcessIdentity | None:
    if process is None:
        return None
    return common_pb2.ProcessIdentity(pid=process.pid, start_token=process.start_token)


def _problem_to_wire(problem: Problem | None) -> common_pb2.Problem | None:
    if problem is None:
        return None
    return common_pb2.Problem(code=problem.code, message=problem.message, remedy=problem.remedy, tail=problem.tail)
