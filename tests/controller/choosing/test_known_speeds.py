"""Which row is taken for an option's speed, and what is said of it."""

from typing import Any

import pytest

from fleet_controller.choosing.known import Machine, Wanted, energy_of, measured, speed_of, throughput_of
from fleet_controller.choosing.options import Certainty
from fleet_controller.results.columns import Metric, Result, Source, Status

WANTED = Wanted(
    machine=Machine(host="gpu1", chip="NVIDIA GeForce RTX 4090"),
    models=frozenset({"qwen3.5-4b"}),
    quantization="Q8_0",
    backend="llama.cpp",
    version="b8396",
    client="llama-bench",
    artifact_hash="aa" * 32,
    weights_bytes=4_480_000_000,
)


def row(mean: float = 120.0, **changes: Any) -> Result:
    """The very cell that is asked for, measured on this host."""
    base = Result(host="gpu1", chip="NVIDIA GeForce RTX 4090", backend="llama.cpp", backend_version="b8396",
                  model="qwen3.5-4b", quantization="Q8_0", client="llama-bench", test_kind=Metric.DECODE,
                  generation_tokens=64, artifact_sha256="aa" * 32, run_id="r", mean=mean, deviation=1.0,
                  repetitions=5, finished_unix_ms=1)  # fmt: skip
    return base.model_copy(update=changes)


def test_this_hosts_own_row_is_a_measurement() -> None:
    figure = measured(WANTED, [row()])
    assert figure is not None
    assert (figure.value, figure.certainty, figure.source) == (120.0, Certainty.MEASURED, "this host, tg64")
    assert figure.low < 120.0 < figure.high


@pytest.mark.parametrize(
    ("changes", "certainty", "source"),
    [
        ({"host": "gpu2"}, Certainty.CHIP, "host gpu2, tg64"),
        (
            {"host": "notes", "source": Source.REFERENCE, "provenance": "lab-notes.md:336"},
            Certainty.CHIP,
            "reference lab-notes.md:336, tg64",
        ),
        ({"backend_version": "b8000"}, Certainty.NEAR, "this host, tg64, version b8000"),
        ({"client": "llama-benchy"}, Certainty.NEAR, "this host, tg64, by llama-benchy"),
        ({"depth": 1024}, Certainty.NEAR, "this host, tg64 @ d1024, depth 1024"),
        ({"artifact_sha256": "bb" * 32}, Certainty.NEAR, "this host, tg64, another file of this name"),
        ({"artifact_sha256": "", "artifact_bytes": 5_000_000_000}, Certainty.NEAR,
         "this host, tg64, another file of this name"),
    ],
)  # fmt: skip
def test_what_differs_makes_it_less_sure_and_is_said(
    changes: dict[str, Any], certainty: Certainty, source: str
) -> None:
    figure = measured(WANTED, [row(**changes)])
    assert figure is not None
    assert (figure.certainty, figure.source) == (certainty, source)
    own = measured(WANTED, [row()])
    assert own is not None
    assert figure.high - figure.low > own.high - own.low


@pytest.mark.parametrize(
    "changes",
    [
        {"chip": "NVIDIA GeForce RTX 3090"},
        {"device_count": 2},
        {"backend": "vllm"},
        {"model": "qwen3.5-9b", "artifact_sha256": ""},
        {"quantization": "Q4_K_M", "artifact_sha256": ""},
        {"depth": 16384},
        {"status": Status.CONTAMINATED, "mean": None},
    ],
)
def test_rows_of_something_else_say_nothing(changes: dict[str, Any]) -> None:
    assert measured(WANTED, [row(**changes)]) is None


def test_the_very_file_counts_under_any_name() -> None:
    assert measured(WANTED, [row(model="my-model", quantization="")]) is not None


def test_the_surest_row_is_taken_then_the_nearest_then_the_newest() -> None:
    rows = [
        row(100, client="llama-benchy"),
        row(110, host="gpu2"),
        row(120),
        row(121, finished_unix_ms=2),
        row(130, backend_version="b9000", finished_unix_ms=3),
    ]
    figure = measured(WANTED, rows)
    assert figure is not None and figure.value == 121
    rest = measured(WANTED, rows[:2])
    assert rest is not None and rest.value == 110


def test_another_prompt_is_another_prefill_test() -> None:
    prefill = row(5000, test_kind=Metric.PREFILL, generation_tokens=0, prompt_tokens=16384)
    figure = speed_of(WANTED, Metric.PREFILL, [prefill], None)
    assert figure is not None
    assert figure.source == "this host, pp16384, a prompt of 16384"
    near = prefill.model_copy(update={"prompt_tokens": 512})
    assert speed_of(WANTED, Metric.PREFILL, [prefill, near], None).certainty is Certainty.MEASURED  # type: ignore[union-attr]


def test_throughput_is_that_of_the_best_concurrency_and_one_request_is_no_throughput() -> None:
    rows = [row(120), row(300, concurrency=4), row(280, concurrency=8)]
    figure = throughput_of(WANTED, rows)
    assert figure is not None and figure.value == 300
    assert throughput_of(WANTED, rows[:1]) is None
    assert speed_of(WANTED, Metric.DECODE, rows, None).value == 120  # type: ignore[union-attr]


def test_energy_is_measured_or_unknown() -> None:
    assert energy_of(WANTED, [row(2.5, test_kind=Metric.ENERGY)]).value == 2.5  # type: ignore[union-attr]
    assert energy_of(WANTED, [row(2.5)]) is None


def test_a_processors_name_says_nothing_of_another_hosts_cores() -> None:
    cpu = WANTED.model_copy(update={"machine": WANTED.machine.model_copy(update={"is_cpu": True})})
    assert measured(cpu, [row(host="gpu2")]) is None
    here = measured(cpu, [row(200.0, host="gpu2"), row()])
    assert here is not None and (here.value, here.certainty) == (120.0, Certainty.MEASURED)
