"""From candidates of a host to options with all that is known of them, and the decision among them."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from fleet_controller.backends import BACKENDS
from fleet_controller.backends.base import Preallocates
from fleet_controller.benchmarking.cells import chip_of
from fleet_controller.benchmarking.clients import ENGINE_CLIENTS, SERVING_CLIENTS
from fleet_controller.choosing.bits import CAREFUL_BITS, nominal_bits
from fleet_controller.choosing.cells import cells_of, engine_on
from fleet_controller.choosing.decision import Decision, decide
from fleet_controller.choosing.known import (
    GENERATED_TOKENS,
    Machine,
    Wanted,
    energy_of,
    speed_of,
    throughput_of,
)
from fleet_controller.choosing.options import REQUEST_PROMPT_TOKENS, Goal, Option, Quality
from fleet_controller.choosing.speculation import method_of, verdict_of
from fleet_controller.choosing.ties import Cells, ties_of
from fleet_controller.choosing.work import Cell, Phase
from fleet_controller.domain.facts import HostFacts
from fleet_controller.domain.plan import FitVerdict
from fleet_controller.domain.resolved import MLX, ModelArtifact, ResolvedModel
from fleet_controller.domain.sizes import gibibytes
from fleet_controller.operations.choosing_knowledge import Knowledge, ModelFacts, device_at, file_hash
from fleet_controller.planning.considering import Candidate
from fleet_controller.results.columns import Metric

_TOKENS = {Phase.DECODE: GENERATED_TOKENS, Phase.PREFILL: REQUEST_PROMPT_TOKENS}


@dataclass(frozen=True)
class Question:
    """What is decided by: a goal, a floor on quality, and the depth of context at which speeds are compared.

    `goal_only`: nothing is predicted beside what the goal needs.
    """

    goal: Goal = Goal.DECODE
    quality_floor: float | None = None
    depth: int = 0
    goal_only: bool = False

    def predicts(self, goal: Goal) -> bool:
        return not self.goal_only or self.goal in (goal, Goal.LATENCY)


def decision_for(
    host: str,
    facts: HostFacts,
    resolved: ResolvedModel,
    candidates: Sequence[Candidate],
    knowledge: Knowledge,
    question: Question,
) -> Decision:
    """The decision among candidates, each with the surest figures there are. Deterministic for the same rows."""
    return decision_with_cells(host, facts, resolved, candidates, knowledge, question)[0]


def decision_with_cells(
    host: str,
    facts: HostFacts,
    resolved: ResolvedModel,
    candidates: Sequence[Candidate],
    knowledge: Knowledge,
    question: Question,
) -> tuple[Decision, dict[str, Cells]]:
    """As decision_for, with what predictions are made of, by the options' names."""
    model = knowledge.facts_of(resolved)
    options: list[Option] = []
    wanted: dict[str, Wanted] = {}
    for candidate, option in _named(candidates):
        asked = _wanted(host, facts, resolved, candidate, model, question.depth)
        wanted[option.name] = asked
        options.append(with_figures(option, candidate, asked, model, knowledge, question))
    cells: dict[str, Cells] = {name: dict(asked.cells) for name, asked in wanted.items() if asked.cells}
    tie = ties_of(knowledge.speed, cells, question.goal)
    return decide(options, question.goal, question.quality_floor, tie), cells


def _named(candidates: Iterable[Candidate]) -> list[tuple[Candidate, Option]]:
    """Each with its option; a repository is named where two have one backend and quantization."""
    pairs = [(candidate, _option(candidate)) for candidate in candidates]
    often = Counter(option.name for _, option in pairs)
    found = [
        (
            candidate,
            option
            if often[option.name] == 1
            else option.model_copy(update={"repository": candidate.choice.artifact.repository}),
        )
        for candidate, option in pairs
    ]
    seen = Counter(option.name for _, option in found)
    return [
        (candidate, option)
        if seen[option.name] == 1
        else (candidate, option.model_copy(update={"runtime": candidate.choice.artifact.format}))
        for candidate, option in found
    ]


def _option(candidate: Candidate) -> Option:
    choice, fit = candidate.choice, candidate.choice.fit
    artifact = choice.artifact
    fits = fit.verdict is FitVerdict.FITS
    margin = fit.free_bytes - fit.needed_bytes if fits and fit.free_bytes is not None else None
    texts = {
        FitVerdict.REFUSED: fit.summary(),
        FitVerdict.FITS_WITH_OFFLOAD: f"{gibibytes(fit.offload_bytes)} of it on the CPU: {fit.summary()}"
        + (f"; {fit.offload_cost}" if fit.offload_cost else ""),
        FitVerdict.UNSPECIFIED: fit.unknown,
    }
    return Option(
        backend=choice.backend,
        quantization=artifact.quantization or artifact.format,
        version=candidate.version,
        artifact_format=artifact.format,
        artifact_hash=file_hash(artifact),
        installed=candidate.installed,
        excluded=candidate.excluded,
        on_request=candidate.on_request,
        place=candidate.place,
        context_tokens=choice.context_tokens,
        longest_context=choice.longest_context,
        fully_fitting_context=choice.fully_fitting_context or 0,
        fit=fit.verdict,
        margin_bytes=margin,
        offload_bytes=fit.offload_bytes if fit.verdict is FitVerdict.FITS_WITH_OFFLOAD else 0,
        fit_text=texts.get(fit.verdict, ""),
    )


def with_figures(
    option: Option,
    candidate: Candidate,
    wanted: Wanted,
    model: ModelFacts,
    knowledge: Knowledge,
    question: Question,
) -> Option:
    artifact = candidate.choice.artifact
    rows = knowledge.rows_of(wanted.models)
    weights = weights_of(artifact)
    bits = weights * 8 / model.parameters if weights and model.parameters else nominal_bits(artifact.quantization)
    quality = knowledge.quality_of(artifact, model.names)
    too_deep = 0 < option.context_tokens <= question.depth
    decode, prefill = (knowledge.speed if question.predicts(goal) else None for goal in (Goal.DECODE, Goal.PREFILL))
    return option.model_copy(
        update={
            "bits_per_weight": bits,
            "decode": speed_of(wanted, Metric.DECODE, rows, decode),
            "prefill": speed_of(wanted, Metric.PREFILL, rows, prefill),
            "throughput": throughput_of(wanted, rows),
            "joules_per_token": energy_of(wanted, rows),
            "quality": quality,
            "held_back": held_back(bits, quality),
            "excluded": option.excluded or (_ends_before(option, question) if too_deep else ""),
            "notes": (*_notes(candidate, wanted), *_speculation(wanted, knowledge)),
        }
    )


def _ends_before(option: Option, question: Question) -> str:
    return f"its context of {option.context_tokens:,} tokens ends before a depth of {question.depth:,}"


def held_back(bits_per_weight: float, quality: Quality | None) -> str:
    """Why others go before an option although they are slower; "" = they do not."""
    if quality is not None or not 0 < bits_per_weight < CAREFUL_BITS:
        return ""
    return f"{bits_per_weight:.1f} bits a weight, and nobody scored its answers: `fleet eval` does"


def _notes(candidate: Candidate, wanted: Wanted) -> Iterable[str]:
    choice = candidate.choice
    if not candidate.installed and not candidate.on_request:
        yield f"{choice.backend} {candidate.version} is still to be installed".replace("  ", " ")
    if choice.context_tokens < choice.longest_context and choice.fit.verdict is FitVerdict.FITS:
        yield f"context {choice.context_tokens:,}: {choice.longest_context:,} does not fit"
    if wanted.machine.device_count > 1 and wanted.cells:
        yield f"predicted as on one GPU: its layers lie on {wanted.machine.device_count}, one after another"


def _speculation(wanted: Wanted, knowledge: Knowledge) -> Iterable[str]:
    """What measured pairs say of the speculation that it would be served with."""
    cell = dict(wanted.cells).get(Phase.DECODE)
    if cell is None or not cell.engine.speculation:
        return
    verdict = verdict_of(cell, knowledge.speculation)
    if verdict is None:
        yield f"it speculates ({cell.engine.speculation}); whether that pays here, no measured pair tells"
    else:
        yield verdict.text + ("; --no-speculative leaves it out" if verdict.loses else "")


def weights_of(artifact: ModelArtifact) -> int | None:
    """Bytes of the language model: a multimodal projector is not read for a token."""
    if artifact.weights_bytes is None:
        return None
    projector = artifact.projector.size_bytes if artifact.projector is not None and artifact.sees else 0
    return artifact.weights_bytes - projector


def _wanted(
    host: str, facts: HostFacts, resolved: ResolvedModel, candidate: Candidate, model: ModelFacts, depth: int
) -> Wanted:
    choice = candidate.choice
    artifact, backend = choice.artifact, choice.backend
    machine = Machine(
        host=host,
        chip=chip_of(facts, candidate.gpu_indices),
        device_count=max(len(candidate.gpu_indices), 1),
        gpu_cores=facts.apple.gpu_cores if facts.apple and not candidate.gpu_indices else None,
        is_cpu=not candidate.gpu_indices and facts.apple is None,
    )
    speculation = method_of(" ".join(resolved.overrides_for(backend).speculative))
    return Wanted(
        machine=machine,
        models=model.names,
        quantization=artifact.quantization,
        backend=backend,
        version=candidate.version,
        client=ENGINE_CLIENTS.get(backend) or SERVING_CLIENTS.get(backend, ""),
        artifact_hash=file_hash(artifact),
        weights_bytes=weights_of(artifact),
        depth=depth,
        speculation=speculation,
        cells=tuple(_cells(machine, candidate, model, speculation, depth)),
    )


def _cells(
    machine: Machine, candidate: Candidate, model: ModelFacts, speculation: str, depth: int
) -> Iterable[tuple[Phase, Cell]]:
    """What a prediction needs, where all of it is known; none for a model that is dealt out to several GPUs."""
    choice = candidate.choice
    weights = weights_of(choice.artifact)
    device = device_at(machine.host, machine.chip, machine.gpu_cores)
    deals_out = machine.device_count > 1 and isinstance(BACKENDS[choice.backend], Preallocates)
    if device is None or model.work is None or not weights or deals_out:
        return
    # LM Studio computes MLX models with MLX, all others with llama.cpp.
    backend = "mlx-lm" if choice.artifact.format == MLX else choice.backend
    engine = engine_on(device, backend, candidate.version, speculation=speculation)
    yield from cells_of(model.work, device, engine, choice.artifact.quantization, float(weights), _TOKENS, depth)
