"""Facts from many hosts through the controller's transport, against plain SSH doing `true`.

    python -m benchmarks.facts_fanout [--hosts 1,10,100] [--rounds 5]

One real sshd on the loopback serves every host alias; behind it are simulated agents (simulated_agents.py). So all
handshakes of all hosts, both ends, the agents and the controller share the cores of this machine: a fleet whose hosts
do their own half is faster. Controller: `GetHosts` of a resident controller process, which asks each agent for facts
and services. Resident: the transport alone, with open connections. Cold: a new pool logs in to every host. Cold
process: the same with the start of the interpreter and every import. Budget on two cores, 100 hosts: 0.4 s resident,
1.6 s cold.
"""

import argparse
import asyncio
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import asyncssh

from benchmarks.measure import Samples, milliseconds, report, side_by_side, take, take_command
from fleet_controller.service.client import open_stub
from fleet_controller.transport.pool import SSH_HANDSHAKES_AT_ONCE, AgentPool
from fleet_inventory.hosts import Host
from fleet_proto.v1 import controller_pb2

START_LIMIT_SECONDS = 60
Found = dict[str, Samples]


@dataclass(frozen=True)
class Stage:
    """The sshd, its configuration for clients, and the agents' sockets."""

    folder: Path
    hosts: tuple[Host, ...]
    facts_bytes: int

    @property
    def ssh_config(self) -> Path:
        return self.folder / "ssh_config"

    def pool(self) -> AgentPool:
        """A pool that knows where the agents listen, as after a first contact, and has nothing open."""
        pool = AgentPool(self.folder / "state")
        for number, host in enumerate(self.hosts):
            pool.remember(host, str(self.folder / f"{number:03d}.sock"))
        return pool


@contextmanager
def stage(count: int) -> Iterator[Stage]:
    sshd = shutil.which("sshd") or "/usr/sbin/sshd"
    if not Path(sshd).exists():
        raise SystemExit("there is no sshd on this machine: install openssh-server")
    with tempfile.TemporaryDirectory(prefix="fleet-bench-") as text:
        folder = Path(text)
        port = write_ssh_files(folder)
        # The agents have a folder of their own: the probes look at it for its disk.
        environment = os.environ | {"FLEET_AGENT_ROOT": str(folder / "agent"), "FLEET_RUNTIME_DIR": str(folder)}
        argv = [sys.executable, "-m", "benchmarks.simulated_agents", str(folder), str(count)]
        agents = subprocess.Popen(argv, env=environment, stdout=subprocess.PIPE, text=True)
        server = subprocess.Popen([sshd, "-D", "-e", "-f", str(folder / "sshd_config")], stderr=subprocess.DEVNULL)
        try:
            wait_for_port(port)
            assert agents.stdout is not None
            ready = agents.stdout.readline().split()
            if ready[:1] != ["ready"]:
                raise SystemExit("the simulated agents did not start; their message is above")
            os.environ["FLEET_SSH_CONFIG"] = str(folder / "ssh_config")
            hosts = tuple(Host(name=f"sim-{number:03d}", address=f"sim-{number:03d}") for number in range(count))
            yield Stage(folder, hosts, int(ready[1]))
        finally:
            for process in (agents, server):
                process.terminate()
                process.wait(timeout=30)


def write_ssh_files(folder: Path) -> int:
    """Keys and configurations; returns the port that sshd is to take."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    for name in ("host_key", "client_key"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)], check=True)
    (folder / "home").mkdir()
    shutil.copy(folder / "client_key.pub", folder / "authorized_keys")
    Path("/run/sshd").mkdir(exist_ok=True)  # sshd's own requirement, for its privilege separation
    (folder / "sshd_config").write_text(
        f"ListenAddress 127.0.0.1:{port}\nHostKey {folder}/host_key\nAuthorizedKeysFile {folder}/authorized_keys\n"
        f"PidFile {folder}/sshd.pid\nStrictModes no\nPasswordAuthentication no\nKbdInteractiveAuthentication no\n"
        "UsePAM no\nMaxStartups 1000\nMaxSessions 1000\nPermitRootLogin yes\nAllowStreamLocalForwarding yes\n"
        # A login shell that reads a long start-up file would make `true` look slow, so it finds an empty home.
        f"SetEnv HOME={folder}/home\nPrintMotd no\nPrintLastLog no\nUseDNS no\nPerSourcePenalties no\n"
    )
    if subprocess.run(["sshd", "-t", "-f", str(folder / "sshd_config")], stderr=subprocess.DEVNULL).returncode:
        text = (folder / "sshd_config").read_text()  # before OpenSSH 9.8 there were no penalties to switch off
        (folder / "sshd_config").write_text(text.replace("PerSourcePenalties no\n", ""))
    host_key = " ".join((folder / "host_key.pub").read_text().split()[:2])
    (folder / "known_hosts").write_text(f"bench {host_key}\n")
    (folder / "ssh_config").write_text(
        f"Host sim-*\n  HostName 127.0.0.1\n  Port {port}\n  HostKeyAlias bench\n  IdentityFile {folder}/client_key\n"
        f"  IdentitiesOnly yes\n  IdentityAgent none\n  UserKnownHostsFile {folder}/known_hosts\n"
        f"  GlobalKnownHostsFile none\n  ControlPath {folder}/%n.ctl\n"
    )
    return port


def wait_for_port(port: int) -> None:
    deadline = time.monotonic() + START_LIMIT_SECONDS
    while time.monotonic() < deadline:
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=1):
                return
        except OSError:
            time.sleep(0.05)
    raise SystemExit("sshd did not start")


async def facts_of_all(pool: AgentPool, hosts: tuple[Host, ...]) -> None:
    async def one(host: Host) -> None:
        async with pool.client(host) as agent:
            facts = await agent.facts()
        assert facts.hostname.startswith("simulated-")

    await asyncio.gather(*(one(host) for host in hosts))


async def cold_facts(bench: Stage, hosts: tuple[Host, ...]) -> None:
    pool = bench.pool()
    await facts_of_all(pool, hosts)
    await pool.close()


async def asyncssh_connect(bench: Stage, host: Host) -> asyncssh.SSHClientConnection:
    return await asyncssh.connect(host.address, config=[str(bench.ssh_config)], known_hosts=str(bench.folder / "kh"))


async def asyncssh_true(connection: asyncssh.SSHClientConnection) -> None:
    await connection.run("true", check=True)


async def cold_asyncssh(bench: Stage, hosts: tuple[Host, ...]) -> None:
    async def one(host: Host) -> None:
        async with await asyncssh_connect(bench, host) as connection:
            await asyncssh_true(connection)

    await side_by_side([partial(one, host) for host in hosts], SSH_HANDSHAKES_AT_ONCE)


async def openssh(bench: Stage, hosts: tuple[Host, ...], *options: str) -> None:
    async def one(host: Host) -> None:
        argv = ["ssh", "-F", str(bench.ssh_config), *options, host.address, "true"]
        process = await asyncio.create_subprocess_exec(*argv, stdin=subprocess.DEVNULL)
        if await process.wait():
            raise SystemExit(f"{' '.join(argv)} failed")

    await side_by_side([partial(one, host) for host in hosts], SSH_HANDSHAKES_AT_ONCE)


def control_masters(bench: Stage, action: str) -> None:
    """Opens ("open") or ends ("exit") one master connection a host."""
    for host in bench.hosts:
        options = ["-M", "-N", "-f"] if action == "open" else ["-O", "exit"]
        argv = ["ssh", "-F", str(bench.ssh_config), *options, host.address]
        subprocess.run(argv, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def child_argv(kind: str, bench: Stage, count: int) -> list[str]:
    return [sys.executable, "-m", "benchmarks.facts_fanout", "--child", kind, str(bench.folder), str(count)]


async def child(kind: str, folder: str, count: int) -> None:
    """One cold run in a process of its own, for take_command."""
    hosts = tuple(Host(name=f"sim-{number:03d}", address=f"sim-{number:03d}") for number in range(count))
    bench = Stage(Path(folder), hosts, 0)
    await (cold_facts if kind == "fleet" else cold_asyncssh)(bench, hosts)


@contextmanager
def resident_controller(bench: Stage) -> Iterator[Path]:
    """A controller process that knows all hosts; yields its socket."""
    (bench.folder / "hosts.yaml").write_text("hosts:\n" + "".join(f"  {host.name}:\n" for host in bench.hosts))
    places = {"FLEET_HOSTS": "hosts.yaml", "FLEET_STATE_DIR": "state", "FLEET_RUNTIME_DIR": "controller-run"}
    environment = os.environ | {name: str(bench.folder / place) for name, place in places.items()}
    bench.pool()  # leaves on disk where the agents listen
    command = [sys.executable, "-m", "fleet_controller.cli", "controller"]
    subprocess.run([*command, "start"], env=environment, check=True, stdout=subprocess.DEVNULL)
    try:
        yield bench.folder / "state" / "controller.sock"
    finally:
        subprocess.run([*command, "stop"], env=environment, check=True, stdout=subprocess.DEVNULL)


async def hosts_through(stub: Any, hosts: tuple[Host, ...]) -> None:
    request = controller_pb2.GetHostsRequest(pattern=",".join(host.name for host in hosts), refresh=True)
    reports = [report async for report in stub.GetHosts(request)]
    down = [report.problem.message for report in reports if report.connection != controller_pb2.HOST_CONNECTION_UP]
    if down or len(reports) != len(hosts):
        raise SystemExit(f"{len(reports)} of {len(hosts)} hosts reported; {down[:1]}")


CONTROLLER = "fleet controller's GetHosts, resident"
RESIDENT, SSH_OPEN, MASTERS = "fleet facts, resident", "asyncssh `true`, open connections", "ControlMaster `true`"
COLD, SSH_COLD, OPENSSH_COLD = "fleet facts, cold", "asyncssh `true`, cold", "OpenSSH `true`, cold"
PROCESS, SSH_PROCESS = "fleet facts, cold process", "asyncssh `true`, cold process"
SUBJECTS = (CONTROLLER, RESIDENT, SSH_OPEN, MASTERS, COLD, SSH_COLD, OPENSSH_COLD, PROCESS, SSH_PROCESS)
RATIOS = (
    ("controller / asyncssh, open", CONTROLLER, SSH_OPEN),
    ("controller / ControlMaster", CONTROLLER, MASTERS),
    ("facts / asyncssh, open", RESIDENT, SSH_OPEN),
    ("facts / ControlMaster", RESIDENT, MASTERS),
    ("facts / asyncssh, cold", COLD, SSH_COLD),
    ("facts / OpenSSH, cold", COLD, OPENSSH_COLD),
    ("facts / asyncssh, cold process", PROCESS, SSH_PROCESS),
)


async def measure_open(bench: Stage, socket_path: Path, hosts: tuple[Host, ...], found: Found, rounds: int) -> None:
    """Everything whose connections are open before the first round."""
    pool = bench.pool()
    connections = [await asyncssh_connect(bench, host) for host in hosts]
    async with open_stub(socket_path) as stub:
        await hosts_through(stub, hosts)
        await facts_of_all(pool, hosts)
        for _ in range(rounds):
            await take(found[CONTROLLER], lambda: hosts_through(stub, hosts))
            await take(found[RESIDENT], lambda: facts_of_all(pool, hosts))
            await take(found[SSH_OPEN], lambda: asyncio.gather(*(asyncssh_true(open_) for open_ in connections)))
            await take(found[MASTERS], lambda: openssh(bench, hosts))
    for connection in connections:
        connection.close()
        await connection.wait_closed()
    await pool.close()


async def measure_cold(bench: Stage, hosts: tuple[Host, ...], found: Found, rounds: int) -> None:
    """Everything that logs in anew each time."""
    for _ in range(rounds):
        await take(found[COLD], lambda: cold_facts(bench, hosts))
        await take(found[SSH_COLD], lambda: cold_asyncssh(bench, hosts))
        await take(found[OPENSSH_COLD], lambda: openssh(bench, hosts, "-S", "none"))
        take_command(found[PROCESS], child_argv("fleet", bench, len(hosts)))
        take_command(found[SSH_PROCESS], child_argv("asyncssh", bench, len(hosts)))


async def measure(bench: Stage, socket_path: Path, count: int, rounds: int) -> Found:
    found = {name: Samples(name) for name in SUBJECTS}
    await measure_open(bench, socket_path, bench.hosts[:count], found, rounds)
    await measure_cold(bench, bench.hosts[:count], found, rounds)
    return found


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        asyncio.run(child(sys.argv[2], sys.argv[3], int(sys.argv[4])))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hosts", default="1,10,100")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    counts = [int(part) for part in arguments.hosts.split(",")]
    with stage(max(counts)) as bench:
        (bench.folder / "kh").write_text((bench.folder / "known_hosts").read_text().replace("bench ", "* "))
        control_masters(bench, "open")
        try:
            with resident_controller(bench) as socket_path:
                found = {count: asyncio.run(measure(bench, socket_path, count, arguments.rounds)) for count in counts}
        finally:
            control_masters(bench, "exit")
        show(found, bench.facts_bytes)


def show(found: dict[int, Found], facts_bytes: int) -> None:
    counts = list(found)
    rows = [[name, *(milliseconds(found[count][name].wall) for count in counts)] for name in SUBJECTS]
    ratios = {
        name: {count: round(found[count][over].wall / found[count][under].wall, 3) for count in counts}
        for name, over, under in RATIOS
    }
    rows += [[f"**{name}**", *(f"{values[count]:.2f}" for count in counts)] for name, values in ratios.items()]
    report(
        "Facts of N simulated hosts against SSH doing `true`",
        ["median wall time", *(f"{count} host{'s' if count > 1 else ''}" for count in counts)],
        rows,
        {
            "facts_message_bytes": facts_bytes,
            "samples": {count: [samples.as_json() for samples in found[count].values()] for count in counts},
            "ratios": ratios,
            "budget_100_hosts_seconds": {"resident": 0.4, "cold": 1.6},
        },
    )


if __name__ == "__main__":
    main()
