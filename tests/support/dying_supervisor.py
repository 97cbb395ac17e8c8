"""A supervisor in a process of its own that replaces a service and dies by SIGKILL at a chosen write of the journal.

Arguments: the new spec as JSON, the number of the write (from 1), "before" or "after". Ends with 0 where the succession
came to its end before that many writes. Its environment says whose host it is.
"""

import asyncio
import json
import os
import signal
import sys
from collections.abc import Mapping

from fleet_agent.layout import Layout
from fleet_agent.services.journal import ServiceJournal, ServiceRecord
from fleet_agent.services.model import ServiceState, spec_from_document
from support.service_host import running


def die_at(number: int, moment: str) -> None:
    """Counted from now on."""
    write, seen = ServiceJournal.write, [0]

    def counted(journal: ServiceJournal, record: ServiceRecord) -> None:
        seen[0] += 1
        if seen[0] == number and moment == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        write(journal, record)
        if seen[0] == number:
            os.kill(os.getpid(), signal.SIGKILL)

    ServiceJournal.write = counted  # type: ignore[method-assign, assignment]


async def replace(document: Mapping[str, object], number: int, moment: str) -> None:
    spec = spec_from_document(document)
    async with running(Layout.from_environment(os.environ)) as supervisor:
        die_at(number, moment)
        await supervisor.apply(spec, keep_former=True)
        async for status in supervisor.watch(spec.name):
            record = supervisor._find(spec.name).record
            if status.spec == spec and status.state is ServiceState.READY and not record.leaving:
                return


if __name__ == "__main__":
    asyncio.run(replace(json.loads(sys.argv[1]), int(sys.argv[2]), sys.argv[3]))
