"""Why a service is replaced where nobody asked for anything else."""

from typing import Any

import pytest

from fleet_controller.domain.base import EnvironmentVariable
from fleet_controller.domain.services import ServiceSpec
from fleet_controller.planning.service import changes

RUNS = ServiceSpec(
    name="tiny",
    backend="llama.cpp",
    arguments=("--port", "8080", "--jinja"),
    environment=(EnvironmentVariable(name="TOKEN_LIKE", value="do-not-show"),),
)


@pytest.mark.parametrize(
    ("update", "said"),
    [
        ({"arguments": ("--port", "8080", "--jinja", "--metrics")}, "command line: + --metrics"),
        ({"arguments": ("--port", "8080")}, "command line: - --jinja"),
        ({"environment": (EnvironmentVariable(name="TOKEN_LIKE", value="another"),)}, "environment: TOKEN_LIKE"),
        ({"shared_port_path": "/v1"}, "its command line or environment changed"),
        ({"port": 8081, "arguments": ("--port", "8081", "--jinja")}, "port 0 -> 8081"),
    ],
)
def test_the_reason_names_what_differs_and_no_value_of_the_environment(update: dict[str, Any], said: str) -> None:
    assert changes(RUNS, RUNS.model_copy(update=update)) == said
