"""The supervisor with a real process under it: applied, crashed, adopted, replaced, stopped, refused."""

import asyncio
import dataclasses
import errno
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from fleet_agent.configuration import AgentConfiguration
from fleet_agent.layout import Layout
from fleet_agent.problem import ProblemError
from fleet_agent.process import ProcessIdentity, forget, identity_of, is_alive, spawn, wait_gone
from fleet_agent.services import launch, managed
from fleet_agent.services import supervisor as supervisor_module
from fleet_agent.services.journal import ServiceJournal
from fleet_agent.services.logs import LogLimits
from fleet_agent.services.model import (
    DesiredState,
    ReadinessProbe,
    ServiceSpec,
    ServiceState,
    ToolReference,
)
from fleet_agent.services.supervisor import ServiceSupervisor, log_path
from support.service_host import PATIENT, QUICK, NoDevices, pid_of, ready_again, running, until

MakeSpec = Callable[..., ServiceSpec]


async def test_apply_starts_it_and_says_what_runs(layout: Layout, make_spec: MakeSpec) -> None:
    async with running(layout) as supervisor:
        spec = make_spec("--say", "hello")
        first = await supervisor.apply(spec)
        assert first.state is ServiceState.STARTING
        status = await until(supervisor, ServiceState.READY)
        assert status.argv == (str(layout.engines_dir / "fake-1-00000000/bin/server"), *spec.arguments)
        assert Path(f"/proc/{pid_of(status)}/cmdline").read_bytes().split(b"\0")[2:-1] == [
            a.encode() for a in spec.arguments
        ]
        assert status.ready_unix_ms is not None and status.started_unix_ms is not None
        assert status.resident_bytes is not None and status.resident_bytes > 1 << 20
        assert status.problem is None and status.restarts == 0
        assert [one.spec.name for one in supervisor.list()] == ["tiny"]
        assert supervisor.active_identities() == (status.process,)


async def test_same_digest_changes_nothing_and_another_replaces(
    layout: Layout, make_spec: MakeSpec, tmp_path: Path
) -> None:
    starts = tmp_path / "starts"
    async with running(layout) as supervisor:
        spec = make_spec("--count-in", str(starts))
        await supervisor.apply(spec)
        first = await until(supervisor, ServiceState.READY)
        again = await supervisor.apply(dataclasses.replace(spec))
        assert (again.process, again.state) == (first.process, ServiceState.READY)
        assert starts.read_text().splitlines() == [str(pid_of(first))]

        await supervisor.apply(make_spec("--count-in", str(starts), "--say", "new", port=spec.port))
        second = await until(supervisor, ready_again(first))
        assert identity_of(pid_of(first)) is None
        assert starts.read_text().splitlines() == [str(pid_of(first)), str(pid_of(second))]


async def test_killed_server_comes_back_and_tells_why(layout: Layout, make_spec: MakeSpec) -> None:
    async with running(layout) as supervisor:
        await supervisor.apply(make_spec())
        first = await until(supervisor, ServiceState.READY)
        os.kill(pid_of(first), signal.SIGKILL)
        backing_off = await until(supervisor, ServiceState.BACKING_OFF)
        assert backing_off.problem is not None and "SIGKILL" in backing_off.problem.message
        assert backing_off.next_start_unix_ms is not None and backing_off.last_exit_code == -9
        second = await until(supervisor, ready_again(first))
        assert second.restarts == 1 and second.problem is None


async def test_a_server_that_exits_at_once_backs_off_then_fails_with_its_last_words(
    layout: Layout, make_spec: MakeSpec, tmp_path: Path
) -> None:
    starts = tmp_path / "starts"
    async with running(layout) as supervisor:
        await supervisor.apply(make_spec("--count-in", str(starts), "--say", "no such quantum", "--exit", "7"))
        failed = await until(supervisor, ServiceState.FAILED)
        assert failed.problem is not None and failed.problem.code == "exited"
        assert failed.problem.message == "it ended with exit code 7" and failed.problem.tail == ("no such quantum",)
        assert len(starts.read_text().splitlines()) == QUICK.quick_exit_limit
        assert failed.process is None and failed.restarts == QUICK.quick_exit_limit - 1


async def test_a_permanent_cause_is_not_tried_again(layout: Layout, make_spec: MakeSpec, tmp_path: Path) -> None:
    starts = tmp_path / "starts"
    words = "llama_model_load: error loading model: unknown model architecture: 'qwexx'"
    async with running(layout) as supervisor:
        await supervisor.apply(make_spec("--count-in", str(starts), "--say", words, "--exit", "1"))
        failed = await until(supervisor, ServiceState.FAILED)
        assert failed.problem is not None and failed.problem.code == "unknown-architecture"
        assert "qwexx" in failed.problem.message and failed.problem.remedy
        assert len(starts.read_text().splitlines()) == 1


@pytest.mark.parametrize("more", [(), ("--loading-until", "/nowhere/never")], ids=["200", "503"])
async def test_a_front_that_answers_although_its_model_failed_is_not_ready(
    layout: Layout, make_spec: MakeSpec, more: tuple[str, ...]
) -> None:
    async with running(layout) as supervisor:
        await supervisor.apply(make_spec("--say", "ValueError: Model type qwexx not supported.", *more))
        failed = await until(supervisor, ServiceState.FAILED)
        assert failed.problem is not None and failed.problem.code == "unknown-architecture"


async def test_a_failed_service_starts_again_when_applied_again(
    layout: Layout, make_spec: MakeSpec, tmp_path: Path
) -> None:
    starts = tmp_path / "starts"
    async with running(layout) as supervisor:
        spec = make_spec("--count-in", str(starts), "--exit", "1")
        await supervisor.apply(spec)
        await until(supervisor, ServiceState.FAILED)
        status = await supervisor.apply(spec)
        assert status.state is ServiceState.STARTING
        await until(supervisor, ServiceState.FAILED)
        assert len(starts.read_text().splitlines()) == 2 * QUICK.quick_exit_limit


async def test_dropped_supervisor_leaves_it_running_and_the_next_adopts_it(layout: Layout, make_spec: MakeSpec) -> None:
    async with running(layout) as supervisor:
        await supervisor.apply(make_spec())
        first = await until(supervisor, ServiceState.READY)
    async with running(layout) as supervisor:
        status = supervisor.list()[0]
        assert status.process == first.process and status.state is ServiceState.READY
        assert status.started_unix_ms == first.started_unix_ms
        os.kill(pid_of(first), signal.SIGKILL)
        second = await until(supervisor, ready_again(first))
        assert second.restarts == 1


async def test_crash_between_spawn_and_record_neither_doubles_nor_loses(
    layout: Layout, make_spec: MakeSpec, tmp_path: Path
) -> None:
    starts = tmp_path / "starts"
    async with running(layout) as supervisor:
        await supervisor.apply(make_spec("--count-in", str(starts)))
        first = await until(supervisor, ServiceState.READY)
    journal = ServiceJournal(layout.services_dir)
    (record,), _ = journal.load()
    intent = dataclasses.replace(record, process=None, condition=dataclasses.replace(record.condition, started_at=None))
    journal.write(
        dataclasses.replace(intent, condition=dataclasses.replace(intent.condition, state=ServiceState.STARTING))
    )
    async with running(layout) as supervisor:
        status = await until(supervisor, ServiceState.READY)
        assert status.process == first.process
        assert starts.read_text().splitlines() == [str(pid_of(first))]
        assert journal.load()[0][0].process == first.process


async def test_crash_between_intent_and_spawn_starts_it(
    layout: Layout, make_spec: MakeSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cut(*_: object, **__: object) -> ProcessIdentity:
        raise asyncio.CancelledError

    async with running(layout) as supervisor:
        with monkeypatch.context() as patch:
            patch.setattr(launch, "spawn", cut)
            await supervisor.apply(make_spec())
            await asyncio.wait_for(_written_token(layout), PATIENT)
    async with running(layout) as supervisor:
        await until(supervisor, ServiceState.READY)


async def _written_token(layout: Layout) -> None:
    while not ServiceJournal(layout.services_dir).load()[0][0].token:  # noqa: ASYNC110  (a file's content)
        await asyncio.sleep(0.01)


async def test_reboot_everything_is_gone_and_comes_back(layout: Layout, make_spec: MakeSpec, tmp_path: Path) -> None:
    async with running(layout) as supervisor:
        await supervisor.apply(make_spec())
        first = await until(supervisor, ServiceState.READY)
    os.kill(pid_of(first), signal.SIGKILL)
    assert first.process is not None and await wait_gone(first.process, PATIENT)
    forget(first.process)  # as a new agent: it was never its child
    async with running(layout) as supervisor:
        assert supervisor.list()[0].state is ServiceState.STARTING, "at no moment READY without a server"
        second = await until(supervisor, ready_again(first))
        assert second.restarts == 1


async def test_stopped_service_stays_stopped_over_an_agent_restart(layout: Layout, make_spec: MakeSpec) -> None:
    async with running(layout) as supervisor:
        await supervisor.apply(make_spec())
        first = await until(supervisor, ServiceState.READY)
        stopped = await supervisor.stop("tiny")
        assert (stopped.state, stopped.desired, stopped.process) == (ServiceState.STOPPED, DesiredState.STOPPED, None)
        assert identity_of(pid_of(first)) is None
    async with running(layout) as supervisor:
        assert supervisor.list()[0].state is ServiceState.STOPPED


async def test_a_stop_that_a_crash_interrupted_goes_on(layout: Layout, make_spec: MakeSpec) -> None:
    async with running(layout) as supervisor:
        await supervisor.apply(make_spec())
        first = await until(supervisor, ServiceState.READY)
    journal = ServiceJournal(layout.services_dir)
    (record,), _ = journal.load()
    journal.write(dataclasses.replace(record, desired=DesiredState.STOPPED))
    async with running(layout) as supervisor:
        await until(supervisor, ServiceState.STOPPED)
        assert identity_of(pid_of(first)) is None


async def test_identity_is_on_disk_before_the_server_is_ready(
    layout: Layout, make_spec: MakeSpec, tmp_path: Path
) -> None:
    async with running(layout) as supervisor:
        await supervisor.apply(make_spec("--loading-until", str(tmp_path / "never")))
        starting = await until(supervisor, lambda status: status.process is not None)
        (record,), _ = ServiceJournal(layout.services_dir).load()
        assert record.process == starting.process and record.token
        environment = Path(f"/proc/{pid_of(starting)}/environ").read_bytes().split(b"\0")
        assert f"FLEET_SERVICE_TOKEN={record.token}".encode() in environment


async def test_a_stop_is_on_disk_before_the_first_signal(layout: Layout, make_spec: MakeSpec, tmp_path: Path) -> None:
    async with running(layout) as supervisor:
        await supervisor.apply(make_spec("--stubborn-child", str(tmp_path / "child")))
        first = await until(supervisor, ServiceState.READY)
        stopping = asyncio.ensure_future(supervisor.stop("tiny", grace_seconds=0.5))
        assert first.process is not None and await wait_gone(first.process, PATIENT)
        assert not stopping.done()
        (record,), _ = ServiceJournal(layout.services_dir).load()
        assert record.desired is DesiredState.STOPPED
        await stopping


async def test_recycled_pid_is_never_signalled(layout: Layout, make_spec: MakeSpec) -> None:
    stranger = spawn([sys.executable, "-c", "import time; time.sleep(600)"], dict(os.environ))
    try:
        async with running(layout) as supervisor:
            await supervisor.apply(make_spec())
            await until(supervisor, ServiceState.READY)
            await supervisor.stop("tiny")
        journal = ServiceJournal(layout.services_dir)
        (record,), _ = journal.load()
        boot_id = stranger.start_token.rpartition(":")[0]
        recycled = ProcessIdentity(stranger.pid, f"{boot_id}:1")
        condition = dataclasses.replace(record.condition, state=ServiceState.READY)
        for desired in (DesiredState.STOPPED, DesiredState.RUNNING):
            journal.write(dataclasses.replace(record, desired=desired, process=recycled, condition=condition))
            async with running(layout) as supervisor:
                goal = ServiceState.STOPPED if desired is DesiredState.STOPPED else ServiceState.READY
                status = await until(supervisor, lambda s: s.state is goal and s.process != recycled)  # noqa: B023
                assert status.process is None or status.process.pid != stranger.pid
                await supervisor.stop("tiny", grace_seconds=5)
            assert identity_of(stranger.pid) == stranger
    finally:
        os.kill(stranger.pid, signal.SIGKILL)


async def test_stop_ends_grandchildren_that_ignore_sigterm(layout: Layout, make_spec: MakeSpec, tmp_path: Path) -> None:
    child_pid_file = tmp_path / "child"
    async with running(layout) as supervisor:
        await supervisor.apply(make_spec("--stubborn-child", str(child_pid_file)))
        await until(supervisor, ServiceState.READY)
        child_pid = int(child_pid_file.read_text())
        assert identity_of(child_pid) is not None
        await supervisor.stop("tiny", grace_seconds=0.3)
        assert identity_of(child_pid) is None


async def test_workers_of_a_killed_server_go_before_the_next_start(
    layout: Layout, make_spec: MakeSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(managed, "DEFAULT_GRACE_SECONDS", 0.3)
    child_pid_file = tmp_path / "child"
    async with running(layout) as supervisor:
        await supervisor.apply(make_spec("--stubborn-child", str(child_pid_file)))
        first = await until(supervisor, ServiceState.READY)
        child_pid = int(child_pid_file.read_text())
        os.kill(pid_of(first), signal.SIGKILL)
        await until(supervisor, ready_again(first))
        assert identity_of(child_pid) is None


async def test_port_of_a_stranger_is_refused_with_his_name(layout: Layout, make_spec: MakeSpec) -> None:
    with socket.socket() as stranger:
        stranger.bind(("127.0.0.1", 0))
        stranger.listen()
        async with running(layout) as supervisor:
            with pytest.raises(ProblemError) as refusal:
                await supervisor.apply(make_spec(port=stranger.getsockname()[1]))
            assert refusal.value.code == "port-taken"
            assert f"pid {os.getpid()}" in refusal.value.message and "--port" in refusal.value.remedy
            assert supervisor.list() == ()


async def test_port_of_another_service_is_refused_and_a_refusal_leaves_the_former_running(
    layout: Layout, make_spec: MakeSpec
) -> None:
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        other_port = reserved.getsockname()[1]
    async with running(layout) as supervisor:
        await supervisor.apply(make_spec(name="first"))
        await supervisor.apply(make_spec(name="second", port=other_port))
        first = await until(supervisor, ServiceState.READY, "first")
        second = await until(supervisor, ServiceState.READY, "second")
        with pytest.raises(ProblemError, match="'first'"):
            await supervisor.apply(make_spec("--say", "moved", name="second", port=first.spec.port))
        assert supervisor.list()[1].process == second.process
        os.kill(pid_of(second), signal.SIGKILL)  # and it is still looked after
        await until(supervisor, ready_again(second), "second")


async def test_a_journal_that_cannot_be_written_leaves_the_former_running(
    layout: Layout, make_spec: MakeSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(layout) as supervisor:
        await supervisor.apply(make_spec())
        former = await until(supervisor, ServiceState.READY)
        with monkeypatch.context() as full_disk:

            def refuse(*_: object) -> None:
                raise OSError(errno.ENOSPC, "No space left on device")

            full_disk.setattr(ServiceJournal, "write", refuse)
            with pytest.raises(ProblemError, match="No space left") as refusal:
                await supervisor.apply(make_spec("--say", "moved"))
        assert refusal.value.code == "journal-not-writable"
        assert former.process is not None
        assert supervisor.list()[0].process == former.process
        assert is_alive(former.process)


async def test_more_services_than_the_host_may_have_are_refused(layout: Layout, make_spec: MakeSpec) -> None:
    supervisor = ServiceSupervisor(layout, AgentConfiguration(limits={"max_services": 1}), devices=NoDevices())
    await supervisor.start()
    await supervisor.apply(make_spec(name="first"))
    with pytest.raises(ProblemError, match="max_services of this host is 1, and first already") as refusal:
        await supervisor.apply(make_spec(name="second"))
    assert refusal.value.code == "too-many-services"
    assert (await supervisor.apply(make_spec("--say", "moved", name="first"))).spec.name == "first"
    await supervisor.stop("first")
    await supervisor.apply(make_spec(name="second"))
    await supervisor.close()


async def test_busy_device_is_refused_with_who_computes_there(layout: Layout, make_spec: MakeSpec) -> None:
    async with running(layout, NoDevices(["alice, python, 18.2 GB since 14:02"])) as supervisor:
        with pytest.raises(ProblemError) as refusal:
            await supervisor.apply(make_spec(gpu_indices=(0,)))
        assert refusal.value.code == "device-busy"
        assert refusal.value.message == "busy: alice, python, 18.2 GB since 14:02"


async def test_a_device_that_becomes_busy_is_waited_for_not_given_up(layout: Layout, make_spec: MakeSpec) -> None:
    devices = NoDevices()
    async with running(layout, devices) as supervisor:
        await supervisor.apply(make_spec(gpu_indices=(0,)))
        first = await until(supervisor, ServiceState.READY)
        devices.said = ["bob, train.py"]
        os.kill(pid_of(first), signal.SIGKILL)
        refusals = 0
        async for status in supervisor.watch("tiny"):
            refusals += status.problem is not None and status.problem.code == "device-busy"
            if refusals > QUICK.quick_exit_limit + 1:
                break
        assert supervisor.list()[0].state is ServiceState.BACKING_OFF
        devices.said = []
        await until(supervisor, ready_again(first))


async def test_memory_that_was_promised_but_is_gone_is_refused(layout: Layout, make_spec: MakeSpec) -> None:
    async with running(layout, NoDevices(free=4_000_000_000)) as supervisor:
        with pytest.raises(ProblemError, match=r"promised 20\.0 GB, but GPU 0 has only 4\.0 GB"):
            await supervisor.apply(make_spec(gpu_indices=(0,), promised_memory_bytes=20_000_000_000))
        await supervisor.apply(make_spec(gpu_indices=(0,), promised_memory_bytes=3_000_000_000))
        await until(supervisor, ServiceState.READY)


async def test_memory_promised_to_a_service_that_has_not_taken_it_yet_is_not_free(
    layout: Layout, make_spec: MakeSpec, tmp_path: Path
) -> None:
    loaded = tmp_path / "loaded"
    eight: dict[str, object] = {"gpu_indices": (0,), "promised_memory_bytes": 8_000_000_000}
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        other_port = reserved.getsockname()[1]
    async with running(layout, NoDevices(free=10_000_000_000)) as supervisor:
        await supervisor.apply(make_spec("--loading-until", str(loaded), name="first", **eight))
        second = make_spec(name="second", port=other_port, **eight)
        with pytest.raises(ProblemError, match=r"promised 8\.0 GB, but GPU 0 has only 2\.0 GB"):
            await supervisor.apply(second)
        loaded.touch()
        await until(supervisor, ServiceState.READY, "first")
        await supervisor.apply(second)  # the first has taken its share, and the device says that 10 GB are left


async def test_a_caller_that_goes_away_leaves_no_half_replacement(
    layout: Layout, make_spec: MakeSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor_module, "DEFAULT_GRACE_SECONDS", 0.5)
    child_pid_file = tmp_path / "child"
    async with running(layout) as supervisor:
        await supervisor.apply(make_spec("--stubborn-child", str(child_pid_file)))
        first = await until(supervisor, ServiceState.READY)
        caller = asyncio.ensure_future(supervisor.apply(make_spec("--say", "new", port=first.spec.port)))
        assert first.process is not None and await wait_gone(first.process, PATIENT)
        assert not caller.done()  # the child that ignores SIGTERM still holds it up
        caller.cancel()
        second = await until(supervisor, ready_again(first))
        assert second.spec.arguments[-1] == "new"


async def test_tool_that_is_not_installed_is_refused_at_once(layout: Layout, make_spec: MakeSpec) -> None:
    async with running(layout) as supervisor:
        with pytest.raises(ProblemError) as refusal:
            await supervisor.apply(make_spec(tool=ToolReference("bin/server", "nowhere-1-00000000")))
        assert refusal.value.code == "tool-missing"


async def test_loading_counts_as_starting_and_unhealthy_recovers(
    layout: Layout, make_spec: MakeSpec, tmp_path: Path
) -> None:
    loaded, hang = tmp_path / "loaded", tmp_path / "hang"
    async with running(layout) as supervisor:
        await supervisor.apply(make_spec("--loading-until", str(loaded), "--hang-when", str(hang)))
        loading = await until(supervisor, lambda s: s.problem is not None and "503" in s.problem.message)
        assert loading.state is ServiceState.STARTING
        loaded.touch()
        ready = await until(supervisor, ServiceState.READY)
        hang.touch()
        unhealthy = await until(supervisor, ServiceState.UNHEALTHY)
        assert unhealthy.process == ready.process
        hang.unlink()
        healthy = await until(supervisor, ServiceState.READY)
        assert healthy.process == ready.process and healthy.restarts == 0


async def test_a_start_without_progress_is_ended_and_said(layout: Layout, make_spec: MakeSpec) -> None:
    async with running(layout) as supervisor:
        spec = make_spec("--silent", readiness=ReadinessProbe("/health", 0.5, 0.2))
        await supervisor.apply(spec)
        failed = await until(supervisor, ServiceState.FAILED)
        assert failed.problem is not None and failed.problem.code == "stalled"
        assert "no progress for 0.5 s" in failed.problem.message


async def test_foreign_answer_on_the_port_is_not_taken_for_ready(layout: Layout, make_spec: MakeSpec) -> None:
    """Between the check and the server's bind a stranger may take the port: his 200 is not ours."""
    async with running(layout) as supervisor:
        spec = make_spec("--silent")
        await supervisor.apply(spec)
        code = (
            "import http.server as h\nclass H(h.BaseHTTPRequestHandler):\n"
            " def do_GET(self): self.send_response(200); self.end_headers()\n"
            f"h.HTTPServer(('127.0.0.1', {spec.port}), H).serve_forever()"
        )
        stranger = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)  # noqa: ASYNC220
        try:
            status = await until(supervisor, lambda s: s.problem is not None and "another process" in s.problem.message)
            assert status.state is ServiceState.STARTING
        finally:
            stranger.kill()
            stranger.wait()


async def test_remove_forgets_service_log_and_journal_and_ends_the_watch(layout: Layout, make_spec: MakeSpec) -> None:
    async with running(layout) as supervisor:
        await supervisor.apply(make_spec())
        await until(supervisor, ServiceState.READY)

        async def states() -> list[ServiceState]:
            return [status.state async for status in supervisor.watch("tiny")]

        watching = asyncio.ensure_future(states())
        await asyncio.sleep(0)
        await supervisor.stop("tiny", remove=True)
        assert (await asyncio.wait_for(watching, PATIENT))[-1] is ServiceState.STOPPED
        assert supervisor.list() == ()
        assert not log_path(layout, "tiny").exists() and not list(layout.services_dir.glob("*.json"))
        with pytest.raises(ProblemError, match="no service 'tiny'"):
            await supervisor.stop("tiny")


async def test_damaged_journal_is_reported_kept_aside_and_hurts_no_other(layout: Layout, make_spec: MakeSpec) -> None:
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        other_port = reserved.getsockname()[1]
    async with running(layout) as supervisor:
        await supervisor.apply(make_spec(name="good", port=other_port))
        good = await until(supervisor, ServiceState.READY, "good")
        await supervisor.apply(make_spec())
        torn = await until(supervisor, ServiceState.READY)
    path = layout.services_dir / "tiny.json"
    path.write_bytes(path.read_bytes()[:200])
    async with running(layout) as supervisor:
        listed = {status.spec.name: status for status in supervisor.list()}
        assert listed["good"].process == good.process
        assert listed["tiny"].problem is not None and listed["tiny"].problem.code == "journal-damaged"
        assert listed["tiny"].process == torn.process  # found by what it carries in its environment
        assert list(layout.services_dir.glob("tiny.json.corrupt-*"))
    async with running(layout) as supervisor:  # nor does another start of the agent forget a server that runs
        assert {status.spec.name: status.process for status in supervisor.list()}["tiny"] == torn.process
        await supervisor.apply(make_spec(port=torn.spec.port))
        again = await until(supervisor, ready_again(torn))
        assert identity_of(pid_of(torn)) is None and again.problem is None
        assert not list(layout.services_dir.glob("tiny.json.corrupt-*"))


async def test_log_is_rotated_while_the_server_writes_and_read_as_one(layout: Layout, make_spec: MakeSpec) -> None:
    async with running(layout, log_limits=LogLimits(largest_bytes=50_000, kept_files=3)) as supervisor:
        await supervisor.apply(make_spec("--flood-bytes", "60000"))
        await until(supervisor, ServiceState.READY)
        await asyncio.wait_for(_rotated(layout), PATIENT)
        text = b"".join([chunk async for chunk in supervisor.read_log("tiny")]).decode()
        numbers = [int(line.split()[1]) for line in text.splitlines() if line.startswith("line ")]
        assert numbers == list(range(len(numbers))) and len(numbers) == 60000 // len("line 00000000\n") + 1
        last = b"".join([chunk async for chunk in supervisor.read_log("tiny", 2)]).decode().splitlines()
        assert last == text.splitlines()[-2:]


async def _rotated(layout: Layout) -> None:
    while not log_path(layout, "tiny").with_name("service-tiny.log.1").exists():  # noqa: ASYNC110  (a file)
        await asyncio.sleep(0.01)


async def test_secrets_of_the_environment_are_in_no_log(layout: Layout, make_spec: MakeSpec) -> None:
    async with running(layout) as supervisor:
        await supervisor.apply(make_spec(environment=(("LLAMA_WORD", "sesame"),)))
        status = await until(supervisor, ServiceState.READY)
        assert b"sesame" in Path(f"/proc/{pid_of(status)}/environ").read_bytes()
        assert "sesame" not in log_path(layout, "tiny").read_text()
        assert (layout.services_dir / "tiny.json").stat().st_mode & 0o777 == 0o600


async def test_an_engine_finds_its_own_programs_by_bare_name(layout: Layout, make_spec: MakeSpec) -> None:
    async with running(layout) as supervisor:
        await supervisor.apply(make_spec())
        ready = await until(supervisor, ServiceState.READY)
        environment = Path(f"/proc/{pid_of(ready)}/environ").read_bytes().split(b"\0")
        (path,) = (entry for entry in environment if entry.startswith(b"PATH="))
        assert path.removeprefix(b"PATH=").split(b":")[0].decode() == str(Path(ready.argv[0]).parent)
