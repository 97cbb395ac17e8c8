"""Rows of quality from what a host answered."""

from pathlib import Path
from typing import Any

import pytest

from fleet_controller.domain.evals import EvalRequest
from fleet_controller.evaluating.asking import Asking, asking_of
from fleet_controller.evaluating.dataset import Dataset, dataset_of
from fleet_controller.evaluating.protocols import LM_EVAL, TIGER
from fleet_controller.operations.eval_data import Corpus
from fleet_controller.operations.eval_model import Judged
from fleet_controller.operations.eval_rows import perplexity_rows, question_row
from fleet_controller.operations.problems import OperationError
from fleet_controller.results.quality import quality_for
from support.mmlu_pro import rows

DATA = Path(__file__).parents[1] / "evaluating" / "data"
JUDGED = Judged(model="tiny", quantization="Q8_0", backend="llama.cpp", backend_version="adopted", identity="i")
ARTIFACT = {"path": "/m.gguf", "sha256": "a" * 64, "size_bytes": 1}


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return dataset_of("made", rows())


@pytest.fixture(scope="module")
def asking(dataset: Dataset) -> Asking:
    return asking_of(dataset, EvalRequest(questions=6), TIGER, "llama.cpp", 0, 2)


def result(asking: Asking, **said: Any) -> dict[str, Any]:
    """Every question answered with C; of the last one the limit cut the answer off."""
    answers = [
        {"id": one.name, "found": "C", "finish": "stop", "tokens": 7, "seconds": 2.0, "error": "", "tail": ""}
        for one in asking.questions
    ]
    answers[-1] |= {"found": None, "finish": "length", "tail": "and so"}
    outcome = {"answers": answers, **said}
    return {"outcome": outcome, "artifacts": [ARTIFACT], "state_key": "tiger-1", "finished_unix_ms": 9}


def test_a_row_says_what_was_asked_and_how_each_question_came_out(dataset: Dataset, asking: Asking) -> None:
    row = question_row("a", JUDGED, TIGER, asking, dataset, "run", "job", "b11434", result(asking))
    right = sum(one.answer == "C" for one in asking.questions[:-1])
    assert (row.n, row.cut_off) == (6, 1) and row.score == pytest.approx(right / 6)
    assert (row.artifact_hash, row.backend_version, row.settings) == ("a" * 64, "b11434", "32768 tokens at most")
    assert row.raw["answers"][asking.questions[-1].name]["tail"] == "and so" and row.raw["no_letter"] == 1
    assert (row.raw["mean_seconds"], row.raw["state_key"], row.taken_unix_ms) == (2.0, "tiger-1", 9)
    quality = quality_for([row], "a" * 64)
    assert quality is not None and quality.name == "MMLU-Pro (tiger 1)" and quality.score == row.score


def test_where_the_harness_scored_its_word_counts(dataset: Dataset, asking: Asking) -> None:
    first = asking.questions[0].name
    row = question_row("a", JUDGED, LM_EVAL, asking, dataset, "run", "job", "", result(asking, right=[first]))
    assert [name for name, said in row.raw["answers"].items() if said["right"]] == [first]
    assert (row.protocol, row.backend_version) == ("lm-eval", "adopted")


def test_a_question_without_an_answer_is_no_wrong_answer(dataset: Dataset, asking: Asking) -> None:
    partly = result(asking)
    del partly["outcome"]["answers"][2]
    with pytest.raises(OperationError, match="1 of 6 questions have no answer"):
        question_row("a", JUDGED, TIGER, asking, dataset, "run", "job", "", partly)


def test_a_comparison_gives_a_row_of_each_figure_with_what_it_was_compared_with() -> None:
    printed = {"stdout": (DATA / "llama-perplexity.kl.Q2_K.out").read_text(), "artifacts": [ARTIFACT],
               "stderr": (DATA / "llama-perplexity.kl.Q2_K.err").read_text()}  # fmt: skip
    corpus = Corpus(name="corpus.txt", text="one two three")
    perplexity, divergence = perplexity_rows("a", JUDGED, "b" * 64, corpus, "key", "job", "", printed)
    assert (perplexity.metric, divergence.metric) == ("perplexity", "kl_divergence")
    assert divergence.low < divergence.score < divergence.high and divergence.n == 8 * 127
    assert divergence.settings == "8 chunks of 256 tokens, base bbbbbbbbbbbb"
    assert divergence.raw["base_artifact_hash"] == "b" * 64 and divergence.raw["same_top"] == pytest.approx(0.61909)
    assert perplexity.scale != divergence.scale and perplexity.dataset_hash == corpus.sha256
    assert quality_for([perplexity, divergence], "a" * 64) is None
