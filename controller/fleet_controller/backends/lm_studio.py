"""LM Studio, driven through its command line `lms`; the server is LM Studio's own, one for all models of a user.

`lms server start` returns at once, so what the agent supervises is `lms log stream`: its output is the service's log.
Before each start the daemon, the server and the model are brought up; after the end our model is unloaded, by the
identifier that we gave it. Neither the server nor the daemon is ever stopped: others may be served by them.

A model is loaded with `--exact` by its path in LM Studio's store, because a plain key is matched by its letters and
the first hit is loaded. How it gets into the store depends on its format:
- an entry of LM Studio's own catalog, as in the lab notes (`lms get zai-org/glm-4.7-flash`), and an MLX repository are
  fetched by LM Studio: the former exists nowhere else, the latter is a folder, and `lms import` takes only files. An
  exact name takes no quantization (lms says "Invalid artifact name"): LM Studio chooses it for the hardware;
- a GGUF file of the hub is fetched and verified by us into the host's Hugging Face cache, where every other tool sees
  it, and imported as a link. The commit is part of the folder's name, so that a link never means another file.

Flags and texts: facts of lmstudio-ai/lms at 07b7252. No real LM Studio has been driven yet (docs/lm_studio.md).
"""

import hashlib
import json
from pathlib import PurePosixPath

from fleet_controller.backends.base import (
    BackendError,
    Installation,
    InstallRequest,
    MemoryUse,
    ServeCommand,
    ServeOptions,
    engines_of,
    hub_snapshot_dir,
)
from fleet_controller.domain.addresses import is_loopback
from fleet_controller.domain.facts import HostFacts
from fleet_controller.domain.resolved import GGUF, LMSTUDIO, MLX, ModelArtifact
from fleet_controller.domain.services import ReadinessProbe, ToolRun
from fleet_controller.domain.steps import InstallerScript, InstallerScriptStep, RunToolStep, Step, ToolRef

LMS = ToolRef(name="lms")
INSTALLER_URL = "https://lmstudio.ai/install.sh"  # https://lmstudio.ai/docs, Linux and macOS
INSTALL_COMMAND = f"curl -fsSL {INSTALLER_URL} | bash"
GREETING_PATH = "/lmstudio-greeting"
ALREADY_IMPORTED = "Target file already exists"  # src/subcommands/importCmd.ts, exit code 1
# Nobody else's model has such an identifier, so that nobody else's is ever unloaded.
IDENTIFIER_PREFIX = "fleet-"
LOCAL_OWNER = "local"
# LM Studio serves so many requests at once where nothing is said, over one common KV cache.
DEFAULT_PARALLEL = 4
GPU_RESERVE_BYTES = 1024 * 1024**2
CPU_RESERVE_BYTES = 512 * 1024**2
SLOWEST_LOAD_BYTES_PER_SECOND = 100_000_000
DAEMON_LIMIT_SECONDS = 120.0  # the first start of a day may update it
SHORTEST_LOAD_LIMIT_SECONDS = 180.0
DOWNLOAD_STALL_SECONDS = 900.0
MISSING = "lm-studio-missing"
NEWEST_RUNTIMES = "newest runtimes"
# Guessed, as no real one has been installed: the daemon with its first runtimes.
DISK_BYTES = 3 * 1024**3


class LmStudio:
    """See the module's docstring. There are no versions to choose from: LM Studio is one per user, updating itself."""

    name = "lm-studio"
    formats: tuple[str, ...] = (LMSTUDIO, GGUF, MLX)
    default_port = 1234
    offloads = False  # `--gpu max`
    shared_port_path = GREETING_PATH
    installer_url = INSTALLER_URL

    def unsupported_reason(self, facts: HostFacts) -> str | None:
        system = facts.system
        if system.os == "darwin" and system.architecture != "arm64":
            return "LM Studio needs Apple silicon on a Mac"
        return None if system.os in ("linux", "darwin") else f"LM Studio is not driven on {system.os}"

    def uses_gpus(self, facts: HostFacts) -> bool:
        return bool(facts.gpus)

    def is_present(self, facts: HostFacts) -> bool:
        return any(tool.name == LMS.name for tool in facts.tools) or bool(engines_of(facts, self.name))

    def plan_install(self, facts: HostFacts, request: InstallRequest) -> Installation:
        """What is there is used; else its maker's script, where a person agreed. Raises BackendError (refused)."""
        if request.version:
            raise BackendError(
                "no-versions",
                "LM Studio has no versions side by side: it is one program per user, which updates itself",
                "leave the version out; `fleet backends upgrade lm-studio` gets its newest runtimes",
                refused=True,
            )
        if request.engine_path or request.offline_folder:
            raise BackendError(
                "cannot-adopt",
                "LM Studio is found by its `lms`, not by a folder",
                "name the path of `lms` under `tools` of the host in hosts.yaml, then `fleet up` it again",
                refused=True,
            )
        if self.is_present(facts) and request.newest:
            return _newest_runtimes()
        if self.is_present(facts):
            return Installation(backend=self.name, version="", install_key="")
        user = f" as {facts.system.user}" if facts.system.user else ""
        if request.installer is None:
            raise BackendError(
                MISSING,
                "LM Studio is not on this host (no `lms` in the PATH nor in ~/.lmstudio/bin), and its maker's install "
                "script is run only where somebody agrees to it",
                "`fleet backends install lm-studio --install-lm-studio` runs it, as does a deploy with that option; "
                f"or log in there{user} and run {INSTALL_COMMAND}",
                refused=True,
            )
        return _installation(request.installer, user)

    def model_path(self, artifact: ModelArtifact, hf_home: str) -> str:
        """The path within LM Studio's store, as `lms ls --json` shows it under "path"."""
        if artifact.format in (LMSTUDIO, MLX):
            if artifact.local_path:
                raise ValueError("LM Studio takes an MLX model from the hub only, not from a folder")
            return artifact.repository
        return f"{_store_folder(artifact)}/{PurePosixPath(artifact.local_path or artifact.main_file()).name}"

    def memory_use(self, context_tokens: int, max_parallel: int, on_gpu: bool) -> MemoryUse:
        """One KV cache for all requests: any of them may use all of the context."""
        return MemoryUse(
            context_tokens=context_tokens,
            sequences=max_parallel or DEFAULT_PARALLEL,
            reserve_bytes_per_device=GPU_RESERVE_BYTES if on_gpu else CPU_RESERVE_BYTES,
        )

    def serve(self, installation: Installation, options: ServeOptions) -> ServeCommand:
        """Raises BackendError (refused) for an address that others reach: `lms` has no way to ask for a key."""
        if not is_loopback(options.host):
            raise BackendError(
                "no-api-key",
                f"LM Studio's server takes no API key through lms, so it may not listen on {options.host}",
                "leave --bind out, and reach it through `fleet forward`",
                refused=True,
            )
        identifier = f"{IDENTIFIER_PREFIX}{options.model_name}"
        load = ["load", "--exact", options.model_path, "--context-length", str(options.context_tokens)]
        load += ["--identifier", identifier, "--gpu", "max", "-y"]
        load += ["--parallel", str(options.max_parallel)] if options.max_parallel else []
        load += options.overrides.arguments
        limit = SHORTEST_LOAD_LIMIT_SECONDS + options.weights_bytes / SLOWEST_LOAD_BYTES_PER_SECOND
        return ServeCommand(
            tool=LMS,
            arguments=("log", "stream", "--json", "--stats"),
            environment=options.overrides.environment,
            readiness=ReadinessProbe(path="/v1/models"),
            served_model_name=identifier,
            before_start=(
                _run(DAEMON_LIMIT_SECONDS, "daemon", "up"),
                _run(0.0, "server", "start", "--port", str(options.port), "--bind", options.host),
                _run(limit, *load),
                _run(0.0, "ps", "--json"),
            ),
            after_stop=(_run(0.0, "unload", identifier),),
            shared_port_path=self.shared_port_path,
        )

    def parse_version(self, output: str) -> str | None:
        """Of `lms version --json`: the commit that lms was built from."""
        try:
            version = json.loads(output)["version"]
        except (ValueError, KeyError, TypeError):
            return None
        return str(version) if version else None

    def fetches(self, artifact: ModelArtifact) -> bool:
        return artifact.format in (LMSTUDIO, MLX)

    def store_steps(self, artifact: ModelArtifact, hf_home: str) -> tuple[Step, ...]:
        """Fetching with `lms get`, or linking the files that we fetched into LM Studio's store with `lms import`."""
        if self.fetches(artifact):
            at_hub = "https://huggingface.co/" if artifact.format == MLX else ""
            up = RunToolStep(tool=LMS, arguments=("daemon", "up"), deadline_seconds=DAEMON_LIMIT_SECONDS)
            get = RunToolStep(
                tool=LMS,
                arguments=("get", f"{at_hub}{artifact.repository}", "-y"),
                stall_seconds=DOWNLOAD_STALL_SECONDS,
            )
            return Step(name="start LM Studio", run_tool=up), Step(name=f"get {artifact.repository}", run_tool=get)
        return tuple(_import(artifact, path) for path in _gguf_paths(artifact, hf_home))

    def store_warning(self, artifact: ModelArtifact) -> str:
        if not self.fetches(artifact):
            return ""
        size = f" ({artifact.weights_bytes / 1e9:.1f} GB)" if artifact.weights_bytes else ""
        return (
            f"LM Studio itself fetches {artifact.repository}{size} where it lacks it, newest revision, unchecked; "
            f"it chooses the quantization by the hardware, {artifact.quantization} is what the catalog expects"
        )


def _installation(script: InstallerScript, user: str) -> Installation:
    step = InstallerScriptStep(url=script.url, sha256=script.sha256, tool=LMS.name)
    warning = (
        f"LM Studio's maker installs by a script, which runs{user} and which fleet has not read: "
        f"{script.url}, sha256 {script.sha256}"
    )
    return Installation(
        backend=LmStudio.name,
        version="",
        install_key="",
        steps=(Step(name="install LM Studio", installer_script=step),),
        disk_bytes=DISK_BYTES,
        warnings=(warning,),
    )


def _newest_runtimes() -> Installation:
    """The engines that LM Studio computes with; the daemon stays, since others may be served by it."""
    up = RunToolStep(tool=LMS, arguments=("daemon", "up"), deadline_seconds=DAEMON_LIMIT_SECONDS)
    update = RunToolStep(tool=LMS, arguments=("runtime", "update", "-y"), stall_seconds=DOWNLOAD_STALL_SECONDS)
    return Installation(
        backend=LmStudio.name,
        version=NEWEST_RUNTIMES,
        install_key="",
        steps=(Step(name="start LM Studio", run_tool=up), Step(name="update LM Studio's runtimes", run_tool=update)),
        disk_bytes=DISK_BYTES,
        warnings=("models that are loaded stay on the runtime they have; `lms daemon update` is left to you",),
    )


def _run(limit_seconds: float, *arguments: str) -> ToolRun:
    return ToolRun(tool=LMS, arguments=arguments, limit_seconds=limit_seconds)


def _store_folder(artifact: ModelArtifact) -> str:
    """<owner>/<name>-<commit>, or local/<file's stem>-<hash of its path> for a file that lies on the hosts."""
    if artifact.local_path:
        digest = hashlib.sha256(artifact.local_path.encode()).hexdigest()[:8]
        return f"{LOCAL_OWNER}/{PurePosixPath(artifact.local_path).stem}-{digest}"
    return f"{artifact.repository}-{artifact.commit[:8]}"


def _gguf_paths(artifact: ModelArtifact, hf_home: str) -> tuple[str, ...]:
    """All parts of a split model; a projector beside it is found by LM Studio by its name."""
    if artifact.local_path:
        return (artifact.local_path,)
    snapshot = hub_snapshot_dir(artifact, hf_home)
    return tuple(f"{snapshot}/{file.path}" for file in artifact.files if file.path.endswith(".gguf"))


def _import(artifact: ModelArtifact, path: str) -> Step:
    arguments = ("import", "--yes", "--symbolic-link", "--user-repo", _store_folder(artifact), path)
    run = RunToolStep(tool=LMS, arguments=arguments, deadline_seconds=60.0, already_done_text=ALREADY_IMPORTED)
    return Step(name=f"import {PurePosixPath(path).name} into LM Studio", run_tool=run)
