"""Clients of a server that asks for an API key: it comes from the host's secrets, and no command line shows it."""

from fleet_controller.benchmarking.benchy import KEY_VARIABLE, is_benchy, with_key
from fleet_controller.domain.steps import BenchStep, SecretVariable


def with_api_key(step: BenchStep, secret: str) -> BenchStep:
    """The same measurement of a server whose key is that secret of the host; "" = it asks for none.

    vllm's and SGLang's clients read the variable themselves; llama-benchy 0.4.0 takes the key as an argument only
    (llama_benchy/config.py).
    """
    if not secret:
        return step
    update: dict[str, object] = {"secret_environment": (SecretVariable(name=KEY_VARIABLE, secret=secret),)}
    if is_benchy(step.arguments):
        update["arguments"] = with_key(step.arguments)
    return step.model_copy(update=update)
