"""Downloads from a hub that misbehaves, asked for with `fleet deploy`: through the controller and a real agent.

And what a user reads when an install fails.
"""

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from support.fleet_world import FleetWorld, fleet_world
from support.stand_in_hub import StandInHub
from support.tiny_model import ANSWER, make_tiny_model

pytestmark = pytest.mark.llama_cpp

FILE = "tiny-F16.gguf"
# More than the planner reads of a header (4 MiB), less than the model has.
PART_BYTES = 5 << 20
PATIENT = 60.0


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StandInHub]:
    with StandInHub(tmp_path_factory.mktemp("hub")) as made:
        yield made


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return make_tiny_model(tmp_path_factory.mktemp("tiny"), "chain", layers=5).gguf_path.read_bytes()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, hub: StandInHub) -> Iterator[FleetWorld]:
    with fleet_world(tmp_path_factory.mktemp("fleet")) as made:
        made.local_hosts("a")
        made.hosts_yaml.write_text(made.hosts_yaml.read_text() + f"      HF_ENDPOINT: {hub.url}\n")
        made.up("a")
        yield made


Deploy = Callable[..., list[str]]


@pytest.fixture
def deploy(world: FleetWorld, hub: StandInHub, content: bytes, llama_cpp_bin: Path) -> Iterator[Deploy]:
    """deploy(name) puts the model on the hub as lab/<name> and gives the command that fetches and serves it."""
    hub.behaviour = type(hub.behaviour)()

    def make(name: str) -> list[str]:
        hub.add(f"lab/{name}", FILE, content)
        return ["deploy", "--repo", f"lab/{name}", "--hosts", "a", "--backend", "llama.cpp", "--engine-path",
                str(llama_cpp_bin), "--context", "512", "--port", "18449", "--yes"]  # fmt: skip

    yield make
    hub.behaviour.released.set()
    world.run("stop", "--all", "--remove", "--yes", code=None)


def cache(world: FleetWorld, name: str) -> Path:
    return world.folder / "huggingface" / "hub" / f"models--lab--{name}"


def fetched(hub: StandInHub, name: str) -> list[tuple[int, int]]:
    """(start, end) of what the agent fetched: the planner asks for bounded ranges of the header."""
    return [
        (one.start, one.start + one.sent)
        for one in hub.served
        if one.repository == f"lab/{name}" and (one.range_header is None or one.range_header.endswith("-"))
    ]


def test_a_cut_connection_goes_on_where_it_was_cut(
    world: FleetWorld, hub: StandInHub, deploy: Deploy, content: bytes
) -> None:
    hub.behaviour.cut_after, hub.behaviour.cuts = PART_BYTES, 2  # the planner's look at the header is cut, too
    done = world.run(*deploy("cut"))
    assert ANSWER in done.stdout
    first, second = fetched(hub, "cut")
    assert first[0] == 0 and first[1] == second[0] and second[1] == len(content)


def test_a_download_whose_process_was_killed_is_resumed(
    world: FleetWorld, hub: StandInHub, deploy: Deploy, content: bytes
) -> None:
    hub.behaviour.hold_after = PART_BYTES
    command = subprocess.Popen(
        world.command(*deploy("resume")), env=world.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        wait_for_part(cache(world, "resume"), PART_BYTES)
        for pid in runners(world):
            os.kill(pid, signal.SIGKILL)
        hub.behaviour.hold_after = 0
        hub.behaviour.released.set()
        printed, errors = command.communicate(timeout=PATIENT)
    finally:
        command.kill()
        command.wait()
    assert command.returncode == 0, errors.decode()
    assert ANSWER in printed.decode()
    *_, last = fetched(hub, "resume")
    assert 0 < last[0] <= PART_BYTES + (1 << 20) and last[1] == len(content)


def test_bytes_with_another_hash_are_never_put_in_place(world: FleetWorld, hub: StandInHub, deploy: Deploy) -> None:
    hub.behaviour.wrong_bytes = 1000
    failed = world.run(*deploy("wrong-hash"), code=1)
    assert re.search(r"error: a: .*hash", failed.stderr) and "  next: " in failed.stderr
    assert not list((cache(world, "wrong-hash") / "snapshots").rglob("*.gguf"))


def test_a_gated_repository_is_refused_with_what_to_do(world: FleetWorld, hub: StandInHub, deploy: Deploy) -> None:
    hub.behaviour.gated.add("lab/gated")
    failed = world.run(*deploy("gated"), code=None)
    assert failed.returncode in (1, 3)
    assert "gated" in failed.stderr and "token" in failed.stderr
    assert not list(cache(world, "gated").rglob("*.gguf"))


def test_a_mirror_with_metadata_and_no_data_is_named(world: FleetWorld, hub: StandInHub, deploy: Deploy) -> None:
    arguments = deploy("no-data")
    hub.behaviour.metadata_only = True
    failed = world.run(*arguments, code=None)
    assert failed.returncode in (1, 2)
    assert FILE in failed.stderr and "HF_ENDPOINT" in failed.stderr
    assert not list(cache(world, "no-data").rglob("*.gguf"))


def test_a_failed_install_says_why_and_shows_what_was_printed(world: FleetWorld) -> None:
    """uv and a folder without wheels: one line of cause, one of remedy, the last lines, where all of it is."""
    folder = world.folder / "no-wheels"
    folder.mkdir()
    tiny = make_tiny_model(world.folder / "tiny", "chain").hf_dir
    arguments = ["deploy", str(tiny), "--hosts", "a", "--backend", "mlx-lm", "--offline", str(folder), "--yes"]
    failed = world.run(*arguments, code=1)
    error, remedy, *tail = failed.stderr[failed.stderr.index("error: a: ") :].splitlines()
    assert "uv pip install failed: the package index (or the offline folder) has no such package" in error
    assert remedy.startswith("  next: ")
    assert all(line.startswith("  | ") for line in tail) and any("was not found in" in line for line in tail)
    path = re.search(r"all of it is in (\S+) on the host", tail[-1])
    assert path is not None and "was not found in" in Path(path[1]).read_text(encoding="utf-8")


def runners(world: FleetWorld) -> list[int]:
    pids = []
    for entry in Path("/proc").iterdir():
        try:
            words = (entry / "cmdline").read_bytes() if entry.name.isdigit() else b""
        except OSError:
            continue
        if b"run-job" in words and str(world.folder).encode() in words:
            pids.append(int(entry.name))
    return pids


def wait_for_part(folder: Path, size_bytes: int) -> None:
    """What another process writes raises no event here."""
    deadline = time.monotonic() + PATIENT
    while not any(path.stat().st_size >= size_bytes for path in folder.rglob("*") if path.is_file()):
        assert time.monotonic() < deadline, f"nothing of {size_bytes} bytes in {folder}"
        time.sleep(0.05)
