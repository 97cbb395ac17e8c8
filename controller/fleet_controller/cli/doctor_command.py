"""What `fleet doctor` does: checks here and on every host; a failed one says what to do."""

import os
import shutil
import sys

import typer

from fleet_controller.cli.client import call
from fleet_controller.cli.failures import SOME_HOST_FAILED, CommandFailure
from fleet_controller.cli.hosts_command import fetch_reports
from fleet_controller.cli.output import GREEN, RED, YELLOW, gibibytes, print_json, print_table
from fleet_controller.operations.checks import Check, check_host
from fleet_controller.operations.reports import HostReport
from fleet_controller.service.protocol import software_version
from fleet_controller.service.resident import find_resident
from fleet_controller.settings import Settings, UnsafeFolderError, private_folder
from fleet_controller.wire import from_wire
from fleet_inventory.base import InventoryError
from fleet_inventory.hosts import load_inventory

HERE = "here"
LEAST_FREE_BYTES = 1 << 30
STYLES = {"ok": GREEN, "warning": YELLOW, "failed": RED}


def run_doctor(pattern: str, as_json: bool) -> None:
    """Exit code 1 where a check failed; warnings leave it 0."""
    settings = Settings.from_environment()
    checks = [(HERE, check) for check in check_controller(settings)]
    if settings.hosts_file.exists() and not any(check.name == "hosts.yaml" and check.failed for _, check in checks):
        try:
            for report in call(fetch_reports(pattern, refresh=True)):
                found = check_host(from_wire(HostReport, report), software_version())
                checks += [(report.host, check) for check in found]
        except CommandFailure as error:
            checks.append((HERE, Check("hosts", "failed", error.message, error.remedy)))
    if as_json:
        print_json({"checks": [{"where": where, **vars(check)} for where, check in checks]})
    else:
        _print(checks)
    if any(check.failed for _, check in checks):
        raise typer.Exit(SOME_HOST_FAILED)


def _print(checks: list[tuple[str, Check]]) -> None:
    rows = [(where, check.name, check.state, check.detail) for where, check in checks]
    print_table(("WHERE", "CHECK", "STATE", "WHAT"), rows, STYLES)
    for where, check in checks:
        if check.remedy and check.state != "ok":
            print(f"{where}: {check.name}: {check.state}\n  next: {check.remedy}", file=sys.stderr)


def check_controller(settings: Settings) -> list[Check]:
    """What must hold on this machine before any host is asked."""
    return [
        Check("python", "ok", f"{sys.version_info.major}.{sys.version_info.minor}, fleet {software_version()}"),
        _hosts_file(settings),
        _state_folder(settings),
        _ssh(),
        _resident(settings),
    ]


def _hosts_file(settings: Settings) -> Check:
    try:
        count = len(load_inventory(settings.hosts_file).hosts)
    except InventoryError as error:
        first, *rest = str(error).splitlines()
        more = f" (and {len(rest)} more)" if rest else ""
        missing = not settings.hosts_file.exists()
        remedy = "run: fleet init" if missing else f"correct {settings.hosts_file}"
        return Check("hosts.yaml", "failed", first + more, remedy)
    if count == 0:
        return Check("hosts.yaml", "warning", f"{settings.hosts_file} has no hosts", "add your hosts to it")
    return Check("hosts.yaml", "ok", f"{count} host{'' if count == 1 else 's'} in {settings.hosts_file}")


def _state_folder(settings: Settings) -> Check:
    try:
        private_folder(settings.state_dir)
        private_folder(settings.runtime_dir)
    except (UnsafeFolderError, OSError) as error:
        return Check("state", "failed", str(error), "make it yours, or set FLEET_STATE_DIR and FLEET_RUNTIME_DIR")
    if not os.access(settings.state_dir, os.W_OK):
        return Check(
            "state", "failed", f"{settings.state_dir} cannot be written", "set FLEET_STATE_DIR to another folder"
        )
    free = shutil.disk_usage(settings.state_dir).free
    if free < LEAST_FREE_BYTES:
        return Check("state", "warning", f"{gibibytes(free)} free in {settings.state_dir}", "free some space")
    return Check("state", "ok", f"{settings.state_dir}, {gibibytes(free)} free")


def _ssh() -> Check:
    found = shutil.which("ssh")
    agent = "with an agent" if os.environ.get("SSH_AUTH_SOCK") else "without an agent"
    if found is None:
        return Check("ssh", "warning", "no ssh client here", "fleet needs none, but its advice names ssh commands")
    return Check("ssh", "ok", f"{found}, {agent}")


def _resident(settings: Settings) -> Check:
    present = find_resident(settings)
    if present is None:
        return Check("controller", "ok", "none resident; each command starts its own")
    return Check("controller", "ok", f"resident, pid {present.pid}")
