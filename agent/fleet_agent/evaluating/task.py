"""What a program of this folder is given (task.json) and what it leaves (outcome.json, lines on stdout).

task.json: {"model", "workers", "sampling": {"max_tokens", ...}, "patterns": [...], "which": "first" | "last",
"cut_off_is_wrong", "questions": [{"id", "category", "gold", ...}], and what the program needs}.
outcome.json: {"answers": [{"id", "found", "finish", "tokens", "prompt_tokens", "seconds", "error", "tail"}], ...}, in
the order of the questions. `tail` is the end of an answer in which no letter was found.
stdout: {"progress": {"done", "total", "correct", "cut_off"}} after each answer, {"failed": {"code", ...}} at a bad end.
"""

import json
import os
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fleet_agent.evaluating.asking import AskingFailed
from fleet_agent.evaluating.chat import Sampling, Server
from fleet_agent.evaluating.extract import extract_letter
from fleet_agent.evaluating.journal import Answer

TASK, OUTCOME = "task.json", "outcome.json"
# As the harnesses call it; the server's own key, or nothing.
KEY_VARIABLE = "OPENAI_API_KEY"
TAIL_CHARACTERS = 300
EXIT_FAILED = 4


@dataclass(frozen=True)
class Task:
    folder: Path
    server: Server
    sampling: Sampling
    workers: int
    document: Mapping[str, Any]

    @classmethod
    def read(cls, folder: Path, base_url: str) -> "Task":
        document = json.loads((folder / TASK).read_text(encoding="utf-8"))
        sampling = dict(document["sampling"])
        sampling["stop"] = tuple(sampling.get("stop", ()))
        server = Server(base_url, document["model"], os.environ.get(KEY_VARIABLE, ""))
        return cls(folder, server, Sampling(**sampling), int(document["workers"]), document)


class Reporter:
    """Counts answers as they come, says so on stdout, and writes them down in the end."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._questions = {str(one["id"]): one for one in task.document["questions"]}
        self._lock = threading.Lock()
        self._found: dict[str, dict[str, Any]] = {}
        self._correct = self._cut_off = 0

    def heard(self, answer: Answer) -> None:
        question = self._questions.get(answer.question)
        if question is None:
            return
        found = self._letter(answer)
        with self._lock:
            self._correct += found == question["gold"]
            self._cut_off += answer.finish == "length"
            self._found[answer.question] = {
                "id": answer.question,
                "found": found,
                "finish": answer.finish,
                "tokens": answer.tokens,
                "prompt_tokens": answer.prompt_tokens,
                "seconds": answer.seconds,
                "error": answer.error,
                "tail": answer.text[-TAIL_CHARACTERS:] if found is None else "",
            }
            say("progress", done=len(self._found), total=len(self._questions), correct=self._correct,
                cut_off=self._cut_off)  # fmt: skip

    def _letter(self, answer: Answer) -> str | None:
        document = self._task.document
        if answer.finish == "length" and document.get("cut_off_is_wrong"):
            return None
        return extract_letter(answer.text, document["patterns"], document["which"])

    def write(self, **more: Any) -> None:
        """Whole or not at all."""
        answers = [self._found[name] for name in self._questions if name in self._found]
        path = self._task.folder / OUTCOME
        part = path.with_suffix(".part")
        part.write_text(json.dumps({"answers": answers, **more}, ensure_ascii=False), encoding="utf-8")
        part.replace(path)


def say(kind: str, **values: Any) -> None:
    sys.stdout.write(json.dumps({kind: values}) + "\n")
    sys.stdout.flush()


def give_up(error: AskingFailed) -> int:
    """The exit code after saying why."""
    say("failed", code=error.code, message=error.message, remedy=error.remedy)
    return EXIT_FAILED
