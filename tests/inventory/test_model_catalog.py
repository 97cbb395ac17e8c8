"""The model catalog: what is shipped, how names are resolved, and a user's own descriptions."""

import shutil
from pathlib import Path

import pytest

from fleet_inventory.catalog import SHIPPED_FOLDER, Artifact, ArtifactFormat, Catalog, CatalogError, load_catalog


@pytest.fixture(scope="module")
def catalog() -> Catalog:
    return load_catalog()


def test_the_models_of_the_lab_notes_are_shipped(catalog: Catalog) -> None:
    assert {model.display_name for model in catalog.models} == {
        "GLM-4.7-Flash",
        "Qwen3.5-27B",
        "Qwen3.5-35B-A3B",
        "Qwen3.5-9B",
        "Qwen3.5-4B",
    }


@pytest.mark.parametrize(
    ("name", "kv_bytes_per_token", "state_bytes"),
    [
        ("glm-4.7-flash", 54144, 0),
        ("qwen3.5-4b", 32768, 50331648),
        ("qwen3.5-9b", 32768, 50331648),
        ("qwen3.5-27b", 65536, 150994944),
        ("qwen3.5-35b-a3b", 20480, 62914560),
    ],
)
def test_the_shapes_give_the_published_cache_sizes(
    catalog: Catalog, name: str, kv_bytes_per_token: int, state_bytes: int
) -> None:
    architecture = catalog.resolve(name)[0].architecture
    assert architecture.kv_bytes_per_token_f16 == kv_bytes_per_token
    assert architecture.recurrent_state_bytes_f32 == state_bytes


def test_sampling_defaults_keep_the_text_of_the_notes(catalog: Catalog) -> None:
    glm = catalog.resolve("glm-4.7-flash")[0]
    assert (glm.sampling.temperature, glm.sampling.top_p, glm.sampling.top_k, glm.sampling.min_p) == (
        "0.7",
        "1.0",
        None,
        "0.01",
    )
    assert glm.max_context == 202752
    assert glm.notes_for("llama.cpp").arguments == ("--fit", "on")
    for name in ("qwen3.5-4b", "qwen3.5-9b", "qwen3.5-27b", "qwen3.5-35b-a3b"):
        qwen = catalog.resolve(name)[0]
        sampling = qwen.sampling
        assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p) == ("1.0", "0.95", "20", "0.00")
        assert qwen.max_context == 262144
        assert qwen.notes_for("llama_cpp").arguments == ()


def test_backend_notes_give_argv_words_exactly(catalog: Catalog) -> None:
    model = catalog.resolve("qwen3.5-4b")[0]
    vllm = model.notes_for("vllm").speculative
    assert vllm is not None
    assert vllm.arguments == ("--speculative-config", '{"method": "mtp", "num_speculative_tokens": 1}')
    sglang = model.notes_for("sglang")
    assert (sglang.reasoning_parser, sglang.tool_call_parser) == ("qwen3", "qwen3_coder")
    assert (sglang.arguments, sglang.memory_fraction) == (("--enable-flashinfer-allreduce-fusion",), "0.95")
    assert sglang.speculative is not None and sglang.speculative.environment == {"SGLANG_ENABLE_SPEC_V2": "1"}
    glm = catalog.resolve("GLM-4.7-Flash")[0].notes_for("SGLang")
    assert (glm.reasoning_parser, glm.tool_call_parser) == ("glm45", "glm47")
    assert (glm.version, glm.memory_fraction, len(glm.requirements)) == ("0.5.8", "0.8", 1)


def test_settings_of_another_version_replace_what_they_name(catalog: Catalog) -> None:
    notes = catalog.resolve("qwen3.5-4b")[0].notes_for("sglang")
    pinned, main, other = notes.for_version(), notes.for_version("main"), notes.for_version("0.5.16")
    assert notes.for_version("7f99319c") == pinned
    assert (pinned.memory_fraction, main.memory_fraction, other.memory_fraction) == ("0.95", "0.8", "0.95")
    assert main.speculative is not None and "extra_buffer" not in main.speculative.arguments
    assert main.speculative.environment == {} and main.reasoning_parser == "qwen3"
    assert pinned.requirements == main.requirements == ("nvidia-cudnn-cu12==9.16.0.29",)
    assert other.requirements == ()  # tried with the pinned version only


def test_numbers_and_versions_stay_as_written(tmp_path: Path) -> None:
    shipped = (SHIPPED_FOLDER / "qwen3.5-4b.yaml").read_text()
    text = shipped.replace("version: 7f99319c", "version: 1234567").replace("fraction: 0.95", "fraction: 0.90")
    (tmp_path / "mine.yaml").write_text(text)
    notes = load_catalog((tmp_path,)).resolve("qwen3.5-4b")[0].notes_for("sglang")
    assert (notes.version, notes.memory_fraction) == ("1234567", "0.90")


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("memory_fraction: 0.95", "memory_fraction: 95", "between 0 and 1"),
        ("memory_fraction: 0.95", "memory_fraction: 0.0", "between 0 and 1"),
        ("[nvidia-cudnn-cu12==9.16.0.29]\n    known", '["-r other.txt"]\n    known', "begin with a package's name"),
        (
            "[nvidia-cudnn-cu12==9.16.0.29]\n    known",
            '["git+https://x/y.git"]\n    known',
            "begin with a package's name",
        ),
        ("    versions:\n      main:\n", "    versions:\n      main:\n        versoin: x\n", "unknown key"),
    ],
)
def test_faults_of_backend_settings_are_told(tmp_path: Path, old: str, new: str, said: str) -> None:
    text = (SHIPPED_FOLDER / "qwen3.5-4b.yaml").read_text()
    assert old in text
    (tmp_path / "mine.yaml").write_text(text.replace(old, new, 1))
    with pytest.raises(CatalogError, match=said):
        load_catalog((tmp_path,))


@pytest.mark.parametrize(
    ("text", "name", "quantization"),
    [
        ("qwen3.5-35b-a3b:UD-Q4_K_XL", "qwen3.5-35b-a3b", "UD-Q4_K_XL"),
        ("Qwen3.5-35B-A3B:ud-q4_k_xl", "qwen3.5-35b-a3b", "UD-Q4_K_XL"),
        ("Qwen/Qwen3.5-4B", "qwen3.5-4b", None),
        ("qwen-4b:4BIT", "qwen3.5-4b", "4bit"),
        ("glm-4.7-flash", "glm-4.7-flash", None),
    ],
)
def test_a_name_is_resolved_without_regard_to_case(
    catalog: Catalog, text: str, name: str, quantization: str | None
) -> None:
    model, found = catalog.resolve(text)
    assert (model.name, found) == (name, quantization)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("qwen3.5-9", "did you mean qwen3.5-9b"),
        ("qwen35", "did you mean qwen3.5-"),
        ("glm", "did you mean glm-4.7-flash?"),
        ("llama-7", "known: glm-4.7-flash, qwen3.5-27b"),
        ("qwen3.5-9b:Q8", "has no quantization 'Q8', did you mean Q8_0? it has: Q8_0, UD-Q4_K_XL, Q4_K_M, BF16"),
        ("qwen3.5-9b:zzz", "has no quantization 'zzz'; it has: Q8_0, UD-Q4_K_XL, Q4_K_M, BF16"),
        ("", "no model ''"),
    ],
)
def test_an_unknown_name_is_told_with_near_ones(catalog: Catalog, text: str, said: str) -> None:
    with pytest.raises(CatalogError) as raised:
        catalog.resolve(text)
    assert said in str(raised.value)


def artifact_of(catalog: Catalog, model: str, artifact_format: ArtifactFormat, quantization: str) -> Artifact:
    found = catalog.resolve(model)[0].artifacts
    [one] = [one for one in found if (one.format, one.quantization) == (artifact_format, quantization)]
    return one


def test_artifacts_name_files_and_sizes_of_the_notes(catalog: Catalog) -> None:
    artifact = artifact_of(catalog, "qwen3.5-9b", ArtifactFormat.GGUF, "Q8_0")
    assert artifact.repository == "unsloth/Qwen3.5-9B-GGUF"
    assert artifact.files == ("Qwen3.5-9B-Q8_0.gguf",)
    assert artifact.size_bytes == 9513352561  # 8.86 GiB
    glm = artifact_of(catalog, "glm-4.7-flash", ArtifactFormat.GGUF, "UD-Q2_K_XL")
    assert glm.files == ("*UD-Q2_K_XL*",)
    mlx = artifact_of(catalog, "qwen3.5-4b", ArtifactFormat.MLX, "4bit")
    assert mlx.repository == "mlx-community/Qwen3.5-4B-MLX-4bit"
    assert mlx.files == ()


def test_a_known_size_has_a_source(catalog: Catalog) -> None:
    for model in catalog.models:
        for artifact in model.artifacts:
            assert (artifact.size_bytes is None) == (artifact.size_source == ""), (model.name, artifact.quantization)


def test_a_users_description_is_added_and_one_of_the_same_name_replaces(tmp_path: Path) -> None:
    shipped = (SHIPPED_FOLDER / "qwen3.5-4b.yaml").read_text()
    (tmp_path / "mine.yaml").write_text(shipped.replace("max_context: 262144", "max_context: 4096"))
    catalog = load_catalog((tmp_path, tmp_path / "missing"))
    assert catalog.resolve("qwen3.5-4b")[0].max_context == 4096
    assert len(catalog.models) == len(load_catalog().models)


def test_faults_of_every_file_are_told_with_line_and_key(tmp_path: Path) -> None:
    shutil.copy(SHIPPED_FOLDER / "qwen3.5-9b.yaml", tmp_path / "a.yaml")
    text = (tmp_path / "a.yaml").read_text()
    text = text.replace("layers: 32\n", "layres: 32\n", 1).replace("top_k: 20", "top_k: many")
    (tmp_path / "a.yaml").write_text(text.replace("format: safetensors", "format: safetensor"))
    (tmp_path / "b.yaml").write_text("")
    with pytest.raises(CatalogError) as raised:
        load_catalog((tmp_path,))
    said = str(raised.value)
    assert "a.yaml:7: sampling.top_k: 'many' is no number" in said
    assert "architecture.layres: unknown key, did you mean 'layers'?" in said
    assert "architecture.layers: missing" in said
    assert "must be one of gguf, mlx, safetensors, lmstudio, not 'safetensor'; did you mean 'safetensors'?" in said
    assert "b.yaml: the file is empty" in said


def test_two_models_cannot_share_a_name(tmp_path: Path) -> None:
    shipped = (SHIPPED_FOLDER / "qwen3.5-4b.yaml").read_text()
    other = shipped.replace("name: qwen3.5-4b\n", "name: other\n", 1).replace("Qwen/Qwen3.5-4B\nmax", "x/y\nmax")
    (tmp_path / "other.yaml").write_text(other.replace("display_name: Qwen3.5-4B", "display_name: Other"))
    with pytest.raises(CatalogError, match=r"the name 'qwen-4b' means both qwen3\.5-4b and other"):
        load_catalog((tmp_path,))
