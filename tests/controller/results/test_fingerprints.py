"""What makes two rows comparable, and the weaker level."""

from typing import Any

import pytest

from fleet_controller.results import columns as result_columns
from fleet_controller.results.columns import FINGERPRINT_COLUMNS, Metric, Result, Source
from fleet_controller.results.comparability import Level, comparability, depth_range, error_bar, near_depth, nearest
from support.result_rows import decode

OTHER_VALUES: dict[str, Any] = {
    "host": "gpu2",
    "chip": "NVIDIA H100",
    "device_count": 2,
    "driver_version": "580.2",
    "runtime_version": "13.1",
    "os_name": "Debian 12",
    "power_limit_watts": 350.0,
    "persistence_mode": True,
    "backend": "vllm",
    "backend_version": "b9999",
    "backend_commit": "abc",
    "flags": "--flash-attn on",
    "model": "qwen3.5-9b",
    "quantization": "Q8_0",
    "artifact_sha256": "f" * 64,
    "artifact_bytes": 5,
    "suite": "notes",
    "client": "llama-benchy",
    "client_version": "0.4.0",
    "test_kind": "pp",
    "prompt_tokens": 1024,
    "generation_tokens": 32,
    "depth": 8192,
    "concurrency": 4,
    "kv_type": "q8_0",
}


@pytest.mark.parametrize("column", FINGERPRINT_COLUMNS)
def test_rows_that_differ_in_one_column_of_the_fingerprint_are_not_comparable(column: str) -> None:
    assert decode(**{column: OTHER_VALUES[column]}).fingerprint_id != decode().fingerprint_id


def test_what_came_out_and_where_it_is_kept_are_no_part_of_the_fingerprint() -> None:
    other = decode(50.0, 9.0, run_id="r2", source="reference", repetitions=3, finished_unix_ms=7, artifact="/elsewhere")
    assert other.fingerprint_id == decode().fingerprint_id


def test_a_column_that_says_nothing_does_not_change_the_id() -> None:
    """So that a column added later leaves older rows comparable with one another."""
    silent = decode(power_limit_watts=None, driver_version="", kv_type="", persistence_mode=None)
    assert silent.fingerprint_id == decode().fingerprint_id
    assert decode(persistence_mode=False).fingerprint_id != decode().fingerprint_id


@pytest.mark.parametrize(
    ("columns", "name"),
    [
        ((Metric.PREFILL, 1024, 0, 0, 1), "pp1024"),
        ((Metric.DECODE, 0, 64, 16384, 1), "tg64 @ d16384"),
        ((Metric.DECODE, 0, 32, 8192, 2), "tg32 @ d8192 (c2)"),
        ((Metric.PREFILL_AND_DECODE, 512, 128, 0, 1), "pp512+tg128"),
    ],
)
def test_tests_are_named_as_the_tools_name_them(columns: tuple[Metric, int, int, int, int], name: str) -> None:
    assert result_columns.test_name(*columns) == name


def test_another_client_version_host_or_near_depth_is_near_and_no_more() -> None:
    wanted = decode()
    for columns in ({"client": "llama-benchy"}, {"backend_version": "b9"}, {"host": "gpu2"}, {"depth": 2048}):
        assert comparability(wanted, decode(**columns)) is Level.NEAR
    for columns in ({"chip": "Apple M4"}, {"quantization": "Q8_0"}, {"test_kind": "pp"}, {"depth": 8192}):
        assert comparability(wanted, decode(**columns)) is Level.NONE
    assert comparability(wanted, decode(90.0)) is Level.EQUAL


def test_a_row_of_an_unknown_chip_is_near_to_nothing() -> None:
    assert comparability(decode(chip="", client="a"), decode(chip="", client="b")) is Level.NONE


def test_near_depths() -> None:
    assert depth_range(0) == (0, 2048)
    assert depth_range(32768) == (28672, 36864)
    assert near_depth(32768, 36000)
    assert not near_depth(0, 4096)
    assert near_depth(4096, 2048) is near_depth(2048, 4096) is True


def test_nearest_puts_equals_first_then_the_nearest_depth() -> None:
    rows = [decode(client="x", depth=2000), decode(client="x", depth=500), decode(3.0), decode(chip="Apple M4")]
    assert [row for _, row in nearest(decode(), rows)] == [rows[2], rows[1], rows[0]]


def test_the_error_bar_of_a_near_row_is_wider() -> None:
    row = decode(100.0, 1.0)
    equal, near = error_bar(row), error_bar(row, Level.NEAR)
    assert equal is not None and near is not None
    assert near == pytest.approx((equal[0] - 17.0, equal[1] + 17.0))
    assert error_bar(decode(100.0, 2.0, repetitions=0)) == (98.0, 102.0)
    assert error_bar(Result(**decode().model_dump(exclude={"mean"}), mean=None)) is None


def test_one_result_has_one_key_whatever_the_file_is_called() -> None:
    rows = [decode(source=Source.IMPORTED, provenance=name) for name in ("a.json:1", "b.json:7")]
    assert rows[0].result_key == rows[1].result_key
    assert decode(101.0).result_key != decode().result_key
