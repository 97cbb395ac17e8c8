"""The calls about jobs: between wire messages and the agent's own values."""

from collections.abc import AsyncIterator
from typing import Any, TypeVar

from google.protobuf.json_format import MessageToDict, ParseDict
from google.protobuf.message import Message

from fleet_agent.jobs.codec import decode, encode
from fleet_agent.jobs.errors import SpecProblem
from fleet_agent.jobs.model import JobSpec
from fleet_agent.jobs.supervisor import JobSupervisor
from fleet_proto.v1 import jobs_pb2

Wire = TypeVar("Wire", bound=Message)


def to_wire(value: Any, message: type[Wire]) -> Wire:
    """The message of a dataclass whose fields carry the message's names."""
    return ParseDict(encode(value), message())


def spec_from_wire(message: jobs_pb2.JobSpec) -> JobSpec:
    """Raises SpecProblem where the message cannot be read as a spec."""
    try:
        return decode(JobSpec, MessageToDict(message, preserving_proto_field_name=True))
    except (ValueError, TypeError) as error:
        raise SpecProblem(f"the job spec cannot be read: {error}") from None


class JobCalls:
    """One method a call; what they raise becomes a status in the interceptor."""

    def __init__(self, supervisor: JobSupervisor) -> None:
        self._supervisor = supervisor

    async def SubmitJob(self, request: jobs_pb2.SubmitJobRequest, context: Any) -> jobs_pb2.JobStatus:
        return to_wire(await self._supervisor.submit(spec_from_wire(request.spec)), jobs_pb2.JobStatus)

    async def GetJob(self, request: jobs_pb2.GetJobRequest, context: Any) -> jobs_pb2.JobStatus:
        return to_wire(self._supervisor.get(request.job_id), jobs_pb2.JobStatus)

    async def ListJobs(self, request: jobs_pb2.ListJobsRequest, context: Any) -> jobs_pb2.ListJobsReply:
        statuses = self._supervisor.list(request.active_only)
        return jobs_pb2.ListJobsReply(jobs=[to_wire(status, jobs_pb2.JobStatus) for status in statuses])

    async def CancelJob(self, request: jobs_pb2.CancelJobRequest, context: Any) -> jobs_pb2.JobStatus:
        return to_wire(await self._supervisor.cancel(request.job_id), jobs_pb2.JobStatus)

    async def WatchJob(self, request: jobs_pb2.WatchJobRequest, context: Any) -> AsyncIterator[jobs_pb2.JobEvent]:
        async for event in self._supervisor.watch(request.job_id, request.after_sequence):
            yield to_wire(event, jobs_pb2.JobEvent)

    async def SteerJob(self, request: jobs_pb2.SteerJobRequest, context: Any) -> jobs_pb2.JobStatus:
        given = request.credentials
        credentials = (given.authority, given.certificate, given.key) if request.HasField("credentials") else None
        return to_wire(self._supervisor.steer(request.job_id, request.document, credentials), jobs_pb2.JobStatus)
