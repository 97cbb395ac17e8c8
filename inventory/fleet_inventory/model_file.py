"""What a model description may hold. Sizes are bytes, parameters are counted one by one."""

import re
from enum import StrEnum
from typing import Annotated, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from fleet_inventory.allowlists import is_allowed, refusal
from fleet_inventory.base import CatalogError, Frozen
from fleet_inventory.host_file import Text
from fleet_inventory.problems import near

_REPOSITORY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*\Z")
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]*\Z")
_NUMBER = re.compile(r"[0-9]+(?:\.[0-9]+)?\Z")
_REQUIREMENT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(?:\[[A-Za-z0-9,_-]+\])?(?:\s*(?:@|[=<>!~]=|[<>]).*)?\Z")


def backend_key(name: str) -> str:
    """`llama.cpp`, `llama_cpp` and `llama-cpp` are one backend."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _repository(value: str) -> str:
    if not _REPOSITORY.match(value):
        raise ValueError(f"'{value}' is no hub repository (owner/name)")
    return value


def _name(value: str) -> str:
    if not _NAME.match(value):
        raise ValueError(f"'{value}' must be lower case letters, digits, '.', '_' and '-'")
    return value


def _number(value: str) -> str:
    if not _NUMBER.match(value):
        raise ValueError(f"'{value}' is no number")
    return value


def _count(value: object) -> object:
    """`29.94 B` as models are labelled, or a whole number."""
    match = re.fullmatch(r"\s*([0-9]+)(?:\.([0-9]+))?\s*([MB])\s*", value) if isinstance(value, str) else None
    if match is None:
        return value
    whole, fraction, unit = match.group(1), match.group(2) or "", match.group(3)
    return int(whole + fraction) * 10 ** ((6 if unit == "M" else 9) - len(fraction))


def _environment_key(value: str) -> str:
    if not is_allowed(value):
        raise ValueError(refusal(value))
    return value


def _fraction(value: str) -> str:
    if not _NUMBER.match(value) or not 0 < float(value) < 1:
        raise ValueError(f"'{value}' must be a number between 0 and 1")
    return value


def _requirement(value: str) -> str:
    if not _REQUIREMENT.match(value):
        raise ValueError(f"'{value}' must begin with a package's name, as in 'name==1.0' or 'name @ git+https://...'")
    return value


Repository = Annotated[str, AfterValidator(_repository)]
Positive = Annotated[int, Field(ge=1, strict=True)]
Count = Annotated[int, BeforeValidator(_count), Field(ge=1)]
NumberText = Annotated[str, AfterValidator(_number)]
Fraction = Annotated[str, AfterValidator(_fraction)]
Environment = dict[Annotated[str, AfterValidator(_environment_key)], Text]


class ArtifactFormat(StrEnum):
    """How the weights are stored; each backend reads one or two of them."""

    GGUF = "gguf"
    MLX = "mlx"
    SAFETENSORS = "safetensors"
    LMSTUDIO = "lmstudio"  # an entry of LM Studio's own catalog: `lms get` fetches it, the hub does not have it


class Sampling(Frozen):
    """The makers' sampling defaults, as text: command lines carry them exactly as written."""

    temperature: NumberText | None = None
    top_p: NumberText | None = None
    top_k: NumberText | None = None
    min_p: NumberText | None = None


class LatentAttention(Frozen):
    """Ranks of multi-head latent attention (MLA): one compressed vector a token instead of keys and values."""

    kv_lora_rank: Positive
    rope_dimension: Positive
    q_lora_rank: Positive


class LinearAttention(Frozen):
    """Heads of the gated delta net layers, whose state does not grow with the context."""

    qk_heads: Positive
    v_heads: Positive
    head_dimension: Positive


class Experts(Frozen):
    """A mixture of experts: how many there are, and how many a token passes through."""

    total: Positive
    active: Positive
    shared: Annotated[int, Field(ge=0, strict=True)] = 0
    ffn_size: Positive


class Architecture(Frozen):
    """Shape of the network, as far as memory and speed depend on it."""

    gguf_name: str
    parameters: Count
    parameters_read_per_token: Count
    active_parameters_label: str = "dense"
    layers: Positive
    full_attention_layers: Positive
    linear_attention_layers: Annotated[int, Field(ge=0, strict=True)] = 0
    hidden_size: Positive
    query_heads: Positive
    kv_heads: Positive
    head_dimension: Positive
    ffn_size: Positive | None = None
    experts: Experts | None = None
    vocabulary_size: Positive
    tied_embeddings: bool
    latent_attention: LatentAttention | None = None
    linear_attention: LinearAttention | None = None
    source: tuple[str, ...]
    verified: str

    @model_validator(mode="after")
    def _adds_up(self) -> Self:
        if self.full_attention_layers + self.linear_attention_layers != self.layers:
            raise ValueError("full_attention_layers + linear_attention_layers must be layers")
        if (self.linear_attention is None) != (self.linear_attention_layers == 0):
            raise ValueError("linear_attention and linear_attention_layers belong together")
        return self

    @property
    def kv_bytes_per_token_f16(self) -> int:
        """KV cache of one token at 2 bytes a value.

        full layers x (K and V) x kv heads x head dimension x 2; with MLA one vector of kv_lora_rank + rope_dimension
        a layer, as llama.cpp keeps it.
        """
        if self.latent_attention is not None:
            vector = self.latent_attention.kv_lora_rank + self.latent_attention.rope_dimension
            return self.full_attention_layers * vector * 2
        return self.full_attention_layers * 2 * self.kv_heads * self.head_dimension * 2

    @property
    def recurrent_state_bytes_f32(self) -> int:
        """State of the linear layers of one sequence: layers x v heads x dimension^2 x 4."""
        linear = self.linear_attention
        return 0 if linear is None else self.linear_attention_layers * linear.v_heads * linear.head_dimension**2 * 4


class Artifact(Frozen):
    """One set of files of a model: what to fetch for one quantization.

    `files` are patterns within the repository (`*` matches anything); none: the whole repository. `size_bytes` is for
    estimates before the hub was asked; published sizes are rounded, so it is exact to about 0.1 %. `projector` is the
    pattern of the multimodal projector (mmproj-*.gguf, same repository) that it is served with unless asked without.
    """

    format: ArtifactFormat
    repository: Repository
    quantization: str
    files: tuple[str, ...] = ()
    projector: str = ""
    size_bytes: Positive | None = None
    size_source: str = ""
    note: str = ""


class Speculation(Frozen):
    """What speculative decoding adds to a command line; left out with it."""

    arguments: tuple[Text, ...] = ()
    environment: Environment = Field(default_factory=dict)


class BackendSettings(Frozen):
    """What one backend needs for this model beyond its ordinary command line.

    `memory_fraction` is the part of each GPU that the server takes (text, as the command line carries it).
    `requirements` are packages beside the backend itself, with the versions that it must have here.
    """

    arguments: tuple[Text, ...] = ()
    environment: Environment = Field(default_factory=dict)
    reasoning_parser: str | None = None
    tool_call_parser: str | None = None
    memory_fraction: Fraction | None = None
    speculative: Speculation | None = None
    requirements: tuple[Annotated[str, AfterValidator(_requirement)], ...] = ()
    known_problems: tuple[str, ...] = ()


class BackendNotes(BackendSettings):
    """Settings for `version` (empty: whatever version fleet pins), and what differs in other versions.

    `versions` is keyed by version as `--backend-version` takes it; a field that is written there replaces the one here.
    """

    version: str = ""
    versions: dict[str, BackendSettings] = Field(default_factory=dict)

    def for_version(self, version: str = "") -> BackendSettings:
        """The settings for a version (empty: the pinned one).

        Requirements were tried with the pinned version: another one has only those that it names itself.
        """
        asked = version or self.version
        values = {name: getattr(self, name) for name in BackendSettings.model_fields}
        if self.version and asked != self.version:
            values["requirements"] = ()
        own = self.versions.get(asked)
        if own is not None:
            values |= {name: getattr(own, name) for name in own.model_fields_set}
        return BackendSettings.model_construct(**values)


class Model(Frozen):
    """One model. `backends` is keyed by backend name (`llama.cpp`, `mlx-lm`, `lm-studio`, `sglang`, `vllm`)."""

    name: Annotated[str, AfterValidator(_name)]
    display_name: str
    aliases: tuple[str, ...] = ()
    hub_repository: Repository
    max_context: Positive
    architecture: Architecture
    sampling: Sampling = Sampling()
    artifacts: tuple[Artifact, ...]
    backends: dict[str, BackendNotes] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _one_of_each(self) -> Self:
        if not self.artifacts:
            raise ValueError("artifacts: at least one is needed")
        seen = [(artifact.format, artifact.quantization.lower(), artifact.repository) for artifact in self.artifacts]
        if len(set(seen)) != len(seen):
            raise ValueError("artifacts: two have the same format, quantization and repository")
        return self

    def notes_for(self, backend: str) -> BackendNotes:
        """What `backend` needs for this model; empty where nothing is known."""
        wanted = backend_key(backend)
        return next((notes for name, notes in self.backends.items() if backend_key(name) == wanted), BackendNotes())

    def quantizations(self, artifact_format: ArtifactFormat | None = None) -> tuple[str, ...]:
        """Spellings that exist, in the order of the file, each once."""
        return tuple(
            dict.fromkeys(
                artifact.quantization
                for artifact in self.artifacts
                if artifact_format is None or artifact.format == artifact_format
            )
        )

    def find_quantization(self, text: str) -> str:
        """The catalog's spelling of a quantization, compared without case. Raises CatalogError listing those known."""
        for quantization in self.quantizations():
            if quantization.lower() == text.lower():
                return quantization
        similar = near(text, self.quantizations(), limit=1)
        raise CatalogError(
            f"{self.name} has no quantization '{text}'"
            + (f", did you mean {similar[0]}?" if similar else ";")
            + f" it has: {', '.join(self.quantizations())}"
        )
