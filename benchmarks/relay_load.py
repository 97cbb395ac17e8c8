"""What a way of distributing is given, and what came of it: the file, the rates, the folders, the outcome."""

import contextlib
import dataclasses
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from benchmarks.relay_content import REPOSITORY, make_content, make_manifest, whole_sha256
from benchmarks.relay_cpu import CpuSeconds
from benchmarks.relay_disk import drop_caches
from benchmarks.relay_network import SentCount, ShapedNetwork
from fleet_agent.jobs.model import ArtifactFile
from fleet_agent.relay.manifest import Manifest

MODEL = "model.gguf"
GIB = 1 << 30
HEADER_TAX = 1.046  # TCP with timestamps, IP and Ethernet: 66 bytes for 1448


@dataclass(frozen=True)
class Load:
    """What is moved, and over what. Rates in bytes a second."""

    folder: Path
    source: Path
    size_bytes: int
    link: float
    uplink: float  # of the internet; 0 where the head has the file already
    piece_bytes: int
    paced: bool = False  # nothing is shaped: the head sends at the link's rate, and all others as it comes
    real_disk: bool = False  # every way starts with cold caches and counts its time until the disk has all

    @property
    def ideal_seconds(self) -> float:
        return self.size_bytes / min(self.link, self.uplink or self.link)

    @property
    def file(self) -> Path:
        return self.source / REPOSITORY / MODEL


@dataclass(frozen=True)
class Uplink:
    """What left the hub: the bytes of the file by the hub's own count, and what its interface sent."""

    hub_bytes: int
    interface: SentCount

    def shares(self, size_bytes: int) -> tuple[float, float, float]:
        """Over the file's size: the hub's count; the interface's without headers of packets; with them."""
        counted = self.hub_bytes, self.interface.payload_bytes, self.interface.wire_bytes
        hub, payload, wire = (count / size_bytes for count in counted)
        return hub, payload, wire


@dataclass(frozen=True)
class Outcome:
    """cpu: of the processes that move and check bytes, from the first route to the last host's end."""

    way: str
    hosts: int
    ratio: float
    seconds: float
    cpu: CpuSeconds | None = None
    uplink: Uplink | None = None
    first_seconds: float | None = None  # until the first receiver had it; the others follow it hop by hop
    piece_bytes: int = 0

    def hop_seconds(self) -> float | None:
        """What each further host adds."""
        return None if self.first_seconds is None else (self.seconds - self.first_seconds) / max(1, self.hosts - 1)

    def cpu_per_gib(self, size_bytes: int) -> CpuSeconds | None:
        """Core-seconds for each GiB that a host received."""
        if self.cpu is None:
            return None
        received = self.hosts * size_bytes / GIB
        return CpuSeconds(self.cpu.user / received, self.cpu.system / received)


def names_of(hosts: int) -> list[str]:
    """The head and those that get it from there."""
    return [f"host{number:02d}" for number in range(hosts + 1)]


@contextlib.contextmanager
def shaped(load: Load, hosts: int) -> Iterator[ShapedNetwork]:
    network = ShapedNetwork(0.0 if load.paced else load.link)
    try:
        yield network
    finally:
        network.destroy()


@contextlib.contextmanager
def scratch(load: Load) -> Iterator[Path]:
    if load.real_disk:
        drop_caches()
    folder = Path(tempfile.mkdtemp(dir=load.folder))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def prepare(folder: Path, size_bytes: int, link: float, uplink: float, piece_bytes: int) -> Load:
    source = folder / "source"
    (file,) = make_content(source / REPOSITORY, {MODEL: size_bytes})
    (source / "files.json").write_text(json.dumps(dataclasses.asdict(file)))
    return Load(folder, source, size_bytes, link, uplink, piece_bytes)


def manifest_of(load: Load, hosts: int) -> Manifest:
    described = json.loads((load.source / "files.json").read_text())
    return make_manifest([ArtifactFile(**described)], hosts, load.piece_bytes)


def check_copies(load: Load, copies: Sequence[Path]) -> None:
    """Each is read again, from the disk where that is what is measured. Ends the benchmark where one is wrong."""
    if load.real_disk:
        drop_caches()
    wanted = json.loads((load.source / "files.json").read_text())["sha256"] or whole_sha256(load.file)
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        found = list(threads.map(whole_sha256, copies))
    wrong = [str(path) for path, digest in zip(copies, found, strict=True) if digest != wanted]
    if wrong:
        raise SystemExit(f"wrong copies: {', '.join(wrong)}")
