"""What counts as a disturbance, and what one waits for: from looks at stand-in devices and at real processes."""

import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fleet_agent.jobs.model import DeviceWatch
from fleet_agent.measuring.corpus import corpus
from fleet_agent.measuring.idle import causes_of, not_idle
from fleet_agent.measuring.processes import ForeignProcess, ProcessTime, ProcessWatch, own_processes, parse_stat
from fleet_agent.measuring.waiting import REPEAT_SECONDS, Reminder
from fleet_agent.measuring.watch import DeviceLooker, Look, Sampler, judge
from fleet_agent.steps.bench import is_stable
from support.fake_nvml import FakeNvml, Process, Utilization, rtx_4090

GPU = DeviceWatch(gpu_indices=(0,))
CPU = DeviceWatch(foreign_cpu_percent=50.0)


def look_at(device: dict[str, Any], watch: DeviceWatch = GPU, **more: Any) -> Look:
    with DeviceLooker(watch, nvml=FakeNvml(devices=[device]), **more) as looker:
        return looker.look()


def quiet(**changes: Any) -> dict[str, Any]:
    """An RTX 4090 on which nobody computes, at its power limit."""
    idle = {"nvmlDeviceGetComputeRunningProcesses": [], "nvmlDeviceGetUtilizationRates": Utilization(0),
            "nvmlDeviceGetCurrentClocksEventReasons": 0x4}  # fmt: skip
    return rtx_4090(**{**idle, **changes})


def cpu_look(percent: float) -> Look:
    return Look(0, 0.0, foreign_cpu=(ForeignProcess(7, "python", "alice", percent),) if percent else ())


def test_a_sample_says_what_the_device_does() -> None:
    document = look_at(quiet()).document()
    (device,) = document["devices"]
    assert device["power_watts"] == 431.25 and device["sm_clock_mhz"] == 2520 and device["temperature_celsius"] == 71
    assert device["throttle_reasons"] == ["sw-power-cap"]


def test_what_a_device_does_not_tell_is_absent() -> None:
    device = quiet()
    for name in ("nvmlDeviceGetPowerUsage", "nvmlDeviceGetCurrentClocksEventReasons"):
        del device[name]
    (told,) = look_at(device).document()["devices"]
    assert "power_watts" not in told and "throttle_reasons" not in told


def test_a_power_limit_is_part_of_the_machine_and_no_disturbance() -> None:
    look = look_at(quiet())
    assert judge([look, look], GPU) is None


def test_a_stranger_on_the_gpu_spoils_a_run_at_once() -> None:
    cause = judge([look_at(quiet(nvmlDeviceGetComputeRunningProcesses=[Process(1, 18_200_000_000)]))], GPU)
    assert cause is not None and "18.2 GB" in cause


def test_our_own_process_and_the_measured_server_do_not() -> None:
    import os

    device = quiet(nvmlDeviceGetComputeRunningProcesses=[Process(os.getpid(), 10**9)])
    assert judge([look_at(device)], GPU) is None
    device = quiet(nvmlDeviceGetComputeRunningProcesses=[Process(1, 10**9)])
    assert judge([look_at(device, allowed=lambda: {1})], GPU) is None
    assert judge([look_at(device, idle=lambda: {1})], GPU) is None


def test_a_device_that_is_too_hot_spoils_a_run_when_it_lasts() -> None:
    hot, cool = look_at(quiet(nvmlDeviceGetCurrentClocksEventReasons=0x40)), look_at(quiet())
    assert judge([hot, cool], GPU) is None and judge([cool, hot], GPU) is None
    cause = judge([cool, hot, hot], GPU)
    assert cause is not None and "hw-thermal-slowdown" in cause


def test_foreign_cpu_spoils_a_run_on_a_host_without_gpu_when_it_lasts() -> None:
    assert judge([cpu_look(100), cpu_look(0), cpu_look(100)], CPU) is None
    cause = judge([cpu_look(0), cpu_look(100), cpu_look(100)], CPU)
    assert cause is not None and "alice, python, 100 % of a core" in cause
    assert judge([cpu_look(40), cpu_look(40)], CPU) is None
    assert judge([cpu_look(100), cpu_look(100)], GPU) is None


@pytest.mark.parametrize(
    ("device", "said"),
    [
        (quiet(nvmlDeviceGetComputeRunningProcesses=[Process(1, 18_200_000_000)]), "busy: "),
        (quiet(nvmlDeviceGetUtilizationRates=Utilization(97)), "GPU 0 is busy (97 %)"),
        (quiet(nvmlDeviceGetCurrentClocksEventReasons=0x20), "sw-thermal-slowdown"),
    ],
)
def test_what_one_waits_for_is_said(device: dict[str, Any], said: str) -> None:
    reason = not_idle([look_at(device)] * 3, GPU)
    assert reason is not None and said in reason


def looks_with(temperatures: Sequence[int]) -> list[Look]:
    return [look_at(quiet(nvmlDeviceGetTemperature=one)) for one in temperatures]


def test_a_temperature_has_settled_when_it_stays() -> None:
    assert not_idle(looks_with([71, 66, 62]), GPU) is not None
    assert not_idle(looks_with([40]), GPU) is not None  # one look says nothing about a change
    assert not_idle(looks_with([71, 41, 40, 40]), GPU) is None


def test_cpu_load_of_others_is_waited_for() -> None:
    reason = not_idle([cpu_look(200)], CPU)
    assert reason is not None and "alice, python" in reason
    assert not_idle([cpu_look(10)], CPU) is None


def test_who_waits_is_told_when_a_program_is_new_and_else_every_ten_seconds() -> None:
    now = 100.0
    reminder = Reminder(lambda: now)
    assert reminder.due({"root python"})
    now += 0.5
    assert not reminder.due({"root python"})
    assert reminder.due({"root python", "alice gcc"})
    now += 0.5
    assert not reminder.due({"alice gcc"})  # it comes and goes: it was told
    now += REPEAT_SECONDS
    assert reminder.due({"root python"})


def test_figures_that_move_are_no_new_cause() -> None:
    one, other = (causes_of([look], not_idle([look], CPU) or "") for look in (cpu_look(60), cpu_look(99)))
    assert one == other == {"alice python"}
    warm = [
        causes_of(looks, not_idle(looks, GPU) or "") for looks in (looks_with([71, 66, 62]), looks_with([66, 62, 58]))
    ]
    assert warm[0] == warm[1]


def test_a_real_process_that_computes_is_seen_and_a_child_is_ours() -> None:
    watch = ProcessWatch()
    spin = [sys.executable, "-c", "while True: pass"]
    # A new session with a dead parent in between: nobody's child any more, as a colleague's process is not ours.
    quiet_session = "start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL"
    code = f"import subprocess; print(subprocess.Popen({spin!r}, {quiet_session}).pid)"
    stranger = int(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True).stdout)
    child = subprocess.Popen(spin)
    try:
        watch.look()
        deadline = time.monotonic() + 30
        found: tuple[ForeignProcess, ...] = ()
        while stranger not in {one.pid for one in found} and time.monotonic() < deadline:
            time.sleep(0.2)
            found = watch.look()
        seen = next(one for one in found if one.pid == stranger)
        assert seen.cpu_percent > 0 and seen.command.startswith("python")
        assert child.pid not in {one.pid for one in found}
        assert child.pid in watch.own_pids
        assert stranger not in {one.pid for one in watch.look(allowed={stranger})}
    finally:
        child.kill()
        child.wait()
        subprocess.run(["kill", "-9", str(stranger)], check=True)


def test_a_child_whose_parent_died_stays_ours() -> None:
    def row(pid: int, parent: int) -> ProcessTime:
        return ProcessTime(pid, parent, "1", 0.0, "x")

    before = own_processes({10: row(10, 1), 11: row(11, 10), 12: row(12, 11)}, {10}, ())
    after = own_processes({10: row(10, 1), 12: row(12, 1)}, {10}, before)
    assert (12, "1") in after


def test_a_name_with_parentheses_and_spaces() -> None:
    line = b"7 (a) b (c) S 3 7 7 0 -1 0 0 0 0 0 250 150 0 0 20 0 1 0 4711 0 0"
    assert parse_stat(7, line, 100) == ProcessTime(7, 3, "4711", 4.0, "a) b (c")


def test_the_sampler_reports_the_first_cause_once() -> None:
    said: list[str] = []
    device = quiet(nvmlDeviceGetComputeRunningProcesses=[Process(1, 10**9)])
    watch = DeviceWatch(gpu_indices=(0,), interval_seconds=0.02)
    with DeviceLooker(watch, nvml=FakeNvml(devices=[device])) as looker:
        sampler = Sampler(looker, said.append)
        sampler.start()
        deadline = time.monotonic() + 30
        while len(sampler.looks) < 3 and time.monotonic() < deadline:
            time.sleep(0.01)
        sampler.stop()
    assert len(sampler.looks) >= 3
    assert said == [sampler.cause]


def test_a_warm_up_is_over_when_two_runs_take_the_same_time() -> None:
    assert not is_stable([3.0]) and not is_stable([9.0, 3.0]) and is_stable([9.0, 3.0, 3.1])


def test_the_corpus_is_the_same_every_time_and_long_enough_for_the_deepest_test() -> None:
    assert corpus() == corpus()
    assert len(corpus()) > 4 * (65536 + 2048)


def test_a_path_is_hashed_once(tmp_path: Path) -> None:
    import hashlib
    import threading

    from fleet_agent.measuring.artifacts import measured_artifacts

    progress: list[int] = []
    context: Any = SimpleNamespace(
        layout=SimpleNamespace(machine_dir=tmp_path), cancelled=threading.Event(),
        progress=lambda done, *_: progress.append(done),
    )  # fmt: skip
    model = tmp_path / "m.gguf"
    model.write_bytes(b"weights")
    (first,) = measured_artifacts((str(model),), context)
    assert first == {"path": str(model), "size_bytes": 7, "sha256": hashlib.sha256(b"weights").hexdigest()}
    assert measured_artifacts((str(model),), context) == [first] and progress == [7]
    model.write_bytes(b"changed!")
    assert measured_artifacts((str(model),), context)[0]["sha256"] != first["sha256"]
