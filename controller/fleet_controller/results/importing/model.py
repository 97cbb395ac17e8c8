"""What every reader shares: what the user says about a file, what came out of it, and what is wrong with a line."""

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import PurePosixPath
from typing import Any

from fleet_controller.results.columns import DeviceSample, Metric, Result, Run, Source

QUANTIZATION = re.compile(
    r"(?P<model>.+?)[-._](?P<quantization>(?:UD-)?(?:I?Q\d\w*|TQ\d\w*|MXFP4\w*|BF16|F16|F32))(?:-\d{5}-of-\d{5})?$",
    re.IGNORECASE,
)
# How llama-bench's table names a file's type, where the file's own name is not there.
TYPE_WORDS = {"Small": "S", "Medium": "M", "Large": "L"}
TYPE_LABEL = re.compile(
    r"(?P<model>.*?) (?P<type>I?Q\d\w*|BF16|F16|F32|MXFP4\w*|TQ\d\w*)(?: - (?P<size>Small|Medium|Large))?$"
)
MLX_BITS = re.compile(r"(?P<model>.+?)-(?:MLX-)?(?P<quantization>\d+bit|bf16)$", re.IGNORECASE)


@dataclass(frozen=True)
class FileContext:
    """What the user says about a file. What is given wins over what can only be guessed from names."""

    name: str
    host: str = ""
    chip: str = ""
    model: str = ""
    quantization: str = ""
    backend: str = ""
    backend_version: str = ""
    client_version: str = ""


@dataclass(frozen=True)
class LineProblem:
    """`line` counts from 1; 0 = the file as a whole."""

    file: str
    line: int
    message: str
    remedy: str = ""

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}" if self.line else self.file
        return f"{where}: {self.message}"


class ImportFailure(Exception):
    """Something in the files is not understood; nothing of them is kept."""

    def __init__(self, problems: Iterable[LineProblem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(map(str, self.problems)))


class BadLine(Exception):
    """One line, or the whole (0), cannot be read."""

    def __init__(self, line: int, message: str, remedy: str = "") -> None:
        super().__init__(message)
        self.line, self.message, self.remedy = line, message, remedy


@dataclass
class Reading:
    """Rows of one file as they are found."""

    context: FileContext
    text: str
    results: list[Result] = field(default_factory=list)
    runs: list[Run] = field(default_factory=list)
    device_samples: list[DeviceSample] = field(default_factory=list)
    problems: list[LineProblem] = field(default_factory=list)

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.text.encode()).hexdigest()[:12]

    def problem(self, line: int, message: str, remedy: str = "") -> None:
        self.problems.append(LineProblem(self.context.name, line, message, remedy))

    def start_run(self, stdout: str, command: str = "", server_command: str = "", finished_unix_ms: int = 0) -> Run:
        run = Run(
            run_id=f"import-{self.digest}-{len(self.runs) + 1}",
            host=self.context.host,
            command=command,
            server_command=server_command,
            stdout=stdout,
            finished_unix_ms=finished_unix_ms,
        )
        self.runs.append(run)
        return run

    def add(self, line: int, run: Run, kind: Metric, mean: float, **columns: Any) -> None:
        """One figure; what the user said about the file goes before what the file's reader guessed."""
        said = {
            name: value
            for name in ("chip", "model", "quantization", "backend", "backend_version", "client_version")
            if (value := getattr(self.context, name))
        }
        defaults = {
            "run_id": run.run_id,
            "host": self.context.host,
            "source": Source.IMPORTED,
            "provenance": f"{self.context.name}:{line}",
            "finished_unix_ms": run.finished_unix_ms,
        }
        self.results.append(Result(**(defaults | columns | said), test_kind=kind, mean=mean))


def demand_told(reading: Reading) -> None:
    """A row without host, chip, model or backend says nothing to anybody: each lack is a problem of the file."""
    if reading.problems:
        return
    missing = [
        (name, option)
        for name, option in (("host", "--host"), ("chip", "--chip"), ("model", "--model"), ("backend", "--backend"))
        if any(not getattr(result, name) for result in reading.results)
    ]
    for name, option in missing:
        reading.problem(0, f"the file does not tell the {name}", f"repeat the import with {option} {name.upper()}")


def model_and_quantization(path: str) -> tuple[str, str]:
    """From a file's or folder's name: "unsloth/Qwen3.5-9B-GGUF/Qwen3.5-9B-Q8_0.gguf" -> ("qwen3.5-9b", "Q8_0")."""
    name = PurePosixPath(path.rstrip("/")).name.removesuffix(".gguf")
    for pattern in (QUANTIZATION, MLX_BITS):
        found = pattern.match(name)
        if found:
            quantization = found["quantization"]
            return found["model"].lower(), quantization.lower() if pattern is MLX_BITS else quantization.upper()
    return name.lower(), ""


def model_and_type(label: str) -> tuple[str, str]:
    """From llama-bench's own label: "qwen35 9B Q4_K - Medium" -> ("qwen35 9B", "Q4_K_M")."""
    found = TYPE_LABEL.match(label)
    if found is None:
        return label, ""
    size = TYPE_WORDS.get(found["size"] or "", "")
    return found["model"], found["type"] + (f"_{size}" if size else "")


def unix_ms(text: str) -> int:
    """Milliseconds of the tools' times, taken as UTC; 0 where the text is none of their forms."""
    for form in ("%Y-%m-%dT%H:%M:%SZ", "%Y-%m-%d %H:%M:%SZ", "%Y-%m-%d %H:%M:%S", "%Y%m%d-%H%M%S"):
        try:
            return int(datetime.strptime(text, form).replace(tzinfo=UTC).timestamp() * 1000)
        except ValueError:
            continue
    return 0


def number(values: Any, name: str, line: int) -> float:
    """A finite number of a row. Raises BadLine."""
    value = values.get(name)
    try:
        found = float(value)
    except (TypeError, ValueError):
        raise BadLine(
            line, f"'{name}' is {value!r}, not a number", "repair or remove that entry, then repeat"
        ) from None
    if found != found or found in (float("inf"), float("-inf")):
        raise BadLine(line, f"'{name}' is {value!r}, not a number", "repair or remove that entry, then repeat")
    return found
