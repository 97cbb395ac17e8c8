"""The journal: what is written comes back, and what is damaged is told and kept."""

import json
import os
from pathlib import Path

import pytest

from fleet_agent.process import ProcessIdentity
from fleet_agent.services.journal import ServiceJournal, ServiceRecord, decode, encode
from fleet_agent.services.model import DesiredState, Problem, ReadinessProbe, ServiceSpec, ServiceState, ToolReference
from fleet_agent.services.transitions import Condition


def make_record(name: str = "tiny", port: int = 8080) -> ServiceRecord:
    spec = ServiceSpec(
        name=name,
        tool=ToolReference("bin/llama-server", "llama.cpp-1-00000000"),
        backend="llama.cpp",
        arguments=("-m", "a model.gguf", "--port", str(port)),
        environment=(("CUDA_VISIBLE_DEVICES", "0"),),
        port=port,
        readiness=ReadinessProbe("/health", 12.5, 3.0),
        gpu_indices=(0, 1),
    )
    condition = Condition(ServiceState.READY, restarts=2, ever_ready=True, started_at=10.5, ready_at=12.25)
    return ServiceRecord(
        spec,
        DesiredState.RUNNING,
        condition,
        token="ab" * 16,
        process=ProcessIdentity(4711, "boot:123"),
        argv=("/engines/bin/llama-server", "-m", "a model.gguf"),
        last_exit_code=-9,
        problem=Problem("exited", "it ended", "look"),
    )


def test_a_record_comes_back_as_it_was(tmp_path: Path) -> None:
    journal = ServiceJournal(tmp_path)
    written = [make_record("a"), make_record("b", 8081)]
    for record in written:
        journal.write(record)
    assert journal.load() == (written, [])
    journal.remove("a")
    journal.remove("never-there")
    assert journal.load() == (written[1:], [])


def test_every_field_of_a_record_is_written() -> None:
    assert decode(json.loads(json.dumps(encode(make_record())))) == make_record()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b'{"format": 1, "spec": {"na',
        b"[]",
        b'{"format": 99}',
        b"\xff\xfe",
        json.dumps({**encode(make_record("bad")), "desired": "sideways"}).encode(),
        json.dumps(encode(make_record("another-name"))).encode(),
    ],
)
def test_a_damaged_file_is_kept_aside_and_the_others_go_on(tmp_path: Path, content: bytes) -> None:
    journal = ServiceJournal(tmp_path)
    journal.write(make_record("good"))
    (tmp_path / "bad.json").write_bytes(content)
    records, corrupt = journal.load()
    assert [record.spec.name for record in records] == ["good"]
    assert [one.name for one in corrupt] == ["bad"] and corrupt[0].reason
    assert corrupt[0].kept_as.read_bytes() == content
    again, still = journal.load()  # its server may run, until somebody says what becomes of it
    assert again == records and [one.name for one in still] == ["bad"] and still[0].kept_as.read_bytes() == content
    journal.remove("bad")
    assert journal.load() == (records, [])


def test_what_an_older_agent_moved_aside_is_taken_up_again(tmp_path: Path) -> None:
    journal = ServiceJournal(tmp_path)
    journal.write(make_record())
    (tmp_path / "tiny.json").rename(tmp_path / "tiny.json.corrupt-1700000000000")
    assert journal.load() == ([make_record()], [])
    (tmp_path / "tiny.json.corrupt-1700000000001").write_bytes(b"older than the record")
    assert journal.load() == ([make_record()], [])


def test_the_agent_of_the_version_before_reads_what_says_nothing_new() -> None:
    """It raises TypeError for a field of a spec that it does not know, and the service would be lost to it."""
    document = encode(make_record())
    known = {
        "name", "tool", "backend", "backend_version", "model", "quantization", "context_length", "max_parallel",
        "arguments", "environment", "bind_address", "port", "readiness", "promised_memory_bytes",
        "served_model_name", "gpu_indices",
    }  # fmt: skip
    assert set(document["spec"]) == known
    assert set(document) == {
        "format", "spec", "desired", "condition", "token", "process", "argv", "last_exit_code", "problem",
    }  # fmt: skip


def test_a_write_that_died_half_way_leaves_the_former_record(tmp_path: Path) -> None:
    journal = ServiceJournal(tmp_path)
    journal.write(make_record())
    (tmp_path / "tiny.json.new").write_bytes(b'{"format": 1, "sp')
    assert journal.load() == ([make_record()], [])
    journal.write(make_record(port=9))
    assert journal.load()[0][0].spec.port == 9


def test_a_full_disk_leaves_the_former_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = ServiceJournal(tmp_path)
    journal.write(make_record())

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        journal.write(make_record(port=9))
    assert journal.load() == ([make_record()], [])


def test_the_file_is_for_its_owner_alone(tmp_path: Path) -> None:
    ServiceJournal(tmp_path).write(make_record())
    assert (tmp_path / "tiny.json").stat().st_mode & 0o777 == 0o600


def test_digest_follows_content_not_the_order_of_the_environment() -> None:
    base = {"name": "a", "tool": ToolReference("x"), "port": 1}
    one = ServiceSpec(**base, environment=(("A", "1"), ("B", "2")))  # type: ignore[arg-type]
    two = ServiceSpec(**base, environment=(("B", "2"), ("A", "1")))  # type: ignore[arg-type]
    other = ServiceSpec(**base, environment=(("A", "1"), ("B", "3")))  # type: ignore[arg-type]
    assert one.digest() == two.digest() != other.digest()
    assert len(one.digest()) == 64
