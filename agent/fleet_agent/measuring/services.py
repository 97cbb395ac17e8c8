"""The services of this host as a measurement sees them, from their journal: in the way, measured, or gone.

The runner only reads; stopping and starting is the agent's, which the lease tells what to pause.
"""

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path

from fleet_agent.jobs.errors import JobProblem
from fleet_agent.leases.store import LeaseStore, overlap
from fleet_agent.process import is_alive
from fleet_agent.services.journal import ServiceRecord, decode
from fleet_agent.services.model import DesiredState, ServiceState
from fleet_agent.steps.context import StepContext

POLL_SECONDS = 0.2
RING_SECONDS = 2.0
PAUSE_LIMIT_SECONDS = 180.0


def service_records(folder: Path) -> list[ServiceRecord]:
    """What the journal holds; a file that cannot be read is left out."""
    found = []
    for path in sorted(folder.glob("*.json")):
        try:
            found.append(decode(json.loads(path.read_bytes())))
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            continue
    return found


def in_the_way(records: Sequence[ServiceRecord], gpu_indices: tuple[int, ...], measured: str) -> list[str]:
    """Services that should run on these devices and are not what is measured."""
    return [
        record.spec.name
        for record in records
        if record.desired is DesiredState.RUNNING
        and record.condition.state is not ServiceState.FAILED
        and record.spec.name != measured
        and overlap(record.spec.gpu_indices, gpu_indices)
    ]


def busy_with(names: Sequence[str]) -> JobProblem:
    listed = ", ".join(names)
    return JobProblem(
        "busy", f"busy: our own {listed} runs there", "--pause-services stops it and brings it back, or: fleet stop"
    )


async def wait_until_paused(context: StepContext, store: LeaseStore, names: Sequence[str]) -> None:
    """Until the agent has ended these services. A dead agent is waited for: its supervisor brings it back."""
    loop = asyncio.get_running_loop()
    started = rung = loop.time()
    while True:
        running = [
            record.spec.name
            for record in service_records(context.layout.services_dir)
            if record.spec.name in names and record.process is not None and is_alive(record.process)
        ]
        if not running:
            return
        now = loop.time()
        if now - started > PAUSE_LIMIT_SECONDS:
            raise JobProblem(
                "not-paused", f"the agent did not stop {', '.join(running)}", "see `fleet ps`, and `fleet agent status`"
            )
        if now - rung > RING_SECONDS:  # the agent may have been away when the lease was taken
            rung = now
            store.ring()
        await asyncio.sleep(POLL_SECONDS)
