"""The cache layout against the real huggingface_hub, and the whole hub step in a real runner."""

import asyncio
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from fleet_agent.artifacts.cache import HubCache, list_artifacts, relative_path
from fleet_agent.jobs.errors import SpecProblem
from fleet_agent.jobs.model import ArtifactFile, EnvironmentVariable, HubDownloadStep, JobSpec, JobState, Step
from fleet_agent.process import identity_of
from fleet_agent.steps import hub_download
from support.agent_jobs import Agent, kill, make_layout, problem_of, result_of, running_agent, state_of, wait_for_size
from support.stand_in_hub import StandInHub

REPOSITORY = "acme/tiny-GGUF"
WEIGHTS = os.urandom(400_000)
FILES = {"model.gguf": WEIGHTS, "config.json": b'{"a": 1}', "sub/dir/tokenizer.json": b"{}"}


@pytest.fixture
async def agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Agent]:
    async with running_agent(make_layout(tmp_path, monkeypatch)) as one:
        yield one


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[StandInHub]:
    with StandInHub(tmp_path / "hub") as one:
        yield one


def step_for(hub: StandInHub, files: dict[str, bytes] = FILES, **more: object) -> Step:
    known = tuple(ArtifactFile(**hub.add(REPOSITORY, name, content)) for name, content in files.items())
    given = {"revision": "main", "endpoint": hub.url, **more}
    return Step("fetch", hub_download=HubDownloadStep(REPOSITORY, hub.commit(REPOSITORY), files=known, **given))  # type: ignore[arg-type]


async def test_huggingface_hub_finds_what_we_fetched(agent: Agent, hub: StandInHub) -> None:
    step = step_for(hub)
    events = await agent.run(step)
    assert state_of(events) is JobState.SUCCEEDED
    result = result_of(events)
    assert result["fetched_bytes"] == result["total_bytes"] == sum(map(len, FILES.values()))
    from huggingface_hub import scan_cache_dir, snapshot_download, try_to_load_from_cache

    cache = agent.layout.hf_home / "hub"
    commit = hub.commit(REPOSITORY)
    for name, content in FILES.items():
        for revision in ("main", commit):
            found = try_to_load_from_cache(REPOSITORY, name, cache_dir=cache, revision=revision)
            assert isinstance(found, str)
            assert Path(found).read_bytes() == content
        link = Path(result["snapshot"]) / name
        assert link.is_symlink()
        assert not link.readlink().is_absolute()
    offline = snapshot_download(REPOSITORY, cache_dir=cache, local_files_only=True)
    assert Path(offline) == Path(result["snapshot"])
    (scanned,) = scan_cache_dir(cache).repos
    assert scanned.size_on_disk == result["total_bytes"]
    assert not scan_cache_dir(cache).warnings


async def run_program(*words: object, environment: dict[str, str] | None = None) -> str:
    """A program's stdout; it must succeed."""
    made = await asyncio.create_subprocess_exec(*map(str, words), env=environment, stdout=asyncio.subprocess.PIPE)
    out, _ = await asyncio.wait_for(made.communicate(), 120)
    assert made.returncode == 0
    return out.decode()


async def test_the_real_client_and_we_share_one_cache(agent: Agent, hub: StandInHub) -> None:
    """What `hf` fetched is verified and taken; nothing is fetched again."""
    step = step_for(hub)
    code = f"from huggingface_hub import snapshot_download; snapshot_download({REPOSITORY!r})"
    environment = {
        **os.environ, "HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(agent.layout.hf_home)
    }  # fmt: skip
    await run_program(sys.executable, "-c", code, environment=environment)
    before = hub.bytes_served()
    assert before >= len(WEIGHTS)
    result = result_of(await agent.run(step))
    assert (result["fetched_bytes"], result["changed"], hub.bytes_served()) == (0, False, before)


async def test_folder_names_are_those_of_huggingface_hub(tmp_path: Path) -> None:
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    for repository in ("acme/tiny-GGUF", "gpt2"):
        expected = repo_folder_name(repo_id=repository, repo_type="model")
        assert HubCache(tmp_path).repository_folder(repository).name == expected
    assert Path(constants.HF_HUB_CACHE).name == HubCache(tmp_path).folder.name


async def test_a_second_download_changes_nothing(agent: Agent, hub: StandInHub) -> None:
    step = step_for(hub)
    await agent.run(step)
    served = hub.bytes_served()
    result = result_of(await agent.run(step, job_id="again"))
    assert (result["fetched_bytes"], result["changed"]) == (0, False)
    assert hub.bytes_served() == served


async def test_a_damaged_copy_is_found_and_replaced(agent: Agent, hub: StandInHub) -> None:
    step = step_for(hub)
    snapshot = Path(result_of(await agent.run(step))["snapshot"])
    blob = (snapshot / "model.gguf").resolve()
    blob.write_bytes(WEIGHTS[:-1] + bytes([WEIGHTS[-1] ^ 1]))
    result = result_of(await agent.run(step, job_id="again"))
    assert result["changed"] is True
    assert (snapshot / "model.gguf").read_bytes() == WEIGHTS


async def test_equal_content_is_fetched_once(agent: Agent, hub: StandInHub) -> None:
    step = step_for(hub, {"a.gguf": WEIGHTS, "b.gguf": WEIGHTS})
    result = result_of(await agent.run(step))
    assert hub.bytes_served() == len(WEIGHTS)
    assert (Path(result["snapshot"]) / "a.gguf").samefile(Path(result["snapshot"]) / "b.gguf")


async def test_two_jobs_for_one_file_fetch_it_once(agent: Agent, hub: StandInHub) -> None:
    step = step_for(hub, {"model.gguf": WEIGHTS})
    hub.behaviour.throttle = 400_000
    both = await asyncio.gather(agent.run(step, job_id="one"), agent.run(step, job_id="two"))
    assert [state_of(events) for events in both] == [JobState.SUCCEEDED] * 2
    assert hub.bytes_served() == len(WEIGHTS)


async def test_wrong_hash_is_one_clear_problem_and_nothing_is_in_place(agent: Agent, hub: StandInHub) -> None:
    step = step_for(hub, {"model.gguf": WEIGHTS})
    hub.behaviour.wrong_bytes = 99
    code, message, remedy = problem_of(await agent.run(step))
    assert code == "hash-mismatch"
    assert "model.gguf" in message
    assert remedy
    left = [path for path in (agent.layout.hf_home / "hub").rglob("*") if path.is_file() and path.suffix != ".lock"]
    assert left == []


async def test_the_token_comes_from_the_named_file(agent: Agent, hub: StandInHub, tmp_path: Path) -> None:
    hub.behaviour.gated.add(REPOSITORY)
    token = tmp_path / "token"
    token.write_text("hf_stand_in\n")
    token.chmod(0o644)
    step = step_for(hub, token_file=str(token))
    code, message, remedy = problem_of(await agent.run(step, job_id="open-file"))
    assert (code, "0644" in message, "chmod 600" in remedy) == ("bad-token-file", True, True)
    token.chmod(0o600)
    assert state_of(await agent.run(step, job_id="private-file")) is JobState.SUCCEEDED
    assert "hf_stand_in" not in (agent.folder("private-file").events_path).read_text()


async def test_the_token_of_the_host_is_used(agent: Agent, hub: StandInHub) -> None:
    hub.behaviour.gated.add(REPOSITORY)
    step = step_for(hub)
    assert problem_of(await agent.run(step, job_id="none"))[0] == "gated"
    agent.layout.hf_home.mkdir(parents=True, exist_ok=True)
    (agent.layout.hf_home / "token").write_text("hf_stand_in")
    assert state_of(await agent.run(step, job_id="some")) is JobState.SUCCEEDED


async def test_offline_takes_the_cache_and_says_what_is_missing(agent: Agent, hub: StandInHub) -> None:
    await agent.run(step_for(hub, {"model.gguf": WEIGHTS}), job_id="first")
    offline = step_for(hub, {"model.gguf": WEIGHTS}, offline=True)
    assert state_of(await agent.run(offline, job_id="here")) is JobState.SUCCEEDED
    requests = len(hub.requests)
    more = step_for(hub, {"model.gguf": WEIGHTS, "other.gguf": b"other"})
    variable = (EnvironmentVariable("HF_HUB_OFFLINE", "1"),)
    code, message, _ = problem_of(await agent.run(more, job_id="not", environment=variable))
    assert (code, "other.gguf" in message) == ("missing-offline", True)
    assert len(hub.requests) == requests


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MiB."""
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("mounting a small disk needs root on Linux")
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", folder], capture_output=True, text=True)
    if mounted.returncode != 0:
        pytest.skip(f"cannot mount a small disk here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


async def test_a_disk_too_small_is_said_before_the_first_byte(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_disk: Path, hub: StandInHub
) -> None:
    layout = make_layout(tmp_path, monkeypatch)
    monkeypatch.setenv("HF_HOME", str(small_disk))
    async with running_agent(type(layout).from_environment()) as agent:
        code, message, remedy = problem_of(await agent.run(step_for(hub, {"big.gguf": os.urandom(3_000_000)})))
    assert code == "disk-full"
    assert "3000000 bytes" in message
    assert "free" in message
    assert remedy
    assert hub.served == []


async def test_a_disk_that_fills_up_in_mid_download(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_disk: Path, hub: StandInHub
) -> None:
    layout = make_layout(tmp_path, monkeypatch)
    monkeypatch.setenv("HF_HOME", str(small_disk))
    hub.behaviour.hold_after = 500_000
    async with running_agent(type(layout).from_environment()) as agent:
        step = step_for(hub, {"big.gguf": os.urandom(1_500_000)})
        await agent.supervisor.submit(JobSpec("job", steps=(step,)))
        assert step.hub_download is not None
        sha256 = step.hub_download.files[0].sha256
        await wait_for_size(small_disk / f"hub/models--acme--tiny-GGUF/blobs/{sha256}.incomplete", 500_000)
        free = shutil.disk_usage(small_disk).free
        (small_disk / "neighbour").write_bytes(bytes(free - 100_000))
        hub.behaviour.released.set()
        code, message, _ = problem_of(await asyncio.wait_for(agent.finish("job"), 60))
        assert (code, "needed" in message, "free" in message) == ("disk-full", True, True)
        (small_disk / "neighbour").unlink()
        events = await agent.run(step, job_id="again")
        assert state_of(events) is JobState.SUCCEEDED
        assert result_of(events)["fetched_bytes"] < 1_500_000  # it went on from the part


async def test_a_state_disk_that_is_full_still_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_disk: Path
) -> None:
    from fleet_agent.jobs.model import RunToolStep, ToolRef

    make_layout(tmp_path, monkeypatch)
    monkeypatch.setenv("FLEET_AGENT_ROOT", str(small_disk / "fleet"))
    from fleet_agent.layout import Layout

    layout = Layout.from_environment()
    layout.ensure()
    fill = f"f = open({str(small_disk / 'fill')!r}, 'wb', buffering=0)\nwhile True: f.write(bytes(4096))"
    async with running_agent(layout) as agent:
        events = await agent.run(Step("fill", run_tool=RunToolStep(ToolRef("", "python3"), ("-c", fill))))
        assert problem_of(events)[0] == "disk-full"


async def test_a_read_only_model_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_disk: Path, hub: StandInHub
) -> None:
    layout = make_layout(tmp_path, monkeypatch)
    monkeypatch.setenv("HF_HOME", str(small_disk))
    await run_program("mount", "-o", "remount,ro", small_disk)
    async with running_agent(type(layout).from_environment()) as agent:
        code, message, remedy = problem_of(await agent.run(step_for(hub)))
    assert (code, str(small_disk) in message, "HF_HOME" in remedy) == ("not-writable", True, True)


async def test_what_is_complete_needs_no_write_access(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_disk: Path, hub: StandInHub
) -> None:
    layout = make_layout(tmp_path, monkeypatch)
    monkeypatch.setenv("HF_HOME", str(small_disk))
    async with running_agent(type(layout).from_environment()) as agent:
        step = step_for(hub)
        assert state_of(await agent.run(step, job_id="fill")) is JobState.SUCCEEDED
        await run_program("mount", "-o", "remount,ro", small_disk)
        assert state_of(await agent.run(step, job_id="read")) is JobState.SUCCEEDED


async def test_listing_needs_no_huggingface_hub(agent: Agent, hub: StandInHub) -> None:
    assert list_artifacts(agent.layout.hf_home) == ()
    await agent.run(step_for(hub))
    (found,) = list_artifacts(agent.layout.hf_home)
    assert (found.repository, found.commit, found.revisions) == (REPOSITORY, hub.commit(REPOSITORY), ("main",))
    assert found.files == tuple(sorted(FILES))
    assert found.size_bytes == sum(map(len, FILES.values()))
    code = "import sys, fleet_agent.server.jobs, fleet_agent.steps.hub_download as _; print(*sys.modules)"
    assert "huggingface_hub" not in (await run_program(sys.executable, "-c", code)).split()


@pytest.mark.parametrize("path", ["", "/x", "../x", "a/../b", "a//b", "a/./b", "a\\b", "a\0"])
def test_paths_that_lead_out_are_refused(path: str) -> None:
    with pytest.raises(SpecProblem):
        relative_path(path)


SHA256 = hashlib.sha256(b"").hexdigest()


@pytest.mark.parametrize(
    "step",
    [
        HubDownloadStep("acme", "0" * 40),
        HubDownloadStep("a/b/c", "0" * 40, files=(ArtifactFile("x", 1, SHA256),)),
        HubDownloadStep("../b", "0" * 40, files=(ArtifactFile("x", 1, SHA256),)),
        HubDownloadStep("a/b", "main", files=(ArtifactFile("x", 1, SHA256),)),
        HubDownloadStep("a/b", "0" * 40, files=(ArtifactFile("../x", 1, SHA256),)),
        HubDownloadStep("a/b", "0" * 40, files=(ArtifactFile("x", 1, "../../x"),)),
        HubDownloadStep("a/b", "0" * 40, files=(ArtifactFile("x", 1),)),
        HubDownloadStep("a/b", "0" * 40, endpoint="file:///etc", files=(ArtifactFile("x", 1, SHA256),)),
        HubDownloadStep("a/b", "0" * 40, revision="../x", files=(ArtifactFile("x", 1, SHA256),)),
    ],
)
def test_steps_that_break_a_rule(step: HubDownloadStep) -> None:
    with pytest.raises(SpecProblem):
        hub_download.check(step)


def test_kill_helper_kills() -> None:
    """The helper that other tests rely on ends a real process."""
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    identity = identity_of(child.pid)
    assert identity is not None
    asyncio.run(kill(identity))
    assert child.wait(10) == -9
