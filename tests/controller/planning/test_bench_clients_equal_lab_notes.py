"""llama-benchy as the lab notes call it: the suite "notes" gives it the same words, and what it adds is listed."""

import re
import shlex
from pathlib import Path

import pytest

from fleet_controller.backends.base import Installation
from fleet_controller.benchmarking.clients import CLIENTS, Subject
from fleet_controller.benchmarking.suites import SHIPPED, read_suite
from support.golden_plans import DATA

EXCERPT = DATA / "lab-notes-benchy-excerpt.md"
LINES = EXCERPT.read_text(encoding="utf-8").splitlines()
NOTES = [shlex.split(line.removeprefix("$ ")) for line in LINES if line.startswith("$ uvx")]
DOCUMENT = Path(__file__).parents[3] / "docs" / "substitutions.md"
# Port in the notes -> the backend that answers there.
BACKENDS = {"8080": "llama.cpp", "30000": "sglang", "8000": "vllm"}
ADDED = {
    "--tokenizer", "--book-url", "--pp", "--tg", "--concurrency", "--latency-mode", "--skip-coherence", "--save-result",
    "--format", "--emit-progress", "--exact-tg",
}  # fmt: skip
ADDED_FOR_SGLANG = {"--extra-body"}


def options(words: list[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for word in words:
        if word.startswith("--"):
            found[word] = []
        else:
            found[list(found)[-1]].append(word)
    return found


def ours(notes: dict[str, list[str]]) -> tuple[str, dict[str, list[str]]]:
    """(backend, our options) for the model and the server of the notes."""
    url, repository = notes["--base-url"][0], notes["--model"][0]
    port = re.search(r":(\d+)", url.removeprefix("http://"))
    assert port is not None
    backend = BACKENDS[port[1]]
    [part] = [part for part in read_suite(SHIPPED / "notes.yaml").parts if part.client == "llama-benchy"]
    subject = Subject(
        backend=backend,
        installation=Installation(backend=backend, version="", install_key=""),
        model_path="/snapshot",
        served_model_name=repository.split("/")[1].lower(),
        base_url=url.removesuffix("/v1"),
        tokenizer="/snapshot",
    )
    benchy = Installation(backend="llama-benchy", version="0.4.0", install_key="benchy")
    step = CLIENTS["llama-benchy"].step(subject, part, benchy)
    assert (step.tool.install_key, step.tool.name) == ("benchy", "venv/bin/python3")
    assert step.arguments[0] == "-c" and step.arguments[1].endswith("from llama_benchy.__main__ import main; main()")
    return backend, options(list(step.arguments[2:]))


@pytest.mark.parametrize("command", NOTES, ids=lambda words: f"{words[1]}-{words[3]}")
def test_llama_benchy_is_called_as_in_the_notes(command: list[str]) -> None:
    assert command[0] == "uvx" and command[1].startswith("llama-benchy@")
    notes = options(command[2:])
    backend, found = ours(notes)
    expected = notes | {
        "--base-url": [notes["--base-url"][0].removesuffix("/v1") + "/v1"],
        "--model": [notes["--model"][0].split("/")[1].lower()],
    }
    assert {name: found.get(name) for name in expected} == expected
    assert set(found) - set(expected) == ADDED | (ADDED_FOR_SGLANG if backend == "sglang" else set())


def test_the_notes_call_it_for_three_backends() -> None:
    assert {ours(options(command[2:]))[0] for command in NOTES} == set(BACKENDS.values())


def test_the_document_names_every_addition() -> None:
    words = set(re.findall(r"--[a-z-]+", DOCUMENT.read_text(encoding="utf-8")))
    assert (ADDED | ADDED_FOR_SGLANG) - words == set()
