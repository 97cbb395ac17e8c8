"""The tiny model: readable by the field's own readers, the same bytes each time, honest about what it cannot say."""

import json
import struct
from pathlib import Path

import pytest
from gguf import GGUFReader

from fleet_controller.demo.tiny_model import ANSWER, TURN_END, make_tiny_model, train_tokenizer


def test_gguf_is_read_by_the_reference_reader_with_every_tensor(tmp_path: Path) -> None:
    model = make_tiny_model(tmp_path)
    reader = GGUFReader(model.gguf_path)
    shapes = {tensor.name: tuple(int(size) for size in tensor.shape) for tensor in reader.tensors}
    assert len(shapes) == 3 + 2 * 11
    assert shapes["token_embd.weight"] == (256, 512)
    assert shapes["blk.1.ffn_down.weight"] == (512, 256)
    assert reader.fields["general.architecture"].contents() == "qwen3"
    assert reader.fields["tokenizer.ggml.tokens"].contents()[-1].startswith("<|")


def test_safetensors_header_covers_the_file_exactly(tmp_path: Path) -> None:
    model = make_tiny_model(tmp_path)
    data = (model.hf_dir / "model.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    assert max(ends) == len(data) - 8 - length
    assert header["model.norm.weight"] == {
        "dtype": "F16",
        "shape": [256],
        "data_offsets": header["model.norm.weight"]["data_offsets"],
    }


def test_same_seed_same_bytes_other_seed_other_bytes(tmp_path: Path) -> None:
    first = make_tiny_model(tmp_path / "a", "random", seed=3).gguf_path.read_bytes()
    assert make_tiny_model(tmp_path / "b", "random", seed=3).gguf_path.read_bytes() == first
    assert make_tiny_model(tmp_path / "c", "random", seed=4).gguf_path.read_bytes() != first


def test_answer_is_one_token_a_word_and_ends_with_the_stop_token() -> None:
    tokenizer = train_tokenizer(512, ANSWER)
    assert [tokenizer.tokens[i] for i in tokenizer.encode(ANSWER)] == ["The", "Ġanswer", "Ġis", "Ġ(", "C", ")."]
    assert tokenizer.tokens[tokenizer.special_from :][2] == TURN_END


def test_an_answer_that_repeats_a_token_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="same token twice"):
        make_tiny_model(tmp_path, answer="no no no")


@pytest.mark.parametrize("shape", [{"hidden_size": 200}, {"vocabulary_size": 280}])
def test_shapes_that_engines_cannot_load_are_refused(tmp_path: Path, shape: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="must be"):
        make_tiny_model(tmp_path, "chain", seed=0, **shape)  # type: ignore[arg-type]
