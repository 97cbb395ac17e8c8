"""Speculation (draft models, MTP heads, n-grams): whether rows ask for it, and what measured pairs say of it. Pure.

Drafts cost what they may save, and whether they do depends on the machine and on what is generated. So fleet goes by
pairs: two decode rows that differ in speculation alone. Pairs of the model itself speak first, then those of its class
(dense, or mixture of experts) on the same device and engine; without a pair nothing is said.
"""

import math
import re
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from fleet_controller.choosing.work import Cell, MeasuredSpeed, Phase

# llama-server (--spec-type, -md and their long forms), vLLM (--speculative-config), SGLang (--speculative-algorithm)
# and mlx_lm.server (--draft-model). Words come first: "mtp" in a flag's value says more than that there is one.
_ASKED = re.compile(
    r"(?:^|\s)(?:-md|-hfd|--model-draft|--hf-repo-draft|--draft\S*|--spec-\S+|--speculative\S*)(?=[\s=])"
)
_METHODS = ("mtp", "eagle", "ngram", "lookup")
OTHER_METHOD = "draft"
# Pairs whose ratio is within this of 1 neither gain nor lose: what llama-bench's repetitions differ by on a busy host.
NOISE = 0.03


@dataclass(frozen=True)
class Pair:
    """One cell without and with speculation, in tokens/s, and who measured the latter."""

    plain: Cell
    method: str
    without: float
    with_it: float
    source: str

    @property
    def gain(self) -> float:
        """By how much speculation is faster, as a share; below 0 it loses."""
        return self.with_it / self.without - 1


@dataclass(frozen=True)
class Verdict:
    """What pairs say of speculation for a cell: the gain in the middle, and in words with whose pairs these are."""

    gain: float
    text: str

    @property
    def loses(self) -> bool:
        return self.gain < -NOISE


def speculation_of(flags: str) -> str:
    """The method that an engine's flags ask for: "mtp", "eagle", "ngram", "lookup" or "draft"; "" for none."""
    asked = _ASKED.search(f"{flags} ")
    return method_of(flags[asked.start() :]) if asked else ""


def method_of(words: str) -> str:
    """The method in a description, as lab notes have it ("EAGLE 3 steps topk1 4 draft"); "" for none."""
    lower = words.lower()
    return next((method for method in _METHODS if method in lower), OTHER_METHOD) if words else ""


def pairs_of(rows: Iterable[MeasuredSpeed]) -> tuple[Pair, ...]:
    """Every decode row with speculation beside the row that differs from it in nothing else, in the order of cells."""
    decode = [row for row in rows if row.cell.phase is Phase.DECODE]
    plain: dict[Cell, list[float]] = {}
    for row in decode:
        if not row.cell.engine.speculation:
            plain.setdefault(row.cell, []).append(row.tokens_per_second)
    found = []
    for row in decode:
        without = plain.get(plainly(row.cell))
        if row.cell.engine.speculation and without:
            middle = statistics.median(without)
            found.append(
                Pair(plainly(row.cell), row.cell.engine.speculation, middle, row.tokens_per_second, row.source)
            )
    return tuple(sorted(found, key=lambda pair: (pair.plain.device.name, pair.plain.model.name, pair.source)))


def plainly(cell: Cell) -> Cell:
    """The same cell without speculation."""
    return cell.model_copy(update={"engine": cell.engine.model_copy(update={"speculation": ""})})


def verdict_of(cell: Cell, pairs: Sequence[Pair]) -> Verdict | None:
    """What the nearest pairs say; None where nobody measured one near enough."""
    here = [pair for pair in pairs if _here(pair, cell)]
    same_model = [pair for pair in here if pair.plain.model.name == cell.model.name]
    same_class = [pair for pair in here if pair.plain.model.mixture_of_experts == cell.model.mixture_of_experts]
    near = same_model or same_class
    if not near:
        return None
    gain = math.expm1(statistics.median(math.log1p(pair.gain) for pair in near))
    kind = "mixtures of experts" if cell.model.mixture_of_experts else "dense models"
    whose = cell.model.name if same_model else f"{kind} ({', '.join(sorted({pair.plain.model.name for pair in near}))})"
    return Verdict(gain=gain, text=_text(gain, whose, near))


def _here(pair: Pair, cell: Cell) -> bool:
    mine, theirs = cell.engine, pair.plain.engine
    method = not mine.speculation or mine.speculation == pair.method
    return pair.plain.device.name == cell.device.name and theirs.key == mine.key and method


def _text(gain: float, whose: str, near: Sequence[Pair]) -> str:
    first = near[0]
    what = f"speculation ({first.method}) of {whose} on {first.plain.device.name}"
    how = (
        f"{len(near)} measured pair{'s' if len(near) > 1 else ''}: {first.without:.4g} t/s without, {first.with_it:.4g}"
    )
    if abs(gain) <= NOISE:
        return f"{what} makes no difference ({how} with it, {first.source})"
    word = "gains" if gain > 0 else "loses"
    return f"{what} {word} {abs(gain):.0%} ({how} with it, {first.source})"
