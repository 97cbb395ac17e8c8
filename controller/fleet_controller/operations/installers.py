"""A maker's install script, fetched before a person is asked about it: its hash is what they agree to."""

import asyncio
import hashlib
import os
import urllib.error
import urllib.request
from collections.abc import Sequence
from typing import TypeVar
from urllib.parse import urlsplit

from fleet_controller.backends import BACKENDS
from fleet_controller.backends.base import HasInstaller
from fleet_controller.domain.addresses import is_loopback
from fleet_controller.domain.engines import EnginesRequest
from fleet_controller.domain.facts import HostFacts
from fleet_controller.domain.plan import DeployRequest
from fleet_controller.domain.steps import InstallerScript
from fleet_controller.operations.problems import OperationError

# Another address of the same script, for a lab that reaches a mirror only.
INSTALLER_VARIABLE = "FLEET_LM_STUDIO_INSTALLER"
LARGEST_SCRIPT_BYTES = 1 << 20
TIMEOUT_SECONDS = 30.0

Asked = TypeVar("Asked", DeployRequest, EnginesRequest)


async def with_installer(request: Asked, facts: Sequence[HostFacts]) -> Asked:
    """The request with the script that it agrees to, where a host lacks the program. Raises OperationError."""
    if not request.run_installer:
        return request
    backend = BACKENDS.get(request.backend)
    if not isinstance(backend, HasInstaller):
        message = "--install-lm-studio goes with the backend lm-studio"
        raise OperationError("usage", message, "the other backends are installed without a script", usage=True)
    if all(backend.is_present(one) for one in facts):
        return request
    url = os.environ.get(INSTALLER_VARIABLE) or backend.installer_url
    script = await asyncio.to_thread(fetch_script, url)
    return request.model_copy(update={"installer": script})


def fetch_script(url: str) -> InstallerScript:
    """What an address holds now. Raises OperationError "no-installer"."""
    remedy = f"see whether this machine reaches it, or name another address of it in {INSTALLER_VARIABLE}"
    try:
        _demand_safe(url)
        with urllib.request.urlopen(url, timeout=TIMEOUT_SECONDS) as response:
            _demand_safe(response.geturl())
            body = response.read(LARGEST_SCRIPT_BYTES + 1)
    except (OSError, ValueError) as error:  # URLError is an OSError
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        raise OperationError("no-installer", f"{url} cannot be fetched: {reason}", remedy) from None
    if not body.startswith(b"#!") or len(body) > LARGEST_SCRIPT_BYTES:
        raise OperationError("no-installer", f"{url} holds no script", remedy)
    return InstallerScript(url=url, sha256=hashlib.sha256(body).hexdigest())


def _demand_safe(url: str) -> None:
    parts = urlsplit(url)
    if parts.scheme != "https" and not (parts.scheme == "http" and is_loopback(parts.hostname or "")):
        raise ValueError(f"{url} is no https URL")
