"""The HTML report as text: what it says, what it rests on, and that data stays data."""

import base64
import hashlib
import json
import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import typer

from fleet_controller.benchmarking.suites import read_suite
from fleet_controller.cli import bench
from fleet_controller.results.columns import DeviceSample, Metric, Result, Run
from fleet_controller.results.device_spread import device_spreads
from fleet_controller.results.figures import figure
from fleet_controller.results.html import content
from fleet_controller.results.html.content import Material, Question, build_report
from fleet_controller.results.html.markup import Markup, tag
from fleet_controller.results.html.page import render
from fleet_controller.results.html.repeating import Repetition, repetition_of
from fleet_controller.results.html.scale import Scale, round_ticks, tick_text, tokens_text
from fleet_controller.results.html.series import LINES_MOST, charts_of
from fleet_controller.results.reference_files import load_reference
from support.notes_reference import notes_files
from support.reports import HOSTILE_HOST, HOSTILE_MODEL, NAMES, NOW, entries, material, page_of, report, text_of
from support.result_rows import decode

VOID = {"meta", "link", "br", "input"}


class Reader(HTMLParser):
    """Ids, links, elements and attributes; complains about what is not closed."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.ids: Counter[str] = Counter()
        self.links: set[str] = set()
        self.addresses: list[str] = []
        self.elements: Counter[str] = Counter()
        self.handlers: list[str] = []
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements[tag] += 1
        if tag not in VOID:
            self._open.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids[value or ""] += 1
            if name in ("href", "src", "action", "data", "poster", "srcset"):
                (self.links.add if (value or "").startswith("#") else self.addresses.append)(value or "")
            if name.startswith("on"):
                self.handlers.append(name)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag


@pytest.fixture(scope="module")
def html() -> str:
    return render(report())


@pytest.fixture(scope="module")
def reader(html: str) -> Reader:
    return Reader(html)


def test_every_link_leads_somewhere_and_every_id_is_one(reader: Reader) -> None:
    assert {link.removeprefix("#") for link in reader.links} <= set(reader.ids)
    assert [name for name, count in reader.ids.items() if count > 1] == []


def test_nothing_is_asked_of_a_network(html: str, reader: Reader) -> None:
    assert reader.addresses == ["data:,"]
    assert "url(" not in html and "@import" not in html
    script = re.search(r"<script>(.*?)</script>", html, re.DOTALL)
    assert script is not None
    digest = base64.b64encode(hashlib.sha256(script[1].encode()).digest()).decode()
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', html)
    assert policy is not None
    assert policy[1].startswith("default-src &#x27;none&#x27;; ") and f"sha256-{digest}" in policy[1]


def test_names_that_are_html_are_text(html: str, reader: Reader) -> None:
    assert reader.elements["script"] == 1
    assert reader.elements["img"] == 0
    assert reader.handlers == []
    shown = text_of(html)
    assert HOSTILE_HOST in shown and HOSTILE_MODEL in shown and "</code></pre><script>alert(3)" in shown


def test_whatever_is_no_markup_is_escaped() -> None:
    assert tag("p", "<b>", Markup("<i>"), 3, None, ["&"], title='"x"', hidden=True, lang=None) == (
        '<p title="&quot;x&quot;" hidden>&lt;b&gt;<i>3&amp;</p>'
    )


def test_every_figure_of_the_notes_is_in_the_matrix_and_in_its_hosts_section(html: str) -> None:
    start = html.index('id="hosts"')
    matrix, hosts = text_of(html[:start]), text_of(html[start:])
    rows, _ = load_reference(notes_files())
    assert len(rows) == 158
    for row in rows:
        assert f"{row.test}{figure(row)}{row.unit}" in hosts, row.test
    shown = [cell.result for found in report().matrices for cell in found.cells.values()]
    assert {row.result_key for row in rows if row.client == "llama-bench"} <= {row.result_key for row in shown}
    for result in shown:
        assert figure(result) in matrix


def test_conclusions_name_the_rows_that_they_rest_on(html: str) -> None:
    section = html[html.index('id="conclusions"') : html.index('id="hosts"')]
    assert "qwen3.5-35b-a3b UD-Q3_K_XL decodes 3.08 times as fast as qwen3.5-27b UD-Q4_K_XL" in section
    assert "llama.cpp b9000 against b8396 on gpu1: decode is faster in 2" in section
    assert 'rows <a href="#r' in section
    alone = text_of(page_of([decode()]))
    assert alone.count("no rows") == 3


def test_cells_show_marks_shares_source_and_version(html: str) -> None:
    cell = re.search(r'<td class="([^"]*)"[^>]*><a href="#r2">.*?</td>', html)
    assert cell is not None and "m10 w10" in cell[1]
    assert "84.54 ± 0.56100% · reference · b8396" in text_of(cell[0])
    near = re.search(r'<td class="[^"]*near"[^>]*><a href="#r158">.*?</td>', html)
    assert near is not None
    assert text_of(near[0]).startswith("≈ 39.023best")
    assert "tie · 100%" in text_of(html)


def test_of_times_the_least_has_the_deepest_colour() -> None:
    rows = [decode(50.0, test_kind="ttft"), decode(100.0, test_kind="ttft", quantization="Q8_0")]
    html = page_of(rows, Question(metric=Metric.TIME_TO_FIRST_TOKEN))
    assert 'class="cell m10 w10 best"' in html and 'class="cell m5 w10"' in html
    assert "ms, less is better" in text_of(html)


def test_what_was_asked_for_comes_first() -> None:
    html = render(report(Question(metric=Metric.PREFILL, depth=8192, restrictions=("hosts gpu*",))))
    assert html.index('id="heat-pp"') < html.index('id="heat-tg"')
    assert '<option value="=8192" selected>' in html
    assert "Only: hosts gpu*" in text_of(html)


def test_columns_may_be_chips(html: str) -> None:
    by_chip = render(report(Question(by="chip")))
    assert "<span>Apple M4</span></th>" in by_chip
    assert '<a href="#host-apple-m4">apple-m4</a></th>' in html


def test_many_machines_are_split_into_tables_that_fit_on_paper() -> None:
    html = page_of([decode(host=f"gpu{number:02}") for number in range(14)])
    assert [html.count(f"at depth 0: gpu{first}") for first in ("00", "06", "12")] == [2, 2, 2]


def test_requests_at_once_are_kept_apart(html: str) -> None:
    matrix = html[: html.index('id="hosts"')]
    assert "20.00" not in matrix and "20.00" in html
    wide = render(report(Question(concurrency=4)))
    assert "20.00" in wide[: wide.index('id="hosts"')]


def test_a_host_has_its_facts_its_samples_and_its_commands(html: str) -> None:
    start = html.index('<section class="host" id="host-gpu1"')
    section = text_of(html[start : html.index("</section>", start)])
    for wanted in (
        "Driver570.86",
        "Power limit450 W",
        "Persistence modeon",
        "Backendsllama.cpp b8396, llama.cpp b9000",
        "129, 130, 131",
        "1 (divided by n − 1)",
        "fleet bench qwen3.5-4b --quant Q4_K_M --hosts gpu1 --backend llama.cpp --backend-version b9000",
        "llama-bench -d 0",
        "300 / 301 / 302",
        "thermal",
    ):
        assert wanted in section, wanted


def test_hosts_whose_names_look_alike_have_anchors_of_their_own() -> None:
    made = build_report(Material(entries([decode(host=name) for name in ("a b", "a_b", "", "Ä")])), Question(), NOW)
    assert made.anchors == {"": "host-unnamed", "a b": "host-a-b", "a_b": "host-a-b-2", "Ä": "host-unnamed-2"}


def test_a_large_database_keeps_what_the_matrix_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(content, "ROWS_MOST", 3)
    old = [decode(1.0, host="old", finished_unix_ms=1)]
    new = [decode(2.0, backend_version=f"b{number}", finished_unix_ms=100 + number) for number in range(5)]
    made = build_report(Material(entries([*old, *new]), left_out=7), Question(), NOW)
    assert [entry.result_id for entry in made.entries] == [1, 5, 6]
    assert made.left_out == 10
    assert "10 more results are left out" in text_of(render(made))


def test_depths_that_few_rows_are_of_have_no_table_of_their_own() -> None:
    rows = [decode(depth=8192 * number) for number in range(12)] + [decode(depth=8192 * 11, host="gpu2")]
    made = build_report(Material(entries(rows)), Question(depth=8192 * 10), NOW)
    depths = [matrix.depth // 8192 for matrix in made.matrices]
    assert depths == [0, 1, 2, 3, 4, 5, 10, 11]


def test_without_results_the_page_says_what_to_do() -> None:
    html = page_of([])
    assert "No results pass. fleet bench MODEL --hosts PATTERN measures some." in text_of(html)
    Reader(html)


# Repeating


def again(*rows: Result, run: Run | None = None) -> Repetition:
    found = repetition_of(rows, run, NAMES)
    words = found.command.split()
    assert words[:2] == ["fleet", "bench"]
    app = typer.Typer()
    bench.register(app)
    typer.main.get_command(app).make_context("bench", words[2:])  # as the command line takes it
    return found


def test_rows_of_the_notes_are_measured_again_by_the_notes_suite() -> None:
    rows, _ = load_reference(notes_files())
    runs = {row.run_id: [other for other in rows if other.run_id == row.run_id] for row in rows}
    found = [again(*of_run) for of_run in runs.values()]
    assert {repetition.suite_file for repetition in found} == {""}
    assert all("--suite notes" in repetition.command and "--hosts HOST" in repetition.command for repetition in found)
    assert found[0].note == "HOST is one of yours with NVIDIA GeForce RTX 4090."


@pytest.mark.parametrize(
    ("columns", "wanted"),
    [
        ({"generation_tokens": 128, "repetitions": 5}, "--suite quick --client llama-bench --prompt 0 --generate 128"),
        ({"suite": "mine"}, "--suite mine"),
        ({"model": "tiny", "artifact": "/models/tiny.gguf"}, "fleet bench /models/tiny.gguf --hosts gpu1"),
        ({"backend": "", "backend_version": "", "quantization": ""}, "fleet bench qwen3.5-4b --hosts gpu1 --suite"),
    ],
)
def test_a_run_is_measured_again_by_what_it_was_of(columns: dict[str, Any], wanted: str) -> None:
    found = again(decode(**columns))
    assert wanted in found.command
    assert found.suite_file == ""


def test_other_repetitions_than_the_suites_are_said() -> None:
    rows = [decode(repetitions=7), decode(test_kind="pp", prompt_tokens=1024, generation_tokens=0, repetitions=7)]
    assert again(*rows).command.endswith("--suite notes --repetitions 7 --again")


def test_what_no_suite_has_comes_with_a_suite_file(tmp_path: Path) -> None:
    rows = [
        decode(depth=4096),
        decode(test_kind="pp", prompt_tokens=64, generation_tokens=0),
        decode(test_kind="pp", prompt_tokens=128, generation_tokens=0),
    ]
    found = again(*rows)
    assert "--suite again" in found.command
    path = tmp_path / "again.yaml"
    path.write_text(found.suite_file)
    parts = read_suite(path).parts
    assert [(part.prompt_tokens, part.generation_tokens, part.depths) for part in parts] == [
        (128, 64, (0, 4096)),
        (64, 0, (0, 4096)),
    ]


def test_somebody_elses_server_is_measured_again_at_its_address() -> None:
    run = Run(run_id="r1", command="llama-benchy --base-url http://127.0.0.1:8080/v1", details={"foreign_server": True})
    assert "--hosts gpu1 --endpoint 127.0.0.1:8080 " in again(decode(), run=run).command


# Charts


def test_lines_are_of_one_token_count_and_have_the_newest_row_of_each_depth() -> None:
    rows = [
        decode(1.0, generation_tokens=16),
        decode(2.0, finished_unix_ms=1),
        decode(3.0, finished_unix_ms=2),
        decode(4.0, depth=8192),
        decode(None, depth=16384, status="contaminated"),
    ]
    (found,) = charts_of(entries(rows))
    ((line,),) = found.figures
    assert [(point.depth, point.mean) for point in line.points[Metric.DECODE]] == [(0, 3.0), (8192, 4.0)]
    assert line.points[Metric.PREFILL] == ()


def test_more_lines_than_can_be_told_apart_go_into_several_figures() -> None:
    rows = [decode(host=f"gpu{number:02}", depth=depth) for number in range(LINES_MOST + 1) for depth in (0, 8192)]
    (found,) = charts_of(entries(rows))
    assert [len(lines) for lines in found.figures] == [LINES_MOST, 1]


def test_contaminated_cells_are_told_with_their_cause_and_how_often() -> None:
    common = {"status": "contaminated", "cause": "alice, <python>, 98 % of a core", "attempt": 4, "host": "gpu9"}
    cell = [decode(None, None, depth=depth, run_id="run-void", finished_unix_ms=NOW - 7_200_000, **common)
            for depth in (0, 8192)]  # fmt: skip
    html = page_of([decode(), *cell])
    said = text_of(html)
    assert "contaminated in all 4 runs: alice, &lt;python&gt;, 98 % of a core" in html
    assert said.count("contaminated in all 4 runs") == 1 and "Contaminated in all 4 runs" in said
    assert "tg64, tg64 @ d8192" in said and "2 h ago" in said
    assert '<a href="#contaminated">' in html and 'href="#r2"' in html
    assert 'id="contaminated"' not in page_of([decode()])


def test_a_model_of_one_depth_has_no_chart() -> None:
    (found,) = charts_of(entries([decode(), decode(host="gpu2")]))
    assert found.figures == ()
    assert "Measured at one depth only" in text_of(page_of([decode()]))


def test_error_bars_are_drawn_where_the_interval_is() -> None:
    html = page_of([decode(100.0, 1.0, depth=0), decode(50.0, 1.0, depth=8192)])
    bar = re.search(r'class="bar"', html)
    drawn = re.search(r'<path d="M([\d.]+) ([\d.]+)V([\d.]+)M', html)
    assert bar is not None and drawn is not None
    low, high = float(drawn[2]), float(drawn[3])
    mark = re.search(r'translate\(([\d.]+) ([\d.]+)\)" class="mark"></path></a>', html)
    assert mark is not None
    assert high < float(mark[2]) < low


@pytest.mark.parametrize(
    ("most", "ticks"),
    [(137.0, [0, 50, 100, 150]), (0.8, [0, 0.2, 0.4, 0.6, 0.8]), (0, [0, 1]), (10, [0, 2, 4, 6, 8, 10])],
)
def test_ticks_are_round_and_reach_the_most(most: float, ticks: list[float]) -> None:
    assert round_ticks(most) == pytest.approx(ticks)


def test_places_and_texts_of_axes() -> None:
    assert Scale(0, 10, 100, 0).place(2.5) == 75
    assert Scale(5, 5, 0, 10).place(5) == 5
    assert [tick_text(value) for value in (0, 0.5, 1500, 12000, 12345)] == ["0", "0.5", "1,500", "12k", "12,345"]
    assert [tokens_text(tokens) for tokens in (0, 512, 8192, 10000)] == ["0", "512", "8k", "10,000"]


def test_devices_are_summed_up_by_attempt() -> None:
    samples = [
        DeviceSample(run_id="r", attempt=2, unix_ms=1, power_watts=100.0, foreign_processes="alice:python:1,bob:x:2"),
        DeviceSample(run_id="r", attempt=2, unix_ms=2, power_watts=300.0, foreign_processes="alice:python:1"),
        DeviceSample(run_id="r", attempt=1, unix_ms=0),
    ]
    first, second = device_spreads(samples)
    assert (first.attempt, first.count, first.columns) == (1, 1, ("-",) * 5)
    assert second.columns[2] == "100 / 200 / 300"
    assert second.foreign_processes == ("alice:python:1", "bob:x:2")


def test_the_material_of_these_tests_is_what_a_database_gives() -> None:
    """Ids are unique, and runs are known: else the other tests would show less than they say."""
    given = material()
    assert len({entry.result_id for entry in given.entries}) == len(given.entries)
    assert json.dumps([run.run_id for run in given.runs]).count("reference") == 14
