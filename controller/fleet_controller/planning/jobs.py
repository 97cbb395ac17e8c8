"""The jobs that carry out a plan, named so that the same work on the same machine is the same job."""

import hashlib
import json
from collections.abc import Iterable

from fleet_controller.backends import Backend
from fleet_controller.backends.base import KeepsModels
from fleet_controller.domain.addresses import base_url, is_loopback
from fleet_controller.domain.artifacts import Artifact
from fleet_controller.domain.base import EnvironmentVariable
from fleet_controller.domain.facts import HostFacts
from fleet_controller.domain.resolved import GGUF, ModelArtifact
from fleet_controller.domain.services import ServiceSpec
from fleet_controller.domain.steps import ChatProbeStep, HubDownloadStep, JobSpec, Step, VerifyFileStep
from fleet_controller.planning.secrets import secret_path, with_hub_token
from fleet_controller.planning.service import LOOPBACK
from fleet_inventory.hosts import Host

SMOKE_PROMPT = "Say hello in one short sentence."
SMOKE_MAX_TOKENS = 32
# Where a server on all addresses is asked from its own host.
WILDCARD_ADDRESSES = {"0.0.0.0": LOOPBACK, "::": "::1"}


def _file_steps(host: Host, artifact: ModelArtifact, cached: tuple[Artifact, ...]) -> tuple[tuple[Step, ...], int]:
    """The steps that put the model's files in place, and how many bytes they still have to fetch."""
    if artifact.local_path:
        paths = artifact.local_parts or (artifact.local_path,)
        if artifact.format != GGUF:
            paths = (f"{artifact.local_path}/config.json",)
        if artifact.projector is not None and artifact.sees:
            paths = (*paths, artifact.projector.path)
        return tuple(Step(name=f"check {path}", verify_file=VerifyFileStep(path=path)) for path in paths), 0
    held: set[str] = set()
    for found in cached:
        if found.repository == artifact.repository and found.commit == artifact.commit:
            held |= set(found.files)
    step = HubDownloadStep(
        repository=artifact.repository,
        commit=artifact.commit,
        revision=artifact.revision,
        endpoint=host.environment.get("HF_ENDPOINT") or artifact.endpoint,
        files=artifact.files,
        token_file=host.environment.get("HF_TOKEN_PATH", ""),
        offline=host.environment.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on"),
    )
    missing = sum(file.size_bytes for file in artifact.files if file.path not in held)
    return (Step(name=f"fetch {artifact.repository}", hub_download=step),), missing


def model_steps(
    host: Host, facts: HostFacts, backend: Backend, artifact: ModelArtifact, cached: tuple[Artifact, ...]
) -> tuple[tuple[Step, ...], int]:
    """Everything that puts the model where the backend serves it from, and how many bytes we still have to fetch.

    What a backend fetches itself is not counted: only it knows what it has.
    """
    if not isinstance(backend, KeepsModels):
        return _file_steps(host, artifact, cached)
    kept = backend.store_steps(artifact, facts.layout.hf_home)
    if backend.fetches(artifact):
        return kept, 0
    files, missing = _file_steps(host, artifact, cached)
    return (*files, *kept), missing


def prepare_job(
    host: Host, facts: HostFacts, spec: ServiceSpec, steps: tuple[Step, ...], disk_needed_bytes: int
) -> JobSpec:
    """Install and model files: everything that comes before the service."""
    environment = (EnvironmentVariable(name=name, value=value) for name, value in sorted(host.environment.items()))
    job = JobSpec(
        job_id="",
        title=f"deploy {spec.name} {spec.quantization}".strip(),
        steps=with_hub_token(host, facts, steps),
        disk_needed_bytes=disk_needed_bytes,
        environment=tuple(environment),
    )
    return _named("deploy", facts, spec, job)


def smoke_job(facts: HostFacts, spec: ServiceSpec) -> JobSpec | None:
    """One real chat completion, once the service is ready; None where no loopback address leads to it."""
    address = WILDCARD_ADDRESSES.get(spec.bind_address, spec.bind_address)
    if not is_loopback(address):
        return None
    probe = ChatProbeStep(
        base_url=base_url(address, spec.port),
        model=spec.served_model_name,
        prompt=SMOKE_PROMPT,
        max_tokens=SMOKE_MAX_TOKENS,
        api_key_file=secret_path(facts, spec.api_key.secret) if spec.api_key else "",
    )
    steps = (Step(name="smoke test", chat_probe=probe),)
    return _named("smoke", facts, spec, JobSpec(job_id="", title=f"ask {spec.name} something", steps=steps))


def _named(kind: str, facts: HostFacts, spec: ServiceSpec, job: JobSpec) -> JobSpec:
    """The job with its id: `<kind>-<service>-<16 hex>` over the machine, the service and the whole job.

    An agent refuses a known id with another spec, so everything in the job must count.
    """
    identity = {
        "machine": facts.machine_id,
        "service": spec.model_dump(mode="json", exclude={"promised_memory_bytes", "readiness"}),
        "job": job.model_dump(mode="json", exclude_none=True),
    }
    text = json.dumps(identity, sort_keys=True, separators=(",", ":"))
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    return job.model_copy(update={"job_id": f"{kind}-{spec.name}-{digest}"})


def retried(job: JobSpec, known_ids: Iterable[str]) -> JobSpec:
    """The same work under the next free id (`<id>-2`, `-3`, ...): for when `job` has ended and is wanted again."""
    known = set(known_ids)
    attempt = 1
    job_id = job.job_id
    while job_id in known:
        attempt += 1
        job_id = f"{job.job_id}-{attempt}"
    return job.model_copy(update={"job_id": job_id})
