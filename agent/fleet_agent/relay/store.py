"""The pieces on this disk: what is right, what hash the others must have, and who wants to know when that changes.

Pieces of a file are taken in order, so the state of a file is one number, and one hash runs along (prefix.py). The part
is `<hash>.incomplete` beside the blob, the very part of a hub download: each goes on where the other was killed.
"""

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from fleet_agent.artifacts.cache import HubCache
from fleet_agent.artifacts.download import incomplete_path
from fleet_agent.artifacts.hashing import Hash, expected_hash
from fleet_agent.jobs.errors import DISK_FULL_ERRNOS, disk_full
from fleet_agent.relay.manifest import DIGEST_BYTES, Manifest
from fleet_agent.relay.prefix import PrefixHash
from fleet_agent.steps.output import free_bytes


class WrongPiece(Exception):
    """A piece whose hash is not the head's. It was not stored."""


class Disordered(Exception):
    """The state changed under the caller: what it has asked for is no longer what is wanted."""


class WrongFile(Exception):
    """Every piece is as announced, and the file still is not the hub's."""


class StoredFile:
    """One file of the manifest. Fields change under the store's lock only; the part is written by one thread."""

    def __init__(self, manifest: Manifest, number: int, blob: Path) -> None:
        self.number = number
        self.entry = manifest.files[number]
        self.pieces = manifest.pieces(number)
        self.blob = blob
        self.part = incomplete_path(blob)
        self.hashes = bytearray()  # of prefixes, as the head announced them, from piece 0 on
        self.verified = 0  # pieces on the disk that are right, from piece 0 on
        self.prefix = PrefixHash(self.entry)
        self.taken_up = False  # whether `prefix` has seen all verified pieces and the part ends after them
        self.whole = False  # all of it is here and has the hub's hash
        self.placed = False  # and it is in the cache under its name
        self.epoch = 0  # counts up whenever hashes were taken back
        self.descriptor = -1
        self.opened = 0  # counts up whenever the descriptor became another one

    @property
    def known(self) -> int:
        return len(self.hashes) // DIGEST_BYTES

    def hash_of(self, piece: int) -> bytes:
        return bytes(self.hashes[piece * DIGEST_BYTES : (piece + 1) * DIGEST_BYTES])

    def open_part(self) -> None:
        self.close()
        self.opened += 1
        self.descriptor = os.open(self.part, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)

    def close(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1


class Loan:
    """A borrower's own descriptor of a file, kept from one piece to the next: the file's own may be closed, or become
    another file's, while a piece is read."""

    def __init__(self) -> None:
        self._file: StoredFile | None = None
        self._opened = 0
        self._descriptor = -1

    def of(self, file: StoredFile) -> int:
        """The file's descriptor. Called with the store's lock held."""
        if file is not self._file or file.opened != self._opened:
            self.close()
            self._descriptor = os.dup(file.descriptor)
            self._file, self._opened = file, file.opened
        return self._descriptor

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._file, self._descriptor = None, -1


class PieceStore:
    """All files of a rollout on this host."""

    def __init__(self, manifest: Manifest, cache: HubCache) -> None:
        self.manifest = manifest
        self.cache = cache
        self.files = [
            StoredFile(manifest, number, cache.blob(manifest.repository, file))
            for number, file in enumerate(manifest.files)
        ]
        self._changed = threading.Condition()
        self._rechecking = threading.Lock()
        self._listeners: list[Callable[[], None]] = []
        self.taken_back = 0  # counts up whenever hashes of any file were taken back

    # -- who wants to know ------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def listening(self, wake: Callable[[], None]) -> Iterator[None]:
        """wake() is called, from any thread, after each change; it must not block."""
        with self._changed:
            self._listeners.append(wake)
        try:
            yield
        finally:
            with self._changed:
                self._listeners.remove(wake)

    def _tell(self) -> None:
        """Called with the lock held."""
        self._changed.notify_all()
        for wake in self._listeners:
            wake()

    # -- questions --------------------------------------------------------------------------------------------

    def verified_bytes(self) -> int:
        return sum(min(f.verified * self.manifest.piece_bytes, f.entry.size_bytes) for f in self.files)

    def placed_bytes(self) -> int:
        return sum(file.entry.size_bytes for file in self.files if file.placed)

    def hashes_known(self) -> int:
        return sum(file.known for file in self.files)

    @property
    def all_whole(self) -> bool:
        return all(file.whole for file in self.files)

    @property
    def all_placed(self) -> bool:
        return all(file.placed for file in self.files)

    def has(self, number: int, piece: int) -> bool:
        return piece < self.files[number].verified

    def hashes_from(self, number: int, first: int, most: int) -> bytes:
        with self._changed:
            return bytes(self.files[number].hashes[first * DIGEST_BYTES : (first + most) * DIGEST_BYTES])

    def next_wanted(self, after: tuple[int, int] | None) -> tuple[int, int] | None:
        """(file, piece) to ask for after `after`; None when the next file has to be taken up first, or none is left."""
        number, piece = (0, 0) if after is None else (after[0], after[1] + 1)
        for file in self.files[number:]:
            if file.whole or file.pieces == 0:
                piece = 0
                continue
            if not file.taken_up:
                return None
            piece = max(piece, file.verified)
            if piece < file.pieces:
                return file.number, piece
            piece = 0
        return None

    def first_unfinished(self) -> StoredFile | None:
        return next((file for file in self.files if not file.whole), None)

    # -- hashes -----------------------------------------------------------------------------------------------

    def add_hashes(self, number: int, first: int, data: bytes | memoryview) -> None:
        """Hashes that the head announced. One that differs from what was known takes that back, and all after it.

        A file that is whole has the hub's hash, so it needs none. Raises Disordered where they would leave a gap.
        """
        file = self.files[number]
        with self._changed:
            if file.whole:
                return
            if first > file.known or first + len(data) // DIGEST_BYTES > file.pieces:
                raise Disordered(f"hashes from piece {first} on, and {file.known} are known")
            start = first * DIGEST_BYTES
            overlap = min(len(data), len(file.hashes) - start)
            if bytes(data[:overlap]) != bytes(file.hashes[start : start + overlap]):
                same = first
                while file.hash_of(same) == bytes(data[(same - first) * DIGEST_BYTES :][:DIGEST_BYTES]):
                    same += 1
                self._take_back(file, same)
            file.hashes[start : start + len(data)] = data
            self._tell()

    def _take_back(self, file: StoredFile, piece: int) -> None:
        """From `piece` on nothing is known or right any more. Called with the lock held."""
        del file.hashes[piece * DIGEST_BYTES :]
        file.verified = min(file.verified, piece)
        file.taken_up = False
        file.epoch += 1
        self.taken_back += 1

    def wait_for_hash(self, file: StoredFile, piece: int, seconds: float) -> bool:
        """Whether the piece's hash is known, at the latest after that time."""
        with self._changed:
            return self._changed.wait_for(lambda: file.known > piece, seconds)

    # -- pieces -----------------------------------------------------------------------------------------------

    def put(self, number: int, piece: int, data: memoryview) -> bool:
        """Stores the next piece of a file, whose hash is known; whether the file is whole with it.

        Raises WrongPiece, Disordered, WrongFile (all pieces right, the file is not), JobProblem "disk-full".
        """
        file = self.files[number]
        prefix = file.prefix
        found = prefix.with_piece(data)
        with self._changed:
            epoch = file.epoch
            if piece != file.verified or not file.taken_up or file.known <= piece:
                raise Disordered
            if found.digest() != file.hash_of(piece):
                raise WrongPiece
        self._write(file, piece * self.manifest.piece_bytes, data)
        with self._changed:
            if file.epoch != epoch:
                raise Disordered
            file.verified += 1
            self._tell()
        prefix.take(found, data)
        return self.check_whole(file)

    def _write(self, file: StoredFile, offset: int, data: memoryview) -> None:
        try:
            while data:
                written = os.pwrite(file.descriptor, data, offset)
                data, offset = data[written:], offset + written
        except OSError as error:
            if error.errno in DISK_FULL_ERRNOS:
                raise disk_full(file.part, file.entry.size_bytes - offset, free_bytes(file.part)) from error
            raise

    def check_whole(self, file: StoredFile) -> bool:
        """Whether the file is whole. Raises WrongFile, with the part thrown away, where its hash is not the hub's."""
        if file.verified < file.pieces or not file.taken_up:
            return False
        if file.prefix.hexdigest() != expected_hash(file.entry):
            self.start_over(file)
            raise WrongFile
        with self._changed:
            file.whole = True
            self._tell()
        return True

    def start_over(self, file: StoredFile) -> None:
        """By the writing thread: what is there of the file is worth nothing."""
        self.forget(file)
        if file.descriptor >= 0:
            os.ftruncate(file.descriptor, 0)

    def forget(self, file: StoredFile) -> None:
        """As start_over, where somebody else writes the part and has begun again."""
        with self._changed:
            self._take_back(file, 0)
            file.prefix = PrefixHash(file.entry)
            self._tell()

    def keep(self, file: StoredFile, pieces: int) -> None:
        """That many pieces of a part that was found on the disk are right, so they can be passed on."""
        with self._changed:
            file.verified = max(file.verified, pieces)
            self._tell()

    def resume(self, file: StoredFile, pieces: int, prefix: PrefixHash) -> None:
        """The part ends after that many right pieces, which `prefix` has seen."""
        with self._changed:
            file.prefix = prefix
            file.verified = pieces
            file.taken_up = True
            self._tell()

    def hand_over(self, file: StoredFile) -> tuple[int, Hash]:
        """(size of the part, a hash of it of the hub's kind) for somebody else who goes on writing."""
        with self._changed:
            size = min(file.verified * self.manifest.piece_bytes, file.entry.size_bytes)
            os.ftruncate(file.descriptor, size)
            file.taken_up = False
            return size, file.prefix.hub_hash()

    # -- the head's own pieces --------------------------------------------------------------------------------

    def announce(self, file: StoredFile, piece: int, digest: bytes) -> None:
        """The head has read a piece of its own: its hash is the rollout's from now on, and it can be passed on."""
        with self._changed:
            if file.known > piece and file.hash_of(piece) != digest:
                del file.hashes[piece * DIGEST_BYTES :]
                file.epoch += 1
                self.taken_back += 1
            if file.known == piece:
                file.hashes += digest
            file.verified = max(file.verified, piece + 1)
            self._tell()

    def mark_whole(self, file: StoredFile) -> None:
        with self._changed:
            file.verified = file.pieces
            file.taken_up = file.whole = True
            self._tell()

    def mark_placed(self, file: StoredFile) -> None:
        with self._changed:
            file.placed = True
            self._tell()

    def wait_until_placed(self, seconds: float) -> bool:
        with self._changed:
            return self._changed.wait_for(lambda: self.all_placed, seconds)

    # -- reading ----------------------------------------------------------------------------------------------

    def open_blob(self, file: StoredFile) -> None:
        """For a file that was there before: its descriptor serves."""
        file.close()
        file.opened += 1
        file.descriptor = os.open(file.blob, os.O_RDONLY | os.O_CLOEXEC)

    def read(self, file: StoredFile, piece: int) -> bytes:
        """A piece as it lies on the disk; shorter where the part ends in it."""
        length = self.manifest.length(file.number, piece)
        return os.pread(file.descriptor, length, piece * self.manifest.piece_bytes)

    def lend(self, number: int, piece: int, loan: Loan) -> tuple[int, int, int] | None:
        """(descriptor, offset, length) of a piece that is right, until `loan` is used again; else None."""
        file = self.files[number]
        with self._changed:
            if piece >= file.verified or file.descriptor < 0:
                return None
            descriptor = loan.of(file)
        return descriptor, piece * self.manifest.piece_bytes, self.manifest.length(number, piece)

    def recheck(self, number: int, piece: int) -> bool:
        """Somebody was sent a wrong piece: whether it is right here, and all before it.

        If not, the first wrong one and all after it are fetched again. One at a time, since the file is read again
        from its beginning: who asks meanwhile is told True and may ask again.
        """
        if not self._rechecking.acquire(blocking=False):
            return True
        try:
            wrong = self._first_wrong(self.files[number], piece)
        finally:
            self._rechecking.release()
        if wrong is None:
            return True
        file = self.files[number]
        with self._changed:
            known = bytes(file.hashes)
            self._take_back(file, wrong)
            file.hashes[:] = known
            file.whole = file.placed = False
            self._tell()
        return False

    def _first_wrong(self, file: StoredFile, last: int) -> int | None:
        prefix = PrefixHash(file.entry)
        with contextlib.closing(Loan()) as loan:
            for piece in range(last + 1):
                place = self.lend(file.number, piece, loan)
                if place is None or file.known <= piece:
                    return None
                descriptor, offset, length = place
                if prefix.add(os.pread(descriptor, length, offset)) != file.hash_of(piece):
                    return piece
        return None

    def close(self) -> None:
        for file in self.files:
            file.close()
