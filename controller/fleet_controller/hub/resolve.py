"""From what a user typed to a ResolvedModel: catalog, hub metadata, headers. Blocking; callers use a thread.

Three ways to name a model: a catalog name ("glm-4.7-flash", "qwen3.5-9b:Q8_0"), any hub repository, or a path on the
hosts (a .gguf file or a folder with config.json; "./x" lies in a host's model folder).
"""

import urllib.request
from collections.abc import Callable, Iterator
from pathlib import PurePosixPath

from fleet_controller.backends import BACKENDS
from fleet_controller.domain.base import EnvironmentVariable
from fleet_controller.domain.plan import DeployRequest
from fleet_controller.domain.resolved import (
    GGUF,
    LMSTUDIO,
    MLX,
    SAFETENSORS,
    BackendOverrides,
    ModelArtifact,
    ResolvedModel,
)
from fleet_controller.domain.shape import ModelShape
from fleet_controller.domain.steps import ArtifactFile
from fleet_controller.hub import config_json, gguf_files, gguf_headers
from fleet_controller.hub.errors import HubError, HubUnreachableError, NoFilesError, RepositoryUnknownError
from fleet_controller.hub.local_models import model_of_path
from fleet_controller.hub.metadata import DEFAULT_ENDPOINT, HubSnapshot, list_repository
from fleet_controller.hub.names import quantization_of_file, service_name
from fleet_controller.planning.usable import backend_named
from fleet_inventory.catalog import Architecture, Catalog, Model
from fleet_inventory.catalog import Artifact as CatalogArtifact

Lister = Callable[[str], HubSnapshot]
_CONFIG_LIMIT_BYTES = 4 << 20
# Values that the short convolution of a gated delta net sees at once (linear_conv_kernel_dim of Qwen3.5's config.json).
SHORT_CONVOLUTION = 4


def resolve_model(
    request: DeployRequest, catalog: Catalog, endpoint: str = "", token: str | None = None
) -> ResolvedModel:
    """Everything that the request could mean, with exact files. `endpoint` empty: HF_ENDPOINT or the hub.

    Raises CatalogError (unknown name or quantization), HubError (and its kinds), PlanProblem (unknown backend).
    """
    seen: dict[str, HubSnapshot] = {}

    def lister(repository: str) -> HubSnapshot:
        if repository not in seen:
            seen[repository] = list_repository(repository, endpoint, token)
        return seen[repository]

    return resolve_with(request, catalog, lister, token, headers=True)


def resolve_with(
    request: DeployRequest, catalog: Catalog, lister: Lister, token: str | None = None, *, headers: bool = False
) -> ResolvedModel:
    """resolve_model with another source of listings: a cache, or a test's fixture.

    `headers`: those of the catalog's GGUF files are read too, which tell more than the catalog does; where one cannot
    be, the catalog's word stands.
    """
    wanted = backend_named(request.backend).formats if request.backend else (GGUF, MLX, SAFETENSORS)
    if request.repository:
        return _of_repository(request, lister, token)
    if is_path(request.model):
        return model_of_path(request.model, request.quantization)
    model, quantization = catalog.resolve(request.model)
    found = _of_catalog(model, request, request.quantization or quantization or "", wanted, lister)
    if not headers:
        return found
    artifacts, _ = gguf_headers.with_headers(found.artifacts, file_address, token)
    return found.model_copy(update={"artifacts": artifacts})


def is_path(model: str) -> bool:
    """An absolute path on the hosts, or "./..." within each host's model folder."""
    return model.startswith(("/", "./"))


def named_quantization(request: DeployRequest, catalog: Catalog) -> DeployRequest:
    """The request with the quantization of "name:quant" in its own field, spelled as the catalog does."""
    if request.repository or is_path(request.model):
        return request
    model, quantization = catalog.resolve(request.model)
    if request.quantization:
        quantization = model.find_quantization(request.quantization)
    return request.model_copy(update={"quantization": quantization or ""})


def _of_catalog(
    model: Model, request: DeployRequest, quantization: str, formats: tuple[str, ...], lister: Lister
) -> ResolvedModel:
    entries = [entry for entry in model.artifacts if entry.format.value in formats]
    if quantization:
        spelled = model.find_quantization(quantization)
        entries = [entry for entry in entries if entry.quantization == spelled]
    elif any(entry.format.value != SAFETENSORS for entry in entries):
        entries = [entry for entry in entries if entry.format.value != SAFETENSORS]  # originals only on request
    artifacts: list[ModelArtifact] = []
    failures: list[HubError] = []
    for entry in entries:
        try:
            artifacts.append(of_entry(entry, lister))
        except (NoFilesError, RepositoryUnknownError) as error:
            failures.append(error)  # the other artifacts may still be there
        except HubUnreachableError as error:
            if not any(other.format.value == LMSTUDIO for other in entries):
                raise
            failures.append(error)  # LM Studio fetches its own, whether this machine reaches the hub or not
    if entries and not artifacts:
        raise failures[0]
    gated = _gated_warnings({item.repository for item in artifacts if item.format != LMSTUDIO}, lister)
    return of_catalog_model(model, request, tuple(artifacts), gated)


def of_catalog_model(
    model: Model, request: DeployRequest, artifacts: tuple[ModelArtifact, ...], warnings: tuple[str, ...] = ()
) -> ResolvedModel:
    """A model of the catalog with the artifacts that were found for it."""
    return ResolvedModel(
        name=model.name,
        display_name=model.display_name,
        max_context=model.max_context,
        sampling=_sampling(model),
        shape=catalog_shape(model.architecture, model.max_context),
        artifacts=artifacts,
        overrides=tuple((name, _overrides(model, name, request)) for name in BACKENDS),
        version_overrides=tuple(_version_overrides(model, request)),
        warnings=warnings,
    )


def of_entry(entry: CatalogArtifact, lister: Lister) -> ModelArtifact:
    """One artifact of the catalog with its files as the hub has them. Raises HubError and its kinds."""
    if entry.format.value == LMSTUDIO:  # none of the hub's: LM Studio fetches it
        size = entry.size_bytes
        return ModelArtifact(
            format=LMSTUDIO, quantization=entry.quantization, repository=entry.repository, weights_bytes=size
        )
    snapshot = lister(entry.repository)
    files = snapshot.select(entry.files)
    kind = ".gguf" if entry.format.value == GGUF else ".safetensors"
    if not any(file.path.endswith(kind) for file in files):
        raise NoFilesError(f"{entry.repository} has no {kind} file for {entry.quantization}")
    artifact = _artifact(snapshot, entry.format.value, entry.quantization, files)
    if entry.projector:
        artifact = artifact.model_copy(
            update={"projector": gguf_files.choose_projector(snapshot.select((entry.projector,)))}
        )
        if artifact.projector is None:
            raise NoFilesError(f"{entry.repository} has no multimodal projector {entry.projector}")
        artifact = artifact.seeing(True)
    return artifact


def _artifact(
    snapshot: HubSnapshot,
    artifact_format: str,
    quantization: str,
    files: tuple[ArtifactFile, ...],
    shape: ModelShape | None = None,
) -> ModelArtifact:
    projector = None
    if artifact_format == GGUF:
        files = tuple(file for file in files if not gguf_files.is_projector(file.path))
        gguf_files.demand_all_parts([file.path for file in files], snapshot.repository)
        projector = gguf_files.choose_projector(snapshot.files)
    return ModelArtifact(
        format=artifact_format,
        quantization=quantization,
        repository=snapshot.repository,
        revision=snapshot.revision,
        commit=snapshot.commit,
        endpoint=snapshot.endpoint,
        files=files,
        weights_bytes=sum(file.size_bytes for file in files if file.path.endswith((".gguf", ".safetensors"))),
        shape=shape,
        projector=projector,
    )


def _gated_warnings(repositories: set[str], lister: Lister) -> tuple[str, ...]:
    gated = sorted(repository for repository in repositories if lister(repository).gated)
    return tuple(
        f"{name} is gated: the host needs a token that may read it (hub_token in hosts.yaml, or `hf auth login` there)"
        for name in gated
    )


def _sampling(model: Model) -> tuple[tuple[str, str], ...]:
    """In the order of the lab notes' command lines, with the options' names that llama-server has for them."""
    sampling = model.sampling
    pairs = (
        ("temp", sampling.temperature),
        ("top-p", sampling.top_p),
        ("top-k", sampling.top_k),
        ("min-p", sampling.min_p),
    )
    return tuple((option, text) for option, text in pairs if text is not None)


def _overrides(model: Model, backend: str, request: DeployRequest) -> BackendOverrides:
    notes = model.notes_for(backend)
    settings = notes.for_version(request.backend_version)
    speculation = settings.speculative if request.speculative is not False else None
    variables = settings.environment | (speculation.environment if speculation else {})
    return BackendOverrides(
        arguments=settings.arguments,
        environment=tuple(EnvironmentVariable(name=name, value=value) for name, value in sorted(variables.items())),
        version=notes.version or _pinned(notes.requirements, backend),
        reasoning_parser=settings.reasoning_parser or "",
        tool_call_parser=settings.tool_call_parser or "",
        memory_fraction=settings.memory_fraction or "",
        speculative=speculation.arguments if speculation else (),
        speculative_environment=tuple(sorted(speculation.environment)) if speculation else (),
        requirements=tuple(item for item in settings.requirements if not item.startswith(f"{backend}==")),
        known_problems=settings.known_problems,
    )


def _version_overrides(model: Model, request: DeployRequest) -> Iterator[tuple[str, str, BackendOverrides]]:
    """Settings by backend and version, for a service that stays on a version nobody names this time."""
    for backend in BACKENDS:
        notes = model.notes_for(backend)
        pinned = notes.version or _pinned(notes.requirements, backend)
        for version in dict.fromkeys((*notes.versions, *((pinned,) if pinned else ()))):
            asked = request.model_copy(update={"backend_version": version})
            yield backend, version, _overrides(model, backend, asked)


def _pinned(requirements: tuple[str, ...], backend: str) -> str:
    """The version of a requirement such as "mlx-lm==0.31.1" that pins the backend itself; "" where none does."""
    found = (item.split("==", 1)[1] for item in requirements if item.startswith(f"{backend}=="))
    return next(found, "")


def catalog_shape(architecture: Architecture, max_context: int) -> ModelShape:
    """The catalog's architecture in the terms of memory."""
    latent, linear, experts = architecture.latent_attention, architecture.linear_attention, architecture.experts
    channels = (2 * linear.qk_heads + linear.v_heads) * linear.head_dimension if linear else 0
    return ModelShape(
        architecture=architecture.gguf_name,
        layers=architecture.layers,
        kv_layers=architecture.full_attention_layers,
        query_heads=architecture.query_heads,
        kv_heads=architecture.kv_heads,
        key_length=architecture.head_dimension,
        value_length=architecture.head_dimension,
        mla_latent_length=latent.kv_lora_rank + latent.rope_dimension if latent else 0,
        recurrent_layers=architecture.linear_attention_layers,
        recurrent_values_per_layer=linear.v_heads * linear.head_dimension**2 if linear else 0,
        convolution_values_per_layer=(SHORT_CONVOLUTION - 1) * channels,
        convolution_channels=channels,
        recurrent_width=linear.v_heads * linear.head_dimension if linear else 0,
        mla_head_length=architecture.head_dimension if latent else 0,
        gated_queries=linear is not None,
        width=architecture.hidden_size,
        feed_forward=architecture.ffn_size or 0,
        vocabulary=architecture.vocabulary_size,
        experts=experts.total if experts else 0,
        experts_used=experts.active if experts else 0,
        expert_feed_forward=experts.ffn_size if experts else 0,
        context_length=max_context,
    )


def _of_repository(request: DeployRequest, lister: Lister, token: str | None) -> ResolvedModel:
    """Every quantization that a repository offers; shapes and weights are read from the files' headers."""
    repository = request.repository
    snapshot = lister(repository)
    name = service_name(repository.rsplit("/", 1)[-1])
    artifacts = _gguf_artifacts(snapshot) or _folder_artifacts(snapshot, token)
    if not artifacts:
        raise NoFilesError(
            f"{repository} has neither .gguf files nor config.json with .safetensors", "choose another repository"
        )
    artifacts, warning = gguf_headers.with_headers(artifacts, file_address, token, request.quantization)
    shape = next((item.shape for item in artifacts if item.shape is not None), None)
    return ResolvedModel(
        name=name,
        display_name=repository,
        max_context=shape.context_length if shape else None,
        shape=shape,
        artifacts=artifacts,
        warnings=(*_gated_warnings({repository}, lister), *((warning,) if warning else ())),
    )


def _gguf_artifacts(snapshot: HubSnapshot) -> tuple[ModelArtifact, ...]:
    groups: dict[str, list[ArtifactFile]] = {}
    for file in snapshot.files:
        base = PurePosixPath(file.path).name
        if file.path.endswith(".gguf") and not base.startswith(("mmproj", "imatrix")):
            groups.setdefault(quantization_of_file(file.path), []).append(file)
    return tuple(_artifact(snapshot, GGUF, quantization, tuple(files)) for quantization, files in groups.items())


def file_address(artifact: ModelArtifact, path: str) -> str:
    """Where the hub has a file of an artifact."""
    return f"{artifact.endpoint or DEFAULT_ENDPOINT}/{artifact.repository}/resolve/{artifact.commit}/{path}"


def _url(snapshot: HubSnapshot, path: str) -> str:
    return f"{snapshot.endpoint or DEFAULT_ENDPOINT}/{snapshot.repository}/resolve/{snapshot.commit}/{path}"


def _folder_artifacts(snapshot: HubSnapshot, token: str | None) -> tuple[ModelArtifact, ...]:
    paths = {file.path for file in snapshot.files}
    if "config.json" not in paths or not any(path.endswith(".safetensors") for path in paths):
        return ()
    config = config_json.parse_config(_fetch_text(_url(snapshot, "config.json"), token))
    artifact_format = MLX if config_json.is_mlx(config) else SAFETENSORS
    files = snapshot.select(())
    shape = config_json.shape_of(config)
    return (_artifact(snapshot, artifact_format, config_json.quantization_of(config), files, shape),)


def _fetch_text(url: str, token: str | None) -> str:
    request = urllib.request.Request(url)
    if token:
        request.add_unredirected_header("Authorization", f"Bearer {token}")
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            text: str = answer.read(_CONFIG_LIMIT_BYTES).decode("utf-8", errors="replace")
            return text
    except OSError as error:
        raise HubError(f"{url} cannot be read: {error}", "try again, or set HF_ENDPOINT") from error
