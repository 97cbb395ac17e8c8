"""What `fleet agent ...` says before it asks."""

from fleet_controller.cli.agent_command import _intent
from fleet_controller.service.protocol import software_version
from fleet_proto.v1 import controller_pb2


def test_an_upgrade_within_one_version_does_not_name_it_twice() -> None:
    def said(version: str) -> str:
        return _intent("upgrade", controller_pb2.HostReport(host="a", agent_version=version), purge=False)

    ours = software_version()
    assert said(ours) == f"bring agent {ours} to this fleet's build; models go on"
    assert said("0.0.9") == f"upgrade agent 0.0.9 to {ours}; models go on"
    assert said("") == f"upgrade agent (not answering) to {ours}; models go on"
