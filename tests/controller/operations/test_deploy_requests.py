"""What a deploy is refused for before any host is asked, and how an endpoint is written."""

from pathlib import Path

import pytest

from fleet_controller.demo.tiny_model import make_tiny_model
from fleet_controller.domain.addresses import base_url
from fleet_controller.domain.plan import DeployRequest
from fleet_controller.operations.context import FleetContext
from fleet_controller.operations.planning import plan_deploy
from fleet_controller.operations.problems import OperationError
from fleet_controller.operations.resolving import resolve_for
from fleet_controller.settings import Settings


@pytest.fixture
def context(tmp_path: Path) -> FleetContext:
    hosts = tmp_path / "hosts.yaml"
    hosts.write_text("hosts:\n  a:\n    transport: local\n")
    return FleetContext(Settings(hosts, tmp_path / "state", tmp_path / "run"))


@pytest.mark.parametrize("address", ["foo", "localhost", "127.0.0.1:80", "10.0.0.0/8"])
async def test_bind_takes_an_ip_address(context: FleetContext, address: str) -> None:
    with pytest.raises(OperationError, match="IP address") as caught:
        await plan_deploy(context, DeployRequest(model="/m/x.gguf", pattern="a", bind_address=address))
    assert caught.value.usage


@pytest.mark.parametrize("path", ["/models/big-Q8_0.gguf", "./big-Q8_0-00001-of-00002.gguf"])
async def test_a_file_is_not_given_a_quantization_that_its_name_denies(path: str) -> None:
    with pytest.raises(OperationError, match="holds Q8_0, not Q4_K_M") as caught:
        await resolve_for(DeployRequest(model=path, quantization="Q4_K_M"), "")
    assert caught.value.usage
    found = await resolve_for(DeployRequest(model=path, quantization="q8_0"), "")
    assert found.artifacts[0].local_path == path


async def test_a_folder_is_not_given_a_quantization_that_its_configuration_denies(tmp_path: Path) -> None:
    folder = str(make_tiny_model(tmp_path).hf_dir)
    with pytest.raises(OperationError, match="holds F16, not 4bit"):
        await resolve_for(DeployRequest(model=folder, quantization="4bit"), "")


async def test_a_file_whose_name_tells_nothing_takes_the_word_of_the_user() -> None:
    found = await resolve_for(DeployRequest(model="/models/model.gguf", quantization="Q4_K_M"), "")
    assert found.artifacts[0].quantization == "Q4_K_M"


def test_endpoints() -> None:
    assert base_url("127.0.0.1", 8100) == "http://127.0.0.1:8100/v1"
    assert base_url("::1", 8100) == "http://[::1]:8100/v1"
