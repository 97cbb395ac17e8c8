"""Facts from many hosts through the controller's transport, against plain SSH doing `true`.

    python -m benchmarks.facts_fanout [--hosts 1,10,100] [--rounds 5]

One real sshd on the loopback serves every host alias; behind it are simulated agents (simulated_agents.py). So all
handshakes of all hosts, both ends, the agents and the controller share the cores of this machine: a fleet whose hosts
do their own half is faster. Resident: connections are open. Cold: a new pool logs in to every host. Cold process: the
same with the start of the interpreter and every import. Budget on two cores, 100 hosts: 0.4 s resident, 1.6 s cold.
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

import asyncssh

from benchmarks.measure import Samples, milliseconds, report, side_by_side, take, take_command
from fleet_controller.transport.pool import SSH_HANDSHAKES_AT_ONCE, AgentPool
from fleet_inventory.hosts import Host

START_LIMIT_SECONDS = 60


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


SUBJECTS = (
    "fleet facts, resident",
    "asyncssh `true`, open connections",
    "OpenSSH ControlMaster `true`",
    "fleet facts, cold",
    "asyncssh `true`, cold",
    "OpenSSH `true`, cold",
    "fleet facts, cold process",
    "asyncssh `true`, cold process",
)


async def measure(bench: Stage, count: int, rounds: int) -> list[Samples]:
    hosts = bench.hosts[:count]
    subjects = [Samples(name) for name in SUBJECTS]
    resident, masters, cold, cold_ssh, cold_openssh = subjects[0], subjects[2], subjects[3], subjects[4], subjects[5]
    pool = bench.pool()
    await facts_of_all(pool, hosts)
    connections = [await asyncssh_connect(bench, host) for host in hosts]
    for _ in range(rounds):
        await take(resident, lambda: facts_of_all(pool, hosts))
        await take(subjects[1], lambda: asyncio.gather(*(asyncssh_true(connection) for connection in connections)))
        await take(masters, lambda: openssh(bench, hosts))
    for connection in connections:
        connection.close()
        await connection.wait_closed()
    await pool.close()
    for _ in range(rounds):
        await take(cold, lambda: cold_facts(bench, hosts))
        await take(cold_ssh, lambda: cold_asyncssh(bench, hosts))
        await take(cold_openssh, lambda: openssh(bench, hosts, "-S", "none"))
        take_command(subjects[6], child_argv("fleet", bench, count))
        take_command(subjects[7], child_argv("asyncssh", bench, count))
    return subjects


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
            found = {count: asyncio.run(measure(bench, count, arguments.rounds)) for count in counts}
        finally:
            control_masters(bench, "exit")
        show(found, bench.facts_bytes)


def show(found: dict[int, list[Samples]], facts_bytes: int) -> None:
    counts = list(found)
    rows = [
        [name, *(milliseconds(found[count][index].wall) for count in counts)] for index, name in enumerate(SUBJECTS)
    ]
    ratios = {"resident / asyncssh": (0, 1), "resident / ControlMaster": (0, 2), "cold / asyncssh": (3, 4),
              "cold / OpenSSH": (3, 5), "cold process / asyncssh": (6, 7)}  # fmt: skip
    table = {
        name: {count: round(found[count][over].wall / found[count][under].wall, 3) for count in counts}
        for name, (over, under) in ratios.items()
    }
    rows += [[f"ratio {name}", *(f"{values[count]:.2f}" for count in counts)] for name, values in table.items()]
    report(
        "Facts of N simulated hosts against SSH doing `true`",
        ["median wall time", *(f"{count} host{'s' if count > 1 else ''}" for count in counts)],
        rows,
        {
            "facts_message_bytes": facts_bytes,
            "samples": {count: [samples.as_json() for samples in found[count]] for count in counts},
            "ratios": table,
            "budget_100_hosts_seconds": {"resident": 0.4, "cold": 1.6},
        },
    )


if __name__ == "__main__":
    main()
