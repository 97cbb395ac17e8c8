"""Wait until a server on this machine answers its health path with 200.

Result: {"status": 200, "seconds": how long it took}.
"""

import http.client
import time
from typing import Any

from fleet_agent.jobs.errors import JobProblem, Stopped
from fleet_agent.jobs.model import HealthProbeStep
from fleet_agent.steps.context import StepContext
from fleet_agent.steps.loopback import Target, ask, no_answer, target_of

DEFAULT_TIMEOUT_SECONDS = 30.0
PAUSE_SECONDS = 0.25


def check(step: HealthProbeStep) -> None:
    target_of(step.url)


async def run(step: HealthProbeStep, context: StepContext) -> dict[str, Any]:
    limit = step.timeout_seconds or DEFAULT_TIMEOUT_SECONDS
    return await context.in_thread(_wait, target_of(step.url), limit, context)


def _wait(target: Target, limit_seconds: float, context: StepContext) -> dict[str, Any]:
    started = time.monotonic()
    while True:
        left = limit_seconds - (time.monotonic() - started)
        try:
            status, _ = ask(target, max(0.1, min(left, 10.0)))
            if status == 200:
                return {"status": status, "seconds": round(time.monotonic() - started, 3)}
            problem = JobProblem(
                "unhealthy", f"{target.path} on port {target.port} answers HTTP {status}", "see `fleet logs`"
            )
        except (OSError, http.client.HTTPException) as error:
            problem = no_answer(target, error)
        if time.monotonic() - started >= limit_seconds:
            raise problem
        if context.cancelled.wait(PAUSE_SECONDS):
            raise Stopped
