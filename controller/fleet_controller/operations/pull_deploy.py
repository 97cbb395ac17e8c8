"""What several hosts of a deploy would each fetch from the hub is fetched once and passed on."""

from __future__ import annotations

import asyncio
import hashlib
import secrets
from collections.abc import AsyncGenerator, Callable, Sequence

from fleet_controller.domain.events import HostEvent
from fleet_controller.domain.pulls import PlannedPull, PulledFiles, PullHost, PullPart, PullSource
from fleet_controller.domain.steps import HubDownloadStep
from fleet_controller.fanout import merged
from fleet_controller.operations.context import FleetContext
from fleet_controller.operations.planning import PlannedHost
from fleet_controller.operations.problems import problem_of
from fleet_controller.operations.pull import carry_out, stop
from fleet_controller.pulling.store import PullStore

LOOK_SECONDS = 0.5


async def pull_shared_files(
    context: FleetContext, hosts: Sequence[PlannedHost], unwanted: Callable[[], bool]
) -> AsyncGenerator[HostEvent]:
    """Events of the pulls, none of them `done`. What fails here is fetched by the host's own job, and told there.

    Once `unwanted` says so the pulls are stopped: what has arrived stays, and the next ones go on from there.
    """
    pulls = shared_pulls(hosts)
    if not pulls or unwanted():
        return
    store = PullStore(context.database)
    running = {pull.digest: pull for pull in store.running()}
    pulls = [running.get(pull.digest, pull) for pull in pulls]
    for pull in pulls:
        store.create(pull)
    watch = asyncio.create_task(_stop_once(unwanted, store, pulls))
    try:
        async for event in merged(carry_out(context, pull) for pull in pulls):
            if not event.done:
                yield event
            elif event.problem is not None:
                message = f"not passed on to it: {event.problem.message}"
                yield HostEvent(host=event.host, stage="pull", message=message)
            else:
                yield HostEvent(host=event.host, stage="pull", message=event.message)
    except Exception as error:
        yield HostEvent(host="all", stage="pull", message=f"not passed on: {problem_of(error).message}")
    finally:
        watch.cancel()


async def _stop_once(unwanted: Callable[[], bool], store: PullStore, pulls: Sequence[PlannedPull]) -> None:
    while True:
        if unwanted():
            break
        await asyncio.sleep(LOOK_SECONDS)
    for pull in pulls:
        store.stop(pull.pull_id)


async def stop_shared_pulls(context: FleetContext, hosts: Sequence[PlannedHost]) -> None:
    """Those that a controller which died has left running for these hosts of a deploy: their relays end."""
    digests = {pull.digest for pull in shared_pulls(hosts)}
    for pull in PullStore(context.database).running():
        if pull.digest in digests:
            await stop(context, pull)


def shared_pulls(hosts: Sequence[PlannedHost]) -> list[PlannedPull]:
    """One pull for each set of files that some hosts lack and that at least two of them want. Pure but for the ids."""
    groups: dict[PulledFiles, list[tuple[PlannedHost, HubDownloadStep]]] = {}
    for host in hosts:
        step = _download_of(host)
        if step is not None:
            groups.setdefault(_files_of(host, step), []).append((host, step))
    return [
        _pull_of(files, group)
        for files, group in groups.items()
        if len(group) > 1 and any(host.shown.download_bytes for host, _ in group)
    ]


def _download_of(host: PlannedHost) -> HubDownloadStep | None:
    prepare = host.deployment.prepare
    found = [step.hub_download for step in prepare.steps if step.hub_download is not None] if prepare else []
    return found[0] if len(found) == 1 and not found[0].offline else None


def _files_of(host: PlannedHost, step: HubDownloadStep) -> PulledFiles:
    return PulledFiles(
        repository=step.repository,
        commit=step.commit,
        revision=step.revision,
        quantization=host.shown.quantization,
        files=step.files,
    )


def _pull_of(files: PulledFiles, group: Sequence[tuple[PlannedHost, HubDownloadStep]]) -> PlannedPull:
    hosts = [
        PullHost(
            host=host.shown.host,
            part=PullPart.FETCH if host.shown.download_bytes else PullPart.HEAD,
            missing_bytes=host.shown.download_bytes,
        )
        for host, _ in group
    ]
    endpoints = tuple(dict.fromkeys([*(step.endpoint.rstrip("/") for _, step in group), ""]))
    head = next((host.host for host in hosts if host.part is PullPart.HEAD), "")
    words = f"{head}, which has it" if head else endpoints[0] or "https://huggingface.co"
    text = "\n".join([files.model_dump_json(), *sorted(host.host for host in hosts)])
    return PlannedPull(
        pull_id=secrets.token_hex(5),
        digest=hashlib.sha256(f"deploy\n{text}".encode()).hexdigest(),
        files=files,
        source=PullSource(endpoints=endpoints, host=head, words=words),
        hosts=tuple(hosts),
    )
