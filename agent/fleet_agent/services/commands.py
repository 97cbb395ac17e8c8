"""Tools of the host that a service needs run before each start and after its end, each to its own end.

Such a tool may start a daemon that outlives it and serves other people, too (`lms daemon up` starts LM Studio's). So
what runs here carries none of the markers by which a server's processes are found and ended, and only the tool itself
is ever signalled, never what it started.
"""

import os
import signal
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from fleet_agent.causes.recognise import shown_lines
from fleet_agent.process import ProcessIdentity, exit_code, forget, is_alive, send_signal, spawn, wait_gone
from fleet_agent.services.causes import recognise
from fleet_agent.services.launch import Launch
from fleet_agent.services.logs import ServiceLog
from fleet_agent.services.model import Problem

DEFAULT_LIMIT_SECONDS = 60.0
_GRACE_SECONDS = 5.0
_KILL_SECONDS = 10.0
_TAIL_LINES = 200


class CommandFailedError(Exception):
    """A command did not do its work. permanent: the same command will fail the same way."""

    def __init__(self, problem: Problem, permanent: bool) -> None:
        super().__init__(problem.message)
        self.problem = problem
        self.permanent = permanent


async def run_command(
    launch: Launch,
    limit_seconds: float,
    folder: Path,
    log: ServiceLog,
    started: Callable[[ProcessIdentity], None],
) -> None:
    """Runs a command to its end, both its streams into the service's log; limit_seconds 0 = 60 s.

    `started` is told whom it started, so that a crash of the agent leaves no stray. Cancelled, it asks the command to
    end and leaves at once: whoever cancels calls end_command(). Raises CommandFailedError, and OSError where nothing
    could be started or logged.
    """
    limit = limit_seconds or DEFAULT_LIMIT_SECONDS
    log.rotate_if_large()
    log.note(f"{datetime.now().astimezone().isoformat(timespec='seconds')} run: {' '.join(launch.argv)}")
    output = log.open_for_append()
    try:
        identity = spawn(launch.argv, launch.environment, cwd=folder, stdout=output, stderr=output)
    finally:
        os.close(output)
    try:
        started(identity)
        in_time = await wait_gone(identity, limit)
    except BaseException:
        send_signal(identity, signal.SIGTERM)
        raise
    code = exit_code(identity) if in_time else None
    await end_command(identity)
    if code != 0:
        how = f"did not end within {limit:g} s" if code is None else f"failed with exit code {code}"
        raise _failure(launch, how, log)


async def end_command(identity: ProcessIdentity) -> None:
    """Ends this one process where it still runs, with SIGTERM and then SIGKILL, and nothing that it started."""
    if is_alive(identity):
        send_signal(identity, signal.SIGTERM)
        if not await wait_gone(identity, _GRACE_SECONDS):
            send_signal(identity, signal.SIGKILL)
            await wait_gone(identity, _KILL_SECONDS)
    exit_code(identity)
    forget(identity)


def _failure(launch: Launch, how: str, log: ServiceLog) -> CommandFailedError:
    text = log.tail(_TAIL_LINES).decode(errors="replace")
    text = text[max(text.rfind("[fleet] "), 0) :].partition("\n")[2]
    command = " ".join((Path(launch.argv[0]).name, *launch.argv[1:]))
    known = recognise(text)
    if known is not None:
        problem, permanent = known
        return CommandFailedError(
            Problem(problem.code, f"`{command}` {how}: {problem.message}", problem.remedy, problem.tail), permanent
        )
    said = shown_lines(text.splitlines())
    message = f"`{command}` {how}" if said else f"`{command}` {how} and said nothing"
    return CommandFailedError(Problem("command-failed", message, "run it on the host by hand to see more", said), False)
