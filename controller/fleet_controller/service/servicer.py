"""The calls of controller.proto: wire types in and out, the operations in between."""

import os
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from typing import Any, NoReturn

import grpc
from google.protobuf.message import Message

from fleet_controller.domain.base import Frozen, Problem
from fleet_controller.domain.events import AgentAction, HostKeyQuestion
from fleet_controller.domain.plan import DeployRequest
from fleet_controller.operations.context import FleetContext
from fleet_controller.operations.problems import OperationError, problem_of
from fleet_controller.service.protocol import software_version
from fleet_controller.state import UnusableDatabaseError
from fleet_controller.wire import from_wire, to_wire
from fleet_proto import MINIMUM_PROTOCOL, PROTOCOL
from fleet_proto.v1 import common_pb2, controller_pb2
from fleet_proto.v1.controller_pb2_grpc import ControllerServicer as GeneratedServicer

PROBLEM_METADATA_KEY = "fleet-problem-bin"


class ControllerServicer(GeneratedServicer):
    """Each method imports its operation when called, so that a short command loads little."""

    def __init__(self, context: FleetContext, started_unix_ms: int, end: Callable[[], None]) -> None:
        self._context = context
        self._started_unix_ms = started_unix_ms
        self._end = end

    async def Handshake(self, request: Any, context: Any) -> common_pb2.HandshakeReply:
        return common_pb2.HandshakeReply(
            protocol=PROTOCOL,
            minimum_protocol=MINIMUM_PROTOCOL,
            software_version=software_version(),
            started_unix_ms=self._started_unix_ms,
            pid=os.getpid(),
            warm_connections=self._context.warm_connections(),
        )

    async def GetHosts(self, request: Any, context: Any) -> AsyncIterator[Any]:
        from fleet_controller.operations.hosts import report_hosts

        reports = report_hosts(self._context, request.pattern, request.refresh)
        async for message in _stream(reports, controller_pb2.HostReport, context):
            yield message

    async def Up(self, request: Any, context: Any) -> AsyncIterator[Any]:
        from fleet_controller.operations.agents import UpRequest, bring_up

        wanted = UpRequest(
            request.pattern,
            request.transport,
            request.wheel_folder,
            request.force,
            bool(request.fetch_wheels_for),
            request.manager,
        )
        async for message in _stream(bring_up(self._context, wanted), controller_pb2.HostEvent, context):
            yield message

    async def TrustHostKey(self, request: Any, context: Any) -> controller_pb2.TrustHostKeyReply:
        from fleet_controller.transport.known_hosts import trust_host_key

        try:
            trust_host_key(from_wire(HostKeyQuestion, request.question))
        except (ValueError, OSError) as error:
            await _abort(context, OperationError("host-key", f"the key was not written down: {error}"))
        return controller_pb2.TrustHostKeyReply()

    async def ManageAgents(self, request: Any, context: Any) -> AsyncIterator[Any]:
        from fleet_controller.operations.agents import manage_agents

        action = AgentAction(controller_pb2.AgentAction.Name(request.action))
        events = manage_agents(self._context, request.pattern, action, request.purge)
        async for message in _stream(events, controller_pb2.HostEvent, context):
            yield message

    async def PlanDeploy(self, request: Any, context: Any) -> controller_pb2.DeployPlan:
        from fleet_controller.operations.planning import plan_deploy

        try:
            plan = await plan_deploy(self._context, from_wire(DeployRequest, request))
        except Exception as error:
            await _abort(context, error)
        hosts = [to_wire(host.shown, controller_pb2.HostPlan) for host in plan.hosts]
        return controller_pb2.DeployPlan(plan_id=plan.plan_id, hosts=hosts)

    async def Deploy(self, request: Any, context: Any) -> AsyncIterator[Any]:
        from fleet_controller.domain.rollouts import Strategy
        from fleet_controller.operations.rollout_making import RolloutWish
        from fleet_controller.operations.rollouts import begin

        strategy = from_wire(Strategy, request.strategy) if request.HasField("strategy") else Strategy()
        events = begin(self._context, request.plan_id, RolloutWish(canary=request.canary, strategy=strategy))
        async for message in _stream(events, controller_pb2.HostEvent, context):
            yield message

    async def PlanPull(self, request: Any, context: Any) -> controller_pb2.PullPlan:
        from fleet_controller.operations.pull_plan import plan_pull
        from fleet_controller.service import pull_wire

        try:
            plan = await plan_pull(self._context, pull_wire.request_of(request))
        except Exception as error:
            await _abort(context, error)
        return pull_wire.plan_message(plan)

    async def Pull(self, request: Any, context: Any) -> AsyncIterator[Any]:
        from fleet_controller.operations.pull import run_pulls, stop_pulls

        carry_out = stop_pulls if request.stop else run_pulls
        async for message in _stream(carry_out(self._context, request.plan_id), controller_pb2.HostEvent, context):
            yield message

    async def ListArtifacts(self, request: Any, context: Any) -> AsyncIterator[Any]:
        from fleet_controller.operations.artifacts import list_artifacts

        found = list_artifacts(self._context, request.pattern)
        async for message in _stream(found, controller_pb2.HostArtifacts, context):
            yield message

    async def VerifyArtifacts(self, request: Any, context: Any) -> AsyncIterator[Any]:
        from fleet_controller.operations.artifacts import verify_artifacts

        events = verify_artifacts(self._context, request.pattern, request.repository, request.commit)
        async for message in _stream(events, controller_pb2.HostEvent, context):
            yield message

    async def CollectArtifacts(self, request: Any, context: Any) -> AsyncIterator[Any]:
        from fleet_controller.operations.artifacts import collect_artifacts
        from fleet_controller.service import pull_wire

        events = collect_artifacts(self._context, pull_wire.names_of(request))
        async for message in _stream(events, controller_pb2.HostEvent, context):
            yield message

    async def ListRollouts(self, request: Any, context: Any) -> controller_pb2.ListRolloutsReply:
        from fleet_controller.operations.rollout_views import list_rollouts

        try:
            found = list_rollouts(self._context, request.number if request.HasField("number") else None)
        except Exception as error:
            await _abort(context, error)
        return controller_pb2.ListRolloutsReply(rollouts=[to_wire(view, controller_pb2.RolloutInfo) for view in found])

    async def ChangeRollout(self, request: Any, context: Any) -> AsyncIterator[Any]:
        from fleet_controller.operations.rollout_changes import RolloutAction, change

        action = RolloutAction(controller_pb2.RolloutAction.Name(request.action))
        events = change(self._context, action, request.number if request.HasField("number") else None)
        async for message in _stream(events, controller_pb2.HostEvent, context):
            yield message

    async def ListServices(self, request: Any, context: Any) -> AsyncIterator[Any]:
        from fleet_controller.operations.services import list_services

        found = list_services(self._context, request.pattern, request.measure_rates, request.find_foreign)
        async for message in _stream(found, controller_pb2.HostServices, context):
            yield message

    async def StopServices(self, request: Any, context: Any) -> AsyncIterator[Any]:
        from fleet_controller.operations.services import stop_services

        events = stop_services(self._context, request.pattern, request.model, request.all, request.remove)
        async for message in _stream(events, controller_pb2.HostEvent, context):
            yield message

    async def ReadLogs(self, request: Any, context: Any) -> AsyncIterator[Any]:
        from fleet_controller.operations.services import read_logs

        pieces = read_logs(self._context, request.pattern, request.model, request.tail_lines, request.follow)
        try:
            async with aclosing(pieces):
                async for piece in pieces:
                    problem = to_wire(piece.problem, common_pb2.Problem) if piece.problem else None
                    yield controller_pb2.HostLogChunk(
                        host=piece.host, service=piece.service, data=piece.data, problem=problem
                    )
        except Exception as error:
            await _abort(context, error)

    async def ListEngines(self, request: Any, context: Any) -> AsyncIterator[Any]:
        from fleet_controller.operations.engines import list_engines

        async for message in _stream(list_engines(self._context, request.pattern), controller_pb2.HostEngines, context):
            yield message

    async def PlanEngines(self, request: Any, context: Any) -> controller_pb2.EnginesPlan:
        from fleet_controller.domain.engines import EnginesRequest
        from fleet_controller.operations.engines import plan

        try:
            planned = await plan(self._context, from_wire(EnginesRequest, request))
        except Exception as error:
            await _abort(context, error)
        hosts = [to_wire(host.plan, controller_pb2.HostEnginesPlan) for host in planned.hosts]
        return controller_pb2.EnginesPlan(plan_id=planned.plan_id, hosts=hosts)

    async def ChangeEngines(self, request: Any, context: Any) -> AsyncIterator[Any]:
        from fleet_controller.operations.engines import change

        async for message in _stream(change(self._context, request.plan_id), controller_pb2.HostEvent, context):
            yield message

    async def PlanBench(self, request: Any, context: Any) -> controller_pb2.BenchPlan:
        from fleet_controller.domain.benches import BenchRequest
        from fleet_controller.operations.bench_plan import plan_bench

        try:
            plan = await plan_bench(self._context, from_wire(BenchRequest, request))
        except Exception as error:
            await _abort(context, error)
        cells = [to_wire(cell.shown, controller_pb2.BenchCell) for cell in plan.cells]
        return controller_pb2.BenchPlan(plan_id=plan.plan_id, suite=plan.suite, cells=cells)

    async def Bench(self, request: Any, context: Any) -> AsyncIterator[Any]:
        from fleet_controller.operations.bench_purposes import run_bench

        async for message in _stream(run_bench(self._context, request.plan_id), controller_pb2.HostEvent, context):
            yield message

    async def PlanEval(self, request: Any, context: Any) -> controller_pb2.EvalPlan:
        from fleet_controller.domain.evals import EvalRequest
        from fleet_controller.operations.eval_plan import plan_eval

        try:
            plan = await plan_eval(self._context, from_wire(EvalRequest, request))
        except Exception as error:
            await _abort(context, error)
        cells = [to_wire(cell.shown, controller_pb2.EvalCell) for cell in plan.cells]
        return controller_pb2.EvalPlan(plan_id=plan.plan_id, cells=cells, notes=plan.notes)

    async def Eval(self, request: Any, context: Any) -> AsyncIterator[Any]:
        from fleet_controller.operations.eval import evaluate

        async for message in _stream(evaluate(self._context, request.plan_id), controller_pb2.HostEvent, context):
            yield message

    async def ListQuality(self, request: Any, context: Any) -> controller_pb2.ListQualityReply:
        from fleet_controller.results.quality import load_quality

        try:
            found = load_quality(self._context.database, request.model, request.metric)
        except Exception as error:
            await _abort(context, error)
        rows = [controller_pb2.ScoredArtifact(id=number, json=row.model_dump_json()) for number, row in found]
        return controller_pb2.ListQualityReply(rows=rows)

    async def ListResults(self, request: Any, context: Any) -> AsyncIterator[Any]:
        from fleet_controller.operations.results import list_results
        from fleet_controller.service import results_wire

        try:
            for piece in list_results(self._context, results_wire.listing_of(request)):
                yield results_wire.piece_message(piece)
        except Exception as error:
            await _abort(context, error)

    async def GetResult(self, request: Any, context: Any) -> controller_pb2.ResultDetails:
        from fleet_controller.operations.results import get_result
        from fleet_controller.service import results_wire

        try:
            return results_wire.details_message(request.id, get_result(self._context, request.id))
        except Exception as error:
            await _abort(context, error)

    async def ImportResults(self, request: Any, context: Any) -> controller_pb2.ImportResultsReply:
        from fleet_controller.operations.results import import_results
        from fleet_controller.service import results_wire

        try:
            imported = import_results(self._context, results_wire.files_of(request))
        except Exception as error:
            await _abort(context, error)
        files = [controller_pb2.ImportedFile(name=name, added=added, known=known) for name, added, known in imported]
        return controller_pb2.ImportResultsReply(files=files)

    async def Choose(self, request: Any, context: Any) -> controller_pb2.ChooseReply:
        from fleet_controller.operations.choosing import ChooseRequest, choose, goal_of
        from fleet_controller.operations.choosing_options import Question

        try:
            floor = request.quality_floor if request.HasField("quality_floor") else None
            wanted = ChooseRequest(
                models=tuple(request.models),
                pattern=request.pattern,
                question=Question(goal_of(request.goal), floor, request.depth),
                context_tokens=request.context_length if request.HasField("context_length") else None,
                repository=request.repository,
                last_known=request.last_known,
            )
            hosts = await choose(self._context, wanted)
        except Exception as error:
            await _abort(context, error)
        return controller_pb2.ChooseReply(hosts=[to_wire(host, controller_pb2.HostChoice) for host in hosts])

    async def Shutdown(self, request: Any, context: Any) -> controller_pb2.ShutdownControllerReply:
        self._end()
        return controller_pb2.ShutdownControllerReply()


async def _stream(values: AsyncGenerator[Any], message: type[Message], context: Any) -> AsyncIterator[Any]:
    """The values as messages; an error of the whole call ends it with a status and a Problem."""
    try:
        async with aclosing(values):
            async for value in values:
                yield to_wire(value, message)
    except Exception as error:
        await _abort(context, error)


async def _abort(context: Any, error: Exception) -> NoReturn:
    usage = isinstance(error, OperationError) and error.usage
    if isinstance(error, UnusableDatabaseError):
        problem = Problem(code="database", message=str(error))
    else:
        problem = problem_of(error)
    status = grpc.StatusCode.INVALID_ARGUMENT if usage else grpc.StatusCode.FAILED_PRECONDITION
    metadata = ((PROBLEM_METADATA_KEY, _serialized(problem)),)
    await context.abort(status, problem.message.splitlines()[0][:500], trailing_metadata=metadata)
    raise AssertionError("abort raises")


def _serialized(problem: Frozen) -> bytes:
    return to_wire(problem, common_pb2.Problem).SerializeToString()
