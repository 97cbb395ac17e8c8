"""The systemd unit and the launchd plist, filled in for a host."""

import configparser
import plistlib
import shutil
import subprocess
from pathlib import Path

import pytest

from fleet_controller.bringup.render import AgentPlace, agent_conf, launchd_plist, systemd_unit, version_files
from fleet_inventory.hosts import Host

PLACE = AgentPlace(
    machine_id="0123456789abcdef0123456789abcdef",
    machine_dir="/home/a b/100% fleet/machines/0123",
    manager="systemd",
    environment={"FLEET_AGENT_ROOT": '/home/a b/100% "fleet"', "FLEET_MACHINE_ID": "x$y"},
    version="0.5.0-abc",
    condition_host="00112233445566778899aabbccddeeff",
)
HOST = Host.model_validate({"name": "gpu1", "address": "gpu1", "environment": {"HF_HUB_OFFLINE": "1"}})


def sections(unit: str) -> configparser.ConfigParser:
    parser = configparser.ConfigParser(strict=True, interpolation=None, delimiters=("=",))
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    # Environment= may come several times; that is the one repetition that the strict parser would refuse.
    lines, count = [], 0
    for line in unit.splitlines():
        if line.startswith("Environment="):
            count += 1
            line = line.replace("Environment=", f"Environment.{count}=")
        lines.append(line)
    parser.read_string("\n".join(lines))
    return parser


def test_the_unit_says_what_keeps_models_alive() -> None:
    parsed = sections(systemd_unit(PLACE))
    service = parsed["Service"]
    assert service["KillMode"] == "process"
    assert service["Restart"] == "always"
    assert service["OOMPolicy"] == "continue"
    assert service["ExecStart"].endswith('/agent/versions/0.5.0-abc/venv/bin/python" -m fleet_agent serve')
    assert parsed["Install"]["WantedBy"] == "default.target"
    assert parsed["Unit"]["ConditionHost"] == PLACE.condition_host


def test_nothing_of_the_template_is_left_and_special_characters_are_quoted() -> None:
    unit = systemd_unit(PLACE)
    assert "@" not in "\n".join(line for line in unit.splitlines() if not line.startswith("#"))
    assert 'ExecStart="/home/a b/100%% fleet/machines/0123/agent/versions/0.5.0-abc/venv/bin/python"' in unit
    assert 'Environment="FLEET_AGENT_ROOT=/home/a b/100%% \\"fleet\\""' in unit
    assert 'Environment="FLEET_MACHINE_ID=x$y"' in unit
    assert "WorkingDirectory=/home/a b/100%% fleet/machines/0123\n" in unit


def test_a_machine_without_an_id_has_a_unit_without_condition() -> None:
    place = AgentPlace("0123456789ab", "/m", "systemd", {}, "1")
    assert "ConditionHost=" not in systemd_unit(place)


def test_systemd_accepts_the_unit(tmp_path: Path) -> None:
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("systemd-analyze is not installed")
    machine = tmp_path / "machine"
    python = machine / "agent" / "versions" / "1" / "venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text("#!/bin/sh\n")
    python.chmod(0o755)
    place = AgentPlace(
        PLACE.machine_id, str(machine), "systemd", {"FLEET_AGENT_ROOT": "/a b"}, "1", PLACE.condition_host
    )
    unit = tmp_path / "fleet-agent.service"
    unit.write_text(systemd_unit(place))
    done = subprocess.run([analyze, "verify", "--user", str(unit)], capture_output=True, text=True, check=False)
    complaints = [line for line in done.stderr.splitlines() if "fleet-agent" in line]
    assert complaints == []


def test_the_plist_says_what_keeps_models_alive() -> None:
    document = plistlib.loads(launchd_plist(PLACE))
    assert document["Label"] == "fleet-agent-0123456789ab"
    assert document["ProgramArguments"] == [PLACE.python, "-m", "fleet_agent", "serve"]
    assert document["AbandonProcessGroup"] is True
    assert document["KeepAlive"] is True
    assert document["RunAtLoad"] is True
    assert document["Umask"] == 0o077
    assert document["EnvironmentVariables"] == PLACE.environment
    assert document["StandardErrorPath"].startswith(PLACE.machine_dir)


def test_agent_conf_is_read_back_unchanged_by_a_shell(tmp_path: Path) -> None:
    conf = tmp_path / "agent.conf"
    conf.write_text(agent_conf(PLACE))
    script = '. "$0"; printf "%s|%s|%s|%s" "$manager" "$machine_dir" "$FLEET_AGENT_ROOT" "$FLEET_MACHINE_ID"'
    done = subprocess.run(["/bin/sh", "-c", script, str(conf)], capture_output=True, text=True, check=True)
    expected = ["systemd", PLACE.machine_dir, PLACE.environment["FLEET_AGENT_ROOT"], "x$y"]
    assert done.stdout.split("|") == expected


def test_each_manager_gets_its_own_file_and_no_other() -> None:
    names = {
        manager: set(version_files(HOST, AgentPlace("0" * 32, "/m", manager, {}, "1")))
        for manager in ("systemd", "launchd", "background")
    }
    common = {"agent.json", "agentctl", "agent.conf"}
    assert names == {
        "systemd": common | {"fleet-agent.service"},
        "launchd": common | {"fleet-agent.plist"},
        "background": common,
    }
