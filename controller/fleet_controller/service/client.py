"""The client's end of the controller's socket."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, cast

import grpc

from fleet_controller.service.protocol import software_version
from fleet_proto import MINIMUM_PROTOCOL, PROTOCOL
from fleet_proto.v1.common_pb2 import HandshakeReply, HandshakeRequest
from fleet_proto.v1.controller_pb2_grpc import ControllerStub

if TYPE_CHECKING:
    from fleet_proto.v1.controller_pb2_grpc import ControllerAsyncStub

HANDSHAKE_SECONDS = 10.0
LARGEST_MESSAGE_BYTES = 64 * 1024 * 1024
CHANNEL_OPTIONS = (
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.default_authority", "localhost"),
    ("grpc.max_receive_message_length", LARGEST_MESSAGE_BYTES),
    ("grpc.enable_http_proxy", 0),
)


class ProtocolSkewError(Exception):
    """The resident controller and this command line do not understand each other."""


@asynccontextmanager
async def open_stub(socket_path: Path) -> AsyncIterator["ControllerAsyncStub"]:
    """A stub over a unix socket; the channel is closed on the way out."""
    channel = grpc.aio.insecure_channel(f"unix:{socket_path}", options=CHANNEL_OPTIONS)
    try:
        yield cast("ControllerAsyncStub", ControllerStub(channel))
    finally:
        await channel.close()


async def shake_hands(stub: "ControllerAsyncStub", timeout_seconds: float = HANDSHAKE_SECONDS) -> HandshakeReply:
    """Exchange versions. Raises ProtocolSkewError where the ranges do not meet or the software differs."""
    ours = software_version()
    reply: HandshakeReply = await stub.Handshake(
        HandshakeRequest(protocol=PROTOCOL, minimum_protocol=MINIMUM_PROTOCOL, software_version=ours),
        timeout=timeout_seconds,
    )
    if reply.protocol < MINIMUM_PROTOCOL or reply.minimum_protocol > PROTOCOL:
        raise ProtocolSkewError(
            f"the resident controller speaks protocol {reply.minimum_protocol}-{reply.protocol} "
            f"(fleet {reply.software_version}), this fleet {ours} speaks {MINIMUM_PROTOCOL}-{PROTOCOL}"
        )
    if reply.software_version != ours:
        raise ProtocolSkewError(f"the resident controller is fleet {reply.software_version}, this is fleet {ours}")
    return reply


async def answering(socket_path: Path, timeout_seconds: float = HANDSHAKE_SECONDS) -> HandshakeReply | None:
    """What the controller behind a socket says of itself, whatever its version; None where none answers."""
    async with open_stub(socket_path) as stub:
        request = HandshakeRequest(
            protocol=PROTOCOL, minimum_protocol=MINIMUM_PROTOCOL, software_version=software_version()
        )
        try:
            reply: HandshakeReply = await stub.Handshake(request, timeout=timeout_seconds)
            return reply
        except grpc.aio.AioRpcError:
            return None
