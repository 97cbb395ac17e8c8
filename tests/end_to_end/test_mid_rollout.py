"""What happens in the middle of a rollout: all agents are upgraded, and a host is lost. Real hosts, real links."""

import asyncio
import dataclasses
import json
import os
import shlex
import shutil
import sqlite3
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from end_to_end.lab import HOSTS, Lab, one

from fleet_agent.process import ProcessIdentity, identity_of
from fleet_controller.bringup import UpOptions, bring_up
from fleet_controller.domain.events import HostEvent
from fleet_controller.transport import AgentPool
from fleet_inventory.hosts import load_inventory
from support.agent_wheels import release_with
from support.fleet_cli import Running, eventually
from support.namespaces import use_fleet
from support.stand_in_hub import Behaviour
from support.tiny_model import ANSWER

pytestmark = [pytest.mark.namespaces, pytest.mark.llama_cpp, pytest.mark.slow]

WEIGHTS_BYTES = 24_000_000
TRICKLE_BYTES_PER_SECOND = 30_000
SECONDS = 240.0
TOKENS = 3000
SUCCESSOR = ("/bin/sh ", "/bin/llama-server", "/models--lab--rolled/")
# Asks for a long answer as a stream, reads its beginning, and the rest once a file is there: the kernel does not hold
# all of it, and so the server is in the middle of sending its answer all that time.
STREAM = """
import json, pathlib, socket, sys, time
port, model, go, tokens = int(sys.argv[1]), sys.argv[2], pathlib.Path(sys.argv[3]), int(sys.argv[4])
body = json.dumps({"model": model, "prompt": "Which?", "max_tokens": tokens, "stream": True, "ignore_eos": True,
                   "logprobs": 20})
link = socket.socket()
link.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
link.connect(("127.0.0.1", port))
head = ["POST /v1/completions HTTP/1.1", "Host: a", "Connection: close", "Content-Type: application/json",
        f"Content-Length: {len(body)}", "", ""]
link.sendall(("\\r\\n".join(head) + body).encode())
text = link.recv(1000)
print("begun", flush=True)
while not go.exists():
    time.sleep(0.1)
while chunk := link.recv(4096):
    text += chunk
print(text.count(b"data: {"), b"data: [DONE]" in text, len(text), flush=True)
"""


@dataclasses.dataclass(frozen=True)
class Stream:
    """A client in the middle of an answer. `go`: it reads on once this is there."""

    process: subprocess.Popen[str]
    go: Path

    def finish(self) -> tuple[int, bool, int]:
        """How many pieces came, whether the answer came to its end, and how many bytes it was."""
        self.go.touch()
        output, _ = self.process.communicate(timeout=SECONDS)
        pieces, ended, size_bytes = output.split()
        return int(pieces), ended == "True", int(size_bytes)


@pytest.fixture
def trickling(lab: Lab) -> Iterator[Behaviour]:
    """How the hub behaves; it is quick again afterwards."""
    yield lab.hub.behaviour
    lab.hub.behaviour.throttle = 0


@pytest.fixture
def streams(lab: Lab) -> Iterator[list[Stream]]:
    begun: list[Stream] = []
    yield begun
    for stream in begun:
        stream.process.kill()
        stream.process.wait()


def begin_stream(lab: Lab, host: str, name: str) -> Stream:
    spec = lab.ready(host, name)["spec"]
    go = lab.fleet.folder / f"go-{host}"
    go.unlink(missing_ok=True)
    words = ["python3", "-c", STREAM, str(spec["port"]), spec["served_model_name"], str(go), str(TOKENS)]
    command = ["ip", "netns", "exec", lab.fleet.hosts[host].namespace, *words]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    return Stream(process, go)


def unsent_bytes(lab: Lab, host: str, name: str) -> int:
    """What the kernel holds of the answers that the server has written, and nobody has read."""
    port = lab.ready(host, name)["spec"]["port"]
    lines = lab.fleet.sh(host, f"ss -tnH state established 'sport = :{port}'").splitlines()
    return sum(int(line.split()[1]) for line in lines)


def held_engine(lab: Lab, go: Path) -> Path:
    """The real llama.cpp, whose server waits for a file before it loads: a rollout stays in its wave until then."""
    folder = lab.fleet.folder / "held"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(lab.engine, folder)
    (folder / "llama-server").rename(folder / "llama-server.real")
    wait = f'case " $* " in *" --port "*) until [ -e {shlex.quote(str(go))} ]; do sleep 0.2; done ;; esac'
    (folder / "llama-server").write_text(f'#!/bin/sh\n{wait}\nexec {folder}/llama-server.real "$@"\n')
    (folder / "llama-server").chmod(0o755)
    return folder


async def upgrade_all(lab: Lab, state: Path) -> dict[str, HostEvent]:
    """As the fleet of a colleague who has a newer version would."""
    newer = release_with("fleet_agent/__init__.py", '"""A newer agent."""\n')
    pool = AgentPool(state)
    hosts = load_inventory(lab.cli.hosts_file).hosts.values()
    try:
        events = bring_up(hosts, pool, UpOptions(wheel_folder=lab.wheels, release=newer))
        return {event.host: event async for event in events if event.done}
    finally:
        await pool.close()


def identities(pids: Mapping[str, list[int]]) -> dict[str, ProcessIdentity | None]:
    """Pid and start time of the one process of each host."""
    return {host: identity_of(one(found)) for host, found in pids.items()}


def everything(lab: Lab) -> dict[str, dict[str, ProcessIdentity | None]]:
    """What must not be another process afterwards."""
    return {
        "servers": identities({host: lab.servers(host, "steady") for host in HOSTS}),
        "runners": identities({host: lab.runners(host) for host in HOSTS}),
        "relays": identities({host: lab.processes(host, "-m fleet_agent.relay") for host in HOSTS}),
        "successor": identities({HOSTS[0]: lab.processes(HOSTS[0], *SUCCESSOR)}),
    }


def phases(lab: Lab) -> tuple[str, dict[str, str]]:
    with sqlite3.connect(f"file:{lab.cli.folder / 'state/fleet.db'}?mode=ro", uri=True) as connection:
        number, state = connection.execute("SELECT number, state FROM rollouts ORDER BY number DESC LIMIT 1").fetchone()
        rows = connection.execute("SELECT host, phase FROM rollout_hosts WHERE number = ?", (number,))
        return str(state), dict(rows.fetchall())


def assert_jobs_ended_well(lab: Lab, name: str) -> list[int]:
    """How many jobs each host had for this model: none of them failed, and no history has a gap."""
    counts = []
    for host in HOSTS:
        folders = [
            path.parent for path in (lab.machine_dir(host) / "jobs").glob("*/spec.json") if name in path.read_text()
        ]
        for folder in folders:
            events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
            assert [event["sequence"] for event in events] == list(range(1, len(events) + 1))
            states = [event["state"] for event in events if event.get("state")]
            assert states[-1] == "JOB_STATE_SUCCEEDED", (host, folder.name, states)
        counts.append(len(folders))
    return counts


def test_upgrading_all_agents_interrupts_neither_transfers_nor_services_nor_a_rollout(
    lab: Lab, trickling: Behaviour, streams: list[Stream], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_fleet(monkeypatch, lab.fleet)
    go = lab.fleet.folder / "go"
    lab.cli.ok(*lab.deploy_arguments(lab.publish("steady"), "all", "--context", "4096"))
    rolled = lab.deploy_arguments(lab.publish("rolled"), "all")
    lab.cli.ok(*rolled)
    weights = os.urandom(WEIGHTS_BYTES)
    lab.hub.add("lab/pulled", "model.safetensors", weights)
    lab.published.append("pulled")

    held = [word if word != str(lab.engine) else str(held_engine(lab, go)) for word in rolled]
    rollout = lab.cli.start(*held, "--canary", "none", "--max-unavailable", "1")
    eventually(lambda: phases(lab)[1] == {HOSTS[0]: "changing", HOSTS[1]: "waiting", HOSTS[2]: "waiting"}, "in a wave")
    eventually(lambda: lab.processes(HOSTS[0], *SUCCESSOR), "the successor is on its way", SECONDS)
    trickling.throttle = TRICKLE_BYTES_PER_SECOND  # the pull lasts as long as we like
    pull = lab.cli.start("pull", "--repo", "lab/pulled", "--hosts", "all", "--yes", "--rate", "4MB")
    eventually(lambda: all(lab.processes(host, "-m fleet_agent.relay") for host in HOSTS), "all relays run")
    eventually(lambda: all(len(lab.runners(host)) == 1 for host in HOSTS), "what was prepared is done", SECONDS)
    streams += [begin_stream(lab, host, "steady") for host in HOSTS[:2]]
    before, agents = everything(lab), {host: one(lab.agents(host)) for host in HOSTS}

    ended = asyncio.run(upgrade_all(lab, tmp_path / "state"))
    assert {host: (event.changed, event.problem) for host, event in ended.items()} == dict.fromkeys(HOSTS, (True, None))
    again = lab.cli.ok("up", "all", "--yes", "--wheels", str(lab.wheels))  # and back to the version before
    assert "(deploy rolled) is running on gpu1" in again.errors, str(again)
    assert "it goes on meanwhile" in again.errors

    assert all(one(lab.agents(host)) != agents[host] for host in HOSTS)
    assert everything(lab) == before
    for command in (pull, rollout):
        assert command.process.poll() is None, str(command.result(-1))
    unsent = [unsent_bytes(lab, host, "steady") for host in HOSTS[:2]]
    for held_bytes, (pieces, whole, size_bytes) in zip(unsent, [stream.finish() for stream in streams], strict=True):
        assert whole and pieces >= TOKENS
        assert 0 < held_bytes < size_bytes / 2, "the server was in the middle of its answer"

    go.touch()
    trickling.throttle = 0
    assert_rolled(lab, rollout, held)
    finished = pull.finish(SECONDS)
    assert finished.code == 0, str(finished)
    assert sum(end - start for start, end in lab.downloaded("pulled")) <= 1.01 * WEIGHTS_BYTES
    for host in HOSTS:
        (copy,) = lab.fleet.hosts[host].home.glob(
            ".cache/huggingface/hub/models--lab--pulled/snapshots/*/*.safetensors"
        )
        assert copy.read_bytes() == weights
        assert not lab.runners(host)
    assert assert_jobs_ended_well(lab, "lab/pulled") == [1] * len(HOSTS)
    assert min(assert_jobs_ended_well(lab, "rolled")) >= 2
    assert identities({host: lab.servers(host, "steady") for host in HOSTS}) == before["servers"]


def assert_rolled(lab: Lab, rollout: Running, arguments: list[str]) -> None:
    """Database, journals and processes agree that each host has the new engine, and no other server of the service."""
    finished = rollout.finish(SECONDS)
    assert finished.code == 0, str(finished)
    assert phases(lab) == ("done", dict.fromkeys(HOSTS, "changed"))
    engine = arguments[arguments.index("--engine-path") + 1]
    for host in HOSTS:
        record = json.loads((lab.machine_dir(host) / "services" / "rolled.json").read_text())
        assert not {"successor", "leaving"} & set(record)
        assert Path(record["argv"][0]).samefile(Path(engine) / "llama-server")
        assert lab.servers(host, "rolled") == [record["process"]["pid"]]
        assert lab.chat(host, "rolled") == ANSWER


def test_a_host_that_is_lost_in_its_change_holds_nobody_up_and_is_changed_when_it_is_back(lab: Lab) -> None:
    go = lab.fleet.folder / "go"
    go.unlink(missing_ok=True)
    deploy = lab.deploy_arguments(lab.publish("lost"), "all")
    lab.cli.ok(*deploy)
    held = [word if word != str(lab.engine) else str(held_engine(lab, go)) for word in deploy]
    order = ("--canary", "none", "--max-unavailable", "1", "--max-failures", "1")
    rollout = lab.cli.start(*held, *order, FLEET_HOST_PATIENCE_SECONDS="5")
    successor = ("/bin/sh ", "/bin/llama-server", "/models--lab--lost/")
    eventually(lambda: lab.processes(HOSTS[0], *successor), "the first host is in its change", SECONDS)
    lab.fleet.link_down(HOSTS[0])
    go.touch()  # it works on, and nobody hears of it

    finished = rollout.finish(SECONDS)
    assert finished.code == 1, str(finished)
    assert "no contact for" in finished.errors
    assert "what was begun there goes on by itself" in finished.errors
    assert "it counts as failed; when it is back: fleet rollout resume" in finished.errors
    assert phases(lab) == ("done", {HOSTS[0]: "away", HOSTS[1]: "changed", HOSTS[2]: "changed"})

    lab.fleet.link_up(HOSTS[0])
    lab.cli.ok("rollout", "resume", "--yes")
    assert phases(lab) == ("done", dict.fromkeys(HOSTS, "changed"))
    for host in HOSTS:
        assert lab.chat(host, "lost") == ANSWER
        one(lab.servers(host, "lost"))
