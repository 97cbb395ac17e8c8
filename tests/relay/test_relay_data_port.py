"""Strangers and liars on the data port: refused, bounded in memory, and nothing of theirs on the disk."""

import json
import random
import socket
import ssl
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from benchmarks.relay_lab import Certificates, RelayLab, RelayThread, wait_until
from fleet_agent.jobs.errors import SpecProblem
from fleet_agent.jobs.model import ArtifactFile
from fleet_agent.problem import ProblemError
from fleet_agent.relay import links, serving
from fleet_agent.relay.control import (
    CorruptPiece,
    FolderSource,
    Note,
    Peer,
    PeerLost,
    PeerRefused,
    Progress,
    RelaySpec,
    Route,
    TlsFiles,
    parse_order,
    read_spec,
)
from fleet_agent.relay.frames import HEAD, Frame, Hello, Kind, text_frame, unpack
from fleet_agent.relay.links import LinkLost, client_context, dial, server_context
from fleet_agent.relay.manifest import Manifest, check_manifest, piece_bytes_for
from fleet_agent.relay.node import RelayNode
from support.relay_chains import PIECE, assert_all_right, folder_source, send_chain, threads, wait_all

ONE = {"model.gguf": 3_000_000}


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[RelayLab[RelayThread]]:
    """h0 is a head that has everything; h1 and h2 are not started."""
    with threads(tmp_path, 3, ONE) as made:
        made.start("h0")
        made.relays["h0"].order(Route(1, folder=folder_source(tmp_path)))
        made.relays["h0"].wait_until_complete()
        yield made


def raw(lab: RelayLab[RelayThread]) -> socket.socket:
    peer = lab.peer("h0")
    return socket.create_connection((peer.address, peer.port), timeout=10)


def authenticated(lab: RelayLab[RelayThread], name: str = "h1") -> ssl.SSLSocket:
    files = lab.tls[name]
    assert files is not None
    return client_context(files).wrap_socket(raw(lab))


def greeted(lab: RelayLab[RelayThread], purpose: str = "pieces", **changes: str) -> ssl.SSLSocket:
    connection = authenticated(lab)
    values = {"node": "h1", "rollout": lab.rollout, "manifest": lab.manifest.digest(), "purpose": purpose, **changes}
    connection.sendall(Hello(**values).pack())
    return connection


def ended(connection: socket.socket) -> bool:
    """Whether the other side closes without another word, or with one that says why."""
    with suppress(OSError):
        while connection.recv(65536):
            pass
    return True


def still_serves(lab: RelayLab[RelayThread]) -> None:
    lab.start("h2").order(Route(1, head=lab.peer("h0"), upstream=lab.peer("h0")))
    lab.relays["h2"].wait_until_complete()
    assert lab.wrong_files("h2") == []


def test_garbage_before_the_handshake(lab: RelayLab[RelayThread]) -> None:
    source = random.Random(7)
    for length in (0, 1, 5, 11, 12, 100, 5000, 200_000):
        with raw(lab) as connection:
            with suppress(OSError):
                connection.sendall(source.randbytes(length))
                connection.shutdown(socket.SHUT_WR)
            assert ended(connection)
    still_serves(lab)


def test_garbage_from_a_node_with_a_right_certificate(lab: RelayLab[RelayThread]) -> None:
    source = random.Random(11)
    frames = [
        source.randbytes(400),
        HEAD.pack(Kind.HELLO, 0, 0, 0xFFFFFFFF),
        HEAD.pack(Kind.REQUEST, 0, 0, 0),
        text_frame(Kind.HELLO, {"protocol": 1}),
        text_frame(Kind.HELLO, {"protocol": 99, "node": "h1", "rollout": "", "manifest": "", "purpose": "pieces"}),
        text_frame(Kind.HELLO, [["deep"]] * 200),
        text_frame(Kind.HELLO, {"protocol": 1, "node": ["h1"], "rollout": 1, "manifest": None, "purpose": {}}),
        Frame(Kind.HELLO, length=4000).pack() + b"[" * 4000,
        Frame(Kind.HELLO, length=100).pack() + b"\xff" * 100,
    ]
    for data in frames:
        with authenticated(lab) as connection:
            with suppress(OSError):
                connection.sendall(data)
            assert ended(connection)
    still_serves(lab)


def test_garbage_after_the_greeting(lab: RelayLab[RelayThread]) -> None:
    source = random.Random(13)
    wrong = [
        Frame(Kind.REQUEST, 0, 1 << 30).pack(),
        Frame(Kind.REQUEST, 65535, 0).pack(),
        Frame(Kind.PIECE, 0, 0, 10).pack() + b"0123456789",
        Frame(Kind.HASHES, 0, 0, 32).pack() + bytes(32),
        Frame(Kind.REQUEST, 0, 0).pack() * 5000,
        source.randbytes(1000),
        struct.pack("!BxHII", 200, 0, 0, 0),
    ]
    for data in wrong:
        with greeted(lab) as connection:
            with suppress(OSError):
                connection.sendall(data)
            assert ended(connection)
    still_serves(lab)
    assert not lab.relays["h0"].told(Note)


def test_a_truncated_frame_is_not_waited_for_long(lab: RelayLab[RelayThread], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "FRAME_SECONDS", 0.3)
    with greeted(lab) as connection:
        connection.sendall(Frame(Kind.REQUEST, 0, 0).pack()[:7])
        assert ended(connection)


@pytest.mark.parametrize("purpose", ["pieces", "hashes"])
def test_who_belongs_to_another_rollout_is_refused(lab: RelayLab[RelayThread], purpose: str) -> None:
    for changes in ({"rollout": "other"}, {"manifest": "0" * 64}):
        with greeted(lab, purpose, **changes) as connection:
            assert unpack(connection.recv(12)).kind is Kind.BYE
            assert b"another rollout" in connection.recv(4096)
    still_serves(lab)


def test_a_certificate_opens_no_other_name(lab: RelayLab[RelayThread]) -> None:
    """h1's certificate is right, and it says that it is h2."""
    with greeted(lab, node="h2") as connection:
        assert unpack(connection.recv(12)).kind is Kind.BYE
        assert b"its certificate names 'h1'" in connection.recv(4096)
    told = lab.relays["h0"].wait_for(lambda e: isinstance(e, PeerRefused))
    assert isinstance(told, PeerRefused) and told.name == "h2"


def test_a_foreign_authority_a_missing_and_an_unknown_certificate(lab: RelayLab[RelayThread], tmp_path: Path) -> None:
    strangers = Certificates(tmp_path / "foreign")
    foreign = strangers.files("h1")
    ours = lab.tls["h0"]
    assert ours is not None
    # Who trusts our authority but shows a certificate of another one.
    mixed = TlsFiles(ours.ca, foreign.certificate, foreign.key)
    with pytest.raises(LinkLost) as lost:
        link = dial(lab.peer("h0"), client_context(mixed))
        link.receive(1, lambda: None)
    assert lost.value.reason in ("closed", "certificate")
    # Who shows none.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    with raw(lab) as connection, suppress(OSError), context.wrap_socket(connection) as wrapped:
        assert ended(wrapped)
    # A server of a foreign authority is not asked, nor one of ours with another name.
    with pytest.raises(LinkLost) as lost:
        dial(lab.peer("h0"), client_context(foreign))
    assert lost.value.reason == "certificate"
    with pytest.raises(LinkLost) as lost:
        peer = lab.peer("h0")
        files = lab.tls["h1"]
        assert files is not None
        dial(Peer("h2", peer.address, peer.port), client_context(files))
    assert lost.value.reason == "certificate" and "'h0'" in lost.value.detail
    still_serves(lab)


def test_slow_strangers_are_few_and_leave(lab: RelayLab[RelayThread], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "HANDSHAKE_SECONDS", 2.0)
    strangers = []
    for _ in range(60):
        with suppress(ConnectionResetError):  # turned away before connect() has returned
            strangers.append(raw(lab))
    try:
        for connection in strangers:
            with suppress(OSError):
                connection.sendall(b"\x16")  # the first byte of a TLS record, and no more
        serving_now = sum(thread.name == "serve" for thread in threading.enumerate())
        assert serving_now <= serving.STRANGERS_PER_ADDRESS
        # All but a few are turned away at once, the rest when their time is over.
        for connection in strangers:
            assert ended(connection)
    finally:
        for connection in strangers:
            connection.close()
    still_serves(lab)


class Liar:
    """A node of the rollout with a right certificate that sends what it likes, once."""

    def __init__(self, lab: RelayLab[RelayThread], name: str, answer: bytes) -> None:
        files = lab.tls[name]
        assert files is not None
        self._context = server_context(files)
        self._answer = answer
        self._listener = links.listen("127.0.0.1", 0)
        self.peer = Peer(name, "127.0.0.1", self._listener.getsockname()[1])

    def serve_once(self) -> None:
        connection, _ = self._listener.accept()
        with suppress(OSError), self._context.wrap_socket(connection, server_side=True) as wrapped:
            wrapped.settimeout(30)
            wrapped.recv(4096)
            wrapped.sendall(text_frame(Kind.WELCOME, {"node": self.peer.name}) + self._answer)
            ended(wrapped)

    def close(self) -> None:
        self._listener.close()


WRONG_PIECE = Frame(Kind.PIECE, 0, 0, PIECE).pack() + bytes(PIECE)


@pytest.mark.parametrize(
    "answer",
    [
        WRONG_PIECE,
        Frame(Kind.PIECE, 0, 0, PIECE - 1).pack() + bytes(PIECE),
        Frame(Kind.PIECE, 0, 7, PIECE).pack() + bytes(PIECE),
        Frame(Kind.PIECE, 3, 0, PIECE).pack() + bytes(PIECE),
        # Hashes count only from the head: these are of the zeros that follow.
        Frame(Kind.HASHES, 0, 0, 32).pack() + bytes(32) + WRONG_PIECE,
        Frame(Kind.REQUEST, 0, 0).pack(),
        bytes(range(256)) * 8,
        WRONG_PIECE[: PIECE // 2],
        text_frame(Kind.BYE, "no"),
    ],
    ids=["content", "length", "order", "file", "hashes", "kind", "garbage", "truncated", "bye"],
)
def test_a_lying_upstream_changes_nothing(lab: RelayLab[RelayThread], answer: bytes) -> None:
    liar = Liar(lab, "h1", answer)
    try:
        relay = lab.start("h2")
        relay.order(Route(1, head=lab.peer("h0"), upstream=liar.peer))
        liar.serve_once()
        told = relay.wait_for(lambda e: isinstance(e, CorruptPiece | PeerLost) and e.peer == "h1")
        if answer == WRONG_PIECE:
            assert told == CorruptPiece("h1", "model.gguf", 0)
        assert lab.blob("h2").exists() is False
        relay.order(Route(2, head=lab.peer("h0"), upstream=lab.peer("h0")))
        relay.wait_until_complete()
        assert lab.wrong_files("h2") == []
        assert relay.progress is not None and relay.progress.received_bytes <= 3_000_000 + PIECE
    finally:
        liar.close()


def test_a_silent_upstream_is_reported_and_not_for_ever(
    lab: RelayLab[RelayThread], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(links, "SILENT_PROGRAM_SECONDS", 0.6)
    liar = Liar(lab, "h1", b"")
    try:
        relay = lab.start("h2")
        relay.order(Route(1, head=lab.peer("h0"), upstream=liar.peer))
        liar.serve_once()
        lost = relay.wait_for(lambda e: isinstance(e, PeerLost) and e.peer == "h1")
        assert isinstance(lost, PeerLost) and lost.reason == "silent"
    finally:
        liar.close()


def test_an_upstream_that_waits_for_its_own_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """h1 has no source yet: it keeps h2 waiting far longer than a silent program may take, and is not lost."""
    monkeypatch.setattr(links, "SILENT_PROGRAM_SECONDS", 3.0)
    with threads(tmp_path, 3, ONE) as lab:
        lab.start_all()
        lab.relays["h2"].order(Route(1, head=lab.peer("h0"), upstream=lab.peer("h1")))
        relay = lab.relays["h2"]
        started = time.monotonic()
        relay.wait_for(lambda e: isinstance(e, Progress) and time.monotonic() - started > 6.5)
        assert not [e for e in relay.told(PeerLost) if e.purpose == "pieces"]
        send_chain(lab, lab.names, folder_source(tmp_path), sequence=2)
        wait_all(lab)
        assert_all_right(lab)


PATHS = ["../../etc/passwd", "/etc/passwd", "a/../../b", "a//b", ".", "..", "", "a\0b", "a\\..\\b", "a/./b"]


@pytest.mark.parametrize("path", PATHS)
def test_no_name_in_a_manifest_leads_out_of_the_cache(path: str) -> None:
    file = ArtifactFile(path, 10, sha256="a" * 64)
    with pytest.raises(SpecProblem):
        check_manifest(Manifest("acme/model", "c" * 40, "main", (file,), PIECE))


@pytest.mark.parametrize(
    "changes",
    [
        {"repository": "../../x"},
        {"repository": "a--b/c"},
        {"commit": "../" * 13 + "x"},
        {"revision": "../../x"},
        {"piece_bytes": 0},
        {"piece_bytes": 1 << 21},
        {"files": (ArtifactFile("a", 10, sha256="../" + "a" * 61),)},
        {"files": (ArtifactFile("a", -1, sha256="a" * 64),)},
        {"files": (ArtifactFile("a", 1 << 50, sha256="a" * 64),)},
        {"files": (ArtifactFile("a", 1, sha256="a" * 64), ArtifactFile("a", 1, sha256="b" * 64))},
    ],
)
def test_a_manifest_that_breaks_a_rule_is_refused(changes: dict[str, object]) -> None:
    values: dict[str, object] = {
        "repository": "acme/model", "commit": "c" * 40, "revision": "main", "piece_bytes": PIECE,
        "files": (ArtifactFile("a", 10, sha256="a" * 64),), **changes,
    }  # fmt: skip
    with pytest.raises(SpecProblem):
        check_manifest(Manifest(**values))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "line",
    [
        "", "{}", "[]", "null", '{"order": "shell"}', '{"order": "route"}', '{"order": "route", "sequence": "x"}',
        '{"order": "route", "sequence": 1, "upstream": {"name": "h1", "address": "a", "port": 1}}',
        '{"order": "route", "sequence": 1, "head": {"name": "*.x", "address": "a", "port": 1}}',
        '{"order": "route", "sequence": 1, "head": {"name": "h", "address": "a", "port": 99999}}',
        '{"order": "route", "sequence": 1, "folder": {"path": "relative"}}',
        '{"order": "route", "sequence": 1, "folder": {"path": "/a"}, "hub": {}}',
    ],
)  # fmt: skip
def test_what_is_no_order_is_refused(line: str) -> None:
    with pytest.raises(SpecProblem):
        parse_order(line)


def test_a_relay_without_certificates_does_not_start(tmp_path: Path) -> None:
    manifest = Manifest("acme/model", "c" * 40, "main", (ArtifactFile("a", 10, sha256="a" * 64),), PIECE)
    spec = RelaySpec("r", "h0", manifest, str(tmp_path), str(tmp_path), ("h0",))
    with pytest.raises(ProblemError) as refused:
        RelayNode(spec, lambda event: None)
    assert refused.value.code == "no-certificate"
    # No field of the spec asks for it: the command line alone does.
    document = {**json.loads(json.dumps({"rollout": "r", "node": "h0"})), "plain": True}
    assert not hasattr(RelaySpec, "plain") and "plain" in document
    with pytest.raises(SpecProblem):
        read_spec(json.dumps(document))


def test_pieces_shrink_with_the_size_and_the_number_of_hosts() -> None:
    assert piece_bytes_for(20 << 30, 16) == 1 << 20
    assert piece_bytes_for(256_000_000, 32) == 1 << 17
    assert piece_bytes_for(0, 0) == 1 << 14
    for total in (10_000_000, 300_000_000, 5_000_000_000):
        for hosts in (1, 4, 16, 32):
            assert piece_bytes_for(total, hosts) <= max(1 << 14, total / (50 * hosts))


def test_a_folder_that_lacks_a_file_is_said_so(tmp_path: Path) -> None:
    with threads(tmp_path, 1, ONE) as lab:
        lab.start("h0").order(Route(1, folder=FolderSource(str(tmp_path))))
        wait_until(lambda: bool(lab.relays["h0"].events), 10.0, "it listens")
        failed = lab.relays["h0"].wait_for(lambda e: type(e).__name__ == "SourceFailed")
        assert "model.gguf cannot be read" in failed.message  # type: ignore[union-attr]
