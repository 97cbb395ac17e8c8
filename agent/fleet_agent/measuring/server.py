"""A model server for one measurement: a child of the job, so that it ends with it, however that ends."""

import asyncio
import contextlib
import http.client
import os
import time
from collections import deque
from collections.abc import AsyncIterator
from pathlib import Path

from fleet_agent.jobs.errors import JobProblem
from fleet_agent.jobs.model import BenchServer
from fleet_agent.steps.context import ChildResult, StepContext
from fleet_agent.steps.loopback import Target, ask

POLL_SECONDS = 0.2
PROBE_SECONDS = 5.0
TAIL_LINES = 40
DEFAULT_START_LIMIT_SECONDS = 300.0


@contextlib.asynccontextmanager
async def bench_server(server: BenchServer, argv: list[str], port: int, context: StepContext) -> AsyncIterator[None]:
    """The server answers inside the block. Its output goes to server.log of the job.

    Raises JobProblem "server-failed" where it ends or makes no progress before it is ready.
    """
    tail: deque[str] = deque(maxlen=TAIL_LINES)
    environment = {variable.name: variable.value for variable in server.environment}
    # As for a service: engines start helpers of their own by bare name.
    path = f"{Path(argv[0]).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    with (context.job.path / "server.log").open("a", encoding="utf-8") as log:

        def heard(stream: str, line: str) -> bool:
            tail.append(line)
            log.write(line + "\n")
            log.flush()
            return True

        task = asyncio.ensure_future(
            context.run_child(argv, environment=environment, private_environment={"PATH": path}, on_line=heard)
        )
        try:
            await _until_ready(task, server, port, context, tail)
            yield
            if task.done():
                raise _ended(task, tail)
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await task


async def _until_ready(
    task: "asyncio.Future[ChildResult]", server: BenchServer, port: int, context: StepContext, tail: deque[str]
) -> None:
    limit = server.start_limit_seconds or DEFAULT_START_LIMIT_SECONDS
    target = Target("127.0.0.1", port, server.readiness_path)
    heard, seen = time.monotonic(), 0
    started = heard
    while True:
        if task.done():
            raise _ended(task, tail)
        with contextlib.suppress(OSError, http.client.HTTPException):
            status, _ = await context.in_thread(ask, target, PROBE_SECONDS)
            if 200 <= status < 300:
                return
        now = time.monotonic()
        lines = (context.job.path / "server.log").stat().st_size
        if lines != seen:
            heard, seen = now, lines
        if now - heard > limit:
            last = tail[-1].strip()[:200] if tail else "nothing"
            message = f"the server printed nothing for {limit:g} s and is not ready; its last line: {last}"
            raise JobProblem("server-failed", message, f"see {context.job.path}/server.log on the host")
        context.progress(int(now - started), None, "s", "the server loads the model")
        await asyncio.sleep(POLL_SECONDS)


def _ended(task: "asyncio.Future[ChildResult]", tail: deque[str]) -> JobProblem:
    error = None if task.cancelled() else task.exception()
    if isinstance(error, JobProblem):
        return error
    code = "" if error is not None or task.cancelled() else f" with exit code {task.result().exit_code}"
    last = next((line.strip() for line in reversed(tail) if line.strip()), "it printed nothing")
    remedy = "its whole output is in server.log of the job, on the host"
    return JobProblem("server-failed", f"the server ended{code}: {last[:300]}", remedy)


def port_owner(port: int) -> int | None:
    """The pid that listens on a port; None where this user may not see it."""
    import psutil

    with contextlib.suppress(psutil.Error, OSError):
        for connection in psutil.net_connections(kind="tcp"):
            if connection.status == "LISTEN" and connection.laddr and connection.laddr.port == port:
                return int(connection.pid) if connection.pid else None
    return None
