"""Predictions corrected by what servers of the same build on the same device really took: robust, and bounded.

What an estimate leaves out (a driver's context, scratch memory of kernels, a library's own buffers) is a constant of
device and build rather than a share of the model, so the correction is a number of bytes: the median of what
observations exceeded their predictions by. It never moves an estimate by more than `LARGEST_SHARE` of itself, and it
takes several observations to make one smaller: too much refuses a model, too little lets one fail.
"""

import statistics
from collections.abc import Iterable

from fleet_controller.domain.base import Frozen
from fleet_controller.domain.memory import MemoryObservation

LARGEST_SHARE = 0.10
OBSERVATIONS_TO_LOWER = 3


class Correction(Frozen):
    """`excess_bytes` is the median of observed less predicted, over `observations` starts."""

    excess_bytes: int = 0
    observations: int = 0

    def of(self, predicted_bytes: int) -> int:
        """Bytes to add to a prediction; negative where servers took less."""
        if not self.observations or (self.excess_bytes < 0 and self.observations < OBSERVATIONS_TO_LOWER):
            return 0
        bound = int(predicted_bytes * LARGEST_SHARE)
        return max(-bound, min(bound, self.excess_bytes))

    def text(self) -> str:
        """As "from 5 starts of this build on this device"."""
        return f"from {self.observations} start{'s' if self.observations > 1 else ''} of this build on this device"


NO_CORRECTION = Correction()


class Corrections(Frozen):
    """All that was observed, asked by backend, version and device."""

    observations: tuple[MemoryObservation, ...] = ()

    def for_engine(self, backend: str, version: str, device: str) -> Correction:
        """The correction for one build on one kind of device; none where nothing was observed there."""
        return correction_from(
            item
            for item in self.observations
            if (item.backend, item.version, item.device) == (backend, version, device)
        )


def correction_from(observations: Iterable[MemoryObservation]) -> Correction:
    """One vote for each artifact, context and number of slots: the same service started often counts once."""
    latest: dict[tuple[str, int, int], MemoryObservation] = {}
    for item in sorted(observations, key=lambda item: item.observed_unix_ms):
        latest[(item.artifact, item.context_tokens, item.slots)] = item
    excesses = [_excess(item) for item in latest.values() if item.buffers or not item.at_least]
    return (
        Correction(excess_bytes=int(statistics.median(excesses)), observations=len(excesses))
        if excesses
        else Correction()
    )


def _excess(item: MemoryObservation) -> int:
    """What was taken beyond the prediction; where more may be used later, less teaches nothing."""
    excess = item.observed_bytes - item.predicted_bytes
    return max(excess, 0) if item.at_least else excess
