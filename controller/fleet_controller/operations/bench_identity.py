"""What identifies a cell: everything known before a run that makes two runs comparable."""

import hashlib

from fleet_controller.benchmarking.cells import Identity, chip_of
from fleet_controller.benchmarking.clients import Client, Subject, client_version
from fleet_controller.benchmarking.suites import Part
from fleet_controller.domain.resolved import ModelArtifact
from fleet_controller.domain.services import ServiceSpec
from fleet_controller.domain.steps import BenchStep
from fleet_controller.operations.bench_case import MODEL_OPTIONS, Case


def identity_of(
    case: Case,
    name: str,
    quantization: str,
    artifact: str,
    digest: str,
    subject: Subject,
    client: Client,
    part: Part,
    spec: ServiceSpec,
    step: BenchStep,
) -> Identity:
    facts = case.facts
    gpu = next((gpu for gpu in facts.gpus if gpu.index in spec.gpu_indices), None)
    cuda = facts.nvidia.cuda_version if facts.nvidia and gpu else None
    return Identity(
        host=case.host.name,
        machine_id=facts.machine_id,
        chip=chip_of(facts, spec.gpu_indices),
        device_count=max(len(spec.gpu_indices), 1),
        driver_version=(facts.nvidia.driver_version or "") if facts.nvidia and gpu else "",
        runtime_version=f"CUDA {cuda}" if cuda else "",
        os_name=facts.system.os_name,
        power_limit_watts=gpu.power_limit_watts if gpu else None,
        persistence_mode=gpu.persistence_mode if gpu else None,
        backend=subject.backend,
        backend_version=subject.installation.version,
        install_key=subject.installation.install_key,
        model=name,
        quantization=quantization,
        artifact=artifact,
        artifact_digest=digest,
        suite=case.suite.name,
        client=client.name,
        client_version=client_version(client, subject),
        flags=_flags(spec, subject, case.request.tokenizer) if client.over_http else "",
        part=part,
    )


def _flags(spec: ServiceSpec, subject: Subject, tokenizer: str) -> str:
    """What a server was started with, without paths, names and ports: they change no speed; and a tokenizer that
    was asked for, since it makes other prompts."""
    import shlex

    kept, skip = [], False
    for word in spec.arguments:
        if skip:
            skip = False
        elif word in (*MODEL_OPTIONS, "--port", "--host", "--alias", "--served-model-name", "--mmproj"):
            skip = True
        elif word != subject.model_path:
            kept.append(word)
    return shlex.join([*kept, *(["--tokenizer", tokenizer] if tokenizer else [])])


def artifact_digest(artifact: ModelArtifact) -> str:
    if not artifact.files:
        return f"{artifact.local_path}:{artifact.weights_bytes or 0}"
    text = "".join(f"{file.path}:{file.sha256 or file.git_blob_id}:{file.size_bytes}\n" for file in artifact.files)
    return hashlib.sha256(text.encode()).hexdigest()[:32]
