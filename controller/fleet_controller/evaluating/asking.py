"""How the questions of a plan are asked of one server: how many, by how many workers, with what room for an answer."""

import hashlib
import json

from fleet_controller.domain.base import Frozen
from fleet_controller.domain.evals import EvalRequest
from fleet_controller.evaluating.dataset import Dataset, DatasetError, Question
from fleet_controller.evaluating.protocols import (
    LEAST_ANSWER_TOKENS,
    PROTOCOLS,
    Protocol,
    answer_tokens,
    prompt_tokens,
)
from fleet_controller.evaluating.selection import select_questions, selection_text

KEY_HEX_DIGITS = 16
# What servers take at once where nobody said how many (llama-server: 4 slots that share the context).
USUAL_WORKERS = {"vllm": 16, "sglang": 16}
OTHER_WORKERS = 4
# Answers of a model that does not think at length stay below this.
USUAL_ANSWER_TOKENS = 2048


class Asking(Frozen):
    """What one evaluation asks. `settings` and `selection` are those of its row."""

    protocol: str
    questions: tuple[Question, ...]
    workers: int
    max_tokens: int
    selection: str
    settings: str
    warnings: tuple[str, ...] = ()


def asking_of(
    dataset: Dataset, request: EvalRequest, protocol: Protocol, backend: str, context_tokens: int, slots: int
) -> Asking:
    """`context_tokens` are those of one request where the server has `slots`, else shared by all; 0 = not known.

    Raises DatasetError where no subject fits, or the context has no room for question and answer.
    """
    questions = select_questions(dataset, request.subjects, request.questions, request.all, request.seed)
    prompt = prompt_tokens(dataset, dataset.test)  # of all: which questions are asked changes no limit
    wanted = request.max_tokens or protocol.max_tokens
    workers, room = _workers(request.workers, backend, context_tokens, slots, prompt + min(wanted, USUAL_ANSWER_TOKENS))
    limit = answer_tokens(protocol, request.max_tokens, room, prompt)
    if limit < LEAST_ANSWER_TOKENS and limit < wanted:
        message = f"a context of {context_tokens} tokens has no room for a question of {prompt} and its answer"
        raise DatasetError(message, f"deploy it with --context {prompt + min(wanted, 8192)} or more, or fewer workers")
    warnings = []
    if limit < wanted:
        warnings.append(
            f"answers end at {limit} tokens instead of the protocol's {wanted}: the context has no more room; "
            "scores compare only with those of the same limit"
        )
    return Asking(
        protocol=protocol.name,
        questions=questions,
        workers=min(workers, len(questions)),
        max_tokens=limit,
        selection=selection_text(dataset, questions, request.seed),
        settings=protocol.settings(limit),
        warnings=tuple(warnings),
    )


def _workers(asked: int, backend: str, context_tokens: int, slots: int, wanted_room: int) -> tuple[int, int]:
    """(workers, tokens of context that each has)."""
    if slots or not context_tokens:
        return asked or slots or USUAL_WORKERS.get(backend, OTHER_WORKERS), context_tokens
    if backend != "llama.cpp":
        return asked or USUAL_WORKERS.get(backend, OTHER_WORKERS), context_tokens
    workers = asked or OTHER_WORKERS
    while not asked and workers > 1 and context_tokens // workers < wanted_room:
        workers -= 1
    return workers, context_tokens // workers


def state_key(identity: str, protocol: Protocol, settings: str, dataset_hash: str, ordinal: int = 0) -> str:
    """The folder of answers on the host: which questions are asked is no part of it, so that more can follow."""
    text = json.dumps([identity, protocol.title, settings, dataset_hash])
    key = f"{protocol.name}-{hashlib.sha256(text.encode()).hexdigest()[:KEY_HEX_DIGITS]}"
    return f"{key}-r{ordinal}" if ordinal else key


def run_id_of(key: str, questions: tuple[Question, ...]) -> str:
    """One run is one key and one set of questions."""
    asked = ",".join(sorted(question.name for question in questions))
    return f"{key}-n{len(questions)}-{hashlib.sha256(asked.encode()).hexdigest()[:8]}"


def protocol_named(name: str) -> Protocol:
    """Raises DatasetError for a word that is none."""
    found = PROTOCOLS.get(name or "lm-eval")
    if found is None:
        raise DatasetError(f"there is no protocol {name!r}", f"one of: {', '.join(PROTOCOLS)}")
    return found
