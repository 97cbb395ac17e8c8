"""The relay as a step of a job: certificates, orders and events through the job's folder; and what is left behind."""

import asyncio
import json
import os
import signal
import socket
import ssl
import stat
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.relay_lab import Certificates, make_content
from fleet_agent.jobs.errors import JobProblem, SpecProblem
from fleet_agent.jobs.model import ArtifactFile, JobEvent, JobSpec, JobState, RelayStep, Step, VerifyFileStep
from fleet_agent.jobs.steering import Steering, latest
from fleet_agent.jobs.supervisor import living_runner
from fleet_agent.problem import ProblemError
from fleet_agent.relay.control import TlsFiles
from fleet_agent.steps.cache_marker import cache_marker
from fleet_agent.steps.network_link import NetworkLink, default_interface, network_link, wifi_devices
from fleet_agent.steps.relay import check, free_port
from support.agent_jobs import Agent, kill, make_layout, result_of, running_agent, state_of
from support.stand_in_hub import StandInHub

NODE = "a.abc.pulls.fleet.internal"
FILE = ArtifactFile("model.safetensors", 3, sha256="a" * 64)
PIECE = 1 << 16
JOB = "pull"


def step(files: tuple[ArtifactFile, ...] = (FILE,), **more: Any) -> RelayStep:
    values: dict[str, Any] = {
        "rollout": "abc", "node": NODE, "allowed": (NODE,), "repository": "lab/model", "commit": "c" * 40,
        "revision": "main", "files": files, "piece_bytes": PIECE, "listen_host": "127.0.0.1",
    }  # fmt: skip
    return RelayStep(**{**values, **more})


@pytest.mark.parametrize(
    "wrong",
    [
        {"first_port": 9000, "last_port": 8000},
        {"last_port": 70_000},
        {"files": ()},
        {"files": (ArtifactFile("../evil", 3, sha256="a" * 64),)},
        {"allowed": ("other.abc.pulls.fleet.internal",)},
        {"node": "*.pulls.fleet.internal", "allowed": ("*.pulls.fleet.internal",)},
        {"piece_bytes": 5},
        {"upload_bytes_per_second": -1},
    ],
)
def test_a_step_that_breaks_a_rule_is_refused(wrong: dict[str, Any]) -> None:
    check(step())
    with pytest.raises(SpecProblem):
        check(step(**wrong))


class Pull:
    """A relay's job on one agent, with a folder to take files from."""

    def __init__(self, agent: Agent, tmp_path: Path) -> None:
        self.agent = agent
        self.files = make_content(tmp_path / "source", {"config.json": 700, "model.safetensors": 3_000_000})
        self.source = tmp_path / "source"
        tls = Certificates(tmp_path / "certificates").files(NODE)
        self.credentials = tuple(Path(path).read_text() for path in (tls.ca, tls.certificate, tls.key))

    async def submit(self) -> None:
        spec = JobSpec(job_id=JOB, title="pull", steps=(Step("pull", relay=step(self.files)),))
        await self.agent.supervisor.submit(spec)

    def order(self, order: dict[str, Any]) -> None:
        self.agent.supervisor.steer(JOB, json.dumps(order), None)

    def give_credentials(self) -> None:
        authority, certificate, key = self.credentials
        self.agent.supervisor.steer(JOB, "", (authority, certificate, key))

    async def told(self, kind: str, after: int = 0) -> JobEvent:
        """The first such document with a higher sequence."""

        def wanted(event: JobEvent) -> bool:
            return event.sequence > after and bool(event.document) and document(event)["event"] == kind

        return await asyncio.wait_for(self.agent.until(JOB, wanted), 60)

    @property
    def folder(self) -> Path:
        return self.agent.folder(JOB).path

    def lead(self, sequence: int = 1) -> None:
        self.order({"order": "route", "sequence": sequence, "folder": {"path": str(self.source)}})


def document(event: JobEvent) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(event.document or "{}")
    return found


@pytest.fixture
async def agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Agent]:
    async with running_agent(make_layout(tmp_path, monkeypatch)) as one:
        yield one


@pytest.fixture
def pull(agent: Agent, tmp_path: Path) -> Pull:
    return Pull(agent, tmp_path)


async def test_files_come_in_place_and_certificates_go(pull: Pull) -> None:
    await pull.submit()
    told = document(await pull.told("prepared"))
    assert told["missing_bytes"] == 3_000_700
    assert len(told["cache"]) == 32
    pull.give_credentials()
    listening = document(await pull.told("listening"))
    assert listening["port"] > 0
    credentials = pull.folder / "credentials"
    assert stat.S_IMODE(credentials.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in credentials.iterdir()} == {0o600}
    pull.lead()
    complete = document(await pull.told("complete"))
    assert (Path(complete["snapshot"]) / "model.safetensors").stat().st_size == 3_000_000
    pull.order({"order": "stop"})
    events = await asyncio.wait_for(pull.agent.finish(JOB), 60)
    assert state_of(events) is JobState.SUCCEEDED
    result = result_of(events)
    assert (result["complete"], result["source_bytes"]) == (True, 3_000_700)
    assert not credentials.exists()
    with pytest.raises(ProblemError, match="has ended"):
        pull.order({"order": "stop"})


async def test_certificates_that_come_later_are_taken_up(pull: Pull, tmp_path: Path) -> None:
    await pull.submit()
    pull.give_credentials()
    listening = document(await pull.told("listening"))
    files = Certificates(tmp_path / "renewed").files(NODE)  # of another authority, so that none passes for the other
    with pytest.raises(ssl.SSLCertVerificationError):
        greet(files, listening["port"])
    pull.credentials = tuple(Path(path).read_text() for path in (files.ca, files.certificate, files.key))
    pull.give_credentials()
    assert await asyncio.to_thread(greet, files, listening["port"]) == NODE
    pull.order({"order": "stop"})
    assert state_of(await asyncio.wait_for(pull.agent.finish(JOB), 60)) is JobState.SUCCEEDED


def greet(files: TlsFiles, port: int) -> str:
    """The name that the relay proves to whoever has a certificate of its authority."""
    context = ssl.create_default_context(cafile=files.ca)
    context.load_cert_chain(files.certificate, files.key)
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        return str((context.wrap_socket(connection, server_hostname=NODE).getpeercert() or {})["subjectAltName"][0][1])


async def test_a_mirror_with_commits_of_its_own_is_asked_by_its_branch(pull: Pull) -> None:
    with StandInHub(pull.source.parent / "hub") as hub:
        for file in pull.files:
            hub.add("lab/model", file.path, (pull.source / file.path).read_bytes())
        await pull.submit()
        pull.give_credentials()
        pull.order({"order": "route", "sequence": 1, "hub": {"endpoint": hub.url, "revision": "main"}})
        await pull.told("complete")
        asked = [request for request in hub.requests if "/resolve/" in request]
        assert asked
        assert all("/resolve/main/" in request for request in asked)


async def test_a_killed_relay_is_started_again_and_told_its_last_route(pull: Pull) -> None:
    await pull.submit()
    pull.give_credentials()
    first = await pull.told("listening")
    pull.lead(sequence=3)
    await pull.told("complete")
    os.kill(int(document(first)["pid"]), signal.SIGKILL)
    ended = document(await pull.told("ended"))
    assert ended["exit_code"] == -signal.SIGKILL
    await pull.told("listening", first.sequence)
    again = await pull.told("progress", (await pull.told("complete", (await pull.told("ended")).sequence)).sequence)
    assert document(again)["sequence"] == 3


async def test_a_killed_runner_is_followed_by_one_that_needs_nothing_new(pull: Pull) -> None:
    await pull.submit()
    pull.give_credentials()
    first = await pull.told("listening")
    pull.lead()
    await pull.told("complete")
    runner = living_runner(pull.agent.folder(JOB))
    assert runner is not None
    await kill(runner)
    second = await pull.told("listening", first.sequence)
    await pull.told("complete", second.sequence)
    pull.order({"order": "stop"})
    assert state_of(await asyncio.wait_for(pull.agent.finish(JOB), 60)) is JobState.SUCCEEDED


async def test_who_is_reached_is_told(pull: Pull) -> None:
    await pull.submit()
    await pull.told("prepared")
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))  # and nobody listens there
        peers = [
            {"name": "open", "address": "127.0.0.1", "port": listener.getsockname()[1]},
            {"name": "closed", "address": "127.0.0.1", "port": bound.getsockname()[1]},
            {"name": "nonsense", "address": "", "port": "x"},
        ]
        pull.order({"order": "probe", "peers": peers})
        told = document(await pull.told("reached"))
    assert told["peers"] == {"open": True, "closed": False, "nonsense": False}


async def test_one_that_was_never_let_begin_ends_when_stopped(pull: Pull) -> None:
    await pull.submit()
    await pull.told("prepared")
    pull.order({"order": "stop"})
    events = await asyncio.wait_for(pull.agent.finish(JOB), 60)
    assert state_of(events) is JobState.SUCCEEDED
    assert not result_of(events)["complete"]


async def test_a_cancelled_pull_leaves_no_key(pull: Pull) -> None:
    await pull.submit()
    pull.give_credentials()
    listening = document(await pull.told("listening"))
    await pull.agent.supervisor.cancel(JOB)
    assert not (pull.folder / "credentials").exists()
    with pytest.raises(ProcessLookupError):
        os.kill(int(listening["pid"]), 0)


async def test_other_jobs_take_no_orders(agent: Agent, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    await agent.run(Step("check", verify_file=VerifyFileStep(str(tmp_path / "file"))))
    with pytest.raises(SpecProblem, match="takes no orders"):
        agent.supervisor.steer("job", "{}", None)


async def test_orders_are_objects_of_a_bounded_size(pull: Pull) -> None:
    await pull.submit()
    for wrong in ("[]", "nonsense", '"x"', json.dumps({"order": "x" * (1 << 20)})):
        with pytest.raises(SpecProblem):
            pull.agent.supervisor.steer(JOB, wrong, None)


async def test_each_order_is_read_once_and_a_torn_line_is_waited_for(agent: Agent, tmp_path: Path) -> None:
    await Pull(agent, tmp_path).submit()
    steering = Steering(agent.folder(JOB))
    with steering.following() as reader:
        steering.append('{"order": "one"}')
        assert [order["order"] for order in reader.read()] == ["one"]
        assert reader.read() == []
        path = agent.folder(JOB).path / "orders.jsonl"
        with path.open("ab") as stream:
            stream.write(b'{"order": "tw')
            stream.flush()
            assert reader.read() == []
            stream.write(b'o"}\n')
        assert [order["order"] for order in reader.read()] == ["two"]


def test_a_new_process_is_told_the_last_of_each_kind() -> None:
    orders = [{"order": kind, "n": n} for n, kind in enumerate(("route", "limits", "route", "probe", "allow"))]
    assert [order["n"] for order in latest(orders, ("allow", "limits", "route"))] == [1, 2, 4]


def test_the_first_free_port_of_the_range(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(JobProblem, match="no port of"):
            free_port("127.0.0.1", port, port)
    assert free_port("127.0.0.1", port, port) == port
    assert free_port("0.0.0.0", 0, 0) == 0


def test_a_cache_is_known_by_its_marker_under_any_path(tmp_path: Path) -> None:
    cache, other = tmp_path / "cache", tmp_path / "other"
    marker = cache_marker(cache)
    (tmp_path / "link").symlink_to(cache)
    assert cache_marker(tmp_path / "link") == marker == cache_marker(cache)
    assert cache_marker(other) not in ("", marker)
    assert [path.name for path in cache.iterdir()] == [".fleet-cache-id"]


ROUTES = """Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT
wlan0\t00000000\t0101A8C0\t0003\t0\t0\t600\t00000000\t0\t0\t0
eno1\t00000000\t0101A8C0\t0003\t0\t0\t100\t00000000\t0\t0\t0
eno1\t0001A8C0\t00000000\t0001\t0\t0\t100\t00FFFFFF\t0\t0\t0
"""


def test_the_link_that_leads_out(tmp_path: Path) -> None:
    assert default_interface(ROUTES) == "eno1"
    assert default_interface(ROUTES.splitlines()[0]) == ""
    for name, speed, wireless in (("eno1", "10000", False), ("wlan0", "-1", True)):
        folder = tmp_path / "sys/class/net" / name
        folder.mkdir(parents=True)
        (folder / "speed").write_text(f"{speed}\n")
        if wireless:
            (folder / "wireless").mkdir()
    (tmp_path / "proc/net").mkdir(parents=True)
    (tmp_path / "proc/net/route").write_text(ROUTES)
    assert network_link(tmp_path) == NetworkLink(1_250_000_000, False)
    (tmp_path / "proc/net/route").write_text("\n".join(line for line in ROUTES.splitlines() if "eno1" not in line))
    assert network_link(tmp_path) == NetworkLink(None, True)
    assert network_link(tmp_path / "nothing") == NetworkLink()


def test_which_of_a_macs_ports_is_wifi() -> None:
    listing = (
        "Hardware Port: Ethernet\nDevice: en0\nEthernet Address: a\n\nHardware Port: Wi-Fi\nDevice: en1\n"
        "Ethernet Address: b\n"
    )
    assert wifi_devices(listing) == ("en1",)
