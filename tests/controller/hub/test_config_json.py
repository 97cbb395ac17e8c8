"""config.json: plain, hybrid, multimodal and MLA models; MLX quantization."""

import json
from pathlib import Path

import pytest

from fleet_controller.hub.config_json import ConfigJsonError, is_mlx, parse_config, quantization_of, shape_of
from support.tiny_model import make_tiny_model

QWEN35_4B = {
    "model_type": "qwen3_5",
    "quantization": {"bits": 4, "group_size": 64},
    "text_config": {
        "model_type": "qwen3_5_text",
        "num_hidden_layers": 32,
        "num_attention_heads": 16,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "hidden_size": 2560,
        "full_attention_interval": 4,
        "linear_num_value_heads": 32,
        "linear_value_head_dim": 128,
        "linear_key_head_dim": 128,
        "max_position_embeddings": 262144,
        "dtype": "bfloat16",
    },
}


def test_a_hybrid_multimodal_mlx_model() -> None:
    config = parse_config(json.dumps(QWEN35_4B))
    shape = shape_of(config)
    assert shape is not None
    assert (shape.kv_bytes_per_token(), shape.recurrent_bytes_per_sequence()) == (32768, 50331648)
    assert shape.context_length == 262144
    assert is_mlx(config) and quantization_of(config) == "4bit"


def test_layer_types_win_over_the_interval() -> None:
    types = ["linear_attention"] * 3 + ["full_attention"] + ["sliding_attention"] * 2
    config = {"num_hidden_layers": 6, "num_attention_heads": 2, "hidden_size": 8, "layer_types": types}
    shape = shape_of({**config, "sliding_window": 128, "full_attention_interval": 2})
    assert shape is not None
    assert (shape.kv_layers, shape.recurrent_layers, shape.window_layers, shape.window_tokens) == (1, 3, 2, 128)


def test_mla() -> None:
    config = {"num_hidden_layers": 47, "num_attention_heads": 20, "hidden_size": 2048, "kv_lora_rank": 512}
    shape = shape_of({**config, "qk_rope_head_dim": 64})
    assert shape is not None and shape.kv_bytes_per_token() == 54144


def test_the_tiny_model(tmp_path: Path) -> None:
    text = (make_tiny_model(tmp_path).hf_dir / "config.json").read_text(encoding="utf-8")
    config = parse_config(text)
    shape = shape_of(config)
    assert shape is not None and shape.kv_layers == config["num_hidden_layers"]
    assert not is_mlx(config)


@pytest.mark.parametrize("text", ["", "[]", "{"])
def test_what_is_no_config(text: str) -> None:
    with pytest.raises(ConfigJsonError):
        parse_config(text)


def test_a_config_without_layers_has_no_shape() -> None:
    assert shape_of({}) is None
