"""kill -9 of the agent right before and right after each thing that a succession writes down: one server is left."""

import dataclasses
import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from fleet_agent.layout import Layout
from fleet_agent.process import is_alive, tree_members
from fleet_agent.services.journal import ServiceJournal, ServiceRecord
from fleet_agent.services.launch import NAME_VARIABLE, NOBODY, name_marker
from fleet_agent.services.model import ServiceSpec, ServiceState
from fleet_agent.services.succession import free_port
from support.service_host import PATIENT, pid_of, running, until

MakeSpec = Callable[..., ServiceSpec]
TESTS = Path(__file__).parents[2]
MOST_WRITES = 30


def servers(layout: Layout) -> list[int]:
    marker = f"{NAME_VARIABLE}={name_marker(layout.services_dir, 'tiny')}"
    return [one.pid for one in tree_members(NOBODY, marker)]


def record_of(layout: Layout) -> ServiceRecord:
    (record,), corrupt = ServiceJournal(layout.services_dir).load()
    assert not corrupt
    return record


def replaced_until_killed(environment: dict[str, str], spec: ServiceSpec, number: int, moment: str) -> bool:
    """Whether it was killed; else it came to its end."""
    ended = subprocess.run(
        [sys.executable, "-m", "support.dying_supervisor", json.dumps(dataclasses.asdict(spec)), str(number), moment],
        env=environment | {"PYTHONPATH": str(TESTS)},
        timeout=PATIENT,
        check=False,
        capture_output=True,
        text=True,
    )
    assert ended.returncode in (0, -signal.SIGKILL), ended.stderr
    return ended.returncode != 0


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("where", ["same port", "other port", "former ends first"])
async def test_whenever_the_agent_is_killed_one_server_serves_and_one_is_left(
    layout: Layout, agent_environment: dict[str, str], make_spec: MakeSpec, where: str, moment: str
) -> None:
    """Each round replaces the service of the round before; the rounds end with one that nobody killed."""
    own_port = free_port("127.0.0.1", frozenset())
    other_port = free_port("127.0.0.1", frozenset({own_port}))
    promised_bytes = 0 if where == "former ends first" else 1  # what nobody knows has no room beside the former
    async with running(layout) as supervisor:
        await supervisor.apply(make_spec("--say", "round 0", port=own_port, promised_memory_bytes=promised_bytes))
        await until(supervisor, ServiceState.READY)
    rounds = 0
    for rounds in range(1, MOST_WRITES):
        former = record_of(layout)
        port = other_port if where == "other port" and former.spec.port == own_port else own_port
        spec = make_spec("--say", f"round {rounds}", port=port, promised_memory_bytes=promised_bytes)
        killed = replaced_until_killed(agent_environment, spec, rounds, moment)
        left = record_of(layout)
        assert former.process is not None
        begun = left.spec == spec or left.successor is not None
        if left.spec != spec:  # nothing that was not READY has taken the former's place
            assert left.spec == former.spec
            assert where == "former ends first" or is_alive(former.process)
        elif where == "other port":
            assert left.process is not None and is_alive(left.process)
        async with running(layout) as supervisor:
            wanted = spec if begun else former.spec
            settled = await until(supervisor, lambda s, w=wanted: s.spec == w and s.state is ServiceState.READY)  # type: ignore[misc]
            await until(supervisor, lambda _: not record_of(layout).leaving)
            settled = supervisor.list()[0]
            assert settled.successor is None
            assert settled.restarts <= (where == "former ends first")  # it may have ended right before the agent
            assert servers(layout) == [pid_of(settled)]
        if not killed:
            break
    assert 5 < rounds < MOST_WRITES, "it was killed at every write that there is"
