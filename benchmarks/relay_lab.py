"""Hosts that relay a model: processes on this machine, each in a network namespace with a shaped link where asked.

Used by benchmarks/relay.py and by the relay's tests, which take all of a lab from here. A host is a folder with a
Hugging Face home and one `python -m fleet_agent.relay`; its events come up through a pipe, its orders go down through
another.
"""

import contextlib
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Generic, TypeVar

from benchmarks.relay_certificates import Certificates
from benchmarks.relay_content import (
    COMMIT,
    REPOSITORY,
    REVISION,
    described,
    make_content,
    make_manifest,
    put_into_cache,
    whole_sha256,
)
from benchmarks.relay_network import Cable, LoopbackNetwork, ShapedNetwork, run
from benchmarks.relay_process import START_SECONDS, RelayProcess, RelayThread, Told
from fleet_agent.artifacts.cache import HubCache, relative_path
from fleet_agent.artifacts.hashing import expected_hash, hash_file, new_hash
from fleet_agent.relay.control import Event, Peer, RelaySpec
from fleet_agent.relay.manifest import Manifest

__all__ = [
    "COMMIT",
    "REPOSITORY",
    "REVISION",
    "START_SECONDS",
    "Cable",
    "Certificates",
    "LoopbackNetwork",
    "RelayLab",
    "RelayProcess",
    "RelayThread",
    "ShapedNetwork",
    "Told",
    "described",
    "make_content",
    "make_manifest",
    "put_into_cache",
    "relay_lab",
    "run",
    "wait_until",
    "whole_sha256",
]

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


def wait_until(check: Callable[[], bool], seconds: float, what: str) -> None:
    """For conditions outside a relay's events. Raises TimeoutError."""
    deadline = time.monotonic() + seconds
    while not check():
        if time.monotonic() > deadline:
            raise TimeoutError(what)
        time.sleep(0.02)
