"""Figures of others that predictions of speed are fitted to, and the shapes of the models in them. Reading only.

The columns do not tell everything that decides about speed; what a source's tool did by itself is said here, once.
"""

import csv
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from fleet_inventory.base import Frozen, InventoryError
from fleet_inventory.reference_data import REFERENCE_FOLDER

SPEED_FOLDER = REFERENCE_FOLDER / "speed"
PUBLIC_FILE, MODELS_FILE, NOTES_FILE = "public_results.csv", "models.csv", "lab_notes_results.csv"
# How rows of the lab notes begin to say where they are from.
NOTES_SOURCE = "lab-notes.md"
# How XiongjieDai's table says which llama.cpp it used.
OLD_LLAMA_CPP = "May 2024 snapshot"
# Until https://github.com/ggml-org/llama.cpp/pull/8075 (24 June 2024, about b3215) llama.cpp on CUDA unpacks quantized
# weights before products of large batches.
MULTIPLIES_QUANTIZED_SINCE_BUILD = 3215
# llama-bench decides about flash attention by itself since https://github.com/ggml-org/llama.cpp/pull/23714 (end of May
# 2026; b9193 of mid-May does not, b11434 does). Before, it is off unless somebody asks for it, as kyuz0 does.
LLAMA_BENCH_DECIDES_SINCE_BUILD = 9400
STRIX_HALO_SOURCE = "kyuz0/amd-strix-halo-toolboxes"
SOURCES_WITH_FLASH_ATTENTION = frozenset({STRIX_HALO_SOURCE})
# Its benchmark/run_benchmarks.sh measures behind long contexts with -ub 2048 on ROCm and -ub 512 on Vulkan.
STRIX_HALO_MICRO_BATCH_AT_DEPTH = {"rocm": 2048, "vulkan": 512}
# It measures Vulkan with two drivers, AMD's AMDVLK and Mesa's RADV, whose tables stand in this order (by name).
STRIX_HALO_DRIVERS = ("amdvlk", "radv")
# Bytes of 16-bit weights, and of files whose size the notes do not tell but others published.
BYTES_OF_16_BITS = 2
PUBLISHED_SIZES = {
    ("qwen3.5-4b", "Q8_0"): 4_480_000_000,  # a quantization of the same type, 4.48 GB, in the lab's list of sizes
    # 4 bits and 0.5 for scales of groups of 64 (MLX's default)
    ("qwen3.5-4b", "MLX-4bit"): 2_370_000_000,
}


# As llama-bench and llama-server are asked, in the optional column `flags` of files from elsewhere.
_FLASH_ATTENTION = re.compile(r"(?:^|\s)-fa (\d)")
_MICRO_BATCH = re.compile(r"(?:^|\s)-ub (\d+)")
# What the optional column `client` may say of figures that include a server.
SERVED_BY_HTTP = frozenset({"http"})

Row = TypeVar("Row")


class SpeedFigure(Frozen):
    """One published figure, in tokens/s. `depth` is the context before the test; `weights_bytes` the file's size."""

    device: str
    backend: str
    runtime: str
    version: str
    model: str
    quantization: str
    test: str  # "pp" or "tg"
    tokens: int
    depth: int
    tokens_per_second: float
    weights_bytes: float
    flash_attention: bool = True
    dequantizes: bool = False
    over_http: bool = False
    speculation: str = ""
    driver: str = ""  # of Vulkan, where the source tells
    micro_batch_tokens: int = 0  # llama-bench -ub; 0: what the engine does by itself
    source: str


class SpeedModelShape(Frozen):
    """What of a model's architecture its speed depends on; see `choosing.work.ModelWork`."""

    name: str
    parameters: float
    parameters_read: float
    layers: int
    attention_layers: int
    query_heads: int
    key_length: int
    value_length: int
    kv_bytes_per_token: float
    window_bytes_per_token: float = 0.0
    window_tokens: int = 0
    recurrent_state_bytes: float = 0.0
    head_parameters: float = 0.0
    mixture_of_experts: bool = False
    latent_length: int = 0
    experts: int = 0
    experts_active: int = 0


def load_speed_figures(folder: Path | None = None) -> tuple[SpeedFigure, ...]:
    """The published rows and those of the lab notes, as shipped, or as they are in one `folder`.

    Raises InventoryError where a file is missing or a row cannot be read.
    """
    public = (folder or SPEED_FOLDER) / PUBLIC_FILE
    notes = (folder or REFERENCE_FOLDER) / NOTES_FILE
    return (*_read(public, _public), *_read(notes, _notes))


def load_public_figures(path: Path) -> tuple[SpeedFigure, ...]:
    """Rows of another file with the columns of public_results.csv. Raises InventoryError as load_speed_figures does."""
    return tuple(_read(path, _public))


def load_speed_models(folder: Path | None = None) -> dict[str, SpeedModelShape]:
    """Shapes by name (lower case). Raises InventoryError as load_speed_figures does."""
    return load_shapes((folder or SPEED_FOLDER) / MODELS_FILE)


def load_shapes(path: Path) -> dict[str, SpeedModelShape]:
    """Shapes of another file with the columns of models.csv. Raises InventoryError as load_speed_figures does."""
    return {shape.name: shape for shape in _read(path, lambda rows: [_shape(row) for row in rows])}


def _read(path: Path, parse: Callable[[list[dict[str, str]]], list[Row]]) -> list[Row]:
    try:
        with path.open(encoding="utf-8", newline="") as lines:
            return parse(list(csv.DictReader(lines)))
    except OSError as error:
        raise InventoryError(f"{path}: cannot be read: {error.strerror}") from error
    except (KeyError, ValueError, ValidationError) as error:
        raise InventoryError(f"{path}: a row cannot be read: {error}") from error


def build_of(version: str) -> int:
    """The build number of llama.cpp in "b8396 054d8b0f2"; 0 where there is none, as in releases of others' naming."""
    match = re.match(r"b(\d+)\b", version)
    return int(match[1]) if match else 0


def _public(rows: list[dict[str, str]]) -> list[SpeedFigure]:
    found = []
    for row, driver in zip(rows, _drivers(rows), strict=True):
        backend, _, runtime = row["backend"].lower().partition("/")
        runtime, build = runtime.rstrip("0123456789"), build_of(row["backend_version"])
        tokens, middle = int(float(row["n_tokens"])), float(row["mean_depth"])
        # The table gives the depth in the middle of a decode test, and that before a prefill test.
        depth = round(middle - tokens / 2) if row["test"] == "tg" else round(middle)
        old = 0 < build < MULTIPLIES_QUANTIZED_SINCE_BUILD or row["backend_version"] == OLD_LLAMA_CPP
        found.append(
            SpeedFigure(
                device=row["device"],
                backend=backend,
                runtime=runtime,
                version=row["backend_version"].partition(" ")[0] if build else row["backend_version"],
                model=row["arch"].lower(),
                quantization=row["quant"],
                test=row["test"],
                tokens=tokens,
                depth=depth,
                tokens_per_second=float(row["tps"]),
                weights_bytes=float(row["model_bytes"]),
                flash_attention=_flash_attention(row, backend, build),
                dequantizes=runtime == "cuda" and backend == "llama.cpp" and old,
                over_http=row.get("client", "") in SERVED_BY_HTTP,
                driver=row.get("driver") or driver,
                micro_batch_tokens=_micro_batch_tokens(row, runtime, depth),
                source=row["source"],
            )
        )
    return found


def _flash_attention(row: Mapping[str, str], backend: str, build: int) -> bool:
    asked = _FLASH_ATTENTION.search(row.get("flags", ""))
    if backend != "llama.cpp" or row["source"] in SOURCES_WITH_FLASH_ATTENTION:
        return True
    return asked[1] == "1" if asked else build >= LLAMA_BENCH_DECIDES_SINCE_BUILD


def _micro_batch_tokens(row: Mapping[str, str], runtime: str, depth: int) -> int:
    asked = _MICRO_BATCH.search(row.get("flags", ""))
    if asked:
        return int(asked[1])
    at_depth = row["source"] == STRIX_HALO_SOURCE and depth > 0
    return STRIX_HALO_MICRO_BATCH_AT_DEPTH.get(runtime, 0) if at_depth else 0


def _drivers(rows: list[dict[str, str]]) -> list[str]:
    """The Vulkan driver of each row; "" where nobody tells.

    The Strix Halo table has the rows of one model and quantization driver by driver: where a test comes up again, the
    next driver's begin.
    """
    found, seen, block, place = [], set[tuple[str, ...]](), tuple[str, ...](), 0
    for row in rows:
        if row["source"] != STRIX_HALO_SOURCE or "vulkan" not in row["backend"].lower():
            found.append("")
            continue
        here = (row["device"], row["backend_version"], row["arch"], row["quant"])
        test = (row["test"], row["n_tokens"], row["mean_depth"])
        if here != block:
            block, place = here, 0
            seen.clear()
        elif test in seen:
            place = min(place + 1, len(STRIX_HALO_DRIVERS) - 1)
            seen.clear()
        seen.add(test)
        found.append(STRIX_HALO_DRIVERS[place])
    return found


def _notes(rows: list[dict[str, str]]) -> list[SpeedFigure]:
    """Rows of the lab notes; trials are left out, since their average is a row as well."""
    sizes = {(row["model"].lower(), row["quant"]): float(row["model_bytes"]) for row in rows if row["model_bytes"]}
    found = []
    for row in rows:
        extra = json.loads(row["extra"])
        if str(extra.get("record", "")).startswith("Trial"):
            continue
        model = row["model"].lower()
        over_http = extra.get("tool") == "llama-benchy"
        found.append(
            SpeedFigure(
                device=row["chip"],
                backend=row["backend"],
                runtime="metal" if row["chip"].startswith("Apple") else "cuda",
                version=row["backend_version"].removeprefix("commit ").partition(" ")[0],
                model=model,
                quantization=row["quant"],
                test=row["test"],
                tokens=int(row["n_tokens"]),
                depth=int(row["depth"]),
                tokens_per_second=float(row["tps"]),
                weights_bytes=_weights_bytes(model, row["quant"], sizes, extra),
                # llama-bench of March 2026 leaves flash attention off, llama-server decides by itself since August 2025
                # (https://github.com/ggml-org/llama.cpp/pull/23714 and /15434).
                flash_attention=over_http or row["backend"] != "llama.cpp",
                over_http=over_http,
                speculation=str(extra.get("speculative", "")),
                source=f"{row['source'].rpartition(':')[2]}:{extra['line']}",
            )
        )
    return found


def _weights_bytes(
    model: str, quantization: str, sizes: Mapping[tuple[str, str], float], extra: Mapping[str, object]
) -> float:
    size = sizes.get((model, quantization)) or PUBLISHED_SIZES.get((model, quantization))
    if size is None and quantization == "BF16":
        size = BYTES_OF_16_BITS * load_speed_models()[model].parameters
    if size is None:
        raise ValueError(f"line {extra['line']}: nobody says how large {model} {quantization} is")
    return size


def _shape(row: Mapping[str, str]) -> SpeedModelShape:
    layers, attention = int(row["layers"]), int(row["full_attention_layers"])
    rank, rope, head = (int(row[name] or 0) for name in ("mla_kv_lora_rank", "mla_rope_dim", "head_dim"))
    window = int(row["sliding_window"] or 0)
    per_token = float(row["kv_bytes_per_token_f16"])
    return SpeedModelShape(
        name=row["model"].lower(),
        parameters=float(row["total_params_published"].removesuffix(" B")) * 1e9,
        parameters_read=float(row["params_read_per_token"]),
        layers=layers,
        attention_layers=attention,
        query_heads=int(row["q_heads"]),
        key_length=rank + rope if rank else head,
        value_length=rank or head,
        kv_bytes_per_token=per_token,
        # Layers with a window have the heads of the others.
        window_bytes_per_token=per_token / attention * (layers - attention) if window else 0.0,
        window_tokens=window,
        recurrent_state_bytes=float(row["recurrent_state_bytes_f32"] or 0),
        head_parameters=float(row["vocab"]) * float(row["hidden"]),
        mixture_of_experts=bool(row["experts"]),
        latent_length=rank,
        experts=int(row["experts"] or 0),
        experts_active=int(row["experts_active"] or 0),
    )
