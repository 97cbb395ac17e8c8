"""What known_hosts files say about a host, as OpenSSH reads them."""

import subprocess
from pathlib import Path

import asyncssh
import pytest

from fleet_controller.domain.events import HostKeyQuestion
from fleet_controller.transport.known_hosts import KnownHosts, host_key_algorithms, known_hosts_line, trust_host_key


@pytest.fixture(scope="module")
def key() -> asyncssh.SSHKey:
    return asyncssh.generate_private_key("ssh-ed25519").convert_to_public()


def question(key: asyncssh.SSHKey, path: Path, port: int = 22) -> HostKeyQuestion:
    return HostKeyQuestion(
        host="gpu1", address="gpu1.lab", port=port, key_type=key.get_algorithm(), fingerprint=key.get_fingerprint(),
        known_hosts_line=known_hosts_line("gpu1.lab", port, key), known_hosts_path=str(path),
    )  # fmt: skip


def test_an_accepted_key_is_trusted_for_its_host_and_port_alone(key: asyncssh.SSHKey, tmp_path: Path) -> None:
    path = tmp_path / "ssh" / "known_hosts"
    assert trust_host_key(question(key, path, 2222)) is True
    assert trust_host_key(question(key, path, 2222)) is False
    assert path.read_text().count("\n") == 1
    assert path.stat().st_mode & 0o777 == 0o600
    assert KnownHosts([str(path)], "gpu1.lab", 2222).trusted()[0] == [key]
    assert KnownHosts([str(path)], "gpu1.lab", 22).trusted()[0] == []
    assert KnownHosts([str(path)], "gpu2.lab", 2222).trusted()[0] == []


def test_a_line_is_added_after_a_file_without_a_last_line_end(key: asyncssh.SSHKey, tmp_path: Path) -> None:
    path = tmp_path / "known_hosts"
    path.write_text("# by hand")
    trust_host_key(question(key, path))
    assert KnownHosts([str(path)], "gpu1.lab", 22).trusted()[0] == [key]


def test_a_line_with_another_key_than_was_shown_is_not_written(key: asyncssh.SSHKey, tmp_path: Path) -> None:
    other = asyncssh.generate_private_key("ssh-ed25519").convert_to_public()
    swapped = question(key, tmp_path / "known_hosts").model_copy(
        update={"known_hosts_line": known_hosts_line("gpu1.lab", 22, other)}
    )
    with pytest.raises(ValueError, match="does not belong"):
        trust_host_key(swapped)
    assert not (tmp_path / "known_hosts").exists()


def test_hashed_names_as_ssh_keygen_writes_them(key: asyncssh.SSHKey, tmp_path: Path) -> None:
    path = tmp_path / "known_hosts"
    path.write_text(known_hosts_line("gpu1.lab", 22, key) + "\n")
    subprocess.run(["ssh-keygen", "-q", "-H", "-f", str(path)], check=True, capture_output=True)
    assert "gpu1.lab" not in path.read_text()
    assert KnownHosts([str(path)], "gpu1.lab", 22).trusted()[0] == [key]


def test_authorities_and_revoked_keys_are_told_apart(key: asyncssh.SSHKey, tmp_path: Path) -> None:
    data = known_hosts_line("x", 22, key).partition(" ")[2]
    path = tmp_path / "known_hosts"
    path.write_text(f"@cert-authority *.lab {data}\n@revoked old.lab {data}\n")
    assert KnownHosts([str(path)], "gpu1.lab", 22).trusted() == ([], [key], [])
    assert KnownHosts([str(path)], "old.lab", 22).trusted()[2] == [key]


def test_an_entry_for_the_bare_name_serves_another_port_but_tells_no_change(
    key: asyncssh.SSHKey, tmp_path: Path
) -> None:
    path = tmp_path / "known_hosts"
    path.write_text(known_hosts_line("gpu1.lab", 22, key) + "\n")
    known = KnownHosts([str(path)], "gpu1.lab", 2222)
    assert known.trusted()[0] == [key]
    assert known.exact()[0] == []


def test_the_known_kind_of_key_is_asked_for_first(key: asyncssh.SSHKey) -> None:
    rsa = asyncssh.generate_private_key("ssh-rsa", key_size=2048).convert_to_public()
    assert host_key_algorithms(([rsa], [], []))[0].startswith("rsa-sha2-")
    assert host_key_algorithms(([key], [], []))[0] == "ssh-ed25519"
    assert "cert" in host_key_algorithms(([], [key], []))[0]


def test_missing_files_and_broken_lines_are_no_entries(key: asyncssh.SSHKey, tmp_path: Path) -> None:
    path = tmp_path / "known_hosts"
    path.write_text("gpu1.lab ssh-ed25519 not-base64\n" + known_hosts_line("gpu1.lab", 22, key) + "\n")
    assert KnownHosts([str(tmp_path / "missing"), str(path)], "gpu1.lab", 22).trusted()[0] == [key]
