"""What is known of one option's speed on one machine: measured first, the surest row of all; else predicted.

A row of this host, of the version that would run, by the engine's own tool, at that depth is a measurement. The same on
another machine with this chip is one of the chip. Another version, client, file or a near depth is the weaker level of
comparability, and is marked so.
"""

import math
from collections.abc import Callable, Iterable, Sequence

from fleet_controller.choosing.options import REQUEST_PROMPT_TOKENS, Certainty, Conditions, Figure, predicted_figure
from fleet_controller.choosing.priors import BELIEFS
from fleet_controller.choosing.speculation import method_of, speculation_of
from fleet_controller.choosing.speed import SpeedModel
from fleet_controller.choosing.work import Cell, Phase
from fleet_controller.domain.base import Frozen
from fleet_controller.results.columns import Metric, Result, Source, Status
from fleet_controller.results.comparability import Level, error_bar, near_depth

# A published size is rounded, and a file holds some metadata beside the tensors that benches count.
SAME_FILE_WITHIN = 0.01
# How far a prompt of another length may be from the one asked for, as a factor, for prefill to be the same test.
SAME_PROMPT_WITHIN = 2.0
GENERATED_TOKENS = 64
_CERTAINTIES = list(Certainty)

SpeedSource = Callable[[], SpeedModel]


class Machine(Frozen):
    """Where an option would run: `chip` as results name it, and so many of them.

    `is_cpu`: a processor's name tells neither its cores nor its memory's channels, so rows of other hosts say nothing.
    """

    host: str
    chip: str
    device_count: int = 1
    gpu_cores: int | None = None
    is_cpu: bool = False


class Wanted(Frozen):
    """What a figure is wanted of. `models` are the names that results may have for the model, in lower case.

    `client` is the engine's own measuring tool, `speculation` how it would speculate ("" = not at all). `cells` are
    what a prediction needs, by phase; none: nothing to go by.
    """

    machine: Machine
    models: frozenset[str]
    quantization: str
    backend: str
    version: str = ""
    client: str = ""
    artifact_hash: str = ""
    weights_bytes: int | None = None
    depth: int = 0
    speculation: str = ""
    cells: tuple[tuple[Phase, Cell], ...] = ()


def speed_of(wanted: Wanted, kind: Metric, rows: Iterable[Result], model: SpeedSource | None) -> Figure | None:
    """Tokens/s of one request at a time; None where nobody measured anything near and nothing can be predicted."""
    found = measured(wanted, [row for row in rows if row.test_kind is kind and row.concurrency == 1])
    if found is not None or model is None:
        return found
    cell = dict(wanted.cells).get(Phase(kind.value))
    return None if cell is None else predicted_figure(model().predict(cell))


def throughput_of(wanted: Wanted, rows: Iterable[Result]) -> Figure | None:
    """Tokens/s of all requests together at the concurrency that gives most; never predicted."""
    several = [row for row in rows if row.test_kind is Metric.DECODE and row.concurrency > 1]
    levels = sorted({row.concurrency for row in several})
    figures = [measured(wanted, [row for row in several if row.concurrency == level]) for level in levels]
    return max((figure for figure in figures if figure), key=lambda figure: figure.value, default=None)


def energy_of(wanted: Wanted, rows: Iterable[Result]) -> Figure | None:
    """J per generated token; never predicted."""
    return measured(wanted, [row for row in rows if row.test_kind is Metric.ENERGY and row.concurrency == 1])


def measured(wanted: Wanted, rows: Sequence[Result]) -> Figure | None:
    """The surest row of one kind as a figure."""
    graded = [(_grade(wanted, row), row) for row in rows if _says_something(wanted, row)]
    if not graded:
        return None
    certainty, row = min(graded, key=lambda item: _order(wanted, *item))
    return figure_of(wanted, row, certainty)


def _says_something(wanted: Wanted, row: Result) -> bool:
    """Of this model and quantization (or this very file) with this backend on this chip, at a near depth."""
    same_file = bool(wanted.artifact_hash) and row.artifact_sha256 == wanted.artifact_hash
    named = row.model.lower() in wanted.models and row.quantization.lower() == wanted.quantization.lower()
    return (
        row.status is Status.MEASURED
        and bool(row.mean)
        and (same_file or named)
        and row.backend == wanted.backend
        and row.chip.lower() == wanted.machine.chip.lower()
        and bool(row.chip)
        and row.device_count == wanted.machine.device_count
        and (not wanted.machine.is_cpu or _is_here(wanted, row))
        and near_depth(row.depth, wanted.depth)
    )


def _grade(wanted: Wanted, row: Result) -> Certainty:
    if _differences(wanted, row):
        return Certainty.NEAR
    return Certainty.MEASURED if _is_here(wanted, row) else Certainty.CHIP


def _differences(wanted: Wanted, row: Result) -> list[str]:
    """In what a row is not the figure that was asked for, in words."""
    found = []
    if wanted.version and row.backend_version and row.backend_version != wanted.version:
        found.append(f"version {row.backend_version}")
    if wanted.client and row.client != wanted.client:
        found.append(f"by {row.client}")
    if row.depth != wanted.depth:
        found.append(f"depth {row.depth}")
    if not _is_same_file(wanted, row):
        found.append("another file of this name")
    if (
        row.prompt_tokens
        and not 1 / SAME_PROMPT_WITHIN <= row.prompt_tokens / REQUEST_PROMPT_TOKENS <= SAME_PROMPT_WITHIN
    ):
        found.append(f"a prompt of {row.prompt_tokens}")
    return found


def _is_same_file(wanted: Wanted, row: Result) -> bool:
    if wanted.artifact_hash and row.artifact_sha256:
        return row.artifact_sha256 == wanted.artifact_hash
    if not wanted.weights_bytes or not row.artifact_bytes:
        return True
    return abs(row.artifact_bytes / wanted.weights_bytes - 1) <= SAME_FILE_WITHIN


def _speculation(row: Result) -> str:
    """Reference rows describe it, those of benches have the engine's flags."""
    return method_of(row.flags) if row.source is Source.REFERENCE else speculation_of(row.flags)


def _is_here(wanted: Wanted, row: Result) -> bool:
    return row.host == wanted.machine.host and row.source is not Source.REFERENCE


def _order(wanted: Wanted, certainty: Certainty, row: Result) -> tuple[object, ...]:
    """The surest first, then this host, the same file, the nearest depth, the own tool, this version, the newest."""
    prompt = abs(math.log(row.prompt_tokens / REQUEST_PROMPT_TOKENS)) if row.prompt_tokens else 0.0
    return (
        _CERTAINTIES.index(certainty),
        not _is_here(wanted, row),
        not _is_same_file(wanted, row),
        abs(row.depth - wanted.depth),
        row.client != wanted.client,
        row.backend_version != wanted.version,
        prompt,
        row.source is Source.REFERENCE,
        -row.finished_unix_ms,
        row.run_id,
    )


def figure_of(wanted: Wanted, row: Result, certainty: Certainty) -> Figure:
    """A row that has a mean as a figure, as sure as `certainty` says."""
    assert row.mean is not None
    bar = error_bar(row) or (row.mean, row.mean)
    shown = error_bar(row, Level.NEAR) if certainty is Certainty.NEAR else bar
    assert shown is not None
    low, high = shown
    if certainty is Certainty.CHIP:
        apart = _apart()
        low, high = low / apart, high * apart
    return Figure(
        value=row.mean,
        low=max(low, 0.0),
        high=high,
        certainty=certainty,
        source=_source(wanted, row),
        spread=(bar[1] - bar[0]) / 2,
        conditions=Conditions(
            host=row.host, client=row.client, test=row.test, backend=row.backend, version=row.backend_version
        ),
    )


def _apart() -> float:
    """How far two machines with one chip differ, as a factor."""
    belief = BELIEFS["decode.device"]
    assert belief.apart is not None
    return belief.apart


def _source(wanted: Wanted, row: Result) -> str:
    """As "this host, tg64", "host gpu2, tg64, version b8396", "lab-notes.md:66, tg32 @ d8192, by llama-benchy"."""
    if row.source is Source.REFERENCE:
        where = f"reference {row.provenance}".strip()
    elif row.host == wanted.machine.host:
        where = "this host" if row.source is Source.MEASURED else f"imported from {row.provenance or 'a file'}"
    else:
        where = f"host {row.host}"
    return ", ".join([where, row.test, *_differences(wanted, row)])
