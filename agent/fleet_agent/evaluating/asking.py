"""Asks many questions at once, each until it has an answer, and keeps every answer before it counts.

A server that is away for a while (a bench paused it, it crashed and comes back) is waited for: its failures are no
wrong answers. What no repetition can mend ends the program, with all answers kept.
"""

import hashlib
import json
import queue
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from fleet_agent.evaluating.chat import (
    Completion,
    Misdirected,
    Refused,
    Sampling,
    Server,
    Unavailable,
    complete,
)
from fleet_agent.evaluating.journal import Answer, Journal

FIRST_DELAY_SECONDS, LONGEST_DELAY_SECONDS = 0.5, 30.0
# So many refusals without one answer are no matter of single questions.
REFUSALS_THAT_END = 5
PROMPT_HEX_DIGITS = 16

Messages = Sequence[Mapping[str, str]]


class AskingFailed(Exception):
    """`code` and `remedy` as in a Problem."""

    def __init__(self, code: str, message: str, remedy: str) -> None:
        super().__init__(message)
        self.code, self.message, self.remedy = code, message, remedy


@dataclass(frozen=True)
class Request:
    question: str
    messages: Messages

    @property
    def prompt(self) -> str:
        """A hash of the prompt: an answer to another one is none to this."""
        text = json.dumps(list(self.messages), sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()[:PROMPT_HEX_DIGITS]


@dataclass(frozen=True)
class Patience:
    """`stall_seconds`: of silence within one answer; `away_seconds`: how long the server may answer nobody."""

    stall_seconds: float = 600.0
    away_seconds: float = 1800.0


def ask_all(
    requests: Iterable[Request],
    server: Server,
    sampling: Sampling,
    workers: int,
    journal: Journal,
    heard: Callable[[Answer], None],
    patience: Patience = Patience(),
) -> None:
    """Returns once every request has its answer in the journal. `heard` is called for each, known ones first.

    Raises AskingFailed.
    """
    _Crowd(server, sampling, journal, heard, patience).run(list(requests), max(workers, 1))


class _Crowd:
    def __init__(
        self, server: Server, sampling: Sampling, journal: Journal, heard: Callable[[Answer], None], patience: Patience
    ) -> None:
        self._server, self._sampling, self._journal, self._patience = server, sampling, journal, patience
        self._heard = heard
        self._lock = threading.Lock()
        self._ending = threading.Event()
        self._failure: AskingFailed | None = None
        self._away_since: float | None = None
        self._answered = self._refused = 0

    def run(self, requests: list[Request], workers: int) -> None:
        waiting: queue.SimpleQueue[Request] = queue.SimpleQueue()
        for request in requests:
            known = self._journal.known.get((request.question, request.prompt))
            if known is None:
                waiting.put(request)
            else:
                self._heard(known)
        threads = [threading.Thread(target=self._work, args=(waiting,), daemon=True) for _ in range(workers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if self._failure is not None:
            raise self._failure

    def _work(self, waiting: "queue.SimpleQueue[Request]") -> None:
        try:
            while not self._ending.is_set():
                try:
                    request = waiting.get_nowait()
                except queue.Empty:
                    return
                self._one(request)
        except AskingFailed as error:
            self._end(error)
        except Exception as error:
            self._end(AskingFailed("asking-failed", f"{type(error).__name__}: {error}", "repeat the command"))

    def _one(self, request: Request) -> None:
        delay = FIRST_DELAY_SECONDS
        while not self._ending.is_set():
            started = time.monotonic()
            try:
                completion = complete(self._server, request.messages, self._sampling, self._patience.stall_seconds)
                self._keep(_answer(request, completion, time.monotonic() - started))
                return
            except Refused as error:
                self._note_refusal(request, str(error))
                return
            except Misdirected as error:
                remedy = "see `fleet ps` and `fleet logs`; the answers so far are kept"
                raise AskingFailed("not-answered", f"the server refuses to be asked: {error}", remedy) from None
            except Unavailable as error:
                self._bear(str(error))
                self._ending.wait(delay)
                delay = min(delay * 2, LONGEST_DELAY_SECONDS)

    def _bear(self, said: str) -> None:
        """Raises AskingFailed where nobody has had an answer for too long."""
        with self._lock:
            now = time.monotonic()
            self._away_since = self._away_since or now
            away = now - self._away_since
        if away > self._patience.away_seconds:
            message = f"the server has answered nobody for {away:.0f} s: {said}"
            raise AskingFailed("no-answer", message, "see `fleet logs`; repeat the command: the answers are kept")

    def _keep(self, answer: Answer) -> None:
        with self._lock:
            self._away_since = None
            self._answered += 1
            self._journal.add(answer)
            self._heard(answer)

    def _note_refusal(self, request: Request, said: str) -> None:
        """Not kept: a server that was set right will be asked again."""
        with self._lock:
            self._refused += 1
            if self._answered == 0 and self._refused >= REFUSALS_THAT_END:
                raise AskingFailed("not-answered", f"the server refuses every question: {said}", "see `fleet logs`")
            self._heard(Answer(request.question, request.prompt, error=said))

    def _end(self, error: AskingFailed) -> None:
        with self._lock:
            self._failure = self._failure or error
        self._ending.set()


def _answer(request: Request, completion: Completion, seconds: float) -> Answer:
    usage = completion.usage
    return Answer(
        question=request.question,
        prompt=request.prompt,
        text=completion.text,
        finish=completion.finish,
        tokens=usage.get("completion_tokens"),
        prompt_tokens=usage.get("prompt_tokens"),
        seconds=round(seconds, 3),
    )
