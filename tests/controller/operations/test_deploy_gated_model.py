"""A gated repository: the token that hosts.yaml names opens it, reaches the hub only, and lies in one file."""

import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.fleet_world import FleetWorld, fleet_world
from support.stand_in_hub import StandInHub
from support.tiny_model import make_tiny_model

pytestmark = pytest.mark.llama_cpp

REPOSITORY = "acme/tiny-GGUF"
TOKEN = "hf_labtoken_77aa55"


@pytest.fixture(scope="module")
def hubs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[StandInHub, StandInHub]]:
    """A hub that wants the token, and the store that it sends downloads to."""
    root = tmp_path_factory.mktemp("hub")
    with StandInHub(root) as store, StandInHub(root, gated={REPOSITORY}, token=TOKEN, redirect_to=store.url) as hub:
        content = make_tiny_model(tmp_path_factory.mktemp("tiny"), "chain").gguf_path.read_bytes()
        hub.add(REPOSITORY, "tiny-F16.gguf", content)
        yield hub, store


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory, hubs: tuple[StandInHub, StandInHub]) -> Iterator[FleetWorld]:
    with fleet_world(tmp_path_factory.mktemp("fleet")) as world:
        write_hosts(world, hubs[0], "")
        world.up("a")
        yield world


def write_hosts(world: FleetWorld, hub: StandInHub, hub_token: str) -> None:
    token = f"    hub_token: {hub_token}\n" if hub_token else ""
    world.hosts_yaml.write_text(
        f"hosts:\n  a:\n    transport: local\n    agent_root: {world.folder / 'a'}\n{token}"
        f"    environment:\n      HF_HOME: {world.folder / 'huggingface'}\n      HF_ENDPOINT: {hub.url}\n"
    )


def command(llama_cpp_bin: Path) -> list[str]:
    return ["deploy", "--repo", REPOSITORY, "--backend", "llama.cpp", "--engine-path", str(llama_cpp_bin),
            "--context", "512", "--hosts", "a", "--port", "18448", "--yes"]  # fmt: skip


def test_without_a_token_the_reference_to_set_is_named(
    fleet: FleetWorld, hubs: tuple[StandInHub, StandInHub], llama_cpp_bin: Path
) -> None:
    done = fleet.run(*command(llama_cpp_bin), code=1)
    assert "HTTP 401" in done.stderr and "hub_token of this host in hosts.yaml" in done.stderr
    write_hosts(fleet, hubs[0], "env:LAB_HUB_TOKEN")
    done = fleet.run(*command(llama_cpp_bin), code=None)
    assert done.returncode == 1 and "LAB_HUB_TOKEN is not in the environment" in done.stderr


def test_the_token_goes_to_the_hub_and_lies_in_one_file(
    fleet: FleetWorld, hubs: tuple[StandInHub, StandInHub], llama_cpp_bin: Path
) -> None:
    hub, store = hubs
    own = fleet.home / "hub-token"
    own.write_text(TOKEN + "\n")
    own.chmod(0o600)
    write_hosts(fleet, hub, "file:~/hub-token")
    done = fleet.run(*command(llama_cpp_bin), "--json")
    assert TOKEN not in done.stdout + done.stderr
    assert {one.authorization for one in store.served} == {None}
    folders = (fleet.folder, fleet.runtime)
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    holders = [path for path in files if TOKEN.encode() in path.read_bytes()]
    assert {(path.name, stat.S_IMODE(path.stat().st_mode)) for path in holders} == {("hub-token", 0o600)}
    assert len(holders) == 2 and own in holders
