"""One controller on one unix socket: builds the parts, serves, and takes them down again."""

import asyncio
import logging
import os
import time
from pathlib import Path

import grpc

from fleet_controller.operations.context import FleetContext
from fleet_controller.service.client import LARGEST_MESSAGE_BYTES
from fleet_controller.service.servicer import ControllerServicer
from fleet_controller.settings import Settings, private_folder
from fleet_proto.v1.controller_pb2_grpc import add_ControllerServicer_to_server

logger = logging.getLogger(__name__)

STOP_GRACE_SECONDS = 2.0
SETTLE_SECONDS = 0.5


class ControllerServer:
    """The service behind `socket_path` (mode 0600 in a folder of mode 0700)."""

    def __init__(self, settings: Settings, socket_path: Path, resident: bool) -> None:
        self.socket_path = socket_path
        self.asked_to_end = asyncio.Event()
        self._context = FleetContext(settings)
        self._resident = resident
        self._server: grpc.aio.Server | None = None
        self._start: asyncio.Task[None] | None = None
        self._resumed: asyncio.Task[None] | None = None
        self._catching_up: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Returns once the socket takes calls. The caller holds the lock where it is a resident one's path."""
        private_folder(self.socket_path.parent)
        self.socket_path.unlink(missing_ok=True)  # of a controller that was killed
        server = grpc.aio.server(options=[("grpc.max_receive_message_length", LARGEST_MESSAGE_BYTES)])
        servicer = ControllerServicer(self._context, int(time.time() * 1000), self.asked_to_end.set)
        add_ControllerServicer_to_server(servicer, server)
        previous = os.umask(0o177)  # the socket is born with mode 0600
        try:
            server.add_insecure_port(f"unix:{self.socket_path}")
        finally:
            os.umask(previous)
        self._server = server  # before the wait: who is interrupted in it stops the server too
        self._start = asyncio.create_task(server.start())
        await asyncio.shield(self._start)  # gRPC cannot stop a server whose start was broken off
        if self._resident:
            self._resumed = asyncio.create_task(_resume(self._context))
        if self._resident:
            from fleet_controller.operations.catching_up import CatchUp

            self._catching_up = asyncio.create_task(CatchUp(self._context).run())

    async def stop(self) -> None:
        """Ends calls and connections. Jobs and services on the hosts go on."""
        if self._resumed is not None:
            self._resumed.cancel()
            await asyncio.gather(self._resumed, return_exceptions=True)
        if self._server is not None and self._start is not None:
            await asyncio.gather(self._start, return_exceptions=True)
            await self._server.stop(STOP_GRACE_SECONDS if self._resident else 0)
        if self._catching_up is not None:
            self._catching_up.cancel()
            await asyncio.gather(self._catching_up, return_exceptions=True)
        await self._context.close()
        if not self._resident:
            await _settle()


async def _resume(context: FleetContext) -> None:
    """Pulls that a controller was killed at; what goes wrong with them is for whoever asks for them."""
    from fleet_controller.operations.pull import resume_all

    try:
        await resume_all(context)
    except Exception:
        logger.exception("pulls were not gone on with")


async def _settle() -> None:
    """Let gRPC's tasks end by themselves: one that the loop's own end cancels prints a traceback (grpcio 1.85)."""
    others = asyncio.all_tasks() - {asyncio.current_task()}
    if others:
        await asyncio.wait(others, timeout=SETTLE_SECONDS)
