"""The two ways of asking MMLU-Pro. Their scores do not compare: prompt, sampling, token limit and extraction differ.

lm-eval   lm_eval's task group mmlu_pro, 5 examples as turns of a chat, temperature 0, "answer is (X)", first hit.
tiger     TIGER-AI-Lab/MMLU-Pro's evaluate_from_apiX.py (f418b116): all in one user message, temperature 0.1, top_p
          0.95, three patterns in order with the last hit. As there, an answer that the limit cut off is wrong, and no
          letter is guessed. Unlike there, a server that tells no usage is fine, and no wrong answer is asked again.
"""

from typing import Any

from fleet_controller.domain.base import Frozen
from fleet_controller.evaluating.dataset import LETTERS, Dataset, Question

LM_EVAL_VERSION = "0.4.13"
# A token of English text has about four characters; three leave room for formulas and a chat template.
CHARACTERS_PER_TOKEN = 3
TEMPLATE_TOKENS = 256
LEAST_ANSWER_TOKENS, COARSE_TOKENS = 128, 1024


class Protocol(Frozen):
    """`version` changes with anything that changes scores. `sampling` is what is sent, without the token limit."""

    name: str
    version: str
    program: str
    patterns: tuple[str, ...]
    which: str
    max_tokens: int
    sampling: dict[str, Any]
    cut_off_is_wrong: bool = False

    @property
    def title(self) -> str:
        return f"{self.name} {self.version}"

    def settings(self, max_tokens: int) -> str:
        """What else than the protocol's name changes its scores."""
        return f"{max_tokens} tokens at most"


LM_EVAL = Protocol(
    name="lm-eval",
    version=LM_EVAL_VERSION,
    program="lm_eval",
    patterns=(r"answer is \(?([ABCDEFGHIJ])\)?",),
    which="first",
    max_tokens=2048,
    sampling={"temperature": 0.0, "seed": 1234},
)
TIGER = Protocol(
    name="tiger",
    version="1",
    program="ask",
    patterns=(r"answer is \(?([A-J])\)?", r"[aA]nswer:\s*([A-J])", r"\b[A-J]\b"),
    which="last",
    max_tokens=32768,
    sampling={"temperature": 0.1, "top_p": 0.95},
    cut_off_is_wrong=True,
)
PROTOCOLS = {protocol.name: protocol for protocol in (LM_EVAL, TIGER)}


def task_document(
    protocol: Protocol, dataset: Dataset, questions: tuple[Question, ...], model: str, workers: int, max_tokens: int
) -> dict[str, Any]:
    """What the program on the host is given (agent/fleet_agent/evaluating/task.py)."""
    common = {
        "model": model,
        "workers": workers,
        "sampling": {**protocol.sampling, "max_tokens": max_tokens},
        "patterns": list(protocol.patterns),
        "which": protocol.which,
        "cut_off_is_wrong": protocol.cut_off_is_wrong,
    }
    asked = {question.category for question in questions}
    listed = [{"id": one.name, "category": one.category, "gold": one.answer} for one in questions]
    if protocol is TIGER:
        texts = [{**said, "text": tiger_question(one)} for said, one in zip(listed, questions, strict=True)]
        return {**common, "questions": texts, "prefixes": {name: tiger_prefix(name, dataset) for name in sorted(asked)}}
    examples = [one.model_dump(mode="json") for one in dataset.validation if one.category in asked]
    rows = [one.model_dump(mode="json") for one in questions]
    return {**common, "questions": listed, "test": rows, "validation": examples}


def tiger_prefix(category: str, dataset: Dataset) -> str:
    """The instruction and every validation example of the category, answered."""
    header = (
        f"The following are multiple choice questions (with answers) about {category}. Think step by step and then "
        'output the answer in the format of "The answer is (X)" at the end.\n\n'
    )
    return header + "".join(_tiger_example(one) for one in dataset.validation if one.category == category)


def tiger_question(question: Question) -> str:
    """The question as an example whose reasoning is to be found; "N/A" is no option."""
    return _tiger_example(question.model_copy(update={"cot_content": ""}))


def _tiger_example(question: Question) -> str:
    options = [option for option in question.options if option != "N/A"]
    listed = "".join(f"{letter}. {option}\n" for letter, option in zip(LETTERS, options, strict=False))
    thought = (question.cot_content or "Let's think step by step.").removeprefix("A: ")
    return f"Question: {question.question}\nOptions: {listed}Answer: {thought}\n\n"


def prompt_tokens(dataset: Dataset, questions: tuple[Question, ...]) -> int:
    """Room that the longest prompt needs, from its characters; either protocol shows the same texts."""
    prefixes = {name: len(tiger_prefix(name, dataset)) for name in {question.category for question in questions}}
    longest = max((prefixes[one.category] + len(tiger_question(one)) for one in questions), default=0)
    return longest // CHARACTERS_PER_TOKEN + TEMPLATE_TOKENS


def answer_tokens(protocol: Protocol, wanted: int, context_tokens: int, prompt: int) -> int:
    """Tokens that an answer may take: as asked or as the protocol has it, and not more than the context has room for.

    Below LEAST_ANSWER_TOKENS no answer can be given. `context_tokens` 0 = not known. What the context has room for is
    rounded down, so that contexts that differ little give scores of one scale.
    """
    limit = wanted or protocol.max_tokens
    room = context_tokens - prompt
    if not context_tokens or limit <= room:
        return limit
    return max(room - room % (COARSE_TOKENS if room >= COARSE_TOKENS else LEAST_ANSWER_TOKENS), 0)
