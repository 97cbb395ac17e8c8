"""What the rows say, as sentences that are computed from them: the conclusions of the lab notes. Pure.

Each statement names the rows it rests on; where there are none, it says so.
"""

import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from fleet_controller.results.columns import Metric
from fleet_controller.results.compare import Comparison, Verdict, compare, parse_selector
from fleet_controller.results.matrix import Entry

NO_ROWS = "no rows"
# A name such as "35b-a3b" says that 3 of 35 billion parameters are active: a mixture of experts.
ACTIVE_PARAMETERS = re.compile(r"\d+b-a\d+", re.IGNORECASE)
BUILD_NUMBER = re.compile(r"\d+")


@dataclass(frozen=True)
class Statement:
    """`result_ids` are the rows that it rests on; without any, `text` is "no rows"."""

    topic: str
    text: str
    result_ids: tuple[int, ...] = ()


def conclusions(entries: Iterable[Entry], experts: Mapping[str, bool] | None = None) -> list[Statement]:
    """All statements. `experts` says of models (lower case) whether they are mixtures of experts, where it is known."""
    rows = list(entries)
    return [
        *experts_against_dense(rows, experts or {}),
        *decay_with_depth(rows),
        *newer_builds(rows),
    ]


def experts_against_dense(rows: Sequence[Entry], experts: Mapping[str, bool]) -> list[Statement]:
    """Decode at depth 0: each mixture of experts against the dense models of one host, backend, version and client."""
    topic = "mixture of experts against dense"
    statements: list[Statement] = []
    for _, group in sorted(_groups(_decode_at(rows, 0), by_model=False).items()):
        best = _best_by_model(group)
        mixtures = {model: entry for model, entry in best.items() if _is_mixture(model, experts)}
        dense = {model: entry for model, entry in best.items() if model not in mixtures}
        for _, entry in sorted(mixtures.items()):
            statements += [_against(topic, entry, other) for _, other in sorted(dense.items())]
    return statements or [Statement(topic, NO_ROWS)]


def _against(topic: str, mixture: Entry, dense: Entry) -> Statement:
    first, second = mixture.result, dense.result
    assert first.mean is not None and second.mean is not None
    text = (
        f"{first.model} {first.quantization} decodes {first.mean / second.mean:.2f} times as fast as "
        f"{second.model} {second.quantization} on {first.chip or first.host} with {first.backend} "
        f"({first.mean:.2f} and {second.mean:.2f} tokens/s, {first.client})"
    )
    return Statement(topic, text, (mixture.result_id, dense.result_id))


def decay_with_depth(rows: Sequence[Entry]) -> list[Statement]:
    """For each model how much of its decode speed is left at its greatest depth, the least decay first."""
    topic = "decode against depth"
    found: list[tuple[float, Statement]] = []
    for _, group in sorted(_groups(_decode_at(rows, None), by_model=True).items()):
        by_depth = {entry.result.depth: entry for entry in group}
        deepest = max(by_depth)
        if 0 in by_depth and deepest > 0:
            first, last = by_depth[0].result, by_depth[deepest].result
            assert first.mean is not None and last.mean is not None
            left = last.mean / first.mean
            text = (
                f"{first.model} {first.quantization} keeps {left:.0%} of its decode speed at depth {deepest} on "
                f"{first.chip or first.host} with {first.backend} ({first.mean:.2f} -> {last.mean:.2f} tokens/s, "
                f"{first.client})"
            )
            ids = tuple(by_depth[depth].result_id for depth in sorted(by_depth))
            found.append((left, Statement(topic, text, ids)))
    statements = [statement for _, statement in sorted(found, key=lambda item: -item[0])]
    return statements or [Statement(topic, NO_ROWS)]


def newer_builds(rows: Sequence[Entry]) -> list[Statement]:
    """For each host and backend with several versions: each against the one before it, over their common cells."""
    topic = "newer builds"
    versions: dict[tuple[str, str], set[str]] = {}
    for entry in rows:
        result = entry.result
        if result.backend_version:
            versions.setdefault((result.host, result.backend), set()).add(result.backend_version)
    statements: list[Statement] = []
    for (host, backend), found in sorted(versions.items()):
        mine = [entry for entry in rows if (entry.result.host, entry.result.backend) == (host, backend)]
        ordered = sorted(found, key=_version_order)
        for older, newer in itertools.pairwise(ordered):
            selectors = [parse_selector(f"version={version}") for version in (older, newer)]
            statements += _gains(topic, host, backend, older, newer, compare(mine, selectors[0], selectors[1]))
    return statements or [Statement(topic, NO_ROWS)]


def _gains(topic: str, host: str, backend: str, older: str, newer: str, cells: Sequence[Comparison]) -> list[Statement]:
    statements: list[Statement] = []
    for metric, name in ((Metric.DECODE, "decode"), (Metric.PREFILL, "prefill")):
        mine = [cell for cell in cells if cell.first.result.test_kind is metric]
        if mine:
            shown = [cell for cell in mine if cell.verdict is not Verdict.NONE_SHOWN]
            faster = sum(cell.verdict is Verdict.FASTER for cell in shown)
            ratios = [cell.ratio for cell in mine]
            text = (
                f"{backend} {newer} against {older} on {host}: {name} is faster in {faster}, slower in "
                f"{len(shown) - faster} and not shown to differ in {len(mine) - len(shown)} of {len(mine)} cells "
                f"({min(ratios) - 1:+.1%} to {max(ratios) - 1:+.1%})"
            )
            ids = tuple(entry.result_id for cell in mine for entry in (cell.first, cell.second))
            statements.append(Statement(topic, text, ids))
    return statements


def _version_order(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in BUILD_NUMBER.findall(version))


def _decode_at(rows: Iterable[Entry], depth: int | None) -> list[Entry]:
    """Decode of single requests, oldest first, so that the newest of equals stays."""
    return sorted(
        (
            entry
            for entry in rows
            if entry.result.test_kind is Metric.DECODE
            and entry.result.mean is not None
            and entry.result.concurrency == 1
            and depth in (None, entry.result.depth)
        ),
        key=lambda entry: (entry.result.finished_unix_ms, entry.result_id),
    )


def _groups(rows: Iterable[Entry], by_model: bool) -> dict[tuple[str, ...], list[Entry]]:
    """Rows that may stand in one sentence: of one host, backend, version, flags, client and token count."""
    groups: dict[tuple[str, ...], list[Entry]] = {}
    for entry in rows:
        result = entry.result
        key: tuple[str, ...] = (
            result.host,
            result.backend,
            result.backend_version,
            result.flags,
            result.client,
            str(result.generation_tokens),
        )
        if by_model:
            key = (*key, result.model.lower(), result.quantization)
        groups.setdefault(key, []).append(entry)
    return groups


def _best_by_model(group: Iterable[Entry]) -> dict[str, Entry]:
    best: dict[str, Entry] = {}
    for entry in group:
        model = entry.result.model.lower()
        if model not in best or (entry.result.mean or 0.0) > (best[model].result.mean or 0.0):
            best[model] = entry
    return best


def _is_mixture(model: str, experts: Mapping[str, bool]) -> bool:
    return experts.get(model, bool(ACTIVE_PARAMETERS.search(model)))
