"""How GetFacts hands the supervisors' processes to the probes, and facts to the message."""

import os
import sys
from pathlib import Path

from fleet_agent.configuration import AgentConfiguration
from fleet_agent.layout import Layout
from fleet_agent.probes.model import (
    DiskFacts,
    GpuFacts,
    GpuProcess,
    MemoryFacts,
    NvidiaDriverFacts,
    NvidiaFacts,
    Outcome,
    Probe,
    ProbeContext,
    ProbeResult,
)
from fleet_agent.process import descendants, spawn, terminate_tree
from fleet_agent.server.facts import FactsCalls, facts_message
from fleet_proto.v1 import hosts_pb2

PARENT = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "print(flush=True); input()"], stdin=subprocess.PIPE)
child.wait()
"""


def layout_of(tmp_path: Path) -> Layout:
    return Layout.from_environment(
        {"HOME": str(tmp_path), "FLEET_RUNTIME_DIR": str(tmp_path / "run"), "FLEET_MACHINE_ID": "m"}
    )


async def test_probes_learn_every_pid_of_our_services_and_jobs(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    root = spawn([sys.executable, "-c", PARENT], {"PATH": os.environ["PATH"]}, stdout=writing)
    os.close(writing)
    try:
        os.read(reading, 1)  # the child stands
        told: list[frozenset[int]] = []

        def read(context: ProbeContext) -> MemoryFacts:
            told.append(frozenset(context.own_pids()))
            return MemoryFacts(1)

        context = ProbeContext(layout_of(tmp_path), AgentConfiguration())
        calls = FactsCalls(context, [Probe("memory", read)], own_processes=lambda: (root,))
        facts = await calls.GetFacts(hosts_pb2.GetFactsRequest(), None)
        assert facts.memory.total_bytes == 1
        assert told == [frozenset({root.pid, *(child.pid for child in descendants(root))})]
        assert len(told[0]) == 2
    finally:
        os.close(reading)
        await terminate_tree(root, 0.1)


def test_unknown_facts_are_absent_and_known_zeros_are_there(tmp_path: Path) -> None:
    gpu = GpuFacts(
        0, name="x", utilization_percent=0, persistence_mode=False, processes=(GpuProcess(7),), processes_known=True
    )
    results = [
        ProbeResult("memory", 0.1, Outcome.OK, facts=MemoryFacts(total_bytes=5, swap_total_bytes=0)),
        ProbeResult("disk", 0.1, Outcome.OK, facts=(DiskFacts("home", "/home"), DiskFacts("state", "/s", 9, 0))),
        ProbeResult("nvidia", 0.1, Outcome.OK, facts=NvidiaFacts(NvidiaDriverFacts("580.1"), (gpu,))),
        ProbeResult("apple", 0.1, Outcome.NO_DATA, "not Apple silicon"),
    ]
    message = facts_message(layout_of(tmp_path), results)
    assert message.memory.HasField("swap_total_bytes") and message.memory.swap_total_bytes == 0
    assert not message.memory.HasField("available_bytes")
    assert [disk.HasField("free_bytes") for disk in message.disks] == [False, True]
    assert message.nvidia.driver_version == "580.1" and not message.nvidia.HasField("cuda_version")
    (device,) = message.gpus
    assert device.HasField("utilization_percent") and device.HasField("persistence_mode")
    assert not device.HasField("memory_free_bytes") and not device.HasField("power_limit_watts")
    assert [process.pid for process in device.processes] == [7] and not device.processes[0].HasField("memory_bytes")
    assert not message.HasField("apple")
    assert [probe.outcome for probe in message.probes][-1] == hosts_pb2.PROBE_OUTCOME_NO_DATA
