"""Single reasons in words."""

from fleet_controller.choosing.options import PREDICTED_DIGITS, Certainty, Option, Quality, Standing, amount
from fleet_controller.domain.plan import FitVerdict
from fleet_controller.domain.sizes import gibibytes

_UNSURE = {Certainty.NEAR: "known from a near cell only", Certainty.PREDICTED: "a prediction"}


def percent(part: float) -> str:
    return f"{part * 100:.0f} %"


def score(quality: Quality) -> str:
    return f"{quality.name} {quality.score:.3g} ({quality.low:.3g} to {quality.high:.3g})"


def fit(option: Option) -> str:
    """As "fits with 3.0 GiB to spare, up to a context of 98,304"."""
    if option.fit is FitVerdict.FITS and option.margin_bytes is not None:
        longer = option.fully_fitting_context > option.context_tokens > 0
        most = f", up to a context of {option.fully_fitting_context:,}" if longer else ""
        return f"fits with {gibibytes(option.margin_bytes)} to spare{most}"
    return option.fit_text or ("fits" if option.fit is FitVerdict.FITS else "whether it fits is not known")


def figure(option: Option, standing: Standing) -> str:
    """What is known of its speed; figures are of whole models on the GPU."""
    if option.offload_bytes and standing.is_known:
        return (
            f"{standing.text}, were all of it on the GPU: {gibibytes(option.offload_bytes)} on the CPU make it slower"
        )
    return standing.text


def measuring(option: Option, standing: Standing) -> str:
    if not standing.is_known:
        return f"measuring {option.name}: no figure is known of it"
    bars = f"{amount(standing.low, PREDICTED_DIGITS)} to {amount(standing.high, PREDICTED_DIGITS)} {standing.unit}"
    if standing.certainty not in _UNSURE:
        return f"measuring {option.name} again: {bars} is too wide to tell"
    return f"measuring {option.name}: {bars} is {_UNSURE[standing.certainty]}"
