"""Models that the agent makes up: real files for the real llama-bench, gone whoever dies."""

import dataclasses
import json
import struct
from pathlib import Path

import pytest

from fleet_agent.jobs.errors import SpecProblem
from fleet_agent.jobs.model import GeneratedModel, JobEvent, JobSpec, Step
from fleet_agent.measuring import generated_model
from fleet_agent.measuring.generated_model import FOLDER, QUANTIZATIONS, check, pieces, tensor_bytes, tensors
from fleet_agent.probes import memory
from support.agent_jobs import Agent, kill, problem_of, result_of
from support.bench_jobs import bench

SMALL = GeneratedModel(2, 256, 512, 4, 2, 64, 320, "Q4_K_M")


def measured(model: GeneratedModel, *arguments: str) -> Step:
    return bench(Path("{model_file}"), *arguments, generated=model)


def files(agent: Agent) -> list[Path]:
    return list((agent.layout.hf_home / FOLDER).glob("*"))


@pytest.mark.parametrize("quantization", sorted(QUANTIZATIONS))
def test_the_file_has_the_size_that_its_tensors_say(quantization: str) -> None:
    model = dataclasses.replace(SMALL, quantization=quantization)
    check(model)
    head, *rest = list(pieces(model))
    assert head[:4] == b"GGUF" and struct.unpack("<Q", head[8:16])[0] == len(tensors(model))
    assert sum(map(len, rest)) == sum(map(tensor_bytes, tensors(model)))


def test_the_same_model_is_the_same_file() -> None:
    assert b"".join(pieces(SMALL)) == b"".join(pieces(SMALL))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"layers": 0}, "layers"),
        ({"hidden_size": 300}, "multiples of 256"),
        ({"key_value_heads": 3}, "shared evenly"),
        ({"quantization": "Q2_K"}, "not 'Q2_K'"),
        ({"layers": 512, "hidden_size": 16384, "feed_forward_size": 65536}, "is more than"),
    ],
)
def test_a_model_that_cannot_be_made_is_refused(change: dict[str, object], told: str) -> None:
    with pytest.raises(SpecProblem, match=told):
        check(dataclasses.replace(SMALL, **change))  # type: ignore[arg-type]


@pytest.mark.llama_cpp
@pytest.mark.parametrize("quantization", sorted(QUANTIZATIONS))
async def test_llama_bench_measures_it_and_it_is_gone(agent: Agent, quantization: str) -> None:
    model = dataclasses.replace(SMALL, quantization=quantization)
    result = result_of(await agent.run(measured(model)))
    assert result["outcome"] == "measured"
    row, _ = json.loads(result["stdout"])
    size = sum(map(tensor_bytes, tensors(model)))
    assert row["model_size"] == size and result["artifacts"][0]["size_bytes"] >= size
    assert row["model_n_params"] == sum(_count(dimensions) for _, dimensions, _ in tensors(model))
    assert files(agent) == []


def _count(dimensions: tuple[int, ...]) -> int:
    count = 1
    for dimension in dimensions:
        count *= dimension
    return count


@pytest.mark.llama_cpp
async def test_it_is_gone_after_a_tool_that_fails_and_after_a_kill(agent: Agent) -> None:
    code, _, _ = problem_of(await agent.run(measured(SMALL, "--no-such-option"), job_id="fails"))
    assert code == "tool-failed" and files(agent) == []

    def measuring(event: JobEvent) -> bool:
        return event.progress is not None and " run " in event.progress.label

    await agent.supervisor.submit(JobSpec("job", "bench", (measured(SMALL, "-r", "2000"),)))
    await agent.until("job", measuring)
    assert len(files(agent)) == 1
    await kill(await agent.runner("job"))
    assert result_of(await agent.finish("job"))["outcome"] == "measured"
    assert files(agent) == []


async def test_what_has_no_room_is_said_before_anything_is_written(
    agent: Agent, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Runners are other processes, so the writing itself is asked here."""
    from fleet_agent.jobs.errors import JobProblem
    from fleet_agent.probes.model import MemoryFacts

    path = tmp_path / "models" / "job.gguf"

    class Context:
        layout, configuration = agent.layout, None

    monkeypatch.setattr(generated_model, "free_bytes", lambda folder: 1000)
    with pytest.raises(JobProblem, match="is full"):
        generated_model.write(SMALL, path, Context())  # type: ignore[arg-type]
    monkeypatch.setattr(generated_model, "free_bytes", lambda folder: None)
    monkeypatch.setattr(memory, "read", lambda context: MemoryFacts(available_bytes=1000))
    with pytest.raises(JobProblem, match="does not fit"):
        generated_model.write(SMALL, path, Context())  # type: ignore[arg-type]
    assert not path.exists()
