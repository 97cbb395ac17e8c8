"""The resident controller as a process: one per state folder, found by its lock, gone without a trace when killed."""

import asyncio
import os
import signal
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from fleet_controller.service.resident import find_resident, start_token, write_identity
from fleet_controller.settings import LONGEST_SOCKET_PATH_BYTES, Settings
from fleet_proto import PROTOCOL
from fleet_proto.v1 import common_pb2
from support.fleet_world import FleetWorld, fleet_world


@pytest.fixture
def world(tmp_path: Path) -> Iterator[FleetWorld]:
    with fleet_world(tmp_path) as made:
        made.hosts_yaml.write_text("hosts: {}\n")
        yield made


def settings_of(world: FleetWorld) -> Settings:
    return Settings(world.hosts_yaml, world.state, world.runtime)


def test_start_is_idempotent_and_stop_ends_it(world: FleetWorld) -> None:
    first = world.document("controller", "start")
    again = world.document("controller", "start")
    assert (first["started"], again["started"]) == (True, False)
    assert first["pid"] == again["pid"]

    status = world.document("controller", "status")
    assert status["pid"] == first["pid"]
    assert status["warm_connections"] == 0
    socket_path = Path(status["socket"])
    assert stat.S_IMODE(socket_path.stat().st_mode) == 0o600
    assert stat.S_IMODE(socket_path.parent.stat().st_mode) == 0o700

    assert world.document("controller", "stop")["stopped"] is True
    assert start_token(first["pid"]) is None
    assert not socket_path.exists()
    assert world.document("controller", "status", code=1) == {"running": False}


def test_two_starts_at_once_leave_one_controller(world: FleetWorld) -> None:
    command = world.command("controller", "start", "--json")
    both = [subprocess.Popen(command, env=world.environment, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    answers = [process.communicate(timeout=60)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    pids = {line.split(":")[1].strip(" ,") for answer in answers for line in answer.splitlines() if '"pid"' in line}
    assert len(pids) == 1


def test_a_killed_controller_hinders_nobody(world: FleetWorld) -> None:
    pid = world.document("controller", "start")["pid"]
    os.kill(pid, signal.SIGKILL)
    while start_token(pid) is not None:
        os.sched_yield()
    world.run("matrix")  # embedded, since no resident one answers
    assert world.document("controller", "start")["started"] is True


def test_a_process_with_a_recycled_pid_is_never_taken_for_it(world: FleetWorld) -> None:
    settings = settings_of(world)
    world.run("controller", "start")
    text = settings.identity_file.read_text()
    world.run("controller", "stop")
    stranger = subprocess.Popen(["sleep", "60"])
    try:
        pid = text.split('"pid": ')[1].split(",")[0]
        settings.identity_file.write_text(text.replace(f'"pid": {pid}', f'"pid": {stranger.pid}'))
        settings.socket_path.touch()
        assert find_resident(settings) is None
        assert world.document("controller", "stop")["stopped"] is False
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


def test_a_long_state_path_moves_the_socket_to_the_runtime_folder(tmp_path: Path) -> None:
    state = tmp_path / ("x" * LONGEST_SOCKET_PATH_BYTES)
    path = Settings(tmp_path / "hosts.yaml", state, Path("/tmp/fleet-test")).socket_path
    assert path.parent == Path("/tmp/fleet-test")


class OtherVersion:
    """Answers the handshake of another version, and nothing else."""

    def __init__(self, protocol: int, version: str) -> None:
        self.reply = common_pb2.HandshakeReply(protocol=protocol, minimum_protocol=protocol, software_version=version)

    async def answer(self, request: object, context: object) -> common_pb2.HandshakeReply:
        return self.reply

    def handler(self) -> Any:
        call = grpc.unary_unary_rpc_method_handler(
            self.answer,
            request_deserializer=common_pb2.HandshakeRequest.FromString,
            response_serializer=common_pb2.HandshakeReply.SerializeToString,
        )
        return grpc.method_handlers_generic_handler("fleet.v1.Controller", {"Handshake": call})


@pytest.mark.parametrize(("protocol", "version"), [(PROTOCOL + 7, "9.9.9"), (PROTOCOL, "0.0.1")])
async def test_a_controller_of_another_version_is_refused_with_the_way_out(
    world: FleetWorld, protocol: int, version: str
) -> None:
    settings = settings_of(world)
    settings.state_dir.mkdir(mode=0o700)
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((OtherVersion(protocol, version).handler(),))
    server.add_insecure_port(f"unix:{settings.socket_path}")
    await server.start()
    write_identity(settings)
    try:
        done = await asyncio.to_thread(world.run, "hosts", code=1)
        assert version in done.stderr
        assert "fleet controller stop" in done.stderr
    finally:
        settings.identity_file.unlink()  # or closing the world would end this very test
        await server.stop(0)
