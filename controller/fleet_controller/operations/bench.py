"""Measuring a deployed model with its engine's own tool. A row that was asked for and is missing is an error."""

import json
import time
import uuid
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any

from fleet_controller.backends import BACKENDS
from fleet_controller.backends.base import BackendError, Benches, BenchOptions, BenchRow, Installation
from fleet_controller.domain.events import HostEvent
from fleet_controller.domain.facts import HostFacts
from fleet_controller.domain.services import ServiceSpec, ServiceStatus
from fleet_controller.domain.steps import JobSpec, RunToolStep
from fleet_controller.fanout import merged
from fleet_controller.operations.context import FleetContext
from fleet_controller.operations.jobs import run_job
from fleet_controller.operations.problems import OperationError, problem_of
from fleet_controller.planning.devices import busy_text, foreign_processes
from fleet_controller.results.columns import Metric, Result, Run
from fleet_controller.results.store import save_results
from fleet_inventory.hosts import Host

TEST_KINDS = {"prefill": Metric.PREFILL, "decode": Metric.DECODE}
MODEL_OPTION = "--model"


@dataclass(frozen=True)
class BenchRequest:
    model: str
    pattern: str
    prompt_tokens: int
    generation_tokens: int
    repetitions: int

    @property
    def options(self) -> BenchOptions:
        return BenchOptions(
            prompt_tokens=self.prompt_tokens,
            generation_tokens=self.generation_tokens,
            repetitions=self.repetitions,
        )


async def bench(context: FleetContext, request: BenchRequest) -> AsyncGenerator[HostEvent]:
    """Measure on each host that serves the model; rows are kept, and come as json of the host's last event."""
    hosts = context.select(request.pattern)
    async for event in merged([_on_host(context, host, request) for host in hosts]):
        yield event


async def _on_host(context: FleetContext, host: Host, request: BenchRequest) -> AsyncGenerator[HostEvent]:
    found: list[dict[str, Any]] = []
    try:
        async with context.pool.client(host) as agent:
            facts = await agent.facts()
            services = await agent.list_services()
        spec = _service(services, request.model)
        _refuse_busy(facts)
        job = bench_job(spec, request.options, uuid.uuid4().hex[:12])
        async for event in run_job(context, host, job, found):
            yield event
        output = str(found[-1].get("stdout", "")) if found else ""
        rows = _parsed(spec, output, request.options)
        finished = int(time.time() * 1000)
        results = [_result(host, facts, spec, job, row, request, finished) for row in rows]
        run = Run(run_id=job.job_id, host=host.name, job_id=job.job_id, stdout=output, finished_unix_ms=finished)
        save_results(context.database, results, run)
        yield _measured(host, results)
    except Exception as error:
        yield HostEvent(host=host.name, stage="bench", done=True, problem=problem_of(error))


def _service(services: tuple[ServiceStatus, ...], model: str) -> ServiceSpec:
    spec = next((status.spec for status in services if status.spec.name == model), None)
    if spec is None:
        there_is = ", ".join(status.spec.name for status in services) or "nothing"
        raise OperationError("not-deployed", f"{model} is not deployed here ({there_is} is)", f"fleet deploy {model}")
    return spec


def _refuse_busy(facts: HostFacts) -> None:
    """A number measured beside someone else's work says nothing."""
    for gpu in facts.gpus:
        foreign = foreign_processes((gpu,))
        if foreign:
            who = busy_text(foreign[0], facts.taken_unix_ms)
            raise OperationError("busy", f"GPU {gpu.index} is {who}", "wait until it has ended, then repeat")


def bench_job(spec: ServiceSpec, options: BenchOptions, run: str) -> JobSpec:
    """The job that measures what a service serves, with the same engine, files and environment."""
    backend = BACKENDS.get(spec.backend)
    if backend is None or not isinstance(backend, Benches):
        raise OperationError("no-bench", f"{spec.backend} has no benchmark of its own")
    installation = Installation(backend=spec.backend, version=spec.backend_version, install_key=spec.tool.install_key)
    step = backend.bench_step(installation, model_path(spec), options)
    return JobSpec(
        job_id=f"bench-{spec.name[:80]}-{run}",
        title=f"bench {spec.name} {spec.quantization}".strip(),
        steps=(step,),
        environment=spec.environment,
    )


def model_path(spec: ServiceSpec) -> str:
    """The file or folder that a service serves, as its command line names it."""
    for option, value in zip(spec.arguments, spec.arguments[1:], strict=False):
        if option == MODEL_OPTION:
            return value
    raise OperationError("no-model-path", f"the command line of {spec.name} names no model", "deploy it again")


def _parsed(spec: ServiceSpec, output: str, options: BenchOptions) -> tuple[BenchRow, ...]:
    backend = BACKENDS[spec.backend]
    assert isinstance(backend, Benches)
    try:
        return backend.parse_bench(output, options)
    except (BackendError, ValueError, KeyError) as error:
        raise OperationError(
            getattr(error, "code", "bench-output"), str(error) or "the benchmark's output is not understood"
        ) from error


def _result(
    host: Host,
    facts: HostFacts,
    spec: ServiceSpec,
    job: JobSpec,
    row: BenchRow,
    request: BenchRequest,
    finished_unix_ms: int,
) -> Result:
    step = job.steps[0].run_tool
    assert step is not None
    return Result(
        run_id=job.job_id,
        job_id=job.job_id,
        host=host.name,
        model=spec.name,
        quantization=spec.quantization,
        backend=spec.backend,
        backend_version=spec.backend_version,
        artifact=model_path(spec),
        client=client_name(step),
        test_kind=TEST_KINDS[row.kind],
        depth=row.depth_tokens,
        prompt_tokens=row.tokens if row.kind == "prefill" else 0,
        generation_tokens=row.tokens if row.kind == "decode" else 0,
        repetitions=request.repetitions,
        mean=row.mean_tokens_per_second,
        deviation=row.deviation_tokens_per_second,
        samples=row.samples_tokens_per_second,
        chip=chip_name(facts),
        driver_version=(facts.nvidia.driver_version or "") if facts.nvidia else "",
        power_limit_watts=facts.gpus[0].power_limit_watts if facts.gpus else None,
        os_name=facts.system.os_name,
        flags=json.dumps(step.arguments),
        finished_unix_ms=finished_unix_ms,
    )


def client_name(step: RunToolStep) -> str:
    """The tool that measures: "llama-bench", "mlx_lm.benchmark"."""
    if "-m" in step.arguments and "python" in step.tool.name:
        return step.arguments[step.arguments.index("-m") + 1]
    return step.tool.name.rsplit("/", 1)[-1]


def chip_name(facts: HostFacts) -> str:
    if facts.gpus:
        return facts.gpus[0].name
    if facts.apple is not None and facts.apple.chip:
        return facts.apple.chip
    return facts.cpu.model


def _measured(host: Host, results: list[Result]) -> HostEvent:
    text = ", ".join(f"{result.test} {result.mean:.1f} tokens/s" for result in results)
    rows = [result.model_dump(mode="json") for result in results]
    return HostEvent(
        host=host.name, stage="bench", message=text, done=True, changed=False, result_json=json.dumps({"rows": rows})
    )
