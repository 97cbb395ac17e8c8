"""What services claim of a host before they run: ports, and a place among those that may be."""

from collections.abc import Callable, Iterable, Mapping

from fleet_agent.problem import ProblemError
from fleet_agent.services.managed import ManagedService
from fleet_agent.services.model import ServiceSpec, ServiceState


class Claims:
    """`services` is the supervisor's own table; `successor_ports` tells each name with the port of its trial."""

    def __init__(
        self,
        services: Mapping[str, ManagedService],
        successor_ports: Callable[[], Iterable[tuple[str, int]]],
        most_services: float | None,
    ) -> None:
        self._services, self._successor_ports, self._most_services = services, successor_ports, most_services
        self._ports: dict[str, tuple[int, str]] = {}  # and the path by which a shared one is known

    def ports(self) -> frozenset[int]:
        return frozenset(port for port, _ in self._ports.values())

    def forget(self, name: str) -> None:
        self._ports.pop(name, None)

    def claim(self, spec: ServiceSpec) -> None:
        self._ports[spec.name] = (spec.port, spec.shared_port_path)

    def check(self, spec: ServiceSpec) -> None:
        """A port belongs to the service that wants it even while its server is down; some share one server's."""
        for name, port in self._successor_ports():
            if name != spec.name and port == spec.port:
                raise ProblemError(
                    "port-taken",
                    f"on port {port} the successor of {name!r} is tried",
                    "wait a moment, then deploy again",
                )
        for name, (port, shared) in self._ports.items():
            if shared and shared == spec.shared_port_path:
                continue
            other = self._services.get(name)
            wanted = other is None or (other.wanted and other.state is not ServiceState.FAILED)
            if name != spec.name and port == spec.port and wanted:
                raise ProblemError(
                    "port-taken",
                    f"port {spec.port} belongs to the service {name!r} of this host",
                    f"stop it (`fleet stop {name}`), or deploy on another port: --port N",
                )

    def check_count(self, spec: ServiceSpec) -> None:
        """limits.max_services of hosts.yaml. Plans honour it, but two controllers may plan at once."""
        limit = self._most_services
        others = [s.name for s in self._services.values() if s.wanted and s.name != spec.name]
        if limit is not None and len(others) >= limit:
            raise ProblemError(
                "too-many-services",
                f"limits.max_services of this host is {limit:g}, and {', '.join(sorted(others))} already run here",
                "stop one of them with `fleet stop`",
            )
