"""Golden tests of llama.cpp and MLX-LM: `--dry-run` shows what the lab notes say, and what the golden files hold."""

from pathlib import Path

import pytest

from fleet_controller.backends import BACKENDS
from fleet_controller.backends.base import Benches, BenchOptions, Installation
from fleet_controller.domain.plan import FitVerdict, PlanAction
from fleet_controller.domain.steps import HubDownloadStep
from fleet_controller.planning.plan import PlannedDeployment
from fleet_controller.planning.render import tool_path
from fleet_inventory.catalog import load_catalog
from support import golden_plans
from support.golden_plans import DATA, check_golden, facts_of, listing, places_of, served
from support.lab_notes import (
    ADDITIONS,
    PERMITTED_ENVIRONMENT,
    SUBSTITUTIONS,
    differences,
    shell_commands,
    substituted,
    without,
)

NOTES = shell_commands((DATA / "lab-notes-excerpt.md").read_text(encoding="utf-8"))
DOCUMENT = Path(__file__).parents[3] / "docs" / "substitutions.md"


def deploy(host: str, model: str, quantization: str, backend: str) -> PlannedDeployment:
    return golden_plans.deploy(facts_of(host), host, model=model, quantization=quantization, backend=backend)


def commands_of(*words: str) -> list[list[str]]:
    """The notes' commands that contain all these words or parts of words."""
    return [command for command in NOTES if all(any(word in part for part in command) for word in words)]


CASES = {
    "glm-4.7-flash": ("rtx4090", "glm-4.7-flash", "UD-Q2_K_XL", "", "GLM-4.7-Flash-UD-Q2_K_XL.gguf"),
    "qwen3.5-27b": ("rtx4090", "qwen3.5-27b", "UD-Q4_K_XL", "", "Qwen3.5-27B-UD-Q4_K_XL.gguf"),
    "qwen3.5-35b-a3b": ("rtx4090", "qwen3.5-35b-a3b", "UD-Q3_K_XL", "", "Qwen3.5-35B-A3B-UD-Q3_K_XL.gguf"),
    "qwen3.5-4b": ("rtx4090", "qwen3.5-4b", "Q8_0", "", "Qwen3.5-4B-Q8_0.gguf"),
    "qwen3.5-4b-mlx": ("m4", "qwen3.5-4b", "4bit", "", "Qwen3.5-4B-MLX-4bit"),
}


@pytest.mark.parametrize("case", CASES)
def test_server_command_is_that_of_the_notes(case: str) -> None:
    host, model, quantization, backend, named = CASES[case]
    deployment = deploy(host, model, quantization, backend)
    assert deployment.plan.action is PlanAction.START
    notes = [command for command in commands_of(named) if "server" in " ".join(command)]
    assert notes, "the notes have no such server"
    places = places_of(facts_of(host), deployment)
    for command in notes:
        assert differences(substituted(command, places), served(deployment.plan)) == []


@pytest.mark.parametrize("case", CASES)
def test_only_named_variables_are_set(case: str) -> None:
    host, model, quantization, backend, _ = CASES[case]
    for command in deploy(host, model, quantization, backend).plan.commands:
        if command.argv:
            permitted = next(
                (names for end, names in PERMITTED_ENVIRONMENT.items() if command.argv[0].endswith(end)), ()
            )
            assert {variable.name for variable in command.environment} <= set(permitted), command.argv


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("qwen3.5-27b", ("git", "clone")),
        ("qwen3.5-27b", ("-B",)),
        ("qwen3.5-27b", ("--build",)),
        ("qwen3.5-4b-mlx", ("uv", "venv")),
        ("qwen3.5-4b-mlx", ("uv", "pip")),
    ],
)
def test_install_commands_are_those_of_the_notes(case: str, words: tuple[str, ...]) -> None:
    host, model, quantization, backend, _ = CASES[case]
    deployment = deploy(host, model, quantization, backend)
    (notes,) = [command for command in NOTES if all(word in command for word in words)]
    expected = substituted(notes, places_of(facts_of(host), deployment))
    installs = [command.argv for command in deployment.plan.commands if command.purpose == "install" and command.argv]
    reports = [differences(expected, argv) for argv in installs]
    assert [] in reports, reports


@pytest.mark.parametrize("command", [command for command in NOTES if "hf" in command])
def test_downloads_are_those_of_the_notes(command: list[str]) -> None:
    """`hf download --local-dir D REPOSITORY [FILE | --include PATTERN]`: the same files, in the cache instead of D."""
    words = command[command.index("download") + 1 :]
    patterns = [words[position + 1] for position, word in enumerate(words) if word == "--include"]
    plain = [word for position, word in enumerate(words) if word[0] != "-" and words[position - 1][:2] != "--"]
    repository, *files = plain
    wanted = listing(repository).select([*patterns, *files])
    steps = []
    for model in load_catalog().models:
        for artifact in model.artifacts:
            if artifact.repository == repository and artifact.format.value != "safetensors":
                host = "m4" if artifact.format.value == "mlx" else "rtx4090"
                deployment = deploy(host, model.name, artifact.quantization, "")
                assert deployment.prepare is not None
                steps += [step.hub_download for step in deployment.prepare.steps if step.hub_download]
    assert any(step.repository == repository and step.files == wanted for step in steps)
    assert all(isinstance(step, HubDownloadStep) for step in steps)


@pytest.mark.parametrize("command", [command for command in NOTES if "-p" in command])
def test_bench_commands_are_those_of_the_notes(command: list[str]) -> None:
    backend = BACKENDS["mlx-lm" if "mlx_lm.benchmark" in command else "llama.cpp"]
    assert isinstance(backend, Benches)
    depths = tuple(int(depth) for depth in command[command.index("-d") + 1].split(",")) if "-d" in command else (0,)
    facts = facts_of("m4" if backend.name == "mlx-lm" else "rtx4090")
    installation = Installation(backend=backend.name, version="any", install_key="any-key")
    model = command[command.index("--model") + 1]
    path = f"/snapshot/{model.rsplit('/', 1)[-1]}" if model.endswith(".gguf") else "/snapshot"
    step = backend.bench_step(installation, path, BenchOptions(depths=depths)).run_tool
    assert step is not None
    ours = [tool_path(facts, step.tool), *step.arguments]
    places = {"engine": f"{facts.layout.engines_dir}/any-key", "snapshot": "/snapshot"}
    named = ("repetitions", "depth", "machine-readable output")
    notes = without(named, substituted(command, places))  # some of them say `-d 0` themselves
    assert sorted_options(notes) == sorted_options(without(named, ours))


def sorted_options(words: list[str]) -> list[tuple[str, ...]]:
    """A program and its (option, value) pairs: the tools do not care about their order."""
    start = 3 if words[1] == "-m" else 1
    rest = words[start:]
    return [tuple(words[:start]), *sorted(zip(rest[::2], rest[1::2], strict=True))]


@pytest.mark.parametrize("position", range(14))
def test_a_changed_word_is_reported(position: int) -> None:
    """The comparison can fail: every word of a server command of the notes counts."""
    deployment = deploy("rtx4090", "glm-4.7-flash", "UD-Q2_K_XL", "")
    (notes,) = commands_of("GLM-4.7-Flash-UD-Q2_K_XL.gguf", "--jinja")
    expected = substituted(notes, places_of(facts_of("rtx4090"), deployment))
    ours = served(deployment.plan)
    assert differences(expected, ours) == []
    assert position < len(expected)
    changed = [word + "x" if index == position else word for index, word in enumerate(expected)]
    assert differences(changed, ours) != []
    assert differences([word for index, word in enumerate(expected) if index != position], ours) != []


@pytest.mark.parametrize("word", ["--no-mmap", "--n-gpu-layers", "-DGGML_CUDA=OFF"])
def test_an_unnamed_addition_is_reported(word: str) -> None:
    deployment = deploy("rtx4090", "glm-4.7-flash", "UD-Q2_K_XL", "")
    (notes,) = commands_of("GLM-4.7-Flash-UD-Q2_K_XL.gguf", "--jinja")
    expected = substituted(notes, places_of(facts_of("rtx4090"), deployment))
    assert differences(expected, [*served(deployment.plan), word]) != []


def test_full_context_of_the_27b_needs_part_on_the_cpu() -> None:
    plan = deploy("rtx4090", "qwen3.5-27b", "UD-Q4_K_XL", "").plan
    assert plan.fit is FitVerdict.FITS_WITH_OFFLOAD
    assert plan.context_length == 262144
    assert any("on the CPU" in warning for warning in plan.warnings)


@pytest.mark.parametrize("case", CASES)
def test_dry_run_is_exactly_the_golden_file(case: str) -> None:
    host, model, quantization, backend, _ = CASES[case]
    check_golden(deploy(host, model, quantization, backend).plan, f"{host}_{case}")


def test_the_document_names_every_substitution_and_addition() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    missing = [item.name for item in (*SUBSTITUTIONS, *ADDITIONS) if f"| {item.name} |" not in text]
    assert missing == []
