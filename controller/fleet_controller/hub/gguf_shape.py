"""What GGUF headers say of a model's memory: the bytes of its tensors by their place, and its shape. Pure."""

import re
from collections.abc import Iterable

from fleet_controller.domain.shape import ModelShape
from fleet_controller.domain.weights import WeightParts
from fleet_controller.hub.gguf import GgufHeader


def parts_of(headers: Iterable[GgufHeader]) -> WeightParts | None:
    """The bytes of a model's tensors by their place; of a split model from all its headers. None: of unknown type."""
    sizes = {tensor.name: tensor.size_bytes for header in headers for tensor in header.tensors}
    known = {name: size for name, size in sizes.items() if size is not None}
    if not known or len(known) < len(sizes):
        return None
    numbers = {name: int(found[1]) for name in known if (found := re.match(r"blk\.(\d+)\.", name))}
    nextn = {number for name, number in numbers.items() if ".nextn." in name}
    blocks = [number for number in sorted(set(numbers.values())) if number not in nextn]
    in_block = [sum(known[name] for name, number in numbers.items() if number == block) for block in blocks]
    embedding, output = known.get("token_embd.weight", 0), known.get("output.weight", 0)
    in_nextn = sum(known[name] for name, number in numbers.items() if number in nextn)
    return WeightParts(
        embedding_bytes=embedding,
        output_bytes=output,
        block_bytes=tuple(in_block),
        expert_bytes=sum(known[name] for name, number in numbers.items() if "_exps." in name and number not in nextn),
        nextn_bytes=in_nextn,
        other_bytes=sum(known.values()) - embedding - output - sum(in_block) - in_nextn,
    )


def shape_of(header: GgufHeader) -> ModelShape | None:
    """What memory depends on, from `<architecture>.*` keys; None where the header does not say enough.

    Hybrid models name their full attention layers by `full_attention_interval`, or by zeros in a list of KV heads;
    `nextn_predict_layers` hold no cache in ordinary decoding. Source: llama.cpp's src/llama-arch.cpp, llama-model.cpp.
    """
    layers = header.integer("block_count") - header.integer("nextn_predict_layers")
    heads = header.integer("attention.head_count")
    if layers <= 0 or heads <= 0:
        return None
    head_length = header.integer("embedding_length") // heads
    latent = header.integer("attention.kv_lora_rank")
    kv_layers = _attention_layers(header, layers)
    window_layers, window_tokens = _window(header, kv_layers)
    inner, state = header.integer("ssm.inner_size"), header.integer("ssm.state_size")
    channels = inner + 2 * header.integer("ssm.group_count") * state
    key_length = header.integer("attention.key_length", head_length)
    return ModelShape(
        architecture=header.architecture,
        layers=layers,
        kv_layers=kv_layers - window_layers,
        query_heads=heads,
        kv_heads=header.integer("attention.head_count_kv", heads),
        key_length=key_length,
        value_length=header.integer("attention.value_length", head_length),
        mla_latent_length=latent + header.integer("rope.dimension_count") if latent else 0,
        mla_head_length=header.integer("attention.value_length_mla", head_length) if latent else 0,
        window_layers=window_layers,
        window_tokens=window_tokens,
        recurrent_layers=layers - kv_layers,
        recurrent_values_per_layer=inner * state,
        convolution_values_per_layer=max(header.integer("ssm.conv_kernel") - 1, 0) * channels,
        convolution_channels=channels,
        recurrent_width=inner,
        gated_queries=_gated(header, heads * key_length),
        width=header.integer("embedding_length"),
        feed_forward=header.integer("feed_forward_length"),
        vocabulary=_vocabulary(header),
        experts=header.integer("expert_count"),
        experts_used=header.integer("expert_used_count"),
        expert_feed_forward=header.integer("expert_feed_forward_length"),
        context_length=header.integer("context_length") or None,
    )


def _gated(header: GgufHeader, query_length: int) -> bool:
    """Whether a layer computes twice as many queries as its heads take: the second half gates what they give."""
    rows = (tensor.dimensions[-1] for tensor in header.tensors if re.match(r"blk\.\d+\.attn_q\.weight", tensor.name))
    return next(rows, 0) == 2 * query_length


def _vocabulary(header: GgufHeader) -> int:
    """From the embedding itself: a header without a vocabulary (tests, benches) has one too."""
    embedding = next((tensor for tensor in header.tensors if tensor.name == "token_embd.weight"), None)
    listed = header.array_lengths.get("tokenizer.ggml.tokens", 0)
    return embedding.dimensions[-1] if embedding is not None else listed


def _attention_layers(header: GgufHeader, layers: int) -> int:
    per_layer = header.values.get(f"{header.architecture}.attention.head_count_kv")
    if isinstance(per_layer, list):
        return sum(1 for heads in per_layer[:layers] if heads)
    interval = header.integer("full_attention_interval")
    if interval and header.integer("ssm.state_size"):
        return layers // interval
    return layers


def _window(header: GgufHeader, kv_layers: int) -> tuple[int, int]:
    """Layers with a sliding window, only where the header says which; otherwise all count as full (too much, not too
    little)."""
    window = header.integer("attention.sliding_window")
    pattern = header.values.get(f"{header.architecture}.attention.sliding_window_pattern")
    if window and isinstance(pattern, list):
        return sum(1 for sliding in pattern if sliding), window
    if window and isinstance(pattern, int) and pattern > 1:
        return kv_layers - kv_layers // pattern, window
    return 0, 0
