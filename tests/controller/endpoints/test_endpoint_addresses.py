"""Which addresses a service may have on the user's machine."""

import json
import os
from dataclasses import replace
from typing import Any

import pytest

from fleet_controller.domain.plan import DeployRequest
from fleet_controller.domain.services import ApiKey, ProcessIdentity, ServiceSpec, ServiceState, ServiceStatus
from fleet_controller.domain.steps import ToolRef
from fleet_controller.endpoints.addresses import KeyReference, Via, served_models
from fleet_controller.forwarding.manage import new_forward
from fleet_controller.forwarding.processes import identity_of
from fleet_controller.forwarding.record import Forward, ForwardState
from fleet_controller.operations.reports import HostServices
from fleet_controller.planning.wishes import kept_options, options_json


def status(model: str = "tiny-chat", runs: bool = True, **spec: Any) -> ServiceStatus:
    fields = {"name": model, "backend": "llama.cpp", "port": 8100, "served_model_name": model} | spec
    return ServiceStatus(
        spec=ServiceSpec(tool=ToolRef(name="llama-server"), **fields),
        state=ServiceState.READY,
        process=ProcessIdentity(pid=1, start_token="a") if runs else None,
    )


def on(host: str, *services: ServiceStatus, transport: str = "ssh") -> HostServices:
    address = "" if transport == "local" else "10.0.0.7"
    return HostServices(host=host, services=services, reachable=True, transport=transport, address=address)


def living_forward(port: int = 18100, remote_port: int = 8100) -> Forward:
    """One that is kept up, by this very process as far as anybody can see."""
    made = new_forward("tiny-chat", "gpu1", port, ("127.0.0.1", remote_port), ())
    return replace(made, supervisor=identity_of(os.getpid()), state=ForwardState.UP)


def ways(host: HostServices, *forwards: Forward) -> list[tuple[Via, str]]:
    [served] = served_models([host], forwards)
    return [(way.via, way.base_url) for way in served.ways]


@pytest.mark.parametrize("bind", ["127.0.0.1", "0.0.0.0"])
def test_a_server_on_this_machine_is_at_its_loopback(bind: str) -> None:
    host = on("here", status(bind_address=bind), transport="local")
    assert ways(host) == [(Via.LOCAL, "http://127.0.0.1:8100/v1")]


def test_another_hosts_loopback_is_reached_by_a_forward_alone() -> None:
    host = on("gpu1", status())
    assert ways(host) == []
    assert ways(host, living_forward()) == [(Via.FORWARD, "http://127.0.0.1:18100/v1")]


def test_a_forward_that_leads_elsewhere_or_lives_no_more_is_no_way() -> None:
    host = on("gpu1", status(port=8101))
    assert ways(host, living_forward()) == []
    assert ways(on("gpu1", status()), replace(living_forward(), supervisor=None)) == []
    assert ways(on("gpu2", status()), living_forward()) == []


@pytest.mark.parametrize(
    ("bind", "address"),
    [("0.0.0.0", "10.0.0.7"), ("::", "10.0.0.7"), ("192.168.1.5", "192.168.1.5"), ("fd00::5", "[fd00::5]")],
)
def test_a_server_on_the_network_is_tried_there_first(bind: str, address: str) -> None:
    host = on("gpu1", status(bind_address=bind))
    assert ways(host)[0] == (Via.NETWORK, f"http://{address}:8100/v1")
    if bind == "0.0.0.0":
        assert ways(host, living_forward())[1] == (Via.FORWARD, "http://127.0.0.1:18100/v1")


def test_a_stopped_service_has_no_endpoint() -> None:
    assert served_models([on("gpu1", status(runs=False))], []) == []


def test_they_come_by_model_and_host() -> None:
    hosts = [on("b", status("m2"), status("m1")), on("a", status("m2"))]
    assert [(one.model, one.host) for one in served_models(hosts, [])] == [("m1", "b"), ("m2", "a"), ("m2", "b")]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (json.dumps({"api_key": "env:GLM_KEY"}), KeyReference(environment="GLM_KEY")),
        (json.dumps({"api_key": "file:/etc/key"}), KeyReference(file="/etc/key")),
        (json.dumps({"api_key": "sk-secret"}), KeyReference()),
        (json.dumps({"api_key": "env:A B; rm"}), KeyReference()),
        ("{", KeyReference()),
        ("", KeyReference()),
        ("[1]", KeyReference()),
    ],
)
def test_a_key_is_known_by_its_reference_alone(options: str, told: KeyReference) -> None:
    guarded = status(api_key=ApiKey(secret="key", file_option="--api-key-file"), backend_options=options)
    [served] = served_models([on("gpu1", guarded)], [])
    assert served.key == told
    assert "sk-secret" not in repr(served)


def test_the_reference_that_a_deploy_was_given_reaches_its_clients() -> None:
    options = options_json(DeployRequest(model="m", pattern="gpu1", api_key="env:GLM_KEY", dtype="bfloat16"))
    assert "api_key" not in kept_options(options), "the next deploy is told its key anew"
    guarded = status(api_key=ApiKey(secret="key", environment="VLLM_API_KEY"), backend_options=options)
    [served] = served_models([on("gpu1", guarded)], [])
    assert served.key == KeyReference(environment="GLM_KEY")


def test_a_service_without_a_key_asks_for_none() -> None:
    [served] = served_models([on("gpu1", status())], [])
    assert served.key is None


def test_a_service_whose_record_its_host_lost_has_no_address() -> None:
    host = on("here", status(port=0), transport="local")
    [served] = served_models([host], [])
    assert served.ways == () and "lost the record" in served.why_none
