"""Which files a pull means, and which hub hands them out: metadata and files need not be in one place."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from fleet_controller.domain.plan import DeployRequest
from fleet_controller.domain.resolved import ModelArtifact
from fleet_controller.hub.errors import NoFilesError
from fleet_controller.hub.mirrors import data_endpoint, data_revision, is_modelscope
from fleet_controller.hub.pullable import first_with_data, pullable_artifacts
from fleet_inventory.catalog import load_catalog
from support.stand_in_hub import StandInHub


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[StandInHub]:
    with StandInHub(tmp_path) as made:
        yield made


def found(hub: StandInHub, repository: str, quantization: str = "") -> tuple[ModelArtifact, ...]:
    request = DeployRequest(model="", pattern="all", repository=repository, quantization=quantization)
    return pullable_artifacts(request, load_catalog([]), hub.url, None)


def test_a_gguf_repository_is_taken_by_quantization_with_all_parts(hub: StandInHub) -> None:
    for name in (
        "m-Q4_K_M.gguf",
        "m-F16-00001-of-00002.gguf",
        "m-F16-00002-of-00002.gguf",
        "mmproj-F16.gguf",
        "README.md",
    ):
        hub.add("o/m", name, name.encode())
    kinds = {one.quantization: [file.path for file in one.files] for one in found(hub, "o/m")}
    assert kinds == {"Q4_K_M": ["m-Q4_K_M.gguf"], "F16": ["m-F16-00001-of-00002.gguf", "m-F16-00002-of-00002.gguf"]}
    (only,) = found(hub, "o/m", "q4_k_m")
    assert only.quantization == "Q4_K_M"
    with pytest.raises(NoFilesError, match="has no Q8_0"):
        found(hub, "o/m", "Q8_0")
    assert not hub.served  # no header was read


def test_any_other_repository_is_taken_whole_but_for_what_is_gits(hub: StandInHub) -> None:
    for name in ("config.json", "model.safetensors", ".gitattributes"):
        hub.add("o/m", name, name.encode())
    (only,) = found(hub, "o/m")
    assert [file.path for file in only.files] == ["config.json", "model.safetensors"]


def test_a_mirror_without_the_files_is_passed_over_and_said_so(hub: StandInHub, tmp_path: Path) -> None:
    hub.add("o/m", "model.safetensors", b"weights")
    (artifact,) = found(hub, "o/m")
    with StandInHub(tmp_path, metadata_only=True) as empty, StandInHub(tmp_path) as full:
        best, reasons = first_with_data([empty.url, "http://127.0.0.1:9", full.url], artifact, None)
        assert best == full.url
        assert list(reasons) == [empty.url, "http://127.0.0.1:9"]
        assert "404" in reasons[empty.url]
        assert first_with_data([empty.url], artifact, None)[0] is None


def test_a_mirror_with_another_version_is_passed_over(hub: StandInHub, tmp_path: Path) -> None:
    hub.add("o/m", "model.safetensors", b"weights")
    (artifact,) = found(hub, "o/m")
    with StandInHub(tmp_path / "old") as old:
        old.add("o/m", "model.safetensors", b"old weights")
        behind = old.url
        artifact = artifact.model_copy(update={"commit": "main"})
        assert first_with_data([behind, hub.url], artifact, None) == (
            hub.url,
            {behind: "it has another version of model.safetensors, of 11 bytes"},
        )


def test_a_token_goes_to_the_hub_that_it_is_for(hub: StandInHub, tmp_path: Path) -> None:
    hub.add("o/m", "model.safetensors", b"weights")
    (artifact,) = found(hub, "o/m")
    with StandInHub(tmp_path) as mirror:
        first_with_data([hub.url], artifact, "hf_secret")
        first_with_data([mirror.url], artifact, "hf_secret")
        assert [one.authorization for one in hub.served] == ["Bearer hf_secret"]
        assert [one.authorization for one in mirror.served] == [None]


def test_modelscope_has_the_files_under_a_branch_of_its_own() -> None:
    assert is_modelscope("https://www.modelscope.cn")
    assert not is_modelscope("https://modelscope.cn.evil.example")
    assert data_endpoint("https://modelscope.cn/") == "https://modelscope.cn/models"
    assert data_endpoint("https://modelscope.cn/models") == "https://modelscope.cn/models"
    assert data_endpoint("https://hf-mirror.com") == "https://hf-mirror.com"
    assert (data_revision("https://modelscope.cn/models"), data_revision("https://hf-mirror.com")) == ("master", "")
