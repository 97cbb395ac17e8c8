"""The CLI's way to the controller: the resident one where it runs, else the same service inside this process."""

import asyncio
import errno
import logging
import os
import shlex
import shutil
import sys
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from fleet_controller.cli.failures import CommandFailure, Detached, from_rpc_error
from fleet_controller.settings import Settings, private_folder

if TYPE_CHECKING:
    from fleet_proto.v1.controller_pb2_grpc import ControllerAsyncStub

Answer = TypeVar("Answer")


@asynccontextmanager
async def connected_controller() -> AsyncIterator["ControllerAsyncStub"]:
    """A stub of the controller, after a handshake. Raises ProtocolSkewError where a resident one is another version."""
    from fleet_controller.service.client import open_stub, shake_hands
    from fleet_controller.service.resident import find_resident

    settings = Settings.from_environment()
    if find_resident(settings) is not None:
        async with open_stub(settings.socket_path) as stub:
            await shake_hands(stub)
            yield stub
        return
    from fleet_controller.service.server import ControllerServer

    _demand_state_folder(settings)
    folder = settings.private_socket_folder()
    server = ControllerServer(settings, folder / "controller.sock", resident=False)
    try:
        await server.start()
        async with open_stub(server.socket_path) as stub:
            yield stub
    finally:
        await server.stop()
        shutil.rmtree(folder, ignore_errors=True)


def _demand_state_folder(settings: Settings) -> None:
    """Raises CommandFailure where this machine's own folder is the trouble, before every host is blamed for it."""
    try:
        private_folder(settings.state_dir)
        if not os.access(settings.state_dir, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise CommandFailure(
            f"the state folder {settings.state_dir} cannot be used: {error.strerror}",
            "make it yours, or set FLEET_STATE_DIR to a folder that you may write to",
        ) from None


def typed_command() -> str:
    """The command as the user typed it, to be repeated."""
    return shlex.join(["fleet", *sys.argv[1:]])


def call(work: Coroutine[Any, Any, Answer], when_interrupted: str = "") -> Answer:
    """Run one command's coroutine. Ctrl-C ends it; with `when_interrupted`, the command that comes back is named."""
    logging.lastResort = None  # what libraries log is not for the user of a command
    try:
        return asyncio.run(_translated(work))
    except KeyboardInterrupt:
        if when_interrupted:
            raise Detached(
                "detached: what was started on the hosts goes on", f"to come back, repeat: {when_interrupted}"
            ) from None
        raise


async def _translated(work: Coroutine[Any, Any, Answer]) -> Answer:
    import grpc

    from fleet_controller.service.client import ProtocolSkewError
    from fleet_controller.settings import UnsafeFolderError

    try:
        return await work
    except grpc.aio.AioRpcError as error:
        raise from_rpc_error(error) from None
    except ProtocolSkewError as error:
        raise CommandFailure(
            str(error), "run: fleet controller stop (the next command then starts a matching one)"
        ) from None
    except UnsafeFolderError as error:
        raise CommandFailure(str(error)) from None
