"""What devices did while a run went on, in short: least, median and most of each attempt and device. Pure."""

import statistics
from collections.abc import Iterable
from dataclasses import dataclass

from fleet_controller.results.columns import DeviceSample

DEVICE_COLUMNS = (
    ("SM clock MHz", "sm_clock_mhz"),
    ("Memory clock MHz", "memory_clock_mhz"),
    ("Power W", "power_watts"),
    ("Temperature C", "temperature_celsius"),
    ("Utilization %", "utilization_percent"),
)


@dataclass(frozen=True)
class DeviceSpread:
    """`columns` are those of DEVICE_COLUMNS as "least / median / most", "-" where the device does not tell."""

    attempt: int
    device_index: int
    count: int
    columns: tuple[str, ...]
    throttle_reasons: tuple[str, ...]
    foreign_processes: tuple[str, ...]


def device_spreads(samples: Iterable[DeviceSample]) -> list[DeviceSpread]:
    """In the order of attempts and devices."""
    groups: dict[tuple[int, int], list[DeviceSample]] = {}
    for sample in samples:
        groups.setdefault((sample.attempt, sample.device_index), []).append(sample)
    return [
        DeviceSpread(
            attempt=attempt,
            device_index=device,
            count=len(mine),
            columns=tuple(_spread([getattr(sample, name) for sample in mine]) for _, name in DEVICE_COLUMNS),
            throttle_reasons=_listed(sample.throttle_reasons for sample in mine),
            foreign_processes=_listed(sample.foreign_processes for sample in mine),
        )
        for (attempt, device), mine in sorted(groups.items())
    ]


def _listed(texts: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted({name for text in texts for name in text.split(",") if name}))


def _spread(values: list[float | None]) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    return " / ".join(f"{value:.0f}" for value in (min(known), statistics.median(known), max(known)))
