"""The two protocols: exact prompts, the letter that is taken out, room for answers."""

import pytest

from fleet_agent.evaluating.extract import extract_letter
from fleet_controller.domain.evals import EvalRequest
from fleet_controller.evaluating.asking import asking_of, protocol_named, run_id_of, state_key
from fleet_controller.evaluating.dataset import Dataset, DatasetError, Question, dataset_of
from fleet_controller.evaluating.protocols import LM_EVAL, TIGER, task_document, tiger_prefix, tiger_question
from support.mmlu_pro import rows


def question(number: int, text: str, options: str, **said: str) -> Question:
    return Question(
        question_id=number, question=text, options=tuple(options.split()), answer="A", answer_index=0,
        category="math", cot_content=said.get("cot", ""),
    )  # fmt: skip


@pytest.fixture
def dataset() -> Dataset:
    examples = (
        question(1, "What is 1+1?", "two three N/A", cot="A: Let's think step by step. It is two. The answer is (A)."),
        question(2, "What is 2+2?", "four five"),
    )
    return Dataset(name="small", test=(question(3, "What is 3+3?", "six N/A seven"),), validation=examples, sha256="0")


def test_the_prompt_is_that_of_evaluate_from_api_x(dataset: Dataset) -> None:
    """One message: the header, every validation example of the category, the question; "N/A" is no option."""
    document = task_document(TIGER, dataset, dataset.test, "tiny", 4, 512)
    prompt = document["prefixes"]["math"] + document["questions"][0]["text"]
    assert prompt == (
        "The following are multiple choice questions (with answers) about math. Think step by step and then output the "
        'answer in the format of "The answer is (X)" at the end.\n\n'
        "Question: What is 1+1?\nOptions: A. two\nB. three\n"
        "Answer: Let's think step by step. It is two. The answer is (A).\n\n"
        "Question: What is 2+2?\nOptions: A. four\nB. five\nAnswer: Let's think step by step.\n\n"
        "Question: What is 3+3?\nOptions: A. six\nB. seven\nAnswer: Let's think step by step.\n\n"
    )
    assert document["sampling"] == {"temperature": 0.1, "top_p": 0.95, "max_tokens": 512}
    assert prompt == tiger_prefix("math", dataset) + tiger_question(dataset.test[0])


@pytest.mark.parametrize(
    ("answer", "tiger", "lm_eval"),
    [
        ("The answer is (C).", "C", "C"),
        ("The answer is (B). No, wait: the answer is D", "D", "B"),
        ("Some say the answer is J, but Answer: (B", "J", "J"),
        ("Answer: B\nanswer:  C", "C", None),
        ("Maybe A, or rather G", "G", None),
        ("The answer is **B**", "B", None),
        ("I cannot say", "I", None),  # a word of one capital letter is taken for an option: the protocol does so
        ("no letter at all", None, None),
        ("The Answer is (C)", "C", None),  # the second pattern wants a colon; the third takes the letter
    ],
)
def test_the_letter_is_taken_as_each_protocol_takes_it(answer: str, tiger: str | None, lm_eval: str | None) -> None:
    assert extract_letter(answer, TIGER.patterns, TIGER.which) == tiger
    assert extract_letter(answer, LM_EVAL.patterns, LM_EVAL.which) == lm_eval


def test_lm_eval_is_given_the_rows_as_they_are() -> None:
    made = dataset_of("made", rows())
    document = task_document(LM_EVAL, made, made.test[:2], "tiny", 2, 2048)
    assert [row["question_id"] for row in document["test"]] == [0, 1]
    assert document["test"][0]["options"][-1] == "N/A"
    assert {row["category"] for row in document["validation"]} == {"math"}
    assert (document["which"], document["sampling"]["temperature"]) == ("first", 0.0)


def test_an_answer_has_the_room_that_the_context_leaves() -> None:
    made = dataset_of("made", rows())
    wide = asking_of(made, EvalRequest(all=True), TIGER, "vllm", 0, 0)
    assert (wide.max_tokens, wide.warnings, wide.workers) == (32768, (), 16)
    narrow = asking_of(made, EvalRequest(all=True), TIGER, "llama.cpp", 4096, 2)
    assert narrow.max_tokens == 3072 and narrow.workers == 2
    assert "instead of the protocol's 32768" in narrow.warnings[0]
    assert narrow.settings == f"{narrow.max_tokens} tokens at most"
    with pytest.raises(DatasetError, match="no room"):
        asking_of(made, EvalRequest(all=True), TIGER, "llama.cpp", 700, 1)


def test_slots_that_share_a_context_get_fewer_workers_where_answers_would_be_cut() -> None:
    made = dataset_of("made", rows())
    assert asking_of(made, EvalRequest(), LM_EVAL, "llama.cpp", 16384, 0).workers == 4
    shared = asking_of(made, EvalRequest(), LM_EVAL, "llama.cpp", 6144, 0)
    assert shared.workers == 2 and shared.max_tokens == 2048
    asked = asking_of(made, EvalRequest(workers=4), LM_EVAL, "llama.cpp", 6144, 0)
    assert asked.workers == 4 and asked.max_tokens < 1536


def test_answers_are_kept_by_what_was_asked_and_not_by_how_many() -> None:
    made = dataset_of("made", rows())
    few, all_of_them = asking_of(made, EvalRequest(questions=6), TIGER, "", 0, 0), made.test
    key = state_key("engine and file", TIGER, few.settings, made.sha256)
    assert key == state_key("engine and file", TIGER, "32768 tokens at most", made.sha256)
    assert run_id_of(key, few.questions) != run_id_of(key, all_of_them)
    others = {
        state_key("another", TIGER, few.settings, made.sha256),
        state_key("engine and file", LM_EVAL, few.settings, made.sha256),
        state_key("engine and file", TIGER, "512 tokens at most", made.sha256),
        state_key("engine and file", TIGER, few.settings, "other data"),
        state_key("engine and file", TIGER, few.settings, made.sha256, ordinal=1),
    }
    assert key not in others and len(others) == 5


def test_a_word_that_is_no_protocol_is_named() -> None:
    assert protocol_named("") is LM_EVAL
    with pytest.raises(DatasetError, match="no protocol 'apix'"):
        protocol_named("apix")
