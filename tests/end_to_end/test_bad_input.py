"""What people and machines get wrong: one clear message each, with what to do next, and the right exit code."""

import re
from pathlib import Path

import pytest
from end_to_end.lab import GGUF_NAME, Lab

from support.fleet_cli import Finished

pytestmark = [pytest.mark.namespaces, pytest.mark.llama_cpp, pytest.mark.slow]


def assert_one_error(finished: Finished, code: int, *words: str) -> None:
    """The exit code, these words, and one `error:` line: no wall of text, no traceback (FleetCli looks for it)."""
    assert finished.code == code, str(finished)
    errors = [line for line in finished.errors.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, str(finished)
    for word in words:
        assert word in finished.said, f"{word!r} is missing:\n{finished}"


def test_malformed_yaml(lab: Lab) -> None:
    good = lab.cli.hosts_file.read_text()
    try:
        lab.cli.hosts_file.write_text("hosts:\n  gpu1:\n\taddress: gpu1\n")
        assert_one_error(lab.cli.run("hosts"), 2, f"{lab.cli.hosts_file}:3", "spaces")
        lab.cli.hosts_file.write_text("hosts:\n  gpu1:\n    adress: gpu1\n")
        assert_one_error(lab.cli.run("hosts"), 2, f"{lab.cli.hosts_file}:3", "adress", "address")
    finally:
        lab.cli.hosts_file.write_text(good)


def test_a_host_that_nobody_has(lab: Lab) -> None:
    assert_one_error(lab.cli.run("hosts", "gpu11"), 2, "gpu11", "gpu1")


def test_an_unknown_model(lab: Lab) -> None:
    assert_one_error(lab.cli.run("deploy", "qwen3.5-9", "--hosts", "gpu1", "--yes"), 2, "qwen3.5-9", "qwen3.5-9b")
    unknown = lab.cli.run(*lab.deploy_arguments("lab/nothing-there", "gpu1"))
    assert_one_error(unknown, 2, "lab/nothing-there")


def test_a_quantization_that_the_repository_lacks(lab: Lab) -> None:
    lab.publish("only-f16")
    finished = lab.cli.run(*lab.deploy_arguments("lab/only-f16", "gpu1", "--quant", "Q4_K_M"))
    assert finished.code in (1, 2), str(finished)
    assert "Q4_K_M" in finished.said
    assert "F16" in finished.said
    assert not lab.downloaded("only-f16")


@pytest.mark.parametrize(("cut", "size_bytes"), [("header", 2000), ("weights", 2_000_000)])
def test_a_truncated_gguf(lab: Lab, cut: str, size_bytes: int) -> None:
    """Seen before anything is started, on the hub as on a disk."""
    content = lab.model.gguf_path.read_bytes()[:size_bytes]
    folder = lab.fleet.folder / "truncated"
    folder.mkdir(exist_ok=True)
    (folder / f"{cut}-F16.gguf").write_bytes(content)
    more = ("--backend", "llama.cpp", "--engine-path", str(lab.engine), "--context", "512", "--yes")
    local = lab.cli.run("deploy", str(folder / f"{cut}-F16.gguf"), "--hosts", "gpu1", *more)
    assert_one_error(local, 2, f"{cut}-F16.gguf", "cut off", "next: ")

    lab.hub.add(f"lab/truncated-{cut}", GGUF_NAME, content)
    lab.published.append(f"truncated-{cut}")
    remote = lab.cli.run(*lab.deploy_arguments(f"lab/truncated-{cut}", "gpu1"))
    assert remote.code in (1, 2), str(remote)
    assert re.search("cut off|truncated|incomplete", remote.errors), str(remote)


def test_a_hub_whose_bytes_are_wrong(lab: Lab) -> None:
    """The file is never put in place under its name."""
    lab.publish("wrong-bytes")
    lab.hub.behaviour.wrong_bytes = 1000
    finished = lab.cli.run(*lab.deploy_arguments("lab/wrong-bytes", "gpu1"))
    assert_one_error(finished, 1, "gpu1: ", GGUF_NAME, "hash", "next: ")
    repository = lab.fleet.hosts["gpu1"].home / ".cache/huggingface/hub/models--lab--wrong-bytes"
    assert not [path for path in (repository / "blobs").iterdir() if path.suffix != ".incomplete"]
    assert not list((repository / "snapshots").rglob("*.gguf"))


def test_an_agent_of_another_protocol_version(lab: Lab) -> None:
    packages = (lab.machine_dir("gpu2") / "agent/current/venv/lib").glob("python3*/site-packages")
    module = next(packages) / "fleet_proto/__init__.py"
    good = module.read_text()
    try:
        other = re.sub(r"^((?:MINIMUM_)?PROTOCOL\b[^=]*= *)\d+", r"\g<1>99", good, flags=re.MULTILINE)
        assert other != good
        module.write_text(other)
        restarted = lab.cli.run("agent", "restart", "gpu2", "--yes")
        assert_one_error(restarted, 1, "gpu2: ", "protocol")
        listing = lab.cli.run("hosts", "gpu1,gpu2")
        assert listing.code == 1, str(listing)
        assert "protocol" in listing.said
        assert re.search(r"fleet agent upgrade|upgrade fleet", listing.said), str(listing)
    finally:
        module.write_text(good)
        lab.cli.ok("agent", "restart", "gpu2", "--yes")


def ssh_config_with(lab: Lab, tmp_path: Path, known_hosts: Path) -> str:
    text = lab.fleet.ssh_config.read_text().replace(str(lab.fleet.known_hosts), str(known_hosts))
    config = tmp_path / "config"
    config.write_text(text)
    return str(config)


def test_an_unknown_host_key_is_shown_and_not_taken(lab: Lab, tmp_path: Path) -> None:
    """`--yes` answers every other question."""
    known_hosts = tmp_path / "known_hosts"
    config = ssh_config_with(lab, tmp_path, known_hosts)
    finished = lab.cli.run("up", "gpu1", "--yes", FLEET_SSH_CONFIG=config)
    assert finished.code == 1, str(finished)
    assert "SHA256:" in finished.errors
    assert "ssh" in finished.errors
    assert not known_hosts.exists() or not known_hosts.read_text()


def test_a_changed_host_key_is_refused(lab: Lab, tmp_path: Path) -> None:
    known_hosts = tmp_path / "known_hosts"
    other = Path(f"{lab.fleet.hosts['gpu2'].host_key}.pub").read_text().split()[:2]
    line = " ".join([lab.fleet.hosts["gpu1"].address, *other]) + "\n"
    known_hosts.write_text(line)
    finished = lab.cli.run("hosts", "gpu1", FLEET_SSH_CONFIG=ssh_config_with(lab, tmp_path, known_hosts))
    assert_one_error(finished, 1, "gpu1", "key")
    assert known_hosts.read_text() == line
