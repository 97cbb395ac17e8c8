"""The sizes of a model that no catalog describes, from what the headers of its files say."""

from fleet_controller.choosing.bits import nominal_bits
from fleet_controller.choosing.work import ModelWork
from fleet_controller.domain.resolved import ModelArtifact, ResolvedModel
from fleet_controller.domain.shape import ModelShape


def work_of_artifacts(resolved: ResolvedModel) -> ModelWork | None:
    """From the first artifact whose header was read; None where none was, or its quantization has no known width."""
    for artifact in resolved.artifacts:
        shape, bits = artifact.shape or resolved.shape, nominal_bits(artifact.quantization)
        if shape is not None and shape.layers and artifact.parts is not None and artifact.parts.total_bytes and bits:
            return _work(resolved.name, shape, artifact, bits)
    return None


def _work(name: str, shape: ModelShape, artifact: ModelArtifact, bits: float) -> ModelWork:
    """Parameters are bytes by the nominal width: the error of the width is that of the whole, not of its parts."""
    parts = artifact.parts
    assert parts is not None
    each = 8 / bits
    idle = parts.expert_bytes * (1 - shape.experts_used / shape.experts) if shape.experts else 0.0
    # The token embedding is a table to look up; where it is the head as well, each token passes through it.
    looked_up = parts.embedding_bytes if parts.output_bytes else 0
    latent = shape.mla_latent_length
    per_token = float(shape.kv_bytes_per_token())
    window = per_token / shape.kv_layers * shape.window_layers if shape.kv_layers else 0.0
    return ModelWork(
        name=name,
        parameters=(parts.total_bytes - parts.nextn_bytes) * each,
        parameters_read=(parts.total_bytes - parts.nextn_bytes - idle - looked_up) * each,
        layers=shape.layers,
        attention_layers=shape.kv_layers,
        query_heads=shape.query_heads,
        key_length=latent or shape.key_length,
        value_length=latent or shape.value_length,
        kv_bytes_per_token=per_token,
        window_bytes_per_token=window,
        window_tokens=shape.window_tokens,
        recurrent_state_bytes=float(shape.recurrent_bytes_per_sequence()),
        head_parameters=float(shape.vocabulary * shape.width),
        mixture_of_experts=bool(shape.experts),
        latent_length=latent,
        experts=shape.experts,
        experts_active=shape.experts_used,
    )
