"""Choices for a person: the one table a lab wants, then the reasons of each machine."""

import sys
from collections.abc import Sequence

from fleet_controller.cli.failures import report
from fleet_controller.cli.output import GREEN, RED, YELLOW, print_table
from fleet_proto.v1 import controller_pb2

DECODE, PREFILL = "decode", "prefill"
PREDICTED = "predicted"
PREDICTED_DIGITS = 3
# An interval whose high end is more than so many times its low end is told as a factor: "±133 %" would reach below 0.
WIDE = 2.0
_MARKS = {"≈ measured": "≈", PREDICTED: "~"}
_NOTHING = {"memory": "nothing fits", "quality": "nothing is known to be good enough", "unusable": "nothing can be had"}
_STYLES = {"nothing": RED}
_LEGEND = "≈ measured nearby (another version, client or depth), ~ predicted; t/s"


def print_choices(hosts: Sequence[controller_pb2.HostChoice], goal: str, with_reasons: bool) -> None:
    """The table; with `with_reasons` why each is what it is. Problems go to stderr."""
    several = any(len(host.models) > 1 for host in hosts)
    columns = ["MACHINE", "CHIP", *(["MODEL"] if several else []), "BACKEND", "QUANT", "CONTEXT", "PREFILL", "DECODE"]
    columns += [goal.upper()] if goal not in (DECODE, PREFILL) else []
    rows = [
        _row(host, choice, goal, several) for host in hosts for choice in host.models if choice.HasField("decision")
    ]
    if rows:
        print_table([*columns, "CONFIDENCE"], rows, {**_STYLES, "fits": GREEN, "partly on the CPU": YELLOW})
        if any(cell[:1] in ("≈", "~") for row in rows for cell in row[-4:-1]):
            print(_LEGEND)
    bases = dict.fromkeys(host.basis for host in hosts if host.basis)
    for basis in bases:
        print(f"{', '.join(host.host for host in hosts if host.basis == basis)}: {basis}")
    for host in hosts:
        _print_host(host, with_reasons, alone=len(hosts) == 1)


def _row(
    host: controller_pb2.HostChoice, choice: controller_pb2.ModelChoice, goal: str, several: bool
) -> tuple[str, ...]:
    chip = f"{host.device_count} x {host.chip}" if host.device_count > 1 else host.chip
    first = (host.host, chip or "-", *([choice.model] if several else []))
    if not choice.decision.ranked:
        extra = ("-",) if goal not in (DECODE, PREFILL) else ()
        return (*first, "nothing", "-", "-", "-", "-", *extra, _nothing(choice))
    ranked = choice.decision.ranked[0]
    option = ranked.option
    most = "< " if option.offload_bytes else ""
    speeds = [most + _figure(option.prefill)] if option.HasField("prefill") else ["-"]
    speeds += [most + _figure(option.decode)] if option.HasField("decode") else ["-"]
    if goal not in (DECODE, PREFILL):
        standing = ranked.standing
        speeds.append(f"{standing.value:.4g} {standing.unit}" if standing.value else "-")
    engine = f"{option.backend} {option.version}".strip()
    return (*first, engine, option.quantization, f"{option.context_tokens:,}", *speeds, _confidence(choice, ranked))


def _figure(figure: controller_pb2.ChoiceFigure) -> str:
    """As "137", "≈ 39.0", "~ 109"."""
    mark = _MARKS.get(figure.certainty, "")
    value = float(f"{figure.value:.{PREDICTED_DIGITS}g}") if figure.certainty == PREDICTED else figure.value
    return f"{mark} {_amount(value)}".strip()


def _amount(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _nothing(choice: controller_pb2.ModelChoice) -> str:
    """What stands in the way: what all that was ruled out has in common, where it has."""
    reasons = {option.why for option in choice.decision.ruled_out}
    if len(reasons) > 1:
        return "nothing fits or is good enough"
    return _NOTHING.get(next(iter(reasons), ""), "no files that can be served here")


def _confidence(choice: controller_pb2.ModelChoice, ranked: controller_pb2.RankedOption) -> str:
    """As "measured on this chip ±8 %, a tie", "predicted to a factor of 3.0, measuring could change it"."""
    standing = ranked.standing
    text = standing.certainty
    if standing.low and standing.high > WIDE * standing.low:
        text += f" to a factor of {(standing.high / standing.low) ** 0.5:.1f}"
    elif standing.value and standing.high > standing.low:
        text += f" ±{(standing.high - standing.low) / 2 / standing.value:.0%}".replace("%", " %")
    parts = [text]
    if any(other.ties_with_first for other in choice.decision.ranked):
        parts.append("a tie")
    if choice.decision.to_measure:
        parts.append("measuring could change it")
    if ranked.option.offload_bytes:
        parts.append("partly on the CPU")
    return ", ".join(parts)


def _print_host(host: controller_pb2.HostChoice, with_reasons: bool, alone: bool) -> None:
    if host.HasField("problem"):
        report(f"{host.host}: {host.problem.message}", host.problem.remedy)
        return
    for choice in host.models:
        if choice.HasField("problem"):
            report(f"{host.host}: {choice.model}: {choice.problem.message}", choice.problem.remedy)
        elif with_reasons:
            _print_reasons(host.host, choice, alone)
    for text in host.comparison:
        print(f"{host.host}: {text}")


def _print_reasons(host: str, choice: controller_pb2.ModelChoice, alone: bool) -> None:
    print(f"\n# {choice.model}" if alone else f"\n# {host}: {choice.model}")
    for line in choice.explanation:
        print(line)
    for note in choice.notes:
        print(f"note: {note}")
    if choice.next_commands:
        print("next:")
        for command in choice.next_commands:
            print(f"  {command}")
    sys.stdout.flush()
