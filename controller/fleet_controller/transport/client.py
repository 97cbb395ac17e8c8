"""The agent's calls as coroutines: frozen models in, frozen models out, one error tree."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any, TypeVar

import grpc
from google.protobuf.message import Message

from fleet_controller.domain.agents import AgentIdentity, HostIdentity, IdentityStatus
from fleet_controller.domain.artifacts import Artifact, ArtifactName
from fleet_controller.domain.base import Frozen, Problem
from fleet_controller.domain.engines import InstallUse, Leftover
from fleet_controller.domain.facts import HostFacts
from fleet_controller.domain.jobs import JobEvent, JobStatus
from fleet_controller.domain.services import ForeignServer, ServiceSpec, ServiceStatus
from fleet_controller.domain.steps import JobSpec
from fleet_controller.transport.errors import AgentRefused, HostUnreachable, NoAgent, ProtocolSkew, TransportError
from fleet_controller.wire import from_wire, to_wire
from fleet_proto import MINIMUM_PROTOCOL, PROTOCOL
from fleet_proto.v1 import agent_pb2, artifacts_pb2, common_pb2, hosts_pb2, jobs_pb2, services_pb2
from fleet_proto.v1.agent_pb2_grpc import AgentStub

PROBLEM_METADATA_KEY = "fleet-problem-bin"
HANDSHAKE_TIMEOUT_SECONDS = 10.0
CALL_TIMEOUT_SECONDS = 20.0
FACTS_TIMEOUT_SECONDS = 30.0
# CancelJob and StopService block until a process tree is gone.
STOP_TIMEOUT_SECONDS = 90.0
# A Python environment of many thousand files on a network file system.
DISK_TIMEOUT_SECONDS = 600.0

Model = TypeVar("Model", bound=Frozen)
Reply = TypeVar("Reply")


def software_version() -> str:
    """The version of this distribution, for messages only; "0" when it runs from files that nobody installed."""
    try:
        return version("llmfleet-controller")
    except PackageNotFoundError:
        return "0"


# A channel connects lazily and shares no connection with others.
CHANNEL_OPTIONS: tuple[tuple[str, Any], ...] = (
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.max_receive_message_length", 64 * 1024 * 1024),
    ("grpc.enable_http_proxy", 0),
    ("grpc.http2.max_pings_without_data", 0),  # a server that loads says nothing for long
)
# An agent that hangs is noticed within their sum, while something is asked of it; a busy one answers pings by a thread.
KEEPALIVE_SECONDS, KEEPALIVE_LIMIT_SECONDS = 20, 20


def open_channel(socket_path: str) -> grpc.aio.Channel:
    """A channel to the unix socket at `socket_path`."""
    options = [
        *CHANNEL_OPTIONS,
        ("grpc.default_authority", "localhost"),
        ("grpc.keepalive_time_ms", KEEPALIVE_SECONDS * 1000),
        ("grpc.keepalive_timeout_ms", KEEPALIVE_LIMIT_SECONDS * 1000),
    ]
    return grpc.aio.insecure_channel(f"unix:{socket_path}", options=options)


class AgentClient:
    """One agent, through one channel. Every method raises a TransportError and nothing else of gRPC's.

    `link_is_closed` tells a broken connection from a missing agent, since gRPC says "unavailable" to both;
    `explain`, where given, has the first word about what gRPC says of a connection that failed.
    """

    def __init__(
        self,
        host: str,
        channel: grpc.aio.Channel,
        link_is_closed: Callable[[], bool] = lambda: False,
        explain: Callable[[str], TransportError | None] = lambda details: None,
    ) -> None:
        self.host = host
        self.channel = channel
        self._stub: Any = AgentStub(channel)
        self._link_is_closed = link_is_closed
        self._explain = explain

    async def handshake(self, timeout_seconds: float = HANDSHAKE_TIMEOUT_SECONDS) -> AgentIdentity:
        """Raises ProtocolSkew where the two protocol ranges do not meet."""
        request = common_pb2.HandshakeRequest(
            protocol=PROTOCOL, minimum_protocol=MINIMUM_PROTOCOL, software_version=software_version()
        )
        reply = await self._call(self._stub.Handshake, request, timeout_seconds)
        identity = from_wire(AgentIdentity, reply)
        if identity.protocol < MINIMUM_PROTOCOL or identity.minimum_protocol > PROTOCOL:
            raise self._skew(identity)
        return identity

    async def facts(self, probes: Sequence[str] = ()) -> HostFacts:
        """The host's facts; only those of the named probes where some are named."""
        request = hosts_pb2.GetFactsRequest(probes=probes)
        return from_wire(HostFacts, await self._call(self._stub.GetFacts, request, FACTS_TIMEOUT_SECONDS))

    async def submit_job(self, spec: JobSpec) -> JobStatus:
        """Returns once the job is on the host's disk. Sending the same spec again is harmless."""
        request = jobs_pb2.SubmitJobRequest(spec=to_wire(spec, jobs_pb2.JobSpec))
        return from_wire(JobStatus, await self._call(self._stub.SubmitJob, request))

    async def get_job(self, job_id: str) -> JobStatus:
        return from_wire(JobStatus, await self._call(self._stub.GetJob, jobs_pb2.GetJobRequest(job_id=job_id)))

    async def list_jobs(self, active_only: bool = False) -> tuple[JobStatus, ...]:
        reply = await self._call(self._stub.ListJobs, jobs_pb2.ListJobsRequest(active_only=active_only))
        return tuple(from_wire(JobStatus, job) for job in reply.jobs)

    async def cancel_job(self, job_id: str) -> JobStatus:
        """Returns once the job's process tree is gone."""
        request = jobs_pb2.CancelJobRequest(job_id=job_id)
        return from_wire(JobStatus, await self._call(self._stub.CancelJob, request, STOP_TIMEOUT_SECONDS))

    async def steer_job(
        self, job_id: str, document: str = "", credentials: tuple[bytes, bytes, bytes] | None = None
    ) -> JobStatus:
        """An order to a job that takes orders, and (authority, certificate, key) as PEM where it is given some.

        It is on the host's disk when this returns.
        """
        request = jobs_pb2.SteerJobRequest(job_id=job_id, document=document)
        if credentials is not None:
            authority, certificate, key = (pem.decode() for pem in credentials)
            request.credentials.MergeFrom(
                jobs_pb2.JobCredentials(authority=authority, certificate=certificate, key=key)
            )
        return from_wire(JobStatus, await self._call(self._stub.SteerJob, request))

    def watch_job(self, job_id: str, after: int = 0) -> AsyncIterator[JobEvent]:
        """Events with a sequence above `after`; ends after the final one. AgentPool.follow_job outlives a lost link."""
        request = jobs_pb2.WatchJobRequest(job_id=job_id, after_sequence=after)
        return self._stream(self._stub.WatchJob, request, JobEvent)

    async def apply_service(self, spec: ServiceSpec, keep_former: bool = False) -> ServiceStatus:
        """Answers at once; watch_service shows the way to READY. The same spec again changes nothing.

        `keep_former`: a ready server of this name goes on until its successor is READY, where the host has room.
        """
        wire = to_wire(spec, services_pb2.ServiceSpec)
        request = services_pb2.ApplyServiceRequest(spec=wire, keep_former=keep_former)
        return from_wire(ServiceStatus, await self._call(self._stub.ApplyService, request))

    async def stop_service(self, name: str, grace_seconds: float = 0.0, remove: bool = False) -> ServiceStatus:
        """Returns once the process tree is gone. `grace_seconds` 0 means the agent's default."""
        request = services_pb2.StopServiceRequest(name=name, grace_seconds=grace_seconds, remove=remove)
        reply = await self._call(self._stub.StopService, request, STOP_TIMEOUT_SECONDS + grace_seconds)
        return from_wire(ServiceStatus, reply)

    async def list_services(self, measure_rates: bool = False) -> tuple[ServiceStatus, ...]:
        """`measure_rates` asks each server how many tokens a second it generates now, which takes a moment."""
        request = services_pb2.ListServicesRequest(measure_rates=measure_rates)
        reply = await self._call(self._stub.ListServices, request)
        return tuple(from_wire(ServiceStatus, service) for service in reply.services)

    def watch_service(self, name: str) -> AsyncIterator[ServiceStatus]:
        """The present status, then each change, until the caller stops reading."""
        return self._stream(self._stub.WatchService, services_pb2.WatchServiceRequest(name=name), ServiceStatus)

    async def read_log(self, service: str, tail_lines: int = 0, follow: bool = False) -> AsyncIterator[bytes]:
        """A service's log in chunks; `tail_lines` 0 gives everything kept, `follow` goes on until cancelled."""
        request = services_pb2.ReadLogRequest(service=service, tail_lines=tail_lines, follow=follow)
        async for chunk in self._messages(self._stub.ReadLog, request):
            yield chunk.data

    async def new_identity_key(self) -> tuple[str, str]:
        """The id of a key that the host made just now, and its public half as OpenSSH writes it."""
        reply = await self._call(self._stub.NewIdentityKey, agent_pb2.NewIdentityKeyRequest())
        return reply.key_id, reply.public_key

    async def install_identity(self, identity: HostIdentity) -> IdentityStatus:
        """The host serves over TLS with it from the next connection on. Refused for another authority's host."""
        request = to_wire(identity, agent_pb2.InstallIdentityRequest)
        return from_wire(IdentityStatus, await self._call(self._stub.InstallIdentity, request))

    async def remove_identity(self) -> IdentityStatus:
        return from_wire(IdentityStatus, await self._call(self._stub.RemoveIdentity, agent_pb2.RemoveIdentityRequest()))

    async def get_identity(self) -> IdentityStatus:
        return from_wire(IdentityStatus, await self._call(self._stub.GetIdentity, agent_pb2.GetIdentityRequest()))

    async def list_artifacts(self) -> tuple[Artifact, ...]:
        reply = await self._call(self._stub.ListArtifacts, artifacts_pb2.ListArtifactsRequest())
        return tuple(from_wire(Artifact, artifact) for artifact in reply.artifacts)

    async def survey_artifacts(self) -> tuple[tuple[Artifact, ...], str]:
        """With who uses them, who brought them, and what removing them would free; and a word for the cache."""
        request = artifacts_pb2.ListArtifactsRequest(survey=True)
        reply = await self._call(self._stub.ListArtifacts, request, DISK_TIMEOUT_SECONDS)
        return tuple(from_wire(Artifact, artifact) for artifact in reply.artifacts), str(reply.cache)

    async def remove_artifacts(self, names: Sequence[ArtifactName]) -> tuple[int, tuple[ArtifactName, ...]]:
        """Removes those that nobody needs now: (bytes freed, what went)."""
        request = artifacts_pb2.RemoveArtifactsRequest(
            artifacts=[to_wire(name, artifacts_pb2.ArtifactName) for name in names]
        )
        reply = await self._call(self._stub.RemoveArtifacts, request, DISK_TIMEOUT_SECONDS)
        return int(reply.freed_bytes), tuple(from_wire(ArtifactName, name) for name in reply.removed)

    async def remove_engine(self, install_key: str) -> int:
        """Removes an install of ours; returns the bytes freed. Refused while a service is on it."""
        request = agent_pb2.RemoveEngineRequest(install_key=install_key)
        reply = await self._call(self._stub.RemoveEngine, request, DISK_TIMEOUT_SECONDS)
        return int(reply.freed_bytes)

    async def survey_engines(self) -> tuple[tuple[InstallUse, ...], tuple[Leftover, ...]]:
        """What every install of ours takes and who needs it, and what else lies in the engines folder."""
        reply = await self._call(self._stub.SurveyEngines, agent_pb2.SurveyEnginesRequest(), DISK_TIMEOUT_SECONDS)
        installs = tuple(from_wire(InstallUse, use) for use in reply.installs)
        return installs, tuple(from_wire(Leftover, leftover) for leftover in reply.leftovers)

    async def collect_leftovers(self, paths: Sequence[str]) -> tuple[int, tuple[str, ...]]:
        """Removes those that nobody needs now: (bytes freed, what went)."""
        request = agent_pb2.CollectLeftoversRequest(paths=paths)
        reply = await self._call(self._stub.CollectLeftovers, request, DISK_TIMEOUT_SECONDS)
        return int(reply.freed_bytes), tuple(reply.removed)

    async def find_servers(self, ports: Sequence[int] = ()) -> tuple[ForeignServer, ...]:
        """Model servers on the host that fleet did not start."""
        reply = await self._call(self._stub.FindServers, agent_pb2.FindServersRequest(ports=ports))
        return tuple(from_wire(ForeignServer, server) for server in reply.servers)

    async def put_secret(self, name: str, value: bytes) -> str:
        """Keeps a secret on the host in a file of mode 0600; returns the file's path there."""
        reply = await self._call(self._stub.PutSecret, agent_pb2.PutSecretRequest(name=name, value=value))
        return str(reply.path)

    async def shutdown(self) -> None:
        """Ends the agent's server process; its services and job runners go on."""
        await self._call(self._stub.Shutdown, agent_pb2.ShutdownRequest())

    async def _call(
        self, method: Callable[..., Awaitable[Any]], request: Message, timeout_seconds: float = CALL_TIMEOUT_SECONDS
    ) -> Any:
        try:
            return await method(request, timeout=timeout_seconds)
        except grpc.aio.AioRpcError as error:
            raise self._translate(error) from None
        except asyncio.CancelledError:
            self._raise_if_dropped()
            raise

    async def _stream(self, method: Callable[..., Any], request: Message, model: type[Model]) -> AsyncIterator[Model]:
        async for message in self._messages(method, request):
            yield from_wire(model, message)

    async def _messages(self, method: Callable[..., Any], request: Message) -> AsyncIterator[Any]:
        call = method(request)
        try:
            async for message in call:
                yield message
        except grpc.aio.AioRpcError as error:
            raise self._translate(error) from None
        except asyncio.CancelledError:
            self._raise_if_dropped()
            raise
        finally:
            call.cancel()

    def _raise_if_dropped(self) -> None:
        """gRPC cancels the calls of a channel that is closed, as if our own task were cancelled; tell the two apart."""
        task = asyncio.current_task()
        if task is not None and not task.cancelling():
            raise self._unavailable("the channel was closed, since the agent was restarted") from None

    def _translate(self, error: grpc.aio.AioRpcError) -> TransportError:
        status = error.code()
        if status in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED):
            return self._unavailable(error.details() or "")
        if status is grpc.StatusCode.DEADLINE_EXCEEDED:
            return HostUnreachable(
                self.host, "the agent did not answer in time", f"fleet agent status {self.host}", "agent-silent"
            )
        if status is grpc.StatusCode.UNIMPLEMENTED:
            return ProtocolSkew(
                self.host, "the agent does not know this call; it is older", f"fleet agent upgrade {self.host}"
            )
        problem = _problem_of(error)
        if problem.code == ProtocolSkew.code:
            return ProtocolSkew(self.host, problem.message, problem.remedy or f"fleet agent upgrade {self.host}")
        return AgentRefused(self.host, problem, status.name)

    def _unavailable(self, details: str) -> TransportError:
        explained = self._explain(details)
        if explained is not None:
            return explained
        if self._link_is_closed():
            return HostUnreachable(self.host, "the connection was lost", "run the command again; it resumes")
        return NoAgent(self.host, f"no agent answers on its socket ({details})", f"fleet up {self.host}")

    def _skew(self, identity: AgentIdentity) -> ProtocolSkew:
        ours, theirs = (MINIMUM_PROTOCOL, PROTOCOL), (identity.minimum_protocol, identity.protocol)
        message = f"the agent speaks protocol {theirs[0]}-{theirs[1]}, this controller {ours[0]}-{ours[1]}"
        remedy = f"fleet agent upgrade {self.host}" if theirs[1] < ours[0] else "upgrade fleet on this machine"
        return ProtocolSkew(self.host, message, remedy)


def _problem_of(error: grpc.aio.AioRpcError) -> Problem:
    for key, value in error.trailing_metadata() or ():
        if key == PROBLEM_METADATA_KEY and isinstance(value, bytes):
            return from_wire(Problem, common_pb2.Problem.FromString(value))
    code = error.code().name.lower().replace("_", "-")
    return Problem(code=code, message=error.details() or f"the agent answered {code}")
