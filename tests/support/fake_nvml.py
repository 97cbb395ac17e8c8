"""An NVML that answers what a test says, through the same names and errors as pynvml."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Memory:
    total: int
    free: int
    used: int


@dataclass
class Utilization:
    gpu: int
    memory: int = 0


@dataclass
class Process:
    pid: int
    usedGpuMemory: int | None


@dataclass
class FakeNvml:
    """answers: NVML function name -> its value, for calls without a device; devices: the same, one dict a device.

    What is not named is not supported, as on many real devices. `opened` counts nvmlInit against nvmlShutdown.
    """

    answers: Mapping[str, Any] = field(default_factory=dict)
    devices: list[Mapping[str, Any]] = field(default_factory=list)
    init_error: Exception | None = None
    opened: int = 0

    NVML_CLOCK_SM = 1
    NVML_CLOCK_MEM = 2
    NVML_TEMPERATURE_GPU = 0

    class NVMLError(Exception):
        pass

    class NVMLError_LibraryNotFound(NVMLError):
        pass

    class NVMLError_DriverNotLoaded(NVMLError):
        pass

    class NVMLError_LibRmVersionMismatch(NVMLError):
        pass

    class NVMLError_NotSupported(NVMLError):
        pass

    def nvmlInit(self) -> None:
        if self.init_error is not None:
            raise self.init_error
        self.opened += 1

    def nvmlShutdown(self) -> None:
        self.opened -= 1

    def nvmlDeviceGetCount(self) -> int:
        return len(self.devices)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> Mapping[str, Any]:
        return self.devices[index]

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("nvml"):
            raise AttributeError(name)

        def answer(*arguments: Any) -> Any:
            known = arguments[0] if arguments and isinstance(arguments[0], dict) else self.answers
            key = name if name != "nvmlDeviceGetClockInfo" else f"{name}:{arguments[1]}"
            if key not in known:
                raise self.NVMLError_NotSupported("Not Supported")
            return known[key]

        return answer


def rtx_4090(**changes: Any) -> dict[str, Any]:
    """A device that answers every question, with the figures of an RTX 4090 at its power limit."""
    return {
        "nvmlDeviceGetUUID": "GPU-00000000-0000-0000-0000-000000004090",
        "nvmlDeviceGetName": "NVIDIA GeForce RTX 4090",
        "nvmlDeviceGetMemoryInfo": Memory(25_757_220_864, 5_368_709_120, 20_388_511_744),
        "nvmlDeviceGetCudaComputeCapability": (8, 9),
        "nvmlDeviceGetEnforcedPowerLimit": 450_000,
        "nvmlDeviceGetPowerUsage": 431_250,
        "nvmlDeviceGetClockInfo:1": 2520,
        "nvmlDeviceGetClockInfo:2": 10501,
        "nvmlDeviceGetTemperature": 71,
        "nvmlDeviceGetUtilizationRates": Utilization(99),
        "nvmlDeviceGetCurrentClocksEventReasons": 0x4 | 0x20,
        "nvmlDeviceGetPersistenceMode": 1,
        "nvmlDeviceGetComputeRunningProcesses": [Process(4711, 18_200_000_000)],
        "nvmlDeviceGetGraphicsRunningProcesses": [Process(900, 50_000_000)],
        **changes,
    }
