"""The NVIDIA probe over an NVML that answers what each test says."""

import dataclasses
import json
import os
import pwd
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fleet_agent.probes.model import GpuFacts, GpuProcess, NoData, NvidiaDriverFacts
from fleet_agent.probes.nvidia import (
    Owner,
    ProcessesUnknown,
    RawGpu,
    RawNvidia,
    RawProcess,
    assemble,
    foreign_gpu_processes,
    process_owner,
    read_facts,
    read_raw,
    throttle_names,
)
from support.fake_nvml import FakeNvml, Process, rtx_4090

DRIVER = {"nvmlSystemGetDriverVersion": "580.82.07", "nvmlSystemGetCudaDriverVersion_v2": 13000}
NOBODY = Owner()


def test_every_fact_of_a_device_that_tells_everything() -> None:
    nvml = FakeNvml(DRIVER, [rtx_4090(nvmlDeviceGetMigMode=(1, 1))])
    owners = {4711: Owner("alice", "python3", 1_700_000_000_000), 900: Owner("root", "Xorg", 1_600_000_000_000)}
    facts = assemble(read_raw(nvml), owners.__getitem__, own_pids={900})
    assert facts.driver == NvidiaDriverFacts("580.82.07", "13.0")
    assert facts.gpus == (
        GpuFacts(
            index=0,
            uuid="GPU-00000000-0000-0000-0000-000000004090",
            name="NVIDIA GeForce RTX 4090",
            memory_total_bytes=25_757_220_864,
            memory_free_bytes=5_368_709_120,
            memory_used_bytes=20_388_511_744,
            compute_capability_major=8,
            compute_capability_minor=9,
            power_limit_watts=450.0,
            power_draw_watts=431.25,
            sm_clock_mhz=2520,
            memory_clock_mhz=10501,
            temperature_celsius=71,
            utilization_percent=99,
            throttle_reasons=("sw-power-cap", "sw-thermal-slowdown"),
            throttle_reasons_known=True,
            persistence_mode=True,
            mig_enabled=True,
            processes=(
                GpuProcess(900, 50_000_000, "root", "Xorg", 1_600_000_000_000, ours=True, compute=False),
                GpuProcess(4711, 18_200_000_000, "alice", "python3", 1_700_000_000_000),
            ),
            processes_known=True,
        ),
    )


def test_what_a_real_h100_answered() -> None:
    """Captured through read_raw() on a host with one process that held 2 GiB; only the UUID was changed."""
    file = Path(__file__).parent / "data" / "nvml_h100_80gb_driver_580.json"
    document = json.loads(file.read_text())
    (device,) = document["gpus"]
    for name in ("compute_processes", "graphics_processes"):
        device[name] = tuple(RawProcess(**one) for one in device[name])
    device["memory"], device["compute_capability"] = tuple(device["memory"]), tuple(device["compute_capability"])
    facts = assemble(RawNvidia(**{**document, "gpus": (RawGpu(**device),)}), lambda pid: Owner("root", "python3", 1))
    assert facts.driver == NvidiaDriverFacts("580.159.04", "13.0")
    assert facts.gpus == (
        GpuFacts(
            index=0,
            uuid="GPU-00000000-0000-0000-0000-0000000000a1",
            name="NVIDIA H100 80GB HBM3",
            memory_total_bytes=85_520_809_984,
            memory_free_bytes=82_221_137_920,
            memory_used_bytes=3_299_672_064,
            compute_capability_major=9,
            compute_capability_minor=0,
            power_limit_watts=700.0,
            power_draw_watts=116.123,
            sm_clock_mhz=1980,
            memory_clock_mhz=2619,
            temperature_celsius=37,
            utilization_percent=0,
            throttle_reasons=(),
            throttle_reasons_known=True,
            persistence_mode=True,
            mig_enabled=False,
            processes=(GpuProcess(415, 2_787_115_008, "root", "python3", 1),),
            processes_known=True,
        ),
    )


@pytest.mark.parametrize(
    ("question", "absent"),
    [
        ("nvmlDeviceGetMemoryInfo", {"memory_total_bytes", "memory_free_bytes", "memory_used_bytes"}),
        ("nvmlDeviceGetCudaComputeCapability", {"compute_capability_major", "compute_capability_minor"}),
        ("nvmlDeviceGetEnforcedPowerLimit", {"power_limit_watts"}),
        ("nvmlDeviceGetPowerUsage", {"power_draw_watts"}),
        ("nvmlDeviceGetClockInfo:1", {"sm_clock_mhz"}),
        ("nvmlDeviceGetClockInfo:2", {"memory_clock_mhz"}),
        ("nvmlDeviceGetTemperature", {"temperature_celsius"}),
        ("nvmlDeviceGetUtilizationRates", {"utilization_percent"}),
        ("nvmlDeviceGetPersistenceMode", {"persistence_mode"}),
        ("nvmlDeviceGetMigMode", {"mig_enabled"}),
        ("nvmlDeviceGetCurrentClocksEventReasons", {"throttle_reasons", "throttle_reasons_known"}),
        ("nvmlDeviceGetComputeRunningProcesses", {"processes", "processes_known"}),
        ("nvmlDeviceGetUUID", {"uuid"}),
        ("nvmlDeviceGetName", {"name"}),
    ],
)
def test_one_refused_question_costs_that_fact_alone(question: str, absent: set[str]) -> None:
    whole = rtx_4090(nvmlDeviceGetMigMode=(0, 0))
    partial = {name: value for name, value in whole.items() if name != question}
    (full,) = assemble(read_raw(FakeNvml(DRIVER, [whole])), lambda pid: NOBODY).gpus
    (less,) = assemble(read_raw(FakeNvml(DRIVER, [partial])), lambda pid: NOBODY).gpus
    changed = {
        field.name for field in dataclasses.fields(GpuFacts) if getattr(full, field.name) != getattr(less, field.name)
    }
    assert changed == absent
    for name in absent - {"uuid", "name", "throttle_reasons", "processes"}:
        assert getattr(less, name) in (None, False)
    assert less.memory_free_bytes != 0


def test_a_device_that_tells_nothing_has_nothing_but_its_index() -> None:
    facts = assemble(read_raw(FakeNvml({}, [{}])), lambda pid: NOBODY)
    assert facts.gpus == (GpuFacts(index=0),)
    assert facts.driver == NvidiaDriverFacts(None, None)


def test_older_drivers_are_asked_by_the_old_name_for_throttle_reasons() -> None:
    device = rtx_4090(nvmlDeviceGetCurrentClocksThrottleReasons=0x40)
    del device["nvmlDeviceGetCurrentClocksEventReasons"]
    (gpu,) = assemble(read_raw(FakeNvml(DRIVER, [device])), lambda pid: NOBODY).gpus
    assert gpu.throttle_reasons == ("hw-thermal-slowdown",)


def test_the_power_limit_that_is_set_stands_in_for_the_enforced_one() -> None:
    device = rtx_4090(nvmlDeviceGetPowerManagementLimit=350_000)
    del device["nvmlDeviceGetEnforcedPowerLimit"]
    (gpu,) = assemble(read_raw(FakeNvml(DRIVER, [device])), lambda pid: NOBODY).gpus
    assert gpu.power_limit_watts == 350.0


def test_no_throttling_is_a_known_fact() -> None:
    (gpu,) = assemble(
        read_raw(FakeNvml(DRIVER, [rtx_4090(nvmlDeviceGetCurrentClocksEventReasons=0)])), lambda pid: NOBODY
    ).gpus
    assert gpu.throttle_reasons == () and gpu.throttle_reasons_known


def test_throttle_names() -> None:
    assert throttle_names(0) == ()
    assert throttle_names(0x1) == ("gpu-idle",)
    assert throttle_names(0x88) == ("hw-slowdown", "hw-power-brake-slowdown")
    assert throttle_names(0x1000) == ("bit-0x1000",)


def test_a_process_in_both_lists_is_one_process_that_computes() -> None:
    device = rtx_4090(
        nvmlDeviceGetComputeRunningProcesses=[Process(5, None)],
        nvmlDeviceGetGraphicsRunningProcesses=[Process(5, 700)],
    )
    (gpu,) = assemble(read_raw(FakeNvml(DRIVER, [device])), lambda pid: NOBODY).gpus
    assert gpu.processes == (GpuProcess(5, 700, compute=True),)


def test_cuda_versions() -> None:
    for number, text in ((12040, "12.4"), (13000, "13.0"), (11080, "11.8")):
        nvml = FakeNvml({"nvmlSystemGetCudaDriverVersion_v2": number})
        assert assemble(read_raw(nvml), lambda pid: NOBODY).driver.cuda_version == text


@pytest.mark.parametrize("error", [FakeNvml.NVMLError_LibraryNotFound("x"), FakeNvml.NVMLError_DriverNotLoaded("x")])
def test_no_driver_is_no_data(error: Exception) -> None:
    nvml = FakeNvml(init_error=error)
    with pytest.raises(NoData):
        read_facts(nvml)
    assert foreign_gpu_processes([], nvml=nvml) == ()


def test_a_driver_updated_under_its_module_is_a_failure_that_says_so() -> None:
    nvml = FakeNvml(init_error=FakeNvml.NVMLError_LibRmVersionMismatch("Driver/library version mismatch"))
    with pytest.raises(RuntimeError, match="reboot the host"):
        read_facts(nvml)


def test_nvml_is_closed_again_after_each_reading() -> None:
    nvml = FakeNvml(DRIVER, [rtx_4090()])
    read_facts(nvml)
    foreign_gpu_processes([0], nvml=nvml)
    assert nvml.opened == 0


def test_foreign_processes_are_those_that_compute_and_are_not_ours() -> None:
    devices = [
        rtx_4090(nvmlDeviceGetComputeRunningProcesses=[Process(11, 5), Process(12, 9), Process(13, None)]),
        rtx_4090(nvmlDeviceGetComputeRunningProcesses=[Process(21, 7)]),
    ]
    nvml = FakeNvml(DRIVER, list(devices))
    assert [one.pid for one in foreign_gpu_processes([0], own_pids=[11], nvml=nvml)] == [12, 13]
    assert [one.pid for one in foreign_gpu_processes([1], nvml=nvml)] == [21]
    assert [one.pid for one in foreign_gpu_processes([], nvml=nvml)] == [12, 21, 11, 13]
    assert foreign_gpu_processes([7], nvml=nvml) == ()


def test_a_driver_that_does_not_list_processes_is_not_taken_for_an_idle_device() -> None:
    silent = rtx_4090()
    del silent["nvmlDeviceGetComputeRunningProcesses"]
    nvml = FakeNvml(DRIVER, [rtx_4090(), silent])
    with pytest.raises(ProcessesUnknown, match="GPU 1"):
        foreign_gpu_processes([0, 1], nvml=nvml)
    assert [one.pid for one in foreign_gpu_processes([0], nvml=nvml)] == [4711]


@pytest.mark.skipif(sys.platform != "linux", reason="process owners are read from /proc")
def test_the_owner_of_a_real_process() -> None:
    before = time.time()
    child = subprocess.Popen(
        [sys.executable, "-c", "print(flush=True); input()"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert child.stdout is not None
    try:
        child.stdout.readline()
        owner = process_owner(child.pid)
        assert owner.user == pwd.getpwuid(os.getuid()).pw_name
        assert owner.command is not None and owner.command.startswith("python")
        assert owner.started_unix_ms is not None
        assert abs(owner.started_unix_ms / 1000 - before) < 60
    finally:
        child.kill()
        child.wait()
    assert process_owner(child.pid) == Owner()
