"""How a client reaches a model server."""

import pytest

from fleet_controller.domain.addresses import base_url, tunnel_command


def test_an_ipv6_address_gets_its_brackets() -> None:
    assert base_url("127.0.0.1", 8080) == "http://127.0.0.1:8080/v1"
    assert base_url("::1", 8080) == "http://[::1]:8080/v1"


@pytest.mark.parametrize(
    ("bind_address", "command"),
    [
        ("127.0.0.1", "ssh -N -L 8100:127.0.0.1:8100 gpu1"),
        ("::1", "ssh -N -L 8100:[::1]:8100 gpu1"),
        ("0.0.0.0", ""),
        ("10.0.0.7", ""),
    ],
)
def test_a_loopback_endpoint_of_another_host_needs_a_tunnel(bind_address: str, command: str) -> None:
    assert tunnel_command("gpu1", bind_address, 8100) == command
