"""Steps as the commands that the agent will run: the same argv as agent/fleet_agent/steps builds, with absolute paths.

tests/controller/planning compares both, step by step. What a step does without starting a program is described.
"""

from collections.abc import Iterator

from fleet_controller.domain.base import EnvironmentVariable
from fleet_controller.domain.facts import HostFacts
from fleet_controller.domain.plan import PlannedCommand
from fleet_controller.domain.services import ServiceSpec, ToolRun
from fleet_controller.domain.steps import (
    BenchStep,
    ChatProbeStep,
    CmakeBuildStep,
    EvaluateStep,
    GitCheckoutStep,
    HubDownloadStep,
    InstallerScriptStep,
    PythonEnvironmentStep,
    SourceArchiveStep,
    Step,
    ToolRef,
    VerifyFileStep,
)
from fleet_controller.planning.secrets import secret_path

DEFAULT_ENDPOINT = "https://huggingface.co"
SHOWN_FILES = 4
# Nobody is there to answer a prompt, and no redirect may bring in another protocol.
GIT_ENVIRONMENT = tuple(
    EnvironmentVariable(name=name, value=value)
    for name, value in (
        ("GIT_TERMINAL_PROMPT", "0"),
        ("GIT_ALLOW_PROTOCOL", "https:ssh"),
        ("GIT_SSH_COMMAND", "ssh -o BatchMode=yes"),
        ("LC_ALL", "C"),
    )
)


def render(
    facts: HostFacts,
    steps: tuple[Step, ...],
    service: ServiceSpec | None,
    environment: tuple[EnvironmentVariable, ...] = (),
) -> tuple[PlannedCommand, ...]:
    """Everything in the order in which it runs: installs, files, the server, its smoke test.

    `environment` is the job's: it is shown with each command that a step starts.
    """
    before: list[PlannedCommand] = []
    after: list[PlannedCommand] = []
    for step in steps:
        made = [_with_environment(command, environment) for command in _step(facts, step)]
        (after if step.chat_probe or step.health_probe else before).extend(made)
    serve = list(_service_commands(facts, service)) if service is not None else []
    stop = [_command(facts, service, run, "when stopped") for run in service.after_stop] if service is not None else []
    return (*before, *serve, *after, *stop)


def _service_commands(facts: HostFacts, service: ServiceSpec) -> Iterator[PlannedCommand]:
    for run in service.before_start:
        yield _command(facts, service, run, "before serve")
    yield serve_command(facts, service)


def _command(facts: HostFacts, service: ServiceSpec, run: ToolRun, purpose: str) -> PlannedCommand:
    argv = (tool_path(facts, run.tool), *run.arguments)
    return PlannedCommand(purpose=purpose, argv=argv, environment=service.environment)


def _with_environment(command: PlannedCommand, environment: tuple[EnvironmentVariable, ...]) -> PlannedCommand:
    if not command.argv:
        return command
    return command.model_copy(update={"environment": (*environment, *command.environment)})


def serve_command(facts: HostFacts, service: ServiceSpec) -> PlannedCommand:
    """The server's command line and the environment that the plan sets for it."""
    argv = (tool_path(facts, service.tool), *service.arguments)
    key, description = service.api_key, ""
    if key is not None and key.file_option:
        argv = (*argv, key.file_option, secret_path(facts, key.secret))
    elif key is not None and key.configuration is not None:
        path = secret_path(facts, f"{service.name}.yaml")
        argv = (*argv, key.configuration.option, path)
        description = f"{path} of mode 0600 holds the API key as {key.configuration.key}"
    elif key is not None:
        description = f"{key.environment} in the server's environment is the API key, from {key.secret} on the host"
    return PlannedCommand(purpose="serve", argv=argv, environment=service.environment, description=description)


def tool_path(facts: HostFacts, tool: ToolRef) -> str:
    """<engines_dir>/<install key>/<name>; a tool of the host by the path its probe found, else by its bare name."""
    if tool.install_key:
        return f"{facts.layout.engines_dir}/{tool.install_key}/{tool.name}"
    return next((found.path for found in facts.tools if found.name == tool.name and found.path), tool.name)


def _step(facts: HostFacts, step: Step) -> Iterator[PlannedCommand]:
    if step.python_environment:
        yield from _python_environment(facts, step.python_environment)
    elif step.git_checkout:
        yield from _git_checkout(facts, step.git_checkout)
    elif step.source_archive:
        yield _source_archive(facts, step.source_archive)
    elif step.cmake_build:
        yield from _cmake_build(facts, step.cmake_build)
    elif step.adopt_engine:
        adopt = step.adopt_engine
        text = f"use the binaries in {adopt.path} as {adopt.install_key} (links; nothing is copied or changed)"
        if adopt.source_key:
            source = _source_dir(facts, adopt.source_key)
            folder = f"{facts.layout.engines_dir}/{adopt.install_key}"
            text = f"copy {', '.join(adopt.binaries)} with their libraries from {source} to {folder}/bin"
        yield PlannedCommand(purpose="install", description=text)
    elif step.hub_download:
        yield _hub_download(facts, step.hub_download)
    elif step.verify_file:
        yield _verify_file(step.verify_file)
    elif step.run_tool:
        argv = (tool_path(facts, step.run_tool.tool), *step.run_tool.arguments)
        yield PlannedCommand(purpose="run", argv=argv, environment=step.run_tool.environment)
    elif step.installer_script:
        yield _installer_script(facts, step.installer_script)
    elif step.bench:
        yield from _bench(facts, step.bench)
    elif step.evaluate:
        yield from _evaluate(facts, step.evaluate)
    elif step.health_probe:
        yield PlannedCommand(purpose="health probe", description=f"GET {step.health_probe.url}")
    elif step.chat_probe:
        yield _chat_probe(step.chat_probe)


def _installer_script(facts: HostFacts, step: InstallerScriptStep) -> PlannedCommand:
    path = f"{facts.layout.state_dir}/installers/{step.sha256}.sh"
    text = f"fetched from {step.url}, and run only where its sha256 is {step.sha256}"
    return PlannedCommand(purpose="install", argv=("/bin/bash", path), description=text)


def _bench(facts: HostFacts, step: BenchStep) -> Iterator[PlannedCommand]:
    """Words in braces are filled in by the agent: a free port, a text that it serves, files of the job."""
    if step.server is not None:
        argv = (tool_path(facts, step.server.tool), *step.server.arguments)
        text = "a server for this measurement only, ended after it"
        yield PlannedCommand(purpose="serve", argv=argv, environment=step.server.environment, description=text)
    if step.generated is not None:
        made = step.generated
        text = (
            f"{made.layers} layers of width {made.hidden_size} in {made.quantization}, random weights; removed after it"
        )
        yield PlannedCommand(purpose="make a model", description=text)
    program = tool_path(facts, step.tool)
    if step.warmup_arguments:
        text = f"until two runs take the same time, {step.warmup_limit} at most"
        argv = (program, *step.warmup_arguments)
        yield PlannedCommand(purpose="warm-up", argv=argv, environment=step.environment, description=text)
    yield PlannedCommand(purpose="measure", argv=(program, *step.arguments), environment=step.environment)


def _evaluate(facts: HostFacts, step: EvaluateStep) -> Iterator[PlannedCommand]:
    """{programs} stands for the agent's own folder of these programs, {folder} for what is kept of this evaluation."""
    if step.server is not None:
        argv = (tool_path(facts, step.server.tool), *step.server.arguments)
        text = "a server for this evaluation only, ended after it"
        yield PlannedCommand(purpose="serve", argv=argv, environment=step.server.environment, description=text)
    program = {"ask": "ask.py", "lm_eval": "lm_eval_run.py"}.get(step.program, "")
    tool = tool_path(facts, step.tool) if step.tool.install_key else agent_python(facts)
    argv = (tool, *((f"{{programs}}/{program}",) if program else ()), *step.arguments)
    text = f"{{folder}} is {facts.layout.state_dir}/evaluations/{step.state_key}: a later run goes on there"
    yield PlannedCommand(purpose="evaluate", argv=argv, environment=step.environment, description=text)


def agent_python(facts: HostFacts) -> str:
    """The agent's own interpreter, where bring-up puts it."""
    return f"{facts.layout.state_dir}/agent/current/venv/bin/python"


def _python_environment(facts: HostFacts, step: PythonEnvironmentStep) -> Iterator[PlannedCommand]:
    uv = tool_path(facts, ToolRef(name="uv"))
    folder = f"{facts.layout.engines_dir}/{step.install_key}.tmp"
    venv = f"{folder}/venv"
    python = step.python or agent_python(facts)
    made = f"the environment is renamed to {facts.layout.engines_dir}/{step.install_key} once it is complete"
    yield PlannedCommand(
        purpose="install", argv=(uv, "venv", "--relocatable", "--python", python, venv), description=made
    )
    argv = [uv, "pip", "install", "--python", f"{venv}/bin/python3"]
    argv += [f"--torch-backend={step.torch_backend}"] if step.torch_backend else []
    argv += ["--no-index"] if step.no_index else []
    argv += [word for link in step.find_links for word in ("--find-links", link)]
    argv += [word for url in step.extra_index_urls for word in ("--extra-index-url", url)]
    argv += ["--prerelease", "allow"] if step.prerelease else []
    argv += ["--overrides", f"{folder}/overrides.txt"] if step.overrides else []
    replaced = f"overrides.txt holds: {', '.join(step.overrides)}" if step.overrides else ""
    yield PlannedCommand(purpose="install", argv=(*argv, *step.requirements), description=replaced)


def _source_dir(facts: HostFacts, key: str) -> str:
    return f"{facts.layout.engines_dir}/sources/{key}"


def _git_checkout(facts: HostFacts, step: GitCheckoutStep) -> Iterator[PlannedCommand]:
    git = tool_path(facts, ToolRef(name="git"))
    folder = _source_dir(facts, step.source_key)
    staging = f"{folder}.tmp"
    clone = (git, "clone", "--filter=blob:none", "--no-checkout", "--progress", step.url, staging)
    kept = f"a checkout that is already at {folder} is fetched into instead"
    yield PlannedCommand(purpose="install", argv=clone, environment=GIT_ENVIRONMENT, description=kept)
    checkout = (git, "-C", staging, "checkout", "--force", "--detach", step.ref)
    named = f"{step.ref} as the full commit that it names; then renamed to {folder}"
    yield PlannedCommand(purpose="install", argv=checkout, environment=GIT_ENVIRONMENT, description=named)


def _source_archive(facts: HostFacts, step: SourceArchiveStep) -> PlannedCommand:
    source = step.url or step.path or f"the sdist {step.python_sdist} from the host's package index"
    if step.folder:
        source = f"the newest of {', '.join(step.names)} in {step.folder}"
    text = f"unpack {source} to {_source_dir(facts, step.source_key)}"
    return PlannedCommand(purpose="install", description=text)


def _cmake_build(facts: HostFacts, step: CmakeBuildStep) -> Iterator[PlannedCommand]:
    cmake = tool_path(facts, ToolRef(name="cmake"))
    build = f"{facts.layout.engines_dir}/{step.install_key}.build"
    generator = ("-G", "Ninja") if step.ninja else ()
    configure = (cmake, *generator, "-S", _source_dir(facts, step.source_key), "-B", build, *step.options)
    yield PlannedCommand(purpose="install", argv=configure)
    jobs = step.parallel or facts.cpu.logical_cores or 1
    argv = (cmake, "--build", build, "--config", "Release", "-j", str(jobs), "--target", *step.targets)
    kept = f"the binaries are copied to {facts.layout.engines_dir}/{step.install_key}/bin"
    yield PlannedCommand(purpose="install", argv=argv, description=kept)


def _hub_download(facts: HostFacts, step: HubDownloadStep) -> PlannedCommand:
    total = sum(file.size_bytes for file in step.files)
    names = ", ".join(file.path for file in step.files[:SHOWN_FILES])
    names += f" and {len(step.files) - SHOWN_FILES} more" if len(step.files) > SHOWN_FILES else ""
    source = "the host's cache only" if step.offline else step.endpoint or DEFAULT_ENDPOINT
    text = (
        f"fetch {names} ({total} bytes) of {step.repository} at commit {step.commit} "
        f"from {source} into {facts.layout.hf_home}/hub, checked against the hub's hashes"
    )
    return PlannedCommand(purpose="download", description=text)


def _verify_file(step: VerifyFileStep) -> PlannedCommand:
    size = f", {step.size_bytes} bytes" if step.size_bytes is not None else ""
    sha256 = f", sha256 {step.sha256}" if step.sha256 else ""
    return PlannedCommand(purpose="verify", description=f"check that {step.path} is there{size}{sha256}")


def _chat_probe(step: ChatProbeStep) -> PlannedCommand:
    text = f'POST {step.base_url}/chat/completions: ask {step.model} "{step.prompt}" ({step.max_tokens} tokens at most)'
    return PlannedCommand(purpose="smoke test", description=text)
