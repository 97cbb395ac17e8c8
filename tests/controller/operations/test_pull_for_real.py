"""`fleet pull` and what goes with it, on real agents with caches of their own and a stand-in for the hub."""

import asyncio
import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fleet_controller.operations.context import FleetContext
from fleet_controller.settings import Settings
from support.fleet_cli import eventually
from support.fleet_world import FleetWorld, fleet_world
from support.stand_in_hub import StandInHub
from support.tiny_model import make_tiny_model

pytestmark = pytest.mark.llama_cpp

HOSTS = ("a", "b", "c")
SHARES = "d"  # it has c's cache
CONFIG = b'{"model_type": "none"}'
WEIGHTS_BYTES = 24_000_000
# Slow enough to be in the middle of it when something is killed.
SLOW = "4MB"
VERY_SLOW = "500KB"
SLOW_HUB_BYTES_PER_SECOND = 4_000_000
# More than the planner reads of a header (4 MiB), less than the model has.
HELD_BYTES = 5 << 20
TRICKLE_BYTES_PER_SECOND = 100_000
PATIENT_SECONDS = 90.0


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StandInHub]:
    with StandInHub(tmp_path_factory.mktemp("hub")) as made:
        yield made


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory, hub: StandInHub) -> Iterator[FleetWorld]:
    with fleet_world(tmp_path_factory.mktemp("fleet")) as world:
        text = "hosts:\n"
        for place, name in enumerate((*HOSTS, SHARES)):
            ports = f"{18800 + 10 * place}-{18809 + 10 * place}"
            text += f"  {name}:\n    transport: local\n    agent_root: {world.folder / name}\n"
            text += f"    limits: {{ports: {ports}}}\n"
            text += f"    environment: {{HF_HOME: {hf_home(world, name)}, HF_ENDPOINT: {hub.url}}}\n"
        world.hosts_yaml.write_text(text)
        world.up(*HOSTS, SHARES)
        yield world


def hf_home(fleet: FleetWorld, host: str) -> Path:
    return fleet.folder / f"hf-{'c' if host == SHARES else host}"


def put_model(hub: StandInHub, name: str) -> str:
    hub.add(f"lab/{name}", "config.json", CONFIG)
    hub.add(f"lab/{name}", "model.safetensors", os.urandom(WEIGHTS_BYTES))
    return f"lab/{name}"


def fetched_bytes(hub: StandInHub, repository: str) -> int:
    """What relays and agents took; the controller asks for bounded ranges only."""
    return sum(
        one.sent
        for one in hub.served
        if one.repository == repository and (one.range_header is None or one.range_header.endswith("-"))
    )


def assert_everywhere(fleet: FleetWorld, hub: StandInHub, repository: str, hosts: tuple[str, ...] = HOSTS) -> None:
    """Byte for byte what the hub has, in the standard cache, and nothing half of it beside."""
    commit = hub.commit(repository)
    for host in hosts:
        folder = hf_home(fleet, host) / "hub" / f"models--{repository.replace('/', '--')}"
        for path in hub.files(repository):
            name = path.relative_to(hub.root / repository)
            assert (folder / "snapshots" / commit / name).read_bytes() == path.read_bytes(), (host, name)
        assert (folder / "refs" / "main").read_text() == commit
        assert not list((folder / "blobs").glob("*.incomplete"))


def relay_pids(fleet: FleetWorld, host: str) -> list[int]:
    listed = subprocess.run(["pgrep", "-af", "fleet_agent.relay"], capture_output=True, text=True, check=False).stdout
    return [int(line.split()[0]) for line in listed.splitlines() if f"{fleet.folder / host}/" in line]


def has_begun(fleet: FleetWorld, host: str, repository: str) -> bool:
    """Whether the host has a part that grows."""
    blobs = hf_home(fleet, host) / "hub" / f"models--{repository.replace('/', '--')}" / "blobs"
    return any(part.stat().st_size > WEIGHTS_BYTES // 20 for part in blobs.glob("*.incomplete"))


def start(fleet: FleetWorld, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        fleet.command(*arguments), env=fleet.environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def outcomes(document: Any) -> dict[str, bool]:
    return {host["host"]: host["ok"] for host in document["hosts"]}


def pull(repository: str, *more: str, hosts: tuple[str, ...] = HOSTS) -> list[str]:
    return ["pull", "--repo", repository, "--hosts", ",".join(hosts), "--yes", *more]


def test_fetched_once_and_verified_everywhere(fleet: FleetWorld, hub: StandInHub) -> None:
    repository = put_model(hub, "once")
    everybody = (*HOSTS, SHARES)
    shown = fleet.run(*pull(repository, "--dry-run", hosts=everybody)).stdout
    assert shown.count("fetch") == len(everybody)
    assert fetched_bytes(hub, repository) == 0
    ended = fleet.document(*pull(repository, hosts=everybody))
    assert outcomes(ended) == dict.fromkeys(everybody, True)
    assert_everywhere(fleet, hub, repository)
    total = WEIGHTS_BYTES + len(CONFIG)
    assert fetched_bytes(hub, repository) <= 1.01 * total
    all_of_it = ended["all"][0]["result"]
    assert (all_of_it["source_bytes"], all_of_it["lab_bytes"]) == (total, 2 * total)  # c and d are one node
    assert "nothing to fetch" in fleet.run(*pull(repository, hosts=everybody)).stdout
    checked = fleet.document("artifacts", "verify", repository, "--hosts", "a,b,c")
    assert {host["host"]: host["result"]["files"] for host in checked["hosts"]} == {"a": 2, "b": 2, "c": 2}
    assert not any(relay_pids(fleet, host) for host in everybody)
    assert not list(fleet.folder.glob("*/machines/*/jobs/pull-*/credentials"))


def head_of(running: subprocess.Popen[str]) -> str:
    """Who fetches from the hub: as soon as the pull says it. Which host that is depends on earlier pulls' rates."""
    assert running.stdout is not None
    said = ""
    for line in running.stdout:
        said += line
        if found := re.search(r"(\w+) is the head", line):
            return found[1]
    raise AssertionError(said)


@pytest.mark.parametrize(
    ("role", "share"),
    # What lies in the kernel of a head, unread, dies with its process; on a busy machine that is more than a percent.
    [("receiver", 1.01), ("head", 1.1)],
)
def test_a_killed_relay_comes_back_and_refetches_nothing(
    fleet: FleetWorld, hub: StandInHub, role: str, share: float
) -> None:
    repository = put_model(hub, f"killed-{role}")
    hub.behaviour.throttle = SLOW_HUB_BYTES_PER_SECOND
    try:
        running = start(fleet, *pull(repository))
        head = head_of(running)
        victim = head if role == "head" else next(host for host in HOSTS if host != head)
        eventually(lambda: has_begun(fleet, victim, repository), "it has a part", PATIENT_SECONDS)
        (before,) = relay_pids(fleet, victim)
        os.kill(before, signal.SIGKILL)
        said, _ = running.communicate(timeout=PATIENT_SECONDS)
    finally:
        hub.behaviour.throttle = 0
    assert running.returncode == 0, said
    assert role == "head" or f"{victim} is gone" in said, said
    assert_everywhere(fleet, hub, repository)
    assert fetched_bytes(hub, repository) <= share * (WEIGHTS_BYTES + len(CONFIG)), said


def test_a_killed_controller_goes_on_where_it_was(fleet: FleetWorld, hub: StandInHub) -> None:
    repository = put_model(hub, "restart")
    fleet.run("controller", "start")
    watching = start(fleet, *pull(repository, "--rate", SLOW))
    eventually(lambda: has_begun(fleet, "c", repository), "c has a part", PATIENT_SECONDS)
    os.kill(json.loads((fleet.state / "controller.json").read_text())["pid"], signal.SIGKILL)
    said, _ = watching.communicate(timeout=PATIENT_SECONDS)
    assert watching.returncode == 1, said
    fleet.run("controller", "start")  # takes it up by itself
    state = "SELECT state FROM pulls ORDER BY created_unix_ms DESC LIMIT 1"
    try:
        with sqlite3.connect(fleet.state / "fleet.db") as database:
            eventually(lambda: database.execute(state).fetchone()[0] == "done", "the pull is done", PATIENT_SECONDS)
        assert_everywhere(fleet, hub, repository)
        assert fetched_bytes(hub, repository) <= 1.01 * (WEIGHTS_BYTES + len(CONFIG))
        assert "nothing to fetch" in fleet.run(*pull(repository)).stdout
    finally:
        fleet.run("controller", "stop", code=None)


def test_another_host_of_a_cache_goes_on_for_one_that_is_lost(fleet: FleetWorld, hub: StandInHub) -> None:
    repository, everybody = put_model(hub, "heir"), (*HOSTS, SHARES)
    running = start(fleet, *pull(repository, "--rate", SLOW, hosts=everybody))
    eventually(lambda: has_begun(fleet, "c", repository), "c's cache has a part", PATIENT_SECONDS)
    lost = next(host for host in ("c", SHARES) if relay_pids(fleet, host))
    heir = SHARES if lost == "c" else "c"
    cancel_pull(fleet, lost)
    said, _ = running.communicate(timeout=PATIENT_SECONDS)
    assert running.returncode == 0, said
    assert f"goes on in place of {lost}, whose cache it shares" in said, said
    assert f"{lost}: verified: the files are in the cache that it shares with {heir}" in said, said
    assert_everywhere(fleet, hub, repository)
    assert fetched_bytes(hub, repository) <= 1.01 * (WEIGHTS_BYTES + len(CONFIG))


def cancel_pull(fleet: FleetWorld, host: str) -> None:
    """As if its relay could not go on."""

    async def cancel() -> None:
        settings = Settings(fleet.hosts_yaml, fleet.state, fleet.runtime)
        context = FleetContext(settings)
        async with context.pool.client(context.inventory().hosts[host]) as agent:
            (job,) = [job for job in await agent.list_jobs(active_only=True) if job.job_id.startswith("pull-")]
            await agent.cancel_job(job.job_id)
        await context.pool.close()

    asyncio.run(cancel())


def test_what_a_running_pull_has_brought_is_not_taken_away(fleet: FleetWorld, hub: StandInHub) -> None:
    repository, everybody = put_model(hub, "collected"), (*HOSTS, SHARES)
    running = start(fleet, *pull(repository, "--rate", SLOW, hosts=everybody))
    eventually(lambda: has_begun(fleet, "c", repository), "c has a part", PATIENT_SECONDS)
    said = fleet.run("artifacts", "gc", repository, "--hosts", ",".join(everybody), "--yes").stdout
    assert "nothing to remove" in said
    assert f"a: {repository} stays: pull-" in said
    told, _ = running.communicate(timeout=PATIENT_SECONDS)
    assert running.returncode == 0, told
    assert_everywhere(fleet, hub, repository)
    assert fetched_bytes(hub, repository) <= 1.01 * (WEIGHTS_BYTES + len(CONFIG))


def test_content_that_is_there_under_another_name_is_not_fetched(fleet: FleetWorld, hub: StandInHub) -> None:
    repository = put_model(hub, "original")
    fleet.document(*pull(repository, hosts=("a", "b")))
    weights = (hub.root / repository / "model.safetensors").read_bytes()
    hub.add("lab/copy", "renamed.safetensors", weights)
    hub.add("lab/copy", "config.json", b"{}")
    ended = fleet.document(*pull("lab/copy", hosts=("a", "b")))
    assert ended["all"][0]["result"]["source_bytes"] == len(b"{}")
    assert_everywhere(fleet, hub, "lab/copy", ("a", "b"))


def test_a_terminal_that_was_closed_is_followed_by_the_same_command(fleet: FleetWorld, hub: StandInHub) -> None:
    """Without a resident controller the terminal is the controller: relays go on without it."""
    repository = put_model(hub, "joined")
    watching = start(fleet, *pull(repository, "--rate", SLOW))
    eventually(lambda: has_begun(fleet, "c", repository), "c has a part", PATIENT_SECONDS)
    watching.kill()
    watching.communicate()
    ended = fleet.document(*pull(repository, "--rate", SLOW))
    assert ended["pulls"][0]["resumes"]
    assert outcomes(ended) == dict.fromkeys(HOSTS, True)
    assert_everywhere(fleet, hub, repository)
    assert fetched_bytes(hub, repository) <= 1.01 * (WEIGHTS_BYTES + len(CONFIG))


def test_a_pull_is_ended_by_the_same_command(fleet: FleetWorld, hub: StandInHub) -> None:
    repository = put_model(hub, "ended")
    watching = start(fleet, *pull(repository, "--rate", VERY_SLOW))
    eventually(lambda: has_begun(fleet, "c", repository), "c has a part", PATIENT_SECONDS)
    refused = fleet.run(*pull(repository), code=3).stderr
    assert "another terminal is at this pull" in refused
    assert "--stop" in refused
    stopped = fleet.document(*pull(repository, "--stop"))
    assert {host["message"] for host in stopped["hosts"]} == {"stopped; what has arrived stays"}
    said, _ = watching.communicate(timeout=PATIENT_SECONDS)
    assert watching.returncode == 1
    assert "a: stopped; what has arrived stays" in said
    assert not any(relay_pids(fleet, host) for host in HOSTS)
    assert has_begun(fleet, "c", repository)
    assert "no such pull runs" in fleet.run(*pull(repository, "--stop")).stdout
    assert not fleet.document(*pull(repository))["pulls"][0]["resumes"]
    assert_everywhere(fleet, hub, repository)
    # What a terminal that was closed has left behind ends, too.
    repository = put_model(hub, "left")
    watching = start(fleet, *pull(repository, "--rate", VERY_SLOW))
    eventually(lambda: has_begun(fleet, "c", repository), "c has a part", PATIENT_SECONDS)
    watching.kill()
    watching.communicate()
    fleet.run(*pull(repository, "--stop"))
    assert not any(relay_pids(fleet, host) for host in HOSTS)


def test_a_host_that_has_it_is_the_source(fleet: FleetWorld, hub: StandInHub) -> None:
    repository = put_model(hub, "source")
    fleet.document(*pull(repository, hosts=("b",)))
    hub.behaviour.metadata_only = True  # the hub has no files any more
    try:
        ended = fleet.document(*pull(repository, "--from", "host:b", hosts=("a", "c")))
    finally:
        hub.behaviour.metadata_only = False
    assert ended["all"][0]["result"]["source_bytes"] == 0
    assert_everywhere(fleet, hub, repository)
    refused = fleet.run(*pull(put_model(hub, "nobody"), "--from", "host:b", hosts=("a",)), code=1)
    assert "b does not have lab/nobody" in refused.stderr


def test_metadata_here_and_files_there(fleet: FleetWorld, hub: StandInHub) -> None:
    """The hosts' own mirror lists the model and has no file of it; this machine knows a hub that has."""
    repository = put_model(hub, "mirrored")
    hub.behaviour.metadata_only = True
    try:
        with StandInHub(hub.root) as full:
            done = fleet.run(*pull(repository), extra={"HF_ENDPOINT": full.url})
            assert f"no files from {hub.url}: it answers HTTP 404" in done.stdout
            assert f"from {full.url}" in done.stdout
            assert fetched_bytes(full, repository) <= 1.01 * (WEIGHTS_BYTES + len(CONFIG))
    finally:
        hub.behaviour.metadata_only = False
    assert_everywhere(fleet, hub, repository)


def test_a_folder_is_imported_without_any_hub(fleet: FleetWorld, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    (folder / "sub").mkdir(parents=True)
    (folder / "config.json").write_bytes(CONFIG)
    (folder / "sub" / "model.safetensors").write_bytes(os.urandom(3_000_000))
    command = ["import", str(folder), "--repo", "own/model", "--hosts", "a,b", "--yes"]
    ended = fleet.document(*command)
    assert outcomes(ended) == {"a": True, "b": True}
    commit = ended["pulls"][0]["commit"]
    for host in ("a", "b"):
        snapshot = hf_home(fleet, host) / "hub" / "models--own--model" / "snapshots" / commit
        assert (snapshot / "sub" / "model.safetensors").read_bytes() == (folder / "sub/model.safetensors").read_bytes()
    # Hashes that were noted when the folder was downloaded are held to.
    noted = folder / ".cache" / "huggingface" / "download"
    noted.mkdir(parents=True)
    (noted / "config.json.metadata").write_text(f"{'1' * 40}\n{'2' * 40}\n0\n")
    refused = fleet.run(*command, code=1)
    assert "config.json" in refused.stderr
    on_host = fleet.document("import", f"a:{folder / 'sub'}", "--repo", "own/other", "--hosts", "c", "--yes")
    assert outcomes(on_host) == {"a": True, "c": True}


def test_an_import_is_gone_on_with(fleet: FleetWorld, tmp_path: Path) -> None:
    """The folder is handed out by another process then, at another port."""
    (tmp_path / "model.safetensors").write_bytes(os.urandom(WEIGHTS_BYTES))
    command = ["import", str(tmp_path), "--repo", "lab/imported", "--hosts", "a,b", "--yes", "--rate", SLOW]
    watching = start(fleet, *command)
    eventually(lambda: has_begun(fleet, "b", "lab/imported"), "b has a part", PATIENT_SECONDS)
    watching.kill()
    watching.communicate()
    ended = fleet.document(*command)
    assert ended["pulls"][0]["resumes"]
    assert outcomes(ended) == {"a": True, "b": True}
    for host in ("a", "b"):
        copy = Path({one["host"]: one["result"]["snapshot"] for one in ended["hosts"]}[host]) / "model.safetensors"
        assert copy.read_bytes() == (tmp_path / "model.safetensors").read_bytes()
    assert ended["all"][0]["result"]["source_bytes"] <= 1.01 * WEIGHTS_BYTES


def test_a_deploy_finds_what_was_pulled_and_pulls_what_it_lacks(
    fleet: FleetWorld, hub: StandInHub, llama_cpp_bin: Path, tmp_path: Path
) -> None:
    content = make_tiny_model(tmp_path, "chain", layers=5).gguf_path.read_bytes()

    def deploy(name: str, *more: str) -> list[str]:
        return ["deploy", "--repo", f"lab/{name}", "--backend", "llama.cpp", "--engine-path", str(llama_cpp_bin),
                "--context", "512", "--hosts", "a,b", "--yes", *more]  # fmt: skip

    for name in ("pulled", "unpulled"):
        hub.add(f"lab/{name}", "tiny-F16.gguf", content)
    fleet.document(*pull("lab/pulled", hosts=("a", "b")))
    before = fetched_bytes(hub, "lab/pulled")
    assert before <= 1.01 * len(content)
    try:
        plan = fleet.document(*deploy("pulled", "--dry-run"))["plan"]
        assert [host["download_bytes"] for host in plan] == [0, 0]
        assert outcomes(fleet.document(*deploy("pulled"))) == {"a": True, "b": True}
        assert fetched_bytes(hub, "lab/pulled") == before
        said = fleet.run("artifacts", "gc", "lab/pulled", "--hosts", "a,b", "--yes").stdout
        assert "nothing to remove" in said
        assert "lab/pulled stays: pulled uses it" in said
        assert outcomes(fleet.document(*deploy("unpulled"))) == {"a": True, "b": True}
        assert fetched_bytes(hub, "lab/unpulled") <= 1.01 * len(content)
        assert_everywhere(fleet, hub, "lab/unpulled", ("a", "b"))
    finally:
        fleet.run("stop", "--all", "--remove", "--yes", code=None)


def test_a_rollout_that_is_paused_or_aborted_ends_its_pull(
    fleet: FleetWorld, hub: StandInHub, llama_cpp_bin: Path, tmp_path: Path
) -> None:
    content = make_tiny_model(tmp_path, "chain", layers=8).gguf_path.read_bytes()
    hub.add("lab/paused", "tiny-F16.gguf", content)
    command = ["deploy", "--repo", "lab/paused", "--backend", "llama.cpp", "--engine-path", str(llama_cpp_bin),
               "--context", "512", "--hosts", "a,b", "--yes"]  # fmt: skip
    hub.behaviour.hold_after = HELD_BYTES

    def is_under_way() -> bool:
        blobs = hf_home(fleet, "b") / "hub" / "models--lab--paused" / "blobs"
        return any(part.stat().st_size > HELD_BYTES // 2 for part in blobs.glob("*.incomplete"))

    try:
        deploying = start(fleet, *command)
        eventually(is_under_way, "b has a part", PATIENT_SECONDS)
        hub.behaviour.throttle, hub.behaviour.hold_after = TRICKLE_BYTES_PER_SECOND, 0
        hub.behaviour.released.set()
        assert fleet.document("rollout", "pause")["hosts"][0]["message"].startswith("paused: ")
        deploying.communicate(timeout=PATIENT_SECONDS)
        assert not any(relay_pids(fleet, host) for host in HOSTS)
        assert is_under_way()  # what has arrived stays
        # A controller that dies in the middle leaves relays, which an abort ends.
        resuming = start(fleet, "rollout", "resume", "--yes")
        eventually(lambda: all(relay_pids(fleet, host) for host in ("a", "b")), "relays again", PATIENT_SECONDS)
        resuming.kill()
        resuming.communicate()
        assert fleet.document("rollout", "abort")["hosts"][0]["message"].startswith("aborted: ")
        eventually(lambda: not any(relay_pids(fleet, host) for host in HOSTS), "no relay is left", PATIENT_SECONDS)
    finally:
        hub.behaviour.throttle = hub.behaviour.hold_after = 0
        hub.behaviour.released.set()
    try:
        assert outcomes(fleet.document("rollout", "resume", "--yes")) == {"a": True, "b": True}
        assert_everywhere(fleet, hub, "lab/paused", ("a", "b"))
        assert fetched_bytes(hub, "lab/paused") <= 1.2 * len(content)  # each relay that ended had some on its way
    finally:
        fleet.run("stop", "--all", "--remove", "--yes", code=None)


def test_damage_is_found_and_what_nobody_uses_goes(fleet: FleetWorld, hub: StandInHub) -> None:
    repository = put_model(hub, "checked")
    fleet.document(*pull(repository, hosts=("a", "b")))
    blobs = hf_home(fleet, "a") / "hub" / "models--lab--checked" / "blobs"
    weights = max(blobs.iterdir(), key=lambda path: path.stat().st_size)
    with weights.open("r+b") as stream:
        stream.seek(1000)
        stream.write(b"damage")
    checked = fleet.run("artifacts", "verify", repository, "--hosts", "a,b", code=1)
    assert "model.safetensors of lab/checked is damaged" in checked.stderr
    assert "b: 2 files" in checked.stdout
    # What somebody else put there goes only where it is named.
    others = hf_home(fleet, "b") / "hub" / "models--else--model"
    shutil.copytree(hf_home(fleet, "b") / "hub" / "models--lab--checked", others, symlinks=True)
    listed = {
        one["repository"]: one for one in fleet.document("artifacts", "list", "--hosts", "b")["hosts"][0]["artifacts"]
    }
    assert (listed[repository]["brought"], listed["else/model"]["brought"]) == (True, False)
    gone = fleet.document("artifacts", "gc", "--hosts", "b", "--dry-run")["removable"]
    assert repository in {one["repository"] for one in gone}
    assert "else/model" not in {one["repository"] for one in gone}
    fleet.document("artifacts", "gc", repository, "else/model", "--hosts", "a,b", "--yes")
    assert not blobs.exists()
    assert not others.exists()


def test_time_of_a_host_that_is_down_is_not_waited_for(fleet: FleetWorld, hub: StandInHub) -> None:
    text = fleet.hosts_yaml.read_text()
    repository = put_model(hub, "away")
    fleet.hosts_yaml.write_text(text + "  away:\n    address: 127.0.0.1\n    port: 1\n")
    try:
        began = time.monotonic()
        ended = fleet.document(*pull(repository, hosts=("a", "b", "away")), code=1)
    finally:
        fleet.hosts_yaml.write_text(text)
    assert outcomes(ended) == {"a": True, "b": True, "away": False}
    assert time.monotonic() - began < PATIENT_SECONDS
    assert_everywhere(fleet, hub, repository, ("a", "b"))
