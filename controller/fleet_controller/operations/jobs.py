"""Following a job of an agent as events of its host: over lost links, and without ever running the same work twice."""

import json
from collections.abc import AsyncGenerator
from typing import Any

from fleet_controller.domain.base import Problem
from fleet_controller.domain.events import HostEvent
from fleet_controller.domain.jobs import JobEvent, JobState, JobStatus
from fleet_controller.domain.steps import JobSpec, Step
from fleet_controller.operations.contact import ask
from fleet_controller.operations.context import FleetContext
from fleet_controller.operations.problems import OperationError
from fleet_controller.operations.secrets import deliver_hub_token
from fleet_controller.planning.plan import retried
from fleet_controller.transport.client import AgentClient
from fleet_controller.transport.pool import JOB_PATIENCE_SECONDS
from fleet_inventory.hosts import Host

# The word of each kind of step, for machines.
STAGES = {
    "python_environment": "install",
    "git_checkout": "source",
    "source_archive": "source",
    "cmake_build": "build",
    "adopt_engine": "install",
    "hub_download": "download",
    "verify_file": "verify",
    "installer_script": "install",
    "run_tool": "run",
    "health_probe": "probe",
    "chat_probe": "smoke",
    "bench": "bench",
    "evaluate": "evaluate",
    "relay": "pull",
    "verify_artifacts": "verify",
    "hash_folder": "hash",
}


class JobFailed(OperationError):
    """A job ended in FAILED or CANCELLED."""


async def run_job(
    context: FleetContext,
    host: Host,
    job: JobSpec,
    results: list[dict[str, Any]],
    patience_seconds: float = JOB_PATIENCE_SECONDS,
) -> AsyncGenerator[HostEvent]:
    """Submit a job and follow it to its end; what its steps found is added to `results`.

    A job of this id that still runs is joined. One that has ended is run again under the next id: steps are
    idempotent, so that costs a look. Raises JobFailed or a TransportError.
    """

    async def submit(agent: AgentClient) -> str:
        known = {status.job_id: status for status in await agent.list_jobs()}
        attempts = [status for job_id, status in known.items() if is_attempt_of(job_id, job.job_id)]
        active = next((status for status in attempts if not status.state.final), None)
        if active is not None:
            return active.job_id
        attempt = retried(job, known)
        await deliver_hub_token(agent, host, attempt)
        return (await agent.submit_job(attempt)).job_id

    job_id = await ask(context, host, submit)
    async for event in follow_job(context, host, job_id, job.steps, results, patience_seconds):
        yield event


async def follow_job(
    context: FleetContext,
    host: Host,
    job_id: str,
    steps: tuple[Step, ...],
    results: list[dict[str, Any]],
    patience_seconds: float = JOB_PATIENCE_SECONDS,
) -> AsyncGenerator[HostEvent]:
    """Events of a job that is on the host. `steps` may be empty where only its id is known."""
    problem: Problem | None = None
    name = ""
    async for event in context.pool.follow_job(host, job_id, patience_seconds=patience_seconds):
        if event.step_started is not None:
            name = event.step_started
        if event.problem is not None:
            problem = event.problem
        if event.result is not None and event.result.result_json:
            results.append(json.loads(event.result.result_json))
        shown = _shown(host.name, event, steps, name)
        if shown is not None:
            yield shown
        if event.state in (JobState.FAILED, JobState.CANCELLED):
            raise _failure(job_id, event.state, problem)


def is_attempt_of(job_id: str, base: str) -> bool:
    """Whether `job_id` is `base` or a later attempt of it (`base-2`, `base-3`, ...)."""
    return job_id == base or (job_id.startswith(f"{base}-") and job_id[len(base) + 1 :].isdigit())


def active_deploys(jobs: tuple[JobStatus, ...], service: str) -> list[JobStatus]:
    """Jobs under way that prepare `service`, whoever started them and whatever of it was still to do then."""
    prefix = f"deploy-{service[:80]}-"
    return [
        status
        for status in jobs
        if not status.state.final
        and status.job_id.startswith(prefix)
        and len(status.job_id[len(prefix) :].split("-")[0]) == 16
    ]


def _shown(host: str, event: JobEvent, steps: tuple[Step, ...], name: str) -> HostEvent | None:
    stage = _stage(steps, event.step_index)
    if event.step_started is not None:
        return HostEvent(host=host, stage=stage, message=event.step_started)
    if event.progress is not None:
        progress = event.progress
        label = f"{name}: {progress.label}" if progress.label and progress.label not in name else name
        return HostEvent(
            host=host,
            stage=stage,
            message=label,
            done_units=progress.done,
            total_units=progress.total,
            unit=progress.unit,
        )
    return None


def _stage(steps: tuple[Step, ...], index: int) -> str:
    if index >= len(steps):
        return "job"
    return next((stage for kind, stage in STAGES.items() if getattr(steps[index], kind) is not None), "job")


def _failure(job_id: str, state: JobState | None, problem: Problem | None) -> JobFailed:
    if problem is not None:
        remedy = problem.remedy or "repeat the command: it goes on where it was"
        return JobFailed(problem.code, problem.message, remedy, tail=problem.tail)
    if state is JobState.CANCELLED:
        return JobFailed("cancelled", f"job {job_id} was cancelled", "repeat the command to start it again")
    return JobFailed("job-failed", f"job {job_id} failed and left no reason", "look at the agent's log on the host")
