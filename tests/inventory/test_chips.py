"""The table of chips."""

import pytest

from fleet_inventory.chips import ChipKind, find_chip, load_chips


@pytest.mark.parametrize(
    ("device_name", "gpu_cores", "bandwidth"),
    [
        ("NVIDIA GeForce RTX 4090", None, 1008),
        ("NVIDIA GeForce RTX 3090 Ti", None, 1008),
        ("NVIDIA H100 80GB HBM3", None, 3350),
        ("NVIDIA H200", None, 4800),
        ("NVIDIA RTX 6000 Ada Generation", None, 960),
        ("Apple M4", 10, 120),
        ("Apple M4 Max", 40, 546),
        ("Apple M4 Max", 32, 410),
        ("Apple M4 Max", None, 410),
    ],
)
def test_a_chip_is_found_by_the_drivers_name(device_name: str, gpu_cores: int | None, bandwidth: float) -> None:
    chip = find_chip(device_name, gpu_cores)
    assert chip is not None
    assert chip.bandwidth_gb_per_second == bandwidth


def test_an_unknown_chip_is_none() -> None:
    assert find_chip("NVIDIA GeForce RTX 4090 D") is None
    assert find_chip("") is None


def test_every_chip_is_named_once_and_has_a_source() -> None:
    chips = load_chips()
    assert len({(chip.name, chip.gpu_cores) for chip in chips}) == len(chips)
    for chip in chips:
        assert chip.source
        assert chip.memory_gb[0] <= chip.memory_gb[1]
        assert (chip.kind == ChipKind.METAL) == chip.name.startswith("Apple")
