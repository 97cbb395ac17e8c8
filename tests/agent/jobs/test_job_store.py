"""A job's folder: ids, atomic creation, events without gaps, torn lines."""

import errno
import json
from pathlib import Path
from typing import IO

import pytest

from fleet_agent.jobs.codec import decode, digest, encode
from fleet_agent.jobs.errors import JobConflict, SpecProblem, UnknownJob
from fleet_agent.jobs.model import HealthProbeStep, JobSpec, JobState, LogLine, Problem, Step, VerifyFileStep
from fleet_agent.jobs.store import EventReader, EventWriter, JobStore, JobView

SPEC = JobSpec("job-1", "a title", (Step("check", verify_file=VerifyFileStep("/x", size_bytes=2**40)),))


@pytest.fixture
def store(tmp_path: Path) -> JobStore:
    return JobStore(tmp_path / "jobs")


def test_spec_survives_json_and_numbers_as_text() -> None:
    document = json.loads(json.dumps(encode(SPEC)))
    document["steps"][0]["verify_file"]["size_bytes"] = str(2**40)  # as protobuf's JSON writes 64-bit numbers
    assert decode(JobSpec, document) == SPEC
    assert digest(decode(JobSpec, document)) == digest(SPEC)


@pytest.mark.parametrize("job_id", ["", "..", ".hidden", "a/b", "../x", "a\n", "-x", "x" * 129, "a\0b"])
def test_ids_that_are_no_plain_name_are_refused(store: JobStore, job_id: str) -> None:
    with pytest.raises(SpecProblem):
        store.create(JobSpec(job_id, steps=SPEC.steps))
    with pytest.raises(SpecProblem):
        store.folder(job_id)


def test_unknown_job(store: JobStore) -> None:
    with pytest.raises(UnknownJob):
        store.folder("nobody")


def test_creating_again_changes_nothing_and_another_spec_is_refused(store: JobStore) -> None:
    folder, new = store.create(SPEC)
    again, second = store.create(SPEC)
    assert (new, second) == (True, False)
    assert again.path == folder.path
    assert folder.spec() == SPEC
    with pytest.raises(JobConflict):
        store.create(JobSpec("job-1", "another title", SPEC.steps))
    assert [one.job_id for one in store.folders()] == ["job-1"]


def test_a_folder_half_made_by_a_killed_agent_is_no_job(store: JobStore) -> None:
    store.jobs_dir.mkdir()
    (store.jobs_dir / ".new-job-1-99").mkdir()
    assert store.folders() == []


@pytest.mark.parametrize("torn", [b'{"sequence":4,"time_unix', b'{"sequence":4}', b"\0\0\0\0\n", b'{"seq\n'])
def test_torn_last_line_is_invisible_and_cut_off_by_the_next_writer(store: JobStore, torn: bytes) -> None:
    folder, _ = store.create(SPEC)
    with EventWriter(folder) as writer:
        writer.append(state=JobState.RUNNING)
        writer.append(log=LogLine("stdout", "zwei ünïcödé"))
    reader = EventReader(folder.events_path)
    with folder.events_path.open("ab") as stream:
        stream.write(torn)
    assert [event.sequence for event in reader.read()] == [1, 2, 3]
    with EventWriter(folder) as writer:
        writer.append(problem=Problem("x", "y"))
        writer.append(state=JobState.FAILED)
    assert [event.sequence for event in reader.read()] == [4, 5]
    assert [event.sequence for event in EventReader(folder.events_path).read()] == [1, 2, 3, 4, 5]


class _FillingDisk:
    """A file whose disk fills up in mid-line: a part is taken without an error, then nothing more."""

    def __init__(self, stream: IO[bytes], room_bytes: int) -> None:
        self._stream = stream
        self._room = room_bytes

    def write(self, data: bytes) -> int:
        if self._room == 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        taken = self._stream.write(bytes(data)[: self._room])
        self._room -= taken
        return taken

    def fileno(self) -> int:
        return self._stream.fileno()

    def close(self) -> None:
        self._stream.close()


def test_a_line_that_a_filling_disk_took_half_of_is_taken_back(
    store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = store.create(SPEC)
    with EventWriter(folder) as writer:
        whole = writer._stream
        monkeypatch.setattr(writer, "_stream", _FillingDisk(whole, room_bytes=10))
        with pytest.raises(OSError, match="No space"):
            writer.append(state=JobState.RUNNING)
        monkeypatch.setattr(writer, "_stream", whole)
        writer.append(problem=Problem("disk-full", "the disk is full"))
    events = EventReader(folder.events_path).read()
    assert [event.sequence for event in events] == [1, 2]
    assert events[-1].problem == Problem("disk-full", "the disk is full")


def test_removed_and_half_made_jobs_leave_nothing(store: JobStore) -> None:
    folder, _ = store.create(SPEC)
    (store.jobs_dir / ".new-job-2-99").mkdir()
    (store.jobs_dir / ".old-job-3").mkdir()
    store.remove(folder)
    store.sweep()
    assert list(store.jobs_dir.iterdir()) == []


def test_only_one_writer(store: JobStore) -> None:
    folder, _ = store.create(SPEC)
    with folder.lock() as first, folder.lock() as second:
        assert (first, second) == (True, False)
    with folder.lock() as third:
        assert third


def test_status_is_folded_from_the_events(store: JobStore) -> None:
    folder, _ = store.create(SPEC)
    view = JobView(folder)
    queued = view.status()
    assert (queued.state, queued.last_sequence, queued.attempts, queued.started_unix_ms) == (
        JobState.QUEUED,
        1,
        0,
        None,
    )
    assert queued.spec_digest == digest(SPEC)
    assert queued.created_unix_ms > 0
    with EventWriter(folder) as writer:
        writer.append(state=JobState.RUNNING)
        writer.append(step_started="check")
        assert view.status().current_step == "check"
        writer.append(state=JobState.RUNNING)
        writer.append(problem=Problem("code", "message", "remedy"))
        writer.append(state=JobState.FAILED)
    done = view.status()
    assert (done.state, done.attempts, done.current_step, done.last_sequence) == (JobState.FAILED, 2, None, 6)
    assert done.problem == Problem("code", "message", "remedy")
    assert done.finished_unix_ms is not None


@pytest.mark.parametrize(
    "step", [Step("none"), Step("two", verify_file=VerifyFileStep("/x"), health_probe=HealthProbeStep("u"))]
)
def test_a_step_has_exactly_one_kind(step: Step) -> None:
    with pytest.raises(SpecProblem):
        _ = step.kind
