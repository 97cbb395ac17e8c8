"""Which host is changed in which wave."""

import math
from collections.abc import Mapping, Sequence

from fleet_controller.domain.rollouts import Strategy


class WaveError(Exception):
    """The strategy does not fit the hosts; the text says what to do."""


def waves_of(hosts: Sequence[str], labels: Mapping[str, Mapping[str, str]], strategy: Strategy) -> dict[str, int]:
    """The wave of each host, from 0; the canaries are wave 0. Keeps the order of the hosts.

    Raises WaveError for a canary that is none of the hosts, a label that some host does not have, a size of nothing.
    """
    unknown = [name for name in strategy.canaries if name not in hosts]
    if unknown:
        raise WaveError(f"canary {unknown[0]} is none of the hosts that change: {', '.join(hosts)}")
    if not 0 < strategy.wave_percent <= 100:
        raise WaveError("a wave is more than 0 % and at most 100 % of the hosts")
    others = [name for name in hosts if name not in strategy.canaries]
    first = 1 if strategy.canaries else 0
    found = dict.fromkeys(strategy.canaries, 0)
    if strategy.wave_label:
        found |= _by_label(others, labels, strategy.wave_label, first)
    else:
        size = max(math.ceil(len(others) * strategy.wave_percent / 100 - 1e-9), 1)
        found |= {name: first + place // size for place, name in enumerate(others)}
    return {name: found[name] for name in hosts}


def _by_label(hosts: Sequence[str], labels: Mapping[str, Mapping[str, str]], label: str, first: int) -> dict[str, int]:
    """A wave for each value, in the order of the values: numbers by size, then words."""
    without = [name for name in hosts if label not in labels.get(name, {})]
    if without:
        raise WaveError(f"{', '.join(without)} has no label {label}; give it one in hosts.yaml, or say --wave 25%")
    values = sorted({labels[name][label] for name in hosts}, key=_natural)
    return {name: first + values.index(labels[name][label]) for name in hosts}


def _natural(value: str) -> tuple[int, float, str]:
    return (0, float(value), value) if value.isdecimal() else (1, 0.0, value)


def default_canaries(hosts: Sequence[str], asked: str, kinds: Mapping[str, str] | None = None) -> tuple[str, ...]:
    """The canaries where the user named none: the first host of each kind, where that leaves others of it.

    A build that runs on CUDA says nothing about Metal, so each kind of machine has a canary of its own. "none" asks
    for none; a name, or several with commas, is taken as it is.
    """
    if asked == "none":
        return ()
    if asked:
        return tuple(dict.fromkeys(part.strip() for part in asked.split(",") if part.strip()))
    if len(hosts) < 2:
        return ()
    kinds = kinds or {}
    first: dict[str, str] = {}
    for name in hosts:
        first.setdefault(kinds.get(name, ""), name)
    chosen = tuple(first.values())
    return () if len(chosen) == len(hosts) else chosen
