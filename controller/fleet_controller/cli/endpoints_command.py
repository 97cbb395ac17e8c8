"""What `fleet endpoints` does."""

import sys
from collections.abc import Sequence

import typer

from fleet_controller.cli.client import call
from fleet_controller.cli.failures import SOME_HOST_FAILED, CommandFailure, UsageFailure, report
from fleet_controller.cli.listing import fetch_services
from fleet_controller.cli.output import print_json, print_table
from fleet_controller.endpoints.addresses import served_models
from fleet_controller.endpoints.formats import as_environment, as_json, as_litellm
from fleet_controller.endpoints.reach import Endpoint, reachable
from fleet_controller.forwarding.record import list_forwards
from fleet_controller.operations.reports import HostServices
from fleet_controller.settings import Settings

FORMATS = ("table", "json", "litellm", "openai-env")
COLUMNS = ("MODEL", "HOST", "VIA", "KEY", "NAME IN REQUESTS", "ADDRESS")
APART_COLUMNS = ("NOT REACHABLE FROM HERE", "HOST", "WHY", "NEXT")


def run_endpoints(models: tuple[str, ...], pattern: str, form: str) -> None:
    """Print what answers from here; exit code 1 where a host did not answer, so that the list may lack something."""
    if form not in FORMATS:
        raise UsageFailure(f"no format {form!r}; there are {', '.join(FORMATS)}")
    hosts, found = call(_gather(models, pattern))
    silent = [host for host in hosts if host.problem is not None]
    _demand_running(models, hosts, found, silent)
    working = [endpoint for endpoint in found if endpoint.base_url]
    apart = [endpoint for endpoint in found if not endpoint.base_url]
    if form == "json":
        print_json(
            {
                "endpoints": [as_json(endpoint) for endpoint in working],
                "not_reachable": [as_json(endpoint) | {"next": _next(endpoint)} for endpoint in apart],
                "problems": [{"host": host.host, **host.problem.model_dump()} for host in silent if host.problem],
            }
        )
    elif form == "table":
        _print_tables(working, apart)
    for host in silent:
        if host.problem is not None:
            report(f"{host.host}: {host.problem.message}", host.problem.remedy)
    if form == "litellm":
        _tell_apart(apart)
        _demand_any(working, apart)
        sys.stdout.write(as_litellm(working))
    elif form == "openai-env":
        sys.stdout.write(as_environment(_only_one(working, apart)))
        return  # the one that was asked for is there: what another host serves does not matter
    if silent:
        raise typer.Exit(SOME_HOST_FAILED)


async def _gather(models: tuple[str, ...], pattern: str) -> tuple[list[HostServices], list[Endpoint]]:
    hosts = await fetch_services(pattern)
    served = served_models(hosts, list_forwards(Settings.from_environment()))
    return hosts, await reachable([one for one in served if not models or one.model in models])


def _demand_running(
    models: tuple[str, ...], hosts: Sequence[HostServices], found: Sequence[Endpoint], silent: Sequence[HostServices]
) -> None:
    """Raises UsageFailure for a model that no host runs, where every host could be asked."""
    missing = sorted(set(models) - {endpoint.served.model for endpoint in found})
    if missing and not silent:
        known = sorted({status.spec.name for host in hosts for status in host.services if status.process is not None})
        there_is = f"running: {', '.join(known)}" if known else "no model runs on these hosts"
        raise UsageFailure(f"{', '.join(missing)} does not run; {there_is}", "fleet ps shows every model and its state")


def _print_tables(working: Sequence[Endpoint], apart: Sequence[Endpoint]) -> None:
    if working:
        print_table(COLUMNS, [_row(endpoint) for endpoint in working])
    if apart:
        if working:
            print()
        rows = [(one.served.model, one.served.host, one.reason, _next(one)) for one in apart]
        print_table(APART_COLUMNS, rows)
    if not working and not apart:
        print("no model runs on these hosts", file=sys.stderr)


def _row(endpoint: Endpoint) -> tuple[str, ...]:
    served = endpoint.served
    key = (str(served.key or "") or "needed") if endpoint.needs_key else "-"
    via = endpoint.via.value if endpoint.via else "-"
    return served.model, served.host, via, key, served.served_model_name, endpoint.base_url


def _next(endpoint: Endpoint) -> str:
    served = endpoint.served
    if not served.ways:
        return f"fleet forward {served.model} --hosts {served.host}"
    return f"fleet logs {served.model} --hosts {served.host}"


def _tell_apart(apart: Sequence[Endpoint]) -> None:
    for one in apart:
        print(
            f"left out: {one.served.model} on {one.served.host}, not reachable from here ({one.reason}); {_next(one)}",
            file=sys.stderr,
        )


def _demand_any(working: Sequence[Endpoint], apart: Sequence[Endpoint]) -> None:
    if not working:
        remedy = _next(apart[0]) if apart else "fleet ps shows what runs"
        raise CommandFailure("no model answers at an address that can be reached from here", remedy)


def _only_one(working: Sequence[Endpoint], apart: Sequence[Endpoint]) -> Endpoint:
    """The endpoint of the only model; of several hosts that serve it the first by name."""
    _demand_any(working, apart)
    names = sorted({endpoint.served.model for endpoint in working})
    if len(names) > 1:
        raise UsageFailure(
            f"--format openai-env is for one model; these answer: {', '.join(names)}", "name one of them"
        )
    return working[0]
