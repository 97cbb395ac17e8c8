"""The head's own bytes: from the hub by resumable ranged GETs, or from a folder; announced piece by piece."""

import contextlib
import os
import threading
import urllib.parse
from collections.abc import Callable
from pathlib import Path

from fleet_agent.artifacts.cache import relative_path
from fleet_agent.artifacts.download import Watch, download
from fleet_agent.artifacts.hashing import Hash, expected_hash
from fleet_agent.artifacts.http import Source as HttpSource
from fleet_agent.jobs.errors import JobProblem, Stopped
from fleet_agent.problem import ProblemError
from fleet_agent.relay.control import Event, FolderSource, HubSource, Note, RelaySpec, Route, SourceFailed
from fleet_agent.relay.counters import Counters
from fleet_agent.relay.limits import RateLimit
from fleet_agent.relay.placing import Placer
from fleet_agent.relay.prefix import PrefixHash
from fleet_agent.relay.resume import take_up_own
from fleet_agent.relay.store import Loan, PieceStore, StoredFile
from fleet_agent.steps.hub_download import DEFAULT_ENDPOINT, read_token

COPY_BYTES = 1 << 20
IDLE_SECONDS = 0.5


class SourceReader:
    """The thread that writes all parts of the head."""

    def __init__(
        self,
        spec: RelaySpec,
        route: Route,
        store: PieceStore,
        placer: Placer,
        counters: Counters,
        limit: RateLimit,
        emit: Callable[[Event], None],
        fail: Callable[[Exception], None],
    ) -> None:
        self._spec = spec
        self._route = route
        self._store = store
        self._placer = placer
        self._counters = counters
        self._limit = limit
        self._emit = emit
        self._fail = fail
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="source", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Returns once nothing is written any more."""
        self._stopped.set()
        self._thread.join()

    def _check(self) -> None:
        if self._stopped.is_set():
            raise Stopped

    def _run(self) -> None:
        try:
            while not self._stopped.is_set():
                for file in self._store.files:
                    self._one(file)
                self._stopped.wait(IDLE_SECONDS)
        except Stopped:
            pass
        except JobProblem as problem:
            if problem.code in ("disk-full", "not-writable"):
                self._fail(problem)
            else:
                self._emit(SourceFailed(problem.code, problem.message, problem.remedy))
        except (ProblemError, OSError) as error:
            self._fail(error)

    def _one(self, file: StoredFile) -> None:
        if file.whole:
            self._announce_whole(file)
            return
        if not file.taken_up:
            take_up_own(self._store, file, self._check)
        follower = _Follower(self._store, self._counters, self._limit, self._placer, file)
        watch = Watch(follower.progress, lambda text: self._emit(Note(text)), self._stopped)
        taken_up = self._store.hand_over(file)
        try:
            if self._route.folder is not None:
                copy_file(self._route.folder, file, watch, taken_up)
            elif self._route.hub is not None:
                self._download(self._route.hub, file, watch, taken_up)
            else:
                raise JobProblem("no-source", f"the head lacks {file.entry.path} and has nowhere to take it from")
        except JobProblem as problem:
            if problem.code == "hash-mismatch":
                self._store.start_over(file)
            raise
        self._store.mark_whole(file)
        self._placer.whole(file)

    def _announce_whole(self, file: StoredFile) -> None:
        """A file that was there before has piece hashes once they are computed."""
        if file.known == file.pieces:
            return
        prefix = PrefixHash(file.entry)
        with contextlib.closing(Loan()) as loan:
            for piece in range(file.pieces):
                self._check()
                place = self._store.lend(file.number, piece, loan)
                if place is None:
                    return
                descriptor, offset, length = place
                self._store.announce(file, piece, prefix.add(os.pread(descriptor, length, offset)))

    def _download(self, hub: HubSource, file: StoredFile, watch: Watch, taken_up: tuple[int, Hash]) -> None:
        manifest = self._spec.manifest
        endpoint = (hub.endpoint or os.environ.get("HF_ENDPOINT") or DEFAULT_ENDPOINT).rstrip("/")
        token = read_token(hub.token_file, os.environ, Path(self._spec.hf_home))
        path = urllib.parse.quote(file.entry.path)
        url = f"{endpoint}/{manifest.repository}/resolve/{hub.revision or manifest.commit}/{path}"
        source = HttpSource(url, f"Bearer {token}" if token else "")
        download(source, file.entry, file.blob, watch, taken_up)


class _Follower:
    """Announces the pieces of a part that somebody else writes."""

    def __init__(
        self, store: PieceStore, counters: Counters, limit: RateLimit, placer: Placer, file: StoredFile
    ) -> None:
        self._store = store
        self._counters = counters
        self._limit = limit
        self._placer = placer
        self._file = file
        self._before = min(file.verified * store.manifest.piece_bytes, file.entry.size_bytes)

    def progress(self, done: int, total: int) -> None:
        """Called by the writer after each of its writes, with the size of the part."""
        file, piece_bytes = self._file, self._store.manifest.piece_bytes
        if done < self._before:
            self._store.forget(file)
            file.open_part()  # the writer may have begun another one
            self._before = 0
        self._counters.fetched(done - self._before)
        self._limit.take(done - self._before)
        self._before = done
        whole_pieces = file.pieces if done == total else done // piece_bytes
        while file.verified < whole_pieces:
            piece = file.verified
            data = self._store.read(file, piece)
            self._store.announce(file, piece, file.prefix.add(data))
            self._placer.wrote(file, len(data))


def copy_file(folder: FolderSource, file: StoredFile, watch: Watch, taken_up: tuple[int, Hash]) -> None:
    """From a folder of this host to the blob, hashed on the way. Raises JobProblem, Stopped."""
    path = Path(folder.path) / relative_path(file.entry.path)
    done, running = taken_up
    remedy = "name a folder that has the model's files under their names in the repository"
    try:
        stream = path.open("rb")
    except OSError as error:
        raise JobProblem("file-missing", f"{path} cannot be read: {error.strerror}", remedy) from None
    with stream:
        if os.fstat(stream.fileno()).st_size != file.entry.size_bytes:
            raise JobProblem("wrong-length", f"{path} has another size than the hub says", remedy)
        stream.seek(done)
        while block := stream.read(COPY_BYTES):
            watch.check()
            view, offset = memoryview(block), done
            while view:
                written = os.pwrite(file.descriptor, view, offset)
                view, offset = view[written:], offset + written
            running.update(block)
            done += len(block)
            watch.progress(done, file.entry.size_bytes)
    if running.hexdigest() != expected_hash(file.entry):
        raise JobProblem("hash-mismatch", f"{path} is not the file that the hub has", remedy)
    os.fsync(file.descriptor)
    file.part.replace(file.blob)
