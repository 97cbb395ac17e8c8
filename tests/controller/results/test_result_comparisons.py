"""Two sets of results side by side, and the conclusions that follow from rows."""

import pytest

from fleet_controller.results.columns import Metric, Result
from fleet_controller.results.compare import Comparison, SelectorError, Verdict, compare, overall, parse_selector
from fleet_controller.results.conclusions import NO_ROWS, conclusions, newer_builds
from fleet_controller.results.matrix import Entry
from fleet_controller.results.reference_files import load_reference
from fleet_inventory.reference_data import reference_files
from support.result_rows import decode


def entries(*rows: Result) -> list[Entry]:
    return [Entry(number, row) for number, row in enumerate(rows, start=1)]


def compared(first: str, second: str, *rows: Result) -> list[Comparison]:
    return compare(entries(*rows), parse_selector(first), parse_selector(second))


def test_versions_of_one_backend() -> None:
    rows = [decode(100.0), decode(110.0, backend_version="b9000"), decode(50.0, depth=8192), decode(5.0, host="gpu2")]
    found = compared("version=b8396,host=gpu1", "version=b9000", *rows)
    assert [(cell.first.result.mean, cell.second.result.mean, cell.verdict) for cell in found] == [
        (100.0, 110.0, Verdict.FASTER)
    ]
    assert found[0].ratio == pytest.approx(1.1)
    assert found[0].difference is not None and found[0].difference.low < 10 < found[0].difference.high


def test_what_is_not_named_must_agree() -> None:
    rows = [decode(1.0), decode(2.0, host="gpu2", client="other"), decode(3.0, host="gpu2", quantization="Q8_0")]
    assert compared("host=gpu1", "host=gpu2", *rows) == []
    named = compared("host=gpu1,quant=Q4_K_M", "host=gpu2,quant=Q8_0", *rows)
    assert [cell.second.result.mean for cell in named] == [3.0]


@pytest.mark.parametrize(
    ("first", "second", "verdict"),
    [
        (decode(100.0, 1.0), decode(100.5, 1.0), Verdict.NONE_SHOWN),
        (decode(100.0, 1.0), decode(90.0, 1.0), Verdict.SLOWER),
        (decode(100.0, None), decode(200.0, None), Verdict.NONE_SHOWN),
        (decode(100.0, 1.0, repetitions=0), decode(200.0, 1.0), Verdict.NONE_SHOWN),
        (decode(100.0, 1.0, test_kind="ttft"), decode(50.0, 1.0, test_kind="ttft"), Verdict.FASTER),
        (decode(1.0, 0.01, test_kind="energy"), decode(2.0, 0.01, test_kind="energy"), Verdict.SLOWER),
    ],
)
def test_verdicts(first: Result, second: Result, verdict: Verdict) -> None:
    other = second.model_copy(update={"host": "gpu2"})
    assert [cell.verdict for cell in compared("host=gpu1", "host=gpu2", first, other)] == [verdict]


def test_the_newest_measured_row_of_a_side_counts() -> None:
    rows = [
        decode(1.0, finished_unix_ms=5),
        decode(2.0, finished_unix_ms=6),
        decode(9.0, finished_unix_ms=9, source="reference"),
        decode(3.0, host="gpu2"),
    ]
    assert [cell.first.result.mean for cell in compared("host=GPU1", "host=gpu2", *rows)] == [2.0]


def test_overall_counts_verdicts_and_takes_the_geometric_mean() -> None:
    rows = [decode(100.0), decode(200.0, host="b"), decode(100.0, depth=1), decode(50.0, host="b", depth=1)]
    (line,) = overall(compared("host=gpu1", "host=b", *rows))
    assert (line.metric, line.cells, line.faster, line.slower) == (Metric.DECODE, 2, 1, 1)
    assert line.ratio == pytest.approx(1.0)


@pytest.mark.parametrize("text", ["", "b8396", "colour=red", "version=", "=x"])
def test_a_selector_that_cannot_be_read_says_what_may_be_written(text: str) -> None:
    with pytest.raises(SelectorError, match=r"NAME=VALUE with one of: host, chip, backend, version"):
        parse_selector(text)


def test_the_conclusions_of_the_notes_follow_from_their_rows() -> None:
    rows = entries(*load_reference(reference_files())[0])
    known = {entry.result_id for entry in rows}
    statements = conclusions(rows, {"glm-4.7-flash": True})
    assert all(set(statement.result_ids) <= known for statement in statements)
    texts = [statement.text for statement in statements]
    assert any(
        "qwen3.5-35b-a3b UD-Q3_K_XL decodes 3.08 times as fast as qwen3.5-27b UD-Q4_K_XL" in text for text in texts
    )
    decay = [text for text in texts if "keeps" in text]
    assert any(text.startswith("qwen3.5-35b-a3b UD-Q4_K_XL keeps 82%") for text in decay)
    assert decay[-1].startswith("glm-4.7-flash") and "keeps 14% of its decode speed at depth 32768" in decay[-1]
    assert [s.text for s in statements if s.topic == "newer builds"] == [NO_ROWS]


def test_without_rows_each_topic_says_so() -> None:
    statements = conclusions([])
    assert [(statement.text, statement.result_ids) for statement in statements] == [(NO_ROWS, ())] * 3


def test_newer_builds_are_compared_in_the_order_of_their_numbers() -> None:
    rows = entries(decode(100.0, backend_version="b10000"), decode(90.0, backend_version="b9000"))
    (statement,) = newer_builds(rows)
    assert statement.text.startswith("llama.cpp b10000 against b9000 on gpu1: decode is faster in 1, slower in 0")
    assert set(statement.result_ids) == {1, 2}
