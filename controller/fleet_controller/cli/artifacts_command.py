"""What `fleet artifacts ...` does."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TextIO

import typer

from fleet_controller.cli.client import call, connected_controller
from fleet_controller.cli.events import finish_events, follow_events, leave_with, outcome
from fleet_controller.cli.failures import SOME_HOST_FAILED, report
from fleet_controller.cli.messages import plain
from fleet_controller.cli.output import confirm, gibibytes, print_json, print_table
from fleet_controller.domain.artifacts import UNDO_OF_ROLLOUT
from fleet_proto.v1 import artifacts_pb2, controller_pb2

COLUMNS = ("HOST", "REPOSITORY", "REVISION", "SIZE", "BROUGHT BY", "USED BY")
GC_COLUMNS = ("HOST", "REPOSITORY", "REVISION", "FREES", "BROUGHT BY")


@dataclass(frozen=True)
class GcOptions:
    repositories: tuple[str, ...]
    pattern: str
    dry_run: bool
    yes: bool
    as_json: bool


def run_list(text: str, pattern: str, as_json: bool) -> None:
    """Exit code 1 where a host did not answer."""
    call(_list(text, pattern, as_json))


async def _list(text: str, pattern: str, as_json: bool) -> None:
    async with connected_controller() as controller:
        hosts = await _survey(controller, pattern)
    for host in hosts:
        kept = [one for one in host.artifacts if text.lower() in one.repository.lower()]
        del host.artifacts[:]
        host.artifacts.extend(kept)
    if as_json:
        print_json({"hosts": [plain(host) for host in hosts]})
    else:
        rows = [_row(host.host, artifact) for host in hosts for artifact in host.artifacts]
        if rows:
            print_table(COLUMNS, rows)
        else:
            print("no model files", file=sys.stderr)
    _report_silent(hosts, as_json)


async def _survey(controller: Any, pattern: str) -> list[controller_pb2.HostArtifacts]:
    stream = controller.ListArtifacts(controller_pb2.HostSelection(pattern=pattern))
    return sorted([host async for host in stream], key=lambda host: str(host.host))


def _row(host: str, artifact: artifacts_pb2.Artifact) -> tuple[str, ...]:
    return (
        host,
        artifact.repository,
        _revision(artifact),
        gibibytes(artifact.size_bytes),
        "fleet" if artifact.brought else "others",
        ", ".join([*artifact.services, *artifact.jobs]) or "-",
    )


def _revision(artifact: artifacts_pb2.Artifact) -> str:
    return " ".join([*artifact.revisions, artifact.commit[:12]])


def _report_silent(hosts: Sequence[controller_pb2.HostArtifacts], as_json: bool) -> None:
    silent = [host for host in hosts if host.HasField("problem")]
    for host in silent if not as_json else ():
        report(f"{host.host}: {host.problem.message}", host.problem.remedy)
    if silent:
        raise typer.Exit(SOME_HOST_FAILED)


def run_verify(repository: str, pattern: str, as_json: bool) -> None:
    """Exit code 1 where a file is damaged, or a host did not answer."""
    call(_verify(repository, pattern, as_json))


async def _verify(repository: str, pattern: str, as_json: bool) -> None:
    request = controller_pb2.ArtifactsRequest(pattern=pattern, repository=repository)
    async with connected_controller() as controller:
        finished = await follow_events(controller.VerifyArtifacts(request), quiet=as_json)
    finish_events(finished, as_json)


def run_gc(options: GcOptions) -> None:
    """Exit code 1 where a host failed or did not answer."""
    call(_gc(options))


async def _gc(options: GcOptions) -> None:
    finished: list[controller_pb2.HostEvent] = []
    async with connected_controller() as controller:
        hosts = await _survey(controller, options.pattern)
        doomed = removable(hosts, options.repositories)
        shown = sys.stderr if options.as_json else sys.stdout
        if not (options.as_json and options.dry_run):
            _print_doomed(doomed, options.repositories, hosts, shown)
        if doomed and not options.dry_run:
            freed = sum(artifact.own_bytes for artifacts in doomed.values() for artifact in artifacts)
            if not confirm(f"Remove them, {gibibytes(freed)} in all?", options.yes):
                raise typer.Exit(0)
            finished = await follow_events(controller.CollectArtifacts(_order(doomed)), quiet=options.as_json)
    if options.as_json:
        print_json(_document(doomed, finished, options.dry_run))
        leave_with(finished)
    elif finished:
        finish_events(finished, as_json=False)
    _report_silent(hosts, options.as_json)


def removable(
    hosts: Sequence[controller_pb2.HostArtifacts], repositories: Sequence[str]
) -> dict[str, list[artifacts_pb2.Artifact]]:
    """By host, what nobody uses: of the repositories that were named, else all that fleet itself brought.

    Files that only an undo would need go where they are named.
    """
    found: dict[str, list[artifacts_pb2.Artifact]] = {}
    for host in hosts:
        for artifact in host.artifacts:
            wanted = artifact.repository in repositories if repositories else artifact.brought
            if wanted and not _users(artifact, named=bool(repositories)):
                found.setdefault(host.host, []).append(artifact)
    return found


def _users(artifact: artifacts_pb2.Artifact, named: bool) -> list[str]:
    undo = UNDO_OF_ROLLOUT if named else None
    return [user for user in (*artifact.services, *artifact.jobs) if undo is None or not user.startswith(undo)]


def _print_doomed(
    doomed: dict[str, list[artifacts_pb2.Artifact]],
    repositories: Sequence[str],
    hosts: Sequence[controller_pb2.HostArtifacts],
    stream: TextIO,
) -> None:
    rows = [
        (host, one.repository, _revision(one), gibibytes(one.own_bytes), "fleet" if one.brought else "others")
        for host, artifacts in doomed.items()
        for one in artifacts
    ]
    if rows:
        print_table(GC_COLUMNS, rows, stream=stream)
    else:
        print("nothing to remove", file=stream)
    for host in hosts:
        for one in host.artifacts:
            users = _users(one, named=True)
            if one.repository in repositories and users:
                print(f"{host.host}: {one.repository} stays: {', '.join(users)} uses it", file=stream)
            elif one.repository in repositories and one.services:
                print(
                    f"{host.host}: {one.repository}: {one.services[0]} goes back to it, and could not then", file=stream
                )


def _order(doomed: dict[str, list[artifacts_pb2.Artifact]]) -> controller_pb2.CollectArtifactsRequest:
    request = controller_pb2.CollectArtifactsRequest()
    for host, artifacts in doomed.items():
        names = [artifacts_pb2.ArtifactName(repository=one.repository, commit=one.commit) for one in artifacts]
        request.hosts.add(host=host, artifacts=names)
    return request


def _document(
    doomed: dict[str, list[artifacts_pb2.Artifact]], finished: list[controller_pb2.HostEvent], dry_run: bool
) -> dict[str, Any]:
    document: dict[str, Any] = {
        "removable": [{"host": host, **plain(artifact)} for host, artifacts in doomed.items() for artifact in artifacts]
    }
    if not dry_run:
        document["hosts"] = [outcome(event) for event in finished]
    return document
