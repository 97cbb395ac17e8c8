"""lab.yaml: what a lab wants to run where, as one file that `fleet diff` compares and `fleet apply` brings about."""

from pathlib import Path
from typing import Annotated, Literal, cast

from pydantic import Field

from fleet_inventory.base import Frozen, InventoryError
from fleet_inventory.document import read_document
from fleet_inventory.host_file import AbsolutePath, PortNumber, Reference, Text
from fleet_inventory.problems import line_message, listing, validate

Count = Annotated[int, Field(ge=1, strict=True)]


class LabModel(Frozen):
    """A model on hosts. What is left out is chosen, as `fleet deploy` does: name the versions to have them pinned."""

    model: str = Field("", description="A name of `fleet models`, name:quant, or an absolute path on the hosts")
    repository: str = Field("", description="Any repository of the model hub, owner/name, in place of a model's name")
    hosts: str = Field("all", description="Names, globs (gpu*), @groups, !exclusions, commas")
    backend: str = Field("", description="llama.cpp, mlx-lm, vllm, sglang, lm-studio")
    backend_version: Text = Field("", description="The backend's version, pinned")
    quantization: Text = Field("", description="Q4_K_M, 4bit, ...")
    context: Count | None = Field(None, description="Context length in tokens, for each request")
    port: PortNumber | None = Field(None, description="Port of the endpoint on the hosts")
    max_parallel: Count | None = Field(None, description="Requests served at once")
    name: str = Field("", description="Name of the service; the model's where not given")
    bind: str = Field("", description="Address that the endpoint listens on; 127.0.0.1 where not given")
    api_key: Reference | None = Field(
        None, description="Where the key that clients must send lies: env:NAME, file:PATH"
    )
    kv_cache_type: str = Field("", description="Type of the KV cache, in the backend's words")
    flash_attention: Literal["", "on", "off", "auto"] = Field("", description="on, off or auto (llama.cpp)")
    tensor_parallel: Count | None = Field(None, description="GPUs to deal the model out to (vllm, sglang)")
    memory_fraction: Annotated[float, Field(ge=0.05, le=1)] | None = Field(
        None, description="Part of each GPU that the server takes (vllm, sglang)"
    )
    dtype: str = Field("", description="Type that is computed with (vllm, sglang)")
    speculative: bool | None = Field(None, description="Speculative decoding; as the catalog has it where not given")
    vision: bool | None = Field(None, description="With the model's multimodal projector (llama.cpp)")
    engine_path: AbsolutePath | None = Field(None, description="Folder on the hosts with binaries to use as they are")
    offline: AbsolutePath | None = Field(None, description="Folder on the hosts to install the engine from")


class LabOrder(Frozen):
    """In which order hosts are changed; as the options of `fleet deploy` of the same names."""

    canary: str = ""
    gate: Literal["health", "golden"] = "health"
    threshold: Annotated[float, Field(gt=0, le=90)] = 5.0
    wave: Text = "100%"
    max_unavailable: Annotated[int, Field(ge=0)] = 0
    max_failures: Annotated[int, Field(ge=0)] = 0
    catch_up: bool = False


class LabFile(Frozen):
    """What the lab wants. `stop_others`: services of fleet that are on no line of the file are stopped."""

    models: tuple[LabModel, ...] = ()
    stop_others: bool = False
    order: LabOrder = LabOrder()


def entry_places(path: Path) -> tuple[str, ...]:
    """Of a file that can be loaded: where each model stands, as "lab.yaml:2: models[0]"."""
    document = read_document(path, lambda key_path: False)
    count = len((document.data or {}).get("models") or ())
    return tuple(line_message(document, ("models", place), "")[1].rstrip(": ") for place in range(count))


def load_lab(path: Path) -> LabFile:
    """Read lab.yaml. Raises InventoryError, whose text lists every problem with file, line and key."""
    if not path.exists():
        raise InventoryError(f"{path}: there is no such file; `fleet apply --help` shows what one looks like")
    document = read_document(path, lambda key_path: False)
    if document.data is None:
        raise InventoryError(f"{path}: the file is empty; `fleet apply --help` shows what goes into it")
    value, problems = validate(LabFile, document)
    lab = cast(LabFile, value)
    if value is not None:
        problems += [
            line_message(document, ("models", place), f"names {found} a model {word} a repository")
            for place, entry in enumerate(lab.models)
            for found, word, wrong in (
                ("neither", "nor", not entry.model and not entry.repository),
                ("both", "and", bool(entry.model and entry.repository)),
            )
            if wrong
        ]
    if problems or value is None:
        raise InventoryError(listing(problems))
    return lab
