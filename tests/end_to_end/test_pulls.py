"""Pulls between hosts of their own networks, over SSH-only control: real addresses, real links, real mutual TLS."""

import json
import os
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from end_to_end.lab import HOSTS, Lab, kill, one

from benchmarks.relay_network import run
from support.fleet_cli import eventually

pytestmark = [pytest.mark.namespaces, pytest.mark.llama_cpp, pytest.mark.slow]

WEIGHTS_BYTES = 24_000_000


def put_model(lab: Lab, name: str) -> str:
    lab.hub.add(f"lab/{name}", "config.json", b"{}")
    lab.hub.add(f"lab/{name}", "model.safetensors", os.urandom(WEIGHTS_BYTES))
    lab.published.append(name)
    return f"lab/{name}"


def cache(lab: Lab, host: str, repository: str) -> Path:
    return lab.fleet.hosts[host].home / ".cache/huggingface/hub" / f"models--{repository.replace('/', '--')}"


def assert_everywhere(lab: Lab, repository: str, hosts: tuple[str, ...] = HOSTS) -> None:
    commit = lab.hub.commit(repository)
    for host in hosts:
        for path in lab.hub.files(repository):
            copy = cache(lab, host, repository) / "snapshots" / commit / path.name
            assert copy.read_bytes() == path.read_bytes(), (host, path.name)


@contextmanager
def island(lab: Lab, host: str) -> Iterator[None]:
    """The host reaches this machine, and no other host; nobody reaches it."""
    namespace = lab.fleet.hosts[host].namespace
    others = [other.address for name, other in lab.fleet.hosts.items() if name != host]
    for address in others:
        run("ip", "-n", namespace, "route", "add", "blackhole", f"{address}/32")
    try:
        yield
    finally:
        for address in others:
            run("ip", "-n", namespace, "route", "delete", "blackhole", f"{address}/32")


def ssh_children(lab: Lab) -> list[str]:
    listed = run("pgrep", "-af", "^ssh ", check=False).splitlines()
    return [line for line in listed if str(lab.fleet.ssh_config) in line and " -R " in line]


def has_begun(lab: Lab, host: str, repository: str) -> bool:
    parts = list((cache(lab, host, repository) / "blobs").glob("*.incomplete"))
    return any(part.stat().st_size > WEIGHTS_BYTES // 20 for part in parts)


def test_bytes_cross_the_uplink_once(lab: Lab) -> None:
    repository = put_model(lab, "crossed")
    document = lab.cli.ok("pull", "--repo", repository, "--hosts", "all", "--yes", "--json").document
    assert [host["ok"] for host in document["hosts"]] == [True] * len(HOSTS)
    assert_everywhere(lab, repository)
    assert sum(end - start for start, end in lab.downloaded("crossed")) <= 1.01 * (WEIGHTS_BYTES + 2)
    assert not any(lab.processes(host, "fleet_agent.relay") for host in HOSTS)


def test_a_host_that_reaches_no_other_is_fed_through_ssh(lab: Lab) -> None:
    repository = put_model(lab, "island")
    with island(lab, "gpu2"):
        ended = lab.cli.ok("pull", "--repo", repository, "--hosts", "all", "--yes")
    assert "gpu2: pull: reaches no other host: fed through ssh" in ended.errors, str(ended)
    assert_everywhere(lab, repository)
    assert sum(end - start for start, end in lab.downloaded("island")) <= 1.01 * (WEIGHTS_BYTES + 2)
    assert not ssh_children(lab)


def test_an_island_whose_ssh_is_killed_is_fed_by_another(lab: Lab) -> None:
    repository = put_model(lab, "killed-ssh")
    with island(lab, "gpu2"):
        running = lab.cli.start("pull", "--repo", repository, "--hosts", "all", "--yes", "--rate", "4MB")
        eventually(lambda: has_begun(lab, "gpu2", repository), "gpu2 has a part")
        kill(*(int(line.split()[0]) for line in ssh_children(lab)))
        finished = running.finish(45)
    assert finished.code == 0, str(finished)
    assert_everywhere(lab, repository)
    assert not ssh_children(lab)


def test_an_island_is_fed_again_by_the_next_controller(lab: Lab) -> None:
    """A controller that is killed takes its ways with it, and the one that comes next opens ways of its own."""
    repository = put_model(lab, "next")
    lab.cli.ok("controller", "start")
    try:
        with island(lab, "gpu2"):
            watching = lab.cli.start("pull", "--repo", repository, "--hosts", "all", "--yes", "--rate", "4MB")
            eventually(lambda: has_begun(lab, "gpu2", repository), "gpu2 has a part")
            before = ssh_children(lab)
            assert before
            kill(json.loads((lab.cli.folder / "state" / "controller.json").read_text())["pid"])
            eventually(lambda: not ssh_children(lab), "its ssh children have ended")
            assert watching.finish().code == 1
            lab.cli.ok("controller", "start")  # goes on by itself
            eventually(lambda: ssh_children(lab), "the island has ways again")
            state = "SELECT state FROM pulls ORDER BY created_unix_ms DESC LIMIT 1"
            with sqlite3.connect(lab.cli.folder / "state" / "fleet.db") as database:
                eventually(lambda: database.execute(state).fetchone()[0] == "done", "the pull is done")
    finally:
        lab.cli.run("controller", "stop")
    assert_everywhere(lab, repository)
    assert sum(end - start for start, end in lab.downloaded("next")) <= 1.01 * (WEIGHTS_BYTES + 2)
    assert not ssh_children(lab)


def test_a_host_that_is_switched_off_holds_nobody_up(lab: Lab) -> None:
    repository = put_model(lab, "off")
    running = lab.cli.start("pull", "--repo", repository, "--hosts", "all", "--yes", "--rate", "4MB")
    eventually(lambda: has_begun(lab, "gpu2", repository), "gpu2 has a part")
    lab.fleet.link_down("gpu2")
    try:
        finished = running.finish(180)
    finally:
        lab.fleet.link_up("gpu2")
    assert finished.code == 1, str(finished)
    assert "gpu2: pull: does not answer" in finished.errors, str(finished)
    assert "error: gpu2: " in finished.errors, str(finished)
    assert {line.partition(":")[0] for line in finished.output.splitlines() if "verified" in line} == {"gpu1", "mac1"}
    assert_everywhere(lab, repository, ("gpu1", "mac1"))
    again = lab.cli.ok("pull", "--repo", repository, "--hosts", "all", "--yes", "--json")
    assert_everywhere(lab, repository)
    assert again.document["all"][0]["result"]["source_bytes"] == 0


def test_a_folder_of_this_machine_is_handed_to_one_host(lab: Lab, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(os.urandom(20))
    (tmp_path / "model.safetensors").write_bytes(os.urandom(WEIGHTS_BYTES // 4))
    document = lab.cli.ok("import", str(tmp_path), "--repo", "own/handed", "--hosts", "all", "--yes", "--json").document
    result = document["all"][0]["result"]
    assert result["source_bytes"] == result["total_bytes"]
    assert result["lab_bytes"] == 2 * result["total_bytes"]
    commit = document["pulls"][0]["commit"]
    for host in HOSTS:
        copy = cache(lab, host, "own/handed") / "snapshots" / commit / "model.safetensors"
        assert copy.read_bytes() == (tmp_path / "model.safetensors").read_bytes()
        shutil.rmtree(cache(lab, host, "own/handed"))
    assert not ssh_children(lab)


def test_killed_runners_and_agents_cost_nothing(lab: Lab) -> None:
    """The runner takes its relay with it; the agent starts another runner, which goes on along its last orders."""
    repository = put_model(lab, "runner")
    running = lab.cli.start("pull", "--repo", repository, "--hosts", "all", "--yes", "--rate", "4MB")
    eventually(lambda: has_begun(lab, "gpu2", repository), "gpu2 has a part")
    kill(one(lab.runners("gpu2")))
    kill(one(lab.agents("mac1")))
    finished = running.finish()
    assert finished.code == 0, str(finished)
    assert_everywhere(lab, repository)
    assert sum(end - start for start, end in lab.downloaded("runner")) <= 1.01 * (WEIGHTS_BYTES + 2)
