"""The services of hosts, as frozen models, for commands that reckon with them."""

from fleet_controller.cli.client import connected_controller
from fleet_controller.operations.reports import HostServices
from fleet_controller.wire import from_wire
from fleet_proto.v1 import controller_pb2


async def fetch_messages(
    pattern: str, measure_rates: bool = False, find_foreign: bool = False
) -> list[controller_pb2.HostServices]:
    """What each host runs, by name of the host."""
    query = controller_pb2.ListServicesQuery(pattern=pattern, measure_rates=measure_rates, find_foreign=find_foreign)
    async with connected_controller() as controller:
        found = [host async for host in controller.ListServices(query)]
    return sorted(found, key=lambda host: host.host)


async def fetch_services(pattern: str) -> list[HostServices]:
    return [from_wire(HostServices, message) for message in await fetch_messages(pattern)]
