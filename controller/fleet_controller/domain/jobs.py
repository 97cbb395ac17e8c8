"""Durable jobs as an agent reports them. They mirror jobs.proto."""

from enum import StrEnum

from pydantic import ConfigDict, Field

from fleet_controller.domain.base import Frozen, Problem


class JobState(StrEnum):
    UNSPECIFIED = "JOB_STATE_UNSPECIFIED"
    QUEUED = "JOB_STATE_QUEUED"
    RUNNING = "JOB_STATE_RUNNING"
    SUCCEEDED = "JOB_STATE_SUCCEEDED"
    FAILED = "JOB_STATE_FAILED"
    CANCELLED = "JOB_STATE_CANCELLED"

    @property
    def final(self) -> bool:
        return self in (JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED)


class JobStatus(Frozen):
    job_id: str
    title: str = ""
    state: JobState = JobState.UNSPECIFIED
    last_sequence: int = 0
    created_unix_ms: int = 0
    started_unix_ms: int | None = None
    finished_unix_ms: int | None = None
    problem: Problem | None = None
    attempts: int = 0
    current_step: str | None = None
    spec_digest: str = ""


class Progress(Frozen):
    done: int = 0
    total: int | None = None
    unit: str = ""
    label: str = ""


class LogLine(Frozen):
    stream: str = ""
    text: str = ""


class StepResult(Frozen):
    """`result_json` is the wire's `json` (pydantic keeps that name for itself)."""

    model_config = ConfigDict(populate_by_name=True, serialize_by_alias=True)

    result_json: str = Field(default="", alias="json")


class JobEvent(Frozen):
    """Exactly one of state .. problem is set; sequences run 1, 2, 3, ... within a job."""

    sequence: int
    time_unix_ms: int = 0
    step_index: int = 0
    state: JobState | None = None
    step_started: str | None = None
    step_finished: str | None = None
    progress: Progress | None = None
    log: LogLine | None = None
    result: StepResult | None = None
    problem: Problem | None = None
    document: str | None = None
