"""The whole vertical line on three hosts, each with its own real sshd, user and home."""

import pytest
from end_to_end.lab import HOSTS, Lab

from support.tiny_model import ANSWER

pytestmark = [pytest.mark.namespaces, pytest.mark.llama_cpp, pytest.mark.slow]


def test_up_again_changes_nothing(lab: Lab) -> None:
    agents = {host: lab.agents(host) for host in HOSTS}
    document = lab.cli.ok("up", "all", "--yes", "--wheels", str(lab.wheels), "--json").document
    assert [(host["host"], host["ok"], host["changed"]) for host in document["hosts"]] == [
        (host, True, False) for host in HOSTS
    ]
    assert {host: lab.agents(host) for host in HOSTS} == agents
    assert all(len(pids) == 1 for pids in agents.values())


def test_hosts_tell_what_they_are(lab: Lab) -> None:
    document = lab.cli.ok("hosts", "--json").document
    reports = {host["host"]: host for host in document["hosts"]}
    assert list(reports) == list(HOSTS)
    assert {report["connection"] for report in reports.values()} == {"up"}
    machines = {report["facts"]["machine_id"] for report in reports.values()}
    assert len(machines) == len(HOSTS)
    table = lab.cli.ok("hosts").output
    assert all(host in table for host in HOSTS)


def test_a_model_is_deployed_asked_logged_and_stopped(lab: Lab) -> None:
    lab.publish("tiny-chat")
    command = lab.deploy_arguments("lab/tiny-chat", "all", "--json")

    first = lab.cli.ok(*command).document
    assert {host["host"]: (host["ok"], host["changed"]) for host in first["hosts"]} == dict.fromkeys(
        HOSTS, (True, True)
    )
    for host in first["hosts"]:
        result = host["result"]
        assert result["answer"] == ANSWER
        assert lab.ask(host["host"], result["endpoint"], result["model"]) == ANSWER
    servers = {host: lab.servers(host, "tiny-chat") for host in HOSTS}
    assert all(len(pids) == 1 for pids in servers.values())

    again = lab.cli.ok(*lab.deploy_arguments("lab/tiny-chat", "all"))
    assert "nothing to change" in again.output
    assert {host: lab.servers(host, "tiny-chat") for host in HOSTS} == servers

    listed = lab.cli.ok("ps", "--json").document
    assert {host["host"]: [service["state"] for service in host["services"]] for host in listed["hosts"]} == {
        host: ["ready"] for host in HOSTS
    }
    logs = lab.cli.ok("logs", "tiny-chat", "--tail", "0").output
    assert all(f"{host}: " in logs for host in HOSTS)
    assert "listening on" in logs

    stopped = lab.cli.ok("stop", "tiny-chat", "--yes", "--json").document
    assert all(host["ok"] and host["changed"] for host in stopped["hosts"])
    assert not any(lab.servers(host, "tiny-chat") for host in HOSTS)


@pytest.mark.mlx
def test_mlx_lm_serves_beside_llama_cpp(lab: Lab) -> None:
    lab.publish("tiny-chat")
    lab.publish_folder("tiny-mlx")
    lab.cli.ok(*lab.deploy_arguments("lab/tiny-chat", "mac1"))

    command = ("deploy", "--repo", "lab/tiny-mlx", "--hosts", "mac1", "--backend", "mlx-lm", "--yes")
    result = lab.cli.ok(*command, "--json").document["hosts"][0]["result"]
    assert result["answer"] == ANSWER
    assert lab.ask("mac1", result["endpoint"], result["model"]) == ANSWER

    listed = lab.cli.ok("ps", "mac1", "--json").document["hosts"][0]["services"]
    assert {one["spec"]["name"]: (one["spec"]["backend"], one["state"]) for one in listed} == {
        "tiny-chat": ("llama.cpp", "ready"),
        "tiny-mlx": ("mlx-lm", "ready"),
    }
    assert len({one["spec"]["port"] for one in listed}) == 2
    assert "nothing to change" in lab.cli.ok(*command).output
    assert lab.cli.ok("logs", "tiny-mlx", "--hosts", "mac1").output.strip()
