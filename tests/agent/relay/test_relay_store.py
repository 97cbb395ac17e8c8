"""The pieces on a disk, for any order of right and wrong pieces, hashes taken back, deaths and rot."""

import contextlib
import hashlib
import os
import random
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fleet_agent.artifacts.cache import HubCache
from fleet_agent.artifacts.download import incomplete_path
from fleet_agent.jobs.errors import Stopped
from fleet_agent.jobs.model import ArtifactFile
from fleet_agent.relay.manifest import Manifest
from fleet_agent.relay.prefix import PrefixHash
from fleet_agent.relay.resume import take_up, take_up_own
from fleet_agent.relay.store import Disordered, Loan, PieceStore, WrongFile, WrongPiece

PIECE = 1 << 14
SIZE = 5 * PIECE + 100
CONTENT = random.Random(3).randbytes(SIZE)
FILE = ArtifactFile("model.gguf", SIZE, sha256=hashlib.sha256(CONTENT).hexdigest())
MANIFEST = Manifest("acme/model", "c" * 40, "main", (FILE,), PIECE)
PIECES = [CONTENT[start : start + PIECE] for start in range(0, SIZE, PIECE)]
HASHES = [hashlib.sha256(CONTENT[: start + PIECE]).digest() for start in range(0, SIZE, PIECE)]


class Host:
    """A store on a disk that outlives it."""

    def __init__(self, folder: Path) -> None:
        self.cache = HubCache(folder)
        self.cache.ensure_folders(MANIFEST.repository)
        self.part = incomplete_path(self.cache.blob(MANIFEST.repository, FILE))
        self.events: list[object] = []
        self.begin()

    def begin(self) -> None:
        self.store = PieceStore(MANIFEST, self.cache)
        self.file = self.store.files[0]

    def die(self) -> None:
        """A new process: hashes and counts are gone, the part is not."""
        self.store.close()
        self.begin()

    def take_up(self) -> None:
        """As far as hashes are known."""

        def check() -> None:
            if self.file.known <= self.file.verified:
                raise Stopped

        try:
            take_up(self.store, self.file, check, self.events.append)
        except Stopped:
            self.file.taken_up = False

    def put(self, piece: int, data: bytes) -> None:
        self.store.put(0, piece, memoryview(data))

    def assert_sound(self) -> None:
        """What is called verified is on the disk and right; whole is only what is the hub's file."""
        verified = self.file.verified
        if verified:
            assert self.part.read_bytes()[: verified * PIECE] == CONTENT[: verified * PIECE]
        if self.file.whole:
            assert verified == len(PIECES) and self.part.read_bytes() == CONTENT


steps = st.lists(
    st.one_of(
        st.tuples(st.just("hashes"), st.integers(0, 5), st.integers(1, 6)),
        st.tuples(st.just("wrong hashes"), st.integers(0, 5), st.integers(1, 3)),
        st.tuples(st.just("put"), st.integers(0, 5), st.just(0)),
        st.tuples(st.just("put wrong"), st.integers(0, 5), st.integers(0, PIECE - 1)),
        st.tuples(st.just("die"), st.just(0), st.just(0)),
        st.tuples(st.just("rot while dead"), st.integers(0, SIZE - 1), st.just(0)),
        st.tuples(st.just("cut while dead"), st.integers(0, SIZE), st.just(0)),
    ),
    max_size=25,
)


@settings(max_examples=120, deadline=None)
@given(steps)
def test_nothing_wrong_is_ever_called_right(story: list[tuple[str, int, int]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        host = Host(Path(folder))
        for what, at, count in story:
            if host.file.whole:
                break
            if what.endswith("hashes"):
                wrong = what.startswith("wrong")
                data = b"".join(bytes(32) if wrong else digest for digest in HASHES[at : at + count])
                try:
                    host.store.add_hashes(0, at, data)
                except Disordered:
                    assert at > host.file.known
            elif what in ("put", "put wrong"):
                put(host, at, count, what == "put wrong")
            else:
                host.die()
                if host.part.exists():
                    if what.startswith("rot") and at < host.part.stat().st_size:
                        rot(host.part, at)
                    if what.startswith("cut"):
                        with host.part.open("r+b") as stream:
                            stream.truncate(min(at, host.part.stat().st_size))
            host.assert_sound()
        finish(host)


def put(host: Host, piece: int, at: int, wrong: bool) -> None:
    host.take_up()
    data = bytearray(PIECES[piece])
    if wrong:
        data[at % len(data)] ^= 1
    due = piece == host.file.verified and host.file.taken_up and host.file.known > piece
    right = host.file.known > piece and hashlib.sha256(CONTENT[: piece * PIECE] + data).digest() == host.file.hash_of(
        piece
    )
    if not due:
        with pytest.raises(Disordered):
            host.put(piece, bytes(data))
    elif not right:
        with pytest.raises(WrongPiece):
            host.put(piece, bytes(data))
    else:
        host.put(piece, bytes(data))


def rot(path: Path, at: int) -> None:
    with path.open("r+b") as stream:
        stream.seek(at)
        byte = stream.read(1)
        stream.seek(at)
        stream.write(bytes([byte[0] ^ 1]))


def finish(host: Host) -> None:
    """From any state: with the right hashes and pieces it gets whole."""
    if not host.file.whole:
        host.store.add_hashes(0, 0, b"".join(HASHES))
        host.take_up()
        assert host.file.taken_up
        if host.file.verified == len(PIECES):
            host.store.check_whole(host.file)
        for piece in range(host.file.verified, len(PIECES)):
            host.put(piece, PIECES[piece])
    assert host.file.whole
    host.assert_sound()


def test_right_pieces_of_a_wrong_file_are_thrown_away(tmp_path: Path) -> None:
    host = Host(tmp_path)
    lies = [bytes(len(piece)) for piece in PIECES]
    host.store.add_hashes(
        0, 0, b"".join(hashlib.sha256(bytes(min(end, SIZE))).digest() for end in range(PIECE, SIZE + PIECE, PIECE))
    )
    host.take_up()
    for piece, data in enumerate(lies[:-1]):
        host.put(piece, data)
    with pytest.raises(WrongFile):
        host.put(len(lies) - 1, lies[-1])
    assert host.part.stat().st_size == 0 and host.file.verified == host.file.known == 0
    finish(host)


def test_what_the_head_reads_again_differently_takes_the_hashes_back(tmp_path: Path) -> None:
    host = Host(tmp_path)
    host.part.write_bytes(CONTENT[: 3 * PIECE + 7])
    take_up_own(host.store, host.file, lambda: None)
    assert host.file.verified == host.file.known == 3
    assert host.part.stat().st_size == 3 * PIECE
    before = host.store.taken_back
    host.store.announce(host.file, 1, bytes(32))
    assert host.file.known == 2 and host.store.taken_back == before + 1


def test_a_piece_is_lent_while_its_file_is_closed(tmp_path: Path) -> None:
    """A serving thread's descriptor must not become another file's."""
    host = Host(tmp_path)
    host.store.add_hashes(0, 0, b"".join(HASHES))
    host.take_up()
    host.put(0, PIECES[0])
    with contextlib.closing(Loan()) as loan:
        assert host.store.lend(0, 1, loan) is None
        place = host.store.lend(0, 0, loan)
        assert place is not None
        host.file.close()
        with (tmp_path / "other").open("wb") as other:
            assert other.fileno() != place[0]
            assert os.pread(place[0], place[2], place[1]) == PIECES[0]


def test_a_loan_follows_a_file_that_was_opened_anew(tmp_path: Path) -> None:
    host = Host(tmp_path)
    host.store.add_hashes(0, 0, b"".join(HASHES))
    host.take_up()
    host.put(0, PIECES[0])
    with contextlib.closing(Loan()) as loan:
        before = host.store.lend(0, 0, loan)
        assert host.store.lend(0, 0, loan) == before
        host.file.part.rename(tmp_path / "old")
        host.file.open_part()
        os.pwrite(host.file.descriptor, bytes(len(PIECES[0])), 0)
        place = host.store.lend(0, 0, loan)
        assert place is not None and os.pread(place[0], place[2], place[1]) == bytes(len(PIECES[0]))


def test_requests_go_on_from_what_is_there(tmp_path: Path) -> None:
    host = Host(tmp_path)
    assert host.store.next_wanted(None) is None  # the part has to be taken up first
    host.store.add_hashes(0, 0, b"".join(HASHES))
    host.take_up()
    assert host.store.next_wanted(None) == (0, 0)
    host.put(0, PIECES[0])
    assert host.store.next_wanted(None) == (0, 1)
    assert host.store.next_wanted((0, 4)) == (0, 5)
    assert host.store.next_wanted((0, 5)) is None


def test_a_recheck_finds_the_first_wrong_piece(tmp_path: Path) -> None:
    host = Host(tmp_path)
    host.store.add_hashes(0, 0, b"".join(HASHES))
    host.take_up()
    for piece in range(5):
        host.put(piece, PIECES[piece])
    assert host.store.recheck(0, 4)
    rot(host.part, 2 * PIECE + 9)
    assert host.store.recheck(0, 1)
    assert not host.store.recheck(0, 4)
    assert host.file.verified == 2 and host.file.known == len(PIECES)
    finish(host)


def test_a_file_that_the_hub_knows_by_its_git_blob_id_is_whole_by_that(tmp_path: Path) -> None:
    content = CONTENT[: 2 * PIECE + 5]
    blob_id = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
    entry = ArtifactFile("tokenizer.json", len(content), git_blob_id=blob_id)
    prefix = PrefixHash(entry)
    for start in range(0, len(content), PIECE):
        data = content[start : start + PIECE]
        prefix.take(prefix.with_piece(data), data)
    assert prefix.hexdigest() == blob_id == prefix.hub_hash().hexdigest()
