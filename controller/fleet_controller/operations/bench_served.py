"""Cells of servers that run already: services of ours, as they serve, and servers of others."""

from fleet_controller.backends.base import BackendError, Installation
from fleet_controller.benchmarking.cells import PlannedCell
from fleet_controller.benchmarking.clients import Subject, client_for, measurable_parts
from fleet_controller.benchmarking.suites import Part, Suite
from fleet_controller.domain.base import Problem
from fleet_controller.domain.benches import BenchRequest, CellAction
from fleet_controller.domain.services import ServiceSpec, ServiceState, ServiceStatus
from fleet_controller.operations.bench_case import (
    Case,
    CellStopped,
    action_of,
    engine_version,
    model_path,
    problem_of_cell,
    service_url,
    stopped_cell,
    tokenizer_beside,
)
from fleet_controller.operations.bench_cell import planned_cell
from fleet_controller.operations.context import FleetContext
from fleet_controller.operations.planning import gather_state
from fleet_controller.operations.problems import OperationError

LOOPBACK = "127.0.0.1"


def served_cells(case: Case, status: ServiceStatus, part: Part) -> list[PlannedCell]:
    """What a service of this host serves, as it serves it."""
    spec = status.spec
    try:
        client = client_for(spec.backend, "" if part.client == "engine" else part.client, part)
        parts, note = measurable_parts(client, part)
        path = model_path(spec)
        subject = Subject(
            backend=spec.backend,
            installation=Installation(
                backend=spec.backend,
                version=engine_version(case.facts, spec.tool.install_key, spec.backend_version),
                install_key=spec.tool.install_key,
            ),
            model_path=path,
            served_model_name=spec.served_model_name or spec.name,
            base_url=service_url(spec),
            tokenizer=case.request.tokenizer or tokenizer_beside(path),
            discards_first=bool(spec.gpu_indices) or case.facts.apple is not None,
        )
        if client.over_http:
            _demand_usable(status)
        else:
            _demand_installed(subject)
        notes = tuple([note] if note else [])
        return [
            planned_cell(case, spec.name, spec.quantization, spec.model or path, subject, client, one, spec, status,
                     warnings=notes)
            for one in parts
        ]  # fmt: skip
    except (BackendError, CellStopped) as error:
        return [stopped_cell(case.host.name, spec.name, action_of(error), problem_of_cell(error))]


def _demand_installed(subject: Subject) -> None:
    if not subject.installation.install_key:
        problem = Problem(code="no-bench", message=f"{subject.backend} has no benchmark of its own",
                          remedy="--client llama-benchy measures it over HTTP")  # fmt: skip
        raise CellStopped(CellAction.FAIL, problem)


def _demand_usable(status: ServiceStatus) -> None:
    if status.state is not ServiceState.READY:
        word = status.state.value.removeprefix("SERVICE_STATE_").lower()
        problem = Problem(code="not-ready", message=f"{status.spec.name} is {word}", remedy="fleet ps")
        raise CellStopped(CellAction.FAIL, problem)


async def endpoint_cells(context: FleetContext, request: BenchRequest, suite: Suite) -> list[PlannedCell]:
    """A server that somebody else runs: measured over HTTP from its own host, never stopped."""
    name, _, port_text = request.endpoint.rpartition(":")
    if not name or not port_text.isdigit():
        raise OperationError("usage", f"--endpoint takes HOST:PORT, not {request.endpoint!r}", usage=True)
    (host,) = context.select(name)[:1]
    state = await gather_state(context, host)
    if isinstance(state, Problem):
        return [stopped_cell(host.name, "", CellAction.FAIL, state)]
    port = int(port_text)
    async with context.pool.client(host) as agent:
        servers = await agent.find_servers((port,))
    server = next((one for one in servers if one.port == port), None)
    ours = next((status.spec.name for status in state.services if status.spec.port == port), None)
    if server is None and ours is not None:
        problem = Problem(code="no-server", message=f"port {port} of {host.name} is our own {ours}",
                          remedy=f"fleet bench {ours} --hosts {host.name} --client llama-benchy")  # fmt: skip
        return [stopped_cell(host.name, ours, CellAction.FAIL, problem)]
    if server is None or server.needs_key:
        why = "asks for a key" if server else "no model server answers"
        problem = Problem(code="no-server", message=f"{why} on port {port} of {host.name}", remedy="fleet ps --foreign")
        return [stopped_cell(host.name, "", CellAction.FAIL, problem)]
    model = request.models[0] if request.models else next(iter(server.models), "")
    case = Case(context, request.model_copy(update={"client": "llama-benchy"}), suite, host, state)
    backend = server.backend or "unknown"
    gpus = tuple(gpu.index for gpu in state.facts.gpus if any(one.pid == server.pid for one in gpu.processes))
    spec = ServiceSpec(name=f"foreign-{port}", backend=backend, tool={"name": server.command or "server"}, port=port,
                       gpu_indices=gpus)  # fmt: skip
    subject = Subject(
        backend=backend,
        installation=Installation(backend=backend, version=server.version, install_key=""),
        model_path="",
        served_model_name=model,
        base_url=f"http://{LOOPBACK}:{port}",
        tokenizer=request.tokenizer or (tokenizer_beside(model) if model.startswith("/") else ""),
    )
    cells = []
    for part in suite.parts:
        try:
            client = client_for(backend, "llama-benchy", part)
            cells.append(
                planned_cell(
                    case, model, "", f"{host.name}:{port}", subject, client, part, spec, None, foreign_port=port
                )
            )
        except (BackendError, CellStopped) as error:
            cells.append(stopped_cell(host.name, model, action_of(error), problem_of_cell(error)))
    return cells
