"""`fleet init`, and what a user's mistakes look like: one clear message, what to do next, the right exit code."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.fleet_world import FleetWorld, fleet_world


@pytest.fixture
def world(tmp_path: Path) -> Iterator[FleetWorld]:
    with fleet_world(tmp_path) as made:
        yield made


def test_init_writes_a_file_that_is_understood_and_never_overwrites_it(world: FleetWorld) -> None:
    world.run("init")
    written = world.hosts_yaml.read_text()
    world.hosts_yaml.write_text(written + "# mine\n")

    refused = world.run("init", code=2)
    assert "is there already" in refused.stderr
    assert "fleet init --force" in refused.stderr
    assert world.hosts_yaml.read_text().endswith("# mine\n")

    assert world.document("init", "--force") == {"path": str(world.hosts_yaml), "hosts": []}
    assert world.hosts_yaml.read_text() == written


def test_init_takes_hosts_from_ssh_config(world: FleetWorld) -> None:
    ssh = world.home / ".ssh"
    ssh.mkdir()
    (ssh / "config").write_text("Host gpu1 gpu2\n  User lab\nHost *\n  Port 2222\n")
    assert "2 hosts" in world.run("init", "--from-ssh-config").stdout
    cached = world.document("hosts", "--cached", code=1)
    assert [host["host"] for host in cached["hosts"]] == ["gpu1", "gpu2"]
    assert cached["hosts"][0]["problem"]["code"] == "never-seen"


def test_no_hosts_file_names_the_command_that_writes_one(world: FleetWorld) -> None:
    assert "fleet init" in world.run("hosts", code=2).stderr


def test_malformed_yaml_names_file_and_line(world: FleetWorld) -> None:
    world.hosts_yaml.write_text("hosts:\n  gpu1:\n    prot: 22\n")
    message = world.run("hosts", code=2).stderr
    assert f"{world.hosts_yaml}:3" in message
    assert "did you mean 'port'?" in message


def test_up_plans_with_the_transport_that_was_asked_for(world: FleetWorld) -> None:
    world.hosts_yaml.write_text("hosts:\n  gpu1: {address: 127.0.0.1, port: 1}\n")
    (row,) = world.document("up", "all", "--transport", "tls", "--dry-run")["hosts"]
    assert row["transport"] == "tls"
    assert row["action"].endswith("give it a certificate for transport tls")
    assert "one of: ssh, tls, local" in world.run("up", "all", "--transport", "tsl", "--dry-run", code=2).stderr


def test_a_pattern_without_a_match_lists_near_names(world: FleetWorld) -> None:
    world.local_hosts("gpu1", "gpu2")
    assert "did you mean gpu1" in world.run("ps", "gpu11", code=2).stderr


def test_unknown_model_names_near_ones(world: FleetWorld) -> None:
    world.local_hosts("a")
    assert "glm-4.7-flash" in world.run("deploy", "glm-4.7-flsh", "--hosts", "a", code=2).stderr


def test_wrong_quantization_lists_those_there_are(world: FleetWorld) -> None:
    world.local_hosts("a")
    assert "UD-Q4_K_XL" in world.run("deploy", "qwen3.5-9b:Q5_X", "--hosts", "a", code=2).stderr


def test_a_truncated_gguf_is_refused_before_anything_runs(world: FleetWorld) -> None:
    world.local_hosts("a")
    broken = world.folder / "broken.gguf"
    broken.write_bytes(b"GGUF\x03\x00\x00\x00\x05")
    message = world.run("deploy", str(broken), "--hosts", "a", code=2).stderr
    assert "broken.gguf" in message


def test_stop_without_a_model_is_a_usage_error(world: FleetWorld) -> None:
    world.local_hosts("a")
    assert "--all" in world.run("stop", code=2).stderr


def test_bench_looks_at_the_pattern_before_it_asks(world: FleetWorld) -> None:
    world.local_hosts("gpu1")
    message = world.run("bench", "tiny", "--hosts", "gpu11", code=2).stderr
    assert "did you mean gpu1" in message
    assert "--yes" not in message


def test_a_host_without_agent_is_reported_and_the_exit_code_is_1(world: FleetWorld) -> None:
    world.local_hosts("a")
    done = world.run("hosts", code=1)
    assert "no-agent" in done.stdout
    assert "next: fleet up a" in done.stderr


def test_doctor_says_what_to_do_about_each_failed_check(world: FleetWorld) -> None:
    assert "fleet init" in world.run("doctor", code=1).stderr
    world.local_hosts("a")
    checks = world.document("doctor", code=1)["checks"]
    failed = [check for check in checks if check["state"] == "failed"]
    assert [(check["where"], check["name"]) for check in failed] == [("a", "connection")]
    assert all(check["remedy"] for check in failed)


def test_models_lists_the_catalog(world: FleetWorld) -> None:
    assert "qwen3.5-9b" in world.run("models").stdout
    assert world.document("models")["models"]


def test_help_loads_nothing_heavy(world: FleetWorld) -> None:
    code = (
        "import sys, fleet_controller.cli.app;"
        "heavy = {'grpc', 'pydantic', 'asyncssh', 'sqlite_utils', 'huggingface_hub', 'yaml', 'google.protobuf'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
