"""A build that knows less than the plan took it to know: found by the install, said, and served all the same."""

import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.fleet_world import FleetWorld, fleet_world
from support.tiny_model import ANSWER, make_tiny_model

pytestmark = pytest.mark.llama_cpp

# An older server: its --help has no --metrics and no cache types, and it ends where one is given, as the real one does.
OLD_SERVER = """#!/bin/sh
for word in "$@"; do
  case $word in
    --help) {server} --help | grep -v -e --metrics -e --cache-type; exit 0;;
    --metrics|--cache-type*) echo "error: invalid argument: $word" >&2; exit 1;;
  esac
done
exec {server} "$@"
"""


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FleetWorld]:
    with fleet_world(tmp_path_factory.mktemp("fleet")) as world:
        world.local_hosts("a")
        world.up("a")
        make_tiny_model(world.folder, "chain").gguf_path.rename(world.folder / "old-chat.gguf")
        yield world


@pytest.fixture(scope="module")
def old_build(tmp_path_factory: pytest.TempPathFactory, llama_cpp_bin: Path) -> Path:
    folder = tmp_path_factory.mktemp("old-build")
    (folder / "llama-server").write_text(OLD_SERVER.format(server=llama_cpp_bin / "llama-server"))
    (folder / "llama-bench").symlink_to(llama_cpp_bin / "llama-bench")
    (folder / "llama-server").chmod(0o755)
    return folder


@pytest.fixture
def deploy(fleet: FleetWorld, old_build: Path) -> Iterator[list[str]]:
    model = str(fleet.folder / "old-chat.gguf")
    yield ["deploy", model, "-H", "a", "--engine-path", str(old_build), "--context", "512", "--port", "18444"]
    fleet.run("stop", "--all", "--remove", "--yes", code=None)


def plan_of(fleet: FleetWorld, *command: str) -> dict[str, Any]:
    [plan] = fleet.document(*command, "--dry-run", code=None)["plan"]
    return dict(plan)


def test_what_the_install_tells_is_left_out_and_said(fleet: FleetWorld, deploy: list[str]) -> None:
    assert "--metrics" in plan_of(fleet, *deploy)["service"]["arguments"], "not installed yet: as the pinned build"
    done = fleet.run(*deploy, "--yes")
    assert "does not know --metrics: it is left out" in done.stdout + done.stderr
    assert ANSWER in done.stdout
    again = fleet.run(*deploy, "--yes")
    assert "nothing to change" in again.stdout
    assert "warning: this build of llama.cpp does not know --metrics" in again.stdout


def test_what_was_asked_for_is_refused_by_name(fleet: FleetWorld, deploy: list[str]) -> None:
    fleet.run(*deploy, "--yes")
    failed = fleet.run(*deploy, "--kv-cache-type", "q8_0", "--yes", code=1)
    assert "does not know --cache-type-k, which is needed here" in failed.stderr
    assert "--backend-version" in failed.stderr
    [host] = fleet.document("ps", "a")["hosts"]
    assert [service["state"] for service in host["services"]] == ["ready"], "what ran goes on"


def test_a_real_engine_out_of_a_folder(fleet: FleetWorld, llama_cpp_bin: Path, tmp_path: Path) -> None:
    folder = fleet.folder / "offline"
    folder.mkdir()
    with tarfile.open(folder / "llama-b11434-bin-ubuntu-x64.tar.gz", "w:gz") as archive:
        for name in ("llama-server", "llama-bench"):
            archive.add(llama_cpp_bin / name, f"llama-b11434/{name}")
    command = ["deploy", str(fleet.folder / "old-chat.gguf"), "-H", "a", "--backend", "llama.cpp", "--port", "18445"]
    command += ["--offline", str(folder), "--name", "offline-chat", "--context", "512", "--flash-attention", "on"]
    [done] = fleet.document(*command, "--yes")["hosts"]
    assert done["result"]["answer"].strip() == ANSWER and done["result"]["model"] == "offline-chat"
    [host] = fleet.document("ps", "a")["hosts"]
    [service] = host["services"]
    assert (service["spec"]["name"], service["spec"]["backend_version"]) == ("offline-chat", "b11434")
    assert json.loads(service["spec"]["backend_options"]) == {"flash_attention": "on"}
    more = plan_of(fleet, "deploy", command[1], "-H", "a", "--name", "offline-chat", "--kv-cache-type", "q8_0")
    assert (more["action"], more["reason"]) == ("replace", "kv_cache_type default -> q8_0")
    assert {"--flash-attn", "on", "512"} <= {*more["service"]["arguments"]}
    fleet.run("stop", "--all", "--remove", "--yes", code=None)
