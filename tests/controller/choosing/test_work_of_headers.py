"""Sizes from headers come to about those that the catalog has for the same network."""

import pytest

from fleet_controller.choosing.work import work_of
from fleet_controller.choosing.work_of_headers import work_of_artifacts
from fleet_controller.domain.resolved import GGUF, ModelArtifact, ResolvedModel
from fleet_controller.domain.weights import WeightParts
from fleet_controller.hub.resolve import catalog_shape
from fleet_inventory.catalog import load_catalog

# Bytes a weight of Q4 with its scales.
WIDTH = 4.5 / 8


def model(name: str, quantization: str = "Q4_K_M", parts: WeightParts | None = None) -> ResolvedModel:
    described, _ = load_catalog().resolve(name)
    architecture = described.architecture
    table = architecture.vocabulary_size * architecture.hidden_size * WIDTH
    rest = architecture.parameters * WIDTH - table * (1 if architecture.tied_embeddings else 2)
    experts = architecture.experts
    routed = 0.0
    if experts:
        routed = architecture.layers * experts.total * 3 * architecture.hidden_size * experts.ffn_size * WIDTH
    found = WeightParts(
        embedding_bytes=int(table),
        output_bytes=0 if architecture.tied_embeddings else int(table),
        block_bytes=(int(rest),),
        expert_bytes=int(routed),
    )
    artifact = ModelArtifact(format=GGUF, quantization=quantization, parts=parts or found)
    shape = catalog_shape(architecture, described.max_context)
    return ResolvedModel(name="somebody-s-model", shape=shape, artifacts=(artifact,))


@pytest.mark.parametrize("name", ["qwen3.5-4b", "qwen3.5-27b", "qwen3.5-35b-a3b"])
def test_a_catalog_models_sizes_come_out(name: str) -> None:
    described, _ = load_catalog().resolve(name)
    known, found = work_of(name, described.architecture), work_of_artifacts(model(name))
    assert found is not None
    assert found.parameters == pytest.approx(known.parameters, rel=0.01)
    assert found.parameters_read == pytest.approx(known.parameters_read, rel=0.1)
    assert (found.layers, found.attention_layers) == (known.layers, known.attention_layers)
    assert found.kv_bytes_per_token == known.kv_bytes_per_token
    assert found.mixture_of_experts == known.mixture_of_experts


def test_without_a_header_or_a_known_width_nothing_is_said() -> None:
    assert work_of_artifacts(ResolvedModel(name="x")) is None
    assert work_of_artifacts(model("qwen3.5-4b", parts=WeightParts())) is None
    assert work_of_artifacts(model("qwen3.5-4b", quantization="best")) is None
