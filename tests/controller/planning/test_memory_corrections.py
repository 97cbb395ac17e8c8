"""Predictions corrected by what servers took: robust, bounded, and said."""

import sqlite3
from pathlib import Path

import pytest

from fleet_controller.backends import BACKENDS
from fleet_controller.domain.facts import GpuFacts, HostFacts, HostLayout
from fleet_controller.domain.memory import MemoryObservation
from fleet_controller.domain.plan import FitLine
from fleet_controller.domain.resolved import ModelArtifact
from fleet_controller.domain.services import ServiceSpec, ServiceStatus
from fleet_controller.memory_store import load_observations, save_observation
from fleet_controller.planning.devices import memory_pool
from fleet_controller.planning.fit import judge_fit
from fleet_controller.planning.fitting.correction import Correction, Corrections, correction_from
from fleet_controller.planning.fitting.observing import observation_of
from fleet_controller.state import MIGRATIONS, StateDatabase

MIB = 1 << 20


def seen(
    excess_mib: int, *, artifact: str = "a", at: int = 0, at_least: bool = False, buffers: str = "", version: str = "b1"
) -> MemoryObservation:
    return MemoryObservation(
        backend="llama.cpp", version=version, device="1 x RTX", artifact=artifact, context_tokens=4096, slots=0,
        predicted_bytes=1000 * MIB, observed_bytes=(1000 + excess_mib) * MIB, at_least=at_least, buffers=buffers,
        observed_unix_ms=at,
    )  # fmt: skip


def test_the_median_counts_and_one_strange_start_does_not() -> None:
    found = correction_from([seen(50, artifact="a"), seen(60, artifact="b"), seen(9000, artifact="c")])
    assert found == Correction(excess_bytes=60 * MIB, observations=3)
    assert found.text() == "from 3 starts of this build on this device"


def test_one_service_started_often_has_one_vote() -> None:
    often = [seen(500, artifact="a", at=moment) for moment in range(9)]
    assert correction_from([*often, seen(10, artifact="b"), seen(20, artifact="c")]).excess_bytes == 20 * MIB
    newest = correction_from([seen(500, at=1), seen(30, at=2)])
    assert newest == Correction(excess_bytes=30 * MIB, observations=1)


def test_it_is_bounded() -> None:
    large = Correction(excess_bytes=5000 * MIB, observations=4)
    assert large.of(1000 * MIB) == 100 * MIB
    assert Correction(excess_bytes=-5000 * MIB, observations=4).of(1000 * MIB) == -100 * MIB


def test_an_estimate_becomes_smaller_only_after_several_starts() -> None:
    assert correction_from([seen(-40, artifact="a"), seen(-40, artifact="b")]).of(1000 * MIB) == 0
    assert correction_from([seen(-40, artifact=name) for name in "abc"]).of(1000 * MIB) == -40 * MIB
    assert correction_from([seen(40)]).of(1000 * MIB) == 40 * MIB


def test_memory_that_is_not_yet_used_lowers_nothing() -> None:
    told = [seen(-40, artifact=name, at_least=True, buffers="CPU KV 1 MiB") for name in "abc"]
    assert correction_from(told).of(1000 * MIB) == 0
    assert correction_from([seen(40, at_least=True, buffers="CPU KV 1 MiB")]).of(1000 * MIB) == 40 * MIB


def test_resident_memory_alone_teaches_nothing() -> None:
    """It lacks what is not yet touched, and has pages of the file that can be dropped."""
    assert correction_from([seen(900, artifact=name, at_least=True) for name in "abc"]) == Correction()


def test_another_build_or_device_learns_nothing() -> None:
    known = Corrections(observations=(seen(50),))
    assert known.for_engine("llama.cpp", "b1", "1 x RTX").observations == 1
    assert known.for_engine("llama.cpp", "b2", "1 x RTX").observations == 0
    assert known.for_engine("llama.cpp", "b1", "2 x RTX").observations == 0


def test_a_prediction_says_that_it_was_corrected() -> None:
    gpu = GpuFacts(name="RTX", memory_total_bytes=64 << 30, memory_free_bytes=60 << 30)
    layout = HostLayout(state_dir="/s", engines_dir="/e", hf_home="/h")
    facts = HostFacts(gpus=(gpu,), layout=layout, observed_memory=(seen(50), seen(70, artifact="b")))
    pool = memory_pool(facts, (gpu,), ())
    assert pool.device == "1 x RTX"
    use = BACKENDS["llama.cpp"].memory_use(4096, 0, True)
    artifact = ModelArtifact(format="gguf", weights_bytes=8 << 30)
    correction = pool.corrections.for_engine("llama.cpp", "b1", pool.device)
    plain = judge_fit(artifact, None, use, pool, offloads=True)
    corrected = judge_fit(artifact, None, use, pool, offloads=True, correction=correction)
    assert corrected.needed_bytes - plain.needed_bytes == 60 * MIB
    line = next(line for line in corrected.lines if line.what == "correction")
    assert line.arithmetic == "from 2 starts of this build on this device"


LOG = """0.00.1 I load_tensors:        CUDA0 model buffer size =  4000.00 MiB
0.00.1 I load_tensors:   CPU_Mapped model buffer size =   500.00 MiB
0.00.2 I llama_kv_cache:      CUDA0 KV buffer size =   100.00 MiB
0.00.3 I sched_reserve:  CUDA_Host compute buffer size =    20.00 MiB
"""
LINES = (FitLine(what="weights", bytes=4000 * MIB), FitLine(what="reserve", bytes=1024 * MIB),
         FitLine(what="correction", bytes=7 * MIB))  # fmt: skip


def status(gpus: tuple[int, ...] = (), **fields: int) -> ServiceStatus:
    spec = ServiceSpec(
        name="m", backend="llama.cpp", backend_version="b1", model="o/r", quantization="Q8_0", context_length=4096,
        gpu_indices=gpus,
    )  # fmt: skip
    return ServiceStatus(spec=spec).model_copy(update=fields)


def test_an_observation_stands_beside_what_was_predicted_without_reserve_and_correction() -> None:
    found = observation_of(LINES, status(gpus=(0,), gpu_memory_bytes=4300 * MIB), "1 x RTX", LOG)
    assert found is not None
    assert (found.predicted_bytes, found.observed_bytes, found.at_least) == (4000 * MIB, 4300 * MIB, False)
    assert (found.artifact, found.context_tokens) == ("o/r Q8_0", 4096)
    assert found.buffers == "CUDA0 model 3.9 GiB, CUDA0 KV 100 MiB"


def test_on_the_cpu_the_log_tells_of_memory_that_is_not_touched_yet() -> None:
    assert (found := observation_of(LINES, status(resident_bytes=300 * MIB), "cpu", LOG)) is not None
    assert (found.observed_bytes, found.at_least) == (520 * MIB, True)
    assert (found := observation_of(LINES, status(resident_bytes=300 * MIB), "cpu", "")) is not None
    assert (found.observed_bytes, found.at_least) == (300 * MIB, True)


def test_weights_in_another_order_count_once() -> None:
    log = """load_tensors:   CPU_Mapped model buffer size =  2521.00 MiB
load_tensors:   CPU_REPACK model buffer size =  1672.00 MiB
llama_kv_cache:        CPU KV buffer size =   128.00 MiB
"""
    found = observation_of(LINES, status(resident_bytes=4400 * MIB), "cpu", log)
    assert found is not None and found.observed_bytes == (2521 + 128) * MIB


@pytest.mark.parametrize(
    "lines", [(), (*LINES, FitLine(what="taken beforehand", bytes=1))], ids=["nothing predicted", "takes a fixed part"]
)
def test_where_nothing_can_be_learnt(lines: tuple[FitLine, ...]) -> None:
    assert observation_of(lines, status(gpus=(0,), gpu_memory_bytes=4300 * MIB), "d", LOG) is None
    assert observation_of(LINES, status(gpus=(0,)), "d", LOG) is None


def test_observations_are_kept_and_an_old_database_is_taken_along(tmp_path: Path) -> None:
    path = tmp_path / "fleet.db"
    known = [migration.__name__ for migration in MIGRATIONS].index("_create_memory_observations")
    with sqlite3.connect(path) as connection:
        for migration in MIGRATIONS[:known]:
            migration(connection)
        connection.execute("INSERT INTO plans VALUES ('p', 1, 'body')")
        connection.execute(f"PRAGMA user_version = {known}")
    database = StateDatabase(path)
    save_observation(database, seen(10, at=2))
    save_observation(database, seen(30, artifact="b", at=1))
    save_observation(database, seen(20, at=3))  # the same start again: it takes the first one's place
    assert [item.observed_bytes // MIB for item in load_observations(database)] == [1030, 1020]
    assert database.load_plan("p") == "body"
    database.close()
