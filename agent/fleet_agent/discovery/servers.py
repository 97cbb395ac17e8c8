"""Finding model servers that others started: who answers on the ports that engines use, and as what."""

import asyncio
import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from fleet_agent.services.http import get

DEFAULT_PORTS = (8080, 8000, 30000, 1234, 11434)


@dataclass(frozen=True)
class ForeignServer:
    """A server on loopback. backend is "" where it does not say what it is."""

    port: int
    backend: str = ""
    version: str = ""
    models: tuple[str, ...] = ()
    pid: int | None = None
    user: str = ""
    command: str = ""
    needs_key: bool = False


async def find_servers(ports: Sequence[int], own_ports: Collection[int]) -> tuple[ForeignServer, ...]:
    """The servers that speak the OpenAI API on these loopback ports, but for our own."""
    wanted = [port for port in (ports or DEFAULT_PORTS) if port not in own_ports]
    found = await asyncio.gather(*(_identify(port) for port in wanted))
    return tuple(server for server in found if server is not None)


async def _identify(port: int) -> ForeignServer | None:
    answer = await get("127.0.0.1", port, "/v1/models")
    if answer is None:
        return None
    if answer.status in (401, 403):
        return ForeignServer(port, needs_key=True)
    try:
        document = json.loads(answer.body)
        models = tuple(str(model["id"]) for model in document["data"])
    except (ValueError, KeyError, TypeError):
        return None
    return ForeignServer(port, models=models)
