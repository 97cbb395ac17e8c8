"""What a plan says of the server that it replaces: kept until the new one is ready where both have room."""

from pathlib import Path
from typing import Any

import pytest

from fleet_controller.domain.facts import HostFacts
from fleet_controller.domain.services import DesiredState, ServiceSpec, ServiceState, ServiceStatus, Successor, ToolRun
from fleet_controller.domain.steps import ToolRef
from fleet_controller.planning.devices import memory_pool
from fleet_controller.planning.old_server import what_becomes_of

DATA = Path(__file__).parent / "data"
GPU_HOST = HostFacts.model_validate_json((DATA / "rtx4090.facts.json").read_text(encoding="utf-8"))
GB = 10**9


def spec(port: int = 8080, promised_bytes: int = 5 * GB, **fields: Any) -> ServiceSpec:
    arguments = ("-m", "m.gguf", "--port", str(port))
    values = {"arguments": arguments, "gpu_indices": (0,), "promised_memory_bytes": promised_bytes, **fields}
    return ServiceSpec(name="m", tool=ToolRef(name="bin/llama-server"), port=port, **values)


def status(state: ServiceState = ServiceState.READY, **fields: Any) -> ServiceStatus:
    return ServiceStatus(spec=spec(**fields), state=state, desired=DesiredState.RUNNING)


def host(free_bytes: int | None) -> HostFacts:
    gpu = GPU_HOST.gpus[0].model_copy(update={"memory_free_bytes": free_bytes, "memory_total_bytes": 24 * GB})
    return GPU_HOST.model_copy(update={"gpus": (gpu,)})


def said(running: ServiceStatus, new: ServiceSpec, free_bytes: int | None = 20 * GB) -> str:
    return what_becomes_of(running, new, host(free_bytes), (running,))


def test_with_room_for_both_it_goes_on() -> None:
    assert said(status(), spec(8081)) == "the old server goes on until the new one is ready on port 8081"
    assert said(status(), spec()).endswith("which is proven on another port first; then a gap while it starts on 8080")


def test_what_the_old_one_holds_is_not_free() -> None:
    short = said(status(), spec(promised_bytes=5 * GB + 2048), free_bytes=5 * GB)
    assert short == "the old server ends first: needs 2 KiB more than is free"
    assert "goes on" in said(status(), spec(), free_bytes=5 * GB)
    # Promised to the old one, and not taken yet: the device still calls it free.
    assert "needs 954 MiB more" in said(status(), spec(promised_bytes=20 * GB), free_bytes=24 * GB)


@pytest.mark.parametrize(
    ("new", "free_bytes", "why"),
    [
        (spec(promised_bytes=0), 20 * GB, "how much memory the new one takes is not known"),
        (spec(), None, "how much memory is free is not known"),
        (spec(shared_port_path="/v1/models"), 20 * GB, "several services share its server"),
        (spec(before_start=(ToolRun(tool=ToolRef(name="lms")),)), 20 * GB, "around its start"),
        (spec(arguments=("-m", "x")), 20 * GB, "cannot be tried on another port than 8080"),
    ],
)
def test_why_it_ends_first(new: ServiceSpec, free_bytes: int | None, why: str) -> None:
    found = said(status(), new, free_bytes)
    assert found.startswith("the old server ends first: ") and why in found


@pytest.mark.parametrize("state", [ServiceState.STOPPED, ServiceState.FAILED, ServiceState.BACKING_OFF])
def test_where_no_server_runs_nothing_is_said(state: ServiceState) -> None:
    assert said(status(state), spec(8081)) == ""


def test_a_successor_that_is_on_its_way_is_joined() -> None:
    successor = Successor(spec=spec(8081, 19 * GB), state=ServiceState.STARTING, gpu_memory_bytes=15 * GB)
    running = status().model_copy(update={"successor": successor, "gpu_memory_bytes": 4 * GB})
    assert said(running, spec(8081, 19 * GB), free_bytes=1 * GB).endswith("which is on its way already")
    assert memory_pool(host(1 * GB), host(1 * GB).gpus, (running,), running).free_bytes == 20 * GB
    given_up = running.model_copy(update={"successor": successor.model_copy(update={"state": ServiceState.FAILED})})
    assert "needs" in said(given_up, spec(8081, 19 * GB), free_bytes=1 * GB)


def test_one_that_is_not_ready_is_not_waited_for() -> None:
    assert said(status(ServiceState.UNHEALTHY), spec(8081)) == "the old server ends first: it is unhealthy"
