"""The order of a rollout as a user types it for `fleet deploy` and `fleet apply`, and as the plan shows it."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TextIO

from fleet_controller.cli.failures import UsageFailure
from fleet_proto.v1 import controller_pb2

GATES = ("health", "golden")


@dataclass(frozen=True)
class RolloutOptions:
    """As typed; `threshold` is in percent."""

    canary: str = ""
    gate: str = "health"
    threshold: float = 5.0
    wave: str = "100%"
    max_unavailable: int = 0
    max_failures: int = 0
    catch_up: bool = False


def strategy_of(options: RolloutOptions) -> controller_pb2.RolloutStrategy:
    """Raises UsageFailure for what cannot be meant."""
    if options.gate not in GATES:
        raise UsageFailure(f"--gate {options.gate}: there is no such gate", f"one of: {', '.join(GATES)}")
    if not 0 < options.threshold <= 90:
        raise UsageFailure("--threshold lies above 0 % and not above 90 %")
    share = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*%\s*", options.wave)
    if share and not 0 < float(share[1]) <= 100:
        raise UsageFailure(f"--wave {options.wave}: a wave is more than 0 % and at most 100 % of the hosts")
    if not share and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", options.wave):
        raise UsageFailure(f"--wave {options.wave}: neither a share nor a label", "as in --wave 25%, or --wave room")
    return controller_pb2.RolloutStrategy(
        gate=options.gate,
        golden_threshold=options.threshold / 100,
        wave_percent=float(share[1]) if share else 100.0,
        wave_label="" if share else options.wave,
        max_unavailable=options.max_unavailable,
        max_failures=options.max_failures,
        catch_up=options.catch_up,
    )


def print_order(
    options: RolloutOptions,
    planned: Sequence[controller_pb2.HostPlan],
    changing: Sequence[controller_pb2.HostPlan],
    stream: TextIO | None,
) -> None:
    """One line under the plan, where several hosts change. Raises UsageFailure for a canary that is no host of it."""
    from fleet_controller.cli.rollout_command import order_in_words
    from fleet_controller.rolling.waves import default_canaries

    names = [host.host for host in planned]
    reachable = [host.host for host in changing if not host.HasField("problem")]
    canaries = default_canaries(reachable, options.canary, {host.host: host.backend for host in changing})
    unknown = [name for name in canaries if name not in names]
    if unknown:
        raise UsageFailure(f"--canary {unknown[0]} is none of the hosts", f"one of: {', '.join(names)}")
    if stream is not None and len(changing) > 1:
        strategy = strategy_of(options)
        strategy.canaries.extend(name for name in canaries if name in [host.host for host in changing])
        print(f"order: {order_in_words(strategy)}", file=stream)
