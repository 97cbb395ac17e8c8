"""What `fleet controller ...` does."""

import time
from typing import Any

from fleet_controller.cli.client import call
from fleet_controller.cli.failures import SOME_HOST_FAILED, CommandFailure
from fleet_controller.cli.output import duration, print_json
from fleet_controller.service.resident import ResidentError, find_resident, start_resident, stop_resident
from fleet_controller.settings import Settings, UnsafeFolderError


def run_start(as_json: bool) -> None:
    """Start it, unless it runs; either way the exit code is 0."""
    settings = Settings.from_environment()
    try:
        identity, started = start_resident(settings)
    except (ResidentError, UnsafeFolderError) as error:
        raise CommandFailure(str(error), getattr(error, "remedy", "")) from None
    if as_json:
        print_json({"running": True, "started": started, "pid": identity.pid, "log": str(settings.log_file)})
    else:
        state = "started" if started else "runs already; nothing to change"
        print(f"controller {state} (pid {identity.pid}, log {settings.log_file})")


def run_stop(as_json: bool) -> None:
    """Stop it where it runs; either way the exit code is 0."""
    try:
        stopped = stop_resident(Settings.from_environment())
    except ResidentError as error:
        raise CommandFailure(str(error), error.remedy) from None
    if as_json:
        print_json({"running": False, "stopped": stopped is not None})
    elif stopped is None:
        print("no controller runs; nothing to change")
    else:
        print(f"controller stopped (pid {stopped.pid}); models and jobs on the hosts go on")


def run_status(as_json: bool) -> None:
    """Exit code 0 where it runs, 1 where it does not or does not answer."""
    import typer

    settings = Settings.from_environment()
    if find_resident(settings) is None:
        if as_json:
            print_json({"running": False})
        else:
            print("no controller runs; each command starts its own (start one: fleet controller start)")
        raise typer.Exit(SOME_HOST_FAILED)
    status = call(_ask(settings))
    if as_json:
        print_json(status)
        return
    uptime = duration(time.time() - status["started_unix_ms"] / 1000)
    print(f"controller runs since {uptime} (pid {status['pid']}, fleet {status['version']})")
    print(f"{status['warm_connections']} warm connection{'' if status['warm_connections'] == 1 else 's'} to agents")
    print(f"log {status['log']}")


async def _ask(settings: Settings) -> dict[str, Any]:
    from fleet_controller.service.client import answering

    reply = await answering(settings.socket_path)
    if reply is None:
        raise CommandFailure("the controller runs but does not answer", "run: fleet controller stop")
    return {
        "running": True,
        "pid": reply.pid,
        "version": reply.software_version,
        "started_unix_ms": reply.started_unix_ms,
        "warm_connections": reply.warm_connections,
        "log": str(settings.log_file),
        "socket": str(settings.socket_path),
    }
