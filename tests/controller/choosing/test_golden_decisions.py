"""A golden set of decisions with their explanations, from captured hosts, hub listings and the reference data.

Each is the text that `fleet choose` prints below its table. Written anew with FLEET_UPDATE_GOLDEN=1, so that a change
of the core, of fits or of predictions shows what it changes: look at the difference before it is committed.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fleet_controller.backends import BACKENDS
from fleet_controller.backends.base import InstallRequest
from fleet_controller.choosing.options import Certainty, Goal
from fleet_controller.choosing.report import HostChoice, ModelChoice
from fleet_controller.choosing.speculation import verdict_of
from fleet_controller.domain.facts import EngineFacts, GpuProcess, HostFacts
from fleet_controller.domain.plan import DeployRequest
from fleet_controller.operations.choosing_knowledge import Knowledge, file_hash
from fleet_controller.operations.choosing_options import Question
from fleet_controller.results.quality import MMLU_PRO, QualityRow, save_quality
from fleet_controller.state import StateDatabase
from fleet_inventory.catalog import load_catalog
from support.choosing_world import chosen_on, everything
from support.golden_plans import facts_of

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> Knowledge:
    return Knowledge(StateDatabase(tmp_path_factory.mktemp("known") / "fleet.db"), load_catalog())


def rtx_4090(count: int = 1, **changes: Any) -> HostFacts:
    """A host of the notes with so many of its cards."""
    facts = facts_of("rtx4090x4" if count > 1 else "rtx4090")
    return facts.model_copy(update={"gpus": facts.gpus[:count], **changes})


def busy_rtx_4090() -> HostFacts:
    """A colleague computes on it since two hours: 16 GB are gone."""
    facts = rtx_4090()
    process = GpuProcess(pid=4711, memory_bytes=16 * 10**9, user="alice", command="python", compute=True,
                         started_unix_ms=facts.taken_unix_ms - 7_200_000)  # fmt: skip
    gpu = facts.gpus[0]
    free = (gpu.memory_free_bytes or 0) - 16 * 10**9
    return facts.model_copy(
        update={"gpus": (gpu.model_copy(update={"processes": (process,), "memory_free_bytes": free}),)}
    )


def with_vllm() -> HostFacts:
    facts = rtx_4090()
    planned = BACKENDS["vllm"].plan_install(facts, InstallRequest(gpus=facts.gpus))
    engine = EngineFacts(backend="vllm", version=planned.version, managed=True, install_key=planned.install_key)
    return facts.model_copy(update={"engines": (engine,)})


def cpu_host() -> HostFacts:
    """The notes' Linux box without its card."""
    return rtx_4090(gpus=(), nvidia=None)


def scored(folder: Path) -> Knowledge:
    """With MMLU-Pro scores that say that four bits cost Qwen3.5-4B eleven points, and nothing of UD-Q4_K_XL."""
    database = StateDatabase(folder / "fleet.db")
    resolved = everything(DeployRequest(model="qwen3.5-4b"))
    for quantization, score in (("Q8_0", 0.58), ("Q4_K_M", 0.47)):
        artifact = next(item for item in resolved.artifacts if item.quantization == quantization)
        row = QualityRow(run_id=quantization, host="here", model="qwen3.5-4b", quantization=quantization,
                         artifact_hash=file_hash(artifact), metric=MMLU_PRO, protocol="tiger", protocol_version="1",
                         score=score, low=score - 0.02, high=score + 0.02, n=2400)  # fmt: skip
        save_quality(database, row)
    return Knowledge(database, load_catalog())


Case = Callable[[Knowledge], HostChoice]
CASES: dict[str, Case] = {
    "rtx-4090-35b-a3b-against-27b": lambda known: chosen_on(
        rtx_4090(), known, "qwen3.5-35b-a3b", "qwen3.5-27b", context_length=8192
    ),
    "rtx-4090-35b-a3b-at-its-own-context": lambda known: chosen_on(rtx_4090(), known, "qwen3.5-35b-a3b"),
    "rtx-4090-27b-partly-on-the-cpu": lambda known: chosen_on(rtx_4090(), known, "qwen3.5-27b"),
    "rtx-4090-glm-4.7-flash": lambda known: chosen_on(rtx_4090(), known, "glm-4.7-flash", context_length=32768),
    "rtx-4090-4b-prefill-with-vllm-installed": lambda known: chosen_on(
        with_vllm(), known, "qwen3.5-4b", question=Question(Goal.PREFILL)
    ),
    "busy-rtx-4090-9b": lambda known: chosen_on(busy_rtx_4090(), known, "qwen3.5-9b", context_length=16384),
    "two-rtx-4090-glm-4.7-flash": lambda known: chosen_on(rtx_4090(2), known, "glm-4.7-flash"),
    "apple-m4-4b": lambda known: chosen_on(facts_of("m4"), known, "qwen3.5-4b"),
    "apple-m4-35b-a3b-nothing-fits": lambda known: chosen_on(facts_of("m4"), known, "qwen3.5-35b-a3b"),
    "cpu-host-4b": lambda known: chosen_on(cpu_host(), known, "qwen3.5-4b"),
    "cpu-host-4b-throughput-without-any-figure": lambda known: chosen_on(
        cpu_host(), known, "qwen3.5-4b", question=Question(Goal.THROUGHPUT)
    ),
}


def text_of(choice: HostChoice) -> str:
    """As the command prints it, and in one line."""
    lines = [f"{choice.device_count} x {choice.chip}"]
    for model in choice.models:
        lines += ["", f"# {model.model}", model.summary, *model.explanation]
        lines += [f"note: {note}" for note in model.notes] + [f"next: {command}" for command in model.next_commands]
    return "\n".join([*lines, *choice.comparison]) + "\n"


def check(name: str, choice: HostChoice) -> None:
    path = GOLDEN / f"{name}.txt"
    text = text_of(choice)
    if os.environ.get("FLEET_UPDATE_GOLDEN"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", CASES)
def test_golden_decisions(name: str, known: Knowledge) -> None:
    check(name, CASES[name](known))


def test_a_floor_on_quality_rules_out_what_is_fast_and_bad_and_what_nobody_scored(tmp_path: Path) -> None:
    choice = chosen_on(rtx_4090(), scored(tmp_path), "qwen3.5-4b", question=Question(quality_floor=0.55))
    check("rtx-4090-4b-with-a-floor-on-quality", choice)
    decision = choice.models[0].decision
    assert decision is not None
    assert [ranked.option.name for ranked in decision.ranked] == ["llama.cpp Q8_0", "lm-studio Q8_0"]


def only(choice: HostChoice) -> ModelChoice:
    (model,) = choice.models
    return model


def test_on_the_notes_4090_the_mixture_of_experts_decodes_three_times_as_fast_as_the_dense_model(
    known: Knowledge,
) -> None:
    """Qwen3.5-35B-A3B over 27B, both measured there: 124.5 and 41.5 t/s."""
    choice = CASES["rtx-4090-35b-a3b-against-27b"](known)
    experts, dense = (model.decision for model in choice.models)
    assert experts is not None and experts.chosen is not None and dense is not None and dense.chosen is not None
    assert experts.chosen.standing.value > 2.5 * dense.chosen.standing.value
    assert choice.comparison[0].startswith("qwen3.5-35b-a3b (llama.cpp UD-Q4_K_XL) is ")
    assert " times as fast for decode as qwen3.5-27b (" in choice.comparison[0]


def test_on_the_notes_m4_mlx_is_first_through_the_weaker_level_and_it_is_said(known: Knowledge) -> None:
    decision = only(CASES["apple-m4-4b"](known)).decision
    assert decision is not None and decision.chosen is not None
    assert decision.chosen.option.name == "mlx-lm 4bit"
    assert decision.chosen.standing.certainty is Certainty.NEAR
    measured = next(ranked for ranked in decision.ranked if ranked.option.name == "llama.cpp UD-Q4_K_XL")
    assert measured.standing.certainty is Certainty.CHIP
    assert not measured.ties_with_first
    assert measured.comparison == "37 % behind mlx-lm 4bit (≈: llama-bench beside mlx_lm.benchmark)"


def test_the_same_question_has_the_same_answer(known: Knowledge, tmp_path: Path) -> None:
    other = Knowledge(StateDatabase(tmp_path / "fleet.db"), load_catalog())
    for name in ("rtx-4090-glm-4.7-flash", "apple-m4-4b"):
        assert CASES[name](known) == CASES[name](other)


def test_the_pair_that_was_measured_on_an_h100_says_that_speculation_loses_there(known: Knowledge) -> None:
    """Of the shape itself, and so of other dense models; nothing is said of mixtures of experts, nor elsewhere."""
    pair = known.speculation[0]
    dense = pair.plain.model_copy(update={"engine": pair.plain.engine.model_copy(update={"speculation": "draft"})})
    verdict = verdict_of(dense, known.speculation)
    assert verdict is not None and verdict.loses
    assert "speculation (draft) of qwen3-8b on H100 SXM loses" in verdict.text and "180 t/s without" in verdict.text
    other = dense.model_copy(update={"model": dense.model.model_copy(update={"name": "another dense one"})})
    said = verdict_of(other, known.speculation)
    assert said is not None and said.loses and "dense models (qwen3-8b)" in said.text
    experts = dense.model_copy(update={"model": other.model.model_copy(update={"mixture_of_experts": True})})
    elsewhere = dense.model_copy(update={"device": dense.device.model_copy(update={"name": "RTX 4090"})})
    assert verdict_of(experts, known.speculation) is None and verdict_of(elsewhere, known.speculation) is None
