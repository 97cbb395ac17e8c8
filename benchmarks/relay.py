"""A model to N hosts: the relay against what else there is, over size / link rate, in network namespaces.

    python -m benchmarks.relay [--hosts 4,8,16] [--megabits 200] [--seconds 30] [--ways bare,plain,tls,rsync,http]
    python -m benchmarks.relay --internet-megabits 50 --hosts 8      # the uplink is the bottleneck
    python -m benchmarks.relay --faults all --hosts 6                # what a fault costs the others (relay_faults.py)

One head has the file, N hosts get it; every link is shaped both ways. A ratio of 1 is the file's size at the link's raw
rate; headers of TCP, IP and Ethernet alone cost 1.046. `bare` is a byte chain of processes that check nothing: what
this machine can do at most. Shaping by tc costs about as much CPU as relaying, and is counted in: --paced leaves it out
and lets the head keep the rate, for the figures of CPU time. Keep hosts x rate under what the processors can move, or
the machine is measured.
Size = rate x seconds. Needs root, `ip` and `tc`.
"""

import argparse
import contextlib
import dataclasses
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.measure import report
from benchmarks.relay_control import LabController
from benchmarks.relay_lab import (
    COMMIT,
    REPOSITORY,
    RelayProcess,
    ShapedNetwork,
    make_content,
    make_manifest,
    put_into_cache,
    relay_lab,
    whole_sha256,
)
from fleet_agent.artifacts.verified import VerifiedNotes
from fleet_agent.relay.manifest import Manifest
from fleet_controller.distributing.messages import FolderSource, HubSource
from fleet_controller.distributing.model import Member

MODEL = "model.gguf"
LIMIT_FACTOR = 40.0
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

    @property
    def ideal_seconds(self) -> float:
        return self.size_bytes / min(self.link, self.uplink or self.link)

    @property
    def file(self) -> Path:
        return self.source / REPOSITORY / MODEL


@dataclass(frozen=True)
class Outcome:
    """cpu_seconds: of the processes that move and check bytes, from the first route to the last host's end."""

    way: str
    hosts: int
    ratio: float
    seconds: float
    cpu_seconds: float | None = None
    uplink_ratio: float | None = None
    first_seconds: float | None = None  # until the first receiver had it; the others follow it hop by hop
    piece_bytes: int = 0

    def hop_seconds(self) -> float | None:
        """What each further host adds."""
        return None if self.first_seconds is None else (self.seconds - self.first_seconds) / max(1, self.hosts - 1)

    def cpu_per_gib(self, size_bytes: int) -> float | None:
        return None if self.cpu_seconds is None else self.cpu_seconds / (self.hosts * size_bytes / GIB)


def names_of(hosts: int) -> list[str]:
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
    folder = Path(tempfile.mkdtemp(dir=load.folder))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


# -- the relay --------------------------------------------------------------------------------------------------


def measure_relay(load: Load, hosts: int, tls: bool) -> Outcome:
    names = names_of(hosts)
    manifest = manifest_of(load, hosts)
    with scratch(load) as folder, shaped(load, hosts) as network:
        hub = start_hub(load, network) if load.uplink else None
        source = HubSource(endpoint=hub.url) if hub else FolderSource(path=str(load.file.parent))
        members = [Member(name=name, link_bytes_per_second=load.link) for name in names]
        control = LabController(members, names[0], source)
        try:
            with relay_lab(folder, manifest, names, network, tls, control.hear, kind=RelayProcess) as lab:
                control.lab = lab
                if not load.uplink:
                    put_into_cache(lab.hf_home(names[0]), manifest, load.file.parent)
                    VerifiedNotes(Path(lab.spec(names[0]).machine_dir)).write(lab.blob(names[0]), brought=True)
                lab.start_all(round(load.link) if load.paced else 0)
                before = {name: relay.cpu_seconds() for name, relay in lab.relays.items()}
                started = control.begin()
                ended = control.wait_until_complete(names, load.ideal_seconds * LIMIT_FACTOR)
                cpu = sum(relay.cpu_seconds() - before[name] for name, relay in lab.relays.items())
                wrong = [f"{name}: {wrong}" for name in names for wrong in lab.wrong_files(name)]
                fetched = sum(r.progress.source_bytes for r in lab.relays.values() if r.progress)
            if wrong:
                raise SystemExit("\n".join(wrong))
            if len(control.changes) > 1:
                print(f"topology changed: {control.changes[1:]}", file=sys.stderr)
        finally:
            if hub:
                hub.stop()
    seconds = ended - started
    uplink = fetched / load.size_bytes if load.uplink else None
    first = min(control.completed_at[name] for name in names[1:]) - started
    way = "tls" if tls else "plain"
    return Outcome(way, hosts, seconds / load.ideal_seconds, seconds, cpu, uplink, first, manifest.piece_bytes)


def manifest_of(load: Load, hosts: int) -> Manifest:
    described = json.loads((load.source / "files.json").read_text())
    from fleet_agent.jobs.model import ArtifactFile

    return make_manifest([ArtifactFile(**described)], hosts, load.piece_bytes)


class Hub:
    """A web server with Range in a namespace of its own, whose link is the internet's uplink."""

    def __init__(self, load: Load, network: ShapedNetwork) -> None:
        cable = network.connect("hub")
        network.shape("hub", load.uplink)
        self.url = f"http://{cable.address}:8000"
        argv = [*cable.prefix, sys.executable, "-m", "benchmarks.range_server", str(load.source), cable.address, "8000"]
        self._process = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self._process.stdout.readline()

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait()


def start_hub(load: Load, network: ShapedNetwork) -> Hub:
    return Hub(load, network)


# -- what else there is -----------------------------------------------------------------------------------------

CHAIN = """
import socket, sys, time
role, port, upstream, path = sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4]
rate = float(sys.argv[6])
server = socket.create_server((role, port))
print("ready", flush=True)
sys.stdin.readline()
if upstream:
    source = socket.create_connection((upstream, port))
    read = lambda: source.recv(1 << 18)
else:
    file = open(path, "rb")
    read = lambda: file.read(1 << 18)
sink = None
if sys.argv[5] == "serves":
    sink, _ = server.accept()
out = open(path, "wb") if upstream else None
due = time.monotonic()
while block := read():
    if rate and not upstream:
        due += len(block) / rate
        time.sleep(max(0.0, due - time.monotonic()))
    if sink: sink.sendall(block)
    if out: out.write(block)
"""


def measure_bare(load: Load, hosts: int) -> Outcome:
    """Each host passes on what comes in, unchecked and not synced: the limit of this machine and of TCP."""
    names = names_of(hosts)
    with scratch(load) as folder, shaped(load, hosts) as network:
        cables = [network.connect(name) for name in names]
        processes = []
        for number, cable in enumerate(cables):
            upstream = cables[number - 1].address if number else ""
            path = str(load.file) if not number else str(folder / names[number])
            last = "ends" if number == hosts else "serves"
            rate = str(load.link if load.paced else 0.0)
            argv = [*cable.prefix, sys.executable, "-c", CHAIN, cable.address, "9000", upstream, path, last, rate]
            processes.append(subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
        for process in processes:
            assert process.stdout is not None
            process.stdout.readline()
        return timed("bare", load, hosts, processes)


def timed(way: str, load: Load, hosts: int, processes: list[subprocess.Popen[str]]) -> Outcome:
    """From a line to each process until the last has ended."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.monotonic()
    for process in processes:
        assert process.stdin is not None
        with contextlib.suppress(OSError):
            process.stdin.write("\n")
            process.stdin.close()
    for process in processes:
        if process.wait(load.ideal_seconds * LIMIT_FACTOR):
            raise SystemExit(f"{process.args!r} failed ({process.returncode})")
    seconds = time.monotonic() - started
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Outcome(way, hosts, seconds / load.ideal_seconds, seconds, cpu)


def measure_rsync(load: Load, hosts: int) -> Outcome:
    """From the one host that has it to each: an rsync daemon there, one rsync on each host, all at once."""
    names = names_of(hosts)
    with scratch(load) as folder, shaped(load, hosts) as network:
        cables = [network.connect(name) for name in names]
        config = folder / "rsyncd.conf"
        config.write_text(
            f"port = 8730\naddress = {cables[0].address}\nuse chroot = no\nuid = root\ngid = root\n"
            f"pid file = {folder}/rsyncd.pid\nlog file = {folder}/rsyncd.log\n[model]\npath = {load.file.parent}\n"
        )
        daemon = subprocess.Popen([*cables[0].prefix, "rsync", "--daemon", "--no-detach", f"--config={config}"])
        try:
            time.sleep(0.5)
            script = f'read line; exec rsync -W rsync://{cables[0].address}:8730/model/{MODEL} "$0"'
            processes = [
                subprocess.Popen(
                    [*cable.prefix, "bash", "-c", script, str(folder / name)], stdin=subprocess.PIPE, text=True
                )
                for name, cable in zip(names[1:], cables[1:], strict=True)
            ]
            outcome = timed("rsync", load, hosts, processes)
        finally:
            daemon.terminate()
            daemon.wait()
        check_copies(load, [folder / name for name in names[1:]])
    return outcome


def measure_http(load: Load, hosts: int) -> Outcome:
    """N downloads from the hub: from the internet where there is an uplink, else from a mirror in the lab."""
    names = names_of(hosts)[1:]
    with scratch(load) as folder, shaped(load, hosts) as network:
        hub = Hub(dataclasses.replace(load, uplink=load.uplink or load.link), network)
        try:
            url = f"{hub.url}/{REPOSITORY}/resolve/{COMMIT}/{MODEL}"
            script = 'read line; exec curl -sSf -o "$0" ' + url
            processes = [
                subprocess.Popen(
                    [*network.connect(name).prefix, "bash", "-c", script, str(folder / name)],
                    stdin=subprocess.PIPE,
                    text=True,
                )
                for name in names
            ]
            outcome = timed("http", load, hosts, processes)
        finally:
            hub.stop()
        check_copies(load, [folder / name for name in names])
    return outcome


def check_copies(load: Load, copies: list[Path]) -> None:
    wanted = whole_sha256(load.file)
    wrong = [path.name for path in copies if whole_sha256(path) != wanted]
    if wrong:
        raise SystemExit(f"wrong copies on {', '.join(wrong)}")


# -- all together -----------------------------------------------------------------------------------------------


def measure(load: Load, way: str, hosts: int) -> Outcome:
    if way in ("plain", "tls"):
        return measure_relay(load, hosts, way == "tls")
    return {"bare": measure_bare, "rsync": measure_rsync, "http": measure_http}[way](load, hosts)


def prepare(folder: Path, size_bytes: int, link: float, uplink: float, piece_bytes: int) -> Load:
    source = folder / "source"
    (file,) = make_content(source / REPOSITORY, {MODEL: size_bytes})
    (source / "files.json").write_text(json.dumps(dataclasses.asdict(file)))
    return Load(folder, source, size_bytes, link, uplink, piece_bytes)


def show(load: Load, outcomes: list[Outcome], ways: list[str], counts: list[int]) -> None:
    found = {(outcome.way, outcome.hosts): outcome for outcome in outcomes}
    rows = []
    for way in ways:
        cells = [found.get((way, count)) for count in counts]
        costs = [cell.cpu_per_gib(load.size_bytes) if cell else None for cell in cells]
        rows.append(
            [
                way,
                *("-" if cell is None else f"{cell.ratio:.3f}" for cell in cells),
                *("-" if cost is None else f"{cost:.1f}" for cost in costs),
            ]
        )
    head = ["way", *(f"N={count}" for count in counts), *(f"CPU s/GiB, N={count}" for count in counts)]
    show_parts(load, outcomes)
    details = {
        "size_bytes": load.size_bytes,
        "link_bytes_per_second": load.link,
        "uplink_bytes_per_second": load.uplink or None,
        "outcomes": [dataclasses.asdict(outcome) for outcome in outcomes],
    }
    report("Wall time until every host has it verified, over size / rate", head, rows, details)


def show_parts(load: Load, outcomes: list[Outcome]) -> None:
    """Where a relay's time goes: to the first receiver (headers, start-up, last sync and rename), and hop by hop."""
    for outcome in outcomes:
        hop = outcome.hop_seconds()
        if outcome.first_seconds is None or hop is None:
            continue
        beyond = outcome.first_seconds - load.ideal_seconds * HEADER_TAX
        print(
            f"{outcome.way} N={outcome.hosts}: {outcome.ratio:.3f} = {HEADER_TAX} headers"
            f" {beyond / load.ideal_seconds:+.3f} ({beyond * 1000:.0f} ms) until the first host has it"
            f" {hop * (outcome.hosts - 1) / load.ideal_seconds:+.3f} for {outcome.hosts - 1} hops of {hop * 1000:.1f}"
            f" ms, {outcome.piece_bytes / load.link * HEADER_TAX * 1000:.1f} ms of them for a piece of"
            f" {outcome.piece_bytes >> 10} KiB",
            file=sys.stderr,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hosts", default="4,8,16")
    parser.add_argument("--megabits", type=float, default=200.0, help="rate of each host's link, both ways")
    parser.add_argument("--internet-megabits", type=float, default=0.0, help="rate of the hub's own link")
    parser.add_argument("--seconds", type=float, default=30.0, help="size of the file, as time on the slowest link")
    parser.add_argument("--megabytes", type=float, default=0.0, help="size of the file, instead of --seconds")
    parser.add_argument("--piece-bytes", type=int, default=0, help="0: as the product chooses it")
    parser.add_argument("--paced", action="store_true", help="no shaping, the head keeps the rate: for the CPU column")
    parser.add_argument("--ways", default="bare,plain,tls,rsync,http")
    parser.add_argument("--folder", type=Path, default=Path("/var/tmp"), help="on the disk to be used")
    given = parser.parse_args()
    if os.geteuid():
        raise SystemExit("network namespaces need root")
    counts, ways = [int(part) for part in given.hosts.split(",")], given.ways.split(",")
    link, uplink = given.megabits * 125_000, given.internet_megabits * 125_000
    size = round(given.megabytes * 1e6 or given.seconds * min(link, uplink or link))
    with tempfile.TemporaryDirectory(prefix="fleet-relay-", dir=given.folder) as text:
        load = dataclasses.replace(prepare(Path(text), size, link, uplink, given.piece_bytes), paced=given.paced)
        outcomes = []
        for count in counts:
            for way in ways:
                outcome = measure(load, way, count)
                print(f"{way} N={count}: {outcome.ratio:.3f}", file=sys.stderr)
                outcomes.append(outcome)
    show(load, outcomes, ways, counts)


if __name__ == "__main__":
    main()
