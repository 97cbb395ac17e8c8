"""Running one host's part of a plan: the job that prepares, then the service, then one real question to it.

Every piece is named by what it does, so that the same command, after whatever died in the middle, finds the work
where it is: a job under way is joined, one that ended is not repeated, a service with the same spec is kept.
"""

import json
import time
from collections.abc import AsyncGenerator
from typing import Any

from fleet_controller.domain.addresses import base_url, tunnel_command
from fleet_controller.domain.base import Problem
from fleet_controller.domain.events import HostEvent
from fleet_controller.domain.plan import PlanAction
from fleet_controller.domain.services import ServiceSpec
from fleet_controller.operations.contact import ask
from fleet_controller.operations.context import FleetContext
from fleet_controller.operations.jobs import active_deploys, follow_job, run_job
from fleet_controller.operations.launch import launch, until_ready
from fleet_controller.operations.memory_observations import observe_memory
from fleet_controller.operations.planning import PlannedHost, StoredPlan, replan, state_from
from fleet_controller.operations.problems import OperationError, problem_of
from fleet_controller.operations.secrets import deliver_api_key
from fleet_controller.planning.plan import PlannedDeployment
from fleet_controller.planning.service import same_but_learnt
from fleet_controller.transport.errors import TransportError
from fleet_inventory.hosts import Host

TO_RUN = (PlanAction.START, PlanAction.REPLACE)


async def prepare_ahead(context: FleetContext, host: Host, planned: PlannedHost) -> AsyncGenerator[HostEvent]:
    """The part of a host's plan that changes nothing that runs: installs and downloads. What fails there fails again,
    and is told, when the host is deployed.
    """
    try:
        if planned.deployment.prepare is not None:
            async for event in run_job(context, host, planned.deployment.prepare, []):
                yield event
    except (OperationError, TransportError) as error:
        yield HostEvent(host=host.name, stage="prepare", message=f"not prepared yet: {problem_of(error).message}")


async def deploy_host(
    context: FleetContext, host: Host | None, planned: PlannedHost, plan: StoredPlan
) -> AsyncGenerator[HostEvent]:
    """One host's part of a plan; its last event is `done`. The same work under way is joined."""
    spec = planned.shown.service
    if host is None or spec is None:
        gone = Problem(code="no-such-host", message="the host is no longer in hosts.yaml", remedy="repeat the command")
        yield HostEvent(host=planned.shown.host, done=True, problem=gone)
        return
    key, digest = (host.name, spec.name), spec.model_dump_json(exclude={"promised_memory_bytes", "readiness"})
    running = context.running.digest_of(key)
    if running is not None and running != digest:
        message = f"another deploy of {spec.name} to this host is under way in this controller"
        busy = Problem(code="busy", message=message, remedy="wait for it: repeat its command to watch it")
        yield HostEvent(host=host.name, done=True, problem=busy)
        return
    async for event in context.running.join(key, digest, lambda: _deploy(context, host, planned, plan, spec)):
        yield event


async def _deploy(
    context: FleetContext, host: Host, planned: PlannedHost, plan: StoredPlan, spec: ServiceSpec
) -> AsyncGenerator[HostEvent]:
    """The work on one host; whatever goes wrong is its last event."""
    started, patience_seconds = time.monotonic(), context.settings.host_patience_seconds
    answers: list[dict[str, Any]] = []
    try:
        joined = False
        async for event in _join_earlier(context, host, spec):
            joined = True
            yield event
        # An earlier job did some of it: what is left is seen from fresh facts.
        deployment = await _recheck(context, host, planned, plan) if joined else planned.deployment
        if deployment.prepare is not None:
            async for event in run_job(context, host, deployment.prepare, [], patience_seconds):
                yield event
        final = await _recheck(context, host, planned, plan)
        spec = final.plan.service or spec
        for words in final.left_out:
            if words not in planned.deployment.left_out:
                said = f"this build of {spec.backend} does not know {words[0]}: it is left out"
                yield HostEvent(host=host.name, stage="serve", message=said)
        if final.plan.action in TO_RUN:
            await deliver_api_key(context, host, spec, plan.request.api_key)
            async for event in launch(context, host, spec):
                yield event
        else:  # it may still be on its way, begun by a controller that died
            async for event in until_ready(context, host, spec.name):
                yield event
        smoke = planned.deployment.smoke_test
        if smoke is not None:
            async for event in run_job(context, host, smoke, answers, patience_seconds):
                yield event
        await observe_memory(context, host, spec.name, final.plan.fit_lines)
        yield _ready(host, spec, answers, time.monotonic() - started)
    except (OperationError, TransportError) as error:
        yield HostEvent(host=host.name, stage="deploy", done=True, problem=problem_of(error))


async def _join_earlier(context: FleetContext, host: Host, spec: ServiceSpec) -> AsyncGenerator[HostEvent]:
    """Wait for jobs that prepare this service already: of a command that was cut off, or of a colleague's."""
    jobs = await ask(context, host, lambda agent: agent.list_jobs(active_only=True))
    for status in active_deploys(jobs, spec.name):
        yield HostEvent(host=host.name, stage="job", message=f"joining {status.title}, which is under way")
        async for event in follow_job(context, host, status.job_id, (), [], context.settings.host_patience_seconds):
            yield event


async def _recheck(context: FleetContext, host: Host, planned: PlannedHost, plan: StoredPlan) -> PlannedDeployment:
    """The plan from the facts of this moment. Raises OperationError where it no longer holds."""
    state = await ask(context, host, lambda agent: state_from(context, agent))
    fresh = replan(host, state, planned, plan.request)
    if fresh.plan.problem is not None:
        problem = fresh.plan.problem
        raise OperationError(problem.code, problem.message, problem.remedy)
    spec = planned.shown.service
    if fresh.plan.service is None or spec is None or not same_but_learnt(spec, fresh.plan.service, fresh.left_out):
        raise OperationError(
            "plan-changed", "the host changed since the plan was shown", "repeat the command to see the new plan"
        )
    return fresh


def _ready(host: Host, spec: ServiceSpec, answers: list[dict[str, Any]], seconds: float) -> HostEvent:
    endpoint = base_url(spec.bind_address, spec.port)
    answer = str(answers[-1].get("text", "")) if answers else ""
    tunnel = "" if host.transport == "local" else tunnel_command(host.address, spec.bind_address, spec.port)
    result = {
        "endpoint": endpoint,
        "tunnel": tunnel,
        "forward": f"fleet forward {spec.name} --hosts {host.name}" if tunnel else "",
        "model": spec.served_model_name,
        "answer": answer,
        "seconds": round(seconds, 3),
        "backend": spec.backend,
        "quantization": spec.quantization,
    }
    return HostEvent(
        host=host.name,
        stage="ready",
        message=f"{spec.name} answers at {endpoint}",
        done=True,
        changed=True,
        result_json=json.dumps(result),
    )
