"""What `fleet forward` does."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass

import typer

from fleet_controller.cli.failures import SOME_HOST_FAILED, CommandFailure, UsageFailure, report
from fleet_controller.cli.forward_view import forward_document, print_forwards
from fleet_controller.cli.output import print_json
from fleet_controller.forwarding.manage import ForwardError, forwards_lock, stop_forward
from fleet_controller.forwarding.record import Forward, forwards_folder, list_forwards
from fleet_controller.settings import Settings, UnsafeFolderError


@dataclass(frozen=True)
class ForwardOptions:
    model: str
    pattern: str
    port: int | None
    show: bool
    stop: bool
    everything: bool
    as_json: bool


def run_forward(options: ForwardOptions) -> None:
    """List, stop or start forwards, as the options say."""
    _demand_sense(options)
    settings = Settings.from_environment()
    try:
        if options.show:
            _list(options, list_forwards(settings))
        elif options.stop:
            _stop(options, settings)
        else:
            from fleet_controller.cli.forward_start import StartOptions, start

            start(StartOptions(options.model, options.pattern, options.port, options.as_json), settings)
    except ForwardError as error:
        raise CommandFailure(error.message, error.remedy) from None
    except UnsafeFolderError as error:
        raise CommandFailure(str(error)) from None


def _demand_sense(options: ForwardOptions) -> None:
    if options.show and (options.stop or options.port):
        raise UsageFailure("--list goes with no other wish", "fleet forward --list")
    if options.stop and bool(options.model) == options.everything:
        raise UsageFailure("name a model, or give --all", "fleet forward --list shows what is forwarded")
    if options.everything and not options.stop:
        raise UsageFailure("--all belongs to --stop", "name one model; fleet ps shows what runs")
    if options.stop and options.port:
        raise UsageFailure("--port is of no use with --stop")
    if not options.model and not options.stop and not options.show:
        raise UsageFailure("name a model", "fleet ps shows what runs, fleet forward --list what is forwarded")


def _list(options: ForwardOptions, forwards: Sequence[Forward]) -> None:
    chosen = _chosen(options, forwards)
    if options.as_json:
        print_json({"forwards": [forward_document(forward) for forward in chosen]})
        return
    print_forwards(chosen)
    if not chosen:
        print("nothing is forwarded", file=sys.stderr)


def _stop(options: ForwardOptions, settings: Settings) -> None:
    folder = forwards_folder(settings)
    stopped, failed = [], []
    with forwards_lock(folder):
        forwards = list_forwards(settings)
        chosen = _chosen(options, forwards)
        for forward in chosen:
            try:
                ran = stop_forward(folder, forward)
            except ForwardError as error:
                report(error.message, error.remedy)
                failed.append(forward)
                continue
            stopped.append(forward)
            print(f"{forward.name}: {'stopped' if ran else 'forgotten; it had ended'}", file=sys.stderr)
    if options.as_json:
        print_json({"stopped": [{"model": one.model, "host": one.host, "base_url": one.base_url} for one in stopped]})
    if failed:
        raise typer.Exit(SOME_HOST_FAILED)
    if not chosen and options.model:
        known = ", ".join(sorted({forward.model for forward in forwards}))
        print(f"{options.model} is not forwarded; {f'forwarded: {known}' if known else 'nothing is'}", file=sys.stderr)
    elif not chosen:
        print("nothing is forwarded", file=sys.stderr)


def _chosen(options: ForwardOptions, forwards: Sequence[Forward]) -> list[Forward]:
    """The forwards that the options mean. A pattern is matched against names alone: a host may have left hosts.yaml."""
    found = [one for one in forwards if not options.model or one.model == options.model]
    if options.pattern == "all":
        return found
    from fleet_inventory.base import InventoryError
    from fleet_inventory.hosts import Host, load_inventory
    from fleet_inventory.patterns import PatternError, select

    try:
        inventory = load_inventory(Settings.from_environment().hosts_file).hosts
    except InventoryError:
        inventory = {}  # what is forwarded can be stopped all the same
    known = [
        *inventory.values(),
        *(Host(name=one.host, address=one.host) for one in found if one.host not in inventory),
    ]
    try:
        names = {host.name for host in select(options.pattern, known)}
    except PatternError as error:
        raise UsageFailure(str(error)) from None
    return [one for one in found if one.host in names]
