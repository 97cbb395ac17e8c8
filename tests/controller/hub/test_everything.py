"""All artifacts of a model in every format: with the hub, with a part of it, and without."""

import pytest

from fleet_controller.domain.plan import DeployRequest
from fleet_controller.hub.errors import HubUnreachableError, RepositoryUnknownError
from fleet_controller.hub.everything import everything_of
from fleet_controller.hub.metadata import HubSnapshot
from fleet_inventory.base import CatalogError
from fleet_inventory.catalog import load_catalog
from support.golden_plans import listing

REQUEST = DeployRequest(model="qwen3.5-4b")


def test_every_format_is_there_while_a_deploy_leaves_originals_out() -> None:
    found = everything_of(REQUEST, load_catalog(), listing)
    assert {(item.format, item.quantization) for item in found.artifacts} == {
        ("gguf", "UD-Q4_K_XL"),
        ("gguf", "Q8_0"),
        ("gguf", "Q4_K_M"),
        ("mlx", "4bit"),
        ("safetensors", "BF16"),
    }
    assert all(item.files for item in found.artifacts)


def test_a_repository_that_may_not_be_read_leaves_its_artifacts_out_and_says_so() -> None:
    def lister(repository: str) -> HubSnapshot:
        if repository == "Qwen/Qwen3.5-4B":
            raise RepositoryUnknownError("there is no such repository")
        return listing(repository)

    found = everything_of(REQUEST, load_catalog(), lister)
    assert "safetensors" not in {item.format for item in found.artifacts}
    assert found.warnings == ("BF16 (safetensors) is left out: there is no such repository",)


def test_without_a_hub_the_catalogs_sizes_or_bits_a_weight_stand_in_and_it_is_asked_once() -> None:
    asked: list[str] = []

    def lister(repository: str) -> HubSnapshot:
        asked.append(repository)
        raise HubUnreachableError("no route")

    found = everything_of(REQUEST, load_catalog(), lister)
    assert len(asked) == 1
    sizes = {item.quantization: item.weights_bytes for item in found.artifacts}
    assert sizes["Q8_0"] == 4_480_000_000
    assert sizes["4bit"] == pytest.approx(4.21e9 * 4.5 / 8)
    assert len(found.warnings) == 1 and found.warnings[0].endswith("the hub did not answer: no route")


def test_an_unknown_model_is_the_users_to_correct() -> None:
    with pytest.raises(CatalogError, match="no model 'gpt-9'"):
        everything_of(DeployRequest(model="gpt-9"), load_catalog(), listing)
