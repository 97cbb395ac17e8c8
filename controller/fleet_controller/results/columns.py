"""The columns of a result, declared once: what was measured, on what, and which columns make two rows comparable."""

from fleet_controller.domain.base import Frozen

# Rows are comparable when they agree in all of these; results of different fingerprints are never averaged.
COMPARABLE_COLUMNS = (
    "model",
    "quantization",
    "backend",
    "backend_version",
    "artifact",
    "client",
    "test",
    "chip",
    "driver_version",
    "power_limit_watts",
    "os_name",
    "flags",
)


class Result(Frozen):
    """One figure of one bench run on one host. Speeds are tokens per second, None means unknown."""

    run_id: str
    host: str
    model: str
    quantization: str
    backend: str
    backend_version: str
    artifact: str
    client: str
    test: str
    prompt_tokens: int
    generation_tokens: int
    repetitions: int
    mean_tokens_per_second: float
    stddev_tokens_per_second: float | None = None
    chip: str = ""
    driver_version: str | None = None
    power_limit_watts: float | None = None
    os_name: str = ""
    flags: str = ""
    raw: str = ""
    finished_unix_ms: int = 0


_SQL_TYPES = {
    "prompt_tokens": int,
    "generation_tokens": int,
    "repetitions": int,
    "mean_tokens_per_second": float,
    "stddev_tokens_per_second": float,
    "power_limit_watts": float,
    "finished_unix_ms": int,
}
RESULT_COLUMNS: dict[str, type] = {name: _SQL_TYPES.get(name, str) for name in Result.model_fields}
