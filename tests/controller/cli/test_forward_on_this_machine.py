"""A model on this very machine needs no forward, and is an endpoint as it is."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from support.fleet_world import FleetWorld, fleet_world
from support.tiny_model import make_tiny_model

pytestmark = [pytest.mark.llama_cpp, pytest.mark.slow]

PORT = 18442


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, llama_cpp_bin: Path) -> Iterator[FleetWorld]:
    """Host a, of transport local, serves two models."""
    with fleet_world(tmp_path_factory.mktemp("fleet")) as world:
        world.local_hosts("a")
        world.up("a")
        made = make_tiny_model(world.folder, "chain").gguf_path
        for index, name in enumerate(("first", "second")):
            path = world.folder / f"{name}.gguf"
            path.write_bytes(made.read_bytes())
            world.run(
                "deploy", str(path), "--quant", "F16", "--backend", "llama.cpp", "--engine-path", str(llama_cpp_bin),
                "--context", "512", "--hosts", "a", "--port", str(PORT + index), "--yes",
            )  # fmt: skip
        yield world


def test_forward_prints_the_address_and_starts_nothing(served: FleetWorld) -> None:
    done = served.run("forward", "first")
    assert done.stdout == f"http://127.0.0.1:{PORT}/v1\n"
    assert "needs no forward" in done.stderr
    assert served.document("forward", "--list") == {"forwards": []}


def test_both_are_endpoints_and_an_environment_is_of_one(served: FleetWorld) -> None:
    found = served.document("endpoints")
    assert [(one["model"], one["base_url"], one["via"]) for one in found["endpoints"]] == [
        ("first", f"http://127.0.0.1:{PORT}/v1", "local"),
        ("second", f"http://127.0.0.1:{PORT + 1}/v1", "local"),
    ]
    several = served.run("endpoints", "--format", "openai-env", code=2)
    assert several.stdout == ""
    assert "first, second" in several.stderr
    one = served.run("endpoints", "second", "--format", "openai-env")
    assert one.stdout.splitlines()[0] == f"export OPENAI_BASE_URL=http://127.0.0.1:{PORT + 1}/v1"


def test_what_does_not_run_is_wrong_usage_for_both(served: FleetWorld) -> None:
    assert "first, second" in served.run("forward", "third", code=2).stderr
    assert "first, second" in served.run("endpoints", "third", code=2).stderr
