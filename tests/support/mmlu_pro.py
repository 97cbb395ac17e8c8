"""A small set of questions in MMLU-Pro's schema, whose answers are known: how often "(C)" is right is chosen here."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

OPTIONS = ("zero", "one", "two", "three", "four", "N/A", "N/A")
# Of each subject, the right letters in the order of the questions.
ANSWERS = {"math": "CDCABCECAD", "computer science": "CCACDCBCCE", "law": "ABDEABDEAB"}


def rows(answers: Mapping[str, str] = ANSWERS) -> dict[str, list[dict[str, Any]]]:
    """{"test", "validation"}: the questions, and five answered examples of each subject."""
    test, validation, number = [], [], 0
    for subject, letters in answers.items():
        for letter in letters:
            test.append(_row(number, subject, letter))
            number += 1
        for example in range(5):
            row = _row(10_000 + number * 10 + example, subject, "B")
            row["cot_content"] = f"A: Let's think step by step. It is plain {example}. The answer is (B)."
            validation.append(row)
    return {"test": test, "validation": validation}


def write_dataset(folder: Path, answers: Mapping[str, str] = ANSWERS) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for split, found in rows(answers).items():
        (folder / f"{split}.jsonl").write_text("\n".join(json.dumps(row) for row in found) + "\n")
    return folder


def _row(number: int, subject: str, letter: str) -> dict[str, Any]:
    return {
        "question_id": number,
        "question": f"What of {subject} is number {number}?",
        "options": list(OPTIONS),
        "answer": letter,
        "answer_index": "ABCDEFGHIJ".index(letter),
        "cot_content": "",
        "category": subject,
        "src": "made up",
    }
