"""Bytes that cannot take the direct way: through an OpenSSH child process of the controller.

A host that reaches no other one gets its upstream's port on its own loopback; the head of an import gets the folder of
the controller's machine there, as a hub of its own. TLS goes end to end: what is in between sees nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

from fleet_controller.distributing.messages import Order, Peer, Route, order_line
from fleet_controller.domain.pulls import PlannedPull
from fleet_controller.forwarding.reverse import ReverseForward, open_reverse
from fleet_controller.operations.problems import OperationError
from fleet_controller.operations.pull_link import PullLink
from fleet_controller.pulling.folder_server import FolderServer
from fleet_inventory.host_file import Transport
from fleet_inventory.hosts import Host

LOOPBACK = "127.0.0.1"
RETRY_SECONDS = 2.0


class PullFeeds:
    """The ways of one pull. Orders go through `send`, in their order for each host."""

    def __init__(self, pull: PlannedPull, tell: Callable[[str, str], None]) -> None:
        """tell(name of a host, message) is for people."""
        self._pull = pull
        self._tell = tell
        self._hosts: dict[str, Host] = {}
        self._fed: set[str] = set()
        self._ways: dict[tuple[str, str, int], ReverseForward] = {}
        self._server: FolderServer | None = None
        self._folder_head = ""
        self._queues: dict[str, asyncio.Queue[tuple[PullLink, Order]]] = {}
        self._senders: list[asyncio.Task[None]] = []

    def know(self, hosts: Mapping[str, Host]) -> None:
        self._hosts = dict(hosts)

    def feed(self, name: str) -> None:
        """From now on this host's peers are brought to it."""
        self._fed.add(name)

    def is_fed(self, name: str) -> bool:
        return name in self._fed

    def serve_folder(self, head: str) -> str:
        """The folder as a hub on this machine; `head`'s routes lead there. Returns its URL here."""
        self._folder_head = head
        if self._server is None:
            files = self._pull.files
            self._server = FolderServer(self._pull.source.served_folder, files.repository, files.commit, files.files)
            self._server.start()
        return self._server.url

    def send(self, link: PullLink, order: Order) -> None:
        """Routes of a host that is fed wait until their way is open; everything else goes at once."""
        if not self._needs_way(link.name, order):
            link.order(order_line(order))
            return
        queue = self._queues.get(link.name)
        if queue is None:
            queue = self._queues[link.name] = asyncio.Queue()
            self._senders.append(asyncio.create_task(self._send_all(queue)))
        queue.put_nowait((link, order))

    def _needs_way(self, name: str, order: Order) -> bool:
        if name in self._queues:  # nothing overtakes
            return True
        if not isinstance(order, Route):
            return False
        is_remote = self._hosts[name].transport is not Transport.LOCAL
        return name in self._fed or (order.hub is not None and name == self._folder_head and is_remote)

    async def _send_all(self, queue: asyncio.Queue[tuple[PullLink, Order]]) -> None:
        while True:
            link, order = await queue.get()
            while isinstance(order, Route):
                try:
                    order = await self._led(link.name, order)
                    break
                except OperationError as error:
                    self._tell(link.name, error.problem.message)
                await asyncio.sleep(RETRY_SECONDS)
                if not queue.empty():  # what came meanwhile holds instead
                    link, order = queue.get_nowait()
            link.order(order_line(order))

    async def _led(self, name: str, route: Route) -> Route:
        """The route with every address that the host cannot dial replaced by one of its own loopback."""
        if route.hub is not None and name == self._folder_head and self._server is not None:
            port = await self._way(name, LOOPBACK, self._server.port)
            hub = route.hub.model_copy(update={"endpoint": f"http://{LOOPBACK}:{port}"})
            return route.model_copy(update={"hub": hub})
        if name not in self._fed:
            return route
        head = await self._led_peer(name, route.head)
        return route.model_copy(update={"head": head, "upstream": await self._led_peer(name, route.upstream)})

    async def _led_peer(self, name: str, peer: Peer | None) -> Peer | None:
        if peer is None:
            return None
        port = await self._way(name, peer.address, peer.port)
        return peer.model_copy(update={"address": LOOPBACK, "port": port})

    async def _way(self, name: str, address: str, port: int) -> int:
        """A port on the host's loopback that leads, over ssh and this machine, to `address`:`port`."""
        key = (name, address, port)
        if key not in self._ways:
            self._ways[key] = await open_reverse(self._hosts[name], address, port)
        return self._ways[key].port

    async def close(self) -> None:
        for task in self._senders:
            task.cancel()
        await asyncio.gather(*self._senders, return_exceptions=True)
        await asyncio.gather(*(way.close() for way in self._ways.values()), return_exceptions=True)
        if self._server is not None:
            self._server.stop()
