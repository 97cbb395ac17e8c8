"""Published figures for fitting: all rows of the files, read as they are meant."""

from collections import Counter
from pathlib import Path

import pytest

from fleet_inventory.base import InventoryError
from fleet_inventory.reference_data import reference_files
from fleet_inventory.speed_reference import (
    MODELS_FILE,
    PUBLIC_FILE,
    SPEED_FOLDER,
    load_public_figures,
    load_speed_figures,
    load_speed_models,
)

SHARED = Path(__file__).parents[3] / "shared" / "data"


@pytest.mark.skipif(not SHARED.exists(), reason="the lab's data lie beside the checkout, and are not there")
@pytest.mark.parametrize("name", [PUBLIC_FILE, MODELS_FILE])
def test_the_shipped_files_are_the_labs(name: str) -> None:
    assert (SPEED_FOLDER / name).read_bytes() == (SHARED / name).read_bytes()


@pytest.mark.skipif(not SHARED.exists(), reason="the lab's data lie beside the checkout, and are not there")
def test_a_folder_with_all_files_reads_like_what_ships() -> None:
    assert load_speed_figures(SHARED) == load_speed_figures()
    assert load_speed_models(SHARED) == load_speed_models()


def test_every_row_is_there_with_its_source() -> None:
    figures = load_speed_figures()
    sources = Counter(figure.source.partition(":")[0] for figure in figures)
    assert sources["XiongjieDai/GPU-Benchmarks-on-LLM-Inference"] == 158
    assert sources["kyuz0/amd-strix-halo-toolboxes"] == 156
    # 104 rows less ten of mlx_lm.benchmark's trials, whose averages are rows as well.
    assert sources["lab-notes.md"] == 94


def test_they_are_not_among_the_results_that_are_shown() -> None:
    assert PUBLIC_FILE not in {path.name for path in reference_files()}


def test_the_depth_of_a_decode_test_is_that_before_it() -> None:
    first = load_speed_figures()[0]
    assert (first.test, first.tokens, first.depth) == ("tg", 512, 0)
    deep = [figure for figure in load_speed_figures() if figure.runtime == "rocm"]
    assert {figure.depth for figure in deep} == {0, 32768, 65536}


def test_what_a_sources_tool_did_by_itself_is_said() -> None:
    figures = load_speed_figures()
    old = [figure for figure in figures if figure.version == "May 2024 snapshot"]
    assert all(not figure.flash_attention for figure in old)
    assert {figure.runtime for figure in old if figure.dequantizes} == {"cuda"}
    notes = [figure for figure in figures if figure.source.startswith("lab-notes") and figure.backend == "llama.cpp"]
    assert {(figure.over_http, figure.flash_attention) for figure in notes} == {(True, True), (False, False)}
    assert {figure.backend for figure in figures if figure.speculation} == {"sglang", "vllm"}


def test_sizes_come_from_a_row_of_the_same_file_else_from_who_published_them() -> None:
    sizes = {(figure.model, figure.quantization): figure.weights_bytes for figure in load_speed_figures()}
    assert sizes["qwen3.5-35b-a3b", "UD-Q3_K_XL"] == pytest.approx(16.59e9, rel=1e-3)
    assert sizes["qwen3.5-4b", "BF16"] == pytest.approx(8.42e9, rel=1e-3)


def test_another_file_says_by_its_version_what_its_tool_did(tmp_path: Path) -> None:
    lines = (SPEED_FOLDER / PUBLIC_FILE).read_text().splitlines()
    row = next(line for line in lines if "Llama-3.1-8B" in line and "RTX 4090" in line)
    row = row.replace("XiongjieDai/GPU-Benchmarks-on-LLM-Inference", "elsewhere")
    versions = ("b3100 abc", "b4000 abc", "b11434 abc")
    path = tmp_path / "more.csv"
    path.write_text("\n".join([lines[0], *(row.replace("May 2024 snapshot", version) for version in versions)]))
    found = [(one.version, one.dequantizes, one.flash_attention) for one in load_public_figures(path)]
    assert found == [("b3100", True, False), ("b4000", False, False), ("b11434", False, True)]


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InventoryError, match=r"public_results\.csv: cannot be read"):
        load_speed_figures(tmp_path)
    (tmp_path / PUBLIC_FILE).write_text("device,backend\nRTX 4090,llama.cpp/CUDA\n")
    with pytest.raises(InventoryError, match="a row cannot be read"):
        load_speed_figures(tmp_path)


def test_the_two_drivers_of_one_table_are_told_apart_by_where_their_rows_begin() -> None:
    vulkan = [figure for figure in load_speed_figures() if figure.runtime == "vulkan" and figure.depth == 0]
    speeds = {(one.model, one.quantization, one.test, one.driver): one.tokens_per_second for one in vulkan}
    assert speeds["glm-4.7-flash", "UD-Q8_K_XL", "pp", "amdvlk"] == 543.44
    assert speeds["glm-4.7-flash", "UD-Q8_K_XL", "pp", "radv"] == 1092.07
    # The same one is faster everywhere, so the split is right, whichever of the two is called what.
    pairs = [
        (speeds[model, quantization, test, "amdvlk"], speeds[model, quantization, test, "radv"])
        for model, quantization, test, driver in speeds
        if driver == "radv"
    ]
    prompts = [(slow, fast) for slow, fast in pairs if fast > 250]
    assert len(prompts) == 9
    assert all(slow < fast for slow, fast in prompts)


def test_a_driver_that_failed_at_depth_does_not_shift_the_rows_of_the_other() -> None:
    deep = [
        one for one in load_speed_figures() if (one.model, one.runtime) == ("glm-4.7-flash", "vulkan") and one.depth
    ]
    assert {one.driver for one in deep if one.quantization == "UD-Q8_K_XL"} == {"radv"}


def test_the_micro_batch_is_what_the_source_asked_for() -> None:
    found = {(one.runtime, one.depth > 0, one.micro_batch_tokens) for one in load_speed_figures() if one.driver != ""}
    assert found == {("vulkan", False, 0), ("vulkan", True, 512)}
    deep_rocm = [one for one in load_speed_figures() if one.runtime == "rocm" and one.depth]
    assert {one.micro_batch_tokens for one in deep_rocm} == {2048}


def test_optional_columns_say_what_a_tool_was_asked_for(tmp_path: Path) -> None:
    lines = (SPEED_FOLDER / PUBLIC_FILE).read_text().splitlines()
    row = next(line for line in lines if "Llama-3.1-8B" in line and "RTX 4090" in line)
    path = tmp_path / "more.csv"
    path.write_text(f"{lines[0]},driver,flags,client\n{row},,-fa 1 -ub 2048,http\n")
    (one,) = load_public_figures(path)
    assert (one.flash_attention, one.micro_batch_tokens, one.over_http) == (True, 2048, True)
