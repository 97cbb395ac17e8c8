"""The typed steps a job is made of. They mirror jobs.proto, where each field is described."""

from fleet_controller.domain.base import EnvironmentVariable, Frozen


class ToolRef(Frozen):
    install_key: str = ""
    name: str = ""


class ArtifactFile(Frozen):
    path: str
    size_bytes: int
    sha256: str = ""
    git_blob_id: str = ""


class PythonEnvironmentStep(Frozen):
    install_key: str
    backend: str
    version: str
    python: str = ""
    requirements: tuple[str, ...] = ()
    find_links: tuple[str, ...] = ()
    no_index: bool = False
    torch_backend: str = ""
    extra_index_urls: tuple[str, ...] = ()
    overrides: tuple[str, ...] = ()
    prerelease: bool = False


class GitCheckoutStep(Frozen):
    url: str
    ref: str
    source_key: str


class SourceArchiveStep(Frozen):
    url: str = ""
    path: str = ""
    python_sdist: str = ""
    sha256: str = ""
    strip_components: int = 0
    subdirectory: str = ""
    source_key: str
    folder: str = ""
    names: tuple[str, ...] = ()


class CmakeBuildStep(Frozen):
    source_key: str
    install_key: str
    backend: str
    version: str
    options: tuple[str, ...] = ()
    targets: tuple[str, ...] = ()
    parallel: int = 0
    ninja: bool = False


class AdoptEngineStep(Frozen):
    install_key: str
    backend: str
    version: str
    path: str = ""
    binaries: tuple[str, ...] = ()
    source_key: str = ""


class HubDownloadStep(Frozen):
    repository: str
    commit: str
    revision: str = "main"
    endpoint: str = ""
    files: tuple[ArtifactFile, ...] = ()
    token_file: str = ""
    offline: bool = False


class VerifyFileStep(Frozen):
    path: str
    size_bytes: int | None = None
    sha256: str = ""


class SecretVariable(Frozen):
    """A variable whose value is a secret of the host, by the secret's name."""

    name: str
    secret: str


class RunToolStep(Frozen):
    tool: ToolRef
    arguments: tuple[str, ...] = ()
    environment: tuple[EnvironmentVariable, ...] = ()
    stall_seconds: float = 0.0
    deadline_seconds: float = 0.0
    capture_output: bool = False
    secret_environment: tuple[SecretVariable, ...] = ()
    already_done_text: str = ""


class InstallerScript(Frozen):
    """A maker's own install script as it was when a person agreed to it."""

    url: str
    sha256: str


class InstallerScriptStep(Frozen):
    url: str
    sha256: str
    tool: str


class HealthProbeStep(Frozen):
    url: str
    timeout_seconds: float = 30.0


class ChatProbeStep(Frozen):
    base_url: str
    model: str
    prompt: str
    max_tokens: int = 32
    timeout_seconds: float = 120.0
    api_key_file: str = ""
    temperature: float | None = None


class DeviceWatch(Frozen):
    gpu_indices: tuple[int, ...] = ()
    idle_wait_seconds: float = 60.0
    foreign_cpu_percent: float = 30.0
    interval_seconds: float = 1.0


class BenchServer(Frozen):
    tool: ToolRef
    arguments: tuple[str, ...] = ()
    environment: tuple[EnvironmentVariable, ...] = ()
    readiness_path: str = "/health"
    start_limit_seconds: float = 300.0


class GeneratedModel(Frozen):
    layers: int
    hidden_size: int
    feed_forward_size: int
    heads: int
    key_value_heads: int
    head_size: int
    vocabulary_size: int
    quantization: str


class BenchStep(Frozen):
    tool: ToolRef
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
    repeats: int = 3
    service_is_idle: bool = False
    secret_environment: tuple[SecretVariable, ...] = ()
    generated: GeneratedModel | None = None


class EvaluateFile(Frozen):
    """`content_gzip` is base64, as in protobuf's JSON."""

    name: str
    content_gzip: str = ""


class EvaluateStep(Frozen):
    state_key: str
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


class RelayStep(Frozen):
    rollout: str
    node: str
    allowed: tuple[str, ...]
    repository: str
    commit: str
    revision: str = "main"
    files: tuple[ArtifactFile, ...]
    piece_bytes: int
    listen_host: str = "0.0.0.0"
    first_port: int = 0
    last_port: int = 0
    upload_bytes_per_second: int = 0
    download_bytes_per_second: int = 0


class VerifyArtifactsStep(Frozen):
    repository: str = ""
    commit: str = ""


class HashFolderStep(Frozen):
    path: str


class Step(Frozen):
    """Exactly one kind is set."""

    name: str
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


class JobSpec(Frozen):
    job_id: str
    title: str
    steps: tuple[Step, ...]
    disk_needed_bytes: int = 0
    environment: tuple[EnvironmentVariable, ...] = ()
