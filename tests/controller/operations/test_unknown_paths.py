"""Paths that nothing is known of: nothing is chosen for them, and what is wrong is said."""

from pathlib import Path

import pytest

from fleet_controller.domain.resolved import GGUF, ModelArtifact, ResolvedModel
from fleet_controller.hub.errors import NoFilesError
from fleet_controller.hub.local_models import model_of_path
from fleet_controller.operations.choosing_models import unknown_path
from fleet_inventory.host_file import Transport
from fleet_inventory.hosts import Host
from support.fleet_cli import FleetCli


def of_path(path: str, weights_bytes: int | None = None) -> ResolvedModel:
    return ResolvedModel(
        name="x", artifacts=(ModelArtifact(format=GGUF, local_path=path, weights_bytes=weights_bytes),)
    )


def test_on_this_machine_it_is_not_there_and_on_another_nobody_can_say() -> None:
    here = Host(name="here", address="here", transport=Transport.LOCAL)
    there = Host(name="gpu1", address="gpu1")
    missing, unread = (unknown_path(host, of_path("/no/such.gguf")) for host in (here, there))
    assert missing is not None and missing.message == "there is no /no/such.gguf on this machine"
    assert unread is not None and unread.message.startswith("nothing is known of /no/such.gguf")
    assert "fleet deploy /no/such.gguf --hosts gpu1" in unread.remedy
    assert unknown_path(here, of_path("/a/model.gguf", 10**9)) is None
    assert unknown_path(here, ResolvedModel(name="x", artifacts=(ModelArtifact(format=GGUF),))) is None


def test_what_is_no_model_is_said(tmp_path: Path) -> None:
    folder, other, text = tmp_path / "fake.gguf", tmp_path / "folder", tmp_path / "notes.txt"
    folder.mkdir()
    other.mkdir()
    text.write_text("no model")
    with pytest.raises(NoFilesError, match=r"fake\.gguf is a folder"):
        model_of_path(str(folder), "")
    for path in (other, text):
        with pytest.raises(NoFilesError, match=r"is neither a \.gguf file nor a folder"):
            model_of_path(str(path), "")
    assert model_of_path("/no/such.gguf", "").artifacts[0].weights_bytes is None


def test_a_file_that_may_not_be_read_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "mine.gguf"
    path.write_bytes(b"GGUF")

    def refused(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("fleet_controller.hub.gguf.read_file", refused)
    with pytest.raises(NoFilesError, match=r"mine\.gguf cannot be read here: Permission denied"):
        model_of_path(str(path), "")


def test_bad_questions_end_with_what_to_do(tmp_path: Path) -> None:
    cli = FleetCli(tmp_path)
    cli.write_hosts({"a": {"transport": "local", "agent_root": str(tmp_path / "a")}})
    asked = {
        ("choose", "nosuch", "--hosts", "a"): "fleet models",
        ("choose", "qwen3.5-4b", "--hosts", "zz"): "hosts: a",
        ("choose", "qwen3.5-4b", "--hosts", "a", "--goal", "speed"): "one of: decode",
        ("choose", str(tmp_path), "--hosts", "a"): "name a .gguf file",
        ("calibrate", "--hosts", "zz"): "hosts: a",
        ("bench", "nosuch", "--hosts", "a", "--to-decide"): "fleet models",
    }
    for command, remedy in asked.items():
        finished = cli.run(*command)
        assert finished.code == 2, finished
        assert "error: " in finished.errors and remedy in finished.errors, finished
