"""How a server is given the key that it asks of its clients: by a file, or by its own environment; never in its argv.

At each start the key is taken from this host's secrets; neither the journal nor a status ever holds it.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from fleet_agent.problem import ProblemError
from fleet_agent.secrets import SecretStore
from fleet_agent.services.model import ApiKey, InvalidServiceError, ServiceSpec

_OPTION = re.compile(r"--[a-z][a-z0-9-]*\Z")
_VARIABLE = re.compile(r"[A-Z][A-Z0-9_]*_API_KEY\Z")
_SETTING = re.compile(r"[a-z][a-z0-9_-]*\Z")


@dataclass(frozen=True)
class HandedKey:
    """What a start gets beside its own: arguments that name a file, or variables for this process alone."""

    arguments: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)


def check_api_key(spec: ServiceSpec) -> None:
    """Raises InvalidServiceError where the spec's key is not taken in exactly one sound way."""
    key = spec.api_key
    if key is None:
        return
    if sum((bool(key.file_option), bool(key.environment), key.configuration is not None)) != 1:
        raise InvalidServiceError(f"service {spec.name}: its API key must be taken in exactly one way")
    setting = key.configuration.key if key.configuration else ""
    option = key.configuration.option if key.configuration else key.file_option
    sound = _VARIABLE.match(key.environment) if key.environment else _OPTION.match(option)
    if not sound or (setting and not _SETTING.match(setting)) or (key.configuration and not setting):
        raise InvalidServiceError(f"service {spec.name}: no server takes its API key so")


def hand_over(spec: ServiceSpec, store: SecretStore) -> HandedKey:
    """The key in the way in which the server takes it. Raises ProblemError where it is not on this host."""
    key = spec.api_key
    if key is None:
        return HandedKey()
    value = _read(spec.name, key, store)
    if key.environment:
        return HandedKey(environment={key.environment: value})
    if key.configuration is not None:
        path = store.write_configuration(spec.name, key.configuration.key, value)
        return HandedKey((key.configuration.option, str(path)))
    return HandedKey((key.file_option, str(store.path(key.secret))))


def _read(service: str, key: ApiKey, store: SecretStore) -> str:
    try:
        return store.read(key.secret)
    except ProblemError as error:
        if error.code != "no-secret":
            raise
        remedy = "repeat its deploy: it puts the key there again"
        raise ProblemError("no-secret", f"the API key of {service} is not on this host any more", remedy) from None


def forget_key(spec: ServiceSpec, present: Iterable[ServiceSpec], store: SecretStore) -> None:
    """Removes what `spec` left on the host, except what a present service goes on using."""
    used = tuple(present)
    if spec.api_key is not None and spec.api_key.secret not in [one.api_key.secret for one in used if one.api_key]:
        store.remove(spec.api_key.secret)
    configured = [one.name for one in used if one.api_key is not None and one.api_key.configuration is not None]
    if spec.name not in configured:
        store.remove_configuration(spec.name)
