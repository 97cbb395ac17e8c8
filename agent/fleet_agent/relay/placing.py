"""Into the cache: what is there already, the locks while a file is fetched, and the step from a part to a blob."""

import contextlib
import os
import queue
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from fleet_agent.artifacts.cache import HubCache
from fleet_agent.artifacts.hashing import expected_hash, hash_file, new_hash
from fleet_agent.artifacts.verified import VerifiedNotes
from fleet_agent.jobs.errors import disk_full
from fleet_agent.problem import ProblemError
from fleet_agent.relay.control import Event, FilePlaced, Note
from fleet_agent.relay.manifest import Manifest
from fleet_agent.relay.store import PieceStore, StoredFile
from fleet_agent.steps.output import free_bytes

# So much is on its way to the disk at most; without it the last fsync would take as long as the disk takes for it all.
UNSYNCED_BYTES = 16 << 20


class Placer:
    """Syncs parts while they grow and puts whole files in place, in a thread beside the one that receives."""

    def __init__(
        self, store: PieceStore, notes: VerifiedNotes, emit: Callable[[Event], None], fail: Callable[[Exception], None]
    ) -> None:
        self._store = store
        self._notes = notes
        self._emit = emit
        self._fail = fail
        self._work: queue.SimpleQueue[tuple[StoredFile, bool] | None] = queue.SimpleQueue()
        self._unsynced = 0
        self._thread = threading.Thread(target=self._run, name="placer", daemon=True)
        self._thread.start()

    def wrote(self, file: StoredFile, count: int) -> None:
        """By the writing thread, after each piece."""
        self._unsynced += count
        if self._unsynced >= UNSYNCED_BYTES:
            self._unsynced = 0
            self._work.put((file, False))

    def whole(self, file: StoredFile) -> None:
        """By the writing thread: the file is whole and has the hub's hash."""
        self._work.put((file, True))

    def stop(self) -> None:
        self._work.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (item := self._work.get()) is not None:
            file, whole = item
            try:
                if not whole:
                    os.fsync(file.descriptor)
                elif file.whole and not file.placed:
                    self._place(file)
            except (OSError, ProblemError) as error:
                self._fail(error)
                return

    def _place(self, file: StoredFile) -> None:
        if file.part.exists():
            os.fsync(file.descriptor)
            file.part.replace(file.blob)
        sync_folder(file.blob.parent)
        self._notes.write(file.blob, brought=True)
        link(self._store.cache, self._store.manifest, file)
        self._store.mark_placed(file)
        self._emit(FilePlaced(file.entry.path, True))


def link(cache: HubCache, manifest: Manifest, file: StoredFile) -> None:
    cache.link(manifest.repository, manifest.commit, file.entry)


def sync_folder(folder: Path) -> None:
    """A rename is on the disk only after this."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def locked(store: PieceStore, cancelled: threading.Event, emit: Callable[[Event], None]) -> Iterator[None]:
    """The cache's own lock of each missing file, so that `hf` and a second rollout wait for us and we for them."""
    manifest = store.manifest
    with contextlib.ExitStack() as stack:
        for file in store.files:
            if not file.whole:
                emit_waiting = threading.Timer(1.0, emit, [Note(f"waiting for who else fetches {file.entry.path}")])
                emit_waiting.daemon = True
                emit_waiting.start()
                try:
                    stack.enter_context(store.cache.lock(manifest.repository, file.entry, cancelled))
                finally:
                    emit_waiting.cancel()
        yield


def find_present(
    store: PieceStore, notes: VerifiedNotes, check: Callable[[], None], emit: Callable[[Event], None]
) -> None:
    """Marks and links the files that need not be fetched: there already, or the same content in another repository."""
    for file in store.files:
        if file.whole or not (_verified(file, file.blob, notes, check) or _from_elsewhere(store, file, notes, check)):
            continue
        store.open_blob(file)
        store.mark_whole(file)
        link(store.cache, store.manifest, file)
        store.mark_placed(file)
        emit(FilePlaced(file.entry.path, False))


def _verified(file: StoredFile, blob: Path, notes: VerifiedNotes, check: Callable[[], None]) -> bool:
    """Whether a blob is whole and right; hashed once, then remembered."""
    try:
        if blob.stat().st_size != file.entry.size_bytes:
            return False
    except OSError:
        return False
    if notes.holds(blob):
        return True
    found = new_hash(file.entry)
    hash_file(blob, found, lambda _: check())
    if found.hexdigest() != expected_hash(file.entry):
        return False
    notes.write(blob)
    return True


def _from_elsewhere(store: PieceStore, file: StoredFile, notes: VerifiedNotes, check: Callable[[], None]) -> bool:
    """The same content, fetched for another repository (they share tokenizers, say): linked, not copied."""
    for other in sorted(store.cache.folder.glob(f"models--*/blobs/{file.blob.name}")):
        if other == file.blob or not _verified(file, other, notes, check):
            continue
        file.blob.unlink(missing_ok=True)
        try:
            os.link(other, file.blob)
        except OSError:
            temporary = file.blob.with_name(f".{file.blob.name}.{os.getpid()}")
            shutil.copyfile(other, temporary)
            temporary.replace(file.blob)
        notes.write(file.blob, brought=True)
        return True
    return False


def check_disk(store: PieceStore) -> None:
    """Raises JobProblem "disk-full" where what is missing does not fit."""
    needed = sum(
        max(0, file.entry.size_bytes - store.cache.present_bytes(store.manifest.repository, file.entry))
        for file in store.files
        if not file.whole
    )
    free = free_bytes(store.cache.folder)
    if free is not None and needed > free:
        raise disk_full(store.cache.folder, needed, free)
