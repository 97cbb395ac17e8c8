"""Waiting until nobody else uses the devices and their temperature has settled."""

import asyncio
import re
import time
from collections.abc import Sequence

from fleet_agent.jobs.errors import JobProblem
from fleet_agent.jobs.model import DeviceWatch
from fleet_agent.measuring.waiting import Reminder
from fleet_agent.measuring.watch import SLOWED_DOWN, DeviceLooker, Look
from fleet_agent.steps.context import StepContext

LOOK_SECONDS = 0.5
# A card that still cools down changes by more than that within a second.
SETTLED_CELSIUS = 1
SETTLED_LOOKS = 3
IDLE_UTILIZATION_PERCENT = 10
NAMED = 3


def not_idle(looks: Sequence[Look], watch: DeviceWatch) -> str | None:
    """What one would wait for, in a user's words; None where the devices are idle."""
    last = looks[-1]
    if last.foreign_gpu:
        return f"busy: {'; '.join(last.foreign_gpu)}"
    slowed = sorted({name for gpu in last.gpus for name in gpu.throttle_reasons} & SLOWED_DOWN)
    if slowed:
        return f"GPU slowed down: {', '.join(slowed)}"
    for gpu in last.gpus:
        if (gpu.utilization_percent or 0) > IDLE_UTILIZATION_PERCENT:
            return f"GPU {gpu.index} is busy ({gpu.utilization_percent} %)"
    heat = _unsettled(looks)
    if heat is not None:
        return heat
    if not watch.gpu_indices and 0 < watch.foreign_cpu_percent < last.foreign_cpu_percent:
        return f"busy: {'; '.join(process.describe() for process in last.foreign_cpu[:NAMED])}"
    return None


def _unsettled(looks: Sequence[Look]) -> str | None:
    for gpu in looks[-1].gpus:
        recent = [
            other.temperature_celsius
            for look in looks[-SETTLED_LOOKS:]
            for other in look.gpus
            if other.index == gpu.index and other.temperature_celsius is not None
        ]
        if not recent:
            continue
        if len(recent) < SETTLED_LOOKS:
            return f"GPU {gpu.index}: looking whether its temperature has settled"
        if max(recent) - min(recent) > SETTLED_CELSIUS:
            return f"GPU {gpu.index} cools down or warms up: {recent[0]} to {recent[-1]} degrees C"
    return None


def causes_of(looks: Sequence[Look], reason: str) -> frozenset[str]:
    """What is waited for without the figures that move: the programs that compute, else the kind of reason."""
    last = looks[-1]
    programs = [f"{one.user} {one.command}" for one in last.foreign_cpu[:NAMED]] if reason.startswith("busy: ") else []
    return frozenset(programs or [re.sub(r"[\d.]+", "", reason)])


async def wait_until_idle(context: StepContext, looker: DeviceLooker, watch: DeviceWatch) -> float:
    """Seconds waited. Says for what it waits. Raises JobProblem "busy" after watch.idle_wait_seconds."""
    started = time.monotonic()
    looks: list[Look] = []
    reminder = Reminder()
    # CPU time is told by two looks that lie apart; a GPU tells what it does at once.
    pause = 0.0 if watch.gpu_indices else LOOK_SECONDS
    while True:
        await asyncio.sleep(pause)
        pause = LOOK_SECONDS
        looks.append(await context.in_thread(looker.look))
        reason = not_idle(looks, watch)
        waited = time.monotonic() - started
        if reason is None:
            return waited
        if waited > watch.idle_wait_seconds and len(looks) >= SETTLED_LOOKS:
            raise JobProblem(
                "busy", f"{reason}; waited {waited:.0f} s", "repeat it later; fleet bench waits with --when-idle"
            )
        if reminder.due(causes_of(looks, reason)):
            context.log(f"waiting for an idle device: {reason}")
            context.progress(int(waited), None, "s", f"waiting: {reason}")
