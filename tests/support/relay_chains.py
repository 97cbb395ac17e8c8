"""Relays in threads of the test's process, over the loopback, with mutual TLS: a lab in a second."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from benchmarks.relay_lab import RelayLab, RelayThread, make_content, make_manifest, relay_lab
from fleet_agent.relay.control import FolderSource, HubSource, Route

PIECE = 1 << 16
SIZES = {"config.json": 700, "empty.txt": 0, "original/tokenizer.json": 1_300_001, "model.gguf": 3_000_000}


@contextmanager
def threads(
    tmp_path: Path, hosts: int, sizes: Mapping[str, int] = SIZES, piece_bytes: int = PIECE
) -> Iterator[RelayLab[RelayThread]]:
    """Hosts h0, h1, ...; the files lie in tmp_path/source."""
    files = make_content(tmp_path / "source", sizes)
    manifest = make_manifest(files, hosts, piece_bytes)
    names = [f"h{number}" for number in range(hosts)]
    with relay_lab(tmp_path / "lab", manifest, names, kind=RelayThread) as lab:
        yield lab


def folder_source(tmp_path: Path) -> FolderSource:
    return FolderSource(str(tmp_path / "source"))


def send_chain(
    lab: RelayLab[RelayThread],
    names: Sequence[str],
    source: FolderSource | HubSource | None,
    sequence: int = 1,
) -> None:
    """names[0] is the head, each of the others fetches from the one before."""
    head = names[0]
    hub = source if isinstance(source, HubSource) else None
    folder = source if isinstance(source, FolderSource) else None
    lab.relays[head].order(Route(sequence, hub=hub, folder=folder))
    for upstream, name in itertools.pairwise(names):
        lab.relays[name].order(Route(sequence, head=lab.peer(head), upstream=lab.peer(upstream)))


def wait_all(lab: RelayLab[RelayThread], seconds: float = 60.0) -> None:
    for relay in lab.relays.values():
        relay.wait_until_complete(seconds)


def assert_all_right(lab: RelayLab[RelayThread]) -> None:
    """Every host has every file in place, byte for byte."""
    assert {name: lab.wrong_files(name) for name in lab.names} == {name: [] for name in lab.names}
