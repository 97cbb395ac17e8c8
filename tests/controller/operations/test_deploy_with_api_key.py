"""`fleet deploy --bind --api-key` for real: the key opens the server, and lies in no place but the host's secrets."""

import json
import os
import stat
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.fleet_world import FleetWorld, fleet_world
from support.tiny_model import make_tiny_model

pytestmark = pytest.mark.llama_cpp

KEY = "sk-lab-4f9c2b7e-d1a8"
OTHER = "sk-lab-other-55aa77"
PORT = 18446
NAME = "tiny-keyed"


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FleetWorld]:
    with fleet_world(tmp_path_factory.mktemp("fleet")) as world:
        world.local_hosts("a")
        world.up("a")
        make_tiny_model(world.folder, "chain").gguf_path.rename(world.folder / f"{NAME}.gguf")
        yield world


@pytest.fixture
def deploy(fleet: FleetWorld, llama_cpp_bin: Path) -> list[str]:
    return ["deploy", str(fleet.folder / f"{NAME}.gguf"), "--quant", "F16", "--backend", "llama.cpp",
            "--engine-path", str(llama_cpp_bin), "--context", "512", "--hosts", "a", "--port", str(PORT),
            "--bind", "0.0.0.0"]  # fmt: skip


def answer_code(key: str, path: str = "/v1/chat/completions") -> int:
    body = json.dumps({"messages": [{"role": "user", "content": "?"}], "max_tokens": 4}).encode()
    headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})}
    request = urllib.request.Request(f"http://127.0.0.1:{PORT}{path}", body, headers)
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=60) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def files_with(fleet: FleetWorld, *texts: str) -> list[Path]:
    """Every file of controller and agent, SQLite and logs among them, that holds one of the texts."""
    folders = (fleet.folder, fleet.runtime)
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    return [path for path in files if any(text.encode() in path.read_bytes() for text in texts)]


def command_lines() -> bytes:
    found = b""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                found += (entry / "cmdline").read_bytes()
            except OSError:
                continue
    return found


def service(fleet: FleetWorld) -> dict[str, Any]:
    [found] = [one for host in fleet.document("ps", "a")["hosts"] for one in host["services"]]
    return dict(found)


def test_an_open_server_without_a_key_is_refused(fleet: FleetWorld, deploy: list[str]) -> None:
    done = fleet.run(*deploy, "--yes", code=3)
    assert "a server that listens on 0.0.0.0 needs an API key" in done.stderr
    assert "--api-key env:NAME" in done.stderr


def test_a_key_instead_of_a_reference_is_wrong_usage_and_not_repeated(fleet: FleetWorld, deploy: list[str]) -> None:
    done = fleet.run(*deploy, "--api-key", KEY, "--yes", code=2)
    assert "must say where the secret lies" in done.stderr and KEY not in done.stdout + done.stderr
    done = fleet.run(*deploy, "--api-key", "env:LAB_KEY", "--yes", code=1)
    assert "LAB_KEY is not in the environment" in done.stderr


def test_the_key_opens_the_server_and_lies_nowhere_else(fleet: FleetWorld, deploy: list[str]) -> None:
    key = {"LAB_KEY": KEY}
    keyed = [*deploy, "--api-key", "env:LAB_KEY"]
    said = [fleet.run(*keyed, "--dry-run", extra=key), fleet.run(*keyed, "--dry-run", "--json", extra=key)]
    assert files_with(fleet, KEY) == []
    said.append(fleet.run(*keyed, "--yes", "--json", extra=key))
    [outcome] = json.loads(said[-1].stdout)["hosts"]
    assert outcome["changed"] and outcome["result"]["answer"]  # the smoke test passed
    shown = service(fleet)
    assert (answer_code(""), answer_code(OTHER), answer_code(KEY)) == (401, 401, 200)
    [serve] = [one for one in json.loads(said[1].stdout)["plan"][0]["commands"] if one["purpose"] == "serve"]
    assert serve["argv"] == shown["argv"] and "--api-key-file" in serve["argv"]
    assert KEY.encode() not in command_lines()
    assert KEY.encode() not in Path(f"/proc/{shown['process']['pid']}/environ").read_bytes()

    said += [fleet.run("logs", NAME), fleet.run("ps", "--json"), fleet.run("hosts", "--json")]
    assert not [done for done in said if KEY in done.stdout + done.stderr]
    [held] = files_with(fleet, KEY)
    assert held.parent.name == "secrets" and held.name == shown["spec"]["api_key"]["secret"]
    assert stat.S_IMODE(held.stat().st_mode) == 0o600 and stat.S_IMODE(held.parent.stat().st_mode) == 0o700

    again = fleet.run(*keyed, "--yes", "--json", extra=key)
    assert json.loads(again.stdout)["plan"][0]["action"] == "keep"
    assert service(fleet)["process"] == shown["process"]


def test_another_key_restarts_the_server_and_removal_leaves_none(fleet: FleetWorld, deploy: list[str]) -> None:
    path = fleet.home / "key"
    path.write_text(OTHER + "\n")
    path.chmod(0o644)
    keyed = [*deploy, "--api-key", f"file:{path}", "--yes"]
    refused = fleet.run(*keyed, code=1)
    assert f"chmod 600 {path}" in refused.stderr
    path.chmod(0o600)
    planned = json.loads(fleet.run(*keyed, "--json").stdout)["plan"]
    assert (planned[0]["action"], planned[0]["reason"]) == ("replace", "API key changed")
    assert (answer_code(KEY), answer_code(OTHER)) == (401, 200)
    assert len(files_with(fleet, KEY, OTHER)) == 2  # the user's own file, and the host's
    fleet.run("stop", NAME, "--remove", "--yes")
    assert files_with(fleet, KEY, OTHER) == [path]
