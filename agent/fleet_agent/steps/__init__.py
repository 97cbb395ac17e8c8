"""The only things an agent does, one file a kind. This table says which; nothing else runs.

A step module has
    check(step)                 raises SpecProblem for a step that breaks a rule; pure, light, called on submit
    async run(step, context)    does it and returns its result as a JSON-ready dict; idempotent, raises ProblemError
"""

import importlib
from typing import Any, Protocol

from fleet_agent.jobs import model
from fleet_agent.steps.context import StepContext


class StepModule(Protocol):
    def check(self, step: Any) -> None: ...

    async def run(self, step: Any, context: StepContext) -> dict[str, Any]: ...


MODULES: dict[type[Any], str] = {
    model.PythonEnvironmentStep: "python_environment",
    model.GitCheckoutStep: "git_checkout",
    model.SourceArchiveStep: "source_archive",
    model.CmakeBuildStep: "cmake_build",
    model.AdoptEngineStep: "adopt_engine",
    model.HubDownloadStep: "hub_download",
    model.VerifyFileStep: "verify_file",
    model.RunToolStep: "run_tool",
    model.HealthProbeStep: "health_probe",
    model.ChatProbeStep: "chat_probe",
    model.BenchStep: "bench",
    model.InstallerScriptStep: "installer_script",
    model.EvaluateStep: "evaluate",
    model.RelayStep: "relay",
    model.VerifyArtifactsStep: "verify_artifacts",
    model.HashFolderStep: "hash_folder",
}


def module_for(kind: model.StepKind) -> StepModule:
    """The module of a step kind, imported when first needed: the agent's server process stays light."""
    module: StepModule = importlib.import_module(f"{__name__}.{MODULES[type(kind)]}")
    return module
