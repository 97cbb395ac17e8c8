"""The command that measures a run's cells again. Pure."""

import itertools
import json
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from fleet_controller.backends.base import BackendError
from fleet_controller.benchmarking.clients import client_for
from fleet_controller.benchmarking.suites import ENGINE, Part, Suite
from fleet_controller.results.columns import Metric, Result, Run, Source

QUICK = "quick"
SERVER_ADDRESS = re.compile(r"--base-url[ =]'?https?://([^/\s']+)")


@dataclass(frozen=True)
class KnownNames:
    """What a command may name here: suites, the shipped ones and the user's, and models (lower case)."""

    suites: tuple[Suite, ...] = ()
    models: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Repetition:
    """`command` is for a shell. `note` says what stands for something else in it, `suite_file` what it needs."""

    command: str
    note: str = ""
    suite_file: str = ""


@dataclass(frozen=True)
class _Tests:
    """What one run measured, in the words of suites' parts. `repetitions` 0 = nobody said.

    `counts` are prompt and generated tokens, the largest first; most runs have one pair.
    """

    counts: tuple[tuple[int, int], ...]
    depths: tuple[int, ...]
    concurrency: tuple[int, ...]
    repetitions: int


def repetition_of(results: Sequence[Result], run: Run | None, names: KnownNames) -> Repetition:
    """For the rows of one run, which are of one host, model, backend and client."""
    first = results[0]
    tests = _tests(results)
    note = ""
    words = ["fleet", "bench"]
    foreign = SERVER_ADDRESS.search(run.command) if run is not None and run.details.get("foreign_server") else None
    if foreign is not None:
        words += ["--hosts", first.host, "--endpoint", foreign[1]]
    else:
        host = first.host
        if first.source is Source.REFERENCE:
            host, note = "HOST", f"HOST is one of yours with {first.chip or 'the same chip'}."
        words += [*_subject(first, names), "--hosts", host, *_engine(first)]
    suite, suite_file = _suite_words(first, tests, names)
    return Repetition(shlex.join([*words, *suite, "--again"]), note, suite_file)


def _tests(results: Sequence[Result]) -> _Tests:
    depths = {result.depth for result in results if result.test_kind is not Metric.ENERGY}
    prompts = sorted({result.prompt_tokens for result in results} - {0}, reverse=True)
    generations = sorted({result.generation_tokens for result in results} - {0}, reverse=True)
    return _Tests(
        counts=tuple(itertools.zip_longest(prompts, generations, fillvalue=0)) or ((0, 0),),
        depths=tuple(sorted(depths or {0})),
        concurrency=tuple(sorted({result.concurrency for result in results})),
        repetitions=max(result.repetitions for result in results),
    )


def _subject(first: Result, names: KnownNames) -> list[str]:
    """The model by its name where the catalog has it, else the path on the host."""
    if first.model.lower() not in names.models and first.artifact.startswith("/"):
        return [first.artifact]
    return [first.model or first.artifact, *(["--quant", first.quantization] if first.quantization else [])]


def _engine(first: Result) -> list[str]:
    words = ["--backend", first.backend] if first.backend else []
    return words + (["--backend-version", first.backend_version] if first.backend_version else [])


def _suite_words(first: Result, tests: _Tests, names: KnownNames) -> tuple[list[str], str]:
    """The suite that has these tests, else `quick` with other token counts, else a suite of its own."""
    own_first = sorted(names.suites, key=lambda suite: suite.name != first.suite)
    for suite in own_first:
        part = next((part for part in suite.parts if _has(part, first, tests)), None)
        if part is not None:
            other = tests.repetitions not in (0, part.repetitions)
            return ["--suite", suite.name, *(["--repetitions", str(tests.repetitions)] if other else [])], ""
    if first.suite and first.suite not in {suite.name for suite in names.suites}:
        return ["--suite", first.suite], ""
    client = ["--client", first.client] if first.client else []
    if len(tests.counts) == 1 and tests.depths == (0,) and tests.concurrency == (1,):
        prompt, generation = tests.counts[0]
        counts = ["--prompt", str(prompt), "--generate", str(generation)]
        repetitions = ["--repetitions", str(tests.repetitions)] if tests.repetitions else []
        return ["--suite", QUICK, *client, *counts, *repetitions], ""
    return ["--suite", "again"], _suite_file(first, tests)


def _has(part: Part, first: Result, tests: _Tests) -> bool:
    try:
        same_client = client_for(first.backend, "", part).name == first.client
    except BackendError:
        return False
    return (
        same_client
        and ((part.prompt_tokens, part.generation_tokens),) == tests.counts
        and set(tests.depths) <= set(part.depths)
        and set(tests.concurrency) <= set(part.concurrency)
    )


def _suite_file(first: Result, tests: _Tests) -> str:
    parts = [
        [
            f"client: {json.dumps(first.client or ENGINE)}",
            f"prompt_tokens: {prompt}",
            f"generation_tokens: {generation}",
            f"depths: {list(tests.depths)}",
            f"concurrency: {list(tests.concurrency)}",
            *([f"repetitions: {tests.repetitions}"] if tests.repetitions else []),
        ]
        for prompt, generation in tests.counts
    ]
    return "parts:\n" + "".join("  - " + "\n    ".join(lines) + "\n" for lines in parts)
