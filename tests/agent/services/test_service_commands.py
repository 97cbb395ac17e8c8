"""What runs before a service's start and after its end, and ports that services share."""

import asyncio
import http.server
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fleet_agent.layout import Layout
from fleet_agent.problem import ProblemError
from fleet_agent.process import identity_of, is_alive, wait_gone
from fleet_agent.services.journal import ServiceJournal
from fleet_agent.services.model import ServiceSpec, ServiceState, ToolReference, ToolRun
from fleet_agent.services.supervisor import log_path
from support.service_host import PATIENT, pid_of, ready_again, running, until

MakeSpec = Callable[..., ServiceSpec]
KEY = "fake-1-00000000"
# command FILE NAME [CODE]: notes its name in FILE; while FILE.hold is there it does not end.
COMMAND = """#!{python}
import os, sys, time
with open(sys.argv[1], "a") as file:
    file.write(sys.argv[2] + "\\n")
print("out of " + sys.argv[2], flush=True)
print("no such quantum", file=sys.stderr, flush=True)
while os.path.exists(sys.argv[1] + ".hold"):
    time.sleep(0.02)
sys.exit(int(sys.argv[3]) if len(sys.argv) > 3 else 0)
"""


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    return tmp_path / "notes"


@pytest.fixture
def command(layout: Layout, notes: Path) -> Callable[..., ToolRun]:
    """command("load", 1) notes "load" and ends with 1."""
    program = layout.engines_dir / KEY / "bin" / "command"
    program.write_text(COMMAND.format(python=sys.executable))
    program.chmod(0o755)

    def make(name: str, code: int = 0, limit_seconds: float = 0.0) -> ToolRun:
        return ToolRun(ToolReference("bin/command", KEY), (str(notes), name, str(code)), limit_seconds)

    return make


def noted(notes: Path) -> list[str]:
    return notes.read_text().split() if notes.exists() else []


async def when_noted(notes: Path, name: str, times: int = 1) -> None:
    async def look() -> None:
        while noted(notes).count(name) < times:  # noqa: ASYNC110  (a file's content)
            await asyncio.sleep(0.01)

    await asyncio.wait_for(look(), PATIENT)


async def test_before_and_after_in_order_with_both_streams_in_the_log(
    layout: Layout, make_spec: MakeSpec, command: Callable[..., ToolRun], notes: Path
) -> None:
    async with running(layout) as supervisor:
        await supervisor.apply(
            make_spec(before_start=(command("up"), command("load")), after_stop=(command("unload", 1), command("last")))
        )
        await until(supervisor, ServiceState.READY)
        assert noted(notes) == ["unload", "last", "up", "load"]  # what a former start may have left goes first
        await supervisor.stop("tiny")
        assert noted(notes)[4:] == ["unload", "last"]
        log = log_path(layout, "tiny").read_text()
        assert "out of load" in log and "no such quantum" in log and "run: " in log
        await supervisor.stop("tiny")
        assert len(noted(notes)) == 6


async def test_a_crash_brings_back_the_whole_sequence(
    layout: Layout, make_spec: MakeSpec, command: Callable[..., ToolRun], notes: Path
) -> None:
    async with running(layout) as supervisor:
        await supervisor.apply(make_spec(before_start=(command("load"),), after_stop=(command("unload"),)))
        first = await until(supervisor, ServiceState.READY)
        os.kill(pid_of(first), signal.SIGKILL)
        await until(supervisor, ready_again(first))
        assert noted(notes) == ["unload", "load", "unload", "load"]


async def test_a_failing_command_fails_the_start_with_its_last_words(
    layout: Layout, make_spec: MakeSpec, command: Callable[..., ToolRun], notes: Path
) -> None:
    async with running(layout) as supervisor:
        await supervisor.apply(
            make_spec(before_start=(command("up"), command("load", 7)), after_stop=(command("off"),))
        )
        failed = await until(supervisor, ServiceState.FAILED)
        assert failed.problem is not None and failed.problem.code == "command-failed"
        assert "failed with exit code 7" in failed.problem.message and "no such quantum" in failed.problem.tail
        assert failed.process is None and noted(notes).count("load") == 3
        await when_noted(notes, "off", 4)  # and what the last start did is taken back


async def test_a_command_over_its_limit_is_ended(
    layout: Layout, make_spec: MakeSpec, command: Callable[..., ToolRun], notes: Path
) -> None:
    Path(f"{notes}.hold").touch()
    async with running(layout) as supervisor:
        await supervisor.apply(make_spec(before_start=(command("load", limit_seconds=0.5),)))
        failed = await until(supervisor, ServiceState.BACKING_OFF)
        assert failed.problem is not None and "did not end within 0.5 s" in failed.problem.message


async def test_stop_while_a_command_runs_ends_it_and_starts_nothing(
    layout: Layout, make_spec: MakeSpec, command: Callable[..., ToolRun], notes: Path, tmp_path: Path
) -> None:
    hold = Path(f"{notes}.hold")
    async with running(layout) as supervisor:
        hold.touch()
        await supervisor.apply(make_spec("--count-in", str(tmp_path / "starts"), before_start=(command("load"),)))
        await when_noted(notes, "load")
        (record,), _ = ServiceJournal(layout.services_dir).load()
        assert record.command is not None and is_alive(record.command)
        assert supervisor.list()[0].state is ServiceState.STARTING
        stopped = await supervisor.stop("tiny")
        assert stopped.state is ServiceState.STOPPED
        assert identity_of(record.command.pid) is None and not (tmp_path / "starts").exists()


async def test_an_agent_that_ends_in_the_middle_asks_the_command_to_end(
    layout: Layout, make_spec: MakeSpec, command: Callable[..., ToolRun], notes: Path
) -> None:
    Path(f"{notes}.hold").touch()
    async with running(layout) as supervisor:
        await supervisor.apply(make_spec(before_start=(command("load"),)))
        await when_noted(notes, "load")
        (record,), _ = ServiceJournal(layout.services_dir).load()
    assert record.command is not None and await wait_gone(record.command, PATIENT)


async def test_an_agent_that_died_in_the_middle_leaves_no_stray_and_the_next_begins_anew(
    layout: Layout, make_spec: MakeSpec, command: Callable[..., ToolRun], notes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hold = Path(f"{notes}.hold")
    hold.touch()
    async with running(layout) as supervisor:
        await supervisor.apply(make_spec(before_start=(command("load"),)))
        await when_noted(notes, "load")
        (record,), _ = ServiceJournal(layout.services_dir).load()
        # As after `kill -9`: nobody signals the command any more.
        monkeypatch.setattr("fleet_agent.services.commands.send_signal", lambda *_: False)
    monkeypatch.undo()
    assert record.command is not None and is_alive(record.command)
    async with running(layout) as supervisor:
        await when_noted(notes, "load", 2)
        assert not is_alive(record.command)
        hold.unlink()
        await until(supervisor, ServiceState.READY)
        assert noted(notes) == ["load", "load"]


class Greeting(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200 if self.path in ("/greeting", "/health") else 404)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def shared_port() -> Iterator[int]:
    """A server that is nobody's of ours and greets."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Greeting)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_address[1]
    server.shutdown()
    server.server_close()


async def test_services_share_the_port_of_a_server_that_greets(
    layout: Layout, make_spec: MakeSpec, shared_port: int
) -> None:
    async with running(layout) as supervisor:
        for name in ("tiny", "other"):
            # Itself it listens nowhere, like a log that is followed.
            await supervisor.apply(make_spec("--silent", name=name, port=shared_port, shared_port_path="/greeting"))
            await until(supervisor, ServiceState.READY, name)
        with pytest.raises(ProblemError, match="belongs to the service"):
            await supervisor.apply(make_spec(name="third", port=shared_port))


async def test_a_port_whose_holder_does_not_greet_is_refused(
    layout: Layout, make_spec: MakeSpec, shared_port: int
) -> None:
    async with running(layout) as supervisor:
        with pytest.raises(ProblemError) as refusal:
            await supervisor.apply(make_spec("--silent", port=shared_port, shared_port_path="/another-greeting"))
        assert refusal.value.code == "port-taken"
