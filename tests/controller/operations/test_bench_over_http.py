"""`fleet bench` over HTTP for real: the real llama-benchy against the real llama-server that asks for an API key."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from support.fleet_world import FleetWorld, fleet_world
from support.tiny_model import make_tiny_model

pytestmark = [pytest.mark.llama_cpp, pytest.mark.slow]

NAME = "tiny-keyed"
KEY = "sk-lab-bench-90d1"
PORT = "18437"
# The model ends each reply after 7 tokens where it may; it is large enough for its tokens to arrive one by one.
SUITE = """idle: {foreign_cpu_percent: 0}
parts:
  - {client: llama-benchy, prompt_tokens: 64, generation_tokens: 32, depths: [0, 64], concurrency: [1, 2],
     repetitions: 2}
"""


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory, llama_cpp_bin: Path) -> Iterator[FleetWorld]:
    with fleet_world(tmp_path_factory.mktemp("fleet")) as world:
        world.local_hosts("a")
        world.up("a")
        model = make_tiny_model(world.folder / "model", "chain", hidden_size=1024, layers=3)
        served = model.gguf_path.rename(model.hf_dir / f"{NAME}.gguf")  # beside its tokenizer.json
        (world.config / "suites").mkdir()
        (world.config / "suites" / "http.yaml").write_text(SUITE)
        deploy = ["deploy", str(served), "--quant", "F16", "--backend", "llama.cpp", "--engine-path",
                  str(llama_cpp_bin), "--context", "2048", "--max-parallel", "2", "--port", PORT, "--hosts", "a",
                  "--api-key", "env:LAB_KEY", "--yes"]  # fmt: skip
        world.run(*deploy, extra={"LAB_KEY": KEY})
        yield world


def test_every_row_of_a_keyed_service_whose_model_would_stop_early(fleet: FleetWorld) -> None:
    bench = ["bench", NAME, "--hosts", "a", "--suite", "http", "--yes"]
    planned = fleet.run(*bench, "--dry-run").stdout
    assert "--exact-tg" in planned and KEY not in planned
    (cell,) = fleet.document(*bench)["hosts"][0]["result"]["cells"]
    assert cell["state"] == "measured", cell["problem"]
    speeds = {row["test"]: row for row in cell["rows"] if row["test_kind"] in ("pp", "tg")}
    assert set(speeds) == {
        f"{test}{depth}{users}" for test in ("pp64", "tg32") for depth in ("", " @ d64") for users in ("", " (c2)")
    }
    assert {row["repetitions"] for row in speeds.values()} == {2}
    again = fleet.document(*bench)
    assert [one["action"] for one in again["plan"]] == ["skip"]
