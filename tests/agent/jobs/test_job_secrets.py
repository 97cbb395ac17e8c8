"""A program is given a secret by name; whatever it prints of it reaches no event, result or problem."""

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from fleet_agent.configuration import allowed_environment
from fleet_agent.jobs.errors import SpecProblem
from fleet_agent.jobs.model import RunToolStep, SecretVariable, Step, ToolRef
from fleet_agent.secrets import SecretStore
from fleet_agent.steps import run_tool
from support.agent_jobs import Agent, logs_of, make_layout, problem_of, result_of, running_agent

SECRET = 'sk-"json"-4411'
VARIABLE = SecretVariable("OPENAI_API_KEY", "api-key-1")
PRINTS = "import os, json; k = os.environ['OPENAI_API_KEY']; print('said', k, json.dumps(k)); assert len(k) == 14"


@pytest.fixture
async def agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Agent]:
    async with running_agent(make_layout(tmp_path, monkeypatch)) as one:
        SecretStore.of(one.layout).put("api-key-1", SECRET.encode())
        yield one


def step(code: str, capture: bool = False) -> Step:
    tool = ToolRef("", "python3")
    return Step("run", run_tool=RunToolStep(tool, ("-c", code), capture_output=capture, secret_environment=(VARIABLE,)))


def files_with_the_secret(agent: Agent) -> list[Path]:
    forms = (SECRET.encode(), json.dumps(SECRET)[1:-1].encode())
    files = [path for path in agent.layout.root.rglob("*") if path.is_file()]
    return [path for path in files if any(form in path.read_bytes() for form in forms)]


async def test_a_program_gets_it_and_what_it_prints_is_blotted_out(agent: Agent) -> None:
    events = await agent.run(step(PRINTS))
    assert 'said [secret] "[secret]"' in logs_of(events)
    events = await agent.run(step(PRINTS, capture=True), job_id="captured")
    assert result_of(events)["stdout"] == 'said [secret] "[secret]"\n'
    events = await agent.run(step("import os; raise SystemExit(os.environ['OPENAI_API_KEY'])"), job_id="failed")
    assert "[secret]" in problem_of(events)[1]
    assert files_with_the_secret(agent) == [SecretStore.of(agent.layout).path("api-key-1")]


async def test_a_secret_that_is_not_there_is_named(agent: Agent) -> None:
    SecretStore.of(agent.layout).remove("api-key-1")
    code, message, _ = problem_of(await agent.run(step(PRINTS)))
    assert (code, message) == ("no-secret", "the secret api-key-1 is not on this host")


@pytest.mark.parametrize("variable", [SecretVariable("LD_PRELOAD", "a"), SecretVariable("OPENAI_API_KEY", "")])
def test_only_variables_for_secrets_take_one(variable: SecretVariable) -> None:
    with pytest.raises(SpecProblem):
        run_tool.check(RunToolStep(ToolRef("", "git"), secret_environment=(variable,)))


def test_no_such_variable_is_set_in_the_clear() -> None:
    assert not [name for name in ("VLLM_API_KEY", "LLAMA_ARG_HF_TOKEN", "HF_TOKEN") if allowed_environment(name)]
    assert allowed_environment("HF_TOKEN_PATH")
