"""Which ssh_config files count, and in which order."""

from pathlib import Path

import pytest

from fleet_controller.transport import ssh_login
from fleet_controller.transport.ssh_login import Hop, _settings, ssh_config_files


@pytest.fixture
def both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """A user's ssh_config and the system's."""
    user, system = tmp_path / ".ssh" / "config", tmp_path / "ssh_config"
    user.parent.mkdir()
    user.write_text("Host gpu1\n  User alice\n")
    system.write_text("Host gpu*\n  User lab\n  Port 2222\n  ProxyJump gateway\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("FLEET_SSH_CONFIG", raising=False)
    monkeypatch.setattr(ssh_login, "SYSTEM_CONFIG", system)
    return user, system


async def test_the_system_says_what_the_user_leaves_open(both: tuple[Path, Path]) -> None:
    assert ssh_config_files() == [str(path) for path in both]
    settings = await _settings(Hop("gpu1"))
    assert (settings.username, settings.port, settings.tunnel) == ("alice", 2222, "gateway")
    assert (await _settings(Hop("gpu2"))).username == "lab"


async def test_a_named_file_leaves_the_system_out(
    both: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    named = tmp_path / "other"
    named.write_text("Host gpu1\n  User bob\n")
    monkeypatch.setenv("FLEET_SSH_CONFIG", str(named))
    settings = await _settings(Hop("gpu1"))
    assert (settings.username, settings.port) == ("bob", 22)
