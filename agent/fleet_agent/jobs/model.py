"""Jobs and their steps as frozen values. They mirror jobs.proto, where each field is described."""

from dataclasses import dataclass, fields
from enum import Enum

from fleet_agent.jobs.errors import SpecProblem


class JobState(str, Enum):
    """Names are those of the wire."""

    UNSPECIFIED = "JOB_STATE_UNSPECIFIED"
    QUEUED = "JOB_STATE_QUEUED"
    RUNNING = "JOB_STATE_RUNNING"
    SUCCEEDED = "JOB_STATE_SUCCEEDED"
    FAILED = "JOB_STATE_FAILED"
    CANCELLED = "JOB_STATE_CANCELLED"

    @property
    def terminal(self) -> bool:
        return self in (JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED)


@dataclass(frozen=True)
class Problem:
    code: str = ""
    message: str = ""
    remedy: str = ""
    tail: tuple[str, ...] = ()


@dataclass(frozen=True)
class EnvironmentVariable:
    name: str = ""
    value: str = ""


@dataclass(frozen=True)
class SecretVariable:
    name: str = ""
    secret: str = ""


@dataclass(frozen=True)
class ToolRef:
    install_key: str = ""
    name: str = ""


@dataclass(frozen=True)
class ArtifactFile:
    path: str = ""
    size_bytes: int = 0
    sha256: str = ""
    git_blob_id: str = ""


@dataclass(frozen=True)
class Artifact:
    """One commit of one repository in the cache; `files` are paths within the repository."""

    repository: str = ""
    commit: str = ""
    revisions: tuple[str, ...] = ()
    size_bytes: int = 0
    files: tuple[str, ...] = ()
    services: tuple[str, ...] = ()
    jobs: tuple[str, ...] = ()
    brought: bool = False
    own_bytes: int = 0


@dataclass(frozen=True)
class PythonEnvironmentStep:
    install_key: str = ""
    backend: str = ""
    version: str = ""
    python: str = ""
    requirements: tuple[str, ...] = ()
    find_links: tuple[str, ...] = ()
    no_index: bool = False
    torch_backend: str = ""
    extra_index_urls: tuple[str, ...] = ()
    overrides: tuple[str, ...] = ()
    prerelease: bool = False


@dataclass(frozen=True)
class GitCheckoutStep:
    url: str = ""
    ref: str = ""
    source_key: str = ""


@dataclass(frozen=True)
class SourceArchiveStep:
    url: str = ""
    path: str = ""
    python_sdist: str = ""
    sha256: str = ""
    strip_components: int = 0
    subdirectory: str = ""
    source_key: str = ""
    folder: str = ""
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class CmakeBuildStep:
    source_key: str = ""
    install_key: str = ""
    backend: str = ""
    version: str = ""
    options: tuple[str, ...] = ()
    targets: tuple[str, ...] = ()
    parallel: int = 0
    ninja: bool = False


@dataclass(frozen=True)
class AdoptEngineStep:
    install_key: str = ""
    backend: str = ""
    version: str = ""
    path: str = ""
    binaries: tuple[str, ...] = ()
    source_key: str = ""


@dataclass(frozen=True)
class HubDownloadStep:
    repository: str = ""
    commit: str = ""
    revision: str = ""
    endpoint: str = ""
    files: tuple[ArtifactFile, ...] = ()
    token_file: str = ""
    offline: bool = False


@dataclass(frozen=True)
class VerifyFileStep:
    path: str = ""
    size_bytes: int | None = None
    sha256: str = ""


@dataclass(frozen=True)
class InstallerScriptStep:
    url: str = ""
    sha256: str = ""
    tool: str = ""


@dataclass(frozen=True)
class RunToolStep:
    tool: ToolRef = ToolRef()
    arguments: tuple[str, ...] = ()
    environment: tuple[EnvironmentVariable, ...] = ()
    stall_seconds: float = 0.0
    deadline_seconds: float = 0.0
    capture_output: bool = False
    secret_environment: tuple[SecretVariable, ...] = ()
    already_done_text: str = ""


@dataclass(frozen=True)
class HealthProbeStep:
    url: str = ""
    timeout_seconds: float = 0.0


@dataclass(frozen=True)
class ChatProbeStep:
    base_url: str = ""
    model: str = ""
    prompt: str = ""
    max_tokens: int = 0
    timeout_seconds: float = 0.0
    api_key_file: str = ""
    temperature: float | None = None


@dataclass(frozen=True)
class DeviceWatch:
    gpu_indices: tuple[int, ...] = ()
    idle_wait_seconds: float = 0.0
    foreign_cpu_percent: float = 0.0
    interval_seconds: float = 0.0


@dataclass(frozen=True)
class BenchServer:
    tool: ToolRef = ToolRef()
    arguments: tuple[str, ...] = ()
    environment: tuple[EnvironmentVariable, ...] = ()
    readiness_path: str = ""
    start_limit_seconds: float = 0.0


@dataclass(frozen=True)
class GeneratedModel:
    layers: int = 0
    hidden_size: int = 0
    feed_forward_size: int = 0
    heads: int = 0
    key_value_heads: int = 0
    head_size: int = 0
    vocabulary_size: int = 0
    quantization: str = ""


@dataclass(frozen=True)
class BenchStep:
    tool: ToolRef = ToolRef()
    arguments: tuple[str, ...] = ()
    environment: tuple[EnvironmentVariable, ...] = ()
    stall_seconds: float = 0.0
    watch: DeviceWatch = DeviceWatch()
    server: BenchServer | None = None
    warmup_arguments: tuple[str, ...] = ()
    warmup_limit: int = 0
    mark: str = ""
    pause_services: bool = False
    service: str = ""
    measured_port: int = 0
    artifact_paths: tuple[str, ...] = ()
    repeats: int = 0
    service_is_idle: bool = False
    secret_environment: tuple[SecretVariable, ...] = ()
    generated: GeneratedModel | None = None


@dataclass(frozen=True)
class EvaluateFile:
    """`content_gzip` is base64, as in protobuf's JSON."""

    name: str = ""
    content_gzip: str = ""


@dataclass(frozen=True)
class EvaluateStep:
    state_key: str = ""
    program: str = ""
    tool: ToolRef = ToolRef()
    arguments: tuple[str, ...] = ()
    files: tuple[EvaluateFile, ...] = ()
    environment: tuple[EnvironmentVariable, ...] = ()
    secret_environment: tuple[SecretVariable, ...] = ()
    server: BenchServer | None = None
    takes_devices: bool = False
    gpu_indices: tuple[int, ...] = ()
    pause_services: bool = False
    artifact_paths: tuple[str, ...] = ()
    required_text: str = ""
    repeats: int = 0
    produces: str = ""
    removes: tuple[str, ...] = ()
    stall_seconds: float = 0.0


@dataclass(frozen=True)
class RelayStep:
    rollout: str = ""
    node: str = ""
    allowed: tuple[str, ...] = ()
    repository: str = ""
    commit: str = ""
    revision: str = ""
    files: tuple[ArtifactFile, ...] = ()
    piece_bytes: int = 0
    listen_host: str = ""
    first_port: int = 0
    last_port: int = 0
    upload_bytes_per_second: int = 0
    download_bytes_per_second: int = 0


@dataclass(frozen=True)
class VerifyArtifactsStep:
    repository: str = ""
    commit: str = ""


@dataclass(frozen=True)
class HashFolderStep:
    path: str = ""


StepKind = (
    PythonEnvironmentStep
    | GitCheckoutStep
    | SourceArchiveStep
    | CmakeBuildStep
    | AdoptEngineStep
    | HubDownloadStep
    | VerifyFileStep
    | RunToolStep
    | HealthProbeStep
    | ChatProbeStep
    | BenchStep
    | InstallerScriptStep
    | EvaluateStep
    | RelayStep
    | VerifyArtifactsStep
    | HashFolderStep
)


@dataclass(frozen=True)
class Step:
    """Exactly one kind is set."""

    name: str = ""
    python_environment: PythonEnvironmentStep | None = None
    git_checkout: GitCheckoutStep | None = None
    source_archive: SourceArchiveStep | None = None
    cmake_build: CmakeBuildStep | None = None
    adopt_engine: AdoptEngineStep | None = None
    hub_download: HubDownloadStep | None = None
    verify_file: VerifyFileStep | None = None
    run_tool: RunToolStep | None = None
    health_probe: HealthProbeStep | None = None
    chat_probe: ChatProbeStep | None = None
    bench: BenchStep | None = None
    installer_script: InstallerScriptStep | None = None
    evaluate: EvaluateStep | None = None
    relay: RelayStep | None = None
    verify_artifacts: VerifyArtifactsStep | None = None
    hash_folder: HashFolderStep | None = None

    @property
    def kind(self) -> StepKind:
        """The one kind that is set. Raises SpecProblem where it is none or several."""
        values = [getattr(self, field.name) for field in fields(self) if field.name != "name"]
        present = [value for value in values if value is not None]
        if len(present) != 1:
            raise SpecProblem(
                f"step {self.name!r} has {len(present)} kinds instead of one",
                "the controller may be newer than this agent: run `fleet agent upgrade`",
            )
        kind: StepKind = present[0]
        return kind


@dataclass(frozen=True)
class JobSpec:
    job_id: str = ""
    title: str = ""
    steps: tuple[Step, ...] = ()
    disk_needed_bytes: int = 0
    environment: tuple[EnvironmentVariable, ...] = ()


@dataclass(frozen=True)
class JobStatus:
    job_id: str = ""
    title: str = ""
    state: JobState = JobState.UNSPECIFIED
    last_sequence: int = 0
    created_unix_ms: int = 0
    started_unix_ms: int | None = None
    finished_unix_ms: int | None = None
    problem: Problem | None = None
    attempts: int = 0
    current_step: str | None = None
    spec_digest: str = ""


@dataclass(frozen=True)
class Progress:
    done: int = 0
    total: int | None = None
    unit: str = ""
    label: str = ""


@dataclass(frozen=True)
class LogLine:
    stream: str = ""
    text: str = ""


@dataclass(frozen=True)
class StepResult:
    json: str = ""


@dataclass(frozen=True)
class JobEvent:
    """Exactly one of the optional fields is set; sequence runs 1, 2, 3, ... within a job."""

    sequence: int = 0
    time_unix_ms: int = 0
    step_index: int = 0
    state: JobState | None = None
    step_started: str | None = None
    step_finished: str | None = None
    progress: Progress | None = None
    log: LogLine | None = None
    result: StepResult | None = None
    problem: Problem | None = None
    document: str | None = None

    @property
    def durable(self) -> bool:
        """Whether it must be on disk before work goes on; what tells how it goes may be lost with the power."""
        return self.progress is None and self.log is None and self.document is None
