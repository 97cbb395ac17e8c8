"""What `fleet deploy` and `fleet logs` say to values that cannot be meant, before any host is asked."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from support.fleet_world import FleetWorld, fleet_world


@pytest.fixture
def world(tmp_path: Path) -> Iterator[FleetWorld]:
    with fleet_world(tmp_path) as made:
        made.local_hosts("one")
        yield made


@pytest.mark.parametrize("option", ["--api-key", "--name", "--bind", "--kv-cache-type", "--backend-version"])
def test_an_empty_value_is_not_taken_for_an_option_left_out(world: FleetWorld, option: str) -> None:
    done = world.run("deploy", "/model.gguf", "--hosts", "one", "--yes", option, "", code=2)
    assert done.stdout == "" and f"{option} was given an empty value" in done.stderr and "next:" in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ("deploy", "/model.gguf", "--hosts", "one", "--context", "99999999999999999999"),
        ("deploy", "/model.gguf", "--hosts", "one", "--max-parallel", "9999999999"),
        ("deploy", "/model.gguf", "--hosts", "one", "--backend", "vllm", "--tensor-parallel", "9999999999"),
        ("logs", "tiny", "--tail", "99999999999"),
    ],
)
def test_a_number_that_no_message_holds_is_wrong_usage(world: FleetWorld, arguments: tuple[str, ...]) -> None:
    done = world.run(*arguments, code=2)
    assert done.stdout == "" and arguments[-2] in done.stderr


def test_a_relative_engine_path_is_wrong_usage(world: FleetWorld) -> None:
    done = world.run("deploy", "/model.gguf", "--hosts", "one", "--yes", "--engine-path", "build/bin", code=2)
    assert "--engine-path takes an absolute folder" in done.stderr and "next:" in done.stderr
