"""`fleet calibrate` and `fleet bench --to-decide` with a real agent and the real llama.cpp, killed in the middle."""

import os
import signal
import sqlite3
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.fleet_world import FleetWorld, fleet_world
from support.stand_in_hub import StandInHub
from support.tiny_model import make_tiny_model

pytestmark = [pytest.mark.llama_cpp, pytest.mark.slow]

MODEL = """\
name: tiny-decide
display_name: Tiny
hub_repository: lab/tiny
max_context: 4096
architecture:
  gguf_name: qwen3
  parameters: 1600000
  parameters_read_per_token: 1500000
  layers: 2
  full_attention_layers: 2
  hidden_size: 256
  query_heads: 4
  kv_heads: 2
  head_dimension: 64
  ffn_size: 512
  vocabulary_size: 512
  tied_embeddings: false
  source: [made here]
  verified: "yes"
artifacts:
  - {format: gguf, repository: lab/tiny-GGUF, quantization: F16, files: [tiny-F16.gguf]}
  - {format: gguf, repository: lab/tiny-GGUF, quantization: Q8_0, files: [tiny-Q8_0.gguf]}
  - {format: gguf, repository: lab/tiny-GGUF, quantization: Q2_K, files: [tiny-Q2_K.gguf]}
"""
# The machine that runs the tests is no quiet one: nobody is a stranger here.
IDLE = "idle: {foreign_cpu_percent: 0}\n"
SHAPES = """\
description: small ones
cpu:
  - purpose: bandwidth
    model: {layers: 2, hidden_size: 1024, feed_forward_size: 2048, heads: 8, key_value_heads: 4, quantization: Q8_0}
    part: {prompt_tokens: 16, generation_tokens: 4, repetitions: 2}
  - purpose: layers
    model: {layers: 6, hidden_size: 256, feed_forward_size: 512, heads: 2, key_value_heads: 2, quantization: Q4_K_M}
    part: {prompt_tokens: 16, generation_tokens: 4, depths: [0, 64], repetitions: 2}
"""


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory, llama_cpp_bin: Path) -> Iterator[FleetWorld]:
    root = tmp_path_factory.mktemp("hub")
    folder = root / "lab" / "tiny-GGUF"
    folder.mkdir(parents=True)
    make_tiny_model(folder, "random")
    for quantization in ("Q8_0", "Q2_K"):
        argv = [llama_cpp_bin / "llama-quantize", folder / "tiny-F16.gguf", folder / f"tiny-{quantization}.gguf"]
        subprocess.run([*argv, quantization], check=True, capture_output=True)
    with StandInHub(root) as hub, fleet_world(tmp_path_factory.mktemp("world")) as world:
        world.local_hosts("a")
        world.hosts_yaml.write_text(world.hosts_yaml.read_text() + f"      HF_ENDPOINT: {hub.url}\n")
        (world.config / "models").mkdir()
        (world.config / "models" / "tiny-decide.yaml").write_text(MODEL)
        (world.config / "suites").mkdir()
        part = "prompt_tokens: 16, generation_tokens: 8, repetitions: 2"
        (world.config / "suites" / "decide.yaml").write_text(f"{IDLE}parts:\n  - {{{part}}}\n")
        gpu = SHAPES[SHAPES.index("cpu:") :].replace("cpu:", "gpu:", 1)
        (world.config / "suites" / "calibrate.yaml").write_text(IDLE + SHAPES + gpu)
        world.up("a")
        yield world


@pytest.fixture
def engine(llama_cpp_bin: Path) -> tuple[str, ...]:
    return "--hosts", "a", "--engine-path", str(llama_cpp_bin)


def runs(fleet: FleetWorld, model: str) -> list[tuple[str, str]]:
    """(quantization, run) of what is kept of a model."""
    connection = sqlite3.connect(fleet.state / "fleet.db")
    try:
        query = "SELECT DISTINCT quantization, run_id FROM results WHERE model LIKE ? ORDER BY run_id"
        return connection.execute(query, (model,)).fetchall()
    finally:
        connection.close()


def decision_of(document: dict[str, Any]) -> dict[str, Any]:
    (host,) = document["hosts"]
    decision: dict[str, Any] = host["result"]["decision"]
    return decision


def test_a_calibration_narrows_the_predictions_and_leaves_nothing_behind(
    fleet: FleetWorld, engine: tuple[str, ...]
) -> None:
    command = ["calibrate", *engine, "--model", "qwen3.5-9b"]
    planned = fleet.run(*command, "--dry-run").stdout
    assert "calibration-2x1024-2048-8-4" in planned and "random weights; removed after it" in planned
    done = fleet.document(*command, "--yes")
    (host,) = done["hosts"]
    assert [cell["state"] for cell in host["result"]["cells"]] == ["measured", "measured"]
    told = host["result"]["predictions"]
    assert {one["test"] for one in told} == {"pp512", "tg64"}
    for one in told:
        before, after = one["before"], one["after"]
        assert before["high"] / before["low"] > after["high"] / after["low"]
    assert list((fleet.folder / "huggingface").glob("fleet-generated/*")) == []
    assert len(runs(fleet, "calibration-%")) == 2
    assert "calibration-" not in fleet.run("matrix").stdout
    assert "calibration-2x1024-2048-8-4" in fleet.run("matrix", "calibration-2x1024-2048-8-4").stdout
    again = fleet.document(*command, "--yes")
    assert {cell["action"] for cell in again["plan"]} == {"skip"}
    assert again["hosts"][0]["result"]["predictions"] == told
    fleet.run(*command, "--again", "--yes")
    assert len(runs(fleet, "calibration-%")) == 4
    assert "nosuch" in fleet.run("calibrate", *engine, "--model", "nosuch", "--yes", code=2).stderr


def test_a_decision_is_made_with_the_runs_it_needs_killed_and_resumed(
    fleet: FleetWorld, engine: tuple[str, ...]
) -> None:
    command = ["bench", "tiny-decide", *engine, "--to-decide"]
    planned = fleet.document(*command, "--dry-run")
    actions = {cell["quantization"]: cell["action"] for cell in planned["plan"]}
    assert actions["Q2_K"] == "skip" and "run" in (actions["F16"], actions["Q8_0"])
    assert all(cell["reason"].startswith("may run: ") for cell in planned["plan"] if cell["action"] == "run")
    running = subprocess.Popen(
        fleet.command(*command, "--yes"), env=fleet.environment, stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert running.stderr is not None
    told = ""
    for line in running.stderr:
        told += line
        if "benchmark 1/2: prompt run" in line:
            os.kill(running.pid, signal.SIGKILL)
            break
    running.communicate(timeout=60)
    assert "next: llama.cpp" in told, told
    decision = decision_of(fleet.document(*command, "--yes"))
    assert decision["why"] in ("settled", "tie", "noisy") and decision["chosen"] in decision["leaders"]
    kept = runs(fleet, "tiny-decide")
    assert len({run for _, run in kept}) == len(kept) <= 6, "three runs of two cells at most"
    (held,) = [item for item in decision["not_run"] if item["name"] == "llama.cpp Q2_K"]
    assert "bits a weight" in held["held_back"] and decision["saved_seconds"] >= held["seconds"] > 0
    again = decision_of(fleet.document(*command, "--yes"))
    assert (again["ran"], again["chosen"], again["why"]) == ([], decision["chosen"], decision["why"])
    assert runs(fleet, "tiny-decide") == kept
    assert "decode" in fleet.run("choose", "tiny-decide", "--hosts", "a").stdout


def test_a_budget_without_room_runs_nothing(fleet: FleetWorld, engine: tuple[str, ...]) -> None:
    command = ["bench", "tiny-decide", *engine, "--to-decide", "--prompt", "24", "--quant", "F16,Q2_K"]
    decision = decision_of(fleet.document(*command, "--goal", "prefill", "--budget", "0.001", "--yes"))
    assert (decision["goal"], decision["ran"]) == ("prefill", [])
    assert decision["why"] in ("budget", "settled", "tie", "noisy")


def test_what_does_not_go_together_is_said(fleet: FleetWorld, engine: tuple[str, ...]) -> None:
    command = ["bench", "tiny-decide", *engine]
    assert "add --to-decide" in fleet.run(*command, "--goal", "decode", code=2).stderr
    assert "leave --endpoint, --again and --repeat out" in fleet.run(*command, "--to-decide", "--again", code=2).stderr
    wrong = fleet.run(*command, "--to-decide", "--goal", "throughput", code=2).stderr
    assert "goes by decode, prefill, latency, energy" in wrong
