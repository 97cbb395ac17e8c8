"""Suites: which tests a bench runs. Shipped as YAML, and the user's own in `suites/` beside hosts.yaml."""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import yaml
from pydantic import Field, ValidationError, model_validator

from fleet_controller.domain.base import Frozen

SHIPPED = Path(__file__).parent / "suites"
ENGINE = "engine"
# What a decision measures; energy needs generations that last, since a device tells its power once a second.
DECIDE_SUITE, ENERGY_SUITE = "decide", "energy"
CLIENTS = (ENGINE, "llama-bench", "mlx_lm.benchmark", "llama-benchy", "vllm-bench", "sglang-bench")

Tokens = Annotated[int, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]


class SuiteError(Exception):
    """A suite that is not there or breaks a rule. `remedy` says what to do next."""

    def __init__(self, message: str, remedy: str = "") -> None:
        super().__init__(message)
        self.code = "suite"
        self.message = message
        self.remedy = remedy


class Idle(Frozen):
    """What counts as idle. `foreign_cpu_percent`, of one core: by all that is not ours, judged on hosts without GPU."""

    wait_seconds: Annotated[float, Field(ge=0)] = 60.0
    foreign_cpu_percent: Annotated[float, Field(ge=0)] = 50.0
    repeats: Annotated[int, Field(ge=0, le=10)] = 3


class Part(Frozen, extra="forbid"):
    """Tests of one tool: prefill of `prompt_tokens` and decode of `generation_tokens`, at each depth and concurrency.

    `client` "engine" is the backend's own tool. Depths are tokens in the context before the test.
    """

    client: str = ENGINE
    prompt_tokens: Tokens = 512
    generation_tokens: Tokens = 128
    depths: tuple[Tokens, ...] = (0,)
    concurrency: tuple[Count, ...] = (1,)
    repetitions: Count = 5

    @model_validator(mode="after")
    def _measures_something(self) -> "Part":
        if self.client not in CLIENTS:
            raise ValueError(f"client {self.client!r} is none of {', '.join(CLIENTS)}")
        if not (self.prompt_tokens or self.generation_tokens):
            raise ValueError("prompt_tokens and generation_tokens are both 0")
        if not self.depths or not self.concurrency:
            raise ValueError("depths and concurrency need at least one entry")
        return self

    @property
    def context_tokens(self) -> int:
        """What one request needs, with room for a chat template and for a client's rounding."""
        return max(self.depths) + self.prompt_tokens + self.generation_tokens + 256


class Probe(Frozen, extra="forbid"):
    """A chat at temperature 0, whose reply must stay what it was when an engine is upgraded."""

    prompt: str
    max_tokens: Count = 64


class Suite(Frozen, extra="forbid"):
    name: str = ""
    description: str = ""
    idle: Idle = Idle()
    parts: Annotated[tuple[Part, ...], Field(min_length=1)]
    probe: Probe | None = None


def load_suite(name: str, user_folder: Path) -> Suite:
    """The suite of that name, the user's own first. Raises SuiteError naming the file and the field."""
    paths = {path.stem: path for path in _files((SHIPPED, user_folder))}
    path = paths.get(name)
    if path is None:
        raise SuiteError(f"no suite {name!r}", f"there are: {', '.join(sorted(paths))} (your own: {user_folder})")
    return read_suite(path)


def _files(folders: Iterable[Path]) -> list[Path]:
    return [path for folder in folders if folder.is_dir() for path in sorted(folder.glob("*.yaml"))]


def read_suite(path: Path) -> Suite:
    """Raises SuiteError for a file that is no suite."""
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
        suite = Suite.model_validate(document)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise SuiteError(f"{path}: {' '.join(str(error).split())}", "correct the file") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the document"
        raise SuiteError(f"{path}: {where}: {first['msg']}", "correct the file; docs/bench.md has an example") from None
    return suite.model_copy(update={"name": suite.name or path.stem})
