"""Our own download against a hub that cuts, lies, ignores and refuses."""

import hashlib
import itertools
import os
import threading
from pathlib import Path

import pytest

from fleet_agent.artifacts import download as module
from fleet_agent.artifacts.download import Watch, download, incomplete_path, response_range
from fleet_agent.artifacts.hashing import expected_hash
from fleet_agent.artifacts.http import Source, open_url
from fleet_agent.jobs.errors import JobProblem, Stopped
from fleet_agent.jobs.model import ArtifactFile
from support.stand_in_hub import StandInHub

REPOSITORY = "acme/tiny-GGUF"
CONTENT = os.urandom(700_000)


class Follower:
    def __init__(self) -> None:
        self.progress: list[tuple[int, int]] = []
        self.logs: list[str] = []
        self.cancelled = threading.Event()
        self.watch = Watch(lambda done, total: self.progress.append((done, total)), self.logs.append, self.cancelled)


@pytest.fixture
def follower(monkeypatch: pytest.MonkeyPatch) -> Follower:
    monkeypatch.setattr(module, "FIRST_PAUSE_SECONDS", 0.01)
    return Follower()


def fetch(hub: StandInHub, follower: Follower, tmp_path: Path, name: str = "a.gguf", **more: str) -> Path:
    file = more.pop("file", None) or ArtifactFile(**hub.add(REPOSITORY, name, CONTENT))
    destination = tmp_path / expected_hash(file)  # type: ignore[arg-type]
    url = f"{hub.url}/{REPOSITORY}/resolve/{hub.commit(REPOSITORY)}/{name}"
    download(Source(url, more.get("authorization", "")), file, destination, follower.watch)  # type: ignore[arg-type]
    return destination


@pytest.mark.parametrize("name", ["model.gguf", "config.json", "ünïcode file.json"])
def test_whole_file_by_either_hash(tmp_path: Path, follower: Follower, name: str) -> None:
    import urllib.parse

    with StandInHub(tmp_path / "hub") as hub:
        file = ArtifactFile(**hub.add(REPOSITORY, name, CONTENT))
        assert bool(file.sha256) == name.endswith(".gguf")
        destination = tmp_path / "out"
        url = f"{hub.url}/{REPOSITORY}/resolve/main/{urllib.parse.quote(name)}"
        download(Source(url), file, destination, follower.watch)
    assert destination.read_bytes() == CONTENT
    assert not incomplete_path(destination).exists()
    assert follower.progress[-1] == (len(CONTENT), len(CONTENT))


def test_empty_file(tmp_path: Path, follower: Follower) -> None:
    with StandInHub(tmp_path / "hub") as hub:
        file = ArtifactFile(**hub.add(REPOSITORY, "empty.txt", b""))
        download(Source(f"{hub.url}/{REPOSITORY}/resolve/main/empty.txt"), file, tmp_path / "out", follower.watch)
    assert (tmp_path / "out").read_bytes() == b""


def test_cut_again_and_again_nothing_is_fetched_twice(tmp_path: Path, follower: Follower) -> None:
    with StandInHub(tmp_path / "hub", cut_after=60_000) as hub:
        destination = fetch(hub, follower, tmp_path)
        ranges = hub.ranges("a.gguf")
        assert hub.bytes_served() == len(CONTENT)
    assert destination.read_bytes() == CONTENT
    assert len(ranges) == 12  # more cuts than FRUITLESS_TRIES: progress starts the count again
    assert all(end == start for (_, end), (start, _) in itertools.pairwise(ranges))


def test_modelscope_tells_its_ranges_with_status_200(tmp_path: Path, follower: Follower) -> None:
    with StandInHub(tmp_path / "hub", modelscope=True, cut_after=300_000, cuts=1) as hub:
        file = ArtifactFile(**hub.add(REPOSITORY, "a.gguf", CONTENT))
        url = f"{hub.url}/models/{REPOSITORY}/resolve/master/a.gguf"
        download(Source(url), file, tmp_path / "out", follower.watch)
        assert hub.ranges("a.gguf") == [(0, 300_000), (300_000, len(CONTENT))]
    assert (tmp_path / "out").read_bytes() == CONTENT


def test_goes_on_from_what_a_former_process_left(tmp_path: Path, follower: Follower) -> None:
    with StandInHub(tmp_path / "hub") as hub:
        part = incomplete_path(tmp_path / hashlib.sha256(CONTENT).hexdigest())
        part.write_bytes(CONTENT[:123_456])
        assert fetch(hub, follower, tmp_path).read_bytes() == CONTENT
        assert hub.ranges("a.gguf") == [(123_456, len(CONTENT))]
    assert any("going on at byte 123456" in line for line in follower.logs)


def test_a_complete_part_is_only_verified(tmp_path: Path, follower: Follower) -> None:
    with StandInHub(tmp_path / "hub") as hub:
        incomplete_path(tmp_path / hashlib.sha256(CONTENT).hexdigest()).write_bytes(CONTENT)
        assert fetch(hub, follower, tmp_path).read_bytes() == CONTENT
        assert hub.served == []


@pytest.mark.parametrize("left", [b"rubbish" * 100, CONTENT + b"too long"])
def test_a_part_that_is_not_of_this_file_is_replaced(tmp_path: Path, follower: Follower, left: bytes) -> None:
    with StandInHub(tmp_path / "hub") as hub:
        incomplete_path(tmp_path / hashlib.sha256(CONTENT).hexdigest()).write_bytes(left)
        assert fetch(hub, follower, tmp_path).read_bytes() == CONTENT


def test_a_server_that_ignores_range(tmp_path: Path, follower: Follower) -> None:
    with StandInHub(tmp_path / "hub", ignore_range=True, cut_after=300_000, cuts=1) as hub:
        assert fetch(hub, follower, tmp_path).read_bytes() == CONTENT
        assert hub.ranges("a.gguf") == [(0, 300_000), (0, len(CONTENT))]


def test_one_wrong_answer_is_fetched_again_from_zero(tmp_path: Path, follower: Follower) -> None:
    with StandInHub(tmp_path / "hub", wrong_bytes=1) as hub:
        assert fetch(hub, follower, tmp_path).read_bytes() == CONTENT
        assert hub.ranges("a.gguf") == [(0, len(CONTENT))] * 2
    assert any("once more" in line for line in follower.logs)


def test_a_wrong_hash_twice_leaves_nothing(tmp_path: Path, follower: Follower) -> None:
    with StandInHub(tmp_path / "hub", wrong_bytes=9) as hub:
        with pytest.raises(JobProblem) as caught:
            fetch(hub, follower, tmp_path)
        assert len(hub.served) == 2
    assert caught.value.code == "hash-mismatch"
    assert hashlib.sha256(CONTENT).hexdigest() in caught.value.message
    assert [path.name for path in tmp_path.iterdir()] == ["hub"]


@pytest.mark.parametrize("sent", [len(CONTENT) - 1, len(CONTENT) + 1])
def test_another_length_than_the_hub_says(tmp_path: Path, follower: Follower, sent: int) -> None:
    with StandInHub(tmp_path / "hub") as hub:
        known = hub.add(REPOSITORY, "a.gguf", (CONTENT + b"x")[:sent])
        file = ArtifactFile(**{**known, "size_bytes": len(CONTENT)})
        with pytest.raises(JobProblem) as caught:
            fetch(hub, follower, tmp_path, file=file)  # type: ignore[arg-type]
    assert caught.value.code == "wrong-length"


@pytest.mark.parametrize(("authorization", "words"), [("", "no token"), ("Bearer wrong", "the token sent")])
def test_gated(tmp_path: Path, follower: Follower, authorization: str, words: str) -> None:
    with StandInHub(tmp_path / "hub", gated={REPOSITORY}) as hub, pytest.raises(JobProblem) as caught:
        fetch(hub, follower, tmp_path, authorization=authorization)
    assert caught.value.code == "gated"
    assert words in caught.value.message
    assert "token" in caught.value.remedy


def test_the_right_token_opens_a_gated_repository(tmp_path: Path, follower: Follower) -> None:
    with StandInHub(tmp_path / "hub", gated={REPOSITORY}) as hub:
        assert fetch(hub, follower, tmp_path, authorization="Bearer hf_stand_in").read_bytes() == CONTENT


def test_a_redirect_to_another_host_carries_no_token(tmp_path: Path, follower: Follower) -> None:
    with StandInHub(tmp_path / "hub") as cdn, StandInHub(tmp_path / "hub", redirect_to=cdn.url) as hub:
        assert fetch(hub, follower, tmp_path, authorization="Bearer hf_stand_in").read_bytes() == CONTENT
        assert [one.authorization for one in cdn.served] == [None]


def test_a_redirect_within_the_host_keeps_the_token(tmp_path: Path, follower: Follower) -> None:
    with StandInHub(tmp_path / "hub", gated={REPOSITORY}) as hub:
        hub.add(REPOSITORY, "a.gguf", CONTENT)
        request = Source(f"{hub.url}/{REPOSITORY}/resolve/main/a.gguf", "Bearer hf_stand_in")
        with open_url(request) as response:
            assert response.read() == CONTENT  # the hub notes a request once its body begins
        assert hub.served[-1].authorization == "Bearer hf_stand_in"


def test_a_mirror_without_the_data(tmp_path: Path, follower: Follower) -> None:
    with StandInHub(tmp_path / "hub", metadata_only=True) as hub, pytest.raises(JobProblem) as caught:
        fetch(hub, follower, tmp_path)
    assert caught.value.code == "not-found"
    assert "HF_ENDPOINT" in caught.value.remedy


def test_a_busy_server_is_asked_again(tmp_path: Path, follower: Follower) -> None:
    with StandInHub(tmp_path / "hub", fail_status=503, failures=3) as hub:
        assert fetch(hub, follower, tmp_path).read_bytes() == CONTENT
    assert sum("HTTP 503" in line for line in follower.logs) == 3


def test_nobody_answers(tmp_path: Path, follower: Follower, monkeypatch: pytest.MonkeyPatch) -> None:
    with StandInHub(tmp_path / "hub") as hub:
        file = ArtifactFile(**hub.add(REPOSITORY, "a.gguf", CONTENT))
        url = f"{hub.url}/{REPOSITORY}/resolve/main/a.gguf"
    with pytest.raises(JobProblem) as caught:
        download(Source(url), file, tmp_path / "out", follower.watch)
    assert caught.value.code == "connection-failed"
    assert len(follower.logs) == module.FRUITLESS_TRIES - 1


def test_a_cancelled_download_stops_in_a_pause(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FIRST_PAUSE_SECONDS", 3600.0)
    monkeypatch.setattr(module, "LONGEST_PAUSE_SECONDS", 3600.0)
    follower = Follower()
    with StandInHub(tmp_path / "hub", fail_status=503, failures=99) as hub:
        timer = threading.Timer(0.3, follower.cancelled.set)
        timer.start()
        with pytest.raises(Stopped):
            fetch(hub, follower, tmp_path)
        timer.join()


def test_without_any_hash_nothing_is_fetched(tmp_path: Path, follower: Follower) -> None:
    file = ArtifactFile("a.gguf", 5)
    with pytest.raises(JobProblem) as caught:
        download(Source("http://127.0.0.1:1/a"), file, tmp_path / "out", follower.watch)
    assert caught.value.code == "no-hash"


@pytest.mark.parametrize(
    ("status", "headers", "expected"),
    [
        (200, {"Content-Length": "10"}, (0, 10)),
        (200, {}, (0, None)),
        (206, {"Content-Range": "bytes 42-1233/1234"}, (42, 1234)),
        (206, {"Content-Range": "bytes 42-1233/*"}, (42, None)),
        (200, {"Content-Range": "bytes 42-1233/1234", "Content-Length": "1192"}, (42, 1234)),
    ],
)
def test_response_range(status: int, headers: dict[str, str], expected: tuple[int, int | None]) -> None:
    assert response_range(status, headers) == expected
