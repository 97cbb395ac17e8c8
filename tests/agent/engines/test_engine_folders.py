"""The engines folder: what it takes, what is left over, and that only what nobody needs goes."""

import fcntl
import json
import os
from pathlib import Path

import pytest

from fleet_agent.configuration import AgentConfiguration
from fleet_agent.engines.leftovers import LeftoverKind, lock_path
from fleet_agent.engines.served import note_ready, served_unix_ms
from fleet_agent.engines.sizes import DiskUse, disk_use
from fleet_agent.engines.store import EngineStore, delete
from fleet_agent.engines.uses import Uses, find_uses
from fleet_agent.file_lock import try_file_lock
from fleet_agent.jobs.errors import SpecProblem
from fleet_agent.jobs.model import CmakeBuildStep, GitCheckoutStep, JobSpec, RunToolStep, Step, ToolRef
from fleet_agent.layout import Layout
from fleet_agent.probes.engines import read
from fleet_agent.probes.model import ProbeContext
from fleet_agent.problem import ProblemError
from fleet_agent.services.journal import ServiceRecord
from fleet_agent.services.model import DesiredState, ServiceSpec, ServiceState, ToolReference
from fleet_agent.services.transitions import Condition
from support.agent_jobs import make_layout

KEY = "llama.cpp-b1-00000000"


@pytest.fixture
def layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Layout:
    return make_layout(tmp_path, monkeypatch)


def install(layout: Layout, key: str = KEY, **document: object) -> Path:
    folder = layout.engines_dir / key
    (folder / "bin").mkdir(parents=True)
    (folder / "bin" / "llama-server").write_bytes(b"x" * 200_000)
    (folder / "install.json").write_text(json.dumps({"backend": "llama.cpp", "version": "b1", **document}))
    return folder


def store(layout: Layout, uses: Uses | None = None) -> EngineStore:
    return EngineStore(layout, lambda: uses or Uses())


def test_a_file_counts_once_however_often_it_is_linked(tmp_path: Path) -> None:
    folder = tmp_path / "venv"
    folder.mkdir()
    before = disk_use(folder)
    (folder / "a").write_bytes(os.urandom(100_000))
    alone = disk_use(folder)
    assert alone.size_bytes - before.size_bytes >= 100_000
    os.link(folder / "a", folder / "b")
    assert disk_use(folder) == alone


def test_what_the_cache_has_too_is_not_freed(tmp_path: Path) -> None:
    cached, folder = tmp_path / "cached", tmp_path / "venv"
    folder.mkdir()
    cached.write_bytes(os.urandom(100_000))
    os.link(cached, folder / "a")
    use = disk_use(folder)
    assert use.shared_bytes == cached.stat().st_blocks * 512
    assert use.own_bytes == disk_use(folder).size_bytes - use.shared_bytes < 100_000


def test_links_out_of_the_folder_are_not_followed(tmp_path: Path) -> None:
    big = tmp_path / "big"
    big.mkdir()
    (big / "weights").write_bytes(os.urandom(500_000))
    folder = tmp_path / "venv"
    folder.mkdir()
    (folder / "link").symlink_to(big)
    assert disk_use(folder).size_bytes < 100_000
    assert disk_use(tmp_path / "missing") == DiskUse()


def test_services_and_unfinished_jobs_are_users() -> None:
    spec = ServiceSpec(name="tiny", tool=ToolReference("bin/llama-server", KEY))
    steps = (
        Step(name="fetch", git_checkout=GitCheckoutStep(url="https://x/y", ref="b1", source_key="src")),
        Step(name="build", cmake_build=CmakeBuildStep(source_key="src", install_key="new")),
        Step(name="bench", run_tool=RunToolStep(tool=ToolRef(KEY, "bin/llama-bench"))),
    )
    uses = find_uses([spec], [("job", JobSpec(job_id="job", steps=steps))])
    assert uses == Uses({KEY: ("tiny",)}, {"new": ("job",), KEY: ("job",)}, {"src": ("job",)})


def test_an_install_is_removed_with_its_lock_and_build_folder(layout: Layout) -> None:
    folder = install(layout)
    (layout.engines_dir / f"{KEY}.build").mkdir()
    with try_file_lock(lock_path(layout, KEY)):
        pass
    doomed = store(layout).set_aside(KEY)
    assert not folder.exists()  # no install any more, before anything is deleted
    assert delete(doomed) >= 200_000
    assert [path.name for path in layout.engines_dir.iterdir() if path.name not in ("sources", ".locks")] == []
    assert list((layout.engines_dir / ".locks").iterdir()) == []


@pytest.mark.parametrize("uses", [Uses(services={KEY: ("tiny",)}), Uses(jobs={KEY: ("build-1",)})])
def test_an_install_in_use_stays(layout: Layout, uses: Uses) -> None:
    folder = install(layout)
    with pytest.raises(ProblemError) as refused:
        store(layout, uses).set_aside(KEY)
    assert refused.value.code == "engine-in-use"
    assert (folder / "bin" / "llama-server").exists()


def test_an_install_that_somebody_makes_now_stays(layout: Layout) -> None:
    install(layout)
    with try_file_lock(lock_path(layout, KEY)) as ours:
        assert ours
        with pytest.raises(ProblemError, match="somebody installs"):
            store(layout).set_aside(KEY)


@pytest.mark.parametrize("key", ["../outside", "sources", "a/b", "", "x.tmp", ".locks"])
def test_no_key_leads_out_of_the_folder(layout: Layout, key: str) -> None:
    with pytest.raises(SpecProblem):
        store(layout).set_aside(key)


def test_a_link_in_place_of_an_install_costs_only_the_link(layout: Layout, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "install.json").write_text("{}")
    (layout.engines_dir / KEY).symlink_to(outside)
    delete(store(layout).set_aside(KEY))
    assert not (layout.engines_dir / KEY).is_symlink()
    assert (outside / "install.json").exists()


def make_leftovers(layout: Layout) -> dict[str, LeftoverKind]:
    """One of each kind, beside a whole install."""
    install(layout)
    folders = {
        "dead-1-00000000.tmp": LeftoverKind.UNFINISHED,
        "half-1-00000000": LeftoverKind.UNFINISHED,
        "old-1-00000000.build": LeftoverKind.BUILD,
        "sources/llama": LeftoverKind.SOURCE,
        "sources/other.tmp": LeftoverKind.UNFINISHED,
    }
    for path in folders:
        (layout.engines_dir / path).mkdir()
        (layout.engines_dir / path / "file").write_bytes(b"x" * 50_000)
    (layout.sources_dir / ".llama.0123456789abcdef.archive").write_bytes(b"x" * 50_000)
    for lock in ("gone-1-00000000", KEY):
        with try_file_lock(lock_path(layout, lock)):
            pass
    downloads = {"sources/.llama.0123456789abcdef.archive": LeftoverKind.DOWNLOAD}
    return {**folders, **downloads, ".locks/gone-1-00000000.lock": LeftoverKind.LOCK}


def test_leftovers_are_counted_and_collected(layout: Layout) -> None:
    expected = make_leftovers(layout)
    engines = store(layout)
    _, found = engines.survey(Uses())
    assert {one.path: one.kind for one in found} == expected
    assert all(one.size_bytes >= 50_000 for one in found if one.kind is not LeftoverKind.LOCK)

    doomed, removed = engines.set_leftovers_aside([*expected, "../..", KEY])
    assert set(removed) == set(expected)
    assert delete(doomed) >= 6 * 50_000
    assert engines.survey(Uses())[1] == ()
    assert engines.survey(Uses())[0][0].install_key == KEY


def test_what_a_job_works_on_is_no_waste(layout: Layout) -> None:
    make_leftovers(layout)
    uses = Uses(jobs={"old-1-00000000": ("build",), "gone-1-00000000": ("build",)}, sources={"llama": ("build",)})
    engines = store(layout, uses)
    used = {one.path for one in engines.survey(uses)[1] if one.used_by}
    assert used == {
        "old-1-00000000.build", "sources/llama", "sources/.llama.0123456789abcdef.archive",
        ".locks/gone-1-00000000.lock",
    }  # fmt: skip
    assert engines.set_leftovers_aside(sorted(used)) == ([], ())


def test_a_source_that_an_install_links_into_is_needed(layout: Layout) -> None:
    (layout.sources_dir / "archive").mkdir()
    install(layout, adopted_path=str(layout.sources_dir / "archive" / "bin"))
    [source] = store(layout).survey(Uses())[1]
    assert (source.path, source.used_by) == ("sources/archive", (KEY,))


def test_a_deletion_that_was_cut_off_is_a_leftover(layout: Layout) -> None:
    install(layout)
    store(layout).set_aside(KEY)  # and the agent dies before delete()
    installs, [rest] = store(layout).survey(Uses())
    assert installs == ()
    assert [engine for engine in read(ProbeContext(layout, AgentConfiguration())) if engine.managed] == []
    assert rest.kind is LeftoverKind.UNFINISHED
    assert rest.size_bytes >= 200_000


def test_the_first_ready_service_marks_its_install_and_no_later_one(layout: Layout) -> None:
    folder = install(layout)
    spec = ServiceSpec(name="tiny", tool=ToolReference("bin/llama-server", KEY))

    def become(state: ServiceState) -> None:
        note_ready(ServiceRecord(spec, DesiredState.RUNNING, Condition(state)), layout.engines_dir)

    become(ServiceState.STARTING)
    assert served_unix_ms(folder) is None
    become(ServiceState.READY)
    first = served_unix_ms(folder)
    assert first is not None
    become(ServiceState.READY)
    assert served_unix_ms(folder) == first


def test_a_lock_whose_file_was_removed_locks_nothing(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its holder removes the file between our opening and our locking it: what we lock must be the file of the name."""
    path, real = lock_path(layout, KEY), fcntl.flock
    removed: list[bool] = []

    def flock(descriptor: int, how: int) -> None:
        if not removed:
            removed.append(True)
            path.unlink()
        real(descriptor, how)

    monkeypatch.setattr("fleet_agent.file_lock.fcntl.flock", flock)
    with try_file_lock(path) as ours, try_file_lock(path) as another:
        assert (ours, another) == (True, False)
