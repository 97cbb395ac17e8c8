"""What a Hugging Face config.json says about memory: for MLX and safetensors folders."""

import json
from collections.abc import Mapping
from typing import Any

from fleet_controller.domain.shape import ModelShape
from fleet_controller.hub.errors import HubError


class ConfigJsonError(HubError):
    """A config.json that is no JSON object."""

    code = "bad-config-json"


def parse_config(text: str) -> dict[str, Any]:
    """The language model's part of a config.json (multimodal models keep it under `text_config`).

    Raises ConfigJsonError.
    """
    try:
        document = json.loads(text)
    except ValueError as error:
        raise ConfigJsonError(f"config.json is not JSON: {error}", "fetch the model again") from error
    if not isinstance(document, dict):
        raise ConfigJsonError("config.json holds no object", "fetch the model again")
    inner = document.get("text_config")
    return {**document, **inner} if isinstance(inner, dict) else document


def quantization_of(config: Mapping[str, Any]) -> str:
    """As "4bit" of an MLX folder's `quantization`, else the dtype in upper case ("BF16"); "" where neither is said."""
    quantization = config.get("quantization")
    if isinstance(quantization, dict) and isinstance(quantization.get("bits"), int):
        return f"{quantization['bits']}bit"
    dtype = str(config.get("torch_dtype") or config.get("dtype") or "")
    return {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}.get(dtype, dtype.upper())


def is_mlx(config: Mapping[str, Any]) -> bool:
    """MLX writes `quantization` beside the `quantization_config` that other tools write."""
    return isinstance(config.get("quantization"), dict)


def shape_of(config: Mapping[str, Any]) -> ModelShape | None:
    """None where layers or heads are not said. Keys are those of the transformers library's configurations."""
    layers, heads = _integer(config, "num_hidden_layers"), _integer(config, "num_attention_heads")
    if layers <= 0 or heads <= 0:
        return None
    head_length = _integer(config, "head_dim") or _integer(config, "hidden_size") // heads
    latent = _integer(config, "kv_lora_rank")
    recurrent = _recurrent_layers(config, layers)
    window_layers = _layer_types(config).count("sliding_attention")
    value_heads, value_length = _integer(config, "linear_num_value_heads"), _integer(config, "linear_value_head_dim")
    key_length = _integer(config, "linear_key_head_dim")
    channels = 2 * _integer(config, "linear_num_key_heads") * key_length + value_heads * value_length
    return ModelShape(
        architecture=str(config.get("model_type", "")),
        layers=layers,
        kv_layers=layers - recurrent - window_layers,
        query_heads=heads,
        kv_heads=_integer(config, "num_key_value_heads") or heads,
        key_length=head_length,
        value_length=head_length,
        mla_latent_length=latent + _integer(config, "qk_rope_head_dim") if latent else 0,
        window_layers=window_layers,
        window_tokens=_integer(config, "sliding_window") if window_layers else 0,
        recurrent_layers=recurrent,
        recurrent_values_per_layer=value_heads * value_length * key_length,
        convolution_values_per_layer=max(_integer(config, "linear_conv_kernel_dim") - 1, 0) * channels,
        convolution_channels=channels,
        recurrent_width=value_heads * value_length,
        width=_integer(config, "hidden_size"),
        feed_forward=_integer(config, "intermediate_size"),
        vocabulary=_integer(config, "vocab_size"),
        experts=_integer(config, "num_experts") or _integer(config, "n_routed_experts"),
        experts_used=_integer(config, "num_experts_per_tok"),
        expert_feed_forward=_integer(config, "moe_intermediate_size"),
        context_length=_integer(config, "max_position_embeddings") or None,
    )


def _recurrent_layers(config: Mapping[str, Any], layers: int) -> int:
    types = _layer_types(config)
    if types:
        return types.count("linear_attention")
    interval = _integer(config, "full_attention_interval")
    return layers - layers // interval if interval else 0


def _layer_types(config: Mapping[str, Any]) -> list[str]:
    types = config.get("layer_types")
    return [str(item) for item in types] if isinstance(types, list) else []


def _integer(config: Mapping[str, Any], key: str) -> int:
    value = config.get(key)
    return value if isinstance(value, int) else 0
