"""What a GGUF file asks of a machine, read from its header: for models that no catalog knows. Pure."""

import math

from fleet_controller.choosing.work import ModelWork
from fleet_controller.hub.gguf import GgufHeader
from fleet_controller.hub.gguf_shape import shape_of


def work_of_header(name: str, header: GgufHeader) -> ModelWork | None:
    """The sizes that speed depends on; None where the header does not tell the shape."""
    shape = shape_of(header)
    if shape is None:
        return None
    sizes = {tensor.name: math.prod(tensor.dimensions) for tensor in header.tensors}
    embedding = sizes.get("token_embd.weight", 0)
    is_tied = "output.weight" not in sizes
    experts = sum(size for tensor, size in sizes.items() if "_exps." in tensor)
    unread = experts * (1 - shape.experts_used / shape.experts) if shape.experts else 0.0
    latent = shape.mla_latent_length
    return ModelWork(
        name=name,
        parameters=sum(sizes.values()),
        parameters_read=sum(sizes.values()) - unread - (0 if is_tied else embedding),
        layers=shape.layers,
        attention_layers=shape.kv_layers + shape.window_layers,
        query_heads=shape.query_heads,
        key_length=latent or shape.key_length,
        value_length=header.integer("attention.kv_lora_rank") or shape.value_length,
        kv_bytes_per_token=float(shape.kv_bytes_per_token()),
        window_bytes_per_token=shape.window_bytes(shape.window_tokens) / shape.window_tokens
        if shape.window_tokens
        else 0.0,
        window_tokens=shape.window_tokens,
        recurrent_state_bytes=float(shape.recurrent_bytes_per_sequence()),
        head_parameters=sizes.get("output.weight", embedding),
        mixture_of_experts=shape.experts > 0,
        latent_length=header.integer("attention.kv_lora_rank"),
        experts=shape.experts,
        experts_active=shape.experts_used,
    )
