"""Which secrets a plan needs on a host, by name: a plan never holds one, so that it may be shown and kept."""

from fleet_controller.backends import Backend
from fleet_controller.backends.base import TakesApiKey
from fleet_controller.domain.addresses import is_loopback
from fleet_controller.domain.facts import HostFacts
from fleet_controller.domain.plan import DeployRequest
from fleet_controller.domain.services import ApiKey
from fleet_controller.domain.steps import Step
from fleet_controller.planning.problem import PlanProblem
from fleet_inventory.hosts import Host

HUB_TOKEN_SECRET = "hub-token"
API_KEY_PREFIX = "api-key-"


def secret_path(facts: HostFacts, name: str) -> str:
    """Where the agent keeps a secret (agent/fleet_agent/secrets.py)."""
    return f"{facts.layout.state_dir}/secrets/{name}"


def api_key_secret(key_id: str) -> str:
    """The name that a key has on every host; another key has another name, so that a server restarts for it."""
    return f"{API_KEY_PREFIX}{key_id}"


def api_key_of(backend: Backend, request: DeployRequest) -> ApiKey | None:
    """How the server is given the key that was asked for. Raises PlanProblem (refused).

    A server that others can reach asks for a key, always; one on loopback is reached by this host's users only.
    """
    address = request.bind_address
    is_open = bool(address) and not is_loopback(address)
    takes_key = isinstance(backend, TakesApiKey)
    if is_open and not takes_key:
        message = f"{backend.name} takes no API key, so it may not listen on {address}: whoever reaches it could use it"
        remedy = "leave --bind out and use `fleet forward`, or choose a backend that takes one: llama.cpp, vllm, sglang"
        raise PlanProblem("no-api-key", message, remedy, refused=True)
    if request.api_key and not takes_key:
        message = f"{backend.name} takes no API key"
        raise PlanProblem("no-api-key", message, "leave --api-key out: it listens on loopback only", refused=True)
    if is_open and not request.api_key:
        message = f"a server that listens on {address} needs an API key: whoever reaches it could use it"
        remedy = "add --api-key env:NAME or file:/path (`openssl rand -hex 24` makes one), or leave --bind out"
        raise PlanProblem("no-api-key", message, remedy, refused=True)
    if not request.api_key or not isinstance(backend, TakesApiKey):
        return None
    return backend.api_key(api_key_secret(request.api_key_id))


def with_hub_token(host: Host, facts: HostFacts, steps: tuple[Step, ...]) -> tuple[Step, ...]:
    """Downloads read the token of this host from the file that it is put into, right before the job is sent."""
    if not host.hub_token:
        return steps
    path = secret_path(facts, HUB_TOKEN_SECRET)
    return tuple(
        step.model_copy(update={"hub_download": step.hub_download.model_copy(update={"token_file": path})})
        if step.hub_download is not None
        else step
        for step in steps
    )
