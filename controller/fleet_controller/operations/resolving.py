"""From what a user typed to exact artifacts, once per model hub: reads the catalog and asks the hub, in a thread."""

import os
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

from fleet_controller.domain.addresses import is_loopback
from fleet_controller.domain.plan import DeployRequest
from fleet_controller.domain.resolved import ResolvedModel
from fleet_controller.operations.problems import OperationError
from fleet_controller.operations.secrets import resolve
from fleet_controller.operations.threads import in_daemon_thread
from fleet_controller.planning.problem import PlanProblem
from fleet_inventory.base import CatalogError
from fleet_inventory.catalog import Catalog, load_catalog
from fleet_inventory.paths import models_folder

Resolver = Callable[[DeployRequest, Catalog, str, str | None], ResolvedModel]


def catalog() -> Catalog:
    """The shipped models and the user's own. Raises OperationError (usage)."""
    try:
        return load_catalog([models_folder()])
    except CatalogError as error:
        raise OperationError("catalog", str(error), usage=True) from None


def named(request: DeployRequest) -> DeployRequest:
    """The request with the quantization of "name:quant" in its own field. Raises OperationError (usage)."""
    from fleet_controller.hub.resolve import named_quantization

    try:
        return named_quantization(request, catalog())
    except CatalogError as error:
        raise OperationError("no-such-model", str(error), "fleet models lists them", usage=True) from None


async def resolve_for(request: DeployRequest, endpoint: str, reference: str = "") -> ResolvedModel:
    """The artifacts that a request may mean, from one hub; `reference` names the token. Raises OperationError."""
    from fleet_controller.hub.resolve import resolve_model

    return await _resolved_by(resolve_model, request, endpoint, reference)


async def resolve_everything_for(request: DeployRequest, endpoint: str, reference: str = "") -> ResolvedModel:
    """As `resolve_for`, with every format and quantization, for comparing them. Raises OperationError."""
    from fleet_controller.hub.everything import resolve_everything

    return await _resolved_by(resolve_everything, request, endpoint, reference)


async def _resolved_by(resolver: Resolver, request: DeployRequest, endpoint: str, reference: str) -> ResolvedModel:
    from fleet_controller.hub.errors import HubError

    try:
        return await in_daemon_thread(resolver, request, catalog(), endpoint, hub_token(request, endpoint, reference))
    except CatalogError as error:
        raise OperationError("no-such-model", str(error), "fleet models lists them", usage=True) from None
    except PlanProblem as error:
        raise OperationError(error.problem.code, error.problem.message, error.problem.remedy, error.usage) from None
    except HubError as error:
        usage = error.code in ("repository-unknown", "no-files", "bad-gguf")
        subject = request.model if request.model.startswith("/") else ""
        message = error.message if subject in error.message else f"{subject}: {error.message}"
        raise OperationError(error.code, message, error.remedy, usage) from None


def hub_token(request: DeployRequest, endpoint: str, reference: str) -> str | None:
    """The token that hosts.yaml names for this hub, else the user's own, from where huggingface_hub keeps it.

    A mirror gets only one that was named for it, and none in the clear over a network. Raises OperationError.
    """
    if not request.repository and request.model.startswith(("/", "./")):
        return None
    if reference:
        token = resolve(reference, "hub_token in hosts.yaml").reveal()
        return token if not endpoint or _may_carry_token(endpoint) else None
    if endpoint:
        return None
    if os.environ.get("HF_TOKEN"):
        return os.environ["HF_TOKEN"].strip()
    home = os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface"
    path = Path(os.environ.get("HF_TOKEN_PATH") or Path(home) / "token")
    try:
        return path.read_text(encoding="utf-8").strip() or None
    except OSError:
        return None


def _may_carry_token(endpoint: str) -> bool:
    parts = urlsplit(endpoint)
    return parts.scheme == "https" or is_loopback(parts.hostname or "")
