"""What `fleet rollout ...` does."""

import sys
import time
from collections.abc import Callable, Collection
from typing import Any

import typer

from fleet_controller.cli.client import call, connected_controller, typed_command
from fleet_controller.cli.events import finish_events, follow_events
from fleet_controller.cli.failures import UsageFailure
from fleet_controller.cli.messages import plain
from fleet_controller.cli.output import confirm, duration, print_json, print_table
from fleet_proto.v1 import controller_pb2

LIST_COLUMNS = ("ROLLOUT", "WHAT", "STATE", "HOSTS", "BEGUN")
SHOW_COLUMNS = ("WAVE", "HOST", "STATE", "BEFORE", "AFTER")
ACTIONS = {
    "watch": controller_pb2.ROLLOUT_ACTION_WATCH,
    "pause": controller_pb2.ROLLOUT_ACTION_PAUSE,
    "resume": controller_pb2.ROLLOUT_ACTION_RESUME,
    "abort": controller_pb2.ROLLOUT_ACTION_ABORT,
    "undo": controller_pb2.ROLLOUT_ACTION_UNDO,
}
LEFT = ("waiting", "failed", "away", "changing")
TOUCHED = ("changing", "changed", "failed", "undoing", "undo failed")


def run_list(as_json: bool) -> None:
    call(_list(as_json))


async def _list(as_json: bool) -> None:
    async with connected_controller() as controller:
        found = (await controller.ListRollouts(controller_pb2.ListRolloutsRequest())).rollouts
    if as_json:
        print_json({"rollouts": [plain(rollout) for rollout in found]})
        return
    if not found:
        print("no rollout yet; each `fleet deploy` is one", file=sys.stderr)
        return
    now = time.time()
    rows = [
        (str(one.number), one.title, _state(one), one.summary, f"{duration(now - one.created_unix_ms / 1000)} ago")
        for one in found
    ]
    print_table(LIST_COLUMNS, rows)


async def tell_rollouts_under_way(controller: Any, hosts: Collection[str], consequence: str) -> None:
    """One line on stderr for each rollout that somebody is at on one of these hosts."""
    found = (await controller.ListRollouts(controller_pb2.ListRolloutsRequest())).rollouts
    for one in found:
        shared = [host.host for host in one.hosts if host.host in hosts]
        if one.state in ("running", "undoing") and one.carried_out and shared:
            where = ", ".join(shared)
            said = f"rollout {one.number} ({one.title}) is {one.state} on {where}, {one.summary}: {consequence}"
            print(said, file=sys.stderr)


def run_show(number: int | None, as_json: bool) -> None:
    call(_show(number, as_json))


async def _show(number: int | None, as_json: bool) -> None:
    async with connected_controller() as controller:
        found = await _one(controller, number)
    if as_json:
        print_json(plain(found))
    else:
        print_rollout(found)


async def _one(
    controller: Any, number: int | None, fits: Callable[[controller_pb2.RolloutInfo], bool] = lambda found: True
) -> controller_pb2.RolloutInfo:
    """A rollout by number, or the newest that fits; where none does, the newest."""
    request = controller_pb2.ListRolloutsRequest(number=number)
    reply: controller_pb2.ListRolloutsReply = await controller.ListRollouts(request)
    if not reply.rollouts:
        raise UsageFailure("there is no rollout yet", "each `fleet deploy` is one")
    return next(filter(fits, reply.rollouts), reply.rollouts[0])


def print_rollout(found: controller_pb2.RolloutInfo) -> None:
    print(f"rollout {found.number}: {found.title}, {_state(found)}: {found.summary}")
    print(f"  {order_in_words(found.strategy)}")
    rows = [
        (str(host.wave + 1), host.host, host.phase, host.before or "-", host.after or "-")
        for host in sorted(found.hosts, key=lambda one: one.wave)
    ]
    print_table(SHOW_COLUMNS, rows)
    for host in found.hosts:
        if host.HasField("problem"):
            print(f"{host.host}: {host.problem.message}")
            if host.problem.remedy:
                print(f"  next: {host.problem.remedy}")
    for line in _next(found):
        print(line)


def _state(found: controller_pb2.RolloutInfo) -> str:
    """A rollout that nobody is at any more says so: its process died. An undo that has a reason came to its end."""
    if found.state in ("running", "undoing") and not found.carried_out and not found.reason:
        return f"{found.state}, cut off"
    return f"{found.state} ({found.reason})" if found.reason else found.state


def _next(found: controller_pb2.RolloutInfo) -> list[str]:
    number, lines = found.number, []
    if _has_hosts_left(found) and not found.carried_out:
        lines.append(f"go on: fleet rollout resume {number}")
    if any(_touched(host) for host in found.hosts) and found.state != "superseded" and not found.carried_out:
        lines.append(f"take back: fleet rollout undo {number}")
    return lines


def _has_hosts_left(found: controller_pb2.RolloutInfo) -> bool:
    """Whether there is something to resume."""
    left = any(host.phase in LEFT for host in found.hosts)
    return left and found.state in ("running", "paused", "stopped", "aborted", "done")


def _touched(host: controller_pb2.RolloutHostInfo) -> bool:
    """Whether an undo has to do with the host: also one that waits to be changed a second time."""
    return host.phase in TOUCHED or (host.phase in ("waiting", "away") and bool(host.before))


def order_in_words(strategy: controller_pb2.RolloutStrategy) -> str:
    """As "canary gpu1 (must answer); waves of 25 %; 2 at a time; a failed host stops it"."""
    parts = []
    if strategy.canaries:
        gate = "golden bench" if strategy.gate == "golden" else "must answer"
        parts.append(f"canary {', '.join(strategy.canaries)} ({gate})")
    if strategy.wave_label:
        parts.append(f"a wave for each {strategy.wave_label}")
    elif 0 < strategy.wave_percent < 100:
        parts.append(f"waves of {strategy.wave_percent:g} %")
    else:
        parts.append("then all others at once" if strategy.canaries else "all at once")
    if strategy.max_unavailable:
        parts.append(f"{strategy.max_unavailable} at a time")
    failures = strategy.max_failures
    parts.append(f"more than {failures} failed hosts stop it" if failures else "a failed host stops it")
    if strategy.catch_up:
        parts.append("hosts that are away catch up")
    return "; ".join(parts)


def run_action(action: str, number: int | None, yes: bool, as_json: bool, dry_run: bool = False) -> None:
    """Exit code 1 where a host failed."""
    interrupted = typed_command() if action in ("resume", "undo", "watch") else ""
    call(_act(action, number, yes, as_json, dry_run), when_interrupted=interrupted)


async def _act(action: str, number: int | None, yes: bool, as_json: bool, dry_run: bool) -> None:
    async with connected_controller() as controller:
        if action in ("undo", "resume"):
            # An undo that is said twice must not take back one rollout more: it is always of the newest.
            found = await _one(controller, number, _has_hosts_left if action == "resume" else lambda found: True)
            number = found.number
            _demand_undoable(action, found)
            _print_intent(action, found, stream=sys.stderr if as_json or not dry_run else sys.stdout)
            if dry_run:
                if as_json:
                    print_json(plain(found))
                return
            if not confirm(f"{action.capitalize()} rollout {number}?", yes):
                raise typer.Exit(0)
        request = controller_pb2.ChangeRolloutRequest(number=number, action=ACTIONS[action])
        finished = await follow_events(controller.ChangeRollout(request), quiet=as_json)
    if not finished and not as_json:
        print("nothing was left to do", file=sys.stderr)
    finish_events(finished, as_json)


def _demand_undoable(action: str, found: controller_pb2.RolloutInfo) -> None:
    """Before anybody is asked, and in a dry run, too. Raises UsageFailure."""
    if action == "undo" and found.state in ("undone", "superseded"):
        message = f"rollout {found.number} is {found.state}: there is nothing to undo"
        raise UsageFailure(message, f"fleet rollout show {found.number}")


def _print_intent(action: str, found: controller_pb2.RolloutInfo, stream: Any) -> None:
    print(f"rollout {found.number}: {found.title}, {_state(found)}", file=stream)
    for host in found.hosts:
        if action == "undo" and _touched(host):
            print(f"  {host.host}: {host.after or 'unknown'} -> {host.before or 'as it is'}", file=stream)
        elif action == "resume" and host.phase in LEFT:
            print(f"  {host.host}: {host.phase} -> {host.after or 'planned when it answers'}", file=stream)
