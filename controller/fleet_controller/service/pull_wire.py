"""Pulls and model files between messages and frozen models, where their fields differ."""

from typing import Any

from fleet_controller.domain.artifacts import ArtifactName
from fleet_controller.domain.pulls import PlannedPull, PullPlan, PullRequest
from fleet_controller.wire import from_wire, to_wire
from fleet_proto.v1 import controller_pb2


def request_of(message: Any) -> PullRequest:
    return from_wire(PullRequest, message)


def plan_message(plan: PullPlan) -> controller_pb2.PullPlan:
    return controller_pb2.PullPlan(
        plan_id=plan.plan_id,
        pulls=[_pull_message(pull) for pull in plan.pulls],
        failed=[to_wire(host, controller_pb2.PullHost) for host in plan.failed],
    )


def _pull_message(pull: PlannedPull) -> controller_pb2.PlannedPull:
    files = pull.files
    return controller_pb2.PlannedPull(
        pull_id=pull.pull_id,
        repository=files.repository,
        revision=files.revision,
        commit=files.commit,
        quantization=files.quantization,
        total_bytes=files.total_bytes,
        files=len(files.files),
        paths=[file.path for file in files.files],
        source=pull.source.words,
        resumes=pull.resumes,
        notes=pull.notes,
        hosts=[to_wire(host, controller_pb2.PullHost) for host in pull.hosts],
    )


def names_of(message: Any) -> dict[str, tuple[ArtifactName, ...]]:
    return {
        host.host: tuple(from_wire(ArtifactName, artifact) for artifact in host.artifacts) for host in message.hosts
    }
