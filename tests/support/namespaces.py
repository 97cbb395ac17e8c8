"""Hosts as network namespaces, each with a real sshd, a user and a home of its own.

    with namespace_fleet(["gpu1", "gpu2"]) as fleet:
        fleet.trust("gpu1")                     # into known_hosts of the fleet's own ssh_config
        host = fleet.host("gpu1")               # a fleet_inventory Host
        fleet.link_down("gpu1"); fleet.link_up("gpu1"); fleet.shape("gpu1", "delay 20ms")

Set FLEET_SSH_CONFIG to `fleet.ssh_config` (use_fleet does). Everything is taken down at the end, whatever happened.
"""

from __future__ import annotations

import os
import pwd
import secrets
import shlex
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from benchmarks.relay_network import plug_in, run
from fleet_inventory.hosts import Host

SSHD_SECONDS = 15.0
CONNECT_SECONDS = 4  # a host that is down costs each attempt that long; the network is this machine's own
PREFIX_NAME = "flt"


@dataclass(frozen=True)
class HostOptions:
    """What a host has of its own.

    hide: paths that it does not have (a missing Python); binds: folder of this machine -> path there; home: a home
    that several hosts share; shell: the user's login shell; environment: what a login has set.
    """

    hide: tuple[str, ...] = ()
    binds: Mapping[str, str] = field(default_factory=dict)
    home: Path | None = None
    user: str = ""
    shell: str = "/bin/sh"
    environment: Mapping[str, str] = field(default_factory=dict)
    port: int = 22  # another one is not told to ssh_config
    sshd_lines: tuple[str, ...] = ()
    keep_user: bool = False  # the user belongs to another fleet, which takes it away
    behind: str = ""  # another host of the fleet: only from there is this one reached


@dataclass
class NamespaceHost:
    name: str
    namespace: str
    link: str  # the end of the cable in the root namespace
    address: str
    user: str
    home: Path
    host_key: Path
    sshd: subprocess.Popen[bytes] | None = None


class NamespaceFleet:
    """Made by namespace_fleet()."""

    def __init__(self, folder: Path) -> None:
        self.id = secrets.token_hex(2)
        self.folder = folder
        self.hosts: dict[str, NamespaceHost] = {}
        self.ssh_config = folder / "client" / "config"
        self.known_hosts = folder / "client" / "known_hosts"
        self.key = folder / "client" / "id_ed25519"
        self.authorized_keys = folder / "authorized_keys"
        self._users: list[str] = []
        self._bridge = f"{PREFIX_NAME}{self.id}"
        self._network = f"10.{secrets.randbelow(100) + 100}.{secrets.randbelow(128)}"
        # The hosts behind jump hosts: on the same cable, but this machine has no address in their network.
        self._inner_network = self._network.rpartition(".")[0] + f".{secrets.randbelow(128) + 128}"

    # -- building ---------------------------------------------------------------------------------------------

    def build(self, names: Sequence[str], options: Mapping[str, HostOptions]) -> None:
        self.key.parent.mkdir(mode=0o700)
        run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self.key))
        # sshd reads it as the user who logs in.
        self.authorized_keys.write_text(Path(f"{self.key}.pub").read_text())
        self.authorized_keys.chmod(0o644)
        Path("/run/sshd").mkdir(exist_ok=True)
        run("ip", "link", "add", self._bridge, "type", "bridge")
        run("ip", "address", "add", f"{self._network}.1/24", "dev", self._bridge)
        run("ip", "link", "set", self._bridge, "up")
        for index, name in enumerate(names):
            self._add_host(index, name, options.get(name, HostOptions()))
        self._write_ssh_config()
        for name in names:
            self.start_sshd(name, options.get(name, HostOptions()))

    def _add_host(self, index: int, name: str, options: HostOptions) -> None:
        namespace, link = f"{self._bridge}-{name}", f"{PREFIX_NAME}{self.id}v{index}"
        network = self._inner_network if options.behind else self._network
        address = f"{network}.{10 + index}"
        plug_in(namespace, link, self._bridge, address)
        if options.behind:
            jump = self.hosts[options.behind]
            inner = f"{self._inner_network}.{jump.address.rpartition('.')[2]}/24"
            run("ip", "-n", jump.namespace, "address", "replace", inner, "dev", "eth0")
        user = options.user or f"{PREFIX_NAME}{self.id}u{index}"
        home = options.home or self.folder / "home" / name
        if not options.keep_user:
            self._add_user(user, home, options.shell)
        host_key = self.folder / f"{name}.host_key"
        run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(host_key))
        self.hosts[name] = NamespaceHost(name, namespace, link, address, user, home, host_key)

    def _add_user(self, user: str, home: Path, shell: str) -> None:
        home.mkdir(parents=True, exist_ok=True)
        if user not in self._users:
            run("useradd", "--home-dir", str(home), "--no-create-home", "--shell", shell, "--password", "*", user)
            self._users.append(user)
        account = pwd.getpwnam(user)
        os.chown(home, account.pw_uid, account.pw_gid)
        home.chmod(0o700)

    def start_sshd(self, name: str, options: HostOptions | None = None) -> None:
        """Starts the host's sshd and waits until it takes connections."""
        host, options = self.hosts[name], options or HostOptions()
        environment = {"FLEET_MACHINE_ID": f"{self.id}-{name}", **options.environment}
        lines = [
            f"ListenAddress {host.address}:{options.port}", f"HostKey {host.host_key}", "PidFile none",
            "UsePAM no", "StrictModes no",
            f"AuthorizedKeysFile {self.authorized_keys}", f"AllowUsers {host.user}", "PasswordAuthentication no",
            "AllowStreamLocalForwarding yes", "MaxStartups 64", "Subsystem sftp internal-sftp",
            "SetEnv " + " ".join(f'"{key}={value}"' for key, value in environment.items()),
        ]  # fmt: skip
        lines += options.sshd_lines
        config = self.folder / f"{name}.sshd_config"
        config.write_text("\n".join(lines) + "\n")
        # `ip netns exec` gives a mount namespace of its own, so what is mounted here is seen by this host alone.
        mounts = [f"mount --bind /dev/null {shlex.quote(path)}" for path in options.hide if Path(path).is_file()]
        mounts += [
            f"mount -t tmpfs -o mode=755 none {shlex.quote(path)}" for path in options.hide if Path(path).is_dir()
        ]
        for source, target in options.binds.items():
            Path(target).mkdir(parents=True, exist_ok=True)
            mounts.append(f"mount --bind {shlex.quote(source)} {shlex.quote(target)}")
        sshd = shutil.which("sshd", path="/usr/sbin:/usr/bin") or "/usr/sbin/sshd"
        script = " && ".join([*mounts, f"exec {sshd} -D -e -f {shlex.quote(str(config))}"])
        log = (self.folder / f"{name}.sshd.log").open("ab")
        host.sshd = subprocess.Popen(
            ["ip", "netns", "exec", host.namespace, "/bin/sh", "-c", script],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
        log.close()
        self._wait_for_port(host, options.port)

    def _wait_for_port(self, host: NamespaceHost, port: int) -> None:
        deadline = time.monotonic() + SSHD_SECONDS
        while time.monotonic() < deadline:
            if f"{host.address}:{port}" in run("ip", "netns", "exec", host.namespace, "ss", "-ltnH"):
                return
            if host.sshd is not None and host.sshd.poll() is not None:
                break
            time.sleep(0.02)
        log = (self.folder / f"{host.name}.sshd.log").read_text(errors="replace")
        raise RuntimeError(f"sshd of {host.name} does not answer: {log[-800:]}")

    def _write_ssh_config(self) -> None:
        blocks = [f"Host {host.name}\n  HostName {host.address}\n  User {host.user}\n" for host in self.hosts.values()]
        shared = f"Host *\n  IdentityFile {self.key}\n  IdentitiesOnly yes\n  IdentityAgent none\n"
        shared += f"  UserKnownHostsFile {self.known_hosts}\n  GlobalKnownHostsFile /dev/null\n"
        shared += f"  ConnectTimeout {CONNECT_SECONDS}\n"
        self.ssh_config.write_text("\n".join([*blocks, shared]))

    # -- using ------------------------------------------------------------------------------------------------

    def trust(self, *names: str) -> None:
        """Writes the real host keys into known_hosts, as somebody who has looked would."""
        with self.known_hosts.open("a") as file:
            for name in names or tuple(self.hosts):
                host = self.hosts[name]
                key_type, data = Path(f"{host.host_key}.pub").read_text().split()[:2]
                file.write(f"{host.address} {key_type} {data}\n")

    def host(self, name: str, **settings: object) -> Host:
        """The inventory's Host, reached by its ssh_config alias."""
        return Host.model_validate({"name": name, "address": name, **settings})

    def uid(self, name: str) -> int:
        return pwd.getpwnam(self.hosts[name].user).pw_uid

    def sh(self, name: str, script: str, check: bool = True) -> str:
        """Runs a script on the host, as its user, in its network namespace."""
        host = self.hosts[name]
        account = pwd.getpwnam(host.user)
        environment = {"HOME": str(host.home), "USER": host.user, "PATH": "/usr/local/bin:/usr/bin:/bin"}
        words = [f"{key}={value}" for key, value in environment.items()]
        return run(
            "ip", "netns", "exec", host.namespace, "setpriv", f"--reuid={account.pw_uid}",
            f"--regid={account.pw_gid}", "--clear-groups", "env", "-i", *words, "/bin/sh", "-c", script, check=check,
        )  # fmt: skip

    def pids(self, name: str) -> list[int]:
        """Every process in the host's network namespace, its sshd included."""
        return [int(pid) for pid in run("ip", "netns", "pids", self.hosts[name].namespace, check=False).split()]

    def kill_everything(self, name: str) -> None:
        """As if the power went: all processes of the host at once, its sshd included."""
        deadline = time.monotonic() + 10
        while (living := self.pids(name)) and time.monotonic() < deadline:  # some may be starting others just now
            for pid in living:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.02)
        sshd = self.hosts[name].sshd
        if sshd is not None:
            sshd.wait()

    def link_down(self, name: str) -> None:
        run("ip", "link", "set", self.hosts[name].link, "down")

    def link_up(self, name: str) -> None:
        run("ip", "link", "set", self.hosts[name].link, "up")

    def shape(self, name: str, netem: str) -> None:
        """Delay, loss or rate of what is sent to the host, in tc-netem's words: "delay 20ms rate 10mbit"."""
        run("tc", "qdisc", "replace", "dev", self.hosts[name].link, "root", "netem", *netem.split())

    # -- taking down ------------------------------------------------------------------------------------------

    def destroy(self) -> None:
        for name in list(self.hosts):
            with suppress(Exception):
                self.kill_everything(name)
        for host in self.hosts.values():
            run("ip", "netns", "delete", host.namespace, check=False)
            run("ip", "link", "delete", host.link, check=False)
        run("ip", "link", "delete", self._bridge, check=False)
        for user in self._users:
            with suppress(KeyError):
                shutil.rmtree(f"/tmp/fleet-{pwd.getpwnam(user).pw_uid}", ignore_errors=True)
            run("userdel", "--force", user, check=False)


@contextmanager
def namespace_fleet(names: Sequence[str], options: Mapping[str, HostOptions] | None = None) -> Iterator[NamespaceFleet]:
    """Hosts with these names; they can reach one another and this machine, and nothing else."""
    with tempfile.TemporaryDirectory(prefix="fleet-netns-", dir="/var/tmp") as text:
        folder = Path(text)
        folder.chmod(0o755)  # the hosts' users have their homes in it
        fleet = NamespaceFleet(folder)
        try:
            fleet.build(names, options or {})
            yield fleet
        finally:
            fleet.destroy()


def use_fleet(monkeypatch: pytest.MonkeyPatch, fleet: NamespaceFleet) -> None:
    """This process, as controller, reaches the fleet through its ssh_config, and nothing of the user's own."""
    monkeypatch.setenv("FLEET_SSH_CONFIG", str(fleet.ssh_config))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
