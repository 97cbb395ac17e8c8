"""What it costs to leave a part of a model on the CPU: the layers there, and the bytes that each token reads there."""

from fleet_controller.domain.resolved import ModelArtifact
from fleet_controller.domain.shape import ModelShape
from fleet_controller.domain.sizes import gibibytes


def offloaded_layers(artifact: ModelArtifact, offload_bytes: int) -> int | None:
    """How many whole layers make so many bytes; None where the layers' sizes are not known."""
    if artifact.parts is None or not artifact.parts.block_bytes:
        return None
    moved, layers = 0, 0
    for size in sorted(artifact.parts.block_bytes, reverse=True):
        if moved >= offload_bytes:
            break
        moved, layers = moved + size, layers + 1
    return layers


def read_bytes_per_token(artifact: ModelArtifact, shape: ModelShape | None, offload_bytes: int) -> int:
    """Bytes of the offloaded part that one token reads: of routed experts, the ones that it passes through only."""
    parts = artifact.parts
    if parts is None or shape is None or not (parts.expert_bytes and shape.experts):
        return offload_bytes
    # llama-server --fit moves experts first, and whole layers only where that is not enough.
    experts = min(offload_bytes, parts.expert_bytes)
    return round(experts * shape.experts_used / shape.experts) + offload_bytes - experts


def offload_cost(artifact: ModelArtifact, shape: ModelShape | None, offload_bytes: int) -> str:
    """As "about 9 of 64 layers; each token reads 2.4 GiB from the host's memory instead of the GPU's"."""
    read = gibibytes(read_bytes_per_token(artifact, shape, offload_bytes))
    layers = offloaded_layers(artifact, offload_bytes)
    whole = len(artifact.parts.block_bytes) if artifact.parts is not None else 0
    experts = bool(artifact.parts is not None and artifact.parts.expert_bytes)
    start = "" if layers is None else f"{'experts of ' if experts else ''}about {layers} of {whole} layers; "
    return f"{start}each token reads {read} from the host's memory instead of the GPU's"
