"""The agent on TCP with mutual TLS, where the host is enrolled: the same calls, for one certificate name only."""

import contextlib
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import grpc

from fleet_agent.identity.store import Identity, IdentityStore
from fleet_agent.problem import ProblemError
from fleet_agent.server.problems import abort, wrapped

_log = logging.getLogger(__name__)
_GRACE_SECONDS = 1.0
_NAMES = "x509_subject_alternative_name"
# A controller behind a slow link pings; one that vanished must not hold a connection for hours.
OPTIONS = (
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.so_reuseport", 0),  # two agents on one port would share it in silence
    # Strangers cost descriptors that the agent needs for its work: they are few, and leave soon.
    ("grpc.server_handshake_timeout_ms", 10_000),
    ("grpc.max_allowed_incoming_connections", 128),
)


class RoleInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[misc]  # grpc.aio has no types
    """Lets only the controller's name through, alone. TLS has shown already that our authority signed it."""

    def __init__(self, controller_name: Callable[[], str]) -> None:
        self._controller_name = controller_name

    async def intercept_service(self, continuation: Callable[[Any], Awaitable[Any]], handler_call_details: Any) -> Any:
        handler = await continuation(handler_call_details)
        return None if handler is None else wrapped(handler, self._unary, self._stream)

    def _unary(self, call: Any) -> Any:
        async def guarded(request: Any, context: Any) -> Any:
            await self._demand_controller(context)
            return await call(request, context)

        return guarded

    def _stream(self, call: Any) -> Any:
        async def guarded(request: Any, context: Any) -> Any:
            await self._demand_controller(context)
            async with contextlib.aclosing(call(request, context)) as messages:
                async for message in messages:
                    yield message

        return guarded

    async def _demand_controller(self, context: Any) -> None:
        names = {name.decode(errors="replace") for name in context.auth_context().get(_NAMES, ())}
        if names != {self._controller_name()}:
            _log.warning("refused a call of %s from %s", ", ".join(sorted(names)) or "nobody", context.peer())
            problem = ProblemError(
                "not-a-controller", "this certificate may not control agents", "", "PERMISSION_DENIED"
            )
            await abort(context, problem)


class TlsListener:
    """A second server beside the one on the unix socket; `make_server` gives it every call, with its interceptors."""

    def __init__(self, store: IdentityStore, make_server: Callable[[Any], Any]) -> None:
        self._store = store
        self._make_server = make_server
        self._server: Any = None
        self._identity: Identity | None = None
        self._served: Identity | None = None  # what gRPC was given last, asked for at each handshake
        self.problem = ""

    @property
    def listening(self) -> bool:
        return self._server is not None

    @property
    def identity(self) -> Identity | None:
        return self._identity

    async def apply(self) -> None:
        """Serve as what the store has now. A port that cannot be had, or a broken file, is told in `problem`."""
        try:
            wanted = self._store.load()
        except ProblemError as error:
            wanted, self.problem = None, error.message
            _log.error("%s", error.message)
        else:
            self.problem = ""
        before, self._identity = self._identity, wanted
        if wanted is None or before is None or _ends_connections(before, wanted):
            await self.close()
        if wanted is not None and self._server is None:
            await self._listen(wanted)

    async def close(self) -> None:
        server, self._server = self._server, None
        if server is not None:
            await server.stop(_GRACE_SECONDS)

    async def _listen(self, identity: Identity) -> None:
        server = self._make_server(RoleInterceptor(self._controller_name))
        self._served = identity
        credentials = grpc.dynamic_ssl_server_credentials(
            _configuration(identity), self._fetch, require_client_authentication=True
        )
        host = f"[{identity.bind_address}]" if ":" in identity.bind_address else identity.bind_address
        try:
            if not server.add_secure_port(f"{host}:{identity.port}", credentials):
                raise RuntimeError("the port was not bound")
        except RuntimeError:
            self.problem = f"cannot listen on {host}:{identity.port}: is the port taken?"
            _log.error("%s", self.problem)
            return
        await server.start()
        self._server = server
        _log.info("serving the controller of our authority on %s:%d", host, identity.port)

    def _controller_name(self) -> str:
        return self._identity.controller_name if self._identity else ""

    def _fetch(self) -> Any:
        """Called by gRPC before each handshake, on a thread of its own: a renewed certificate counts from the next."""
        identity = self._identity
        if identity is None or identity is self._served:
            return None
        self._served = identity
        return _configuration(identity)


def _ends_connections(before: Identity, now: Identity) -> bool:
    """A renewed certificate ends none. Another authority does: its name for a controller is the same, so that whoever
    was let in by the one before would go on controlling this host.
    """
    return (before.bind_address, before.port, before.authority_pem, before.controller_name) != (
        now.bind_address, now.port, now.authority_pem, now.controller_name
    )  # fmt: skip


def _configuration(identity: Identity) -> Any:
    pair = (identity.key_pem.encode(), identity.certificate_pem.encode())
    return grpc.ssl_server_certificate_configuration([pair], identity.authority_pem.encode())
