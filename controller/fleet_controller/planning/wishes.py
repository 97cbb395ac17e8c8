"""What a request leaves open stays as it runs: the request for one host, filled in from the service that is there.

`ServiceSpec.backend_options` holds what a deploy asked for beyond the spec's own fields, as canonical JSON, so that the
next deploy of the same service can keep it without being told.
"""

import json

from fleet_controller.backends.base import SharesServer
from fleet_controller.backends.options import EngineOptions
from fleet_controller.backends.vllm_cpu import CPU_SUFFIX
from fleet_controller.domain.plan import DeployRequest
from fleet_controller.domain.resolved import BackendOverrides, ModelArtifact, ResolvedModel
from fleet_controller.domain.services import ServiceSpec
from fleet_controller.planning.secrets import API_KEY_PREFIX
from fleet_controller.planning.usable import backend_named

# Kept by their names in backend_options: what a user asks of a server, whichever backend it is.
KEPT_OPTIONS = (*EngineOptions.model_fields, "speculative")


def options_json(request: DeployRequest) -> str:
    """The options that were asked for, as canonical JSON; "" where there is none.

    The API key's reference is among them: it tells the users of the endpoint where the key is.
    """
    values = {name: getattr(request, name) for name in (*KEPT_OPTIONS, "api_key")}
    asked = {name: value for name, value in values.items() if value not in ("", None)}
    return json.dumps(asked, sort_keys=True, separators=(",", ":")) if asked else ""


def kept_options(text: str) -> dict[str, object]:
    """What options_json wrote; {} for anything else, which a service of an earlier version has."""
    try:
        document = json.loads(text)
    except ValueError:
        return {}
    known = document if isinstance(document, dict) else {}
    return {name: value for name, value in known.items() if name in KEPT_OPTIONS}


def _kept_key(request: DeployRequest, spec: ServiceSpec) -> dict[str, object]:
    """The key that the server asks for now: it is on the host, and its reference says where a person finds it."""
    if request.api_key or spec.api_key is None:
        return {}
    try:
        reference = json.loads(spec.backend_options).get("api_key", "")
    except (ValueError, AttributeError):
        return {}
    return {"api_key": reference, "api_key_id": spec.api_key.secret.removeprefix(API_KEY_PREFIX)} if reference else {}


def filled(request: DeployRequest, resolved: ResolvedModel, spec: ServiceSpec) -> DeployRequest:
    """The request with what it leaves open as `spec` runs it.

    Another model under the same name, or another backend, begins anew: options are a backend's own words, and a
    quantization that it reads may not be among those of the other one. The port stays, unless it is that of a server
    that other services of its backend share.
    """
    wanted = backend_named(request.backend) if request.backend else None
    moves = wanted is not None and wanted.name != spec.backend
    is_shared = bool(spec.shared_port_path) or isinstance(wanted, SharesServer)
    update: dict[str, object] = {} if moves and is_shared else {"port": request.port or spec.port}
    if moves or not _same_model(resolved, spec):
        return request.model_copy(update=update)
    update |= {
        "backend": spec.backend,
        "quantization": request.quantization or spec.quantization,
        "context_length": request.context_length or spec.context_length,
        "max_parallel": request.max_parallel or spec.max_parallel or None,
        "bind_address": request.bind_address or spec.bind_address,
    }
    if spec.backend_version.endswith(CPU_SUFFIX):
        update["backend_version"] = request.backend_version or spec.backend_version
    update |= _kept_key(request, spec)
    for name, value in kept_options(spec.backend_options).items():
        if getattr(request, name) in ("", None):
            update[name] = value
    return request.model_copy(update=update)


def _same_model(resolved: ResolvedModel, spec: ServiceSpec) -> bool:
    for item in resolved.artifacts:
        named = item.repository or item.local_path
        if spec.model == named or (named.startswith("./") and spec.model.endswith(named[1:])):
            return True
    return False


def as_asked(resolved: ResolvedModel, request: DeployRequest, running: ServiceSpec | None) -> ResolvedModel:
    """The model with its settings for what was asked: name, memory fraction, speculation, the version that stays."""
    artifacts = tuple(_labelled(item, request.quantization) for item in resolved.artifacts)
    named = resolved.model_copy(update={"name": request.service_name or resolved.name, "artifacts": artifacts})
    for backend, overrides in resolved.overrides:
        named = named.with_overrides(backend, _as_asked(resolved, backend, overrides, request, running))
    if request.memory_fraction is not None:
        missing = {"vllm", "sglang"} - {backend for backend, _ in resolved.overrides}
        for backend in sorted(missing):
            named = named.with_overrides(backend, BackendOverrides(memory_fraction=f"{request.memory_fraction:g}"))
    return named


def _labelled(artifact: ModelArtifact, quantization: str) -> ModelArtifact:
    """A path on a host is one file, not a choice: the quantization is what somebody called it."""
    if not artifact.local_path or not quantization:
        return artifact
    return artifact.model_copy(update={"quantization": quantization})


def _as_asked(
    resolved: ResolvedModel,
    backend: str,
    overrides: BackendOverrides,
    request: DeployRequest,
    running: ServiceSpec | None,
) -> BackendOverrides:
    if running is not None and running.backend == backend and not request.backend_version:
        others = resolved.version_overrides
        overrides = next((o for n, v, o in others if n == backend and v == running.backend_version), overrides)
    if request.speculative is False:
        overrides = overrides.without_speculation()
    if request.memory_fraction is not None:
        overrides = overrides.model_copy(update={"memory_fraction": f"{request.memory_fraction:g}"})
    return overrides
