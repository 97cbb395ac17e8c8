"""`fleet results` and `fleet matrix` as a user types them."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from fleet_controller.results.reference_files import load_reference
from fleet_inventory.reference_data import reference_files
from support.fleet_cli import FleetCli

pytestmark = pytest.mark.slow

SAMPLES = Path(__file__).parents[1] / "results" / "data" / "samples"
BENCH = str(SAMPLES / "llama-bench.json")


@pytest.fixture
def cli(tmp_path: Path) -> Iterator[FleetCli]:
    made = FleetCli(tmp_path)
    yield made
    made.close()


def test_on_the_first_day_the_matrix_has_the_notes_columns(cli: FleetCli) -> None:
    shown = cli.ok("matrix", "qwen3.5-35b-a3b", "--depth", "8192")
    assert "= 124.12 ± 2.31 (ref, b8396)" in shown.output
    assert "ref: reference data that ships with fleet" in shown.output
    document = cli.ok("matrix", "--by", "chip", "--json").document
    assert document["columns"] == ["Apple M4", "NVIDIA GeForce RTX 4090", "NVIDIA H100 80GB HBM3"]
    assert {cell["source"] for cell in document["cells"]} == {"reference"}
    assert cli.ok("matrix", "--format", "csv", "--metric", "ttft").output.count("\n") > 3
    none = cli.ok("matrix", "--metric", "energy", "--depth", "131072").errors
    assert "no energy is known at depth 131072" in none


@pytest.mark.parametrize(
    "arguments",
    [
        ("matrix", "--metric", "speed"),
        ("matrix", "--by", "rack"),
        ("matrix", "--format", "pdf"),
        ("results", "list", "--since", "yesterday"),
        ("results", "list", "--source", "guessed"),
        ("results", "export", "--format", "xml"),
        ("results", "compare", "b8396", "b9000"),
        ("results", "show", "999999"),
        ("results", "import", "/no/such/file"),
    ],
)
def test_wrong_usage_says_what_may_be_written(cli: FleetCli, arguments: tuple[str, ...]) -> None:
    finished = cli.run(*arguments)
    assert finished.code == 2
    assert "error: " in finished.errors and "next: " in finished.errors


def test_a_file_comes_in_once_and_goes_out_again(
    cli: FleetCli, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    refused = cli.run("results", "import", BENCH)
    assert refused.code == 2
    assert "--host" in refused.errors
    told = ("--host", "box1", "--model", "tiny")
    assert cli.ok("results", "import", BENCH, *told, "--json").document == {
        "files": [{"name": "llama-bench.json", "added": 6, "known": 0}]
    }
    assert "0      6" in cli.ok("results", "import", BENCH, *told).output
    rows = cli.ok("results", "list", "--hosts", "box*", "--json").document["results"]
    assert [row["test"] for row in rows[:3]] == ["pp64", "pp128", "tg16"]
    shown = cli.ok("results", "show", str(rows[0]["id"]))
    assert "Intel(R) Xeon(R) Processor" in shown.output and "fingerprint" in shown.output
    assert cli.ok("results", "show", str(rows[0]["id"]), "--raw").output == Path(BENCH).read_text()
    for form in ("json", "csv"):
        exported = tmp_path / f"out.{form}"
        cli.ok("results", "export", "--format", form, "--hosts", "box1", "-o", str(exported))
        other = FleetCli(tmp_path_factory.mktemp(form))
        other.ok("results", "import", str(exported))
        again = other.ok("results", "list", "--hosts", "box1", "--json").document["results"]
        assert [without_id(row) for row in again] == [without_id(row) for row in rows]
        assert "ALREADY" in cli.ok("results", "import", str(exported)).output
        assert len(cli.ok("results", "list", "--hosts", "box1", "--json").document["results"]) == 6


def without_id(row: dict[str, object]) -> dict[str, object]:
    return {name: value for name, value in row.items() if name != "id"}


def test_where_one_line_is_bad_no_file_comes_in(cli: FleetCli, tmp_path: Path) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text((SAMPLES / "llama-bench.jsonl").read_text().replace('"n_gen": 16', '"n_gen": "many"', 1))
    finished = cli.run("results", "import", BENCH, str(bad), "--host", "box1", "--json")
    assert finished.code == 2
    assert "bad.jsonl:3: 'n_gen' is 'many', not a number" in finished.document["error"]["message"]
    assert cli.ok("results", "list", "--hosts", "box1", "--json").document["results"] == []


def test_list_shows_the_newest_and_says_what_is_left_out(cli: FleetCli) -> None:
    shown = cli.ok(
        "results", "list", "--limit", "3", "--model", "qwen3.5-4b", "--backend", "MLX-LM", "--backend", "vllm"
    )
    assert shown.output.count("\n") == 4
    assert "older ones are not shown" in shown.errors
    everything = cli.ok("results", "list", "--limit", "0", "--json").document
    assert (len(everything["results"]), everything["left_out"]) == (len(load_reference(reference_files())[0]), 0)
    assert cli.ok("results", "list", "--since", "7d", "--source", "measured", "--json").document["results"] == []


def test_compare_gives_differences_with_their_intervals(cli: FleetCli) -> None:
    shown = cli.ok("results", "compare", "backend=sglang", "backend=vllm")
    assert "tg: B is faster in 2 and slower in 2 of 4 tests" in shown.output
    document = cli.ok("results", "compare", "backend=sglang", "backend=vllm", "--json").document
    decode = next(cell for cell in document["cells"] if cell["test"] == "tg32 @ d32768")
    assert decode["verdict"] == "slower"
    assert decode["interval"][0] < decode["difference"] < decode["interval"][1] < 0
    assert "no test is in both" in cli.ok("results", "compare", "host=apple-m4", "host=nobody").errors


def test_the_tools_own_tables_come_out(cli: FleetCli) -> None:
    text = cli.ok("results", "export", "--format", "md", "--model", "qwen3.5-4b").output
    assert "Averages: prompt_tps=359.188, generation_tps=39.023, peak_memory=3.503\n" in text
    assert "| Qwen/Qwen3.5-4B |    tg32 @ d8192 |       54.07 ± 0.55 | 57.29 ± 0.50 |" in text
    assert json.loads(cli.ok("results", "export", "--hosts", "apple-m4").output)["fleet_results"] == 1
