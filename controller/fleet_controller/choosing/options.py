"""What can be chosen on one machine: a backend and a quantization with what is known of them. Pure data."""

from enum import StrEnum

from fleet_controller.choosing.speed import Prediction
from fleet_controller.domain.base import Frozen
from fleet_controller.domain.plan import FitVerdict

# A request as a person waits for it: the prompt of the notes' benches, and an answer of a screen.
REQUEST_PROMPT_TOKENS, REQUEST_ANSWER_TOKENS = 1024, 256
MEASURED_DIGITS, PREDICTED_DIGITS = 4, 3


class Goal(StrEnum):
    DECODE = "decode"
    PREFILL = "prefill"
    LATENCY = "latency"
    THROUGHPUT = "throughput"
    ENERGY = "energy"


# What several requests share, and what a device draws, follows from nothing that is known of a model.
NEVER_PREDICTED = frozenset({Goal.THROUGHPUT, Goal.ENERGY})


class Certainty(StrEnum):
    """From the surest: this very cell here; the same on another machine with this chip; the same at a near depth, of
    another version or through another client; a prediction; nothing at all.
    """

    MEASURED = "measured"
    CHIP = "measured on this chip"
    NEAR = "≈ measured"
    PREDICTED = "predicted"
    UNKNOWN = "unknown"


class Conditions(Frozen):
    """How a figure was measured: two of one host, client and test stand beside each other as they are."""

    host: str
    client: str
    test: str
    backend: str = ""
    version: str = ""

    def are_those_of(self, other: "Conditions") -> bool:
        """Versions of two backends are never the same; those of one backend must be."""
        same = (self.host, self.client, self.test) == (other.host, other.client, other.test)
        return same and (self.backend != other.backend or self.version == other.version)


class Figure(Frozen):
    """A figure with its interval and where it comes from; for energy the unit is J per token, else tokens/s.

    `spread` is half the interval that repetitions alone give, without what another level of comparability adds.
    """

    value: float
    low: float
    high: float
    certainty: Certainty
    source: str = ""
    spread: float | None = None
    conditions: Conditions | None = None


class Standing(Frozen):
    """How an option does in a goal; more is better (for energy: tokens per joule). Value 0: nobody knows.

    `share` is `spread` as a part of the value.
    """

    value: float
    low: float
    high: float
    certainty: Certainty
    unit: str
    text: str
    share: float | None = None
    conditions: Conditions | None = None

    @property
    def is_known(self) -> bool:
        return self.certainty is not Certainty.UNKNOWN


class Quality(Frozen):
    """A score and its confidence interval, in the unit of `name` ("MMLU-Pro")."""

    name: str
    score: float
    low: float
    high: float


class Option(Frozen):
    """One way to serve a model on one machine. `fit_text` says what a refusal or an offload comes from.

    `runtime` is named where one backend has several on a machine (ROCm, Vulkan), `repository` where two have the same
    quantization. `held_back` says why others go before it although they are slower, `on_request` why it is taken only
    where its user names the backend, `excluded` why it cannot be had here at all. `place` is that in the order which
    fleet has without any figure, `version` what would run.
    """

    backend: str
    quantization: str
    runtime: str = ""
    version: str = ""
    artifact_format: str = ""
    repository: str = ""
    artifact_hash: str = ""
    installed: bool = False
    held_back: str = ""
    on_request: str = ""
    excluded: str = ""
    place: int = 0
    longest_context: int = 0
    fully_fitting_context: int = 0
    context_tokens: int = 0
    bits_per_weight: float = 0.0
    fit: FitVerdict = FitVerdict.UNSPECIFIED
    margin_bytes: int | None = None
    offload_bytes: int = 0
    fit_text: str = ""
    decode: Figure | None = None
    prefill: Figure | None = None
    throughput: Figure | None = None
    joules_per_token: Figure | None = None
    quality: Quality | None = None
    notes: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        more = f" ({self.runtime or self.repository})" if self.runtime or self.repository else ""
        return f"{self.backend}{more} {self.quantization}"

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
            lowest = figure.low or figure.value  # a bar that reaches 0 says nothing about its inverse
            return _standing(goal, "tokens/J", (1 / figure.value, 1 / figure.high, 1 / lowest), figure)
        return _standing(goal, "t/s", (figure.value, figure.low, figure.high), figure)

    def _latency(self) -> Standing | None:
        if self.prefill is None or self.decode is None:
            return None
        prefill, decode = self.prefill, self.decode
        values = tuple(
            1 / (REQUEST_PROMPT_TOKENS / one + REQUEST_ANSWER_TOKENS / other) if one and other else 0.0
            for one, other in ((prefill.value, decode.value), (prefill.low, decode.low), (prefill.high, decode.high))
        )
        certainty = max(prefill.certainty, decode.certainty, key=list(Certainty).index)
        source = "; ".join(dict.fromkeys(part for part in (prefill.source, decode.source) if part))
        both = Figure(value=values[0], low=values[1], high=values[2], certainty=certainty, source=source)
        return _standing(Goal.LATENCY, "requests/s", (values[0], values[1], values[2]), both)


def digits_of(certainty: Certainty) -> int:
    """How many significant digits are shown."""
    return PREDICTED_DIGITS if certainty is Certainty.PREDICTED else MEASURED_DIGITS


def amount(value: float, digits: int) -> str:
    """As "39.02", "12,900"."""
    if value < 1000:
        return f"{value:.{digits}g}"
    unit = 10 ** max(len(str(int(value))) - digits, 0)
    return f"{round(value / unit) * unit:,}"


def _standing(goal: Goal, unit: str, values: tuple[float, float, float], figure: Figure) -> Standing:
    value, low, high = values
    digits = digits_of(figure.certainty)
    text = f"{goal.value} {amount(value, digits)} {unit}, {figure.certainty.value}"
    if low < high:
        text += f", {amount(low, digits)} to {amount(high, digits)}"
    if figure.source:
        text += f" ({figure.source})"
    return Standing(
        value=value,
        low=low,
        high=high,
        certainty=figure.certainty,
        unit=unit,
        text=text,
        share=None if figure.spread is None else figure.spread / figure.value,
        conditions=figure.conditions,
    )


def predicted_figure(prediction: Prediction) -> Figure:
    """A prediction as a figure; its source is what it rests on most: the nearest rows, and where none is of this
    device, what the chip is taken to be."""
    rows = next((basis.text for basis in prediction.rests_on if basis.kind == "rows"), "priors alone")
    rows = rows.replace("1 rows of", "1 row of") if rows.startswith("1 ") else rows
    fact = next((basis.text for basis in prediction.rests_on if basis.kind == "fact"), "")
    if fact and "this device" not in rows:
        rows += f", and {fact}"
    return Figure(
        value=prediction.tokens_per_second,
        low=prediction.low,
        high=prediction.high,
        certainty=Certainty.PREDICTED,
        source=f"from {rows}",
    )
