"""Golden tests of SGLang and vLLM: every block of the lab notes, on the host kind that it is for."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from fleet_controller.domain.facts import HostFacts
from fleet_controller.domain.plan import DeployRequest, FitVerdict, PlanAction
from fleet_controller.domain.services import DesiredState, ServiceState, ServiceStatus
from fleet_controller.planning.plan import PlannedDeployment
from fleet_controller.wire import from_wire
from fleet_proto.v1 import controller_pb2
from support import golden_plans
from support.golden_plans import DATA, check_golden, facts_of, places_of, served
from support.lab_notes import PERMITTED_ENVIRONMENT, differences, ordered, shell_lines, substituted

DOCUMENT = Path(__file__).parents[3] / "docs" / "substitutions.md"
TEXT = (DATA / "lab-notes-cuda-excerpt.md").read_text(encoding="utf-8")
Command = tuple[dict[str, str], list[str]]


def block(start: str, end: str = "") -> list[Command]:
    """The commands between two lines of the notes, each with its own variables."""
    part = TEXT[TEXT.index(start) :]
    part = part[: part.index(end, len(start))] if end else part
    return [(variables, shlex.split(line)) for variables, line in shell_lines(part)]


GLM = block("GLM-4.7-Flash\n", "Qwen3.5 series")
QWEN_SGLANG = block("Qwen3.5 series", "vLLM:")
QWEN_VLLM = block("vLLM:", "<!-- from the measurements")
MEASURED_SGLANG = block("# sglang commit 7f99319c", "# vllm 0.17.2rc1")
MEASURED_VLLM = block("# vllm 0.17.2rc1")


def installs(commands: list[Command]) -> list[list[str]]:
    return [words for _, words in commands if words[:3] == ["uv", "pip", "install"]]


def servers(commands: list[Command]) -> list[Command]:
    return [command for command in commands if command[1][:2] == ["uv", "run"]]


@dataclass(frozen=True)
class Case:
    """A deploy and what it must equal: a server of the notes, and the installs before it in one command."""

    host: str
    wishes: dict[str, Any]
    server: Command
    installs: list[list[str]]
    same_order: bool = True
    python: str = ""
    version: str = ""


GLM_WISHES: dict[str, Any] = {"model": "glm-4.7-flash", "backend": "sglang", "port": 8000}
QWEN = {"model": "qwen3.5-4b"}
CASES = {
    "glm-4.7-flash-sglang": Case("rtx4090x4", GLM_WISHES, servers(GLM)[0], installs(GLM), version="0.5.8"),
    "glm-4.7-flash-sglang-no-speculation": Case(
        "rtx4090x4", {**GLM_WISHES, "speculative": False}, servers(GLM)[1], installs(GLM), version="0.5.8"
    ),
    "glm-4.7-flash-sglang-old-python": Case(
        "rtx4090x4", GLM_WISHES, servers(GLM)[0], installs(GLM), python="3.8.10", version="0.5.8"
    ),
    "qwen3.5-4b-sglang-main": Case(
        "rtx4090",
        {**QWEN, "backend": "sglang", "backend_version": "main"},
        servers(QWEN_SGLANG)[0],
        installs(QWEN_SGLANG),
        same_order=False,
        version="main",
    ),
    "qwen3.5-4b-sglang": Case(
        "rtx4090",
        {**QWEN, "backend": "sglang"},
        servers(MEASURED_SGLANG)[0],
        installs(QWEN_SGLANG),
        same_order=False,
        version="7f99319c",
    ),
    "qwen3.5-4b-vllm": Case(
        "rtx4090", {**QWEN, "backend": "vllm"}, servers(QWEN_VLLM)[0], installs(QWEN_VLLM)[:1], version="0.26.0"
    ),
    "qwen3.5-4b-vllm-nightly": Case(
        "rtx4090",
        {**QWEN, "backend": "vllm", "backend_version": "nightly"},
        servers(MEASURED_VLLM)[0],
        installs(QWEN_VLLM)[1:],
        version="nightly",
    ),
}


def facts(case: Case) -> HostFacts:
    found = facts_of(case.host)
    if not case.python:
        return found
    return found.model_copy(update={"system": found.system.model_copy(update={"python_version": case.python})})


def planned(case: Case) -> PlannedDeployment:
    return golden_plans.deploy(facts(case), case.host, **case.wishes)


def test_the_excerpt_has_what_is_compared() -> None:
    assert (len(servers(GLM)), len(installs(GLM)), len(installs(QWEN_SGLANG)), len(installs(QWEN_VLLM))) == (2, 2, 2, 2)


def server_report(case: Case, words: list[str]) -> list[str]:
    deployment = planned(case)
    expected, ours = substituted(words, places_of(facts(case), deployment)), served(deployment.plan)
    return differences(expected, ours) if case.same_order else differences(ordered(expected), ordered(ours))


@pytest.mark.parametrize("name", CASES)
def test_server_command_is_that_of_the_notes(name: str) -> None:
    case = CASES[name]
    deployment = planned(case)
    assert (deployment.plan.action, deployment.plan.fit) == (PlanAction.START, FitVerdict.FITS)
    assert deployment.plan.backend_version == case.version
    assert server_report(case, case.server[1]) == []


@pytest.mark.parametrize("name", CASES)
def test_each_word_of_the_notes_counts(name: str) -> None:
    """The comparison can fail: a word more, less or other is reported."""
    case = CASES[name]
    words = case.server[1]
    for position in range(3, len(words)):
        assert server_report(case, [word + "x" if at == position else word for at, word in enumerate(words)]) != []
        assert server_report(case, [word for at, word in enumerate(words) if at != position]) != []
    assert server_report(case, [*words, "--disable-cuda-graph"]) != []


@pytest.mark.parametrize("name", CASES)
def test_variables_are_those_of_the_notes_and_the_named_ones(name: str) -> None:
    case = CASES[name]
    for command in planned(case).plan.commands:
        if not command.argv:
            continue
        variables = {variable.name: variable.value for variable in command.environment}
        named = next((names for end, names in PERMITTED_ENVIRONMENT.items() if command.argv[0].endswith(end)), ())
        wanted = case.server[0] if command.purpose == "serve" else {}
        assert {key: value for key, value in variables.items() if key not in named} == wanted


@pytest.mark.parametrize("name", CASES)
def test_one_install_has_all_packages_of_the_notes(name: str) -> None:
    """The notes' second `uv pip install` replaces what the first one brought: one install with an override."""
    case = CASES[name]
    deployment = planned(case)
    words = [*case.installs[0], *(word for more in case.installs[1:] for word in more[3:])]
    expected = substituted(words, places_of(facts(case), deployment))
    (ours,) = [command for command in deployment.plan.commands if "pip" in command.argv]
    assert differences(ordered(expected), ordered(ours.argv)) == []
    later = [word for more in case.installs[1:] for word in more[3:]]
    replaced = substituted(later, places_of(facts(case), deployment))
    assert ours.description == (f"overrides.txt holds: {', '.join(replaced)}" if replaced else "")


@pytest.mark.parametrize("name", CASES)
def test_environment_is_made_as_in_the_notes(name: str) -> None:
    case = CASES[name]
    (ours,) = [command.argv for command in planned(case).plan.commands if "venv" in command.argv]
    fallback = re.search(r"# if system python too old: (uv venv .*)", TEXT)
    assert fallback is not None
    line = fallback[1] if case.python else "uv venv"
    expected = substituted(shlex.split(line), places_of(facts(case), planned(case)))
    assert differences(expected, ours) == []
    assert ("3.10" in ours) == bool(case.python)


@pytest.mark.parametrize("name", CASES)
def test_dry_run_is_exactly_the_golden_file(name: str) -> None:
    check_golden(planned(CASES[name]).plan, f"{CASES[name].host}_{name}")


def test_nobody_gets_these_backends_unasked() -> None:
    for model in ("glm-4.7-flash", "qwen3.5-4b"):
        assert golden_plans.deploy(facts_of("rtx4090"), "rtx4090", model=model).plan.backend == "llama.cpp"


def test_the_original_of_glm_does_not_fit_one_card() -> None:
    plan = golden_plans.deploy(facts_of("rtx4090"), "rtx4090", **GLM_WISHES).plan
    assert plan.action is PlanAction.REFUSE and plan.problem is not None
    assert plan.problem.code == "does-not-fit" and "memory fraction of 0.8" in plan.problem.message


def test_the_latent_cache_is_on_each_of_the_four_cards() -> None:
    plan = golden_plans.deploy(facts_of("rtx4090x4"), "rtx4090x4", **GLM_WISHES).plan
    cache = next(line for line in plan.fit_lines if line.what == "KV cache")
    assert cache.bytes == 4 * 54144 * plan.context_length
    assert plan.service is not None and plan.service.gpu_indices == (0, 1, 2, 3)


def test_speculation_that_nobody_knows_is_said() -> None:
    wishes: dict[str, Any] = {"model": "qwen3.5-4b", "quantization": "Q8_0", "speculative": True}
    warnings = golden_plans.deploy(facts_of("rtx4090"), "rtx4090", **wishes).plan.warnings
    assert any("no speculative settings" in warning for warning in warnings)


@pytest.mark.parametrize("name", CASES)
def test_the_same_again_changes_nothing_although_the_server_fills_the_gpu(name: str) -> None:
    case = CASES[name]
    service = planned(case).plan.service
    assert service is not None
    host = facts(case)
    full = tuple(gpu.model_copy(update={"memory_free_bytes": 10**9}) for gpu in host.gpus)
    held = sum((gpu.memory_free_bytes or 0) - 10**9 for gpu in host.gpus)
    running = ServiceStatus(spec=service, state=ServiceState.READY, desired=DesiredState.RUNNING, gpu_memory_bytes=held)
    host = host.model_copy(update={"gpus": full})
    assert golden_plans.deploy(host, case.host, (running,), **case.wishes).plan.action is PlanAction.KEEP
    other = {**case.wishes, "speculative": not case.wishes.get("speculative", True)}
    assert golden_plans.deploy(host, case.host, (running,), **other).plan.action is PlanAction.REPLACE


def test_the_document_names_the_test_of_each_block() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    assert [name for name in CASES if f"[{name}]`" not in text] == []


@pytest.mark.parametrize("wish", [None, True, False])
def test_the_wish_for_speculation_survives_the_wire(wish: bool | None) -> None:
    """Absent, yes and no are three things: `false` must not read as "not said"."""
    message = controller_pb2.PlanDeployRequest(model="m", speculative=wish)
    read = controller_pb2.PlanDeployRequest.FromString(message.SerializeToString())
    assert from_wire(DeployRequest, read).speculative is wish
