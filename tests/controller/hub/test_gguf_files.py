"""Files that belong together: parts of split models, multimodal projectors; of repositories and of paths."""

import subprocess
from pathlib import Path
from typing import Any

import pytest

from fleet_controller.domain.plan import DeployRequest
from fleet_controller.domain.resolved import ModelArtifact
from fleet_controller.domain.steps import ArtifactFile
from fleet_controller.hub.errors import NoFilesError
from fleet_controller.hub.gguf_files import choose_projector, demand_all_parts
from fleet_controller.hub.metadata import HubSnapshot
from fleet_controller.hub.resolve import resolve_with
from fleet_inventory.catalog import Catalog, load_catalog
from support.tiny_model import make_tiny_model

SPLIT = tuple(f"tiny-Q8_0-0000{number}-of-00003.gguf" for number in (1, 2, 3))


def file(path: str, size_bytes: int = 10) -> ArtifactFile:
    return ArtifactFile(path=path, size_bytes=size_bytes, sha256="a" * 64)


def artifacts(monkeypatch: pytest.MonkeyPatch, *paths: str) -> dict[str, ModelArtifact]:
    monkeypatch.setattr("fleet_controller.hub.gguf_headers.with_headers", lambda artifacts, *_: (artifacts, ""))
    snapshot = HubSnapshot(repository="a/b", revision="main", commit="c" * 40, files=tuple(map(file, paths)))
    request = DeployRequest(repository="a/b")
    found = resolve_with(request, load_catalog(), lambda repository: snapshot).artifacts
    return {item.quantization: item for item in found}


def test_a_split_model_is_all_its_parts_and_the_first_is_served(monkeypatch: pytest.MonkeyPatch) -> None:
    found = artifacts(monkeypatch, *SPLIT, "tiny-F16.gguf")
    assert {name: len(item.files) for name, item in found.items()} == {"Q8_0": 3, "F16": 1}
    assert found["Q8_0"].main_file() == SPLIT[0] and found["Q8_0"].weights_bytes == 30


def test_a_part_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(NoFilesError, match=r"a/b lacks tiny-Q8_0-00002-of-00003\.gguf"):
        artifacts(monkeypatch, SPLIT[0], SPLIT[2])
    demand_all_parts(["a.gguf", *SPLIT], "here")


@pytest.mark.parametrize(
    ("paths", "chosen"),
    [
        (("mmproj-BF16.gguf", "mmproj-F16.gguf", "mmproj-F32.gguf", "m-Q4.gguf"), "mmproj-F16.gguf"),
        (("mmproj-model-f32.gguf", "mmproj-model-bf16.gguf"), "mmproj-model-bf16.gguf"),
        (("mmproj.gguf",), "mmproj.gguf"),
        (("m-Q4.gguf", "mmproj-notes.txt"), None),
    ],
)
def test_the_projector_of_a_repository(paths: tuple[str, ...], chosen: str | None) -> None:
    found = choose_projector([file(path) for path in paths])
    assert (found.path if found else None) == chosen


def test_a_projector_is_no_model_and_is_used_on_request_only(monkeypatch: pytest.MonkeyPatch) -> None:
    (found,) = artifacts(monkeypatch, "m-Q4_0.gguf", "mmproj-F16.gguf").values()
    assert [item.path for item in found.files] == ["m-Q4_0.gguf"] and not found.sees
    seeing = found.seeing(True)
    assert [item.path for item in seeing.files] == ["m-Q4_0.gguf", "mmproj-F16.gguf"]
    assert (seeing.main_file(), seeing.weights_bytes) == ("m-Q4_0.gguf", 20)
    assert seeing.seeing(False) == found


def with_projector(catalog: Catalog, pattern: str) -> Catalog:
    model, _ = catalog.resolve("qwen3.5-4b")
    first = next(item for item in model.artifacts if item.format.value == "gguf")
    entry = first.model_copy(update={"projector": pattern})
    return Catalog(models=(model.model_copy(update={"artifacts": (entry,)}),))


def test_the_catalog_may_name_one() -> None:
    entry = next(item for item in load_catalog().resolve("qwen3.5-4b")[0].artifacts if item.format.value == "gguf")
    files = (file(entry.files[0]), file("mmproj-F32.gguf", 5), file("mmproj-F16.gguf", 3))
    snapshot = HubSnapshot(repository=entry.repository, revision="main", commit="c" * 40, files=files)
    request = DeployRequest(model="qwen3.5-4b", backend="llama.cpp")

    def resolved(pattern: str) -> Any:
        return resolve_with(request, with_projector(load_catalog(), pattern), lambda _: snapshot).artifacts[0]

    named = resolved("mmproj-F32.gguf")
    assert named.sees and named.projector.path == "mmproj-F32.gguf" and named.weights_bytes == 15
    assert not resolved("").sees and resolved("").projector.path == "mmproj-F16.gguf"
    with pytest.raises(NoFilesError):
        resolved("mmproj-Q2.gguf")


# ---- paths on the hosts


def of_path(path: Path) -> ModelArtifact:
    found = resolve_with(DeployRequest(model=str(path)), load_catalog(), lambda _: pytest.fail("asked the hub"))
    (artifact,) = found.artifacts
    assert "-of-" not in found.name
    return artifact


def test_a_split_path_that_only_the_hosts_have() -> None:
    found = of_path(Path("/models/big-Q4_K_M-00001-of-00002.gguf"))
    assert found.local_parts == (
        "/models/big-Q4_K_M-00001-of-00002.gguf", "/models/big-Q4_K_M-00002-of-00002.gguf"
    )  # fmt: skip
    assert found.quantization == "Q4_K_M" and found.weights_bytes is None
    with pytest.raises(NoFilesError, match="later part") as raised:
        of_path(Path("/models/big-Q4_K_M-00002-of-00002.gguf"))
    assert "big-Q4_K_M-00001-of-00002.gguf" in raised.value.remedy


@pytest.mark.llama_cpp
def test_a_model_that_the_real_tool_split(tmp_path: Path, llama_cpp_bin: Path) -> None:
    whole = make_tiny_model(tmp_path, "chain").gguf_path
    split = [
        str(llama_cpp_bin / "llama-gguf-split"),
        "--split",
        "--split-max-tensors",
        "12",
        str(whole),
        str(tmp_path / "tiny-F16"),
    ]
    subprocess.run(split, check=True, capture_output=True)
    parts = sorted(tmp_path.glob("tiny-F16-*-of-*.gguf"))
    assert len(parts) > 1
    found = of_path(parts[0])
    assert found.local_parts == tuple(map(str, parts)) and found.quantization == "F16"
    assert found.weights_bytes == sum(part.stat().st_size for part in parts)
    assert found.shape is not None and found.shape.layers == 2
    parts[-1].unlink()
    with pytest.raises(NoFilesError, match="this machine lacks"):
        of_path(parts[0])


def test_a_projector_beside_a_local_model(tmp_path: Path) -> None:
    model = make_tiny_model(tmp_path, "chain").gguf_path
    assert of_path(model).projector is None
    (tmp_path / "mmproj-F16.gguf").write_bytes(b"x" * 7)
    found = of_path(model)
    assert found.projector is not None and found.projector.path == str(tmp_path / "mmproj-F16.gguf")
    seeing = found.seeing(True)
    assert seeing.weights_bytes == (found.weights_bytes or 0) + 7 and seeing.files == ()
