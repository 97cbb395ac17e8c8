"""Asks a host which agent it has, and starts one that is installed but not running."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from fleet_controller.transport.deploy_files import deploy_text
from fleet_controller.transport.errors import BringUpFailed, HostUnreachable, NoAgent
from fleet_controller.transport.link import HostLink, exports
from fleet_controller.transport.local import local_machine_id
from fleet_inventory.hosts import Host

PROBE_SECONDS = 60.0
START_SECONDS = 60.0


@dataclass(frozen=True)
class PythonFound:
    """An interpreter of the host. `makes_venv`: it has both venv and ensurepip."""

    version: tuple[int, ...]
    makes_venv: bool
    path: str


@dataclass(frozen=True)
class InstalledAgent:
    """An agent on a host. `configuration` is its agent.json as parsed, None where there is none to read."""

    machine_id: str
    machine_dir: str
    socket_path: str
    version: str
    running: bool
    manager: str
    pid: int | None = None
    configuration: Any = None


@dataclass(frozen=True)
class HostPlatform:
    """What the probe script found. Empty strings and None are unknown."""

    root: str
    os: str = ""
    architecture: str = ""
    user: str = ""
    home: str = ""
    libc: str = ""
    home_filesystem: str = ""
    disk_free_bytes: int | None = None
    etc_machine_id: str = ""
    pythons: tuple[PythonFound, ...] = ()
    uv: str = ""
    manager: str = ""
    linger: bool | None = None
    machine_id: str = ""  # FLEET_MACHINE_ID as a login on the host has it
    runtime_dir: str = ""  # FLEET_RUNTIME_DIR, likewise
    agent: InstalledAgent | None = None
    answers: dict[str, list[str]] = field(default_factory=dict, repr=False, compare=False)


def parse_answers(text: str) -> dict[str, list[str]]:
    """The values of "fleet:KEY=VALUE" lines by key, in order. Other lines (a login banner) are skipped."""
    answers: dict[str, list[str]] = {}
    for line in text.splitlines():
        if line.startswith("fleet:") and "=" in line:
            key, _, value = line.removeprefix("fleet:").partition("=")
            answers.setdefault(key, []).append(value.strip())
    return answers


def parse_platform(text: str) -> HostPlatform:
    """What probe.sh printed. Raises ValueError where it did not come to its end."""
    answers = parse_answers(text)
    if "end" not in answers:
        raise ValueError("the probe script did not come to its end")

    def one(key: str) -> str:
        return next(iter(answers.get(key, ())), "")

    free = one("disk_free_kib")
    return HostPlatform(
        root=one("root"),
        os=one("os").lower(),
        architecture=one("architecture"),
        user=one("user"),
        home=one("home"),
        libc=one("libc"),
        home_filesystem=one("home_filesystem"),
        disk_free_bytes=int(free) * 1024 if free.isdigit() else None,
        etc_machine_id=one("etc_machine_id"),
        pythons=tuple(_pythons(answers.get("python", ()))),
        uv=one("uv"),
        manager=one("manager"),
        linger={"yes": True, "no": False}.get(one("linger")),
        machine_id=one("environment_machine_id"),
        runtime_dir=one("environment_runtime_dir"),
        agent=_agent(answers),
        answers=answers,
    )


def _pythons(lines: Iterable[str]) -> list[PythonFound]:
    found: dict[str, PythonFound] = {}
    for line in lines:
        version, venv, path = line.split(" ", 2)
        found.setdefault(path, PythonFound(tuple(int(part) for part in version.split(".")), venv == "yes", path))
    return list(found.values())


def _agent(answers: dict[str, list[str]]) -> InstalledAgent | None:
    if "layout" not in answers:
        return None
    layout = json.loads(answers["layout"][0])
    pid = next(iter(answers.get("agent_pid", ())), "")
    return InstalledAgent(
        machine_id=layout["machine_id"],
        machine_dir=layout["machine_dir"],
        socket_path=layout["socket_path"],
        version=answers.get("current", [""])[0].removeprefix("versions/"),
        running="running" in answers.get("agent", ()),
        manager=answers.get("manager_used", [""])[0],
        pid=int(pid) if pid.isdigit() else None,
        configuration=_json_or_none(answers.get("configuration", [""])[0]),
    )


def _json_or_none(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None


def place_variables(host: Host) -> dict[str, str]:
    """What tells every script, and the agent itself, which agent of the machine is meant."""
    variables = {"FLEET_AGENT_ROOT": host.agent_root or "", "FLEET_MACHINE_ID": local_machine_id(host)}
    return {name: value for name, value in variables.items() if value}


async def probe(link: HostLink, host: Host, agent_only: bool = False) -> HostPlatform:
    """Runs deploy/bootstrap/probe.sh. Raises HostUnreachable, BringUpFailed for a host that cannot even run it."""
    variables = place_variables(host) | {
        "FLEET_PROBE_ONLY": "agent" if agent_only else "",
        "FLEET_PYTHON": host.python or "",
    }
    result = await link.run_script(exports(variables) + deploy_text("bootstrap/probe.sh"), PROBE_SECONDS)
    try:
        return parse_platform(result.stdout)
    except (ValueError, KeyError) as error:
        message = f"the host did not answer the probe: {error}; it printed: {result.tail(3)}"
        raise BringUpFailed(
            host.name, message, f"is this a plain login? try: ssh {host.address} /bin/sh -c true"
        ) from None


async def discover(link: HostLink, host: Host) -> InstalledAgent:
    """The agent of a host, running or not. Raises NoAgent where none is installed."""
    agent = (await probe(link, host, agent_only=True)).agent
    if agent is None:
        raise NoAgent(host.name, "no agent is installed", f"fleet up {host.name}")
    return agent


async def agentctl(link: HostLink, machine_dir: str, action: str) -> dict[str, list[str]]:
    """Runs the current version's agentctl: start, stop, status, uninstall. Raises BringUpFailed with what it said."""
    script = f"/bin/sh {shlex.quote(machine_dir + '/agent/current/agentctl')} {shlex.quote(action)}\n"
    result = await link.run_script(script, START_SECONDS)
    if not result.ok:
        raise BringUpFailed(link.host, f"agentctl {action}: {result.tail(3)}", f"fleet up {link.host}")
    return parse_answers(result.stdout)


async def start_agent(link: HostLink, host: Host, agent: InstalledAgent) -> None:
    """Starts an installed agent that is not running. Raises NoAgent with the reason."""
    try:
        await agentctl(link, agent.machine_dir, "start")
    except HostUnreachable:
        raise
    except BringUpFailed as error:
        raise NoAgent(
            host.name, f"the agent could not be started: {error.problem.message}", f"fleet up {host.name}"
        ) from None
