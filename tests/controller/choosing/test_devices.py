"""Devices for predictions: those of the inventory, and guesses from a name."""

import pytest

from fleet_controller.choosing.devices import device_named, known_device
from fleet_inventory.chips import ChipKind


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("NVIDIA GeForce RTX 9990", ChipKind.CUDA),
        ("Tesla V100-SXM2-32GB", ChipKind.CUDA),
        ("NVIDIA Jetson Thor", ChipKind.CUDA_UMA),
        ("AMD Radeon RX 9999 XT", ChipKind.ROCM),
        ("AMD Radeon 780M Graphics", ChipKind.ROCM_UMA),
        ("Apple M9 Max", ChipKind.METAL),
        ("AMD EPYC 9554 64-Core Processor", ChipKind.CPU),
        ("13th Gen Intel(R) Core(TM) i9-13900K", ChipKind.CPU),
        ("AMD RYZEN AI MAX+ 395 w/ Radeon 8060S", ChipKind.CPU),
    ],
)
def test_what_nobody_knows_is_guessed_from_its_name_and_marked(name: str, kind: ChipKind) -> None:
    assert known_device(name) is None
    found = device_named(name)
    assert found is not None
    assert (found.name, found.kind, found.guessed) == (name, kind, True)
    assert "calibrate" in found.source[0]


def test_a_name_that_says_nothing_gives_nothing() -> None:
    assert device_named("") is None
    assert device_named("a thing") is None


def test_what_the_inventory_has_is_no_guess() -> None:
    found = device_named("NVIDIA GeForce RTX 4090")
    assert found is not None
    assert not found.guessed
    assert found == known_device("RTX 4090")


def test_a_server_has_more_memory_channels_the_more_cores_it_has() -> None:
    bandwidths = []
    for name in (
        "AMD Ryzen 9 9950X 16-Core Processor",
        "AMD EPYC 9354 32-Core Processor",
        "AMD EPYC 9554 64-Core Processor",
    ):
        found = device_named(name)
        assert found is not None
        bandwidths.append(found.bandwidth)
    assert bandwidths == sorted(bandwidths)
    assert bandwidths[0] < 100e9 < bandwidths[-1] < 500e9
