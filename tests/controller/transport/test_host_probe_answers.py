"""What the probe script prints, read."""

import pytest

from fleet_controller.transport.discovery import parse_platform

PRINTED = """Welcome to gpu1! Unauthorized use is logged = yes.
fleet:root=/home/alice/.local/share/fleet
fleet:environment_machine_id=
fleet:environment_runtime_dir=
fleet:os=Linux
fleet:architecture=x86_64
fleet:user=alice
fleet:home=/home/alice
fleet:libc=glibc 2.39
fleet:home_filesystem=nfs
fleet:etc_machine_id=0123456789abcdef0123456789abcdef
fleet:disk_free_kib=1048576
fleet:python=3.12.3 no /usr/bin/python3
fleet:python=3.12.3 no /usr/bin/python3
fleet:python=3.9.19 yes /usr/bin/python3.9
fleet:uv=/home/alice/.local/bin/uv
fleet:manager=systemd
fleet:linger=no
fleet:layout={"machine_id": "ab12", "machine_dir": "/m/ab12", "socket_path": "/tmp/fleet-1000/ab12.sock"}
fleet:current=versions/0.1.0+abc
fleet:configuration={"environment": {"HF_HUB_OFFLINE": "1"}}
fleet:manager_used=systemd
fleet:agent=running
fleet:agent_pid=4711
fleet:end=ok
"""


def test_a_full_answer() -> None:
    platform = parse_platform(PRINTED)
    assert (platform.os, platform.libc, platform.home_filesystem) == ("linux", "glibc 2.39", "nfs")
    assert platform.disk_free_bytes == 1048576 * 1024
    assert [(found.version, found.makes_venv) for found in platform.pythons] == [
        ((3, 12, 3), False),
        ((3, 9, 19), True),
    ]
    assert platform.linger is False
    agent = platform.agent
    assert agent is not None
    assert (agent.version, agent.running, agent.pid) == ("0.1.0+abc", True, 4711)
    assert agent.configuration == {"environment": {"HF_HUB_OFFLINE": "1"}}


def test_what_is_not_said_is_unknown() -> None:
    platform = parse_platform("fleet:root=/r\nfleet:end=ok\n")
    assert platform.agent is None
    assert platform.disk_free_bytes is None
    assert platform.linger is None
    assert platform.pythons == ()


def test_an_answer_that_was_cut_short_is_refused() -> None:
    with pytest.raises(ValueError, match="end"):
        parse_platform(PRINTED.replace("fleet:end=ok\n", ""))
