"""Secrets of the user: found where a reference points to, shown nowhere, told apart without being kept."""

import json
import os
import pickle
import stat
from pathlib import Path

import pytest

from fleet_controller.domain.plan import DeployRequest
from fleet_controller.operations.problems import OperationError
from fleet_controller.operations.resolving import hub_token
from fleet_controller.operations.secrets import Secret, identify, resolve, resolve_api_key

VALUE = "sk-0123456789"


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    path = tmp_path / "key"
    path.write_text(VALUE + "\n")
    path.chmod(0o600)
    return path


def test_a_secret_shows_itself_nowhere() -> None:
    secret = Secret(VALUE, "env:KEY")
    assert VALUE not in f"{secret} {secret!r} {[secret]}"
    assert secret.reveal() == VALUE
    with pytest.raises(TypeError):
        pickle.dumps(secret)
    with pytest.raises(TypeError):
        json.dumps(secret)


def test_a_variable_and_a_file(key_file: Path) -> None:
    assert resolve("env:KEY", "--api-key", {"KEY": f" {VALUE}\n"}).reveal() == VALUE
    assert resolve(f"file:{key_file}", "--api-key").reveal() == VALUE


def test_a_file_that_others_can_read_is_refused_with_the_command_that_mends_it(key_file: Path) -> None:
    key_file.chmod(0o640)
    with pytest.raises(OperationError, match=r"can be read by others \(mode 0640\)") as caught:
        resolve(f"file:{key_file}", "hub_token of gpu1")
    assert caught.value.problem.remedy == f"chmod 600 {key_file}"
    assert VALUE not in str(caught.value)


def test_a_file_of_somebody_else_is_refused(key_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    owner = key_file.stat().st_uid
    monkeypatch.setattr(os, "getuid", lambda: owner + 1)
    with pytest.raises(OperationError, match="belongs to another user"):
        resolve(f"file:{key_file}", "--api-key")


@pytest.mark.parametrize("content", [b"", b"a\nb", b"\xff\xfe", b"x" * 20_000])
def test_what_is_no_single_line_is_refused(key_file: Path, content: bytes) -> None:
    key_file.write_bytes(content)
    with pytest.raises(OperationError) as caught:
        resolve(f"file:{key_file}", "--api-key")
    assert caught.value.problem.code == "secret-unusable" and len(str(caught.value)) < 300


def test_what_is_missing_is_named_with_a_way_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLEET_STATE_DIR", str(tmp_path))
    with pytest.raises(OperationError, match="KEY is not in the environment") as caught:
        resolve("env:KEY", "--api-key", {})
    assert "export KEY" in caught.value.problem.remedy
    (tmp_path / "controller.json").write_text(json.dumps({"pid": os.getpid()}))
    with pytest.raises(OperationError, match="the resident controller was started without KEY") as caught:
        resolve("env:KEY", "--api-key", {})
    assert "fleet controller stop" in caught.value.problem.remedy
    with pytest.raises(OperationError, match="cannot be read: No such file"):
        resolve(f"file:{tmp_path}/none", "--api-key")
    with pytest.raises(OperationError, match="must say where the secret lies") as caught:
        resolve(VALUE, "--api-key")
    assert caught.value.usage and VALUE not in str(caught.value)


@pytest.mark.parametrize("value", ["short", "#comment-key", "-option-key", "two words", "a,b,c,d,e,f", "schlüssel"])
def test_a_key_that_not_every_server_takes_is_refused(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEY", value)
    with pytest.raises(OperationError) as caught:
        resolve_api_key("env:KEY")
    assert value not in f"{caught.value} {caught.value.problem}"


def test_one_key_has_one_name_here_and_another_elsewhere(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    first = identify(Secret(VALUE, ""), here)
    assert first == identify(Secret(VALUE, "env:OTHER"), here)
    assert first != identify(Secret(VALUE + "x", ""), here)
    assert first != identify(Secret(VALUE, ""), there)
    assert stat.S_IMODE((here / "secret-salt").stat().st_mode) == 0o600
    assert [path.name for path in here.iterdir()] == ["secret-salt"]


def test_a_token_goes_to_the_hub_that_it_is_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_users_own")
    monkeypatch.setenv("LAB", "hf_named_token")
    request = DeployRequest(repository="a/b")
    assert hub_token(request, "", "") == "hf_users_own"
    assert hub_token(request, "", "env:LAB") == "hf_named_token"
    assert hub_token(request, "https://mirror.example.org", "") is None
    assert hub_token(request, "https://mirror.example.org", "env:LAB") == "hf_named_token"
    assert hub_token(request, "http://mirror.example.org", "env:LAB") is None
    assert hub_token(DeployRequest(model="/models/a.gguf"), "", "env:NOT_THERE") is None
