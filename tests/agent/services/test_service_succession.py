"""A replace that keeps the old server, with real processes: it never ends before the new one has answered."""

import dataclasses
import errno
import os
import signal
import socket
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from fleet_agent.layout import Layout
from fleet_agent.problem import ProblemError
from fleet_agent.process import identity_of, is_alive, tree_members
from fleet_agent.services import managed
from fleet_agent.services.journal import Remains, ServiceJournal, ServiceRecord, Successor, decode, encode
from fleet_agent.services.launch import NAME_VARIABLE, NOBODY, name_marker
from fleet_agent.services.model import (
    DesiredState,
    Problem,
    ServiceSpec,
    ServiceState,
    ServiceStatus,
    SuccessorStatus,
    ToolReference,
    ToolRun,
)
from fleet_agent.services.succession import free_port, on_port, reason_to_end_first
from fleet_agent.services.supervisor import ServiceSupervisor
from fleet_agent.services.transitions import Condition
from support.service_host import NoDevices, pid_of, ready_again, running, until

MakeSpec = Callable[..., ServiceSpec]
PROMISED = {"promised_memory_bytes": 1_000_000}


@pytest.fixture
def other_port() -> int:
    return free_port("127.0.0.1", frozenset())


def answers(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as reply:
            return bool(reply.status == 200)
    except OSError:
        return False


def servers(layout: Layout) -> Sequence[int]:
    """The pids of every server under the service's name, whoever started it."""
    marker = f"{NAME_VARIABLE}={name_marker(layout.services_dir, 'tiny')}"
    return [one.pid for one in tree_members(NOBODY, marker)]


def successor_is(state: ServiceState) -> Callable[[ServiceStatus], bool]:
    return lambda status: status.successor is not None and status.successor.state is state


def loading(status: ServiceStatus) -> bool:
    """The successor runs, and is not ready yet."""
    problem = status.successor.problem if status.successor is not None else None
    return problem is not None and "loading" in problem.message


async def first_ready(supervisor: ServiceSupervisor, spec: ServiceSpec) -> ServiceStatus:
    await supervisor.apply(spec)
    return await until(supervisor, ServiceState.READY)


async def test_a_successor_on_another_port_is_started_beside_and_takes_the_name(
    layout: Layout, make_spec: MakeSpec, other_port: int, tmp_path: Path
) -> None:
    loaded = tmp_path / "loaded"
    async with running(layout) as supervisor:
        former = await first_ready(supervisor, make_spec(**PROMISED))
        spec = make_spec("--loading-until", str(loaded), "--say", "I am new", port=other_port, **PROMISED)
        applied = await supervisor.apply(spec, keep_former=True)
        assert (applied.process, applied.state) == (former.process, ServiceState.READY)
        assert applied.successor is not None and applied.successor.spec == spec
        seen = await until(supervisor, loading)
        assert seen.successor is not None
        assert (seen.successor.state, seen.successor.port) == (ServiceState.STARTING, other_port)
        assert answers(former.spec.port) and seen.process == former.process
        assert seen.successor.process in supervisor.active_identities()
        assert supervisor.specs() == (former.spec, spec)  # the installs of both are in use
        loaded.touch()
        ready = await until(supervisor, ready_again(former))
        assert ready.process == seen.successor.process and ready.spec == spec and ready.successor is None
        assert answers(other_port)
        await until(supervisor, lambda _: identity_of(pid_of(former)) is None)
        assert servers(layout) == [pid_of(ready)]
        log = b"".join([chunk async for chunk in supervisor.read_log("tiny")]).decode()
        assert log.count("\nI am new\n") == 1 and log.count("start: ") == 2
        assert not list(layout.logs_dir.glob("*~next*"))
        os.kill(pid_of(ready), signal.SIGKILL)  # it is a service like any other from now on
        again = await until(supervisor, ready_again(ready))
        assert again.spec == spec and again.restarts == 1


async def test_on_the_same_port_it_is_proven_elsewhere_first(
    layout: Layout, make_spec: MakeSpec, tmp_path: Path
) -> None:
    loaded, starts = tmp_path / "loaded", tmp_path / "starts"
    async with running(layout) as supervisor:
        former = await first_ready(supervisor, make_spec(**PROMISED))
        spec = make_spec("--loading-until", str(loaded), "--count-in", str(starts), **PROMISED)
        await supervisor.apply(spec, keep_former=True)
        tried = await until(supervisor, loading)
        assert tried.successor is not None and tried.successor.process is not None
        assert tried.successor.port != spec.port and answers(spec.port)
        loaded.touch()
        ready = await until(supervisor, ready_again(former))
        assert ready.spec == spec and ready.argv[1:] == spec.arguments
        assert starts.read_text().splitlines() == [str(tried.successor.process.pid), str(pid_of(ready))]
        assert servers(layout) == [pid_of(ready)] and answers(spec.port)
        assert not list(layout.logs_dir.glob("*~next*"))


@pytest.mark.parametrize("port", ["same", "other"])
async def test_one_that_fails_leaves_the_former_alone_and_says_why(
    layout: Layout, make_spec: MakeSpec, other_port: int, port: str
) -> None:
    async with running(layout) as supervisor:
        former = await first_ready(supervisor, make_spec(**PROMISED))
        new_port = other_port if port == "other" else former.spec.port
        bad = make_spec("--say", "no such quantum", "--exit", "7", port=new_port, **PROMISED)
        await supervisor.apply(bad, keep_former=True)
        failed = await until(supervisor, successor_is(ServiceState.FAILED))
        assert (failed.process, failed.state, failed.spec) == (former.process, ServiceState.READY, former.spec)
        assert failed.successor is not None and failed.successor.problem is not None
        assert "it ended with exit code 7" in failed.successor.problem.message
        assert failed.successor.problem.tail == ("no such quantum",)
        assert failed.restarts == 0 and answers(former.spec.port)
        log = b"".join([chunk async for chunk in supervisor.read_log("tiny")]).decode()
        assert log.index("the log of the last server that was started beside it") < log.index("no such quantum")
    async with running(layout) as supervisor:  # and the next agent neither forgets that nor tries again by itself
        status = supervisor.list()[0]
        assert status.process == former.process and status.successor is not None
        assert status.successor.state is ServiceState.FAILED
        assert servers(layout) == [pid_of(former)]
        kept = await supervisor.apply(former.spec)  # what runs is what is wanted: nothing to tell any more
        assert (kept.process, kept.successor) == (former.process, None)
        log = b"".join([chunk async for chunk in supervisor.read_log("tiny")]).decode()
        assert "no such quantum" in log  # for whoever went back to the old one at once


async def test_one_that_makes_no_progress_is_given_up(layout: Layout, make_spec: MakeSpec) -> None:
    async with running(layout) as supervisor:
        former = await first_ready(supervisor, make_spec(**PROMISED))
        readiness = dataclasses.replace(former.spec.readiness, start_limit_seconds=0.5)
        await supervisor.apply(make_spec("--silent", readiness=readiness, **PROMISED), keep_former=True)
        failed = await until(supervisor, successor_is(ServiceState.FAILED))
        assert failed.successor is not None and failed.successor.problem is not None
        assert failed.successor.problem.code == "stalled"
        assert servers(layout) == [pid_of(former)]


async def test_without_room_the_former_ends_first_and_it_is_said(layout: Layout, make_spec: MakeSpec) -> None:
    devices = NoDevices(free=4_000_000_000)
    three = {"gpu_indices": (0,), "promised_memory_bytes": 3_000_000_000}
    async with running(layout, devices) as supervisor:
        former = await first_ready(supervisor, make_spec(**three))
        devices.free = 1_000_000_000
        spec = make_spec("--say", "new", gpu_indices=(0,), promised_memory_bytes=1_500_000_000)
        devices.free = 1_000_000_000
        with pytest.raises(ProblemError, match="has only"):  # not even alone: nothing is ended for it
            await supervisor.apply(dataclasses.replace(spec, promised_memory_bytes=9_000_000_000), keep_former=True)
        assert former.process is not None and is_alive(former.process)
        unknown = await supervisor.apply(make_spec("--say", "unknown"), keep_former=True)
        assert unknown.ended_first_because == "how much memory it takes is not known"
        ready = await until(supervisor, ready_again(former))
        assert (ready.ended_first_because, ready.successor) == ("", None)


@pytest.mark.parametrize(
    ("free_bytes", "said"), [(2_999_999_999, "needs 0.1 GB more than is free"), (3_100_000_000, "")]
)
async def test_the_former_is_counted(layout: Layout, make_spec: MakeSpec, free_bytes: int, said: str) -> None:
    devices = NoDevices(free=8_000_000_000)
    async with running(layout, devices) as supervisor:
        former = await first_ready(supervisor, make_spec(gpu_indices=(0,), promised_memory_bytes=3_000_000_000))
        devices.free = free_bytes  # what the former holds is gone from it already
        spec = make_spec("--say", "new", gpu_indices=(0,), promised_memory_bytes=3_080_000_000)
        supervisor._devices.used_bytes = lambda pids: 3_000_000_000 if pids else 0  # type: ignore[method-assign]
        if said:
            applied = await supervisor.apply(spec, keep_former=True)
            assert applied.ended_first_because == said
            devices.free = 6_000_000_000
        else:
            applied = await supervisor.apply(spec, keep_former=True)
            assert applied.successor is not None and applied.ended_first_because == ""
        await until(supervisor, ready_again(former))


async def test_what_is_refused_touches_nothing(layout: Layout, make_spec: MakeSpec, other_port: int) -> None:
    async with running(layout) as supervisor:
        former = await first_ready(supervisor, make_spec(**PROMISED))
        with socket.socket() as stranger:
            stranger.bind(("127.0.0.1", 0))
            stranger.listen()
            with pytest.raises(ProblemError, match="is taken by"):
                spec = make_spec(port=stranger.getsockname()[1], **PROMISED)
                await supervisor.apply(spec, keep_former=True)
        with pytest.raises(ProblemError) as refusal:
            tool = ToolReference("bin/server", "nowhere-1-00000000")
            await supervisor.apply(make_spec(tool=tool, port=other_port, **PROMISED), keep_former=True)
        assert refusal.value.code == "tool-missing"
        status = supervisor.list()[0]
        assert (status.process, status.successor) == (former.process, None)
        assert servers(layout) == [pid_of(former)]


async def test_a_full_disk_begins_nothing(layout: Layout, make_spec: MakeSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    async with running(layout) as supervisor:
        former = await first_ready(supervisor, make_spec(**PROMISED))
        with monkeypatch.context() as full_disk:
            full_disk.setattr(ServiceJournal, "write", refuse)
            with pytest.raises(ProblemError, match="No space left"):
                await supervisor.apply(make_spec("--say", "new", **PROMISED), keep_former=True)
        assert supervisor.list()[0].successor is None
        assert servers(layout) == [pid_of(former)]


async def test_a_disk_that_is_full_at_the_hand_over_leaves_the_former(
    layout: Layout, make_spec: MakeSpec, tmp_path: Path, other_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = ServiceJournal.write

    def refuse_the_new(journal: ServiceJournal, record: ServiceRecord) -> None:
        if record.spec.port == other_port:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(journal, record)

    async with running(layout) as supervisor:
        former = await first_ready(supervisor, make_spec(**PROMISED))
        monkeypatch.setattr(ServiceJournal, "write", refuse_the_new)
        await supervisor.apply(make_spec(port=other_port, **PROMISED), keep_former=True)
        await until(supervisor, successor_is(ServiceState.FAILED))
        assert servers(layout) == [pid_of(former)]
        os.kill(pid_of(former), signal.SIGKILL)  # still watched
        await until(supervisor, ready_again(former))


@pytest.mark.parametrize("how", ["stop", "remove", "other", "same", "hold"])
async def test_what_else_is_asked_meanwhile(
    layout: Layout, make_spec: MakeSpec, other_port: int, tmp_path: Path, how: str
) -> None:
    never = tmp_path / "never"
    async with running(layout) as supervisor:
        former = await first_ready(supervisor, make_spec(**PROMISED))
        spec = make_spec("--loading-until", str(never), port=other_port, **PROMISED)
        await supervisor.apply(spec, keep_former=True)
        seen = await until(supervisor, lambda s: s.successor is not None and s.successor.process is not None)
        if how == "same":
            again = await supervisor.apply(spec, keep_former=True)
            assert again.successor is not None and seen.successor is not None
            assert again.successor.process == seen.successor.process
            await supervisor.apply(former.spec, keep_former=True)  # the way back: what runs is wanted again
            assert servers(layout) == [pid_of(former)]
            assert supervisor.list()[0].successor is None
        elif how == "other":
            third = make_spec("--say", "third", **PROMISED)
            await supervisor.apply(third, keep_former=True)
            ready = await until(supervisor, ready_again(former))
            assert ready.spec == third and servers(layout) == [pid_of(ready)]
        elif how == "hold":
            await supervisor.hold({"tiny": Problem("paused", "a bench")})
            assert servers(layout) == []
            await supervisor.hold({})
            ready = await until(supervisor, ready_again(former))
            assert ready.spec == former.spec and servers(layout) == [pid_of(ready)]
        else:
            stopped = await supervisor.stop("tiny", remove=how == "remove")
            assert (stopped.state, stopped.successor) == (ServiceState.STOPPED, None)
            assert servers(layout) == []
            left = list(layout.logs_dir.glob("*tiny*"))
            assert not left if how == "remove" else [path.name for path in left] == ["service-tiny.log"]


async def test_the_former_may_die_meanwhile_and_comes_back(
    layout: Layout, make_spec: MakeSpec, other_port: int, tmp_path: Path
) -> None:
    loaded = tmp_path / "loaded"
    async with running(layout) as supervisor:
        former = await first_ready(supervisor, make_spec(**PROMISED))
        await supervisor.apply(make_spec("--loading-until", str(loaded), port=other_port, **PROMISED), keep_former=True)
        await until(supervisor, lambda s: s.successor is not None and s.successor.process is not None)
        os.kill(pid_of(former), signal.SIGKILL)
        back = await until(supervisor, ready_again(former))
        assert back.spec == former.spec and back.successor is not None
        loaded.touch()
        ready = await until(supervisor, lambda s: s.state is ServiceState.READY and s.spec.port == other_port)
        await until(supervisor, lambda _: servers(layout) == [pid_of(ready)])


async def test_an_agent_that_goes_leaves_both_and_the_next_goes_on(
    layout: Layout, make_spec: MakeSpec, other_port: int, tmp_path: Path
) -> None:
    loaded = tmp_path / "loaded"
    async with running(layout) as supervisor:
        former = await first_ready(supervisor, make_spec(**PROMISED))
        await supervisor.apply(make_spec("--loading-until", str(loaded), port=other_port, **PROMISED), keep_former=True)
        seen = await until(supervisor, lambda s: s.successor is not None and s.successor.process is not None)
    assert len(servers(layout)) == 2
    async with running(layout) as supervisor:
        status = supervisor.list()[0]
        assert status.process == former.process and status.successor is not None and seen.successor is not None
        assert status.successor.process == seen.successor.process
        loaded.touch()
        ready = await until(supervisor, ready_again(former))
        assert ready.process == seen.successor.process
        await until(supervisor, lambda _: servers(layout) == [pid_of(ready)])


async def test_a_stop_that_was_cut_off_ends_both(
    layout: Layout, make_spec: MakeSpec, other_port: int, tmp_path: Path
) -> None:
    async with running(layout) as supervisor:
        await first_ready(supervisor, make_spec(**PROMISED))
        spec = make_spec("--loading-until", str(tmp_path / "never"), port=other_port, **PROMISED)
        await supervisor.apply(spec, keep_former=True)
        await until(supervisor, lambda s: s.successor is not None and s.successor.process is not None)
    journal = ServiceJournal(layout.services_dir)
    (record,), _ = journal.load()
    journal.write(dataclasses.replace(record, desired=DesiredState.STOPPED))
    async with running(layout) as supervisor:
        stopped = await until(supervisor, ServiceState.STOPPED)
        assert stopped.successor is None and servers(layout) == []


async def test_a_former_that_only_waits_for_its_clients_is_not_waited_for(
    layout: Layout, make_spec: MakeSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(managed, "DEFAULT_GRACE_SECONDS", 3600.0)
    async with running(layout) as supervisor:
        former = await first_ready(supervisor, make_spec("--hang-on-term", **PROMISED))
        await supervisor.apply(make_spec("--say", "new", **PROMISED), keep_former=True)
        ready = await until(supervisor, ready_again(former))
        assert servers(layout) == [pid_of(ready)]


async def test_a_former_that_still_works_may_finish(
    layout: Layout, make_spec: MakeSpec, other_port: int, tmp_path: Path
) -> None:
    finished = tmp_path / "finished"
    async with running(layout) as supervisor:
        former = await first_ready(supervisor, make_spec("--finish-on-term", str(finished), **PROMISED))
        await supervisor.apply(make_spec(port=other_port, **PROMISED), keep_former=True)
        await until(supervisor, ready_again(former))
        await until(supervisor, lambda _: identity_of(pid_of(former)) is None)
        assert finished.exists()


# --- what is pure ---


def spec_with(*arguments: str, **fields: object) -> ServiceSpec:
    return ServiceSpec("tiny", ToolReference("x"), port=8080, arguments=arguments, **fields)  # type: ignore[arg-type]


def test_a_server_is_moved_to_another_port_by_its_option_alone() -> None:
    moved = on_port(spec_with("-c", "8192", "--port", "8080", "--host", "127.0.0.1"), 9000)
    assert moved is not None
    assert (moved.port, moved.arguments) == (9000, ("-c", "8192", "--port", "9000", "--host", "127.0.0.1"))
    assert on_port(moved, 8080) == spec_with("-c", "8192", "--port", "8080", "--host", "127.0.0.1")


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("--port",),
        ("--port=8080",),
        ("--port", "8081"),
        ("--port", "8080", "--port", "8080"),
        ("--port", "8080", "--advertise", "http://10.0.0.1:8080/v1"),
        ("--port", "8080", "--metrics-port=8080"),
        ("--port", "8080", "-c", "8080"),
    ],
)
def test_a_command_line_that_may_mean_the_port_elsewhere_is_not_tried(arguments: tuple[str, ...]) -> None:
    assert on_port(spec_with(*arguments), 9000) is None
    former = ServiceRecord(spec_with("--port", "8080"), DesiredState.RUNNING, Condition(ServiceState.READY))
    assert "another port than 8080" in reason_to_end_first(former, spec_with(*arguments))


def test_why_two_cannot_run_beside_each_other() -> None:
    spec = spec_with("--port", "8080")
    former = ServiceRecord(spec, DesiredState.RUNNING, Condition(ServiceState.READY))
    assert reason_to_end_first(former, spec) == ""
    unhealthy = dataclasses.replace(former, condition=Condition(ServiceState.UNHEALTHY))
    assert reason_to_end_first(unhealthy, spec) == "it is unhealthy"
    shared = dataclasses.replace(spec, shared_port_path="/v1/models")
    assert "share" in reason_to_end_first(former, shared)
    assert "share" in reason_to_end_first(dataclasses.replace(former, spec=shared), spec)
    tools = dataclasses.replace(spec, before_start=(ToolRun(ToolReference("lms")),))
    assert "around its start" in reason_to_end_first(former, tools)


def test_the_journal_keeps_what_is_under_way_and_says_nothing_of_what_is_not() -> None:
    spec = spec_with("--port", "8080")
    plain = ServiceRecord(spec, DesiredState.RUNNING, Condition(ServiceState.READY))
    assert not {"successor", "leaving"} & set(encode(plain))
    trial = on_port(spec, 9000)
    assert trial is not None
    server = ServiceRecord(trial, DesiredState.RUNNING, Condition(ServiceState.STARTING), token="abc")
    full = dataclasses.replace(plain, successor=Successor(spec, server), leaving=(Remains("t"),))
    assert decode(encode(full)) == full
    assert SuccessorStatus(spec, ServiceState.STARTING, 9000).process is None
