"""Steps as the commands that the agent will run: the same argv as agent/fleet_agent/steps builds, with absolute paths.

tests/controller/planning compares both, step by step.
"""

from collections.abc import Iterator

from fleet_controller.domain.base import EnvironmentVariable
from fleet_controller.domain.facts import HostLayout
from fleet_controller.domain.plan import PlannedCommand
from fleet_controller.domain.services import ServiceSpec
from fleet_controller.domain.steps import (
    ChatProbeStep,
    CmakeBuildStep,
    GitCheckoutStep,
    HubDownloadStep,
    PythonEnvironmentStep,
    SourceArchiveStep,
    Step,
    ToolRef,
    VerifyFileStep,
)

DEFAULT_ENDPOINT = "https://huggingface.co"
SHOWN_FILES = 4


def render(
    layout: HostLayout,
    steps: tuple[Step, ...],
    service: ServiceSpec | None,
    environment: tuple[EnvironmentVariable, ...] = (),
) -> tuple[PlannedCommand, ...]:
    """Everything in the order in which it runs: installs, files, the server, its smoke test.

    `environment` is the job's: it is shown with each command that a step runs.
    """
    commands: list[PlannedCommand] = []
    after_service: list[PlannedCommand] = []
    for step in steps:
        made = [
            command.model_copy(update={"environment": _shown(command, environment)}) for command in _step(layout, step)
        ]
        (after_service if step.chat_probe or step.health_probe else commands).extend(made)
    if service is not None:
        commands.append(serve_command(layout, service))
    return (*commands, *after_service)


def _shown(command: PlannedCommand, environment: tuple[EnvironmentVariable, ...]) -> tuple[EnvironmentVariable, ...]:
    return (*environment, *command.environment) if command.argv else command.environment


def serve_command(layout: HostLayout, service: ServiceSpec) -> PlannedCommand:
    """The server's command line and the environment that the plan sets for it."""
    argv = (tool_path(layout, service.tool), *service.arguments)
    return PlannedCommand(purpose="serve", argv=argv, environment=service.environment)


def tool_path(layout: HostLayout, tool: ToolRef) -> str:
    """<engines_dir>/<install key>/<name>, or the bare name of a tool of the host."""
    return f"{layout.engines_dir}/{tool.install_key}/{tool.name}" if tool.install_key else tool.name


def _step(layout: HostLayout, step: Step) -> Iterator[PlannedCommand]:
    if step.python_environment:
        yield from _python_environment(layout, step.python_environment)
    elif step.git_checkout:
        yield from _git_checkout(layout, step.git_checkout)
    elif step.source_archive:
        yield from _source_archive(layout, step.source_archive)
    elif step.cmake_build:
        yield from _cmake_build(layout, step.cmake_build)
    elif step.adopt_engine:
        adopt = step.adopt_engine
        text = f"use the binaries in {adopt.path} as {adopt.install_key} (links; nothing is copied or changed)"
        yield PlannedCommand(purpose="install", description=text)
    elif step.hub_download:
        yield _hub_download(layout, step.hub_download)
    elif step.verify_file:
        yield _verify_file(step.verify_file)
    elif step.run_tool:
        argv = (tool_path(layout, step.run_tool.tool), *step.run_tool.arguments)
        yield PlannedCommand(purpose="run", argv=argv, environment=step.run_tool.environment)
    elif step.health_probe:
        yield PlannedCommand(purpose="health probe", description=f"GET {step.health_probe.url}")
    elif step.chat_probe:
        yield _chat_probe(step.chat_probe)


def _python_environment(layout: HostLayout, step: PythonEnvironmentStep) -> Iterator[PlannedCommand]:
    folder = f"{layout.engines_dir}/{step.install_key}"
    python = ("--python", step.python) if step.python else ()
    yield PlannedCommand(purpose="install", argv=("uv", "venv", *python, f"{folder}/venv"))
    argv = ["uv", "pip", "install", "--python", f"{folder}/venv/bin/python3"]
    argv += [word for link in step.find_links for word in ("--find-links", link)]
    argv += ["--no-index"] if step.no_index else []
    argv += [f"--torch-backend={step.torch_backend}"] if step.torch_backend else []
    argv += [word for url in step.extra_index_urls for word in ("--extra-index-url", url)]
    argv += ["--prerelease", "allow"] if step.prerelease else []
    yield PlannedCommand(purpose="install", argv=(*argv, *step.requirements))


def _source_dir(layout: HostLayout, key: str) -> str:
    return f"{layout.engines_dir}/sources/{key}"


def _git_checkout(layout: HostLayout, step: GitCheckoutStep) -> Iterator[PlannedCommand]:
    folder = _source_dir(layout, step.source_key)
    yield PlannedCommand(purpose="install", argv=("git", "clone", step.url, folder))


def _source_archive(layout: HostLayout, step: SourceArchiveStep) -> Iterator[PlannedCommand]:
    source = step.url or step.path or f"the sdist {step.python_sdist} from the host's package index"
    text = f"unpack {source} to {_source_dir(layout, step.source_key)}"
    yield PlannedCommand(purpose="install", description=text)


def _cmake_build(layout: HostLayout, step: CmakeBuildStep) -> Iterator[PlannedCommand]:
    source = _source_dir(layout, step.source_key)
    build = f"{layout.engines_dir}/{step.install_key}/build"
    yield PlannedCommand(purpose="install", argv=("cmake", "-S", source, "-B", build, *step.options))
    parallel = ("-j", str(step.parallel)) if step.parallel else ("-j",)
    argv = ("cmake", "--build", build, "--config", "Release", *parallel, "--target", *step.targets)
    yield PlannedCommand(purpose="install", argv=argv)


def _hub_download(layout: HostLayout, step: HubDownloadStep) -> PlannedCommand:
    total = sum(file.size_bytes for file in step.files)
    names = ", ".join(file.path for file in step.files[:SHOWN_FILES])
    names += f" and {len(step.files) - SHOWN_FILES} more" if len(step.files) > SHOWN_FILES else ""
    source = "the host's cache only" if step.offline else step.endpoint or DEFAULT_ENDPOINT
    text = (
        f"fetch {names} ({total / 1e9:.2f} GB) of {step.repository} at commit {step.commit[:12]} "
        f"from {source} into {layout.hf_home}/hub, checked against the hub's hashes"
    )
    return PlannedCommand(purpose="download", description=text)


def _verify_file(step: VerifyFileStep) -> PlannedCommand:
    size = f", {step.size_bytes} bytes" if step.size_bytes is not None else ""
    sha256 = f", sha256 {step.sha256}" if step.sha256 else ""
    return PlannedCommand(purpose="verify", description=f"check that {step.path} is there{size}{sha256}")


def _chat_probe(step: ChatProbeStep) -> PlannedCommand:
    text = f'POST {step.base_url}/chat/completions: ask {step.model} "{step.prompt}" ({step.max_tokens} tokens at most)'
    return PlannedCommand(purpose="smoke test", description=text)
