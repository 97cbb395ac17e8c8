"""Who uses which files of the cache, who brought them, and what goes when one is removed."""

import json
from pathlib import Path

import pytest

from fleet_agent.artifacts.cache import HubCache, list_artifacts
from fleet_agent.artifacts.hashing import new_hash
from fleet_agent.artifacts.survey import ArtifactUses, delete, set_aside, survey_artifacts, texts_of
from fleet_agent.artifacts.verified import VerifiedNotes
from fleet_agent.jobs.model import ArtifactFile, HubDownloadStep, JobSpec, Step
from fleet_agent.server.artifacts import ArtifactCalls, services_of_other_machines
from fleet_agent.services.model import ServiceSpec, ToolReference
from fleet_proto.v1 import artifacts_pb2
from support.agent_jobs import make_layout

FIRST, SECOND, THIRD = "1" * 40, "2" * 40, "3" * 40
NOBODY = ArtifactUses({}, {})


def put(hf_home: Path, commit: str, contents: dict[str, bytes], brought: bool = True, repository: str = "o/m") -> None:
    cache, notes = HubCache(hf_home), VerifiedNotes(hf_home / "machine")
    cache.ensure_folders(repository)
    for path, content in contents.items():
        kind = ArtifactFile(path, len(content), sha256="-")
        digest = new_hash(kind)
        digest.update(content)
        file = ArtifactFile(path, len(content), sha256=digest.hexdigest())
        blob = cache.blob(repository, file)
        if not blob.exists():
            blob.write_bytes(content)
            notes.write(blob, brought=brought)
        cache.link(repository, commit, file)
    cache.write_reference(repository, "main", commit)


def notes_of(hf_home: Path) -> VerifiedNotes:
    return VerifiedNotes(hf_home / "machine")


def test_a_blob_goes_with_the_last_commit_that_has_it(tmp_path: Path) -> None:
    put(tmp_path, FIRST, {"config.json": b"same", "model.gguf": b"old weights"})
    put(tmp_path, SECOND, {"config.json": b"same", "model.gguf": b"newer weights"})
    cache, notes = HubCache(tmp_path), notes_of(tmp_path)
    surveyed = {one.commit: one for one in survey_artifacts(tmp_path, notes, NOBODY)}
    assert {commit: one.own_bytes for commit, one in surveyed.items()} == {FIRST: 11, SECOND: 13}
    aside = set_aside(cache, "o/m", FIRST, NOBODY)
    assert aside is not None
    assert [one.commit for one in list_artifacts(tmp_path)] == [SECOND]  # nobody finds it from here on
    assert delete(aside, notes) == 11
    assert (cache.snapshot("o/m", SECOND) / "config.json").read_bytes() == b"same"
    assert (cache.repository_folder("o/m") / "refs" / "main").read_text() == SECOND
    last = set_aside(cache, "o/m", SECOND, NOBODY)
    assert last is not None
    assert delete(last, notes) == 17
    assert not cache.repository_folder("o/m").exists()
    assert not list((tmp_path / "machine" / "verified").iterdir())


def test_what_is_used_stays(tmp_path: Path) -> None:
    put(tmp_path, FIRST, {"model.gguf": b"weights"})
    place = str(HubCache(tmp_path).snapshot("o/m", FIRST) / "model.gguf")
    service = ServiceSpec(name="chat", tool=ToolReference("bin/llama-server"), arguments=("--model", place))
    job = JobSpec("j", "t", (Step("fetch", hub_download=HubDownloadStep(repository="o/m", commit=FIRST)),))
    for uses in (
        ArtifactUses({"chat": texts_of(service)}, {}),
        ArtifactUses({}, {"j": texts_of(job)}),
        ArtifactUses({"vllm": frozenset({"serve", "o/m"})}, {}),  # by its name: whatever commit that is then
    ):
        assert set_aside(HubCache(tmp_path), "o/m", FIRST, uses) is None
        (found,) = survey_artifacts(tmp_path, notes_of(tmp_path), uses)
        assert (*found.services, *found.jobs) == (*uses.services, *uses.jobs)
    others = ArtifactUses({"chat": frozenset({place.replace(FIRST, SECOND)})}, {"j": frozenset({"o/m", SECOND})})
    assert set_aside(HubCache(tmp_path), "o/m", FIRST, others) is not None


def test_who_brought_it_is_known_until_somebody_else_replaces_it(tmp_path: Path) -> None:
    put(tmp_path, FIRST, {"model.gguf": b"weights"})
    put(tmp_path, FIRST, {"model.gguf": b"theirs"}, brought=False, repository="o/theirs")
    notes = notes_of(tmp_path)
    brought = {one.repository: one.brought for one in survey_artifacts(tmp_path, notes, NOBODY)}
    assert brought == {"o/m": True, "o/theirs": False}
    blob = next((HubCache(tmp_path).repository_folder("o/m") / "blobs").iterdir())
    notes.write(blob)  # verified once more, at a deploy
    assert notes.was_brought(blob)
    replaced = blob.with_name("new")
    replaced.write_bytes(b"weights")
    replaced.replace(blob)
    assert not notes.was_brought(blob)
    assert not notes.holds(blob)


def test_names_that_lead_out_of_the_cache_remove_nothing(tmp_path: Path) -> None:
    put(tmp_path, FIRST, {"model.gguf": b"weights"})
    (tmp_path / "hub" / "precious").mkdir()
    for repository, commit in (("../precious", FIRST), ("o/m", "../../.."), ("o/m", ""), ("", FIRST), ("o/m", "main")):
        assert set_aside(HubCache(tmp_path), repository, commit, NOBODY) is None
    assert len(list_artifacts(tmp_path)) == 1


def test_what_another_machine_of_the_same_home_serves_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layout = make_layout(tmp_path, monkeypatch)
    put(layout.hf_home, FIRST, {"model.gguf": b"weights"})
    place = str(HubCache(layout.hf_home).snapshot("o/m", FIRST) / "model.gguf")
    for machine in (layout.machine_dir, layout.machine_dir.with_name("rack")):
        (machine / "services").mkdir(parents=True, exist_ok=True)
        (machine / "services" / "chat.json").write_text(json.dumps({"spec": {"arguments": ["--model", place]}}))
    (layout.machine_dir.with_name("rack") / "services" / "torn.json").write_text("{")
    uses = ArtifactUses(services_of_other_machines(layout), {})
    assert uses.of("o/m", FIRST) == (("chat on rack",), ())
    assert set_aside(HubCache(layout.hf_home), "o/m", FIRST, uses) is None


class TwoServers:
    """`chat` serves the first commit, and what is to replace it the second. No job runs."""

    def __init__(self, hf_home: Path) -> None:
        self._places = [str(HubCache(hf_home).snapshot("o/m", commit) / "model.gguf") for commit in (FIRST, SECOND)]

    def specs(self) -> tuple[ServiceSpec, ...]:
        tool = ToolReference("bin/llama-server")
        return tuple(ServiceSpec(name="chat", tool=tool, arguments=("--model", place)) for place in self._places)

    def active_specs(self) -> tuple[()]:
        return ()


async def test_what_a_server_on_its_way_needs_stays_beside_that_of_the_one_it_replaces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = make_layout(tmp_path, monkeypatch)
    for commit, content in ((FIRST, b"old"), (SECOND, b"new"), (THIRD, b"nobody's")):
        put(layout.hf_home, commit, {"model.gguf": content})
    servers = TwoServers(layout.hf_home)
    calls = ArtifactCalls(layout, servers, servers)  # type: ignore[arg-type]
    listed = await calls.ListArtifacts(artifacts_pb2.ListArtifactsRequest(survey=True), None)
    assert {one.commit: list(one.services) for one in listed.artifacts} == {
        FIRST: ["chat"],
        SECOND: ["chat's successor"],
        THIRD: [],
    }
    names = [artifacts_pb2.ArtifactName(repository="o/m", commit=commit) for commit in (FIRST, SECOND, THIRD)]
    removed = await calls.RemoveArtifacts(artifacts_pb2.RemoveArtifactsRequest(artifacts=names), None)
    assert [one.commit for one in removed.removed] == [THIRD]
    assert [one.commit for one in list_artifacts(layout.hf_home)] == [FIRST, SECOND]
