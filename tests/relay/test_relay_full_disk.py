"""A disk that somebody else fills in the middle of it: the others go on, it says so, and the host can breathe."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from benchmarks.relay_control import LabController
from benchmarks.relay_lab import REPOSITORY, REVISION, RelayProcess, relay_lab
from fleet_agent.jobs.model import ArtifactFile
from fleet_agent.relay.control import Complete, Progress
from fleet_agent.relay.manifest import Manifest
from fleet_controller.distributing.messages import HubSource
from fleet_controller.distributing.model import Member
from support.stand_in_hub import StandInHub

pytestmark = pytest.mark.namespaces  # it needs root, for a disk of its own

SIZE = 9_000_000
PIECE = 1 << 16
NAMES = ("a", "b", "c")


@contextmanager
def small_disk(folder: Path, size_bytes: int) -> Iterator[None]:
    folder.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size_bytes}", "none", str(folder)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(path: Path) -> None:
    with suppress(OSError), path.open("wb", buffering=0) as stream:
        for size in (1 << 20, 1 << 12):
            with suppress(OSError):
                while stream.write(bytes(size)):
                    pass


@pytest.mark.parametrize("victim", ["a", "b"])  # the head, a receiver
def test_a_full_disk_is_one_hosts_own_matter(tmp_path: Path, victim: str) -> None:
    with StandInHub(tmp_path / "hub", throttle=3_000_000) as hub:
        file = ArtifactFile(**hub.add(REPOSITORY, "model.gguf", os.urandom(SIZE)))
        manifest = Manifest(REPOSITORY, hub.commit(REPOSITORY), REVISION, (file,), PIECE)
        source = HubSource(endpoint=hub.url)
        control = LabController([Member(name=name) for name in NAMES], "a", source, source)
        with (
            small_disk(tmp_path / "lab" / victim / "huggingface", 2 * SIZE),
            relay_lab(tmp_path / "lab", manifest, NAMES, on_event=control.hear, kind=RelayProcess) as lab,
        ):
            control.lab = lab
            lab.start_all()
            control.begin()
            lab.relays[victim].wait_for(lambda e: isinstance(e, Progress) and e.verified_bytes > SIZE // 4)
            fill(lab.hf_home(victim) / "hog")
            others = [name for name in NAMES if name != victim]
            control.wait_until_complete(others, 60)
            assert [lab.wrong_files(name) for name in others] == [[], []]

            assert lab.relays[victim].end() == 1
            failure = lab.relays[victim].failure()
            assert failure is not None and failure.code == "disk-full"
            assert str(lab.hf_home(victim)) in failure.message and ".incomplete" not in failure.message
            part = lab.blob(victim).with_name(lab.blob(victim).name + ".incomplete")
            kept = part.stat().st_size
            assert f"{kept / 1e6:.2f} MB that are kept" in failure.remedy
            assert kept % PIECE == 0 and kept > SIZE // 5
            free = os.statvfs(part)
            assert free.f_bavail * free.f_frsize > kept // 20  # so that others can write, too

            (lab.hf_home(victim) / "hog").unlink()
            again = lab.start(victim)
            done = again.wait_for(lambda event: isinstance(event, Complete))
            assert isinstance(done, Complete) and done.fetched_bytes == SIZE - kept
            assert lab.wrong_files(victim) == []
