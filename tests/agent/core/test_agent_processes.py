"""Process identity and the end of whole trees, on real processes."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from fleet_agent.process import (
    ProcessIdentity,
    descendants,
    exit_code,
    forget,
    identity_of,
    is_alive,
    is_child,
    resident_bytes,
    send_signal,
    spawn,
    terminate_tree,
    tree_members,
    wait_gone,
)
from fleet_agent.process_table import parse_linux_stat

ENVIRONMENT = {"PATH": os.environ["PATH"]}

# Each program prints the pids of its tree, one a line, so that a test knows when it stands.
SLEEPER = "import os, signal; print(os.getpid(), flush=True); signal.pause()"
STUBBORN = (
    "import os, signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(os.getpid(), flush=True);"
    "[signal.pause() for _ in iter(int, 1)]"
)
PARENT = f"""
import subprocess, sys, signal, os
sleeper = {SLEEPER!r}
subprocess.Popen([sys.executable, "-c", sleeper])
subprocess.Popen([sys.executable, "-c", sleeper], start_new_session=True)
print(os.getpid(), flush=True)
signal.pause()
"""
PARENT_THAT_LEAVES = f"""
import subprocess, sys
subprocess.Popen([sys.executable, "-c", {SLEEPER!r}])
"""
PARENT_OF_A_DAEMON = f"""
import subprocess, sys
subprocess.Popen([sys.executable, "-c", {SLEEPER!r}], start_new_session=True)
"""


class Tree:
    """A process started by spawn(), with the identities that its programs announced."""

    def __init__(self, program: str, announced: int, environment: dict[str, str] | None = None) -> None:
        reading, writing = os.pipe()
        try:
            self.root = spawn([sys.executable, "-c", program], environment or ENVIRONMENT, stdout=writing)
        finally:
            os.close(writing)
        with os.fdopen(reading) as lines:
            pids = [int(lines.readline()) for _ in range(announced)]
        self.members = [found for pid in pids if (found := identity_of(pid)) is not None]
        assert len(self.members) == announced

    def end(self) -> None:
        for one in (self.root, *self.members):
            send_signal(one, signal.SIGKILL)


@contextlib.contextmanager
def tree(program: str, announced: int = 1, environment: dict[str, str] | None = None) -> Iterator[Tree]:
    started = Tree(program, announced, environment)
    try:
        yield started
    finally:
        started.end()


def test_a_process_is_alive_under_its_own_identity_only() -> None:
    with tree(SLEEPER) as one:
        assert identity_of(one.root.pid) == one.root
        assert is_alive(one.root)
        assert not is_alive(replace(one.root, start_token=one.root.start_token + "1"))


def test_a_zombie_is_not_alive() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    identity = identity_of(child.pid)
    assert identity is not None and is_alive(identity)
    assert child.stdin is not None
    child.stdin.close()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # ended, not collected
    assert Path(f"/proc/{child.pid}").exists() or sys.platform != "linux"
    assert not is_alive(identity)
    assert identity_of(child.pid) is None
    child.wait()


def test_a_name_with_blanks_and_parentheses_does_not_shift_the_fields() -> None:
    text = "4711 (a) b (c) S 12 4711 4710 0 -1 4194304 1 0 0 0 0 0 0 0 20 0 1 0 987654 1000 10 0\n"
    entry = parse_linux_stat(4711, text, "boot")
    assert entry is not None
    assert entry.identity == ProcessIdentity(4711, "boot:987654")
    assert (entry.parent_pid, entry.session_id, entry.zombie) == (12, 4710, False)
    assert parse_linux_stat(1, "garbage", "boot") is None


async def test_an_ended_child_is_noticed_and_its_exit_code_known() -> None:
    child = spawn([sys.executable, "-c", "raise SystemExit(7)"], ENVIRONMENT)
    assert await wait_gone(child, 20)
    assert exit_code(child) == 7
    forget(child)
    assert exit_code(child) is None


async def test_wait_gone_gives_up_on_one_that_goes_on_and_notices_one_that_is_not_our_child() -> None:
    with tree(PARENT_THAT_LEAVES) as started:
        assert await wait_gone(started.root, 20)
        (orphan,) = started.members
        assert exit_code(orphan) is None
        assert not await wait_gone(orphan, 0.05)
        waiting = asyncio.ensure_future(wait_gone(orphan, 20))
        await asyncio.sleep(0)
        assert send_signal(orphan, signal.SIGKILL)
        assert await waiting


async def test_waiting_for_a_process_that_was_never_there_ends_at_once() -> None:
    assert await wait_gone(ProcessIdentity(os.getpid(), "another boot:1"))


async def test_the_whole_tree_ends_sessions_of_children_included() -> None:
    with tree(PARENT, announced=3) as started:
        children = {one for one in started.members if one != started.root}
        assert set(descendants(started.root)) == children
        assert (resident_bytes(tree_members(started.root)) or 0) > (resident_bytes([started.root]) or 0) > 0
        assert await terminate_tree(started.root, 20) == ()
        assert not any(is_alive(one) for one in started.members)
        assert exit_code(started.root) == -signal.SIGTERM


async def test_an_orphan_is_found_by_the_session_of_its_dead_parent() -> None:
    with tree(PARENT_THAT_LEAVES) as started:
        assert await wait_gone(started.root, 20)
        assert exit_code(started.root) == 0
        assert tree_members(started.root) == tuple(started.members)
        assert await terminate_tree(started.root, 20) == ()
        assert not is_alive(started.members[0])


async def test_a_daemon_in_a_session_of_its_own_is_found_by_the_marker() -> None:
    environment = {**ENVIRONMENT, "FLEET_JOB": "job-1/0"}
    with tree(PARENT_OF_A_DAEMON, environment=environment) as started:
        assert await wait_gone(started.root, 20)
        assert tree_members(started.root) == ()
        assert tree_members(started.root, "FLEET_JOB=job-1/1") == ()
        assert await terminate_tree(started.root, 20, "FLEET_JOB=job-1/0") == ()
        assert not is_alive(started.members[0])


async def test_with_a_marker_a_dead_leaders_session_is_not_proof_enough() -> None:
    with tree(PARENT_THAT_LEAVES) as started:
        assert await wait_gone(started.root, 20)
        assert tree_members(started.root, "FLEET_JOB=somebody") == ()


async def test_one_that_ignores_sigterm_is_killed_after_the_grace() -> None:
    with tree(STUBBORN) as started:
        assert await terminate_tree(started.root, 0.2) == ()
        assert exit_code(started.root) == -signal.SIGKILL


async def test_a_recycled_pid_is_never_signalled() -> None:
    """A record says pid N; N now belongs to a process with another start time, which leads a session N."""
    with tree(PARENT, announced=3) as stranger:
        recorded = replace(stranger.root, start_token="another boot:42")
        assert not send_signal(recorded, signal.SIGKILL)
        assert tree_members(recorded) == ()
        assert descendants(recorded) == ()
        assert await terminate_tree(recorded, 0.1) == ()
        assert all(is_alive(one) for one in stranger.members)
        assert not await wait_gone(stranger.root, 0.05)


async def test_the_caller_and_its_ancestors_are_spared_even_with_the_marker() -> None:
    program = """
import asyncio, os
from fleet_agent.process import identity_of, terminate_tree, tree_members
marker = "FLEET_JOB=mine"
own = identity_of(os.getpid())
assert tree_members(own, marker) == (), tree_members(own, marker)
print(asyncio.run(terminate_tree(own, 0.1, marker)))
"""
    environment = {**os.environ, "FLEET_JOB": "mine"}
    done = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    out, err = await done.communicate()
    assert (out.decode().strip(), done.returncode) == ("()", 0), err.decode()


def test_a_program_that_is_not_there_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        spawn([tmp_path / "no such program"], ENVIRONMENT)


def test_a_spawned_process_leads_its_own_session_and_inherits_no_file() -> None:
    reading, writing = os.pipe()
    os.set_inheritable(writing, True)
    program = "import os; print(os.getsid(0) == os.getpid(), sorted(os.listdir('/dev/fd'))[:4])"
    out_reading, out_writing = os.pipe()
    try:
        spawn([sys.executable, "-c", program], ENVIRONMENT, stdout=out_writing)
        os.close(out_writing)
        with os.fdopen(out_reading) as lines:
            assert lines.read().strip() == "True ['0', '1', '2', '3']"  # 3 is the listing itself
    finally:
        os.close(reading)
        os.close(writing)


# Its first thread ends and another one goes on: for the kernel a zombie whose exit code nobody can have yet.
LEADER_THAT_LEAVES = """
import ctypes, platform, threading, time
threading.Thread(target=time.sleep, args=(600,)).start()
ctypes.CDLL(None).syscall({"x86_64": 60, "aarch64": 93}[platform.machine()], 0)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="a thread leaves by a system call of Linux")
def test_an_end_whose_code_comes_later_is_still_that_of_our_child() -> None:
    child = spawn([sys.executable, "-c", LEADER_THAT_LEAVES], ENVIRONMENT)
    try:
        assert is_child(child)
        while is_alive(child):
            time.sleep(0.01)
        assert exit_code(child) is None and is_child(child)
    finally:
        os.kill(child.pid, signal.SIGKILL)
    while exit_code(child) is None:
        time.sleep(0.01)
    forget(child)
    assert not is_child(child)
