"""Which questions are asked: as many of each subject as of the others, always the same for a seed.

A larger selection holds a smaller one, so that asking for more questions asks only those that are new; and two
quantizations answer the same questions, so that their answers compare one by one.
"""

import hashlib
from collections import defaultdict
from collections.abc import Sequence

from fleet_controller.evaluating.dataset import Dataset, DatasetError, Question

DEFAULT_QUESTIONS = 280


def select_questions(
    dataset: Dataset, subjects: Sequence[str] = (), questions: int = 0, everything: bool = False, seed: int = 0
) -> tuple[Question, ...]:
    """In rounds over the subjects, so that a run that is cut short has some of each. Raises DatasetError.

    A subject is named in full or by its beginning, without case ("comp" = computer science).
    """
    chosen = _named(dataset, subjects)
    queues = {subject: _order(dataset, subject, seed) for subject in chosen}
    wanted = sum(map(len, queues.values())) if everything else max(questions or DEFAULT_QUESTIONS, len(queues))
    picked: list[Question] = []
    for position in range(max(map(len, queues.values()), default=0)):
        picked += [queue[position] for queue in queues.values() if position < len(queue)]
    return tuple(picked[:wanted])


def selection_text(dataset: Dataset, questions: Sequence[Question], seed: int) -> str:
    """ "280 of 12032, 20 a subject, seed 0"; questions of some subjects only name these."""
    asked: dict[str, int] = defaultdict(int)
    for question in questions:
        asked[question.category] += 1
    text = f"{len(questions)} of {len(dataset.test)}"
    if set(asked) != set(dataset.subjects):
        text += f", only {', '.join(sorted(asked))}"
    if len(questions) == sum(question.category in asked for question in dataset.test):
        return text if "only" in text else "all"
    counts = sorted(set(asked.values()))
    each = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    return f"{text}, {each} a subject, seed {seed}"


def subject_sizes(dataset: Dataset, questions: Sequence[Question]) -> dict[str, int]:
    """How many questions the data set has of each subject that is asked: the weights of the score."""
    asked = {question.category for question in questions}
    return {name: sum(one.category == name for one in dataset.test) for name in sorted(asked)}


def _named(dataset: Dataset, subjects: Sequence[str]) -> tuple[str, ...]:
    if not subjects:
        return dataset.subjects
    found: dict[str, None] = {}
    for wanted in subjects:
        word = wanted.strip().lower().replace("_", " ")
        fits = [name for name in dataset.subjects if name.lower() == word]
        fits = fits or [name for name in dataset.subjects if name.lower().startswith(word)]
        if len(fits) != 1:
            why = f"is none of {dataset.name}" if not fits else f"may mean {' or '.join(fits)}"
            raise DatasetError(f"the subject {wanted!r} {why}", f"there are: {', '.join(dataset.subjects)}")
        found[fits[0]] = None
    return tuple(found)


def _order(dataset: Dataset, subject: str, seed: int) -> list[Question]:
    def rank(question: Question) -> str:
        return hashlib.sha256(f"{seed}:{question.question_id}".encode()).hexdigest()

    return sorted((one for one in dataset.test if one.category == subject), key=rank)
