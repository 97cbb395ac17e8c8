"""A runner on a host whose NVML tells of two idle GPUs. Its arguments are those of `run-job`."""

import sys
from collections.abc import Mapping
from typing import Any

from fleet_agent.__main__ import main
from fleet_agent.probes import nvidia
from support.fake_nvml import FakeNvml, Utilization

GPU = {
    "nvmlDeviceGetTemperature": 40,
    "nvmlDeviceGetPowerUsage": 120_000,
    "nvmlDeviceGetUtilizationRates": Utilization(0),
    "nvmlDeviceGetComputeRunningProcesses": [],
}


def two_gpus() -> FakeNvml:
    devices: list[Mapping[str, Any]] = [
        {**GPU, "nvmlDeviceGetName": "NVIDIA H100", "nvmlDeviceGetUUID": f"GPU-{index}"} for index in range(2)
    ]
    return FakeNvml({"nvmlSystemGetDriverVersion": "580.0"}, devices)


nvidia._load = two_gpus
sys.argv[1:1] = ["run-job"]
main()
