"""What servers really took of memory, beside what was predicted."""

from fleet_controller.domain.base import Frozen


class MemoryObservation(Frozen):
    """One start of a server: what was predicted, without reserve and correction, and what it held once it answered.

    `device` as a plan names it ("1 x NVIDIA GeForce RTX 4090"). `at_least`: more may be used later, as with memory of
    the host that is reserved and not yet touched. `buffers` is what the server's own log says of it, as text.
    """

    backend: str
    version: str
    device: str
    artifact: str
    context_tokens: int
    slots: int
    predicted_bytes: int
    observed_bytes: int
    at_least: bool = False
    host: str = ""
    buffers: str = ""
    observed_unix_ms: int = 0
