"""Answers on disk, one JSON line each, synchronized before they count: no kill makes a question asked twice."""

import json
import os
import threading
from dataclasses import asdict, dataclass, fields
from pathlib import Path

ANSWERS = "answers.jsonl"


@dataclass(frozen=True)
class Answer:
    """What the model said to one prompt. `finish` is the server's word: "length" where the token limit ended it.

    `tokens` is None where the server tells no usage; `error` is set, and the text empty, where the server refused.
    """

    question: str
    prompt: str
    text: str = ""
    finish: str = ""
    tokens: int | None = None
    prompt_tokens: int | None = None
    seconds: float = 0.0
    error: str = ""


class Journal:
    """`known` are the answers of earlier runs, by (question, hash of its prompt)."""

    def __init__(self, folder: Path) -> None:
        path = folder / ANSWERS
        self.known = {(answer.question, answer.prompt): answer for answer in _whole_lines(path)}
        self._file = path.open("ab")
        self._lock = threading.Lock()

    def add(self, answer: Answer) -> None:
        line = json.dumps(asdict(answer), ensure_ascii=False) + "\n"
        with self._lock:
            self._file.write(line.encode())
            self._file.flush()
            os.fsync(self._file.fileno())
            self.known[answer.question, answer.prompt] = answer

    def close(self) -> None:
        self._file.close()


def _whole_lines(path: Path) -> list[Answer]:
    """The answers in the file; a last line that a kill tore is cut off, so that the next one starts a line."""
    if not path.exists():
        return []
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) != len(content):
        os.truncate(path, len(whole))
    names = {field.name for field in fields(Answer)}
    found = [json.loads(line) for line in whole.splitlines() if line.strip()]
    return [Answer(**{name: value for name, value in one.items() if name in names}) for one in found]
