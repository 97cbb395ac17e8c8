"""`fleet up`: connect, look, push, install beside, switch, start, check; back to what ran before where that fails."""

from __future__ import annotations

import asyncio
import shlex
import time
from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from fleet_controller.bringup.enrolment import settle_identity
from fleet_controller.bringup.install import Installed, install, pack
from fleet_controller.bringup.interpreter import InstallChoice, choose_interpreter, platform_words
from fleet_controller.bringup.options import UpOptions
from fleet_controller.bringup.render import AgentPlace, agent_configuration, version_files
from fleet_controller.bringup.streams import over_hosts, stream_of
from fleet_controller.bringup.wheels import Release, agent_release
from fleet_controller.domain.agents import AgentIdentity
from fleet_controller.domain.events import HostEvent
from fleet_controller.transport.deploy_files import deploy_text
from fleet_controller.transport.discovery import (
    HostPlatform,
    InstalledAgent,
    agentctl,
    parse_answers,
    place_variables,
    probe,
)
from fleet_controller.transport.errors import (
    BringUpFailed,
    HostUnreachable,
    NoAgent,
    NotEnrolled,
    ProtocolSkew,
    TransportError,
)
from fleet_controller.transport.link import HostLink, exports
from fleet_controller.transport.pool import AgentPool
from fleet_inventory.hosts import Host, Transport

ACTIVATE_SECONDS = 120.0
DISK_NEEDED_BYTES = 400 * 1024 * 1024
POLL_SECONDS = 0.2
# agentctl is asked less often than the socket: it says early that the agent died.
STATUS_SECONDS = 2.0

Report = Callable[[HostEvent], None]


def bring_up(hosts: Iterable[Host], pool: AgentPool, options: UpOptions | None = None) -> AsyncGenerator[HostEvent]:
    """Makes each host run this controller's agent. Idempotent; one `done` event a host, `changed` where it did work.

    An unknown host key ends that host with `host_key` set: nothing was done there, a person must decide.
    """
    wanted = options or UpOptions()
    return over_hosts(hosts, lambda host: stream_of(lambda report: _Up(host, pool, wanted, report).run()))


@dataclass
class _Up:
    host: Host
    pool: AgentPool
    options: UpOptions
    report: Report

    async def run(self) -> None:
        self._say("connect", f"connecting to {self.host.address}")
        async with self.pool.link(self.host) as link:
            release = self.options.release
            if release is None:
                release = await asyncio.to_thread(agent_release)
            self._say("detect", "looking at the host")
            platform = await probe(link, self.host)
            platform_words(platform)
            self._manager(platform)
            if not self.options.force and (identity := await self._current(platform, release)) is not None:
                note, changed = await self._settle_identity(identity)
                self._done(f"{note or 'unchanged'}: agent {release.name} runs", changed)
                return
            self._check_disk(platform)
            choice = choose_interpreter(
                self.host.name, self.host.python, platform, self.options.wheel_folder,
                bool(self.host.environment.get("UV_PYTHON_INSTALL_MIRROR")),
            )  # fmt: skip
            installed = await install(link, self.host, platform, choice, release, self.options, self.report)
            await self._switch(link, platform, installed, release, choice)

    async def _current(self, platform: HostPlatform, release: Release) -> AgentIdentity | None:
        """Who answers, where that is the agent that we would install."""
        agent = platform.agent
        if agent is None or not agent.running or agent.version != release.name:
            return None
        if (agent.configuration or {}) != agent_configuration(self.host):
            return None
        if self._manager(platform) != agent.manager:
            return None
        self.pool.remember(self.host, agent.socket_path)
        with suppress(NoAgent, HostUnreachable, ProtocolSkew, NotEnrolled):
            return await self.pool.identity(self.host)
        if self.host.transport is Transport.TLS:
            with suppress(NoAgent, HostUnreachable, ProtocolSkew):
                return await self.pool.try_socket(self.host, agent.socket_path)
        return None

    async def _settle_identity(self, identity: AgentIdentity) -> tuple[str, bool]:
        """Nothing is left to do where the host answered over TLS just now."""
        if self.pool.answers_over_tls(self.host):
            return "", False
        if self.host.transport is Transport.TLS:
            self._say("enrol", f"giving it a certificate for port {self.host.tls_port}")
        return await settle_identity(self.host, self.pool, identity, take_over=self.options.force)

    def _manager(self, platform: HostPlatform) -> str:
        """Local hosts with a root of their own are many on one machine, often short-lived: no unit is made for them.

        Raises BringUpFailed for a wanted manager that the host does not have.
        """
        wanted = self.options.manager
        if wanted and wanted not in ("background", platform.manager):
            message = f"it cannot run the agent under {wanted}: it has {platform.manager or 'no service manager'}"
            raise BringUpFailed(self.host.name, message, "leave it out, or take: background")
        if wanted:
            return wanted
        if self.host.transport == "local" and self.host.agent_root:
            return "background"
        return platform.manager or "background"

    def _check_disk(self, platform: HostPlatform) -> None:
        free = platform.disk_free_bytes
        if free is not None and free < DISK_NEEDED_BYTES:
            raise BringUpFailed(
                self.host.name,
                f"{free // 2**20} MiB free under {platform.root}, the agent needs {DISK_NEEDED_BYTES // 2**20} MiB",
                "free some space, or set agent_root in hosts.yaml",
                "disk-full",
            )

    async def _switch(
        self, link: HostLink, platform: HostPlatform, installed: Installed, release: Release, choice: InstallChoice
    ) -> None:
        place = self._place(platform, installed.layout, release.name)
        folder = f"{place.machine_dir}/agent/versions/{release.name}"
        await link.unpack(pack(version_files(self.host, place)), folder)
        previous = platform.agent
        verb = "starting" if previous is None else "restarting"
        self._say("start", f"{verb} the agent ({place.manager})")
        started = time.time()
        try:
            await self._activate(link, place.machine_dir, release.name, "new", previous)
            self._say("check", "waiting for the agent to answer")
            socket_path = str(installed.layout["socket_path"])
            identity = await self._await_agent(link, place.machine_dir, socket_path, previous)
        except TransportError as error:
            if link.closed:
                raise
            raise await self._roll_back(link, place, release, previous, error) from None
        took = time.time() - started
        note, _ = await self._settle_identity(identity)
        message = f"agent {release.name} runs under {place.manager}, {choice.description}; answered after {took:.1f} s"
        self._done(
            f"{message}; {note}" if note else message,
            changed=True,
            identity=identity,
        )

    def _place(self, platform: HostPlatform, layout: dict[str, Any], version: str) -> AgentPlace:
        environment = {"FLEET_MACHINE_ID": platform.machine_id, "FLEET_RUNTIME_DIR": platform.runtime_dir}
        environment |= place_variables(self.host) | {"FLEET_AGENT_ROOT": layout["root"]}
        return AgentPlace(
            machine_id=layout["machine_id"],
            machine_dir=layout["machine_dir"],
            manager=self._manager(platform),
            environment={name: value for name, value in environment.items() if value},
            version=version,
            condition_host=platform.etc_machine_id,
        )

    async def _activate(
        self, link: HostLink, machine_dir: str, version: str, configuration: str, previous: InstalledAgent | None
    ) -> None:
        await self.pool.reset_channel(self.host)
        variables = {
            "FLEET_MACHINE_DIR": machine_dir,
            "FLEET_VERSION": version,
            "FLEET_CONFIGURATION": configuration,
            "FLEET_KEEP_VERSIONS": previous.version if previous and configuration == "new" else "",
        }
        result = await link.run_script(exports(variables) + deploy_text("bootstrap/activate.sh"), ACTIVATE_SECONDS)
        answers = parse_answers(result.stdout)
        if not result.ok or "end" not in answers:
            raise BringUpFailed(self.host.name, f"the agent could not be started: {result.tail(4)}", "fleet up --force")
        if "linger_failed" in answers:
            self._say("start", "linger could not be enabled: the agent stops when the last login ends "
                      "(ask an administrator: loginctl enable-linger USER)")  # fmt: skip

    async def _await_agent(
        self, link: HostLink, machine_dir: str, socket_path: str, previous: InstalledAgent | None
    ) -> AgentIdentity:
        """The handshake of the newly started process, through the real transport. Raises NoAgent, BringUpFailed."""
        loop = asyncio.get_running_loop()
        deadline, next_status = loop.time() + self.options.handshake_limit_seconds, loop.time() + STATUS_SECONDS
        while True:
            try:
                identity = await self.pool.try_socket(self.host, socket_path)
                if previous is None or identity.pid != previous.pid:
                    return identity
                problem = NoAgent(self.host.name, "the agent that was stopped still answers", "fleet agent restart")
            except NoAgent as error:
                problem = error
            if loop.time() > next_status:
                status = await agentctl(link, machine_dir, "status")
                if "running" not in status.get("agent", ()):
                    raise BringUpFailed(self.host.name, f"the agent ended: {await _log_tail(link, machine_dir)}")
                next_status = loop.time() + STATUS_SECONDS
            if loop.time() > deadline:
                raise problem
            await asyncio.sleep(POLL_SECONDS)

    async def _roll_back(
        self,
        link: HostLink,
        place: AgentPlace,
        release: Release,
        previous: InstalledAgent | None,
        error: TransportError,
    ) -> BringUpFailed:
        """Starts again what ran before; the error to raise says whether that worked."""
        why = error.problem.message
        remedy = f"look at {place.machine_dir}/logs on the host, then: fleet up --force {self.host.name}"
        if previous is None or previous.version == release.name:
            await agentctl(link, place.machine_dir, "stop")
            return BringUpFailed(self.host.name, f"agent {release.name} did not come up: {why}", remedy)
        self._say("roll-back", f"agent {release.name} did not come up; going back to {previous.version}")
        try:
            await self._activate(link, place.machine_dir, previous.version, "previous", None)
            await self._await_agent(link, place.machine_dir, previous.socket_path, None)
        except TransportError as second:
            message = (
                f"agent {release.name} did not come up ({why}), and going back failed, too: {second.problem.message}"
            )
            return BringUpFailed(self.host.name, message, remedy, "roll-back-failed")
        await self._forget(link, place, release.name)
        message = f"agent {release.name} did not come up ({why}); {previous.version} runs again"
        return BringUpFailed(self.host.name, message, remedy, "rolled-back")

    async def _forget(self, link: HostLink, place: AgentPlace, version: str) -> None:
        await link.run_script(f"rm -rf {shlex.quote(f'{place.machine_dir}/agent/versions/{version}')}\n")

    def _say(self, stage: str, message: str) -> None:
        self.report(HostEvent(host=self.host.name, stage=stage, message=message))

    def _done(self, message: str, changed: bool = False, identity: AgentIdentity | None = None) -> None:
        text = identity.model_dump_json() if identity else ""
        self.report(
            HostEvent(host=self.host.name, stage="done", message=message, done=True, changed=changed, result_json=text)
        )


async def _log_tail(link: HostLink, machine_dir: str) -> str:
    result = await link.run_script(f"tail -n 4 {shlex.quote(machine_dir + '/logs/agent.out')}\n")
    return " | ".join(line.strip() for line in result.stdout.strip().splitlines()) or "it printed nothing"
