"""Suites are data: the shipped ones say what the notes measured, the user's own are checked field by field."""

from pathlib import Path

import pytest

from fleet_controller.backends.base import BackendError
from fleet_controller.benchmarking.cells import test_names as names_of
from fleet_controller.benchmarking.clients import CLIENTS, client_for, measurable_parts
from fleet_controller.benchmarking.estimate import guess
from fleet_controller.benchmarking.suites import SHIPPED, Part, SuiteError, load_suite

NOWHERE = Path("/nonexistent")


@pytest.mark.parametrize("path", sorted(SHIPPED.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_suite_loads(path: Path) -> None:
    suite = load_suite(path.stem, NOWHERE)
    assert suite.name == path.stem and suite.description


def test_notes_measures_what_the_notes_measured() -> None:
    engine, http = load_suite("notes", NOWHERE).parts
    assert (engine.prompt_tokens, engine.generation_tokens, engine.depths) == (1024, 64, (0, 8192, 16384, 32768, 65536))
    assert (http.client, http.prompt_tokens, http.generation_tokens) == ("llama-benchy", 2048, 32)
    assert (http.depths, http.repetitions) == ((0, 8192, 16384, 32768), 5)


def test_a_suite_of_the_users_own_and_one_that_hides_a_shipped_one(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("parts:\n  - {prompt_tokens: 64, generation_tokens: 0, repetitions: 1}\n")
    (tmp_path / "quick.yaml").write_text("parts:\n  - {prompt_tokens: 7}\n")
    assert load_suite("mine", tmp_path).parts[0].generation_tokens == 0
    assert load_suite("quick", tmp_path).parts[0].prompt_tokens == 7


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("parts: []\n", "parts"),
        ("parts:\n  - {prompt_tokens: -1}\n", "parts.0.prompt_tokens"),
        ("parts:\n  - {client: iperf}\n", "iperf"),
        ("parts:\n  - {tokens: 5}\n", "parts.0.tokens"),
        ("parts:\n  - {prompt_tokens: 0, generation_tokens: 0}\n", "both 0"),
        ("idle: {wait_seconds: soon}\nparts:\n  - {}\n", "idle.wait_seconds"),
        ("parts: [\n", "mine.yaml"),
    ],
)
def test_a_suite_that_breaks_a_rule_names_the_file_and_the_field(tmp_path: Path, text: str, named: str) -> None:
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(SuiteError) as raised:
        load_suite("mine", tmp_path)
    assert "mine.yaml" in raised.value.message and named in raised.value.message


def test_an_unknown_suite_lists_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(SuiteError) as raised:
        load_suite("qick", tmp_path)
    assert "concurrency, decide, energy, golden, notes, quick" in raised.value.remedy


def test_tests_are_named_as_the_tools_name_them() -> None:
    part = Part(prompt_tokens=1024, generation_tokens=64, depths=(0, 8192))
    assert names_of(part) == ("pp1024", "tg64", "pp1024 @ d8192", "tg64 @ d8192")
    assert names_of(Part(prompt_tokens=0, generation_tokens=8, concurrency=(1, 2))) == ("tg8", "tg8 (c2)")


def test_the_tool_of_an_engine_and_those_that_measure_it_not() -> None:
    part = Part()
    assert client_for("llama.cpp", "", part).name == "llama-bench"
    assert client_for("vllm", "", part).name == "llama-benchy"  # it has no tool that works without a server
    with pytest.raises(BackendError) as raised:
        client_for("mlx-lm", "llama-bench", part)
    assert "mlx_lm.benchmark" in raised.value.remedy


def test_a_tool_that_measures_no_depth_says_which_one_does() -> None:
    (part,), note = measurable_parts(CLIENTS["mlx_lm.benchmark"], Part(depths=(0, 8192)))
    assert part.depths == (0,)
    assert "llama-benchy" in note


def test_a_serving_benchmark_takes_one_concurrency_at_a_time() -> None:
    parts, _ = measurable_parts(CLIENTS["vllm-bench"], Part(client="vllm-bench", concurrency=(1, 4)))
    assert [part.concurrency for part in parts] == [(1,), (4,)]


def test_a_guess_says_what_it_rests_on_and_grows_with_the_work() -> None:
    small = guess(Part(), 10**9, 1008.0, 1)
    deep = guess(Part(depths=(0, 65536)), 10**9, 1008.0, 1)
    assert small.is_guess and "1008 GB/s" in small.basis
    assert deep.seconds > small.seconds
    assert "assumed" in guess(Part(), 10**9, None, 1).basis
