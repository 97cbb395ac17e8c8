"""A job on disk: one folder, and everything about the job derived from it.

    spec.json      what to do; written once, before the folder appears under its name
    events.jsonl   what happened; append-only, one JSON object a line, sequence 1, 2, 3, ... without gaps
    runner.json    the runner: attempt, pid, start token, and the children it started
    cancel         present once somebody asked to cancel
    lock           flock'ed by the one process that may append events
    wake           named pipe: whoever appends writes a byte, so that a watcher need not poll

A line without its line end, or one that is no JSON, is what a kill -9 or a power cut left behind: readers
stop in front of it and the next writer cuts it off.
"""

import contextlib
import dataclasses
import fcntl
import json
import os
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from fleet_agent.jobs.codec import decode, digest, encode
from fleet_agent.jobs.errors import JobConflict, SpecProblem, UnknownJob
from fleet_agent.jobs.model import JobEvent, JobSpec, JobState, JobStatus

JOB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
READ_BYTES = 1 << 20
EXIT_LOCKED = 75  # sysexits.h EX_TEMPFAIL: another runner works on this job
EXIT_INTERRUPTED = 143  # SIGTERM without a cancel: the host goes down, the job goes on later


def now_unix_ms() -> int:
    return time.time_ns() // 1_000_000


def fsync_folder(path: Path) -> None:
    """Make a rename or a new name in `path` survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, value: Any) -> None:
    """Write atomically: a reader sees the old file or the new one, also after a power cut."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("w", encoding="utf-8") as stream:
            json.dump(value, stream, ensure_ascii=False)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def read_json(path: Path) -> dict[str, Any]:
    """The object in `path`; empty where there is none or it is damaged."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def check_job_id(job_id: str) -> str:
    """The id itself. Raises SpecProblem where it could be anything but a plain file name."""
    if not JOB_ID.fullmatch(job_id):
        raise SpecProblem(
            f"{job_id[:80]!r} is no job id", "use letters, digits, '.', '_' and '-', at most 128, the first no sign"
        )
    return job_id


class JobFolder:
    """The files of one job."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.job_id = path.name
        self.events_path = path / "events.jsonl"
        self.runner_path = path / "runner.json"
        self.wake_path = path / "wake"
        self.log_path = path / "runner.log"

    def spec(self) -> JobSpec:
        """Raises UnknownJob where the folder or its spec is missing."""
        try:
            return decode(JobSpec, json.loads((self.path / "spec.json").read_text(encoding="utf-8")))
        except FileNotFoundError:
            raise UnknownJob(self.job_id) from None

    def runner(self) -> dict[str, Any]:
        return read_json(self.runner_path)

    @property
    def cancel_requested(self) -> bool:
        return (self.path / "cancel").exists()

    def request_cancel(self) -> None:
        (self.path / "cancel").touch()
        fsync_folder(self.path)

    @contextlib.contextmanager
    def lock(self) -> Iterator[bool]:
        """Yield whether we now are the only writer. The lock goes with the process, however it ends."""
        descriptor = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
                return
            yield True
        finally:
            os.close(descriptor)


class JobStore:
    """All job folders of this agent."""

    def __init__(self, jobs_dir: Path) -> None:
        self.jobs_dir = jobs_dir

    def folder(self, job_id: str) -> JobFolder:
        """Raises SpecProblem for an id that is none, UnknownJob where there is no such job."""
        folder = JobFolder(self.jobs_dir / check_job_id(job_id))
        if not (folder.path / "spec.json").is_file():
            raise UnknownJob(job_id)
        return folder

    def folders(self) -> list[JobFolder]:
        """Every job, by name."""
        if not self.jobs_dir.is_dir():
            return []
        paths = (path for path in self.jobs_dir.iterdir() if JOB_ID.fullmatch(path.name))
        return [JobFolder(path) for path in sorted(paths) if (path / "spec.json").is_file()]

    def create(self, spec: JobSpec) -> tuple[JobFolder, bool]:
        """Put the job on disk; (folder, whether it is new). Raises JobConflict, SpecProblem."""
        folder = JobFolder(self.jobs_dir / check_job_id(spec.job_id))
        self.jobs_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        temporary = self.jobs_dir / f".new-{spec.job_id}-{os.getpid()}"
        shutil.rmtree(temporary, ignore_errors=True)
        if not folder.path.exists():
            self._fill(temporary, spec)
            try:
                temporary.rename(folder.path)
                fsync_folder(self.jobs_dir)
                return folder, True
            except OSError:
                shutil.rmtree(temporary, ignore_errors=True)
                if not folder.path.exists():
                    raise
        if digest(folder.spec()) != digest(spec):
            raise JobConflict(spec.job_id)
        return folder, False

    def remove(self, folder: JobFolder) -> None:
        """Forget a job that has ended. Renamed first, so that half of it is never taken for a job."""
        doomed = folder.path.with_name(f".old-{folder.job_id}")
        folder.path.rename(doomed)
        shutil.rmtree(doomed, ignore_errors=True)

    def sweep(self) -> None:
        """Drop what a killed agent left half made or half removed."""
        for pattern in (".new-*", ".old-*"):
            for path in self.jobs_dir.glob(pattern):
                shutil.rmtree(path, ignore_errors=True)

    def _fill(self, path: Path, spec: JobSpec) -> None:
        path.mkdir(mode=0o700)
        write_json(path / "spec.json", encode(spec))
        os.mkfifo(path / "wake", 0o600)
        with EventWriter(JobFolder(path)) as writer:
            writer.append(state=JobState.QUEUED)
        fsync_folder(path)


class EventReader:
    """Reads a job's events once each, in order, from wherever it stopped."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.offset = 0  # of the first byte not yet delivered: always the start of a line

    def read(self) -> list[JobEvent]:
        """Events appended since the last call; a torn last line is left for later."""
        try:
            with self._path.open("rb") as stream:
                return self._read(stream)
        except FileNotFoundError:
            return []

    def _read(self, stream: IO[bytes]) -> list[JobEvent]:
        stream.seek(self.offset)
        events: list[JobEvent] = []
        rest = b""
        while block := stream.read(READ_BYTES):
            *lines, rest = (rest + block).split(b"\n")
            for line in lines:
                event = parse_event(line)
                if event is None:
                    return events
                events.append(event)
                self.offset += len(line) + 1
        return events


def parse_event(line: bytes) -> JobEvent | None:
    """None where the line is no event: a torn write."""
    try:
        return decode(JobEvent, json.loads(line))
    except (ValueError, TypeError):
        return None


class EventWriter:
    """Appends events. Only for the holder of the job's lock."""

    def __init__(self, folder: JobFolder) -> None:
        self._folder = folder
        reader = EventReader(folder.events_path)
        self.events = reader.read()
        self.sequence = self.events[-1].sequence if self.events else 0
        self._stream = folder.events_path.open("ab", buffering=0)
        os.ftruncate(self._stream.fileno(), reader.offset)
        self._size = reader.offset

    def __enter__(self) -> "EventWriter":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        self._stream.close()

    def append(self, step_index: int = 0, **content: Any) -> JobEvent:
        """Append one event; on disk when this returns, for anything but progress and log lines."""
        event = JobEvent(self.sequence + 1, now_unix_ms(), step_index, **content)
        line = json.dumps(encode(event), ensure_ascii=False, separators=(",", ":")).encode() + b"\n"
        try:
            rest = memoryview(line)
            while rest:  # a disk that fills up takes a part without an error; the next write says why
                rest = rest[self._stream.write(rest) :]
        except OSError:
            with contextlib.suppress(OSError):  # what was taken of the line goes: the next one must not follow it
                os.ftruncate(self._stream.fileno(), self._size)
            raise
        self._size += len(line)
        if event.durable:
            os.fsync(self._stream.fileno())
        self.sequence = event.sequence
        wake(self._folder.wake_path)
        return event


def wake(path: Path) -> None:
    """Tell whoever watches the job that there is something new; nobody watching is fine."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return
    try:
        os.write(descriptor, b".")
    except OSError:
        pass  # the pipe is full: the watcher is awake already
    finally:
        os.close(descriptor)


class JobView:
    """A job's status, folded from its events as they come."""

    def __init__(self, folder: JobFolder) -> None:
        self.folder = folder
        self._reader = EventReader(folder.events_path)
        self._status: JobStatus | None = None
        self._step = (0, "")

    def status(self) -> JobStatus:
        """The present status. Raises UnknownJob."""
        if self._status is None:
            spec = self.folder.spec()
            self._status = JobStatus(job_id=spec.job_id, title=spec.title, spec_digest=digest(spec))
        for event in self._reader.read():
            self._status = fold(self._status, event)
        return self._status


def fold(status: JobStatus, event: JobEvent) -> JobStatus:
    """The status after one more event."""
    change: dict[str, Any] = {"last_sequence": event.sequence}
    if event.sequence == 1:
        change["created_unix_ms"] = event.time_unix_ms
    if event.state is not None:
        change["state"] = event.state
        if event.state is JobState.RUNNING:
            change["attempts"] = status.attempts + 1
            change["started_unix_ms"] = status.started_unix_ms or event.time_unix_ms
        if event.state.terminal:
            change.update(finished_unix_ms=event.time_unix_ms, current_step=None)
    if event.step_started is not None:
        change["current_step"] = event.step_started
    if event.step_finished is not None:
        change["current_step"] = None
    if event.problem is not None:
        change["problem"] = event.problem
    return dataclasses.replace(status, **change)
