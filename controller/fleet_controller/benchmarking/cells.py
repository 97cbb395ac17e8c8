"""A cell before it runs: what identifies it, the job that measures it, and the rows that come of it. Pure."""

import hashlib
import json
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from fleet_controller.benchmarking.clients import CLIENTS
from fleet_controller.benchmarking.energy import (
    benchy_intervals,
    joules_per_token,
    llama_bench_intervals,
    power_line,
)
from fleet_controller.benchmarking.parsers import Row
from fleet_controller.benchmarking.suites import Part
from fleet_controller.domain.base import EnvironmentVariable, Frozen
from fleet_controller.domain.benches import BenchCell
from fleet_controller.domain.facts import HostFacts
from fleet_controller.domain.steps import JobSpec, Step
from fleet_controller.results.columns import DeviceSample, Metric, Result, Run, Status, test_name

CELL_HEX_DIGITS = 16


class Identity(Frozen):
    """Everything known before a run that makes two runs comparable; the columns are those of results' fingerprint."""

    host: str
    machine_id: str
    chip: str
    device_count: int
    driver_version: str
    runtime_version: str
    os_name: str
    power_limit_watts: float | None
    persistence_mode: bool | None
    backend: str
    backend_version: str
    install_key: str
    model: str
    quantization: str
    artifact: str
    artifact_digest: str
    suite: str
    client: str
    client_version: str
    flags: str
    part: Part

    @property
    def cell_id(self) -> str:
        """16 hex digits. The suite's name is no part of it, since the same tests are the same tests; neither are
        versions, which the install's key says better: adopted binaries tell theirs only once they have run."""
        left_out = {"suite", "backend_version", "client_version"}
        text = json.dumps(self.model_dump(mode="json", exclude=left_out), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:CELL_HEX_DIGITS]


class PlannedCell(Frozen):
    """A cell as shown, with what is needed to run it. `ordinals` are the runs still to do, counted from 1.

    `run_seconds` is the estimate of one run, `weights_bytes` what the model's file has.
    """

    shown: BenchCell
    identity: Identity | None = None
    steps: tuple[Step, ...] = ()
    environment: tuple[EnvironmentVariable, ...] = ()
    disk_needed_bytes: int = 0
    ordinals: tuple[int, ...] = ()
    discarded: int = 0
    run_seconds: float = 0.0
    weights_bytes: int = 0

    @property
    def gpu_indices(self) -> tuple[int, ...]:
        """The devices that it has for itself; empty = the whole host."""
        return self.shown.gpu_indices

    def job(self, ordinal: int) -> JobSpec:
        """The durable job of one run; the same cell and ordinal is the same job, whoever asks for it."""
        shown = self.shown
        return JobSpec(
            job_id=run_id(shown.cell_id, ordinal),
            title=f"bench {shown.model} {shown.quantization}".strip(),
            steps=self.steps,
            disk_needed_bytes=self.disk_needed_bytes,
            environment=self.environment,
        )


def run_id(cell_id: str, ordinal: int) -> str:
    return f"bench-{cell_id}-r{ordinal}"


def chip_of(facts: HostFacts, gpu_indices: Sequence[int]) -> str:
    """The GPU that computes, else the Apple chip, else the CPU."""
    gpu = next((gpu for gpu in facts.gpus if gpu.index in gpu_indices), None)
    if gpu is not None:
        return gpu.name
    if facts.apple is not None and facts.apple.chip:
        return facts.apple.chip
    return facts.cpu.model


def test_names(part: Part) -> tuple[str, ...]:
    """ "pp1024", "tg64 @ d8192 (c2)", in the order of the tools."""
    return tuple(
        test_name(kind, part.prompt_tokens if kind is Metric.PREFILL else 0,
                  part.generation_tokens if kind is Metric.DECODE else 0, depth, users)
        for depth in part.depths
        for users in part.concurrency
        for kind in (Metric.PREFILL, Metric.DECODE)
        if (part.prompt_tokens if kind is Metric.PREFILL else part.generation_tokens)
    )  # fmt: skip


def rows_of(cell: PlannedCell, result: Mapping[str, Any]) -> tuple[Row, ...]:
    """The tool's rows and, where power is known, the energy of its decode tests. Raises BenchOutputError."""
    assert cell.identity is not None
    part = cell.identity.part
    rows = CLIENTS[cell.identity.client].parse(result, part, cell.discarded)
    return (*rows, *_energy_rows(cell, rows, result))


def _energy_rows(cell: PlannedCell, rows: tuple[Row, ...], result: Mapping[str, Any]) -> list[Row]:
    assert cell.identity is not None
    part, line = cell.identity.part, power_line(result.get("samples", ()))
    if len(line) < 2:
        return []
    depths: dict[int, list[tuple[float, float]]] = {}
    started = int(result["started_unix_ms"]) / 1000
    if cell.identity.client == "llama-bench":
        seconds = int(result["finished_unix_ms"]) / 1000 - started
        found = llama_bench_intervals(result.get("marks", ()), seconds, cell.discarded)
        # llama-bench numbers its tests in the order of its rows.
        tests = [row for row in rows if row.kind in (Metric.PREFILL, Metric.DECODE)]
        depths = {tests[number - 1].depth: intervals for number, intervals in found.items() if number <= len(tests)}
    elif cell.identity.client == "llama-benchy":
        depths = benchy_intervals(str(result.get("files", {}).get("progress", "")), started)
    energies = {depth: joules_per_token(line, found, part.generation_tokens) for depth, found in depths.items()}
    return [
        Row(kind=Metric.ENERGY, generation_tokens=part.generation_tokens, depth=depth, mean=joules,
            repetitions=len(depths[depth]))
        for depth, joules in energies.items()
        if joules is not None
    ]  # fmt: skip


def results_of(cell: PlannedCell, job_id: str, run: str, result: Mapping[str, Any]) -> list[Result]:
    """The rows as results: measured ones, or one of each test without a figure where every run was void."""
    void = result["outcome"] == "contaminated"
    rows = [] if void else rows_of(cell, result)
    common = _common(cell, job_id, run, result)
    if void:
        assert cell.identity is not None
        part = cell.identity.part
        common |= {"status": Status.CONTAMINATED, "cause": str(result.get("cause", ""))}
        return [
            Result(**common, test_kind=kind, depth=depth, concurrency=users,
                   prompt_tokens=part.prompt_tokens if kind is Metric.PREFILL else 0,
                   generation_tokens=part.generation_tokens if kind is Metric.DECODE else 0)
            for depth in part.depths
            for users in part.concurrency
            for kind in (Metric.PREFILL, Metric.DECODE)
        ]  # fmt: skip
    versions = _versions(cell, result)
    return [
        Result(
            **{**common, **versions},
            test_kind=row.kind,
            prompt_tokens=row.prompt_tokens,
            generation_tokens=row.generation_tokens,
            depth=row.depth,
            concurrency=row.concurrency,
            kv_type=_kv_type(row),
            backend_commit=str(row.tool_fields.get("build_commit", "")),
            repetitions=row.repetitions,
            mean=row.mean,
            deviation=row.deviation,
            deviation_kind=row.deviation_kind,
            samples=row.samples,
            tool_fields=row.tool_fields,
        )
        for row in rows
    ]


def _versions(cell: PlannedCell, result: Mapping[str, Any]) -> dict[str, str]:
    """The version that an install of this very job told: that of binaries which were adopted just before."""
    told = str(result.get("engine_version", ""))
    if not told:
        return {}
    assert cell.identity is not None
    same = cell.identity.client_version == cell.identity.backend_version
    return {"backend_version": told, **({"client_version": told} if same else {})}


def _kv_type(row: Row) -> str:
    keys, values = row.tool_fields.get("type_k"), row.tool_fields.get("type_v")
    return "" if not keys else str(keys) if keys == values else f"{keys}/{values}"


def _common(cell: PlannedCell, job_id: str, run: str, result: Mapping[str, Any]) -> dict[str, Any]:
    identity = cell.identity
    assert identity is not None
    artifacts: list[dict[str, Any]] = list(result.get("artifacts") or ())
    artifact = artifacts[0] if artifacts else {}
    columns = (
        "host", "chip", "device_count", "driver_version", "runtime_version", "os_name", "power_limit_watts",
        "persistence_mode", "backend", "backend_version", "flags", "model", "quantization", "suite", "client",
        "client_version", "artifact",
    )  # fmt: skip
    return {
        **{name: getattr(identity, name) for name in columns},
        "run_id": run,
        "job_id": job_id,
        "lease_id": job_id,
        "artifact_sha256": str(artifact.get("sha256", "")),
        "artifact_bytes": artifact.get("size_bytes"),
        "attempt": int(result.get("attempt", len(result.get("void_runs", ())) or 1)),
        "started_unix_ms": int(result.get("started_unix_ms", 0)),
        "finished_unix_ms": int(result.get("finished_unix_ms", 0)),
    }


def run_of_result(cell: PlannedCell, job_id: str, run: str, result: Mapping[str, Any]) -> Run:
    """The tool's own words, and everything around the run that is no figure."""
    details = {
        "warmup_seconds": result.get("warmup_seconds"),
        "waited_seconds": result.get("waited_seconds"),
        "void_runs": [{**void, "samples": len(void.get("samples", ()))} for void in result.get("void_runs", ())],
        "paused_services": result.get("paused_services"),
        "runner_cpu_seconds": result.get("runner_cpu_seconds"),
        "artifacts": result.get("artifacts"),
        "marks": result.get("marks"),
        "files": result.get("files"),
        "discarded_repetitions": cell.discarded,
        "foreign_cpu_percent": [sample.get("foreign_cpu_percent") for sample in result.get("samples", ())],
        "foreign_server": cell.shown.foreign,
    }
    return Run(
        run_id=run,
        host=cell.shown.host,
        job_id=job_id,
        lease_id=job_id,
        command=shlex.join(result.get("argv", ())),
        server_command=shlex.join(result.get("server_argv", ())),
        stdout=str(result.get("stdout", "")),
        stderr=str(result.get("stderr", "")),
        details={name: value for name, value in details.items() if value not in (None, [], {})},
        started_unix_ms=int(result.get("started_unix_ms", 0)),
        finished_unix_ms=int(result.get("finished_unix_ms", 0)),
    )


def device_samples_of(run: str, result: Mapping[str, Any]) -> list[DeviceSample]:
    """One row a device and second, those of void runs included."""
    attempts = [(int(void["attempt"]), void.get("samples", ())) for void in result.get("void_runs", ())]
    attempts.append((int(result.get("attempt", len(attempts) + 1)), result.get("samples", ())))
    return [
        DeviceSample(
            run_id=run,
            attempt=attempt,
            device_index=int(device.get("index", 0)),
            unix_ms=int(sample["unix_ms"]),
            throttle_reasons=",".join(device.get("throttle_reasons", ())),
            foreign_processes=",".join((*sample.get("foreign_gpu", ()), *sample.get("foreign_cpu", ()))),
            **{name: device[name] for name in _DEVICE_COLUMNS if name in device},
        )
        for attempt, samples in attempts
        for sample in samples
        for device in _devices(sample)
    ]


_DEVICE_COLUMNS = (
    "sm_clock_mhz", "memory_clock_mhz", "power_watts", "temperature_celsius", "utilization_percent",
    "memory_used_bytes",
)  # fmt: skip


def _devices(sample: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    """A host without GPU has one row a second, too: who else computed."""
    return sample.get("devices") or ({},)
