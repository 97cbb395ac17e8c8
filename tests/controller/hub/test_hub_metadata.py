"""Hub metadata and resolving, against the stand-in hub and the real client library."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from fleet_controller.domain.plan import DeployRequest
from fleet_controller.domain.steps import ArtifactFile
from fleet_controller.hub.errors import (
    HubUnreachableError,
    NoFilesError,
    RepositoryGatedError,
    RepositoryUnknownError,
)
from fleet_controller.hub.gguf import read_url
from fleet_controller.hub.metadata import HubSnapshot, list_repository, split_parts
from fleet_controller.hub.names import quantization_of_file, service_name
from fleet_controller.hub.resolve import named_quantization, resolve_model, resolve_with
from fleet_inventory.base import CatalogError
from fleet_inventory.catalog import load_catalog
from support.stand_in_hub import StandInHub
from support.tiny_model import TinyModel, make_tiny_model

REPOSITORY = "acme/tiny-GGUF"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    return make_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def hub(tmp_path: Path, tiny: TinyModel, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandInHub]:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf-home"))
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")
    with StandInHub(tmp_path / "hub") as running:
        content = tiny.gguf_path.read_bytes()
        running.add(REPOSITORY, "tiny-F16.gguf", content)
        running.add(REPOSITORY, "tiny-Q8_0-00001-of-00002.gguf", content)
        running.add(REPOSITORY, "tiny-Q8_0-00002-of-00002.gguf", content)
        running.add(REPOSITORY, "mmproj-F16.gguf", b"GGUF")
        running.add(REPOSITORY, "README.md", b"a model\n")
        for path in tiny.hf_dir.iterdir():
            running.add("acme/tiny", path.name, path.read_bytes())
        yield running


def test_files_come_with_sizes_hashes_and_commit(hub: StandInHub, tiny: TinyModel) -> None:
    snapshot = list_repository(REPOSITORY, hub.url)
    content = tiny.gguf_path.read_bytes()
    by_path = {file.path: file for file in snapshot.select(("*F16*", "README.md"))}
    assert set(by_path) == {"tiny-F16.gguf", "mmproj-F16.gguf", "README.md"}
    assert by_path["tiny-F16.gguf"].size_bytes == len(content)
    assert by_path["tiny-F16.gguf"].sha256 == hashlib.sha256(content).hexdigest()
    blob = hashlib.sha1(b"blob 8\0a model\n").hexdigest()
    assert (by_path["README.md"].git_blob_id, by_path["README.md"].sha256) == (blob, "")
    assert len(snapshot.commit) == 40 and snapshot.endpoint == hub.url


def test_all_parts_of_a_split_model_come_together(hub: StandInHub) -> None:
    chosen = list_repository(REPOSITORY, hub.url).select(("tiny-Q8_0-00001-of-00002.gguf",))
    assert [file.path for file in chosen] == [
        "tiny-Q8_0-00001-of-00002.gguf",
        "tiny-Q8_0-00002-of-00002.gguf",
    ]


def test_a_missing_part_is_said() -> None:
    first = ArtifactFile(path="m-00001-of-00003.gguf", size_bytes=1, sha256="a" * 64)
    snapshot = HubSnapshot(repository="acme/m", revision="main", commit="c" * 40, files=(first,))
    with pytest.raises(NoFilesError, match="m-00002-of-00003"):
        snapshot.select(("*",))
    assert split_parts("m.gguf") == ()


def test_a_pattern_that_matches_nothing_lists_what_is_there(hub: StandInHub) -> None:
    with pytest.raises(NoFilesError, match=r"tiny-F16\.gguf, tiny-Q8_0-00001"):
        list_repository(REPOSITORY, hub.url).select(("*Q3_K*",))


def test_unknown_repository_and_revision(hub: StandInHub) -> None:
    with pytest.raises(RepositoryUnknownError, match="no repository acme/none"):
        list_repository("acme/none", hub.url)
    with pytest.raises(RepositoryUnknownError, match="no revision 'v9'"):
        list_repository(REPOSITORY, hub.url, revision="v9")
    with pytest.raises(RepositoryUnknownError, match="no repository name"):
        list_repository("https://example.org/a/b/c", hub.url)


def test_a_gated_repository_wants_a_token(hub: StandInHub) -> None:
    """Anybody may list it, as on the hub; the files want a token."""
    hub.behaviour.gated.add(REPOSITORY)
    assert list_repository(REPOSITORY, hub.url).gated
    with pytest.raises(RepositoryGatedError) as raised:
        read_url(f"{hub.url}/{REPOSITORY}/resolve/main/tiny-F16.gguf")
    assert "token" in raised.value.remedy
    request = DeployRequest(model="", repository=REPOSITORY)
    without = resolve_model(request, load_catalog(), hub.url)
    assert without.shape is None and "gated" in without.warnings[0]
    assert resolve_model(request, load_catalog(), hub.url, token=hub.behaviour.token).shape is not None


def test_an_unreachable_hub_names_the_mirror_setting() -> None:
    with pytest.raises(HubUnreachableError) as raised:
        list_repository(REPOSITORY, "http://127.0.0.1:9")
    assert "HF_ENDPOINT" in raised.value.remedy and "\n" not in raised.value.message


def test_what_lm_studio_fetches_needs_no_hub_here() -> None:
    def unreachable(repository: str) -> HubSnapshot:
        raise HubUnreachableError(f"no hub for {repository}", "")

    request = DeployRequest(model="glm-4.7-flash", backend="lm-studio")
    [artifact] = resolve_with(request, load_catalog(), unreachable).artifacts
    assert (artifact.format, artifact.repository) == ("lmstudio", "zai-org/glm-4.7-flash")
    for other in (request.model_copy(update={"quantization": "UD-Q2_K_XL"}), DeployRequest(model="glm-4.7-flash")):
        with pytest.raises(HubUnreachableError):
            resolve_with(other, load_catalog(), unreachable)


def test_any_repository_of_gguf_files(hub: StandInHub, tiny: TinyModel) -> None:
    resolved = resolve_model(DeployRequest(model="", repository=REPOSITORY), load_catalog(), hub.url)
    assert resolved.name == "tiny-gguf"
    assert {item.quantization: len(item.files) for item in resolved.artifacts} == {"F16": 1, "Q8_0": 2}
    assert resolved.shape is not None and resolved.shape.kv_layers > 0
    assert resolved.warnings == ()
    assert [item.main_file() for item in resolved.artifacts] == ["tiny-F16.gguf", "tiny-Q8_0-00001-of-00002.gguf"]


def test_any_repository_of_safetensors(hub: StandInHub, tiny: TinyModel) -> None:
    resolved = resolve_model(DeployRequest(model="", repository="acme/tiny"), load_catalog(), hub.url)
    (found,) = resolved.artifacts
    assert found.format == "safetensors" and found.shape is not None
    assert found.weights_bytes == (tiny.hf_dir / "model.safetensors").stat().st_size


def test_a_mirror_without_files_costs_the_shape_only(hub: StandInHub) -> None:
    hub.behaviour.metadata_only = True
    resolved = resolve_model(DeployRequest(model="", repository=REPOSITORY), load_catalog(), hub.url)
    assert resolved.shape is None and "header" in resolved.warnings[0]


def listing(repository: str) -> HubSnapshot:
    names = {
        "unsloth/Qwen3.5-9B-GGUF": ("Qwen3.5-9B-Q8_0.gguf", "Qwen3.5-9B-UD-Q4_K_XL.gguf"),
        "mlx-community/Qwen3.5-4B-MLX-4bit": ("config.json", "model.safetensors"),
    }.get(repository)
    if names is None:
        raise RepositoryUnknownError(f"there is no repository {repository}")
    files = tuple(ArtifactFile(path=name, size_bytes=10, sha256="a" * 64) for name in names)
    return HubSnapshot(repository=repository, revision="main", commit="c" * 40, files=files)


def test_a_catalog_name_with_quantization() -> None:
    catalog = load_catalog()
    request = DeployRequest(model="qwen3.5-9b:q8_0")
    resolved = resolve_with(request, catalog, listing)
    assert [item.quantization for item in resolved.artifacts] == ["Q8_0"]
    assert resolved.sampling == (("temp", "1.0"), ("top-p", "0.95"), ("top-k", "20"), ("min-p", "0.00"))
    assert named_quantization(request, catalog).quantization == "Q8_0"


def test_what_the_hub_does_not_have_any_more_is_left_out() -> None:
    resolved = resolve_with(DeployRequest(model="qwen3.5-9b"), load_catalog(), listing)
    assert {item.quantization for item in resolved.artifacts} == {"Q8_0", "UD-Q4_K_XL"}
    with pytest.raises((NoFilesError, RepositoryUnknownError)):
        resolve_with(DeployRequest(model="qwen3.5-27b"), load_catalog(), listing)


def test_unknown_names_and_quantizations() -> None:
    with pytest.raises(CatalogError, match="did you mean"):
        resolve_with(DeployRequest(model="qwen3.5-9"), load_catalog(), listing)
    with pytest.raises(CatalogError, match="UD-Q4_K_XL"):
        resolve_with(DeployRequest(model="qwen3.5-9b", quantization="Q5_0"), load_catalog(), listing)


def test_a_path_that_this_machine_has(tiny: TinyModel) -> None:
    resolved = resolve_model(DeployRequest(model=str(tiny.gguf_path)), load_catalog())
    (found,) = resolved.artifacts
    assert found.local_path == str(tiny.gguf_path) and found.weights_bytes == tiny.gguf_path.stat().st_size
    assert resolved.shape is not None
    folder = resolve_model(DeployRequest(model=f"{tiny.hf_dir}/"), load_catalog()).artifacts[0]
    assert (folder.format, folder.local_path) == ("safetensors", str(tiny.hf_dir))


def test_a_path_that_only_the_hosts_have() -> None:
    resolved = resolve_model(DeployRequest(model="/somewhere/else/Model-Q4_K_M.gguf"), load_catalog())
    (found,) = resolved.artifacts
    assert (resolved.name, found.quantization, found.weights_bytes) == ("model-q4_k_m", "Q4_K_M", None)
    in_folder = resolve_model(DeployRequest(model="./Model-Q4_K_M.gguf"), load_catalog())
    assert in_folder.artifacts[0].local_path == "./Model-Q4_K_M.gguf"


@pytest.mark.parametrize(
    ("path", "quantization"),
    [
        ("Qwen3.5-27B-UD-Q4_K_XL.gguf", "UD-Q4_K_XL"),
        ("sub/Qwen3.5-9B-Q8_0.gguf", "Q8_0"),
        ("gpt-oss-20b-MXFP4_MOE.gguf", "MXFP4_MOE"),
        ("m-IQ4_XS.gguf", "IQ4_XS"),
        ("BF16/m-BF16-00001-of-00003.gguf", "BF16"),
        ("llama-2-7b.Q4_K_M.gguf", "Q4_K_M"),
        ("model.gguf", "model"),
    ],
)
def test_quantizations_in_file_names(path: str, quantization: str) -> None:
    assert quantization_of_file(path) == quantization


def test_service_names() -> None:
    assert service_name("Qwen3.5 9B (test)") == "qwen3.5-9b-test"
    assert service_name("___") == "model"
    assert len(service_name("x" * 200)) == 64
