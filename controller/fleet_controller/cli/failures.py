"""From an exception to what a user sees: what happened, what to do next, and an exit code."""

import asyncio
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Any

OK, SOME_HOST_FAILED, WRONG_USAGE, REFUSED, INTERRUPTED = 0, 1, 2, 3, 130
# Does not fit, busy, policy: what a plan refuses, and what the agent refuses right before the launch.
REFUSAL_CODES = frozenset(
    {
        "does-not-fit",
        "busy",
        "leased",
        "too-many-services",
        "port-not-allowed",
        "device-busy",
        "memory-short",
        "engine-in-use",
        "no-api-key",
        "rollout-busy",
        "pull-busy",
    }
)


class CommandFailure(Exception):
    """A command ends here. `remedy` is what the user can do next."""

    def __init__(self, message: str, remedy: str = "", exit_code: int = SOME_HOST_FAILED) -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy
        self.exit_code = exit_code


class UsageFailure(CommandFailure):
    def __init__(self, message: str, remedy: str = "") -> None:
        super().__init__(message, remedy, WRONG_USAGE)


class Detached(CommandFailure):
    """The user pressed Ctrl-C: what runs on the hosts goes on."""

    def __init__(self, message: str, remedy: str) -> None:
        super().__init__(message, remedy, INTERRUPTED)


def report(message: str, remedy: str = "", tail: Sequence[str] = ()) -> None:
    """Print `error: ...` and, where something can be done, `next: ...` to stderr; then what the program said."""
    print(f"error: {message}", file=sys.stderr)
    if remedy:
        print(f"  next: {remedy}", file=sys.stderr)
    for line in tail:
        print(f"  | {line}", file=sys.stderr)


def print_failure(failure: CommandFailure) -> None:
    """The one document of a command that was asked for `--json` and had nothing else to say."""
    from fleet_controller.cli.output import print_json

    error = {"message": failure.message, "remedy": failure.remedy, "exit_code": failure.exit_code}
    print_json({"error": error})


def exit_code_of(error: BaseException, as_json: bool = False) -> int:
    """Print the error for a person, with `as_json` on stdout as well, and return the process's exit code.

    Commands print their own document last, so what is raised before that leaves stdout to this one.
    """
    if as_json and isinstance(error, CommandFailure):
        print_failure(error)
    if isinstance(error, Detached):
        print(f"\n{error.message}", file=sys.stderr)
        print(f"  next: {error.remedy}", file=sys.stderr)
        return error.exit_code
    if isinstance(error, CommandFailure):
        report(error.message, error.remedy)
        return error.exit_code
    if isinstance(error, KeyboardInterrupt | asyncio.CancelledError):
        print("\ninterrupted", file=sys.stderr)
        return INTERRUPTED
    if isinstance(error, BrokenPipeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the interpreter complains while it flushes
        return OK
    return _unexpected(error)


def _unexpected(error: BaseException) -> int:
    """A defect of ours: one line for the user, the trace in a file for us."""
    from fleet_controller.settings import Settings

    text = "".join(traceback.format_exception(error))
    lines = str(error).strip().splitlines()
    summary = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
    if isinstance(error, OSError):
        report(f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}")
        return SOME_HOST_FAILED
    try:
        target = Settings.from_environment().state_dir / "last-error.txt"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")
        report(f"fleet failed unexpectedly: {summary}", f"please report it with {target}")
    except OSError:
        report(f"fleet failed unexpectedly: {summary}", "please report it with what you typed")
    return SOME_HOST_FAILED


def from_rpc_error(error: Any) -> CommandFailure:
    """The failure that a grpc.aio.AioRpcError carries; its trailing metadata may hold a Problem."""
    import grpc

    from fleet_proto.v1.common_pb2 import Problem

    problem = Problem()
    for key, value in error.trailing_metadata() or ():
        if key == "fleet-problem-bin":
            problem.ParseFromString(value)
    message = problem.message or error.details() or str(error.code())
    if error.code() == grpc.StatusCode.INVALID_ARGUMENT:
        return UsageFailure(message, problem.remedy)
    if error.code() == grpc.StatusCode.UNIMPLEMENTED:
        return CommandFailure("the resident controller does not know this call", "run: fleet controller stop")
    if error.code() == grpc.StatusCode.UNAVAILABLE and not problem.message:
        return CommandFailure(
            "the controller went away in the middle; what runs on the hosts goes on",
            "repeat the same command: it finds the work where it is",
        )
    code = REFUSED if problem.code in REFUSAL_CODES else SOME_HOST_FAILED
    return CommandFailure(message, problem.remedy, code)
