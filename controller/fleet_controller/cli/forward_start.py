"""What `fleet forward MODEL` does: finds the service, starts its forward, waits until the model answers through it."""

import asyncio
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import typer

from fleet_controller.cli.client import call, typed_command
from fleet_controller.cli.failures import SOME_HOST_FAILED, CommandFailure, Detached, UsageFailure, report
from fleet_controller.cli.forward_view import forward_document, service_of
from fleet_controller.cli.listing import fetch_services
from fleet_controller.cli.output import print_json
from fleet_controller.domain.services import ServiceState, ServiceStatus
from fleet_controller.endpoints.addresses import LOCAL_TRANSPORT, address_on_host, leads_to, ways_to
from fleet_controller.endpoints.reach import ask
from fleet_controller.forwarding.causes import FINAL_CODES, FORBIDDEN, cause_of, remedy_of
from fleet_controller.forwarding.manage import (
    forwards_lock,
    free_port,
    new_forward,
    start_forward,
    stop_forward,
    wait_until_up,
    why_not_free,
)
from fleet_controller.forwarding.record import (
    Forward,
    ForwardState,
    forwards_folder,
    list_forwards,
    log_path,
    record_path,
)
from fleet_controller.forwarding.ssh_command import forward_command, login_command
from fleet_controller.operations.reports import HostServices
from fleet_controller.settings import Settings
from fleet_inventory.base import InventoryError
from fleet_inventory.hosts import Host, load_inventory

UP_SECONDS = 30.0


@dataclass(frozen=True)
class StartOptions:
    model: str
    pattern: str
    port: int | None
    as_json: bool


@dataclass(frozen=True)
class Target:
    """The service that is to be reached, and its host."""

    host: HostServices
    service: ServiceStatus


def start(options: StartOptions, settings: Settings) -> None:
    """Says the address that there is, or makes one. Raises CommandFailure, ForwardError."""
    hosts = call(fetch_services(options.pattern))
    names = {host.host for host in hosts}
    present = [one for one in list_forwards(settings) if one.model == options.model and one.host in names]
    kept = next((one for one in present if one.is_kept_up), None)
    if kept is not None and _is_current(kept, hosts):
        _tell_present(options, kept)
        return
    target = _target(options, hosts, kept.host if kept is not None else "")
    direct = _direct(target)
    if direct:
        _tell_direct(options, target, direct)
        return
    earlier = next((one for one in present if one.host == target.host.host), None)
    folder = forwards_folder(settings)
    host = _host(settings, target.host.host)
    with forwards_lock(folder):
        forward = _begin(options, settings, target, host, earlier)
    try:
        up = wait_until_up(folder, forward, UP_SECONDS, lambda one: one.state is ForwardState.WAITING)
    except KeyboardInterrupt:
        raise Detached(
            f"detached: {forward.name} goes on connecting", f"to see it: fleet forward --list; again: {typed_command()}"
        ) from None
    _tell_started(options, folder, host, target, up)


def _is_current(forward: Forward, hosts: Sequence[HostServices]) -> bool:
    """Whether a forward still leads to its service, as far as the host could tell."""
    host = next(one for one in hosts if one.host == forward.host)
    if not host.reachable:
        return True
    service = service_of(host, forward.model)
    return service is not None and service.process is not None and leads_to(forward, service.spec)


def _tell_present(options: StartOptions, forward: Forward) -> None:
    if options.port not in (None, forward.local_port):
        raise UsageFailure(
            f"{forward.name} is forwarded already, to port {forward.local_port}",
            f"fleet forward --stop {forward.model}, then repeat: {typed_command()}",
        )
    _print(options, forward, forward.base_url, "forward", already=True)
    state = forward.present_state
    print(f"{forward.name} is forwarded already ({state.value}): {forward.base_url}", file=sys.stderr)
    if state is not ForwardState.UP:
        report(
            f"{forward.name} is not up now: {forward.message or state.value}", "fleet forward --list shows its tries"
        )
        raise typer.Exit(SOME_HOST_FAILED)


def _target(options: StartOptions, hosts: Sequence[HostServices], preferred: str) -> Target:
    """The first host by name where the model is ready, else where it runs. Raises CommandFailure, UsageFailure."""
    found = [
        Target(host, status) for host in sorted(hosts, key=lambda one: one.host)
        if (status := service_of(host, options.model)) is not None
    ]  # fmt: skip
    running = [one for one in found if one.service.process is not None and one.service.spec.port]
    ready = [one for one in running if one.service.state is ServiceState.READY]
    for one in (*ready, *running):
        if one.host.host == preferred:
            return one
    if ready or running:
        return (ready or running)[0]
    silent = [host for host in hosts if host.problem is not None]
    for host in silent:
        assert host.problem is not None
        report(f"{host.host}: {host.problem.message}", host.problem.remedy)
    if found:
        where = ", ".join(one.host.host for one in found)
        raise CommandFailure(f"{options.model} is deployed to {where} but does not run", "fleet ps shows why")
    if silent:
        raise CommandFailure(f"{options.model} was found on no host that answered", "fleet ps shows what runs")
    known = sorted({status.spec.name for host in hosts for status in host.services})
    there_is = f"deployed: {', '.join(known)}" if known else "no model is deployed on these hosts"
    raise UsageFailure(f"{options.model} is not deployed; {there_is}")


def _direct(target: Target) -> str:
    """The address that needs no forward from here; "" where there is none."""
    for way in ways_to(target.host, target.service.spec, None):
        if target.host.transport == LOCAL_TRANSPORT or isinstance(ask(way, target.service.spec.readiness.path), bool):
            return way.base_url
    return ""


def _tell_direct(options: StartOptions, target: Target, address: str) -> None:
    name = f"{options.model} on {target.host.host}"
    here = target.host.transport == LOCAL_TRANSPORT
    why = "runs on this machine" if here else "listens on its host's network"
    _print(options, None, address, "local" if here else "network", already=True, host=target.host.host)
    print(f"{name} {why}, so it needs no forward: {address}", file=sys.stderr)


def _host(settings: Settings, name: str) -> Host:
    try:
        found = load_inventory(settings.hosts_file).hosts.get(name)
    except InventoryError as error:
        raise UsageFailure(str(error)) from None
    if found is None:
        raise CommandFailure(f"{name} is no longer in {settings.hosts_file}", "repeat the command")
    return found


def _begin(options: StartOptions, settings: Settings, target: Target, host: Host, earlier: Forward | None) -> Forward:
    """Chooses the port and starts the forward; one that is there already, or leads elsewhere, gives way."""
    folder = forwards_folder(settings)
    spec = target.service.spec
    if earlier is not None:
        stop_forward(folder, earlier)
    others = frozenset(one.local_port for one in list_forwards(settings) if not one.is_elsewhere)
    if options.port is not None:
        reason = "belongs to another forward" if options.port in others else why_not_free(options.port)
        if reason:
            raise UsageFailure(f"port {options.port} {reason}", "choose another one with --port, or leave it out")
        port = options.port
    else:
        port = free_port(earlier.local_port if earlier is not None else spec.port, others)
    remote = address_on_host(spec.bind_address)
    argv = forward_command(host, port, remote, spec.port)
    return start_forward(folder, new_forward(options.model, host.name, port, (remote, spec.port), argv))


def _tell_started(options: StartOptions, folder: Path, host: Host, target: Target, forward: Forward) -> None:
    """Prints the address once the model answers through it; a forward that cannot work is taken away again."""
    if not forward.carries:
        _give_up(folder, host, forward, forward.cause, forward.message or "it did not come up in time")
    answer = asyncio.run(_first_answer(forward, target))
    if isinstance(answer, str):
        printed = log_path(record_path(folder, forward.model, forward.host))
        cause = cause_of(printed.read_text(encoding="utf-8", errors="replace") if printed.exists() else "", 0)
        if cause.code == FORBIDDEN:
            _give_up(folder, host, forward, cause.code, cause.message)
        report(f"{forward.name}: the forward is up, but the model does not answer through it: {answer}", "fleet ps")
    spec = target.service.spec
    _print(options, forward, forward.base_url, "forward", already=False)
    moved = "" if forward.local_port == spec.port else f" (port {spec.port} there)"
    print(f"{forward.name} is forwarded to {forward.base_url}{moved}", file=sys.stderr)
    print(f"it stays up until: fleet forward --stop {forward.model}", file=sys.stderr)
    if isinstance(answer, str):
        raise typer.Exit(SOME_HOST_FAILED)


async def _first_answer(forward: Forward, target: Target) -> bool | str:
    way = ways_to(target.host, target.service.spec, forward)[-1]
    return await asyncio.to_thread(ask, way, target.service.spec.readiness.path)


def _give_up(folder: Path, host: Host, forward: Forward, code: str, message: str) -> NoReturn:
    """A host that does not answer is no reason to stop trying: only what a person must mend is."""
    remedy = remedy_of(code, host.name, shlex.join(login_command(host)))
    if code in FINAL_CODES or not forward.is_kept_up:
        with forwards_lock(folder):
            stop_forward(folder, forward)
        raise CommandFailure(f"{forward.name} is not forwarded: {message}", remedy)
    stop = f"fleet forward --stop {forward.model}"
    raise CommandFailure(
        f"{forward.name} is not up yet: {message}; it goes on trying",
        f"{remedy}; fleet forward --list shows its tries, {stop} ends them",
    )


def _print(
    options: StartOptions, forward: Forward | None, address: str, via: str, already: bool, host: str = ""
) -> None:
    """stdout: the address alone, so that it can be taken by a script; or the document."""
    if not options.as_json:
        print(address)
        return
    print_json(
        {
            "model": options.model,
            "host": forward.host if forward else host,
            "base_url": address,
            "via": via,
            "changed": not already,
            "forward": forward_document(forward) if forward else None,
        }
    )
