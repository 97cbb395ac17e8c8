"""Bring-up over real SSH: three hosts as network namespaces, each with its own sshd, user and home."""

import asyncio
import os
import signal
import tarfile
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from benchmarks.relay_network import run
from fleet_controller.bringup import UpOptions, bring_up, manage_agents, trust_host_key
from fleet_controller.bringup.wheelhouse import uv_binary, uv_wheel
from fleet_controller.bringup.wheels import agent_release
from fleet_controller.domain.events import AgentAction, HostEvent
from fleet_controller.domain.services import ReadinessProbe, ServiceSpec, ServiceState
from fleet_controller.domain.steps import ToolRef
from fleet_controller.transport import (
    AgentPool,
    HostKeyUnknown,
    HostUnreachable,
    LoginRefused,
    NoAgent,
    NotEnrolled,
    ssh_login,
)
from fleet_inventory.hosts import Host, Transport
from support.agent_wheels import HOST_PYTHON, release_with, this_platform, wheels_for
from support.namespaces import HostOptions, NamespaceFleet, namespace_fleet, use_fleet

pytestmark = [pytest.mark.namespaces, pytest.mark.slow]

PYTHONS = tuple(str(path) for path in sorted(Path("/usr/bin").glob("python3*")) if not path.is_symlink())


@pytest.fixture(scope="session")
def wheels() -> Path:
    version = run(HOST_PYTHON, "-c", "import sys; print(*sys.version_info[:2])").split()
    return wheels_for((int(version[0]), int(version[1])), with_uv=True)


@pytest.fixture
def fleet(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, wheels: Path) -> Iterator[NamespaceFleet]:
    monkeypatch.setenv("HOME", str(tmp_path))
    with namespace_fleet(["gpu1", "gpu2"]) as fleet:
        use_fleet(monkeypatch, fleet)
        for name in fleet.hosts:  # it is much faster than venv and pip
            give_uv(fleet, name, wheels)
        yield fleet


def give_uv(fleet: NamespaceFleet, name: str, wheels: Path) -> None:
    """uv in ~/.local/bin of a host's user, as its installer would put it."""
    wheel = uv_wheel(wheels, this_platform())
    assert wheel is not None
    program = fleet.hosts[name].home / ".local" / "bin" / "uv"
    program.parent.mkdir(parents=True)
    program.write_bytes(uv_binary(wheel))
    program.chmod(0o755)
    run("chown", "-R", fleet.hosts[name].user, str(fleet.hosts[name].home / ".local"))


@pytest.fixture
async def pool(tmp_path: Path) -> AsyncIterator[AgentPool]:
    pool = AgentPool(tmp_path / "state")
    yield pool
    await pool.close()


async def up(pool: AgentPool, hosts: list[Host], options: UpOptions) -> dict[str, HostEvent]:
    return {event.host: event async for event in bring_up(hosts, pool, options) if event.done}


async def remove(pool: AgentPool, host: Host, purge: bool = False, keep_services: bool = False) -> HostEvent:
    events = manage_agents([host], pool, AgentAction.REMOVE, purge, keep_services)
    (event,) = [event async for event in events if event.done]
    return event


async def test_a_fleet_comes_up(fleet: NamespaceFleet, pool: AgentPool, wheels: Path) -> None:
    """Unknown keys are asked about; accepted ones let the fleet come up; the second time nothing changes.

    gpu1 has uv, gpu2 makes do with venv and pip.
    """
    fleet.sh("gpu2", "rm ~/.local/bin/uv")
    hosts = [fleet.host(name) for name in fleet.hosts]
    options = UpOptions(wheel_folder=wheels)
    asked = await up(pool, hosts, options)
    for name, event in asked.items():
        assert event.host_key is not None
        assert event.problem is not None
        assert event.problem.code == "host-key-unknown"
        shown = run("ssh-keygen", "-l", "-f", f"{fleet.hosts[name].host_key}.pub").split()[1]
        assert event.host_key.fingerprint == shown
        assert not (fleet.hosts[name].home / ".local" / "share").exists()
        trust_host_key(event.host_key)
    first = await up(pool, hosts, options)
    assert {name: (event.changed, event.problem) for name, event in first.items()} == dict.fromkeys(
        fleet.hosts, (True, None)
    )
    second = await up(pool, hosts, options)
    assert [event.changed for event in second.values()] == [False] * len(hosts)
    assert all(event.message.startswith("unchanged") for event in second.values())
    machine_ids = {(await pool.identity(host)).machine_id for host in hosts}
    assert len(machine_ids) == len(hosts)
    async with pool.client(hosts[0]) as agent:
        facts = await agent.facts()
    assert facts.system.user == fleet.hosts["gpu1"].user
    assert not list(fleet.hosts["gpu1"].home.glob(".local/share/fleet/uploads/*"))


async def test_a_changed_key_is_refused_and_never_offered(fleet: NamespaceFleet, pool: AgentPool, wheels: Path) -> None:
    fleet.trust("gpu2")
    wrong = Path(f"{fleet.hosts['gpu1'].host_key}.pub").read_text().split()[:2]
    fleet.known_hosts.write_text(f"{fleet.hosts['gpu2'].address} {' '.join(wrong)}\n")
    event = (await up(pool, [fleet.host("gpu2")], UpOptions(wheel_folder=wheels)))["gpu2"]
    assert event.problem is not None
    assert event.problem.code == "host-key-mismatch"
    assert event.host_key is None
    assert "ssh-keygen" in event.problem.remedy


async def test_ssh_configs_that_switch_checking_off_change_nothing(fleet: NamespaceFleet, pool: AgentPool) -> None:
    text = fleet.ssh_config.read_text().replace(str(fleet.known_hosts), "none")
    fleet.ssh_config.write_text(f"StrictHostKeyChecking no\n{text}")
    event = (await up(pool, [fleet.host("gpu1")], UpOptions()))["gpu1"]
    assert event.host_key is not None


async def test_a_host_key_signed_by_a_known_authority(fleet: NamespaceFleet, pool: AgentPool) -> None:
    host = fleet.hosts["gpu1"]
    authority = fleet.folder / "authority"
    run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(authority))
    sign = ["-s", str(authority), "-I", "gpu1", "-h", "-n", host.address]
    run("ssh-keygen", "-q", *sign, f"{host.host_key}.pub")
    fleet.kill_everything("gpu1")
    fleet.start_sshd("gpu1", HostOptions(sshd_lines=(f"HostCertificate {host.host_key}-cert.pub",)))
    public = Path(f"{authority}.pub").read_text().split()[:2]
    fleet.known_hosts.write_text(f"@cert-authority {host.address} {' '.join(public)}\n")
    async with pool.link(fleet.host("gpu1")) as link:
        assert (await link.run_script("id -un\n")).stdout.strip() == host.user


async def test_a_port_given_in_hosts_yaml(monkeypatch: pytest.MonkeyPatch, pool: AgentPool) -> None:
    with namespace_fleet(["gpu1"], {"gpu1": HostOptions(port=2222)}) as fleet:
        use_fleet(monkeypatch, fleet)
        host = fleet.host("gpu1", port=2222)
        with pytest.raises(HostKeyUnknown) as caught:
            async with pool.link(host):
                pass
        assert caught.value.question.known_hosts_line.startswith(f"[{fleet.hosts['gpu1'].address}]:2222 ssh-ed25519 ")
        trust_host_key(caught.value.question)
        async with pool.link(host) as link:
            assert (await link.run_script("id -un\n")).stdout.strip() == fleet.hosts["gpu1"].user


async def test_keys_of_an_ssh_agent(fleet: NamespaceFleet, pool: AgentPool, tmp_path: Path) -> None:
    fleet.trust()
    socket = tmp_path / "agent.sock"
    agent = await asyncio.create_subprocess_exec("ssh-agent", "-D", "-a", str(socket), stdout=asyncio.subprocess.PIPE)
    try:
        assert agent.stdout is not None
        assert b"SSH_AUTH_SOCK" in await agent.stdout.readline()  # it listens
        process = await asyncio.create_subprocess_exec(
            "ssh-add", "-q", str(fleet.key), env={"SSH_AUTH_SOCK": str(socket), "PATH": os.environ["PATH"]}
        )
        assert await process.wait() == 0
        fleet.key.unlink()
        kept = [line for line in fleet.ssh_config.read_text().splitlines() if "Identit" not in line]
        fleet.ssh_config.write_text("\n".join([*kept, f"  IdentityAgent {socket}"]) + "\n")
        async with pool.link(fleet.host("gpu1")) as link:
            assert (await link.run_script("id -un\n")).stdout.strip() == fleet.hosts["gpu1"].user
    finally:
        agent.kill()
        await agent.wait()


async def test_an_ssh_config_that_cannot_be_read_is_named(fleet: NamespaceFleet, pool: AgentPool) -> None:
    fleet.ssh_config.write_text("Port twenty-two\n" + fleet.ssh_config.read_text())
    with pytest.raises(HostUnreachable) as caught:
        async with pool.link(fleet.host("gpu1")):
            pass
    assert caught.value.problem.code == "bad-ssh-config"


async def test_known_hosts_files_named_with_tokens(fleet: NamespaceFleet, pool: AgentPool) -> None:
    fleet.trust("gpu1")
    place = fleet.known_hosts.with_name("known_hosts.gpu1")
    fleet.known_hosts.rename(place)
    text = fleet.ssh_config.read_text().replace(str(fleet.known_hosts), str(place.with_name("known_hosts.%n")))
    fleet.ssh_config.write_text(text)
    async with pool.link(fleet.host("gpu1")) as link:
        assert (await link.run_script("true\n")).ok


async def test_a_login_that_is_refused_says_what_to_try(fleet: NamespaceFleet, pool: AgentPool) -> None:
    fleet.trust()
    with pytest.raises(LoginRefused, match="was not let in"):
        async with pool.link(fleet.host("gpu1", user="nobody")):
            pass


async def test_a_host_that_is_down_blocks_no_other(fleet: NamespaceFleet, pool: AgentPool, wheels: Path) -> None:
    fleet.trust()
    fleet.link_down("gpu2")
    hosts = [fleet.host(name) for name in fleet.hosts]
    order = [event.host async for event in bring_up(hosts, pool, UpOptions(wheel_folder=wheels)) if event.done]
    assert sorted(order) == ["gpu1", "gpu2"]
    fleet.link_up("gpu2")
    assert (await up(pool, [fleet.host("gpu2")], UpOptions(wheel_folder=wheels)))["gpu2"].problem is None


async def test_a_cut_link_ends_calls_and_the_next_contact_reconnects(
    fleet: NamespaceFleet, pool: AgentPool, wheels: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ssh_login, "KEEPALIVE_INTERVAL_SECONDS", 1.0)
    fleet.trust()
    host = fleet.host("gpu1")
    await up(pool, [host], UpOptions(wheel_folder=wheels))
    before = await pool.identity(host)
    fleet.link_down("gpu1")
    with pytest.raises(HostUnreachable):
        async with pool.client(host) as agent:
            await agent.facts()
    fleet.link_up("gpu1")
    assert await pool.identity(host) == before


def sleeper(name: str) -> ServiceSpec:
    """A long-running process that the agent looks after; it never becomes ready, and need not."""
    return ServiceSpec(
        name=name, backend="llama.cpp", tool=ToolRef(name="python3"), port=18080,
        arguments=("-c", "import time; time.sleep(3600)"), readiness=ReadinessProbe(start_limit_seconds=3600),
    )  # fmt: skip


@pytest.fixture
async def one(fleet: NamespaceFleet, pool: AgentPool, wheels: Path) -> Host:
    """gpu1, up, with a model server's stand-in running."""
    fleet.trust()
    host = fleet.host("gpu1")
    event = (await up(pool, [host], UpOptions(wheel_folder=wheels)))["gpu1"]
    assert event.problem is None
    async with pool.client(host) as agent:
        await agent.apply_service(sleeper("sleeper"))
        async for status in agent.watch_service("sleeper"):
            if status.process is not None:
                break
    return host


async def service_pid(pool: AgentPool, host: Host) -> int:
    async with pool.client(host) as agent:
        (status,) = await agent.list_services()
    assert status.process is not None
    assert status.state in (ServiceState.STARTING, ServiceState.READY, ServiceState.UNHEALTHY)
    return status.process.pid


async def test_installing_again_by_force_keeps_the_models_too(one: Host, pool: AgentPool, wheels: Path) -> None:
    pid, before = await service_pid(pool, one), await pool.identity(one)
    event = (await up(pool, [one], UpOptions(wheel_folder=wheels, force=True)))["gpu1"]
    assert (event.changed, event.problem) == (True, None)
    assert (await pool.identity(one)).pid != before.pid
    assert await service_pid(pool, one) == pid


async def test_a_failed_install_leaves_what_ran(
    one: Host, pool: AgentPool, tmp_path: Path, fleet: NamespaceFleet
) -> None:
    pid, before = await service_pid(pool, one), await pool.identity(one)
    empty = tmp_path / "empty"
    empty.mkdir()
    event = (await up(pool, [one], UpOptions(wheel_folder=empty, force=True)))["gpu1"]
    assert event.problem is not None
    assert "packages could not be installed" in event.problem.message
    assert await pool.identity(one) == before
    assert await service_pid(pool, one) == pid
    versions = fleet.hosts["gpu1"].home.glob(".local/share/fleet/machines/*/agent/versions/*")
    assert [path.name for path in versions] == [agent_release().name]


async def test_an_upgrade_drops_no_running_model(one: Host, pool: AgentPool, wheels: Path) -> None:
    pid, before = await service_pid(pool, one), await pool.identity(one)
    newer = release_with("fleet_agent/__init__.py", '"""A newer agent."""\n')
    event = (await up(pool, [one], UpOptions(wheel_folder=wheels, release=newer)))["gpu1"]
    assert (event.changed, event.problem) == (True, None)
    assert newer.name in event.message
    assert (await pool.identity(one)).pid != before.pid
    assert await service_pid(pool, one) == pid


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("fleet_agent/server/app.py", "import sys\n\n\ndef run() -> int:\n    sys.exit('broken on purpose')\n"),
        ("fleet_agent/version.py", "raise SystemExit('broken on purpose')\n"),
    ],
    ids=["exits at once", "cannot even start"],
)
async def test_a_broken_upgrade_goes_back_by_itself(
    one: Host, pool: AgentPool, wheels: Path, fleet: NamespaceFleet, file: str, source: str
) -> None:
    pid, machine = await service_pid(pool, one), (await pool.identity(one)).machine_id
    broken = release_with(file, source)
    event = (await up(pool, [one], UpOptions(wheel_folder=wheels, release=broken)))["gpu1"]
    assert event.problem is not None
    assert "broken on purpose" in event.problem.message
    assert await service_pid(pool, one) == pid
    agent = fleet.hosts["gpu1"].home / ".local/share/fleet/machines" / machine / "agent"
    assert (agent / "current").readlink() == Path("versions") / agent_release().name
    assert [path.name for path in (agent / "versions").iterdir()] == [agent_release().name]
    again = (await up(pool, [one], UpOptions(wheel_folder=wheels)))["gpu1"]
    assert (again.changed, again.problem) == (False, None)


async def test_everything_killed_and_the_host_back(
    one: Host, pool: AgentPool, wheels: Path, fleet: NamespaceFleet
) -> None:
    """A reboot, imitated: the next contact starts the agent, and the agent's journal starts what should run."""
    pid = await service_pid(pool, one)
    fleet.kill_everything("gpu1")
    fleet.start_sshd("gpu1")
    while True:
        with suppress(HostUnreachable, NoAgent):  # the first call may be the one that notices
            async with pool.client(one) as agent:
                async for status in agent.watch_service("sleeper"):
                    if status.process is not None and status.process.pid != pid:
                        return


async def test_removal_stops_the_models_and_says_what_is_left(
    one: Host, pool: AgentPool, fleet: NamespaceFleet
) -> None:
    pid = await service_pid(pool, one)
    event = await remove(pool, one, purge=True)
    assert (event.changed, event.problem) == (True, None)
    assert pid not in fleet.pids("gpu1")
    assert not list(fleet.hosts["gpu1"].home.glob(".local/share/fleet*"))


async def test_removal_can_leave_the_models_running(one: Host, pool: AgentPool, fleet: NamespaceFleet) -> None:
    pid = await service_pid(pool, one)
    event = await remove(pool, one, keep_services=True)
    assert "run on" in event.message
    assert pid in fleet.pids("gpu1")
    os.kill(pid, signal.SIGKILL)


async def test_hosts_that_share_one_home_and_one_user(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, wheels: Path, pool: AgentPool
) -> None:
    with namespace_fleet(["gpu1"]) as first:
        give_uv(first, "gpu1", wheels)
        home, user = first.hosts["gpu1"].home, first.hosts["gpu1"].user
        with namespace_fleet(["gpu2"], {"gpu2": HostOptions(home=home, user=user, keep_user=True)}) as second:
            hosts = []
            for fleet, name in ((first, "gpu1"), (second, "gpu2")):
                use_fleet(monkeypatch, fleet)
                fleet.trust()
                hosts.append(fleet.host(name))
                event = (await up(pool, hosts[-1:], UpOptions(wheel_folder=wheels)))[name]
                assert event.problem is None
            identities = [await pool.identity(host) for host in hosts]
            assert identities[0].machine_id != identities[1].machine_id
            assert len(list(home.glob(".local/share/fleet/machines/*/agent/current"))) == 2


async def test_a_host_behind_a_jump_host(monkeypatch: pytest.MonkeyPatch, wheels: Path, pool: AgentPool) -> None:
    with namespace_fleet(["gate", "inner"], {"inner": HostOptions(behind="gate")}) as fleet:
        use_fleet(monkeypatch, fleet)
        inner = fleet.host("inner", jump="gate")
        question = (await up(pool, [inner], UpOptions()))["inner"].host_key
        assert question is not None
        assert (question.host, question.address) == ("inner", fleet.hosts["gate"].address)
        fleet.trust("gate")
        question = (await up(pool, [inner], UpOptions()))["inner"].host_key
        assert question is not None
        assert question.address == fleet.hosts["inner"].address
        fleet.trust("inner")
        give_uv(fleet, "inner", wheels)
        event = (await up(pool, [inner], UpOptions(wheel_folder=wheels)))["inner"]
        assert event.problem is None
        # The same way, as ssh_config gives it.
        fleet.ssh_config.write_text(f"Host inner\n  ProxyJump gate\n{fleet.ssh_config.read_text()}")
        fresh = AgentPool(Path(os.environ["FLEET_SSH_CONFIG"]).parent / "state")
        assert (await fresh.identity(fleet.host("inner"))).machine_id == (await pool.identity(inner)).machine_id
        await fresh.close()


async def test_a_host_without_python_gets_uv_and_the_archive_of_a_python(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, wheels: Path, pool: AgentPool
) -> None:
    folder = tmp_path / "wheels"
    folder.mkdir()
    for path in wheels.iterdir():
        (folder / path.name).symlink_to(path)
    with namespace_fleet(["bare"], {"bare": HostOptions(hide=PYTHONS)}) as fleet:
        use_fleet(monkeypatch, fleet)
        fleet.trust()
        refused = (await up(pool, [fleet.host("bare")], UpOptions(wheel_folder=folder)))["bare"]
        assert refused.problem is not None
        assert "three ways out" in refused.problem.remedy
        await asyncio.to_thread(archive_of_system_python, folder)
        event = (await up(pool, [fleet.host("bare")], UpOptions(wheel_folder=folder)))["bare"]
        assert event.problem is None, event.problem
        (python,) = fleet.hosts["bare"].home.glob(".local/share/fleet/machines/*/agent/current/venv/bin/python")
        assert "/tools/cpython-" in str(python.readlink())


def archive_of_system_python(folder: Path) -> None:
    """This machine's own Python, laid out and named like python-build-standalone's archives."""
    version = run(HOST_PYTHON, "-c", "import platform; print(platform.python_version())").strip()
    short = ".".join(version.split(".")[:2])
    machine = os.uname().machine
    name = f"cpython-{version}+20260101-{machine}-unknown-linux-gnu-install_only.tar.gz"
    with tarfile.open(folder / name, "w:gz", compresslevel=1) as archive:
        archive.add(Path(HOST_PYTHON).resolve(), "python/bin/python3")
        for part in sorted(Path(f"/usr/lib/python{short}").rglob("*")):
            if part.is_file() and "__pycache__" not in part.parts and "test" not in part.parts:
                archive.add(part.resolve(), f"python/lib/python{short}/{part.relative_to(f'/usr/lib/python{short}')}")


async def test_a_python_that_cannot_make_environments_gets_uv_pushed(
    monkeypatch: pytest.MonkeyPatch, wheels: Path, pool: AgentPool
) -> None:
    ensurepip = run(HOST_PYTHON, "-c", "import ensurepip; print(ensurepip.__path__[0])").strip()
    with namespace_fleet(["deb"], {"deb": HostOptions(hide=(ensurepip,))}) as fleet:
        use_fleet(monkeypatch, fleet)
        fleet.trust()
        events = [event async for event in bring_up([fleet.host("deb")], pool, UpOptions(wheel_folder=wheels))]
        assert events[-1].problem is None, events[-1].problem
        assert "uv" in events[-1].message
        assert list(fleet.hosts["deb"].home.glob(".local/share/fleet/tools/uv-*/uv"))


async def test_a_login_shell_that_is_not_posix(monkeypatch: pytest.MonkeyPatch, wheels: Path, pool: AgentPool) -> None:
    fish = Path("/usr/bin/fish")
    if not fish.exists():
        pytest.skip("fish is not installed")
    with namespace_fleet(["box"], {"box": HostOptions(shell=str(fish))}) as fleet:
        use_fleet(monkeypatch, fleet)
        fleet.trust()
        give_uv(fleet, "box", wheels)
        event = (await up(pool, [fleet.host("box")], UpOptions(wheel_folder=wheels)))["box"]
        assert event.problem is None, event.problem


async def test_a_home_whose_name_needs_quoting(monkeypatch: pytest.MonkeyPatch, wheels: Path, pool: AgentPool) -> None:
    with namespace_fleet(["box"]) as fleet:
        use_fleet(monkeypatch, fleet)
        fleet.trust()
        give_uv(fleet, "box", wheels)
        root = fleet.hosts["box"].home / "it's $mine"
        event = (await up(pool, [fleet.host("box", agent_root=str(root))], UpOptions(wheel_folder=wheels)))["box"]
        assert event.problem is None, event.problem
        assert list(root.glob("machines/*/agent/current"))


async def test_transport_tls_is_enrolled_over_ssh(fleet: NamespaceFleet, pool: AgentPool, wheels: Path) -> None:
    """`fleet up` gives a certificate; then no SSH is needed; back at transport ssh the port is closed."""
    over_ssh = fleet.host("gpu1")
    host = over_ssh.model_copy(update={"transport": Transport.TLS})
    fleet.trust()
    (event,) = (await up(pool, [host], UpOptions(wheel_folder=wheels))).values()
    assert event.problem is None, event.problem
    assert "certificate counts for" in event.message
    again = (await up(pool, [host], UpOptions(wheel_folder=wheels)))["gpu1"]
    assert again.message.startswith("unchanged")
    sshd = fleet.hosts["gpu1"].sshd
    assert sshd is not None
    sshd.kill()
    sshd.wait()
    await pool.drop(host)
    identity = await pool.identity(host)
    assert pool.answers_over_tls(host)
    fleet.start_sshd("gpu1")
    (revoked,) = [item async for item in manage_agents([host], pool, AgentAction.REVOKE)]
    assert revoked.changed
    with pytest.raises(NotEnrolled, match="revoked"):
        await pool.identity(host)
    renewed = (await up(pool, [host], UpOptions(wheel_folder=wheels)))["gpu1"]
    assert renewed.problem is None, renewed.problem
    assert (await pool.identity(host)).pid == identity.pid  # the agent was not even restarted
    back = (await up(pool, [over_ssh], UpOptions(wheel_folder=wheels)))["gpu1"]
    assert "port for transport tls is closed" in back.message
    with pytest.raises(NotEnrolled):
        await pool.identity(host)
