"""Choices for a person: the one table a lab wants, then the reasons of each machine."""

import sys
from collections.abc import Sequence

from fleet_controller.cli.failures import report
from fleet_controller.cli.output import GREEN, RED, YELLOW, print_table
from fleet_proto.v1 import controller_pb2

DECODE, PREFILL = "decode", "prefill"
_MARKS = {"≈ measured": "≈", "predicted": "~"}
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
        return (*first, "nothing", "-", "-", "-", "-", *extra, "nothing fits or is good enough")
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
    return f"{mark} {_amount(figure.value)}".strip()


def _amount(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _confidence(choice: controller_pb2.ModelChoice, ranked: controller_pb2.RankedOption) -> str:
    """As "measured on this chip ±8 %, a tie", "predicted ±15 %, 3 could win"."""
    standing = ranked.standing
    text = standing.certainty
    if standing.value and standing.high > standing.low:
        text += f" ±{(standing.high - standing.low) / 2 / standing.value:.0%}".replace("%", " %")
    parts = [text]
    if any(other.ties_with_first for other in choice.decision.ranked):
        parts.append("a tie")
    if len(choice.decision.to_measure) > 1:
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
