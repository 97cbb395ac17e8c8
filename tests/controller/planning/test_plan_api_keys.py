"""Which servers may be reached by others: only those that ask for a key, in a way that no command line shows."""

import pytest

from fleet_controller.backends import BACKENDS
from fleet_controller.backends.base import TakesApiKey
from fleet_controller.domain.plan import DeployRequest
from fleet_controller.domain.services import ApiKey, ConfigurationFile
from fleet_controller.planning.problem import PlanProblem
from fleet_controller.planning.secrets import api_key_of

KEYED = DeployRequest(model="m", bind_address="0.0.0.0", api_key="env:KEY", api_key_id="0123456789abcdef")
SECRET = "api-key-0123456789abcdef"


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("llama.cpp", ApiKey(secret=SECRET, file_option="--api-key-file")),
        ("vllm", ApiKey(secret=SECRET, environment="VLLM_API_KEY")),
        ("sglang", ApiKey(secret=SECRET, configuration=ConfigurationFile(option="--config", key="api-key"))),
    ],
)
def test_how_each_backend_takes_its_key(name: str, key: ApiKey) -> None:
    assert api_key_of(BACKENDS[name], KEYED) == key
    assert api_key_of(BACKENDS[name], KEYED.model_copy(update={"bind_address": ""})) == key
    assert api_key_of(BACKENDS[name], DeployRequest(model="m", bind_address="127.0.0.1")) is None


@pytest.mark.parametrize("address", ["0.0.0.0", "::", "192.0.2.7"])
@pytest.mark.parametrize("name", sorted(BACKENDS))
def test_an_open_server_without_a_key_is_refused(name: str, address: str) -> None:
    with pytest.raises(PlanProblem) as caught:
        api_key_of(BACKENDS[name], DeployRequest(model="m", bind_address=address))
    assert caught.value.refused and caught.value.problem.code == "no-api-key"
    assert ("--api-key env:NAME" if isinstance(BACKENDS[name], TakesApiKey) else "fleet forward") in (
        caught.value.problem.remedy
    )


@pytest.mark.parametrize("name", ["mlx-lm", "lm-studio"])
@pytest.mark.parametrize("address", ["", "0.0.0.0"])
def test_a_backend_that_takes_no_key_is_refused_one(name: str, address: str) -> None:
    with pytest.raises(PlanProblem, match="takes no API key"):
        api_key_of(BACKENDS[name], KEYED.model_copy(update={"bind_address": address}))
