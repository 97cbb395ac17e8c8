"""What can be chosen on one machine: a backend and a quantization with what is known of them. Pure data."""

from collections.abc import Iterable
from enum import StrEnum

from fleet_controller.choosing.speed import Prediction
from fleet_controller.domain.base import Frozen
from fleet_controller.domain.plan import FitVerdict
from fleet_controller.results.columns import Result
from fleet_controller.results.comparability import Level, error_bar, nearest

# A request as a person waits for it: the prompt of the notes' benches, and an answer of a screen.
REQUEST_PROMPT_TOKENS, REQUEST_ANSWER_TOKENS = 1024, 256


class Goal(StrEnum):
    DECODE = "decode"
    PREFILL = "prefill"
    LATENCY = "latency"
    THROUGHPUT = "throughput"
    ENERGY = "energy"


class Certainty(StrEnum):
    """From the surest: this very cell; the same at a near depth or through another client; a prediction."""

    MEASURED = "measured"
    NEAR = "≈ measured"
    PREDICTED = "predicted"


class Figure(Frozen):
    """A figure with its interval and where it comes from; for energy the unit is J per token, else tokens/s."""

    value: float
    low: float
    high: float
    certainty: Certainty
    source: str = ""


class Standing(Frozen):
    """How an option does in a goal; more is better (for energy: tokens per joule)."""

    value: float
    low: float
    high: float
    certainty: Certainty
    unit: str
    text: str


class Quality(Frozen):
    """A score and its confidence interval, in the unit of `name` ("MMLU-Pro")."""

    name: str
    score: float
    low: float
    high: float


class Option(Frozen):
    """One way to serve a model on one machine. `fit_text` says what a refusal or an offload comes from.

    `runtime` is named where one backend has several on a machine (ROCm, Vulkan).
    """

    backend: str
    quantization: str
    runtime: str = ""
    context_tokens: int = 0
    bits_per_weight: float = 0.0
    fit: FitVerdict = FitVerdict.UNSPECIFIED
    margin_bytes: int | None = None
    fit_text: str = ""
    decode: Figure | None = None
    prefill: Figure | None = None
    throughput: Figure | None = None
    joules_per_token: Figure | None = None
    quality: Quality | None = None
    notes: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        runtime = f" ({self.runtime})" if self.runtime else ""
        return f"{self.backend}{runtime} {self.quantization}"

    def standing(self, goal: Goal) -> Standing | None:
        """None where there is no figure for the goal."""
        if goal is Goal.LATENCY:
            return self._latency()
        figure = {
            Goal.DECODE: self.decode,
            Goal.PREFILL: self.prefill,
            Goal.THROUGHPUT: self.throughput,
            Goal.ENERGY: self.joules_per_token,
        }[goal]
        if figure is None:
            return None
        if goal is Goal.ENERGY:
            inverse = (1 / figure.value, 1 / figure.high, 1 / figure.low)
            return _standing(goal, "tokens/J", inverse, figure.certainty, figure.source)
        return _standing(goal, "t/s", (figure.value, figure.low, figure.high), figure.certainty, figure.source)

    def _latency(self) -> Standing | None:
        if self.prefill is None or self.decode is None:
            return None
        prefill, decode = self.prefill, self.decode
        values = tuple(
            1 / (REQUEST_PROMPT_TOKENS / one + REQUEST_ANSWER_TOKENS / other)
            for one, other in ((prefill.value, decode.value), (prefill.low, decode.low), (prefill.high, decode.high))
        )
        certainty = max(prefill.certainty, decode.certainty, key=list(Certainty).index)
        source = "; ".join(dict.fromkeys(part for part in (prefill.source, decode.source) if part))
        return _standing(Goal.LATENCY, "requests/s", (values[0], values[1], values[2]), certainty, source)


def _standing(goal: Goal, unit: str, values: tuple[float, float, float], certainty: Certainty, source: str) -> Standing:
    value, low, high = values
    text = f"{goal.value} {value:.4g} {unit}, {certainty.value}"
    if low < high:
        text += f", {low:.4g} to {high:.4g}"
    if source:
        text += f" ({source})"
    return Standing(value=value, low=low, high=high, certainty=certainty, unit=unit, text=text)


def measured_figure(wanted: Result, rows: Iterable[Result]) -> Figure | None:
    """The figure of a cell from results, the surest first; None where nothing near was measured.

    `wanted` is the cell as a result without a mean: its fingerprint says what is asked for.
    """
    for level, row in nearest(wanted, rows):
        bar = error_bar(row, level)
        if row.mean and bar is not None:
            certainty = Certainty.MEASURED if level is Level.EQUAL else Certainty.NEAR
            source = f"{row.test} of {row.client}" if level is Level.NEAR else ""
            return Figure(value=row.mean, low=max(bar[0], 0.0), high=bar[1], certainty=certainty, source=source)
    return None


def predicted_figure(prediction: Prediction) -> Figure:
    """A prediction as a figure; its source is what it rests on most."""
    rows = next((basis.text for basis in prediction.rests_on if basis.kind == "rows"), "chip facts and priors")
    return Figure(
        value=prediction.tokens_per_second,
        low=prediction.low,
        high=prediction.high,
        certainty=Certainty.PREDICTED,
        source=f"from {rows}",
    )
