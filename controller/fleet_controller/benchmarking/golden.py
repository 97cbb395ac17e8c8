"""The judgement of a golden bench: the same tests and the same chat before and after an engine was changed. Pure."""

from collections.abc import Sequence

from fleet_controller.domain.base import Frozen
from fleet_controller.results.columns import Metric, Result
from fleet_controller.results.statistics import estimate_of, interval_of, welch

JUDGED = (Metric.PREFILL, Metric.DECODE)
SHOWN_CHARACTERS = 80


class Evidence(Frozen):
    """What was measured of one service on one version. `reply` None = the chat was not asked, or does not repeat."""

    results: tuple[Result, ...]
    reply: str | None = None


class Figure(Frozen):
    """One test of both sides in tokens a second. The change and its 95 % interval are shares of `before`."""

    service: str
    test: str
    before: float
    before_interval: tuple[float, float] | None
    after: float
    after_interval: tuple[float, float] | None
    change: float
    change_interval: tuple[float, float] | None
    worse: bool

    def describe(self) -> str:
        """ "tg64 512.3 -> 194.2 t/s (-62.1 %, 95 %: -66.0 to -58.2 %)" """
        text = f"{self.test} {self.before:,.1f} -> {self.after:,.1f} t/s ({self.change:+.1%}"
        if self.change_interval is not None:
            text += f", 95 %: {self.change_interval[0]:+.1%} to {self.change_interval[1]:+.1%}"
        return f"{text})".replace("%", " %").replace("  %", " %")


class Judgement(Frozen):
    figures: tuple[Figure, ...]
    reply_before: str | None = None
    reply_after: str | None = None

    @property
    def reply_changed(self) -> bool:
        """Whether the chat's reply is another one; a chat that did not repeat on the old version says nothing."""
        return self.reply_before is not None and self.reply_before != self.reply_after

    @property
    def refused(self) -> str:
        """Why the new version is not taken, in a user's words; "" where it is as good."""
        slower = [figure.describe() for figure in self.figures if figure.worse]
        reasons = [f"slower: {'; '.join(slower)}"] if slower else []
        if self.reply_changed:
            before, after = _short(self.reply_before), _short(self.reply_after)
            reasons.append(f"another reply to the golden chat: {before} became {after}")
        return ", and ".join(reasons)


def judge(service: str, before: Evidence, after: Evidence, threshold: float) -> Judgement:
    """Worse: the mean fell by more than `threshold` (0.05 = 5 %), and the fall is beyond noise, as Welch's test at 95 %
    has it; where no deviation is known, the means alone decide. Raises ValueError where a test is missing."""
    figures = tuple(_figure(service, one, _same(one, after.results), threshold) for one in _judged(before.results))
    if not figures:
        raise ValueError("nothing was measured before")
    return Judgement(figures=figures, reply_before=before.reply, reply_after=after.reply)


def _judged(results: Sequence[Result]) -> list[Result]:
    return [one for one in results if one.test_kind in JUDGED and one.mean]


def _same(wanted: Result, results: Sequence[Result]) -> Result:
    found = next((one for one in _judged(results) if one.test == wanted.test), None)
    if found is None:
        raise ValueError(f"{wanted.test} was measured before and not after")
    return found


def _figure(service: str, before: Result, after: Result, threshold: float) -> Figure:
    assert before.mean is not None and after.mean is not None
    first, second = estimate_of(before), estimate_of(after)
    found = welch(first, second) if first and second else None
    change = (after.mean - before.mean) / before.mean
    return Figure(
        service=service,
        test=before.test,
        before=before.mean,
        before_interval=interval_of(before),
        after=after.mean,
        after_interval=interval_of(after),
        change=change,
        change_interval=(found.low / before.mean, found.high / before.mean) if found else None,
        worse=change < -threshold and (found is None or found.high < 0),
    )


def _short(text: str | None) -> str:
    words = " ".join((text or "").split())
    return repr(words if len(words) <= SHOWN_CHARACTERS else f"{words[:SHOWN_CHARACTERS]}...")
