"""Rows that speeds are fitted to: reference figures, and this fleet's own results."""

import pytest

from fleet_controller.choosing.devices import device_named
from fleet_controller.choosing.reference import (
    driver_of,
    own_speed,
    reference_speeds,
    runtime_of,
    uses_flash_attention,
)
from fleet_controller.choosing.terms import matrix_operations
from fleet_controller.choosing.work import DeviceFacts, ModelWork, Phase
from fleet_controller.results.columns import Metric, Result, Status
from fleet_inventory.speed_reference import load_speed_figures, load_speed_models
from support.result_rows import decode


def facts(name: str) -> DeviceFacts:
    found = device_named(name)
    assert found is not None
    return found


def model() -> ModelWork:
    return ModelWork.model_validate(load_speed_models()["qwen3.5-9b"].model_dump())


def own(**changes: object) -> Result:
    return decode(80.0).model_copy(update={"backend": "llama.cpp", "backend_version": "b11434", **changes})


def test_every_reference_figure_has_a_chip_and_a_model() -> None:
    figures = load_speed_figures()
    assert len(reference_speeds(figures, load_speed_models())) == len(figures)


def test_a_figure_of_a_chip_that_nobody_knows_is_left_out() -> None:
    figures = [load_speed_figures()[0].model_copy(update={"device": "RTX 9990"})]
    assert reference_speeds(figures, load_speed_models()) == ()


def test_core_counts_in_a_tables_name_choose_the_chip() -> None:
    assert facts("Apple M3 Max (40-core GPU)").bandwidth == 400e9
    assert facts("Apple M3 Max (30-core GPU)").bandwidth == 300e9


def test_geforce_cards_count_with_their_8_bit_rate_and_data_centre_cards_with_either() -> None:
    assert facts("NVIDIA GeForce RTX 4090").matrix_operations == 330.3e12
    assert facts("NVIDIA H200").matrix_operations == 989.5e12


def test_only_programs_for_its_own_generation_reach_all_of_hoppers_matrix_units() -> None:
    chip = facts("NVIDIA H100 80GB HBM3")
    row = own_speed(own(test_kind=Metric.PREFILL, prompt_tokens=512), model(), chip, 9.5e9)
    assert row is not None
    assert matrix_operations(row.cell) == pytest.approx(0.63 * 989.5e12)
    vllm = row.cell.model_copy(update={"engine": row.cell.engine.model_copy(update={"backend": "vllm"})})
    assert matrix_operations(vllm) == pytest.approx(989.5e12)


def test_a_result_of_ours_becomes_a_row() -> None:
    row = own_speed(own(generation_tokens=64, depth=8192), model(), facts("NVIDIA GeForce RTX 4090"), 9.5e9)
    assert row is not None
    assert (row.tokens_per_second, row.cell.tokens, row.cell.depth) == (80.0, 64, 8192)
    assert row.cell.phase is Phase.DECODE
    assert row.cell.engine.key == "llama.cpp/cuda"
    assert "run" in row.source


def test_results_that_say_nothing_about_one_request_on_one_device_are_no_rows() -> None:
    chip = facts("NVIDIA GeForce RTX 4090")
    for changes in (
        {"concurrency": 4},
        {"device_count": 2},
        {"test_kind": Metric.TIME_TO_FIRST_TOKEN},
        {"status": Status.CONTAMINATED, "mean": None},
        {"model": ""},
        {"provenance": "lab-notes.md:210"},
    ):
        assert own_speed(own(**changes), model(), chip, 9.5e9) is None, changes


def test_lm_studio_is_predicted_from_llama_cpp_whose_kernels_it_runs() -> None:
    row = own_speed(own(backend="lm-studio"), model(), facts("Apple M4"), 9.5e9)
    assert row is not None
    assert row.cell.engine.key == "llama.cpp/metal"
    assert row.cell.engine.micro_batch_tokens == 512


def test_the_runtime_is_what_llama_bench_says_else_the_makers() -> None:
    amd, apple = facts("AMD Radeon 8060S"), facts("Apple M4")
    assert runtime_of(amd, "Vulkan") == "vulkan"
    assert runtime_of(amd) == "rocm"
    assert runtime_of(apple, "MTL,BLAS") == "metal"


def test_flash_attention_is_as_asked_for_else_as_the_version_has_it() -> None:
    assert uses_flash_attention("llama.cpp", "llama-bench", "b8396", "") is False
    assert uses_flash_attention("llama.cpp", "llama-benchy", "b8396", "") is True
    assert uses_flash_attention("llama.cpp", "llama-bench", "b11434", "") is True
    assert uses_flash_attention("llama.cpp", "llama-bench", "b8396", "-ngl 99 -fa 1") is True
    assert uses_flash_attention("llama.cpp", "llama-bench", "b11434", "--flash-attn off") is False
    assert uses_flash_attention("llama.cpp", "llama-bench", "b8396", "-fa auto") is False
    assert uses_flash_attention("mlx-lm", "mlx_lm.benchmark", "0.31.1", "") is True


def test_the_driver_and_the_micro_batch_are_what_llama_bench_says() -> None:
    assert driver_of("AMD Radeon 8060S Graphics (RADV GFX1151)") == "radv"
    assert driver_of("Radeon 8060S Graphics (AMD open-source driver)") == "amdvlk"
    assert driver_of("NVIDIA H100 80GB HBM3") == ""
    chip = facts("AMD Radeon 8060S")
    asked = own(tool_fields={"gpu_info": "AMD Radeon 8060S (RADV GFX1151)", "backends": "Vulkan", "n_ubatch": 2048})
    row = own_speed(asked, model(), chip, 9.5e9)
    assert row is not None
    assert (row.cell.engine.driver, row.cell.engine.micro_batch_tokens) == ("radv", 2048)
    usual = own_speed(own(tool_fields={"n_ubatch": 512}), model(), chip, 9.5e9)
    assert usual is not None
    assert usual.cell.engine.micro_batch == 0


def test_a_row_is_as_sure_as_its_repetitions() -> None:
    """Three repetitions of 80 ± 20: the 95 % interval is 80 ± 49.7, which is 32 % for one deviation."""
    chip = facts("NVIDIA GeForce RTX 4090")
    noisy = own_speed(own(mean=80.0, deviation=20.0, repetitions=3, samples=()), model(), chip, 9.5e9)
    steady = own_speed(own(mean=80.0, deviation=0.2, repetitions=3, samples=()), model(), chip, 9.5e9)
    assert noisy is not None and noisy.deviation == pytest.approx(0.317, abs=0.002)
    assert steady is not None and steady.deviation < 0.01
