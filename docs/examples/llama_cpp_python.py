"""A worked example of a sixth backend: the OpenAI server of llama-cpp-python, for GGUF files.

It is planned and tested like every backend (CONTRIBUTING.md), and is not in the table: nobody has run it through fleet.
"""

import re

from fleet_controller.backends.base import (
    BackendError,
    Installation,
    InstallRequest,
    MemoryUse,
    ServeCommand,
    ServeOptions,
    hub_snapshot_dir,
    install_key,
    installed,
    platform_options,
)
from fleet_controller.domain.facts import HostFacts
from fleet_controller.domain.resolved import ModelArtifact
from fleet_controller.domain.services import ReadinessProbe
from fleet_controller.domain.steps import PythonEnvironmentStep, Step, ToolRef

VERSION = "0.3.16"
PYTHON = "venv/bin/python3"
RESERVE_BYTES = 512 * 1024**2  # compute buffers and the process itself
INSTALL_DISK_BYTES = 1_000_000_000


class LlamaCppPython:
    """Versions are those of the llama-cpp-python distribution."""

    name = "llama-cpp-python"
    formats: tuple[str, ...] = ("gguf",)
    default_port = 8000
    offloads = False

    def unsupported_reason(self, facts: HostFacts) -> str | None:
        return None if facts.system.os in ("linux", "darwin") else f"it is not built for {facts.system.os}"

    def uses_gpus(self, facts: HostFacts) -> bool:
        return False  # what the package index has is built for the CPU

    def plan_install(self, facts: HostFacts, request: InstallRequest) -> Installation:
        if request.engine_path:
            raise BackendError(
                "cannot-adopt", "it is installed in an environment of its own", "leave --engine-path out"
            )
        version = request.version or VERSION
        if not re.fullmatch(r"\d+(\.\d+)+", version):
            raise BackendError("bad-version", f"{version!r} is no version of it", f'give one such as "{VERSION}"')
        requirements = (f"llama-cpp-python[server]=={version}",)
        key = install_key(self.name, version, {**platform_options(facts), "requirements": requirements})
        if installed(facts, key):
            return Installation(backend=self.name, version=version, install_key=key)
        step = PythonEnvironmentStep(install_key=key, backend=self.name, version=version, requirements=requirements)
        if request.offline_folder:
            step = step.model_copy(update={"find_links": (request.offline_folder,), "no_index": True})
        return Installation(
            backend=self.name,
            version=version,
            install_key=key,
            steps=(Step(name=f"install llama-cpp-python {version}", python_environment=step),),
            disk_bytes=INSTALL_DISK_BYTES,
        )

    def model_path(self, artifact: ModelArtifact, hf_home: str) -> str:
        return artifact.local_path or f"{hub_snapshot_dir(artifact, hf_home)}/{artifact.files[0].path}"

    def memory_use(self, context_tokens: int, max_parallel: int, on_gpu: bool) -> MemoryUse:
        """Its server answers one request after the other: one sequence, whatever is asked for."""
        return MemoryUse(context_tokens=context_tokens, sequences=1, reserve_bytes_per_device=RESERVE_BYTES)

    def serve(self, installation: Installation, options: ServeOptions) -> ServeCommand:
        arguments = ["-m", "llama_cpp.server", "--model", options.model_path, "--model_alias", options.model_name]
        arguments += ["--n_ctx", str(options.context_tokens), *options.overrides.arguments]
        return ServeCommand(
            tool=ToolRef(install_key=installation.install_key, name=PYTHON),
            arguments=(*arguments, "--host", options.host, "--port", str(options.port)),
            environment=options.overrides.environment,
            readiness=ReadinessProbe(path="/v1/models"),
            served_model_name=options.model_name,
        )

    def parse_version(self, output: str) -> str | None:
        found = re.search(r"^(?:Version:\s*)?(\d+(?:\.\d+)+)\s*$", output, re.MULTILINE)
        return found[1] if found else None
