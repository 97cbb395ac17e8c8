"""What `fleet deploy` does: plan, show, ask, run, and say where the model answers."""

import asyncio
import sys
from dataclasses import dataclass, replace
from typing import Any, TextIO

import typer

from fleet_controller.cli.client import call, connected_controller, typed_command
from fleet_controller.cli.events import follow_events, leave_with, outcome
from fleet_controller.cli.failures import REFUSED, SOME_HOST_FAILED, UsageFailure, report
from fleet_controller.cli.installer_question import may_ask_for_script
from fleet_controller.cli.messages import plain
from fleet_controller.cli.output import confirm, print_json, print_table
from fleet_controller.cli.plan_view import print_plan
from fleet_controller.cli.rollout_order import RolloutOptions, print_order, strategy_of
from fleet_proto.v1 import controller_pb2

TO_RUN = (controller_pb2.PLAN_ACTION_START, controller_pb2.PLAN_ACTION_REPLACE)
LEASE_POLL_SECONDS = 2.0
RESULT_COLUMNS = ("HOST", "ENDPOINT", "MODEL", "TOOK", "ANSWER")


@dataclass(frozen=True)
class DeployOptions:
    model: str
    pattern: str
    backend: str
    backend_version: str
    quantization: str
    context_length: int | None
    port: int | None
    max_parallel: int | None
    repository: str
    engine_path: str
    speculative: bool | None
    bind_address: str
    api_key: str
    kv_cache_type: str
    flash_attention: str
    tensor_parallel: int | None
    memory_fraction: float | None
    dtype: str
    vision: bool | None
    service_name: str
    offline_folder: str
    run_installer: bool
    order: RolloutOptions
    wait: bool
    dry_run: bool
    yes: bool
    as_json: bool


def run_deploy(options: DeployOptions) -> None:
    """Exit code 1 where a host failed, 3 where one was refused, 0 where all serve the model (or the plan is fine)."""
    if not options.model and not options.repository:
        raise UsageFailure("name a model, or give --repo owner/name", "fleet models lists the catalog")
    _demand_reference(options.api_key)
    strategy_of(options.order)
    call(_deploy(options), when_interrupted=typed_command())


def _demand_reference(api_key: str) -> None:
    """Before anything is sent or shown: what was given may be the key itself, and is never repeated."""
    from fleet_inventory.secret_reference import parse_reference

    try:
        if api_key:
            parse_reference(api_key)
    except ValueError as error:
        raise UsageFailure(f"--api-key {error}", "export it, and say --api-key env:NAME") from None


async def _deploy(options: DeployOptions) -> None:
    async with connected_controller() as controller:
        plan, asks_about_script = await plan_of(controller, options), False
        if may_ask_for_script(plan.hosts, agreed=options.run_installer, dry_run=options.dry_run):
            options, asks_about_script = replace(options, run_installer=True), True
            plan = await plan_of(controller, options)
        shown = sys.stderr if options.as_json else sys.stdout
        if not (options.dry_run and options.as_json):
            print_plan(plan, with_commands=options.dry_run, stream=shown)
        to_run = [host for host in plan.hosts if host.action in TO_RUN or _catches_up(host, options)]
        print_order(options.order, plan.hosts, to_run, shown if not (options.dry_run and options.as_json) else None)
        finished: list[controller_pb2.HostEvent] = []
        if to_run and not options.dry_run:
            names = ", ".join(host.host for host in to_run)
            if not confirm(f"Deploy to {names}?", options.yes and not asks_about_script):
                raise typer.Exit(0)
            finished = await run_plan(controller, options, plan, quiet=options.as_json)
    if options.as_json:
        print_json(_document(plan, finished, options.dry_run))
    elif not options.dry_run:
        _print_outcome(plan, finished, shown)
    _leave(plan, finished)


async def run_plan(
    controller: Any, options: DeployOptions, plan: controller_pb2.DeployPlan, quiet: bool
) -> list[controller_pb2.HostEvent]:
    """Carry a plan out as a rollout in the order of the options; each host's last event."""
    request = controller_pb2.DeployRequest(
        plan_id=plan.plan_id, canary=options.order.canary, strategy=strategy_of(options.order)
    )
    return await follow_events(controller.Deploy(request), quiet=quiet)


async def plan_of(controller: Any, options: DeployOptions) -> controller_pb2.DeployPlan:
    """With --wait, the first plan that no bench stands in the way of."""
    request, said = _request(options), ""
    while True:
        plan: controller_pb2.DeployPlan = await controller.PlanDeploy(request)
        leased = [f"{host.host}: {host.problem.message}" for host in plan.hosts if host.problem.code == "leased"]
        if not leased or not options.wait or options.dry_run:
            return plan
        if "; ".join(leased) != said:
            said = "; ".join(leased)
            print(f"waiting: {said}", file=sys.stderr)
        await asyncio.sleep(LEASE_POLL_SECONDS)


def _catches_up(host: controller_pb2.HostPlan, options: DeployOptions) -> bool:
    away = host.action == controller_pb2.PLAN_ACTION_FAIL and host.problem.code == "host-unreachable"
    return options.order.catch_up and away


def _request(options: DeployOptions) -> controller_pb2.PlanDeployRequest:
    return controller_pb2.PlanDeployRequest(
        model=options.model,
        pattern=options.pattern,
        backend=options.backend,
        backend_version=options.backend_version,
        quantization=options.quantization,
        context_length=options.context_length,
        port=options.port,
        max_parallel=options.max_parallel,
        repository=options.repository,
        engine_path=options.engine_path,
        speculative=options.speculative,
        bind_address=options.bind_address,
        api_key=options.api_key,
        kv_cache_type=options.kv_cache_type,
        flash_attention=options.flash_attention,
        tensor_parallel=options.tensor_parallel,
        memory_fraction=options.memory_fraction,
        dtype=options.dtype,
        vision=options.vision,
        service_name=options.service_name,
        offline_folder=options.offline_folder,
        run_installer=options.run_installer,
    )


def _document(plan: controller_pb2.DeployPlan, finished: list[Any], dry_run: bool) -> dict[str, Any]:
    document: dict[str, Any] = {"plan_id": plan.plan_id, "plan": [plain(host) for host in plan.hosts]}
    if not dry_run:
        document["hosts"] = [outcome(event) for event in finished]
    return document


def _print_outcome(plan: controller_pb2.DeployPlan, finished: list[Any], stream: TextIO) -> None:
    rows, forwards = [], []
    for event in finished:
        result = outcome(event)["result"]
        if result:
            forwards += [result["forward"]] if result["forward"] else []
            answer = " ".join(result["answer"].split())
            rows.append((event.host, result["endpoint"], result["model"], f"{result['seconds']:.1f} s", answer or "-"))
    if rows:
        print(file=stream)
        print_table(RESULT_COLUMNS, rows, stream=stream)
    if forwards:
        print("127.0.0.1 is each host's own; to reach one from here:", *forwards, sep="\n  ", file=stream)
    if plan.hosts and all(host.action == controller_pb2.PLAN_ACTION_KEEP for host in plan.hosts):
        print("nothing to change", file=stream)
    for event in finished:
        if event.HasField("problem"):
            report(f"{event.host}: {event.problem.message}", event.problem.remedy, event.problem.tail)


def _leave(plan: controller_pb2.DeployPlan, finished: list[Any]) -> None:
    if any(host.action == controller_pb2.PLAN_ACTION_FAIL for host in plan.hosts):
        raise typer.Exit(SOME_HOST_FAILED)
    leave_with(finished)
    if any(host.action == controller_pb2.PLAN_ACTION_REFUSE for host in plan.hosts):
        raise typer.Exit(REFUSED)
