"""What `fleet diff` and `fleet apply` do: the plans of all models of a lab file, and a rollout for each."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import typer

from fleet_controller.cli.client import call, connected_controller, typed_command
from fleet_controller.cli.deploy_command import TO_RUN, DeployOptions, plan_of, run_plan
from fleet_controller.cli.events import follow_events, leave_with, outcome
from fleet_controller.cli.failures import (
    REFUSED,
    SOME_HOST_FAILED,
    CommandFailure,
    UsageFailure,
    from_rpc_error,
    report,
)
from fleet_controller.cli.messages import plain, word_of
from fleet_controller.cli.output import confirm, print_json, print_table
from fleet_controller.cli.plan_view import STYLES
from fleet_controller.cli.rollout_order import RolloutOptions, strategy_of
from fleet_inventory.base import InventoryError
from fleet_inventory.lab_file import LabFile, LabModel, entry_places, load_lab
from fleet_inventory.paths import hosts_file
from fleet_proto.v1 import controller_pb2, services_pb2

COLUMNS = ("HOST", "SERVICE", "ACTION", "BACKEND", "QUANT", "CONTEXT", "PORT", "WHY")


@dataclass(frozen=True)
class LabOptions:
    file: str
    dry_run: bool
    yes: bool
    as_json: bool


@dataclass
class _Entry:
    """A model of the file with its plan. `place` is its line, as "lab.yaml:2: models[0]"."""

    place: str
    options: DeployOptions
    plan: controller_pb2.DeployPlan

    @property
    def changing(self) -> list[controller_pb2.HostPlan]:
        return [host for host in self.plan.hosts if host.action in TO_RUN]


@dataclass
class _Diff:
    entries: list[_Entry]
    others: list[tuple[str, services_pb2.ServiceStatus]] = field(default_factory=list)  # that the file does not name
    stops: bool = False

    @property
    def changes(self) -> bool:
        return any(entry.changing for entry in self.entries) or bool(self.stops and self.others)


def run_lab(options: LabOptions) -> None:
    """Exit code 1 where a host failed, 3 where one was refused."""
    path = Path(options.file).expanduser() if options.file else hosts_file().with_name("lab.yaml")
    try:
        lab, places = load_lab(path), entry_places(path)
    except InventoryError as error:
        raise UsageFailure(str(error)) from None
    order = RolloutOptions(**lab.order.model_dump())
    try:
        strategy_of(order)
    except UsageFailure as error:
        raise UsageFailure(f"{path}: order: {error.message.removeprefix('--')}", error.remedy) from None
    call(_apply(lab, places, order, options), when_interrupted=typed_command())


async def _apply(lab: LabFile, places: Sequence[str], order: RolloutOptions, options: LabOptions) -> None:
    finished: list[tuple[str, controller_pb2.HostEvent]] = []
    async with connected_controller() as controller:
        found = await _diff(controller, lab, places, order)
        shown = sys.stderr if options.as_json else sys.stdout
        if not options.as_json or not options.dry_run:
            _print(found, shown)
        if found.changes and not options.dry_run:
            if not confirm("Bring this about?", options.yes):
                raise typer.Exit(0)
            finished = await _bring_about(controller, found, options)
    if options.as_json:
        print_json(_document(found, finished))
    elif not options.dry_run:
        _print_outcome(found, finished)
    _leave(found, finished)


async def _diff(controller: Any, lab: LabFile, places: Sequence[str], order: RolloutOptions) -> _Diff:
    entries = [
        await _planned(controller, place, _deploy_options(model, order))
        for place, model in zip(places, lab.models, strict=True)
    ]
    _demand_one_entry_each(entries)
    wanted = {(host.host, host.service.name) for entry in entries for host in entry.plan.hosts}
    unplanned = {host.host for entry in entries for host in entry.plan.hosts if not host.service.name}
    others = []
    async for host in controller.ListServices(controller_pb2.ListServicesQuery(pattern="all")):
        for service in host.services:
            runs = service.desired == services_pb2.DESIRED_STATE_RUNNING
            # A host whose plan failed may well have the service already: nothing is stopped for want of a plan.
            if runs and (host.host, service.spec.name) not in wanted and host.host not in unplanned:
                others.append((host.host, service))
    return _Diff(entries, sorted(others, key=lambda item: (item[0], item[1].spec.name)), lab.stop_others)


async def _planned(controller: Any, place: str, options: DeployOptions) -> _Entry:
    """Raises CommandFailure that says where in the file it comes from."""
    import grpc

    try:
        return _Entry(place, options, await plan_of(controller, options))
    except grpc.aio.AioRpcError as error:
        failure = from_rpc_error(error)
    except CommandFailure as error:
        failure = error
    raise CommandFailure(f"{place}: {failure.message}", failure.remedy, failure.exit_code) from None


def _demand_one_entry_each(entries: Sequence[_Entry]) -> None:
    """Two entries for one service of a host would replace each other for ever. Raises UsageFailure."""
    seen: dict[tuple[str, str], str] = {}
    for entry in entries:
        for host in entry.plan.hosts:
            before = seen.setdefault((host.host, host.service.name), entry.place) if host.service.name else entry.place
            if before != entry.place:
                message = f"{entry.place}: {host.service.name} on {host.host} is wanted by {before} already"
                raise UsageFailure(message, "leave the host out of one of the two, or give one of them a name")


def _deploy_options(model: LabModel, order: RolloutOptions) -> DeployOptions:
    values = model.model_dump(exclude={"hosts", "context", "name", "bind", "offline", "api_key", "engine_path"})
    return DeployOptions(
        **values,
        pattern=model.hosts,
        context_length=model.context,
        service_name=model.name,
        bind_address=model.bind,
        offline_folder=model.offline or "",
        api_key=str(model.api_key or ""),
        engine_path=model.engine_path or "",
        run_installer=False,
        order=order,
        wait=False,
        dry_run=False,
        yes=True,
        as_json=False,
    )


def _print(found: _Diff, stream: Any) -> None:
    rows = [_row(host) for entry in found.entries for host in entry.plan.hosts]
    rows += [_other_row(host, service, found.stops) for host, service in found.others]
    if rows:
        print_table(COLUMNS, sorted(rows), STYLES, stream)
    for entry in found.entries:
        for host in entry.plan.hosts:
            if host.old_server:
                print(f"{host.host}: {host.old_server}", file=stream)
            for warning in host.warnings:
                print(f"{host.host}: warning: {warning}", file=stream)
            if host.HasField("problem"):
                report(f"{host.host}: {host.problem.message}", host.problem.remedy)
    if not found.changes:
        print("nothing to change", file=stream)


def _row(host: controller_pb2.HostPlan) -> tuple[str, ...]:
    engine = f"{host.backend} {host.backend_version}".strip()
    return (
        host.host,
        host.service.name or "-",
        word_of(host, "action"),
        engine or "-",
        host.quantization or "-",
        f"{host.context_length:,}" if host.context_length else "-",
        str(host.port) if host.port else "-",
        "see below" if host.HasField("problem") else host.reason or "-",
    )


def _other_row(host: str, service: services_pb2.ServiceStatus, stops: bool) -> tuple[str, ...]:
    spec = service.spec
    action, why = ("stop", "not in the file") if stops else ("keep", "not in the file; stop_others is false")
    engine = f"{spec.backend} {spec.backend_version}".strip()
    context = f"{spec.context_length:,}" if spec.context_length else "-"
    return (host, spec.name, action, engine or "-", spec.quantization or "-", context, str(spec.port), why)


async def _bring_about(
    controller: Any, found: _Diff, options: LabOptions
) -> list[tuple[str, controller_pb2.HostEvent]]:
    """Stops come first, since they make room; then a rollout for each model, planned anew where others came before."""
    finished: list[tuple[str, controller_pb2.HostEvent]] = []
    for host, service in found.others if found.stops else ():
        request = controller_pb2.StopServicesRequest(pattern=host, model=service.spec.name)
        ended = await follow_events(controller.StopServices(request), quiet=options.as_json)
        finished += [(service.spec.name, event) for event in ended]
    for place, entry in enumerate(found.entries):
        if place or finished:
            entry.plan = await plan_of(controller, entry.options)
        if entry.changing:
            ended = await run_plan(controller, entry.options, entry.plan, quiet=options.as_json)
            finished += [(entry.changing[0].service.name, event) for event in ended]
    return finished


def _document(found: _Diff, finished: list[tuple[str, controller_pb2.HostEvent]]) -> dict[str, Any]:
    return {
        "plan": [plain(host) for entry in found.entries for host in entry.plan.hosts],
        "not_in_file": [
            {"host": host, "service": service.spec.name, "action": "stop" if found.stops else "keep"}
            for host, service in found.others
        ],
        "changes": found.changes,
        "hosts": [{"service": name} | outcome(event) for name, event in finished],
    }


def _print_outcome(found: _Diff, finished: list[tuple[str, controller_pb2.HostEvent]]) -> None:
    for name, event in finished:
        if event.HasField("problem"):
            report(f"{event.host}: {name}: {event.problem.message}", event.problem.remedy, event.problem.tail)
        else:
            print(f"{event.host}: {name}: {event.message}")


def _leave(found: _Diff, finished: list[tuple[str, controller_pb2.HostEvent]]) -> None:
    plans = [host for entry in found.entries for host in entry.plan.hosts]
    if any(host.action == controller_pb2.PLAN_ACTION_FAIL for host in plans):
        raise typer.Exit(SOME_HOST_FAILED)
    leave_with([event for _, event in finished])
    if any(host.action == controller_pb2.PLAN_ACTION_REFUSE for host in plans):
        raise typer.Exit(REFUSED)
