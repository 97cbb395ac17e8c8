"""An idle agent's memory and CPU: python -m benchmarks.agent_idle [--seconds 120]

A real `python -m fleet_agent serve` in folders of its own, asked once for its facts, then left alone. Beside it stands
the least that could answer: a gRPC server on a unix socket without any call. Budget: 45 MB resident, 0.1 % of a core.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import psutil

from benchmarks.measure import report
from fleet_proto import MINIMUM_PROTOCOL, PROTOCOL
from fleet_proto.v1 import common_pb2, hosts_pb2
from fleet_proto.v1.agent_pb2_grpc import AgentStub

START_LIMIT_SECONDS = 60
SETTLE_SECONDS = 5
BARE_SERVER = """
import asyncio, sys
import grpc
from fleet_proto.v1 import agent_pb2_grpc

async def serve():
    server = grpc.aio.server()
    agent_pb2_grpc.add_AgentServicer_to_server(agent_pb2_grpc.AgentServicer(), server)
    server.add_insecure_port("unix:" + sys.argv[1])
    await server.start()
    await server.wait_for_termination()

asyncio.run(serve())
"""


@dataclass(frozen=True)
class Reading:
    """Bytes of memory and CPU seconds so far, over a process and its children."""

    rss_bytes: int
    uss_bytes: int
    cpu_seconds: float
    wakeups: int
    processes: int


def voluntary_switches(pid: int) -> int:
    """How often the threads of a process went to sleep so far (Linux; psutil counts the first thread only)."""
    statuses = (task.joinpath("status").read_text() for task in Path(f"/proc/{pid}/task").iterdir())
    return sum(int(text.split("\nvoluntary_ctxt_switches:")[1].split()[0]) for text in statuses)


def read(process: psutil.Process) -> Reading:
    members = [process, *process.children(recursive=True)]
    memory = [member.memory_full_info() for member in members]
    times = [member.cpu_times() for member in members]
    return Reading(
        rss_bytes=sum(entry.rss for entry in memory),
        uss_bytes=sum(entry.uss for entry in memory),
        cpu_seconds=sum(entry.user + entry.system for entry in times),
        wakeups=sum(voluntary_switches(member.pid) for member in members),
        processes=len(members),
    )


@contextmanager
def started(argv: list[str], environment: dict[str, str], socket_path: Path) -> Iterator[psutil.Process]:
    """Starts a server and waits for its socket; ends it at the end."""
    process = subprocess.Popen(argv, env=environment, stderr=subprocess.PIPE, text=True)
    try:
        with grpc.insecure_channel(f"unix:{socket_path}") as channel:
            try:
                grpc.channel_ready_future(channel).result(timeout=START_LIMIT_SECONDS)
            except grpc.FutureTimeoutError:
                process.kill()
                raise SystemExit(f"{argv} does not serve: {process.communicate()[1]}") from None
        yield psutil.Process(process.pid)
    finally:
        process.terminate()
        process.communicate(timeout=30)


def ask_facts(socket_path: Path) -> hosts_pb2.HostFacts:
    with grpc.insecure_channel(f"unix:{socket_path}") as channel:
        stub = AgentStub(channel)
        stub.Handshake(common_pb2.HandshakeRequest(protocol=PROTOCOL, minimum_protocol=MINIMUM_PROTOCOL))
        facts: hosts_pb2.HostFacts = stub.GetFacts(hosts_pb2.GetFactsRequest())
        return facts


def agent_environment(folder: Path) -> dict[str, str]:
    return {
        **os.environ,
        "HOME": str(folder / "home"),
        "FLEET_AGENT_ROOT": str(folder / "root"),
        "FLEET_RUNTIME_DIR": str(folder / "run"),
        "FLEET_MACHINE_ID": "benchmark",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=120.0, help="length of the idle window")
    seconds = parser.parse_args().seconds
    with tempfile.TemporaryDirectory(prefix="fleet-bench-") as text, ExitStack() as stack:
        folder = Path(text)
        (folder / "home").mkdir()
        environment = agent_environment(folder)
        socket_path = agent_socket(environment)
        bare_socket = folder / "bare.sock"
        agent = stack.enter_context(started([sys.executable, "-m", "fleet_agent", "serve"], environment, socket_path))
        bare = stack.enter_context(
            started([sys.executable, "-c", BARE_SERVER, str(bare_socket)], dict(os.environ), bare_socket)
        )
        at_start = read(agent)
        facts = ask_facts(socket_path)
        time.sleep(SETTLE_SECONDS)
        before = read(agent), read(bare)
        time.sleep(seconds)  # the window itself is what is measured
        after = read(agent), read(bare)
        show(seconds, at_start, before, after, [probe.name for probe in facts.probes])


def agent_socket(environment: dict[str, str]) -> Path:
    code = "from fleet_agent.layout import Layout; print(Layout.from_environment().socket_path)"
    answer = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    ).stdout
    return Path(answer.strip())


def show(
    seconds: float,
    at_start: Reading,
    before: tuple[Reading, Reading],
    after: tuple[Reading, Reading],
    probes: list[str],
) -> None:
    def share(index: int) -> float:
        return (after[index].cpu_seconds - before[index].cpu_seconds) / seconds * 100

    def wakeups(index: int) -> float:
        return (after[index].wakeups - before[index].wakeups) / seconds

    def memory(name: str, agent_bytes: int, bare_bytes: int) -> list[str]:
        return [name, f"{agent_bytes / 1e6:.1f} MB", f"{bare_bytes / 1e6:.1f} MB", f"{agent_bytes / bare_bytes:.2f}"]

    agent, bare = after
    rows = [
        memory("resident (RSS)", agent.rss_bytes, bare.rss_bytes),
        memory("unshared (USS)", agent.uss_bytes, bare.uss_bytes),
        ["CPU, % of a core", f"{share(0):.3f}", f"{share(1):.3f}", "-"],
        ["wake-ups a second", f"{wakeups(0):.2f}", f"{wakeups(1):.2f}", "-"],
    ]
    report(
        "Idle agent against a bare gRPC server",
        ["", "agent", "bare gRPC server", "ratio"],
        rows,
        {
            "window_seconds": seconds,
            "agent_rss_before_facts_bytes": at_start.rss_bytes,
            "agent": vars(agent) | {"cpu_percent": round(share(0), 4)},
            "bare_server": vars(bare) | {"cpu_percent": round(share(1), 4)},
            "probes": probes,
            "budget": {"rss_bytes": 45_000_000, "cpu_percent": 0.1},
        },
    )


if __name__ == "__main__":
    main()
