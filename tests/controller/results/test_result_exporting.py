"""Results as files: the tools' own tables byte for byte, and exports that come back without loss."""

import itertools
import json
import re
import subprocess
from pathlib import Path

import pytest

from fleet_controller.benchmarking import parsers
from fleet_controller.benchmarking.suites import Part
from fleet_controller.results.columns import DeviceSample, Result, Run
from fleet_controller.results.exporting import csv_text, json_text, markdown_text
from fleet_controller.results.importing.model import FileContext, Reading
from fleet_controller.results.importing.read import read_file
from fleet_controller.results.reference_files import load_reference
from support.notes_reference import notes_files
from support.result_rows import decode
from support.tiny_model import make_tiny_model

DATA = Path(__file__).parent / "data"
SAMPLES = DATA / "samples"
NOTES_RESULTS = DATA / "lab-notes-results.md"
NUMBER = re.compile(r"\d+\.\d+")
NOTES = Path(__file__).parents[4] / "shared" / "lab-notes.md"


LLAMA_BENCH_OPTIONS = [
    "",
    "-ctk q8_0 -ctv q8_0 -fa on",
    "-sm none -nkvo 1 -nopo 1",
    "-b 256 -ub 128 -pg 16,4",
    "-lm none -ncmoe 2 -t 1 --poll 10",
    "--no-host 1 --repack 0 -ts 1",
    "-fa off -lzm off -dev none",
    "-embd 1 -C 0x3 --cpu-strict 1",
]


def tables_of(text: str) -> list[str]:
    """Each table with its build line, and each text of mlx_lm benchmark, as they stand there."""
    found: list[str] = []
    for table, lines in itertools.groupby(text.splitlines(), lambda line: line.startswith("|")):
        if table:
            found.append("\n".join(lines) + "\n")
        else:
            rest = list(lines)
            if rest[:1] == [""] and len(rest) > 1 and rest[1].startswith("build: ") and found:
                found[-1] += "\n" + rest[1] + "\n"
            start = next((index for index, line in enumerate(rest) if line.startswith("Running warmup")), None)
            if start is not None:
                found.append("\n".join(itertools.takewhile(lambda line: line.strip(), rest[start:])) + "\n")
    return found


@pytest.mark.skipif(not NOTES.exists(), reason="the lab notes lie beside the checkout, and are not there")
def test_the_excerpt_is_the_notes_own_text() -> None:
    assert NOTES_RESULTS.read_text() in NOTES.read_text()


def test_every_table_of_the_lab_notes_comes_out_byte_for_byte() -> None:
    exported = markdown_text(*load_reference(notes_files()))
    tables = tables_of(NOTES_RESULTS.read_text())
    assert len(tables) == 14
    assert sum(table.count("±") for table in tables) == 156 + 4 - 4
    missing = [table for table in tables if table not in exported]
    assert missing == []


@pytest.mark.parametrize(
    "name",
    [
        "llama-bench.md",
        "llama-benchy.md",
        "llama-benchy.prefixcache-conc.stdout",
        "llama-benchy.vllm.stdout",
        "mlx_lm.benchmark.txt",
        "mlx_lm.benchmark.4bit-b2.txt",
    ],
)
def test_a_tools_own_table_comes_out_as_it_came_in(name: str) -> None:
    reading = imported(name)
    tables = tables_of((SAMPLES / name).read_text())
    assert len(tables) == 1
    assert tables[0] in markdown_text(reading.results, reading.runs)


def test_llama_benchys_table_comes_out_of_its_json() -> None:
    """The captured table and document are of different runs: names and the document's own figures are looked for."""
    reading = imported("llama-benchy.json")
    lines = [line for line in markdown_text(reading.results, reading.runs).splitlines() if line.startswith("|")]
    wanted = (SAMPLES / "llama-benchy.md").read_text().splitlines()
    names = [[cell.strip() for cell in line.split("|")[1:3]] for line in lines]
    assert [name for name in names if "-" not in name[1]] == [
        [cell.strip() for cell in line.split("|")[1:3]] for line in wanted if "--" not in line
    ]
    assert [cell.strip() for cell in lines[0].split("|")] == [cell.strip() for cell in wanted[0].split("|")]
    assert "13204.27 ± 1093.59" in lines[2] and "9.76 ± 0.81" in lines[2]


@pytest.mark.llama_cpp
@pytest.mark.parametrize("options", LLAMA_BENCH_OPTIONS)
def test_llama_benchs_table_comes_out_of_its_json(tmp_path: Path, llama_cpp_bin: Path, options: str) -> None:
    """One run of the real tool that says its results twice: JSON on stdout, its Markdown on stderr."""
    model = make_tiny_model(tmp_path / "model", "random").gguf_path
    argv = [str(llama_cpp_bin / "llama-bench"), "-m", str(model), "-p", "16", "-n", "4", "-d", "0,16", "-r", "2"]
    done = subprocess.run(
        [*argv, *options.split(), "-o", "json", "-oe", "md"], capture_output=True, text=True, check=True, timeout=300
    )
    reading = read_file(FileContext("out.json", host="here", chip="cpu"), done.stdout.encode())
    assert reading.problems == []
    printed = [line for line in done.stderr.splitlines() if line.startswith("|")]
    assert len(printed) >= 6
    exported = [line for line in markdown_text(reading.results, reading.runs).splitlines() if line.startswith("|")]
    assert [NUMBER.sub("#", line) for line in exported] == [NUMBER.sub("#", line) for line in printed]
    # The JSON's six decimals may lie on the other side of a half than what the table was rounded from.
    figures, theirs = (
        [float(found) for line in lines for found in NUMBER.findall(line)] for lines in (exported, printed)
    )
    assert figures == pytest.approx(theirs, rel=0, abs=0.0101)


def imported(name: str) -> Reading:
    context = FileContext(name, host="box", chip="c", backend="b", model="m")
    reading = read_file(context, (SAMPLES / name).read_bytes())
    assert reading.problems == []
    return reading


def odd_rows() -> list[Result]:
    return [
        decode(1 / 3, 1e-9, samples=(0.1, 0.2), tool_fields={"text": 'a,"b"\n± c', "none": None}, flags="-x 'a b'"),
        decode(None, None, status="contaminated", cause="alice, python", persistence_mode=False, attempt=3),
        decode(2.0, None, power_limit_watts=450.0, artifact_bytes=123, concurrency=8, source="imported"),
    ]  # fmt: skip


def test_csv_comes_back_without_loss() -> None:
    reference, _ = load_reference(notes_files())
    rows = odd_rows() + reference
    reading = read_file(FileContext("x.csv"), csv_text(rows).encode())
    assert reading.problems == []
    assert reading.results == rows


def test_json_comes_back_without_loss_and_with_everything_that_belongs_to_it() -> None:
    run = Run(run_id="r1", host="gpu1", stdout="± \x1b[1m\n", stderr="e", command="c", details={"a": [1, None]})
    samples = [DeviceSample(run_id="r1", unix_ms=5, power_watts=1.5), DeviceSample(run_id="r1", unix_ms=6)]
    reading = read_file(FileContext("x.json"), json_text(odd_rows(), [run], samples).encode())
    assert reading.problems == []
    assert (reading.results, reading.runs, reading.device_samples) == (odd_rows(), [run], samples)


def test_a_damaged_export_names_its_line() -> None:
    lines = csv_text(odd_rows()[2:]).splitlines()
    damaged = "\n".join([lines[0], lines[1].replace(",450.0,", ",much,")])
    reading = read_file(FileContext("x.csv"), damaged.encode())
    assert [(problem.line, "power_limit_watts" in problem.message) for problem in reading.problems] == [(2, True)]
    newer = read_file(FileContext("x.json"), b'{"fleet_results": 99, "results": []}')
    assert "another version" in newer.problems[0].message


def test_the_markdown_of_an_export_can_be_imported() -> None:
    rows, runs = load_reference(notes_files())
    context = FileContext("x.md", host="lab", chip="mixed")
    reading = read_file(context, markdown_text(rows, runs).encode())
    assert reading.problems == []
    said = ("backend", "client", "test", "mean", "deviation", "repetitions", "samples")
    assert [[getattr(row, name) for name in said] for row in reading.results] == [
        [getattr(row, name) for name in said] for row in rows
    ]


def test_what_fleet_measured_itself_comes_out_as_the_tools_print_it() -> None:
    """Rows as a bench keeps them: with what only fleet knows of them (energy), and the tools' own fields."""
    said = (SAMPLES / "mlx_lm.benchmark.txt").read_text()
    part = Part(client="engine", prompt_tokens=128, generation_tokens=32, depths=(0,), repetitions=3)
    mlx = [kept(row, "mlx_lm.benchmark", "mlx-lm") for row in parsers.mlx_lm_benchmark({"stdout": said}, part)]
    assert tables_of(said)[0] in markdown_text(mlx, [])
    entries = json.loads((SAMPLES / "llama-bench.json").read_text())[::3]
    part = Part(client="engine", prompt_tokens=64, generation_tokens=0, depths=(0, 256), repetitions=2)
    llama = [
        kept(row, "llama-bench", "llama.cpp") for row in parsers.llama_bench({"stdout": json.dumps(entries)}, part)
    ]
    table = markdown_text([*llama, decode(0.5, test_kind="energy", run_id="m")], [])
    assert "|            pp64 |      46076.03 ± 5.09 |\n" in table
    assert "build: pypi-sdist (11434)\n" in table
    assert "energy" not in table


def kept(row: parsers.Row, client: str, backend: str) -> Result:
    return Result(
        **row.model_dump(exclude={"kind"}),
        test_kind=row.kind,
        run_id="m",
        host="h",
        client=client,
        backend=backend,
        client_version="b11434",
        backend_commit=str(row.tool_fields.get("build_commit", "")),
    )


def test_a_contaminated_row_has_no_place_in_a_tools_table() -> None:
    assert markdown_text(odd_rows()[1:2], []) == ""
