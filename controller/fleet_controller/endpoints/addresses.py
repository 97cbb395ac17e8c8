"""The addresses that a service may have on this machine: its host's own loopback, its host's network, a forward."""

import json
import re
from collections.abc import Iterable
from enum import StrEnum

from fleet_controller.domain.addresses import base_url, is_loopback
from fleet_controller.domain.base import Frozen
from fleet_controller.domain.services import ServiceSpec, ServiceState, ServiceStatus
from fleet_controller.forwarding.record import Forward
from fleet_controller.operations.reports import HostServices

WILDCARD_ADDRESSES = ("0.0.0.0", "::", "*", "")
LOCAL_TRANSPORT = "local"
NO_PORT = "its host has lost the record of its port"


class Via(StrEnum):
    """How an address leads to the server."""

    LOCAL = "local"  # the server runs on this machine
    NETWORK = "network"  # it listens on its host's network
    FORWARD = "forward"  # a forward of ours


class Way(Frozen):
    """One address to try; `base_url` as "http://127.0.0.1:8100/v1"."""

    via: Via
    base_url: str


class KeyReference(Frozen):
    """Where a client finds the key that a server asks for; never the key. Exactly one is set, or none: not known."""

    environment: str = ""
    file: str = ""

    @classmethod
    def parse(cls, text: str) -> "KeyReference":
        """From "env:NAME" or "file:/path"; anything else is not known."""
        kind, _, rest = text.partition(":")
        if kind == "env" and re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", rest):
            return cls(environment=rest)
        if kind == "file" and rest:
            return cls(file=rest)
        return cls()

    def __str__(self) -> str:
        return f"env:{self.environment}" if self.environment else f"file:{self.file}" if self.file else ""


class ServedModel(Frozen):
    """A service that runs, and the ways to it from here, the shortest first. `key` is None where it asks for none."""

    model: str
    host: str
    served_model_name: str
    backend: str
    backend_version: str = ""
    quantization: str = ""
    context_length: int = 0
    state: ServiceState = ServiceState.UNSPECIFIED
    health_path: str = "/health"
    key: KeyReference | None = None
    ways: tuple[Way, ...] = ()
    why_none: str = ""


def served_models(hosts: Iterable[HostServices], forwards: Iterable[Forward]) -> list[ServedModel]:
    """Every service that has a process, by model and host."""
    kept = list(forwards)
    found = [_served(host, status, kept) for host in hosts for status in host.services if status.process is not None]
    return sorted(found, key=lambda one: (one.model, one.host))


def forward_of(forwards: Iterable[Forward], model: str, host: str) -> Forward | None:
    return next((one for one in forwards if (one.model, one.host) == (model, host)), None)


def leads_to(forward: Forward, spec: ServiceSpec) -> bool:
    """Whether a forward still goes where the service listens: a redeploy may move it."""
    return (forward.remote_address, forward.remote_port) == (address_on_host(spec.bind_address), spec.port)


def address_on_host(bind_address: str) -> str:
    """The address by which the host itself reaches a server bound so."""
    if bind_address in WILDCARD_ADDRESSES:
        return "::1" if bind_address == "::" else "127.0.0.1"
    return bind_address


def ways_to(host: HostServices, spec: ServiceSpec, forward: Forward | None) -> tuple[Way, ...]:
    """The addresses to try from this machine, the shortest way first; none where the agent lost the record of it."""
    if not spec.port:
        return ()
    if host.transport == LOCAL_TRANSPORT:
        return (Way(via=Via.LOCAL, base_url=base_url(address_on_host(spec.bind_address), spec.port)),)
    ways = []
    if not is_loopback(spec.bind_address):
        address = host.address if spec.bind_address in WILDCARD_ADDRESSES else spec.bind_address
        ways.append(Way(via=Via.NETWORK, base_url=base_url(address, spec.port)))
    if forward is not None and forward.is_kept_up and leads_to(forward, spec):
        ways.append(Way(via=Via.FORWARD, base_url=forward.base_url))
    return tuple(ways)


def _served(host: HostServices, status: ServiceStatus, forwards: list[Forward]) -> ServedModel:
    spec = status.spec
    forward = forward_of(forwards, spec.name, host.host)
    return ServedModel(
        model=spec.name,
        host=host.host,
        served_model_name=spec.served_model_name or spec.name,
        backend=spec.backend,
        backend_version=spec.backend_version,
        quantization=spec.quantization,
        context_length=spec.context_length,
        state=status.state,
        health_path=spec.readiness.path,
        key=_key(spec),
        ways=ways_to(host, spec, forward),
        why_none=f"it listens on {host.host}'s own {spec.bind_address}:{spec.port}" if spec.port else NO_PORT,
    )


def _key(spec: ServiceSpec) -> KeyReference | None:
    """How the deploy was told the key: its options are kept with the service."""
    if spec.api_key is None:
        return None
    try:
        options = json.loads(spec.backend_options or "{}")
    except ValueError:
        return KeyReference()
    told = options.get("api_key") if isinstance(options, dict) else None
    return KeyReference.parse(told) if isinstance(told, str) else KeyReference()
