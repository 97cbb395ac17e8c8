"""What `fleet choose` does."""

from dataclasses import dataclass
from typing import Any

import typer

from fleet_controller.cli.choose_view import print_choices
from fleet_controller.cli.client import call, connected_controller
from fleet_controller.cli.failures import REFUSED, SOME_HOST_FAILED, UsageFailure
from fleet_controller.cli.messages import plain
from fleet_controller.cli.output import print_json
from fleet_proto.v1 import controller_pb2


@dataclass(frozen=True)
class ChooseOptions:
    """As typed."""

    models: tuple[str, ...]
    pattern: str
    context_length: int | None
    goal: str
    quality_floor: float | None
    depth: int
    repository: str
    explain: bool
    last_known: bool
    as_json: bool


def run_choose(options: ChooseOptions) -> None:
    """Exit code 1 where nothing is known of a host or model, 3 where nothing can be chosen on one, else 0."""
    if bool(options.models) == bool(options.repository):
        raise UsageFailure("name one or more models, or give --repo owner/name", "fleet models lists the catalog")
    reply = call(_choose(options))
    if options.as_json:
        print_json(_document(reply))
    else:
        print_choices(reply.hosts, options.goal, options.explain or len(reply.hosts) == 1)
    _leave(reply)


async def _choose(options: ChooseOptions) -> controller_pb2.ChooseReply:
    request = controller_pb2.ChooseRequest(
        models=options.models,
        pattern=options.pattern,
        context_length=options.context_length,
        goal=options.goal,
        quality_floor=options.quality_floor,
        depth=options.depth,
        repository=options.repository,
        last_known=options.last_known,
    )
    async with connected_controller() as controller:
        reply: controller_pb2.ChooseReply = await controller.Choose(request)
        return reply


def _document(reply: controller_pb2.ChooseReply) -> dict[str, Any]:
    return {"hosts": [plain(host) for host in reply.hosts]}


def _leave(reply: controller_pb2.ChooseReply) -> None:
    choices = [choice for host in reply.hosts for choice in host.models]
    if any(host.HasField("problem") for host in reply.hosts) or any(choice.HasField("problem") for choice in choices):
        raise typer.Exit(SOME_HOST_FAILED)
    if any(not choice.decision.ranked for choice in choices):
        raise typer.Exit(REFUSED)
