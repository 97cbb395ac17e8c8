"""Where the bytes of a model's file belong: what decides which of them lie on a GPU."""

from fleet_controller.domain.base import Frozen


class WeightParts(Frozen):
    """Bytes of a model's tensors by their place in the network, as a file's header lists them.

    `output_bytes` is 0 where the head is tied to the token embedding. `block_bytes` has one entry a layer, in order;
    `expert_bytes` is the part of them that belongs to routed experts. `nextn_bytes` are the heads that predict further
    tokens (MTP), which are not loaded unless speculation uses them.
    """

    embedding_bytes: int = 0
    output_bytes: int = 0
    block_bytes: tuple[int, ...] = ()
    expert_bytes: int = 0
    nextn_bytes: int = 0
    other_bytes: int = 0

    @property
    def total_bytes(self) -> int:
        whole = self.embedding_bytes + self.output_bytes + self.nextn_bytes + self.other_bytes
        return whole + sum(self.block_bytes)

    def scaled(self, total_bytes: int) -> "WeightParts":
        """The same network in another quantization, of which only the size is known: every part in proportion."""
        factor = total_bytes / self.total_bytes if self.total_bytes else 0.0
        return WeightParts(
            embedding_bytes=round(self.embedding_bytes * factor),
            output_bytes=round(self.output_bytes * factor),
            block_bytes=tuple(round(size * factor) for size in self.block_bytes),
            expert_bytes=round(self.expert_bytes * factor),
            nextn_bytes=round(self.nextn_bytes * factor),
            other_bytes=round(self.other_bytes * factor),
        )
