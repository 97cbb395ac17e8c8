"""Secrets of the user: read where a reference points to at the moment they are needed, handed on, and kept nowhere.

A Secret shows itself in no text: not in a repr, an f-string, an exception or a model. Only `reveal` tells it.
"""

import hashlib
import hmac
import json
import os
import stat
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from fleet_controller.domain.services import ServiceSpec
from fleet_controller.domain.steps import JobSpec
from fleet_controller.operations.contact import ask
from fleet_controller.operations.context import FleetContext
from fleet_controller.operations.problems import OperationError
from fleet_controller.planning.secrets import HUB_TOKEN_SECRET, api_key_secret
from fleet_controller.private_file import write_private_once
from fleet_controller.settings import Settings, private_folder
from fleet_controller.transport.client import AgentClient
from fleet_inventory.hosts import Host
from fleet_inventory.secret_reference import SecretReference, parse_reference

LONGEST_BYTES = 16 * 1024
SHORTEST_KEY_CHARACTERS = 8
_SALT_BYTES = 32


class Secret:
    """A text that shows itself nowhere. `where` is its reference."""

    __slots__ = ("_value", "where")

    def __init__(self, value: str, where: str) -> None:
        self._value = value
        self.where = where

    def reveal(self) -> str:
        return self._value

    def __repr__(self) -> str:
        return f"<secret of {self.where}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a secret is not stored")


def resolve(text: str, what: str, environment: Mapping[str, str] | None = None) -> Secret:
    """The secret that a reference points to. `what` begins the message: "hub_token of gpu1", "--api-key".

    Raises OperationError, whose texts hold the reference and never the secret.
    """
    try:
        reference = parse_reference(text)
    except ValueError as error:
        raise OperationError("secret-reference", f"{what} {error}", "", usage=True) from None
    value = _from_variable(reference, what, environment) if reference.variable else _from_file(reference, what)
    if not value or "\n" in value or "\0" in value or len(value.encode()) > LONGEST_BYTES:
        raise OperationError(
            "secret-unusable", f"{what}: {reference} is empty, too long, or more than one line", "put one line there"
        )
    return Secret(value, str(reference))


def _from_variable(reference: SecretReference, what: str, environment: Mapping[str, str] | None) -> str:
    value = (os.environ if environment is None else environment).get(reference.variable)
    if value is None:
        settings = Settings.from_environment()
        if _is_resident(settings):
            message = f"{what}: the resident controller was started without {reference.variable} in its environment"
            remedy = f"`fleet controller stop`, export {reference.variable}, and repeat; or name a file: file:/path"
        else:
            message = f"{what}: {reference.variable} is not in the environment"
            remedy = f"export {reference.variable}=..., and repeat; or name a file of mode 0600: file:/path"
        raise OperationError("secret-missing", message, remedy)
    return value.strip()


def _is_resident(settings: Settings) -> bool:
    try:
        return bool(json.loads(settings.identity_file.read_text(encoding="utf-8")).get("pid") == os.getpid())
    except (OSError, ValueError, AttributeError):
        return False


def _from_file(reference: SecretReference, what: str) -> str:
    """Judged by the open file, so that nothing is swapped between the look and the read."""
    path = Path(reference.path).expanduser()
    try:
        with path.open("rb") as file:
            found = os.fstat(file.fileno())
            if not stat.S_ISREG(found.st_mode):
                raise OperationError("secret-missing", f"{what}: {path} is no file", "name a file with one line")
            if found.st_uid != os.getuid():
                message = f"{what}: {path} belongs to another user (id {found.st_uid})"
                raise OperationError("secret-unsafe", message, "copy it into a file of your own, of mode 0600")
            if found.st_mode & 0o077:
                mode = stat.S_IMODE(found.st_mode)
                message = f"{what}: {path} can be read by others (mode {mode:04o})"
                raise OperationError("secret-unsafe", message, f"chmod 600 {path}")
            return file.read(LONGEST_BYTES + 2).decode("utf-8").strip()
    except OSError as error:
        message = f"{what}: {path} cannot be read: {error.strerror}"
        raise OperationError("secret-missing", message, "write the secret there as one line, then chmod 600") from None
    except UnicodeDecodeError:
        raise OperationError("secret-unusable", f"{what}: {path} is not text", "put one line there") from None


def resolve_api_key(text: str) -> Secret:
    """As `resolve`, for a key that travels in an HTTP header and in one line of a server's file."""
    key = resolve(text, "--api-key")
    value = key.reveal()
    if len(value) < SHORTEST_KEY_CHARACTERS:
        message = f"the API key of {key.where} has fewer than {SHORTEST_KEY_CHARACTERS} characters"
        raise OperationError("secret-unusable", message, "make one: openssl rand -hex 24")
    if not all("!" <= character <= "~" for character in value) or value[0] in "#-" or "," in value:
        message = f"the API key of {key.where} has a character that not every server takes"
        raise OperationError("secret-unusable", message, "letters, digits and '-', '_' or '.'; not '#' or '-' first")
    return key


def identify(secret: Secret, state_dir: Path) -> str:
    """16 hex digits that are the same for the same secret on this controller, and tell nobody anything about it.

    HMAC-SHA256 under random bytes that never leave this machine: a plain hash would let a weak key be guessed.
    """
    digest = hmac.new(_salt(state_dir), secret.reveal().encode(), hashlib.sha256)
    return digest.hexdigest()[:16]


def _salt(state_dir: Path) -> bytes:
    path = private_folder(state_dir) / "secret-salt"
    with suppress(FileNotFoundError):
        found = path.read_bytes()
        if len(found) == _SALT_BYTES:
            return found
        path.unlink()  # cut short by a full disk
    return write_private_once(path, os.urandom(_SALT_BYTES))


async def deliver_api_key(context: FleetContext, host: Host, spec: ServiceSpec, reference: str) -> None:
    """Puts the key of a service on its host. Raises OperationError where it is not the key of the plan any more.

    Without a reference the service keeps the key that it has, which is on the host.
    """
    if spec.api_key is None or not reference:
        return
    key = resolve_api_key(reference)
    if api_key_secret(identify(key, context.settings.state_dir)) != spec.api_key.secret:
        message = f"the API key of {key.where} changed since the plan was shown"
        raise OperationError("plan-changed", message, "repeat the command to see the new plan")
    secret = spec.api_key.secret
    await ask(context, host, lambda agent: agent.put_secret(secret, key.reveal().encode()))


async def deliver_hub_token(agent: AgentClient, host: Host, job: JobSpec) -> None:
    """Puts the host's hub token there, right before a job that reads it."""
    files = [step.hub_download.token_file for step in job.steps if step.hub_download is not None]
    if host.hub_token and any(file.endswith(f"/secrets/{HUB_TOKEN_SECRET}") for file in files):
        token = resolve(host.hub_token, f"hub_token of {host.name}")
        await agent.put_secret(HUB_TOKEN_SECRET, token.reveal().encode())
