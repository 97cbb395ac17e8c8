"""One file over HTTP, resumable across processes, and never in place before its hash is right.

The part lies beside the file as `<hash>.incomplete`: its name says what it is going to be, so the next process
goes on where this one was killed.
"""

import os
import threading
import urllib.error
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from fleet_agent.artifacts.hashing import Hash, expected_hash, hash_file, new_hash
from fleet_agent.artifacts.http import CONNECTION_ERRORS, Source, may_carry_token, open_url
from fleet_agent.jobs.errors import DISK_FULL_ERRNOS, JobProblem, Stopped, disk_full
from fleet_agent.jobs.model import ArtifactFile
from fleet_agent.steps.output import free_bytes

BLOCK_BYTES = 1 << 18
SYNC_BYTES = 256 << 20
# In a row, without one new byte; any progress starts the count again.
FRUITLESS_TRIES = 6
FIRST_PAUSE_SECONDS = 0.5
LONGEST_PAUSE_SECONDS = 30.0
RETRIED_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504})


class _Restart(Exception):
    """The part on disk is worth nothing: begin at zero."""


@dataclass(frozen=True)
class Watch:
    """How a download is followed from outside."""

    progress: Callable[[int, int], None]  # (bytes done, bytes in all)
    log: Callable[[str], None]
    cancelled: threading.Event

    def check(self) -> None:
        """Raises Stopped once the job is cancelled."""
        if self.cancelled.is_set():
            raise Stopped


def incomplete_path(destination: Path) -> Path:
    return destination.with_name(destination.name + ".incomplete")


def download(
    source: Source, file: ArtifactFile, destination: Path, watch: Watch, taken_up: tuple[int, Hash] | None = None
) -> None:
    """Fetch `file` to `destination`, whose folder exists and which nobody else fetches (hold its lock).

    taken_up: (size of the part, the hash fed with it) from a caller that has just read it; the hash is ours then.
    Raises JobProblem: hash-mismatch, wrong-length, gated, not-found, connection-failed, disk-full; Stopped.
    """
    expected = expected_hash(file)
    part = incomplete_path(destination)
    for attempt in (1, 2):
        transfer = _Transfer(source, file, part, watch, taken_up if attempt == 1 else None)
        found = transfer.run()
        if found == expected:
            part.replace(destination)
            return
        part.unlink(missing_ok=True)
        if attempt == 1:
            watch.log(f"{file.path}: hash is {found}, not {expected}; fetching it once more from the start")
    raise JobProblem(
        "hash-mismatch",
        f"{file.path} from {urlsplit(source.url).netloc} has hash {found}, but the hub says {expected}",
        "the mirror or a proxy changes the file: deploy again from another endpoint (HF_ENDPOINT)",
    )


class _Transfer:
    """One pass from the part on disk to the whole file."""

    def __init__(
        self, source: Source, file: ArtifactFile, part: Path, watch: Watch, taken_up: tuple[int, Hash] | None
    ) -> None:
        self._source = source
        self._file = file
        self._part = part
        self._watch = watch
        self._taken_up = taken_up
        self._hash: Hash = new_hash(file)
        self._done = 0
        self._unsynced = 0

    def run(self) -> str:
        """The hash of the complete part."""
        try:
            with self._part.open("ab", buffering=0) as stream:
                self._take_up(stream)
                self._fetch(stream)
                os.fsync(stream.fileno())
        except OSError as error:
            if error.errno in DISK_FULL_ERRNOS:
                raise disk_full(self._part, self._file.size_bytes - self._done, free_bytes(self._part)) from error
            raise
        self._watch.progress(self._done, self._file.size_bytes)
        return self._hash.hexdigest()

    def _take_up(self, stream: Any) -> None:
        """Hash what a former process has left."""
        if os.fstat(stream.fileno()).st_size > self._file.size_bytes:
            self._begin_at_zero(stream)
        elif self._taken_up is not None and self._taken_up[0] == os.fstat(stream.fileno()).st_size:
            self._done, self._hash = self._taken_up
        elif os.fstat(stream.fileno()).st_size > 0:
            self._done = hash_file(self._part, self._hash, lambda _: self._watch.check())
            self._watch.log(f"{self._file.path}: going on at byte {self._done} of {self._file.size_bytes}")
        self._watch.progress(self._done, self._file.size_bytes)

    def _begin_at_zero(self, stream: Any) -> None:
        os.ftruncate(stream.fileno(), 0)
        self._hash = new_hash(self._file)
        self._done = 0

    def _fetch(self, stream: Any) -> None:
        fruitless = 0
        while self._done < self._file.size_bytes:
            before = self._done
            try:
                self._request(stream)
                continue
            except urllib.error.HTTPError as error:
                if error.code not in RETRIED_STATUS:
                    raise _answer_problem(error, self._file, self._source) from None
                reason = f"HTTP {error.code}"
            except CONNECTION_ERRORS as error:
                reason = str(getattr(error, "reason", "") or error) or type(error).__name__
            except _Restart:
                self._begin_at_zero(stream)
                reason = "the server does not take up this part"
            fruitless = 0 if self._done > before else fruitless + 1
            if fruitless >= FRUITLESS_TRIES:
                raise _connection_problem(self._source, self._file, self._done, reason)
            self._pause(fruitless, reason)

    def _pause(self, fruitless: int, reason: str) -> None:
        seconds = min(LONGEST_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 2 ** max(0, fruitless - 1)) if fruitless else 0.1
        self._watch.log(f"{self._file.path}: {reason}; going on at byte {self._done} in {seconds:g} s")
        if self._watch.cancelled.wait(seconds):
            raise Stopped

    def _request(self, stream: Any) -> None:
        """One GET from where we are, as far as it goes. Raises CONNECTION_ERRORS when it ends early."""
        headers = {"Range": f"bytes={self._done}-"} if self._done else {}
        try:
            response = open_url(self._source, headers)
        except urllib.error.HTTPError as error:
            if error.code == 416 and self._done:
                raise _Restart from None
            raise
        with response:
            skip = self._check(response)
            while block := response.read1(BLOCK_BYTES):  # read() would wait for a whole block on a slow line
                self._watch.check()
                if skip:
                    block, skip = block[skip:], max(0, skip - len(block))
                self._take(stream, block)
            if self._done < self._file.size_bytes:
                raise ConnectionError("the connection was cut")

    def _check(self, response: Any) -> int:
        """Bytes of the body to pass over: a server that ignores Range sends the file from its start."""
        start, total = response_range(response.status, response.headers)
        if total is not None and total != self._file.size_bytes:
            raise JobProblem(
                "wrong-length",
                f"{self._file.path} has {total} bytes at {urlsplit(self._source.url).netloc}, "
                f"but the hub says {self._file.size_bytes}",
                "the mirror has another file under this name: deploy again from another endpoint (HF_ENDPOINT)",
            )
        if start > self._done:
            raise _Restart
        return self._done - start

    def _take(self, stream: Any, block: bytes) -> None:
        if self._done + len(block) > self._file.size_bytes:
            raise JobProblem(
                "wrong-length",
                f"{urlsplit(self._source.url).netloc} sends more than the {self._file.size_bytes} bytes "
                f"of {self._file.path}",
                "the mirror has another file under this name: deploy again from another endpoint (HF_ENDPOINT)",
            )
        view = memoryview(block)
        while view:
            view = view[stream.write(view) :]
        self._hash.update(block)
        self._done += len(block)
        self._unsynced += len(block)
        if self._unsynced >= SYNC_BYTES:
            os.fsync(stream.fileno())
            self._unsynced = 0
        self._watch.progress(self._done, self._file.size_bytes)


def response_range(status: int, headers: Any) -> tuple[int, int | None]:
    """(first byte of the body, size of the whole file or None) of a 200 or 206 answer.

    A range is told by Content-Range, whatever the status: ModelScope answers with 200 and the range that was asked for
    (github.com/modelscope/modelscope_hub/issues/50).
    """
    length, extent = headers.get("Content-Length"), headers.get("Content-Range") or ""
    if status != 206 and not extent:
        return 0, int(length) if length and length.isdigit() else None
    # RFC 9110, 14.4: "bytes 42-1233/1234" or "bytes 42-1233/*"
    extent, _, total = extent.removeprefix("bytes ").partition("/")
    first = extent.partition("-")[0]
    if not first.isdigit():
        raise _Restart
    return int(first), int(total) if total.isdigit() else None


def _answer_problem(error: urllib.error.HTTPError, file: ArtifactFile, source: Source) -> JobProblem:
    """The problem of an answer that no retry changes."""
    host = urlsplit(source.url).netloc
    if error.code in (401, 403):
        sent = source.authorization and may_carry_token(source.url)
        unsent = "no token goes over plain http" if source.authorization else "no token was sent"
        said = "the token sent has no access" if sent else unsent
        return JobProblem(
            "gated",
            f"{host} refuses {file.path} (HTTP {error.code}): {said}",
            "accept the model's terms on the hub, name a token with access as hub_token of this host in hosts.yaml "
            "(env:HF_TOKEN or file:~/.config/fleet/hub-token), and deploy again",
        )
    if error.code in (404, 410):
        return JobProblem(
            "not-found",
            f"{host} has no {file.path} at this commit (HTTP {error.code})",
            "mirrors often carry a model's metadata without its files: set HF_ENDPOINT to another one",
        )
    return JobProblem("http-error", f"{host} answers {file.path} with HTTP {error.code}: {error.reason}", "try again")


def _connection_problem(source: Source, file: ArtifactFile, done: int, reason: str) -> JobProblem:
    return JobProblem(
        "connection-failed",
        f"cannot fetch {file.path} from {urlsplit(source.url).netloc}: {reason} "
        f"({FRUITLESS_TRIES} tries without a byte; {done} of {file.size_bytes} bytes are kept)",
        "check the host's network, HF_ENDPOINT and proxy (`fleet doctor`), and deploy again: it goes on from there",
    )
