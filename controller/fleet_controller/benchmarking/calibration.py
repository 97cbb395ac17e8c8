"""Models that are made up to learn what a machine's speed is made of: which, their sizes, and their rows. Pure.

Nobody runs these models, so their rows are kept apart: suite `calibrate`, and a name that tells the whole shape, so
that a row can be fitted to years later without this file saying the same.
"""

import math
import re
from pathlib import Path
from typing import Annotated

import yaml
from pydantic import Field, ValidationError, model_validator

from fleet_controller.benchmarking.suites import Idle, Part, Suite, SuiteError
from fleet_controller.choosing.work import ModelWork
from fleet_controller.domain.base import Frozen
from fleet_controller.domain.facts import HostFacts
from fleet_controller.domain.shape import F16_BYTES, ModelShape
from fleet_controller.domain.steps import GeneratedModel

SUITE = "calibrate"
_PATH = Path(__file__).parent / "calibration.yaml"
_NAME = re.compile(r"calibration-(\d+)x(\d+)-(\d+)-(\d+)-(\d+)")
HEAD_SIZE, VOCABULARY = 128, 512
# Bytes a weight of what the agent writes: of most matrices, and of those that get more bits (ggml-common.h).
_BYTES = {"F16": (2.0, 2.0), "Q8_0": (34 / 32, 34 / 32), "Q4_K_M": (144 / 256, 210 / 256)}

Size = Annotated[int, Field(ge=1)]


class CalibrationModel(Frozen, extra="forbid"):
    """A dense model with grouped queries, as the agent makes it (measuring/generated_model.py there)."""

    layers: Size
    hidden_size: Size
    feed_forward_size: Size
    heads: Size
    key_value_heads: Size
    quantization: str

    @model_validator(mode="after")
    def _can_be_made(self) -> "CalibrationModel":
        if self.quantization not in _BYTES:
            raise ValueError(f"{self.quantization} is none of {', '.join(_BYTES)}")
        if self.hidden_size % 256 or self.feed_forward_size % 256 or self.heads * HEAD_SIZE % 256:
            raise ValueError("widths are multiples of 256")
        return self

    @property
    def name(self) -> str:
        sizes = (self.feed_forward_size, self.heads, self.key_value_heads)
        return f"calibration-{self.layers}x{self.hidden_size}-{'-'.join(map(str, sizes))}"

    @property
    def _matrices(self) -> tuple[int, int]:
        """Weights of one layer: of matrices that never get more bits, and of those that may."""
        width, queries, keys = self.hidden_size, self.heads * HEAD_SIZE, self.key_value_heads * HEAD_SIZE
        most = 2 * width * queries + width * keys + 2 * width * self.feed_forward_size
        return most, width * keys + width * self.feed_forward_size

    @property
    def parameters(self) -> int:
        norms = self.hidden_size * (2 * self.layers + 1) + 2 * HEAD_SIZE * self.layers
        return self.layers * sum(self._matrices) + 2 * self.hidden_size * VOCABULARY + norms

    @property
    def weights_bytes(self) -> int:
        """Of the tensors; the file has some kilobytes more."""
        most, better = _BYTES[self.quantization]
        few, high = self._matrices
        layers_with_more = sum(_has_more_bits(layer, self.layers) for layer in range(self.layers))
        matrices = self.layers * few * most + high * (
            layers_with_more * better + (self.layers - layers_with_more) * most
        )
        head = self.hidden_size * VOCABULARY * (most + better)
        norms = 4 * (self.hidden_size * (2 * self.layers + 1) + 2 * HEAD_SIZE * self.layers)
        return math.ceil(matrices + head + norms)

    @property
    def shape(self) -> ModelShape:
        """What its memory depends on."""
        return ModelShape(
            architecture="qwen3",
            layers=self.layers,
            kv_layers=self.layers,
            kv_heads=self.key_value_heads,
            key_length=HEAD_SIZE,
            value_length=HEAD_SIZE,
            query_heads=self.heads,
        )

    @property
    def generated(self) -> GeneratedModel:
        return GeneratedModel(**self.model_dump(), head_size=HEAD_SIZE, vocabulary_size=VOCABULARY)

    @property
    def work(self) -> ModelWork:
        """What its speed depends on.

        llama.cpp takes only the last token of a prompt through the last layer once its keys and values are there
        (`inp_out_ids` in its models' graphs). With a few layers that is much of the work, so it counts with the head.
        """
        head = self.hidden_size * VOCABULARY
        last_layer = self.hidden_size * (self.heads * HEAD_SIZE + 3 * self.feed_forward_size)
        return ModelWork(
            name=self.name,
            parameters=self.parameters,
            parameters_read=self.parameters - head,
            layers=self.layers,
            attention_layers=self.layers,
            query_heads=self.heads,
            key_length=HEAD_SIZE,
            value_length=HEAD_SIZE,
            kv_bytes_per_token=2 * F16_BYTES * self.layers * self.key_value_heads * HEAD_SIZE,
            head_parameters=head + last_layer,
        )


class CalibrationCell(Frozen, extra="forbid"):
    """A model, the tests that are run on it, and what they tell."""

    purpose: str
    model: CalibrationModel
    part: Part


class Calibration(Frozen, extra="forbid"):
    description: str
    idle: Idle = Idle()
    gpu: Annotated[tuple[CalibrationCell, ...], Field(min_length=1)]
    cpu: Annotated[tuple[CalibrationCell, ...], Field(min_length=1)]

    def cells_for(self, facts: HostFacts) -> tuple[CalibrationCell, ...]:
        """Large models where a GPU computes, small ones elsewhere."""
        return self.gpu if facts.gpus or facts.apple is not None else self.cpu

    @property
    def suite(self) -> Suite:
        parts = tuple(cell.part for cell in (*self.gpu, *self.cpu))
        return Suite(name=SUITE, description=self.description, idle=self.idle, parts=parts)


def load_calibration(user_folder: Path) -> Calibration:
    """The user's own `calibrate.yaml` among suites, else what ships. Raises SuiteError for one that breaks a rule."""
    own = user_folder / f"{SUITE}.yaml"
    path = own if own.is_file() else _PATH
    try:
        return Calibration.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the document"
        raise SuiteError(f"{path}: {where}: {first['msg']}", "correct the file, or move it away") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise SuiteError(f"{path}: {' '.join(str(error).split())}", "correct the file, or move it away") from None


def is_calibration(model: str) -> bool:
    """Whether results of this name are of a made-up model."""
    return _NAME.fullmatch(model) is not None


def calibration_work(model: str) -> ModelWork | None:
    """The sizes that a name tells; None for the name of any other model."""
    found = _NAME.fullmatch(model)
    if found is None:
        return None
    layers, hidden, feed_forward, heads, kv_heads = map(int, found.groups())
    made = CalibrationModel(
        layers=layers, hidden_size=hidden, feed_forward_size=feed_forward, heads=heads, key_value_heads=kv_heads,
        quantization="F16",
    )  # fmt: skip
    return made.work


def _has_more_bits(layer: int, layers: int) -> bool:
    """As llama-quantize deals them out for *_K_M (use_more_bits)."""
    eighth = layers // 8
    return layer < eighth or layer >= 7 * layers // 8 or (layer - eighth) % 3 == 2
