"""Taking up what a former process has left of a file: read again from the disk, piece by piece, and nothing believed.

Reading is far faster than any link, and a journal could only say what was once written, not what the disk kept.
"""

import os
from collections.abc import Callable

from fleet_agent.relay.control import DamagedPart, Event
from fleet_agent.relay.prefix import PrefixHash
from fleet_agent.relay.store import PieceStore, StoredFile

HASH_WAIT_SECONDS = 0.25


def take_up(store: PieceStore, file: StoredFile, check: Callable[[], None], emit: Callable[[Event], None]) -> None:
    """By the writing thread of a node that is not the head: keeps the pieces whose hash is the head's, drops the rest.

    Waits for hashes that the head has not announced yet; check() is called meanwhile and may raise to give up.
    """
    _open(file)
    prefix, piece = PrefixHash(file.entry), 0
    while piece < file.pieces:
        data = store.read(file, piece)
        if len(data) < store.manifest.length(file.number, piece):
            break
        while not store.wait_for_hash(file, piece, HASH_WAIT_SECONDS):
            check()
        check()
        found = prefix.with_piece(data)
        if found.digest() != file.hash_of(piece):
            emit(DamagedPart(file.entry.path, piece))
            break
        prefix.take(found, data)
        piece += 1
        store.keep(file, piece)
    os.ftruncate(file.descriptor, min(piece * store.manifest.piece_bytes, file.entry.size_bytes))
    store.resume(file, piece, prefix)


def take_up_own(store: PieceStore, file: StoredFile, check: Callable[[], None]) -> None:
    """By the head: its own part is the beginning of the file, until the whole file's hash says otherwise."""
    _open(file)
    prefix, piece = PrefixHash(file.entry), 0
    while piece < file.pieces:
        data = store.read(file, piece)
        if len(data) < store.manifest.length(file.number, piece):
            break
        check()
        store.announce(file, piece, prefix.add(data))
        piece += 1
    os.ftruncate(file.descriptor, min(piece * store.manifest.piece_bytes, file.entry.size_bytes))
    store.resume(file, piece, prefix)


def _open(file: StoredFile) -> None:
    """The part, open for writing; a blob in place that turned out to be wrong becomes the part again."""
    if file.blob.exists() and not file.part.exists():
        file.blob.replace(file.part)
    file.open_part()
