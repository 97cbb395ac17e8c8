"""Clients of a server that asks for an API key: it comes from the host's secrets, and no command line shows it."""

from fleet_controller.domain.steps import BenchStep, SecretVariable

VARIABLE = "OPENAI_API_KEY"
# vllm's and SGLang's clients read the variable themselves. llama-benchy 0.4.0 takes the key as an argument only
# (llama_benchy/config.py): it is added to what Python sees of the arguments, after the process has started.
_BENCHY = "venv/bin/llama-benchy"
_BENCHY_WITH_KEY = (
    f"import os, sys; sys.argv += ['--api-key', os.environ['{VARIABLE}']]; "
    "from llama_benchy.__main__ import main; main()"
)


def with_api_key(step: BenchStep, secret: str) -> BenchStep:
    """The same measurement of a server whose key is that secret of the host; "" = it asks for none."""
    if not secret:
        return step
    update: dict[str, object] = {"secret_environment": (SecretVariable(name=VARIABLE, secret=secret),)}
    if step.tool.name == _BENCHY:
        before = ("-c", _BENCHY_WITH_KEY)
        update["tool"] = step.tool.model_copy(update={"name": "venv/bin/python3"})
        update["arguments"] = (*before, *step.arguments)
        update["warmup_arguments"] = (*before, *step.warmup_arguments) if step.warmup_arguments else ()
    return step.model_copy(update=update)
