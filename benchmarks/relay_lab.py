"""Hosts that relay a model: processes on this machine, each in a network namespace with a shaped link where asked.

Used by benchmarks/relay.py and by the relay's tests. A host is a folder with a Hugging Face home and one
`python -m fleet_agent.relay`; its events come up through a pipe, its orders go down through another.
"""

import contextlib
import datetime
import hashlib
import json
import os
import random
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from fleet_agent.artifacts.cache import HubCache, relative_path
from fleet_agent.artifacts.hashing import expected_hash, hash_file, new_hash
from fleet_agent.jobs.codec import encode
from fleet_agent.jobs.model import ArtifactFile
from fleet_agent.relay.control import (
    Complete,
    Event,
    Failed,
    Listening,
    Order,
    Peer,
    Progress,
    RelaySpec,
    Stop,
    TlsFiles,
    order_line,
    parse_event,
    parse_order,
)
from fleet_agent.relay.manifest import Manifest, piece_bytes_for
from fleet_agent.relay.node import RelayNode
from fleet_controller.pki.authority import Authority, Usage, new_key

REPOSITORY, COMMIT, REVISION = "lab/model", "c" * 40, "main"
START_SECONDS = 60.0
BRIDGE_PORT_BYTES_LIMIT = 15  # IFNAMSIZ less its closing NUL


def run(*command: str, check: bool = True) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if check and done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout


# -- content -----------------------------------------------------------------------------------------------------


def make_content(folder: Path, sizes: Mapping[str, int], seed: int = 1) -> tuple[ArtifactFile, ...]:
    """Random files; large ones with a sha256, those under 1 MB with a git blob id, as a hub has them."""
    source = random.Random(seed)
    files = []
    for name, size in sizes.items():
        path = folder / relative_path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as stream:
            for start in range(0, size, 1 << 20):
                stream.write(source.randbytes(min(1 << 20, size - start)))
        files.append(described(path, name))
    return tuple(files)


def described(path: Path, name: str) -> ArtifactFile:
    size = path.stat().st_size
    kind = ArtifactFile(name, size, sha256="-" if size >= 1_000_000 else "", git_blob_id="-")
    digest = new_hash(kind)
    hash_file(path, digest, lambda _: None)
    if kind.sha256:
        return ArtifactFile(name, size, sha256=digest.hexdigest(), git_blob_id="0" * 40)
    return ArtifactFile(name, size, git_blob_id=digest.hexdigest())


def make_manifest(files: Sequence[ArtifactFile], hosts: int, piece_bytes: int = 0) -> Manifest:
    size = piece_bytes or piece_bytes_for(sum(file.size_bytes for file in files), hosts)
    return Manifest(REPOSITORY, COMMIT, REVISION, tuple(files), size)


def put_into_cache(hf_home: Path, manifest: Manifest, folder: Path) -> None:
    """As a former download left it: blobs by hard link, no snapshot."""
    cache = HubCache(hf_home)
    cache.ensure_folders(manifest.repository)
    for file in manifest.files:
        blob = cache.blob(manifest.repository, file)
        if not blob.exists():
            os.link(folder / relative_path(file.path), blob)


# -- certificates -----------------------------------------------------------------------------------------------


class Certificates:
    """A certificate authority for one rollout, and a key and certificate for each name."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._authority = Authority.create("relay lab", datetime.datetime.now(datetime.UTC))
        self._ca = folder / "ca.pem"
        self._ca.write_bytes(self._authority.certificate_pem)

    def files(self, name: str) -> TlsFiles:
        public, private = new_key()
        made = self._authority.issue(public, name, Usage.PULL, 1, datetime.datetime.now(datetime.UTC))
        certificate, key = self._folder / f"{name}.pem", self._folder / f"{name}.key"
        certificate.write_bytes(made.pem)
        key.touch(0o600)
        key.write_bytes(private)
        return TlsFiles(str(self._ca), str(certificate), str(key))


# -- one relay --------------------------------------------------------------------------------------------------


class Told:
    """What a relay has told so far. Events are kept, and given to `on_event` from the thread that hears them."""

    def __init__(
        self, spec: RelaySpec, folder: Path, prefix: Sequence[str], plain: bool, on_event: Callable[[Event], None]
    ) -> None:
        self.spec = spec
        self.events: list[Event] = []
        self._on_event = on_event
        self._changed = threading.Condition()
        self._ended = False

    def order(self, order: Order) -> None:
        self.send(order_line(order))

    def send(self, line: str) -> None:
        """An order as a line, as the controller writes it. A relay that has ended hears nothing."""
        raise NotImplementedError

    def ask_to_stop(self) -> None:
        raise NotImplementedError

    def end(self, seconds: float = 30.0) -> int:
        """Waits until it has ended; its exit code."""
        raise NotImplementedError

    def stop(self) -> int:
        self.ask_to_stop()
        return self.end()

    def _hear(self, event: Event) -> None:
        with self._changed:
            self.events.append(event)
            self._changed.notify_all()
        self._on_event(event)

    def _hear_the_end(self) -> None:
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def log(self) -> str:
        return ""

    def wait_for(self, wanted: Callable[[Event], bool], seconds: float = START_SECONDS) -> Event:
        """The first event, since the start, that is wanted. Raises TimeoutError, or RuntimeError where it ended."""
        with self._changed:
            self._changed.wait_for(lambda: self._ended or any(map(wanted, self.events)), seconds)
            found = next(filter(wanted, self.events), None)
        if found is None:
            told = [event for event in self.events if not isinstance(event, Progress)][-8:]
            kind = RuntimeError if self._ended else TimeoutError
            raise kind(f"{self.spec.node} has not told what was awaited; it told {told}, {self.log()[-2000:]}")
        return found

    def told(self, kind: type[Any]) -> list[Any]:
        """Its events of one kind."""
        return [event for event in self.events if isinstance(event, kind)]

    def port(self) -> int:
        found = self.wait_for(lambda event: isinstance(event, Listening))
        assert isinstance(found, Listening)
        return found.port

    def wait_until_complete(self, seconds: float = START_SECONDS) -> None:
        self.wait_for(lambda event: isinstance(event, Complete), seconds)

    @property
    def progress(self) -> Progress | None:
        return next((event for event in reversed(self.events) if isinstance(event, Progress)), None)

    def failure(self) -> Failed | None:
        return next((event for event in self.events if isinstance(event, Failed)), None)


class RelayThread(Told):
    """A relay in a thread of this process: starts at once, and cannot be killed."""

    def __init__(
        self, spec: RelaySpec, folder: Path, prefix: Sequence[str], plain: bool, on_event: Callable[[Event], None]
    ) -> None:
        super().__init__(spec, folder, prefix, plain, on_event)
        assert not prefix, "a thread lives in this process's own network"
        self.node = RelayNode(spec, self._hear, plain)
        self._code = 0
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        self._code = self.node.run()
        self._hear_the_end()

    def send(self, line: str) -> None:
        self.node.order(parse_order(line))

    def ask_to_stop(self) -> None:
        self.node.order(Stop())

    def end(self, seconds: float = 30.0) -> int:
        self._thread.join(seconds)
        if self._thread.is_alive():
            raise TimeoutError(f"{self.spec.node} does not end")
        return self._code


class RelayProcess(Told):
    """A relay as a process of its own, as on a host."""

    module: tuple[str, ...] = ("fleet_agent.relay",)

    def __init__(
        self, spec: RelaySpec, folder: Path, prefix: Sequence[str], plain: bool, on_event: Callable[[Event], None]
    ) -> None:
        super().__init__(spec, folder, prefix, plain, on_event)
        path = folder / f"{spec.node}.spec.json"
        path.write_text(json.dumps(encode(spec)))
        command = [*prefix, sys.executable, "-m", *self.module, str(path), "--stdin"]
        self._log = (folder / f"{spec.node}.log").open("ab")
        self.process = subprocess.Popen(
            [*command, "--plain"] if plain else command,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, text=True, bufsize=1,
        )  # fmt: skip
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._hear(parse_event(line))
        self._hear_the_end()

    def send(self, line: str) -> None:
        assert self.process.stdin is not None
        with contextlib.suppress(OSError, ValueError):
            self.process.stdin.write(line)
            self.process.stdin.flush()

    def log(self) -> str:
        return Path(self._log.name).read_text(errors="replace")

    def kill(self) -> None:
        """As if the power went, and wait for it."""
        self.process.send_signal(signal.SIGKILL)
        self.end()

    def ask_to_stop(self) -> None:
        with contextlib.suppress(OSError):
            assert self.process.stdin is not None
            self.process.stdin.close()

    def end(self, seconds: float = 30.0) -> int:
        try:
            code = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            code = self.process.wait()
        self._reader.join(5.0)
        for stream in (self.process.stdin, self.process.stdout, self._log):
            with contextlib.suppress(OSError):
                if stream is not None:
                    stream.close()
        return code

    def cpu_seconds(self) -> float:
        """User and system time of the running process, all its threads."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


# -- networks ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cable:
    """A host's place in the network."""

    address: str
    prefix: tuple[str, ...] = ()
    namespace: str = ""
    link: str = ""


class LoopbackNetwork:
    """All hosts at 127.0.0.1: for tests that need no shaping."""

    def connect(self, name: str) -> Cable:
        return Cable("127.0.0.1")

    def destroy(self) -> None:
        pass


@dataclass
class ShapedNetwork:
    """A network namespace for each host, on one bridge; what it sends and what it gets is held to a rate by tc-tbf.

    A rate of 0 shapes nothing.
    """

    rate_bytes_per_second: float
    cables: dict[str, Cable] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._id = secrets.token_hex(2)
        self._bridge = f"rly{self._id}"
        self._network = f"10.{secrets.randbelow(90) + 10}.{secrets.randbelow(250)}"
        run("ip", "link", "add", self._bridge, "type", "bridge")
        run("ip", "address", "add", f"{self._network}.1/24", "dev", self._bridge)
        run("ip", "link", "set", self._bridge, "up")

    @property
    def bridge_address(self) -> str:
        """This machine, seen from the hosts: where a stand-in of the hub listens."""
        return f"{self._network}.1"

    def connect(self, name: str) -> Cable:
        """The host's cable, made at the first call; two rollouts on one host share it."""
        if name in self.cables:
            return self.cables[name]
        number = len(self.cables)
        namespace, link = f"{self._bridge}-{number}", f"{self._bridge}v{number}"[:BRIDGE_PORT_BYTES_LIMIT]
        address = f"{self._network}.{10 + number}"
        run("ip", "netns", "add", namespace)
        run("ip", "link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", namespace)
        run("ip", "link", "set", link, "master", self._bridge, "up")
        run("ip", "-n", namespace, "address", "add", f"{address}/24", "dev", "eth0")
        run("ip", "-n", namespace, "link", "set", "eth0", "up")
        run("ip", "-n", namespace, "link", "set", "lo", "up")
        self.cables[name] = Cable(address, ("ip", "netns", "exec", namespace), namespace, link)
        if self.rate_bytes_per_second:
            self.shape(name, self.rate_bytes_per_second)
        return self.cables[name]

    def shape(self, name: str, down_bytes_per_second: float, up_bytes_per_second: float = 0.0) -> None:
        """Rate towards the host and, the same where not given, from it."""
        cable = self.cables[name]
        up = up_bytes_per_second or down_bytes_per_second
        run("tc", "qdisc", "replace", "dev", cable.link, "root", *_bucket(down_bytes_per_second))
        run("tc", "-n", cable.namespace, "qdisc", "replace", "dev", "eth0", "root", *_bucket(up))

    def cut(self, name: str) -> None:
        """Silently: nothing is told to anybody, packets are lost both ways."""
        run("bridge", "link", "set", "dev", self.cables[name].link, "state", "0")

    def mend(self, name: str) -> None:
        run("bridge", "link", "set", "dev", self.cables[name].link, "state", "3")

    def destroy(self) -> None:
        for cable in self.cables.values():
            run("ip", "netns", "delete", cable.namespace, check=False)
            run("ip", "link", "delete", cable.link, check=False)
        run("ip", "link", "delete", self._bridge, check=False)


def _bucket(bytes_per_second: float) -> list[str]:
    rate = f"{round(bytes_per_second * 8)}bit"
    # Tokens for 10 ms: a timer that a busy machine serves late must not take rate away; and for the largest packet that
    # TCP gives a card to cut (64 KB and its headers), which tbf would cut itself otherwise, with a timer for each part.
    # A queue as a switch's port has.
    burst = max(72_000, round(bytes_per_second * 0.01))
    return ["tbf", "rate", rate, "burst", str(burst), "latency", "50ms"]


# -- the lab ----------------------------------------------------------------------------------------------------


Relay = TypeVar("Relay", bound=Told)


class RelayLab(Generic[Relay]):
    """Hosts with a cache each, and the relays that run on them."""

    def __init__(
        self,
        folder: Path,
        manifest: Manifest,
        names: Sequence[str],
        network: LoopbackNetwork | ShapedNetwork,
        tls: bool,
        kind: type[Relay],
        on_event: Callable[[str, Event], None] = lambda name, event: None,
    ) -> None:
        self.kind = kind
        self.encrypted = tls
        self.folder = folder
        self.manifest = manifest
        self.names = tuple(names)
        self.network = network
        self.on_event = on_event
        self.relays: dict[str, Relay] = {}
        self.cables = {name: network.connect(name) for name in names}
        certificates = Certificates(folder / "certificates") if tls else None
        self.tls = {name: certificates.files(name) if certificates else None for name in names}
        self.rollout = secrets.token_hex(8)

    def hf_home(self, name: str) -> Path:
        return self.folder / name / "huggingface"

    def spec(self, name: str, **changes: object) -> RelaySpec:
        values: dict[str, object] = {
            "rollout": self.rollout, "node": name, "manifest": self.manifest, "hf_home": str(self.hf_home(name)),
            "machine_dir": str(self.folder / name / "machine"), "allowed": self.names, "tls": self.tls[name],
            "listen_host": self.cables[name].address, **changes,
        }  # fmt: skip
        return RelaySpec(**values)  # type: ignore[arg-type]

    def start(self, name: str, **changes: object) -> Relay:
        self.hf_home(name).mkdir(parents=True, exist_ok=True)
        relay = self.kind(
            self.spec(name, **changes), self.folder / name, self.cables[name].prefix, self.tls[name] is None,
            lambda event: self.on_event(name, event),
        )  # fmt: skip
        self.relays[name] = relay
        return relay

    def start_all(self, head_upload_bytes_per_second: int = 0) -> None:
        """The head is the first of the names."""
        for name in self.names:
            self.start(name, upload_bytes_per_second=0 if name != self.names[0] else head_upload_bytes_per_second)
        for relay in self.relays.values():
            relay.port()

    def peer(self, name: str) -> Peer:
        return Peer(name, self.cables[name].address, self.relays[name].port())

    def blob(self, name: str, file: int = 0) -> Path:
        return HubCache(self.hf_home(name)).blob(self.manifest.repository, self.manifest.files[file])

    def wrong_files(self, name: str) -> list[str]:
        """Every blob in place is read again; what has another hash than its name says, and what is missing."""
        cache, wrong = HubCache(self.hf_home(name)), []
        for file in self.manifest.files:
            blob = cache.blob(self.manifest.repository, file)
            link = cache.snapshot(self.manifest.repository, self.manifest.commit) / relative_path(file.path)
            found = new_hash(file)
            if not blob.exists() or not link.exists() or not link.samefile(blob):
                wrong.append(f"{file.path} is missing")
                continue
            hash_file(blob, found, lambda _: None)
            if found.hexdigest() != expected_hash(file):
                wrong.append(f"{file.path} is wrong")
        return wrong

    def stop(self) -> None:
        for relay in self.relays.values():
            relay.ask_to_stop()
        for relay in self.relays.values():
            relay.end()


@contextlib.contextmanager
def relay_lab(
    folder: Path,
    manifest: Manifest,
    names: Sequence[str],
    network: LoopbackNetwork | ShapedNetwork | None = None,
    tls: bool = True,
    on_event: Callable[[str, Event], None] = lambda name, event: None,
    *,
    kind: type[Relay],
) -> Iterator[RelayLab[Relay]]:
    """A lab whose relays are ended with the block; the network is the caller's."""
    lab = RelayLab(folder, manifest, names, network or LoopbackNetwork(), tls, kind, on_event)
    try:
        yield lab
    finally:
        lab.stop()


def whole_sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def wait_until(check: Callable[[], bool], seconds: float, what: str) -> None:
    """For conditions outside a relay's events. Raises TimeoutError."""
    deadline = time.monotonic() + seconds
    while not check():
        if time.monotonic() > deadline:
            raise TimeoutError(what)
        time.sleep(0.02)
