"""Why a server ended or will never serve, from its exit code and what it printed."""

import re
import signal

from fleet_agent.causes.recognise import find_cause, shown_lines
from fleet_agent.causes.servers import SERVER_CAUSES
from fleet_agent.services.model import Problem

# A server whose front still answers /health although nothing is behind it.
_DEAD_BEHIND_FRONT = re.compile(r"mlx_lm\.server generation thread died")
_OUR_NOTE = "[fleet] "


def hopeless(text: str) -> Problem | None:
    """Why a server that answers can serve nothing all the same; None where its log says no such thing."""
    known = recognise(text)
    if known is not None and (known[1] or _DEAD_BEHIND_FRONT.search(text)):
        return known[0]
    return None


def recognise(text: str) -> tuple[Problem, bool] | None:
    """The problem that `text` (a log's tail) tells of, and whether it is permanent; None where nothing is known."""
    known = find_cause(SERVER_CAUSES, text)
    if known is None:
        return None
    return Problem(known.code, known.message, known.remedy, _said(text, known.line)), known.permanent


def exit_problem(service: str, code: int | None, text: str) -> Problem:
    """How a server ended and why, from its exit code (None: not known) and its log since the start."""
    how = _describe_exit(code)
    known = recognise(text)
    if known is not None:
        problem = known[0]
        return Problem(problem.code, f"{how}: {problem.message}", problem.remedy, problem.tail)
    said = _said(text)
    return Problem("exited", how if said else f"{how} and said nothing", f"read its log: fleet logs {service}", said)


def _said(text: str, telling: str = "") -> tuple[str, ...]:
    return shown_lines([line for line in text.splitlines() if not line.startswith(_OUR_NOTE)], telling)


def _describe_exit(code: int | None) -> str:
    if code is None:
        return "it ended"
    if code >= 0:
        return f"it ended with exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    hint = " (killed from outside, or by the kernel for want of memory)" if -code == signal.SIGKILL else ""
    return f"it was ended by {name}{hint}"
