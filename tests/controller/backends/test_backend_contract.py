"""What holds for every backend of the table, and for the sixth one that CONTRIBUTING.md adds to a copy of it."""

import importlib.util
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fleet_controller.backends import BACKENDS, Backend
from fleet_controller.backends.base import (
    BackendError,
    Installation,
    InstallRequest,
    KeepsModels,
    ServeOptions,
    SharesServer,
)
from fleet_controller.domain.facts import EngineFacts, HostFacts, ToolFacts
from fleet_controller.domain.plan import DeployRequest, PlanAction
from fleet_controller.domain.resolved import ModelArtifact, ResolvedModel
from fleet_controller.domain.shape import ModelShape
from fleet_controller.domain.steps import ArtifactFile
from fleet_controller.planning.plan import plan_host
from fleet_inventory.hosts import Host

ROOT = Path(__file__).parents[3]
EXAMPLE = ROOT / "docs" / "examples" / "llama_cpp_python.py"
FACTS = ROOT / "tests" / "controller" / "planning" / "data" / "rtx4090.facts.json"
GPU_HOST = HostFacts.model_validate_json(FACTS.read_text(encoding="utf-8"))
# With what any of them needs of a host: LM Studio's program, and its engine as the probe finds it.
HOST = GPU_HOST.model_copy(
    update={
        "tools": (*GPU_HOST.tools, ToolFacts(name="lms", path="/home/lab/.lmstudio/bin/lms")),
        "engines": (EngineFacts(backend="lm-studio", path="/home/lab/.lmstudio/bin/lms"),),
    }
)
SECRET_OPTIONS = ("--api-key", "--token", "--hf-token", "--password")


def example() -> Backend:
    """The file that CONTRIBUTING.md quotes, loaded from where it lies."""
    specification = importlib.util.spec_from_file_location("example_backend", EXAMPLE)
    assert specification is not None and specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules["example_backend"] = module
    specification.loader.exec_module(module)
    backend: Backend = module.LlamaCppPython()
    return backend


TABLE: dict[str, Backend] = {**BACKENDS, example().name: example()}
each = pytest.mark.parametrize("backend", TABLE.values(), ids=TABLE.keys())


@pytest.fixture
def sixth(monkeypatch: pytest.MonkeyPatch) -> Iterator[Backend]:
    """The table's one line."""
    backend = example()
    monkeypatch.setitem(BACKENDS, backend.name, backend)
    yield backend


def artifact(artifact_format: str) -> ModelArtifact:
    name = {"gguf": "m-Q8_0.gguf"}.get(artifact_format, "model.safetensors")
    return ModelArtifact(
        format=artifact_format,
        quantization="Q8_0",
        repository="acme/m",
        commit="c" * 40,
        files=(ArtifactFile(path=name, size_bytes=5 * 10**9, sha256="a" * 64),),
        weights_bytes=5 * 10**9,
    )


def install(backend: Backend, facts: HostFacts = HOST, **wishes: str) -> Installation:
    return backend.plan_install(facts, InstallRequest(gpus=facts.gpus, **wishes))


def options(backend: Backend, **more: object) -> ServeOptions:
    values: dict[str, object] = {
        "model_name": "m",
        "model_path": backend.model_path(artifact(backend.formats[0]), "/hf"),
        "context_tokens": 8192,
        "port": 4321,
        "hf_home": "/hf",
        "devices": 1,
        **more,
    }
    return ServeOptions(**values)


@each
def test_it_says_what_it_is(backend: Backend) -> None:
    assert re.fullmatch(r"[a-z0-9][a-z0-9.-]*", backend.name)
    assert backend.formats and 1024 <= backend.default_port <= 65535
    assert backend.unsupported_reason(HOST) is None
    windows = HOST.model_copy(update={"system": HOST.system.model_copy(update={"os": "windows"})})
    assert backend.unsupported_reason(windows)


@each
def test_the_same_facts_give_the_same_plan(backend: Backend) -> None:
    first, second = install(backend), install(backend)
    assert first == second
    assert backend.serve(first, options(backend)) == backend.serve(second, options(backend))


@each
def test_an_install_key_tells_backend_and_platform(backend: Backend) -> None:
    key = install(backend).install_key
    if not key:  # a program of the user's own, which is not installed under a key
        return
    assert re.fullmatch(rf"{re.escape(backend.name)}-[A-Za-z0-9._+]+-[0-9a-f]{{8}}", key)
    system = HOST.system.model_copy(update={"architecture": "aarch64"})
    elsewhere = HOST.model_copy(update={"system": system})
    if backend.unsupported_reason(elsewhere) is None:
        assert install(backend, elsewhere).install_key != key


@each
def test_what_is_installed_needs_no_step(backend: Backend) -> None:
    planned = install(backend)
    if not planned.install_key:
        return
    there = EngineFacts(
        backend=backend.name, version=planned.version, managed=True, install_key=planned.install_key, path="/e"
    )
    again = install(backend, HOST.model_copy(update={"engines": (*HOST.engines, there)}))
    assert (again.install_key, again.steps) == (planned.install_key, ())


@each
def test_a_version_that_is_none_is_refused(backend: Backend) -> None:
    with pytest.raises(BackendError) as refusal:
        install(backend, version="; rm -rf /")
    assert refusal.value.code and refusal.value.remedy


@each
def test_the_model_path_is_absolute_or_in_the_backends_own_store(backend: Backend) -> None:
    for artifact_format in backend.formats:
        path = backend.model_path(artifact(artifact_format), "/hf")
        assert path.startswith("/hf/") != isinstance(backend, KeepsModels)
        if not isinstance(backend, KeepsModels):
            local = artifact(artifact_format).model_copy(update={"local_path": "/models/here.gguf"})
            assert backend.model_path(local, "/hf") == "/models/here.gguf"


@each
def test_memory_never_shrinks_with_context_or_requests(backend: Backend) -> None:
    def size(context: int, parallel: int) -> int:
        use = backend.memory_use(context, parallel, on_gpu=True)
        assert use.sequences >= 1 and use.reserve_bytes_per_device >= 0 and use.bytes_per_cached_value > 0
        return use.context_tokens

    assert size(4096, 1) <= size(8192, 1) <= size(8192, 4)
    assert size(8192, 1) >= 8192


@each
def test_its_words_are_plain_and_hold_no_secret(backend: Backend) -> None:
    command = backend.serve(install(backend), options(backend))
    assert all(word and "\0" not in word and "\n" not in word for word in command.arguments)
    assert not [word for word in command.arguments if word.split("=")[0] in SECRET_OPTIONS]
    assert command.readiness.path.startswith("/") and command.readiness.start_limit_seconds > 0
    assert command.tool.name and not command.tool.name.startswith("/")
    if not isinstance(backend, SharesServer):
        assert "4321" in command.arguments and "127.0.0.1" in command.arguments
    if command.metrics is not None:
        assert command.metrics.path.startswith("/")


@each
def test_versions_are_read_and_nonsense_is_none(backend: Backend) -> None:
    assert backend.parse_version("") is None
    assert backend.parse_version("no version here\n") is None


# --- the sixth backend ---


def test_a_sixth_backend_is_planned_through_everything(sixth: Backend) -> None:
    """No other line of fleet names it: choice, fit, install, download, service and jobs come from its own file."""
    shape = ModelShape(layers=32, kv_layers=8, kv_heads=4, key_length=256, value_length=256, context_length=32768)
    model = ResolvedModel(name="m", max_context=32768, shape=shape, artifacts=(artifact("gguf"),))
    request = DeployRequest(model="m", backend="llama_cpp_python", context_length=8192)
    deployment = plan_host(Host(name="gpu1", address="gpu1"), GPU_HOST, (), request, model, ())
    plan = deployment.plan
    assert plan.problem is None and plan.action is PlanAction.START
    assert plan.service is not None
    assert (plan.service.backend, plan.service.port, plan.service.readiness.path) == (sixth.name, 8000, "/v1/models")
    assert "llama_cpp.server" in plan.service.arguments and plan.service.served_model_name == "m"
    assert deployment.prepare is not None
    install_step, download_step = deployment.prepare.steps
    assert install_step.python_environment is not None and download_step.hub_download is not None
    assert install_step.python_environment.requirements == ("llama-cpp-python[server]==0.3.16",)


def test_without_being_named_it_is_never_chosen(sixth: Backend) -> None:
    model = ResolvedModel(name="m", max_context=32768, artifacts=(artifact("gguf"),))
    plan = plan_host(Host(name="gpu1", address="gpu1"), GPU_HOST, (), DeployRequest(model="m"), model, ()).plan
    assert plan.service is not None and plan.service.backend == "llama.cpp"


def test_contributing_quotes_the_example_as_it_is() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    assert "docs/examples/llama_cpp_python.py" in text
    source = EXAMPLE.read_text(encoding="utf-8")
    quoted = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert quoted
    for block in quoted:
        for part in block.split("    ...\n"):
            assert part.strip("\n") in source, part
