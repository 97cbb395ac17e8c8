"""What an agent tells of a service whose record was damaged: its name, and what happened."""

from fleet_controller.domain.services import ServiceState, ServiceStatus
from fleet_controller.wire import from_wire
from fleet_proto.v1 import common_pb2, jobs_pb2, services_pb2


def test_a_status_with_nothing_but_a_name_is_understood() -> None:
    message = services_pb2.ServiceStatus(
        spec=services_pb2.ServiceSpec(name="tiny", tool=jobs_pb2.ToolRef()),
        state=services_pb2.SERVICE_STATE_FAILED,
        problem=common_pb2.Problem(code="journal-damaged", message="it was damaged"),
    )
    status = from_wire(ServiceStatus, message)
    assert status.spec.name == "tiny" and status.state is ServiceState.FAILED
    assert status.problem is not None and status.problem.code == "journal-damaged"
