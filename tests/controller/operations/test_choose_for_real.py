"""`fleet choose` and what `fleet deploy` takes by itself: a real agent, the real llama-server, a hub with two files."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fleet_controller.results.columns import Metric, Result
from fleet_controller.results.store import save_results
from fleet_controller.state import StateDatabase
from support.fleet_world import FleetWorld, fleet_world
from support.stand_in_hub import StandInHub
from support.tiny_model import ANSWER, make_tiny_model

pytestmark = pytest.mark.llama_cpp

REPOSITORY = "lab/two-files"
DOWN = "  down:\n    address: 127.0.0.1\n    port: 1\n"


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StandInHub]:
    folder = tmp_path_factory.mktemp("hub")
    with StandInHub(folder) as made:
        for name, layers in (("F16", 3), ("Q8_0", 2)):  # a smaller file that calls itself so
            model = make_tiny_model(tmp_path_factory.mktemp(name), "chain", layers=layers)
            made.add(REPOSITORY, f"tiny-{name}.gguf", model.gguf_path.read_bytes())
        yield made


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, hub: StandInHub) -> Iterator[FleetWorld]:
    with fleet_world(tmp_path_factory.mktemp("fleet")) as made:
        made.local_hosts("a", "b")
        made.hosts_yaml.write_text(
            f"defaults:\n  environment:\n    HF_ENDPOINT: {hub.url}\n{made.hosts_yaml.read_text()}{DOWN}"
        )
        made.up("a", "b")
        made.run("hosts", "a,b")
        yield made


@pytest.fixture
def deploy(llama_cpp_bin: Path) -> list[str]:
    return ["deploy", "--repo", REPOSITORY, "--hosts", "a", "--engine-path", str(llama_cpp_bin), "--context", "512",
            "--port", "18480"]  # fmt: skip


def chosen(world: FleetWorld, host: str, *more: str) -> dict[str, Any]:
    (found,) = world.document("choose", "--repo", REPOSITORY, "--hosts", host, "--context", "512", *more)["hosts"]
    (model,) = found["models"]
    return dict(found | {"decision": model["decision"], "model": model})


def by_itself(found: dict[str, Any]) -> list[str]:
    """The quantizations in their order, of backends that a deploy takes by itself."""
    options = [ranked["option"] for ranked in found["decision"]["ranked"]]
    return [option["quantization"] for option in options if not option["on_request"]]


def measure(world: FleetWorld, chip: str, speeds: dict[str, float], at: int) -> None:
    """As if `fleet bench` had measured these on host a."""
    rows = [
        Result(host="a", chip=chip, backend="llama.cpp", backend_version="b1", model="two-files", quantization=name,
               client="llama-bench", test_kind=Metric.DECODE, generation_tokens=64, run_id=f"{name}-{at}", mean=speed,
               deviation=1.0, repetitions=5, finished_unix_ms=at)
        for name, speed in speeds.items()
    ]  # fmt: skip
    database = StateDatabase(world.state / "fleet.db")
    save_results(database, rows)
    database.close()


def test_what_was_measured_decides_and_a_deploy_takes_it_and_keeps_it(world: FleetWorld, deploy: list[str]) -> None:
    before = chosen(world, "a")
    first, other = by_itself(before)
    (planned,) = world.document(*deploy, "--dry-run")["plan"]
    assert planned["quantization"] == first

    measure(world, before["chip"], {first: 200.0, other: 300.0}, at=1)
    after = chosen(world, "a")
    assert by_itself(after) == [other, first]
    assert f"50 % ahead of llama.cpp {first}" in after["decision"]["ranked"][0]["reasons"]

    plan = world.run(*deploy, "--dry-run").stdout
    assert f"a: chosen: llama.cpp {other}: decode 300 t/s, ≈ measured; 50 % ahead of llama.cpp {first}" in plan
    done = world.run(*deploy, "--yes")
    assert ANSWER in done.stdout
    assert "two-files  ready" in world.run("ps", "a", "--quick").stdout

    # What runs stays, whatever is measured later, until somebody asks for something else.
    measure(world, before["chip"], {first: 900.0}, at=2)
    assert by_itself(chosen(world, "a")) == [first, other]
    assert "nothing to change" in world.run(*deploy, "--yes").stdout
    assert any(note.startswith(f"runs now: llama.cpp {other}") for note in chosen(world, "a")["model"]["notes"])
    (named,) = world.document(*deploy, "--quant", first, "--dry-run")["plan"]
    assert (named["action"], named["quantization"]) == ("replace", first)


def test_the_lab_table_has_a_line_for_each_host_and_a_processors_figures_are_its_hosts_own(world: FleetWorld) -> None:
    measure(world, chosen(world, "a")["chip"], {"F16": 200.0, "Q8_0": 300.0}, at=3)
    printed = world.run("choose", "--repo", REPOSITORY, "--hosts", "a,b", "--context", "512").stdout.splitlines()
    assert printed[0].split() == [
        "MACHINE", "CHIP", "BACKEND", "QUANT", "CONTEXT", "PREFILL", "DECODE", "CONFIDENCE"]  # fmt: skip
    assert [line.split()[0] for line in printed[1:3]] == ["a", "b"]
    # Three runs of one cell count together.
    assert "≈ 467" in printed[1] and "Q8_0" in printed[1]
    assert "predicted to a factor of " in printed[2]
    other = chosen(world, "b")["decision"]["ranked"][0]
    assert other["option"]["decode"]["source"].startswith("from ")


def test_a_host_that_is_off_is_chosen_for_from_what_was_known_of_it(world: FleetWorld) -> None:
    here = chosen(world, "b", "--last-known")
    assert here["basis"].startswith("as of 20") and here["decision"]["ranked"]
    printed = world.run("choose", "--repo", REPOSITORY, "--hosts", "b", "--last-known").stdout
    assert "b: as of 20" in printed and "since hosts were not asked" in printed
    never = world.run("choose", "--repo", REPOSITORY, "--hosts", "down", code=1)
    assert "error: down: " in never.stderr


def test_bad_wishes_are_told_in_a_line(world: FleetWorld) -> None:
    assert "there is no goal 'speed'" in world.run(
        "choose", "--repo", REPOSITORY, "--hosts", "a", "--goal", "speed", code=2).stderr  # fmt: skip
    assert "no model 'gpt-9'" in world.run("choose", "gpt-9", "--hosts", "a", code=2).stderr
    assert "name one or more models" in world.run("choose", "--hosts", "a", code=2).stderr
    assert "for 55 % give --quality-floor 0.55" in world.run(
        "choose", "--repo", REPOSITORY, "--hosts", "a", "--quality-floor", "55", code=2).stderr  # fmt: skip
    assert "between 0 and 1" in world.run(
        "choose", "--repo", REPOSITORY, "--hosts", "a", "--quality-floor", "nan", code=2).stderr  # fmt: skip
    too_deep = ["--context", "4096", "--depth", "8000"]
    assert "no room behind a depth of 8,000" in world.run(
        "choose", "--repo", REPOSITORY, "--hosts", "a", *too_deep, code=2).stderr  # fmt: skip
    deep = world.run("choose", "--repo", REPOSITORY, "--hosts", "a", "--depth", "20000", code=3).stdout
    assert "its context of 16,384 tokens ends before a depth of 20,000" in deep and "nothing can be had" in deep
    floor = world.run("choose", "--repo", REPOSITORY, "--hosts", "a", "--quality-floor", "0.5", code=3)
    assert "quality unknown, 0.5 asked for" in floor.stdout
