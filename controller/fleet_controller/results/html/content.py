"""What a report shows, chosen and put in order. Pure.

The file stays small on any number of results: of each fingerprint it has the newest row only, and at most ROWS_MOST
rows, those that the matrix shows before others and newer ones before older ones. Runs and devices' samples are shown of
these rows only, the samples as least, median and most.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from fleet_controller.results.columns import DeviceSample, Metric, Run
from fleet_controller.results.conclusions import Statement, conclusions
from fleet_controller.results.html.repeating import KnownNames
from fleet_controller.results.matrix import METRICS, Entry, Matrix, build_matrix

# About 1 kB of HTML a row: ten megabytes, which a phone still opens.
ROWS_MOST = 10_000
# Heat maps of one metric: the depths that most rows are of.
DEPTHS_MOST = 8

METRIC_NAMES = {
    Metric.DECODE: "Decode",
    Metric.PREFILL: "Prefill",
    Metric.TIME_TO_FIRST_TOKEN: "Time to first token",
    Metric.ENERGY: "Energy per generated token",
}


@dataclass(frozen=True)
class Question:
    """As asked: the metric and depth that come first, what a column is, and what rows were let through (for people).

    The matrix and the charts are of rows with `concurrency` requests at once; the sections of hosts have all.
    """

    metric: Metric = Metric.DECODE
    depth: int = 0
    by: str = "host"
    concurrency: int = 1
    restrictions: tuple[str, ...] = ()


@dataclass(frozen=True)
class Material:
    """What the database gave: the newest row of each fingerprint, and the runs and device samples they came with.

    `left_out`: so many older rows it kept to itself.
    """

    entries: Sequence[Entry]
    runs: Sequence[Run] = ()
    device_samples: Sequence[DeviceSample] = ()
    left_out: int = 0
    experts: Mapping[str, bool] = field(default_factory=dict)
    names: KnownNames = field(default_factory=KnownNames)


@dataclass(frozen=True)
class Report:
    """`anchors` gives each host the id of its section; `left_out` rows are in the database only."""

    question: Question
    now_unix_ms: int
    entries: tuple[Entry, ...]
    left_out: int
    matrices: tuple[Matrix, ...]
    statements: tuple[Statement, ...]
    anchors: Mapping[str, str]
    runs: Mapping[str, Run]
    device_samples: Mapping[str, Sequence[DeviceSample]]
    names: KnownNames


def build_report(material: Material, question: Question, now_unix_ms: int) -> Report:
    matrices = _matrices(material.entries, question)
    kept = _kept(material.entries, matrices)
    if len(kept) < len(material.entries):
        matrices = _matrices(kept, question)
    run_ids = {entry.result.run_id for entry in kept}
    samples: dict[str, list[DeviceSample]] = {}
    for sample in material.device_samples:
        if sample.run_id in run_ids:
            samples.setdefault(sample.run_id, []).append(sample)
    return Report(
        question=question,
        now_unix_ms=now_unix_ms,
        entries=kept,
        left_out=material.left_out + len(material.entries) - len(kept),
        matrices=matrices,
        statements=tuple(conclusions(kept, material.experts)),
        anchors=_anchors({entry.result.host for entry in kept}),
        runs={run.run_id: run for run in material.runs if run.run_id in run_ids},
        device_samples=samples,
        names=material.names,
    )


def row_id(result_id: int) -> str:
    return f"r{result_id}"


def _kept(entries: Sequence[Entry], matrices: Iterable[Matrix]) -> tuple[Entry, ...]:
    """As many as the file may hold, in the order of the database."""
    if len(entries) <= ROWS_MOST:
        return tuple(entries)
    shown = {cell.entry.result_id for matrix in matrices for cell in matrix.cells.values()}
    order = sorted(
        entries,
        key=lambda entry: (entry.result_id in shown, entry.result.finished_unix_ms, entry.result_id),
        reverse=True,
    )
    kept = {entry.result_id for entry in order[:ROWS_MOST]}
    return tuple(entry for entry in entries if entry.result_id in kept)


def _matrices(entries: Sequence[Entry], question: Question) -> tuple[Matrix, ...]:
    """The metric that was asked for first; of each metric the depths that were measured, from shallow to deep."""
    of_metric: dict[Metric, list[Entry]] = {metric: [] for metric in (question.metric, *METRICS.values())}
    for entry in entries:
        if entry.result.test_kind in of_metric and entry.result.concurrency == question.concurrency:
            of_metric[entry.result.test_kind].append(entry)
    found = [
        build_matrix(mine, metric, depth, question.by)
        for metric, mine in of_metric.items()
        for depth in _depths(mine, question.depth)
    ]
    return tuple(matrix for matrix in found if matrix.rows)


def _depths(entries: Iterable[Entry], asked: int) -> list[int]:
    """Those that most rows are of, and in any case the one that was asked for."""
    counted = Counter(entry.result.depth for entry in entries)
    most = sorted(counted, key=lambda depth: (depth != asked, -counted[depth], depth))[:DEPTHS_MOST]
    return sorted({asked, *most})


def _anchors(hosts: Iterable[str]) -> dict[str, str]:
    """Readable ids that stay the same from report to report as long as the names do."""
    anchors: dict[str, str] = {}
    for host in sorted(hosts):
        stem = "host-" + (re.sub(r"[^a-z0-9]+", "-", host.lower()).strip("-") or "unnamed")
        taken, number, name = set(anchors.values()), 1, stem
        while name in taken:
            number += 1
            name = f"{stem}-{number}"
        anchors[host] = name
    return anchors
