"""Plans for the host kinds of the lab notes, from captured facts and hub listings, and their golden files.

Golden files are written anew with FLEET_UPDATE_GOLDEN=1; the comparison with the notes does not depend on them.
"""

import json
import os
from pathlib import Path
from typing import Any

from fleet_controller.backends.versions import MLX_LM_VERSION, VLLM_VERSION
from fleet_controller.domain.facts import HostFacts
from fleet_controller.domain.plan import DeployRequest, HostPlan
from fleet_controller.domain.services import ServiceStatus
from fleet_controller.domain.steps import ArtifactFile
from fleet_controller.hub.metadata import HubSnapshot
from fleet_controller.hub.resolve import resolve_with
from fleet_controller.planning.plan import PlannedDeployment, plan_host
from fleet_inventory.catalog import load_catalog
from fleet_inventory.hosts import Host

DATA = Path(__file__).parents[1] / "controller" / "planning" / "data"


def facts_of(host: str) -> HostFacts:
    return HostFacts.model_validate_json((DATA / f"{host}.facts.json").read_text(encoding="utf-8"))


def listing(repository: str) -> HubSnapshot:
    entry = json.loads((DATA / "hub_listings.json").read_text(encoding="utf-8"))[repository]
    files = tuple(ArtifactFile.model_validate(file) for file in entry["files"])
    return HubSnapshot(repository=repository, revision="main", commit=entry["commit"], files=files)


def deploy(facts: HostFacts, host: str, services: tuple[ServiceStatus, ...] = (), **wishes: Any) -> PlannedDeployment:
    """The plan for one host where `services` run; `wishes` are fields of DeployRequest."""
    request = DeployRequest(**wishes)
    resolved = resolve_with(request, load_catalog(), listing)
    return plan_host(Host(name=host, address=host), facts, services, request, resolved)


def served(plan: HostPlan) -> list[str]:
    return list(next(command.argv for command in plan.commands if command.purpose == "serve"))


def places_of(facts: HostFacts, deployment: PlannedDeployment) -> dict[str, str]:
    """What the substitutions' {places} are on this host for this plan."""
    service, prepare = deployment.plan.service, deployment.prepare
    assert service is not None and prepare is not None
    download = next(step.hub_download for step in prepare.steps if step.hub_download)
    build = next((step.cmake_build for step in prepare.steps if step.cmake_build), None)
    engines, repository = facts.layout.engines_dir, download.repository.replace("/", "--")
    tools = {tool.name: tool.path for tool in facts.tools}
    version = service.backend_version
    return {
        "engine": f"{engines}/{service.tool.install_key}",
        "source": f"{engines}/sources/{build.source_key}" if build else "",
        "snapshot": f"{facts.layout.hf_home}/hub/models--{repository}/snapshots/{download.commit}",
        "hub": f"{facts.layout.hf_home}/hub",
        "revision": download.commit,
        "cores": str(facts.cpu.logical_cores),
        "git": tools.get("git", ""),
        "cmake": tools.get("cmake", ""),
        "uv": tools.get("uv", ""),
        "mlx_lm_version": MLX_LM_VERSION,
        "vllm": "vllm" if version == "nightly" else f"vllm=={VLLM_VERSION}",
        "commit": "" if version == "main" else f"@{version}",
    }


def check_golden(plan: HostPlan, name: str) -> None:
    """The plan as `--dry-run` shows it is exactly the golden file."""
    document: dict[str, Any] = {
        "host": plan.host,
        "action": plan.action.value,
        "fit": plan.fit.value,
        "fit_lines": [line.model_dump() for line in plan.fit_lines],
        "warnings": list(plan.warnings),
        "commands": [
            {
                "purpose": command.purpose,
                "argv": list(command.argv),
                "environment": {variable.name: variable.value for variable in command.environment},
                "description": command.description,
            }
            for command in plan.commands
        ],
    }
    path = DATA / f"golden_{name}.json"
    text = json.dumps(document, indent=1, ensure_ascii=False) + "\n"
    if os.environ.get("FLEET_UPDATE_GOLDEN"):
        path.write_text(text, encoding="utf-8")
    assert path.read_text(encoding="utf-8") == text
