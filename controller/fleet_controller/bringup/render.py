"""The small files that a version of the agent has on a host, from their templates in deploy/. Pure."""

from __future__ import annotations

import json
import plistlib
import shlex
from dataclasses import dataclass

from fleet_controller.transport.deploy_files import deploy_text
from fleet_inventory.hosts import Host


@dataclass(frozen=True)
class AgentPlace:
    """Where and as what an agent runs. `environment` tells the agent its own place and nothing about models."""

    machine_id: str
    machine_dir: str
    manager: str  # "systemd" | "launchd" | "background"
    environment: dict[str, str]
    version: str  # the folder of the version, of which all processes load their modules also after the next upgrade
    condition_host: str = ""  # /etc/machine-id: keeps a unit in a shared home on its own machine

    @property
    def unit(self) -> str:
        return f"fleet-agent-{self.machine_id[:12]}"

    @property
    def python(self) -> str:
        return f"{self.machine_dir}/agent/versions/{self.version}/venv/bin/python"


def agent_configuration(host: Host) -> dict[str, object]:
    """agent.json: what hosts.yaml says and the agent must know. Empty parts are left out."""
    limits = {"max_services": host.limits.max_services}  # the reserve is part of what a plan promises to a service
    document: dict[str, object] = {
        "environment": dict(sorted(host.environment.items())),
        "model_dir": host.model_dir,
        "tools": dict(sorted(host.tools.items())),
        "limits": {name: value for name, value in limits.items() if value is not None},
    }
    return {key: value for key, value in document.items() if value}


def version_files(host: Host, place: AgentPlace) -> dict[str, bytes]:
    """File name -> content, for the folder of a version."""
    files = {
        "agent.json": json.dumps(agent_configuration(host), indent=1).encode(),
        "agentctl": deploy_text("bootstrap/agentctl.sh").encode(),
        "agent.conf": agent_conf(place).encode(),
    }
    if place.manager == "systemd":
        files["fleet-agent.service"] = systemd_unit(place).encode()
    if place.manager == "launchd":
        files["fleet-agent.plist"] = launchd_plist(place)
    return files


def agent_conf(place: AgentPlace) -> str:
    """Settings of agentctl, as a POSIX script."""
    settings = {"manager": place.manager, "machine_dir": place.machine_dir, "unit": place.unit}
    lines = [f"{name}={shlex.quote(value)}" for name, value in settings.items()]
    lines += [f"export {name}={shlex.quote(value)}" for name, value in sorted(place.environment.items())]
    return "\n".join(lines) + "\n"


def systemd_unit(place: AgentPlace) -> str:
    """deploy/systemd/fleet-agent.service with its words filled in."""
    words = {
        "python": _systemd_word(place.python),
        # A path of this setting is taken as it is, without quotes; only the percent sign means something.
        "machine_dir": place.machine_dir.replace("%", "%%"),
        "environment": "\n".join(
            f"Environment={_systemd_word(f'{name}={value}')}" for name, value in sorted(place.environment.items())
        ),
        "condition_host": place.condition_host,
    }
    lines = deploy_text("systemd/fleet-agent.service").splitlines()
    if not place.condition_host:
        lines = [line for line in lines if not line.startswith("ConditionHost=")]
    text = "\n".join(lines) + "\n"
    for name, value in words.items():
        text = text.replace(f"@{name}@", value)
    return text


def _systemd_word(text: str) -> str:
    """Quoted for Environment= and the program of ExecStart=, where `%` means something and `$` does not."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    return f'"{escaped}"'


def launchd_plist(place: AgentPlace) -> bytes:
    """deploy/launchd/fleet-agent.plist with its values filled in."""
    document = plistlib.loads(deploy_text("launchd/fleet-agent.plist").encode())
    output = f"{place.machine_dir}/logs/agent.out"
    return plistlib.dumps(
        document
        | {
            "Label": place.unit,
            "ProgramArguments": [place.python, "-m", "fleet_agent", "serve"],
            "WorkingDirectory": place.machine_dir,
            "EnvironmentVariables": dict(sorted(place.environment.items())),
            "StandardOutPath": output,
            "StandardErrorPath": output,
        }
    )
