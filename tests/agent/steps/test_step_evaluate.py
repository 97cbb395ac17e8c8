"""The step that judges a model: its folder outlives jobs, kills and half-done output."""

import base64
import gzip
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fleet_agent.jobs.errors import SpecProblem
from fleet_agent.jobs.model import EvaluateFile, EvaluateStep, JobSpec, JobState, Step, ToolRef
from fleet_agent.steps.evaluate import check
from support.agent_jobs import Agent, problem_of, result_of, state_of
from support.answering_server import answering_server

KEY = "llama.cpp-test-00000000"
DONE = "Final estimate"


def packed(content: str) -> str:
    return base64.b64encode(gzip.compress(content.encode())).decode()


def questions(url: str, count: int) -> Step:
    document = {
        "model": "tiny", "workers": 1, "sampling": {"max_tokens": 64}, "patterns": [r"answer is \(?([A-J])\)?"],
        "which": "last", "prefixes": {"math": ""},
        "questions": [{"id": str(n), "category": "math", "gold": "C", "text": f"question {n}"} for n in range(count)],
    }  # fmt: skip
    files = (EvaluateFile("task.json", packed(json.dumps(document))),)
    return Step(
        "ask", evaluate=EvaluateStep(state_key="tiger-1", program="ask", arguments=("{folder}", url), files=files)
    )


@pytest.fixture
def tool(agent: Agent) -> Callable[..., Step]:
    """A program of an install that does as the script says; it is told the words of its command line."""

    def make(script: str, **said: Any) -> Step:
        folder = agent.layout.engines_dir / KEY / "bin"
        folder.mkdir(parents=True, exist_ok=True)
        program = folder / "llama-perplexity"
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
        step = EvaluateStep(state_key="perplexity-1", tool=ToolRef(KEY, "bin/llama-perplexity"), **said)
        return Step("measure", evaluate=step)

    return make


async def test_questions_are_asked_and_the_outcome_comes_back(agent: Agent) -> None:
    with answering_server() as server:
        result = result_of(await agent.run(questions(server.url, 3)))
    assert [one["found"] for one in result["outcome"]["answers"]] == ["C", "C", "C"]
    assert result["state_key"] == "tiger-1" and result["runs"] == 1 and result["stdout"] == ""


async def test_a_killed_runner_asks_no_question_twice(agent: Agent) -> None:
    with answering_server() as server:
        # What the runner and its child know is on disk only: both die with questions answered and questions left.
        await agent.supervisor.submit(JobSpec("job", "ask", (questions(server.url, 60),)))
        await agent.until("job", lambda event: event.progress is not None and event.progress.done >= 5)
        runner = await agent.runner("job")
        os.kill(runner.pid, signal.SIGKILL)
        events = await agent.finish("job")
        texts = [body["messages"][0]["content"] for body in server.asked]
    assert state_of(events) is JobState.SUCCEEDED
    assert len(result_of(events)["outcome"]["answers"]) == 60
    # The one question that was under way when it died is asked again, no other.
    assert len(set(texts)) == 60 and len(texts) <= 61


async def test_a_later_job_of_the_same_key_asks_only_what_is_new(agent: Agent) -> None:
    with answering_server() as server:
        await agent.run(questions(server.url, 3), job_id="first")
        result = result_of(await agent.run(questions(server.url, 5), job_id="second"))
        assert len(server.asked) == 5
    assert len(result["outcome"]["answers"]) == 5


async def test_what_the_program_gave_up_for_is_the_jobs_problem(agent: Agent) -> None:
    with answering_server("401") as server:
        code, message, remedy = problem_of(await agent.run(questions(server.url, 3)))
    assert code == "not-answered" and "HTTP 401" in message and "fleet" in remedy


async def test_output_that_was_dropped_is_no_result_and_is_asked_for_again(
    agent: Agent, tool: Callable[..., Step], tmp_path: Path
) -> None:
    """llama-perplexity sometimes ends with 0 and without its last line."""
    count = tmp_path / "count"
    script = f'echo x >> {count}; echo "[1]1.0,"; [ $(wc -l < {count}) -ge 3 ] && echo "{DONE}: PPL = 1" >&2; exit 0'
    result = result_of(await agent.run(tool(script, required_text=DONE, repeats=3)))
    assert result["runs"] == 3 and DONE in result["stderr"] and result["stdout"] == "[1]1.0,\n"
    count.write_text("")
    never = f'echo "[1]1.0,"; echo x >> {count}'
    code, message, _ = problem_of(await agent.run(tool(never, required_text=DONE, repeats=2), job_id="never"))
    assert code == "output-incomplete" and "ended 3 times" in message
    assert len(count.read_text().splitlines()) == 3


async def test_a_product_is_made_once_whole_and_removed_when_nobody_needs_it(
    agent: Agent, tool: Callable[..., Step]
) -> None:
    make = {"produces": "base.kld", "arguments": ("{part}", "{folder}/corpus.txt"),
            "files": (EvaluateFile("corpus.txt", packed("a text")),)}  # fmt: skip
    folder = agent.layout.machine_dir / "evaluations" / "perplexity-1"
    code, _, _ = problem_of(await agent.run(tool("cp $2 $1; exit 1", **make), job_id="fails"))
    assert code == "tool-failed" and not (folder / "base.kld").exists()
    assert result_of(await agent.run(tool("cp $2 $1", **make), job_id="makes"))["runs"] == 1
    assert (folder / "base.kld").read_text() == "a text"
    assert result_of(await agent.run(tool("exit 1", **make), job_id="there"))["runs"] == 0
    uses = {"arguments": ("{folder}/base.kld",), "removes": ("base.kld",)}
    result = result_of(await agent.run(tool("cat $1; echo", **uses), job_id="uses"))
    assert result["stdout"] == "a text\n" and not (folder / "base.kld").exists()


@pytest.mark.parametrize(
    ("step", "says"),
    [
        (EvaluateStep(state_key="../out", program="ask"), "no name of a folder"),
        (EvaluateStep(state_key="a", program="rm"), "no program 'rm'"),
        (EvaluateStep(state_key="a"), "needs a program, or a tool"),
        (EvaluateStep(state_key="a", program="ask", files=(EvaluateFile("../x"),)), "no plain file name"),
        (EvaluateStep(state_key="a", program="ask", removes=("/etc/passwd",)), "no plain file name"),
        (EvaluateStep(state_key="a", tool=ToolRef(KEY, "../../bin/sh")), "not a path inside an install"),
        (EvaluateStep(state_key="a", program="ask", repeats=99), "out of range"),
        (EvaluateStep(state_key="a", program="ask", artifact_paths=("model.gguf",)), "absolute paths"),
    ],
)
def test_a_step_that_reaches_out_of_its_folder_is_refused(step: EvaluateStep, says: str) -> None:
    with pytest.raises(SpecProblem, match=says):
        check(step)
