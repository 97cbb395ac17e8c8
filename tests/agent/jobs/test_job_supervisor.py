"""Jobs with real runner processes: watching, killing, cancelling, coming back."""

import asyncio
import hashlib
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

import fleet_agent.jobs.supervisor as supervisor_module
from fleet_agent.jobs.errors import JobConflict, SpecProblem
from fleet_agent.jobs.model import (
    ArtifactFile,
    EnvironmentVariable,
    HubDownloadStep,
    JobSpec,
    JobState,
    RunToolStep,
    Step,
    ToolRef,
    VerifyFileStep,
)
from fleet_agent.jobs.supervisor import JobSupervisor, living_runner
from fleet_agent.problem import ProblemError
from fleet_agent.process import is_alive, send_signal, spawn
from support.agent_jobs import (
    Agent,
    assert_gone,
    kill,
    logs_of,
    make_layout,
    problem_of,
    result_of,
    running_agent,
    state_of,
    wait_for_size,
)
from support.stand_in_hub import StandInHub

REPOSITORY = "acme/big-GGUF"


@pytest.fixture
async def agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Agent]:
    async with running_agent(make_layout(tmp_path, monkeypatch)) as one:
        yield one


def python_step(code: str, name: str = "python", **more: object) -> Step:
    """A real child process: python3 of the host's allowlist."""
    tool = RunToolStep(ToolRef("", "python3"), ("-c", code), **more)  # type: ignore[arg-type]
    return Step(name, run_tool=tool)


def touch_step(path: Path) -> Step:
    """Leaves one line in `path` each time it runs."""
    return python_step(f"open({str(path)!r}, 'a').write('ran\\n')", "touch")


async def test_steps_run_in_order_and_their_results_are_kept(agent: Agent, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc")
    sha256 = hashlib.sha256(b"abc").hexdigest()
    events = await agent.run(
        Step("verify", verify_file=VerifyFileStep(str(tmp_path / "file"), 3, sha256)),
        python_step("print('out'); import sys; print('err', file=sys.stderr)", capture_output=True),
    )
    assert state_of(events) is JobState.SUCCEEDED
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))
    assert [event.step_started for event in events if event.step_started] == ["verify", "python"]
    assert result_of(events, 0)["sha256"] == sha256
    assert result_of(events, 1) == {"exit_code": 0, "stdout": "out\n"}
    assert "err" in logs_of(events)
    assert agent.supervisor.get("job").attempts == 1


async def test_a_watch_goes_on_where_the_last_one_stopped(agent: Agent) -> None:
    events = await agent.run(python_step("print('one'); print('two')"))
    middle = events[3].sequence
    assert await agent.finish("job", middle) == events[4:]
    assert await agent.finish("job", events[-1].sequence) == []


async def test_many_watch_one_job_live(agent: Agent, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    await agent.supervisor.submit(
        JobSpec("job", steps=(python_step(f"print('waits', flush=True); open({str(gate)!r}).read()"),))
    )
    watchers = [asyncio.create_task(agent.finish("job")) for _ in range(3)]
    await agent.until("job", lambda event: event.log is not None and event.log.text == "waits")
    gate.write_text("go")
    first, *others = await asyncio.wait_for(asyncio.gather(*watchers), 30)
    assert state_of(first) is JobState.SUCCEEDED
    assert all(other == first for other in others)


async def test_the_same_job_again_is_the_same_job_and_another_spec_is_refused(agent: Agent, tmp_path: Path) -> None:
    spec = JobSpec("job", steps=(touch_step(tmp_path / "count"),))
    await agent.supervisor.submit(spec)
    await agent.supervisor.submit(spec)
    await agent.finish("job")
    assert (await agent.supervisor.submit(spec)).state is JobState.SUCCEEDED
    assert (tmp_path / "count").read_text() == "ran\n"
    with pytest.raises(JobConflict) as caught:
        await agent.supervisor.submit(JobSpec("job", steps=(touch_step(tmp_path / "other"),)))
    assert caught.value.status == "ALREADY_EXISTS"


@pytest.mark.parametrize(
    "spec",
    [
        JobSpec("job"),
        JobSpec("job", steps=(Step("nothing"),)),
        JobSpec("job", steps=(Step("x", verify_file=VerifyFileStep("relative")),)),
        JobSpec("job", steps=(Step("x", run_tool=RunToolStep(ToolRef("", "bash"))),)),
        JobSpec("job", steps=(Step("x", run_tool=RunToolStep(ToolRef("key", "../../bin/sh"))),)),
        JobSpec("job", steps=(python_step("pass"),), environment=(EnvironmentVariable("LD_PRELOAD", "/x.so"),)),
    ],
)
async def test_a_spec_that_breaks_a_rule_leaves_nothing(agent: Agent, spec: JobSpec) -> None:
    with pytest.raises(ProblemError) as caught:
        await agent.supervisor.submit(spec)
    assert caught.value.status == "INVALID_ARGUMENT"
    assert list(agent.layout.jobs_dir.iterdir()) == []


async def test_a_failing_tool_fails_the_job_and_the_next_step_does_not_run(agent: Agent, tmp_path: Path) -> None:
    events = await agent.run(python_step("import sys; sys.exit('no such thing')"), touch_step(tmp_path / "later"))
    code, message, _ = problem_of(events)
    assert (code, "no such thing" in message) == ("tool-failed", True)
    assert not (tmp_path / "later").exists()


async def test_silence_beyond_the_stall_limit_ends_the_tree(agent: Agent) -> None:
    events = await agent.run(
        python_step("import os, time; print(os.getpid(), flush=True); time.sleep(600)", stall_seconds=0.5)
    )
    assert problem_of(events)[0] == "stalled"
    pid = next(int(line) for line in logs_of(events) if line.isdigit())
    await assert_gone(pid)


async def test_output_keeps_the_stall_timer_from_firing(agent: Agent) -> None:
    code = "import time\nfor n in range(8): print(n, flush=True); time.sleep(0.25)"
    assert state_of(await agent.run(python_step(code, stall_seconds=1.5))) is JobState.SUCCEEDED


async def test_a_deadline_ends_a_talkative_program(agent: Agent) -> None:
    code = "import time\nwhile True: print('on', flush=True); time.sleep(0.05)"
    assert problem_of(await agent.run(python_step(code, deadline_seconds=1.0)))[0] == "deadline"


# A child that starts a grandchild in a session of its own, and both ignore SIGTERM.
STUBBORN = """
import os, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
code = 'import os, signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); '
code += 'print("grandchild", os.getpid(), flush=True); time.sleep(600)'
subprocess.Popen([sys.executable, '-c', code], start_new_session=True)
time.sleep(600)
"""


async def grandchild_of(agent: Agent) -> int:
    event = await agent.until("job", lambda event: event.log is not None and event.log.text.startswith("grandchild"))
    assert event.log is not None
    return int(event.log.text.split()[1])


@pytest.mark.slow
async def test_cancel_ends_the_whole_tree(agent: Agent) -> None:
    await agent.supervisor.submit(JobSpec("job", steps=(python_step(STUBBORN),)))
    runner, grandchild = await agent.runner("job"), await grandchild_of(agent)
    status = await agent.supervisor.cancel("job")
    assert status.state is JobState.CANCELLED
    assert not is_alive(runner)
    await assert_gone(grandchild, 0.1)
    assert (await agent.supervisor.cancel("job")) == status
    assert state_of(await agent.finish("job")) is JobState.CANCELLED


async def test_cancel_goes_on_when_its_caller_goes_away(agent: Agent) -> None:
    code = "import os, time; print('grandchild', os.getpid(), flush=True); time.sleep(600)"
    await agent.supervisor.submit(JobSpec("job", steps=(python_step(code),)))
    child = await grandchild_of(agent)
    cancel = asyncio.create_task(agent.supervisor.cancel("job"))
    await asyncio.sleep(0)  # it has asked, and waits for the runner
    assert agent.folder("job").cancel_requested
    cancel.cancel()
    with pytest.raises(asyncio.CancelledError):
        await cancel
    assert state_of(await asyncio.wait_for(agent.finish("job"), 30)) is JobState.CANCELLED
    await assert_gone(child)


async def test_a_host_may_go_down_in_mid_job_more_often_than_a_runner_may_die(agent: Agent, tmp_path: Path) -> None:
    code = f"import time\nwhile not __import__('os').path.exists({str(tmp_path / 'go')!r}): time.sleep(0.02)"
    await agent.supervisor.submit(JobSpec("job", steps=(python_step(code),)))
    starts, last = 0, None
    async for event in agent.supervisor.watch("job"):
        last = event.state
        if event.state is JobState.RUNNING:
            starts += 1
            runner = living_runner(agent.folder("job"))
            assert runner is not None
            if starts <= supervisor_module.MAX_ATTEMPTS + 1:
                assert send_signal(runner, signal.SIGTERM)
            else:
                (tmp_path / "go").touch()
    assert last is JobState.SUCCEEDED


async def test_a_runner_that_cannot_be_started_fails_the_job_instead_of_leaving_it_alone(
    agent: Agent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor_module, "START_PAUSE_SECONDS", 0.01)
    agent.supervisor = JobSupervisor(agent.layout, [str(tmp_path / "no-such-program")])
    assert problem_of(await asyncio.wait_for(agent.run(python_step("pass")), 30))[0] == "runner-died"


async def test_old_ended_jobs_are_forgotten_and_a_damaged_one_hurts_no_other(
    agent: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in (1, 2, 3):
        await agent.run(python_step("pass"), job_id=f"job-{number}")
    (agent.folder("job-3").path / "spec.json").write_text("{")
    monkeypatch.setattr(supervisor_module, "KEPT_ENDED_JOBS", 1)
    agent.restart()
    await agent.supervisor.start()
    assert [status.job_id for status in agent.supervisor.list()] == ["job-2"]
    assert state_of(await agent.run(python_step("pass"), job_id="job-4")) is JobState.SUCCEEDED


async def test_cancel_after_runner_and_agent_were_killed_ends_what_they_left(agent: Agent) -> None:
    obedient = STUBBORN.replace("signal.SIG_IGN", "signal.SIG_DFL")
    await agent.supervisor.submit(JobSpec("job", steps=(python_step(obedient),)))
    runner, grandchild = await agent.runner("job"), await grandchild_of(agent)
    await agent.supervisor.close()
    await kill(runner)
    agent.restart()
    assert (await agent.supervisor.cancel("job")).state is JobState.CANCELLED
    await assert_gone(grandchild, 0.1)


async def test_a_killed_runner_is_replaced_its_children_ended_and_finished_steps_skipped(
    agent: Agent, tmp_path: Path
) -> None:
    once, first = tmp_path / "once", tmp_path / "first"
    code = f"""
import os, pathlib, time
first = pathlib.Path({str(first)!r})
if not first.exists():
    first.write_text('here')
    print('pid', os.getpid(), flush=True)
    time.sleep(600)
"""
    await agent.supervisor.submit(JobSpec("job", steps=(touch_step(once), python_step(code))))
    event = await agent.until("job", lambda event: event.log is not None and event.log.text.startswith("pid"))
    assert event.log is not None
    await kill(await agent.runner("job"))
    events = await asyncio.wait_for(agent.finish("job"), 60)
    assert state_of(events) is JobState.SUCCEEDED
    assert once.read_text() == "ran\n"
    await assert_gone(int(event.log.text.split()[1]), 0.1)
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))
    assert agent.supervisor.get("job").attempts == 2


async def test_a_living_runner_is_adopted_by_the_next_agent(agent: Agent, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    step = python_step(f"print('waits', flush=True); open({str(gate)!r}).read()")
    await agent.supervisor.submit(JobSpec("job", steps=(step,)))
    runner = await agent.runner("job")
    await agent.until("job", lambda event: event.log is not None and event.log.text == "waits")
    await agent.supervisor.close()
    agent.restart()
    await agent.supervisor.start()
    assert agent.supervisor.active_identities() == (runner,)
    gate.write_text("go")
    assert state_of(await asyncio.wait_for(agent.finish("job"), 30)) is JobState.SUCCEEDED
    assert agent.supervisor.get("job").attempts == 1


async def test_two_agents_at_once_still_run_a_job_once(agent: Agent, tmp_path: Path) -> None:
    spec = JobSpec("job", steps=(touch_step(tmp_path / "count"),))
    other = JobSupervisor(agent.layout)
    await asyncio.gather(agent.supervisor.submit(spec), other.submit(spec))
    assert state_of(await asyncio.wait_for(agent.finish("job"), 30)) is JobState.SUCCEEDED
    await other.close()
    assert (tmp_path / "count").read_text() == "ran\n"


async def test_a_job_whose_runners_keep_dying_fails_with_their_last_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = make_layout(tmp_path, monkeypatch)
    broken = JobSupervisor(layout, (sys.executable, "-c", "import sys; sys.exit('out of luck')"))
    await broken.submit(JobSpec("job", steps=(touch_step(tmp_path / "never"),)))
    events = [event async for event in broken.watch("job")]
    await broken.close()
    code, message, remedy = problem_of(events)
    assert code == "runner-died"
    assert "out of luck" in message
    assert "runner.log" in remedy
    assert broken.list() == (broken.get("job"),)
    assert broken.list(active_only=True) == ()


async def test_a_recycled_pid_in_the_record_is_not_signalled(agent: Agent, tmp_path: Path) -> None:
    """runner.json and children.json name the pid of a stranger, with the start time of somebody else."""
    stranger = spawn((sys.executable, "-c", "import time; time.sleep(600)"), os.environ)
    try:
        agent.supervisor._store.create(JobSpec("job", steps=(touch_step(tmp_path / "count"),)))
        folder = agent.folder("job")
        record = f'"pid": {stranger.pid}, "start_token": "another"'
        folder.runner_path.write_text(f'{{"attempt": 1, {record}}}')
        (folder.path / "children.json").write_text(f'[{{{record}, "marker": "job/0/another"}}]')
        await agent.supervisor.start()
        assert state_of(await asyncio.wait_for(agent.finish("job"), 30)) is JobState.SUCCEEDED
        assert is_alive(stranger)
    finally:
        await kill(stranger)


async def test_a_download_killed_in_the_middle_goes_on_in_the_next_runner(agent: Agent, tmp_path: Path) -> None:
    content = os.urandom(3_000_000)
    with StandInHub(tmp_path / "hub", hold_after=1_000_000) as hub:
        file = ArtifactFile(**hub.add(REPOSITORY, "big.gguf", content))
        step = HubDownloadStep(REPOSITORY, hub.commit(REPOSITORY), "main", hub.url, (file,))
        await agent.supervisor.submit(JobSpec("job", steps=(Step("fetch", hub_download=step),)))
        runner = await agent.runner("job")
        part = agent.layout.hf_home / f"hub/models--acme--big-GGUF/blobs/{file.sha256}.incomplete"
        await wait_for_size(part, 1_000_000)
        hub.behaviour.hold_after = 0  # for the next request; the first one is held for ever
        await kill(runner)
        events = await asyncio.wait_for(agent.finish("job"), 60)
        assert state_of(events) is JobState.SUCCEEDED
        assert (Path(result_of(events)["snapshot"]) / "big.gguf").read_bytes() == content
        assert hub.ranges("big.gguf") == [(0, 1_000_000), (1_000_000, 3_000_000)]  # nothing fetched twice
        assert agent.supervisor.get("job").attempts == 2


async def test_cancel_in_mid_download_is_quick_and_keeps_the_part(agent: Agent, tmp_path: Path) -> None:
    with StandInHub(tmp_path / "hub", throttle=400_000) as hub:
        file = ArtifactFile(**hub.add(REPOSITORY, "big.gguf", os.urandom(30_000_000)))
        step = HubDownloadStep(REPOSITORY, hub.commit(REPOSITORY), "main", hub.url, (file,))
        await agent.supervisor.submit(JobSpec("job", steps=(Step("fetch", hub_download=step),)))
        await agent.until("job", lambda event: event.progress is not None and event.progress.done > 0)
        assert (await asyncio.wait_for(agent.supervisor.cancel("job"), 20)).state is JobState.CANCELLED
        part = agent.layout.hf_home / f"hub/models--acme--big-GGUF/blobs/{file.sha256}.incomplete"
        assert part.stat().st_size > 0
        assert not part.with_suffix("").exists()


async def test_what_does_not_fit_is_refused_before_work(agent: Agent, tmp_path: Path) -> None:
    events = await agent.run(touch_step(tmp_path / "never"), disk_needed_bytes=2**60)
    code, message, _ = problem_of(events)
    assert code == "disk-full"
    assert str(2**60) in message
    assert "free" in message
    assert not (tmp_path / "never").exists()


async def test_unknown_job_cannot_be_watched(agent: Agent) -> None:
    with pytest.raises(ProblemError) as caught:
        await agent.finish("nobody")
    assert caught.value.status == "NOT_FOUND"
    with pytest.raises(SpecProblem):
        await agent.finish("../x")
