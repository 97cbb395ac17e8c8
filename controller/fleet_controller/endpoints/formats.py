"""Endpoints as other programs take them. No key is ever written: only where it is to be found."""

import re
import shlex
from collections.abc import Sequence
from typing import Any

from fleet_controller.endpoints.addresses import KeyReference
from fleet_controller.endpoints.reach import Endpoint

# Clients of the OpenAI API insist on a key, and LiteLLM would take the user's own OPENAI_API_KEY for one that is not
# given: a server that asks for none gets this word.
NO_KEY = "none"


def key_variable(endpoint: Endpoint) -> str:
    """The environment variable that holds a server's key: as the deploy named it, else one made of the model's name."""
    key = endpoint.served.key or KeyReference()
    return key.environment or re.sub(r"[^A-Z0-9]+", "_", f"FLEET_{endpoint.served.model}_API_KEY".upper())


def as_json(endpoint: Endpoint) -> dict[str, Any]:
    """One element of the JSON document; docs/endpoints.md tells its fields."""
    served = endpoint.served
    return {
        "model": served.model,
        "host": served.host,
        "base_url": endpoint.base_url or None,
        "via": endpoint.via.value if endpoint.via else None,
        "served_model_name": served.served_model_name,
        "backend": served.backend,
        "backend_version": served.backend_version,
        "quantization": served.quantization or None,
        "context_length": served.context_length or None,
        "state": served.state.removeprefix("SERVICE_STATE_").lower().replace("_", "-"),
        "needs_key": endpoint.needs_key or served.key is not None,
        "key_reference": str(served.key) or None if served.key is not None else None,
        "reason": endpoint.reason or None,
    }


def as_litellm(endpoints: Sequence[Endpoint]) -> str:
    """A config.yaml of the LiteLLM proxy. Several deployments of one model share its name: the router balances them."""
    import yaml

    document = {"model_list": [_deployment(endpoint) for endpoint in endpoints]}
    return "".join(_key_comments(endpoints)) + yaml.safe_dump(document, sort_keys=False, allow_unicode=True)


def _deployment(endpoint: Endpoint) -> dict[str, Any]:
    served = endpoint.served
    return {
        "model_name": served.model,
        "litellm_params": {
            "model": f"openai/{served.served_model_name}",
            "api_base": endpoint.base_url,
            "api_key": f"os.environ/{key_variable(endpoint)}" if endpoint.needs_key else NO_KEY,
        },
        "model_info": {"id": f"{served.model}@{served.host}"},
    }


def _key_comments(endpoints: Sequence[Endpoint]) -> list[str]:
    """How to set the variables whose values lie elsewhere than in the environment."""
    lines = {}
    for endpoint in endpoints:
        key, name = endpoint.served.key or KeyReference(), key_variable(endpoint)
        if endpoint.needs_key and not key.environment:
            value = f'"$(cat {shlex.quote(key.file)})"' if key.file else "...  (the key of this server)"
            lines[name] = f"# before the proxy starts: export {name}={value}\n"
    return list(lines.values())


def as_environment(endpoint: Endpoint) -> str:
    """Lines for a shell: eval "$(fleet endpoints MODEL --format openai-env)"."""
    key = endpoint.served.key or KeyReference()
    if not endpoint.needs_key:
        value = NO_KEY
    elif key.file:
        value = f'"$(cat {shlex.quote(key.file)})"'
    else:
        value = f'"${key_variable(endpoint)}"'
    lines = [
        f"export OPENAI_BASE_URL={shlex.quote(endpoint.base_url)}",
        f"export OPENAI_API_KEY={value}",
        f"# the model's name for requests: {' '.join(endpoint.served.served_model_name.split())}",  # stays a comment
    ]
    return "\n".join(lines) + "\n"
