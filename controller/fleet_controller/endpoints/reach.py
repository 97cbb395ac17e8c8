"""Whether an address answers from this machine: a TCP connection, then GET /v1/models, else the health path."""

import asyncio
import http.client
import urllib.parse
from collections.abc import Sequence

from fleet_controller.domain.base import Frozen
from fleet_controller.endpoints.addresses import ServedModel, Via, Way

CONNECT_SECONDS = 3.0
ANSWER_SECONDS = 5.0
AT_ONCE = 32
# It answers and wants to know who asks.
NEEDS_KEY_STATUSES = (401, 403)


class Endpoint(Frozen):
    """A running service and the address by which it answers here; `base_url` is "" where none does, for `reason`."""

    served: ServedModel
    base_url: str = ""
    via: Via | None = None
    needs_key: bool = False
    reason: str = ""


async def reachable(models: Sequence[ServedModel]) -> list[Endpoint]:
    """Each service with the first of its addresses that answers, in the order given."""
    bound = asyncio.Semaphore(AT_ONCE)

    async def look(served: ServedModel) -> Endpoint:
        async with bound:
            return await _first_answering(served)

    return list(await asyncio.gather(*(look(served) for served in models)))


async def _first_answering(served: ServedModel) -> Endpoint:
    reasons = []
    for way in served.ways:
        answer = await asyncio.to_thread(ask, way, served.health_path)
        if isinstance(answer, bool):
            return Endpoint(
                served=served, base_url=way.base_url, via=way.via, needs_key=answer or served.key is not None
            )
        reasons.append(f"{way.base_url}: {answer}")
    return Endpoint(served=served, reason="; ".join(reasons) or served.why_none)


def ask(way: Way, health_path: str) -> bool | str:
    """Whether the server at an address wants a key; why it does not answer, where it does not."""
    parts = urllib.parse.urlsplit(way.base_url)
    reason = "it does not answer"
    for path in (f"{parts.path}/models", health_path):
        try:
            status = _get(parts.hostname or "", parts.port or 0, path)
        except (http.client.RemoteDisconnected, ConnectionResetError, BrokenPipeError):
            reason = "the connection was closed"  # MLX-LM does so at its models while its host has no cache
            continue
        except OSError as error:
            return _words(error)
        except http.client.HTTPException:
            reason = "what answers there does not speak HTTP"
            continue
        if status in NEEDS_KEY_STATUSES:
            return True
        if 200 <= status < 300:
            return False
        reason = f"it answers {status}"
    return reason


def _get(host: str, port: int, path: str) -> int:
    """The status of a GET, without any proxy. Raises OSError, http.client.HTTPException."""
    connection = http.client.HTTPConnection(host, port, timeout=CONNECT_SECONDS)
    try:
        connection.connect()
        assert connection.sock is not None
        connection.sock.settimeout(ANSWER_SECONDS)
        connection.request("GET", path, headers={"Connection": "close"})
        return connection.getresponse().status
    finally:
        connection.close()


def _words(error: OSError) -> str:
    if isinstance(error, TimeoutError):
        return "no answer in time"
    return (error.strerror or str(error)).lower()
