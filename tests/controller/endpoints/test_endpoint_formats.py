"""What other programs are given: golden texts, and what a shell and a YAML reader make of them."""

import subprocess

import pytest
import yaml

from fleet_controller.domain.services import ServiceState
from fleet_controller.endpoints.addresses import KeyReference, ServedModel, Via
from fleet_controller.endpoints.formats import as_environment, as_json, as_litellm
from fleet_controller.endpoints.reach import Endpoint


def endpoint(model: str, host: str, port: int, key: KeyReference | None = None, name: str = "") -> Endpoint:
    served = ServedModel(
        model=model, host=host, served_model_name=name or model, backend="llama.cpp", backend_version="b11434",
        quantization="Q4_K_M", context_length=32768, state=ServiceState.READY, key=key,
    )  # fmt: skip
    return Endpoint(served=served, base_url=f"http://127.0.0.1:{port}/v1", via=Via.FORWARD, needs_key=key is not None)


BY_VARIABLE = KeyReference(environment="GLM_KEY")
BY_FILE = KeyReference(file="/home/a b/it's.key")

# Shape: docs.litellm.ai/docs/proxy/configs and /docs/providers/openai_compatible, as of October 2026.
LITELLM = """\
# before the proxy starts: export FLEET_QWEN3_5_9B_API_KEY="$(cat '/home/a b/it'"'"'s.key')"
model_list:
- model_name: glm-4.7-flash
  litellm_params:
    model: openai/glm-4.7-flash
    api_base: http://127.0.0.1:8100/v1
    api_key: os.environ/GLM_KEY
  model_info:
    id: glm-4.7-flash@gpu1
- model_name: glm-4.7-flash
  litellm_params:
    model: openai/glm-4.7-flash
    api_base: http://127.0.0.1:8101/v1
    api_key: none
  model_info:
    id: glm-4.7-flash@gpu2
- model_name: qwen3.5-9b
  litellm_params:
    model: openai/Qwen/Qwen3.5-9B
    api_base: http://127.0.0.1:8102/v1
    api_key: os.environ/FLEET_QWEN3_5_9B_API_KEY
  model_info:
    id: qwen3.5-9b@mac1
"""


def test_litellm_gets_one_entry_for_each_deployment() -> None:
    endpoints = [
        endpoint("glm-4.7-flash", "gpu1", 8100, BY_VARIABLE),
        endpoint("glm-4.7-flash", "gpu2", 8101),
        endpoint("qwen3.5-9b", "mac1", 8102, BY_FILE, "Qwen/Qwen3.5-9B"),
    ]
    text = as_litellm(endpoints)
    assert text == LITELLM
    entries = yaml.safe_load(text)["model_list"]
    assert [entry["litellm_params"]["api_base"] for entry in entries] == [one.base_url for one in endpoints]
    # A word of YAML's own would be read as something else than text.
    assert all(isinstance(entry["litellm_params"]["api_key"], str) for entry in entries)


@pytest.mark.parametrize("name", ["yes", "1.5", "null", "a: b", "# c", "'", "模型", "a\nb: c"])
def test_any_name_comes_back_from_the_yaml_as_it_was(name: str) -> None:
    [entry] = yaml.safe_load(as_litellm([endpoint(name, "gpu1", 8100)]))["model_list"]
    assert entry["model_name"] == name
    assert entry["litellm_params"]["model"] == f"openai/{name}"


@pytest.mark.parametrize(
    ("key", "line"),
    [
        (None, "export OPENAI_API_KEY=none"),
        (BY_VARIABLE, 'export OPENAI_API_KEY="$GLM_KEY"'),
        (BY_FILE, """export OPENAI_API_KEY="$(cat '/home/a b/it'"'"'s.key')\""""),
        (KeyReference(), 'export OPENAI_API_KEY="$FLEET_GLM_4_7_FLASH_API_KEY"'),
    ],
)
def test_the_environment_of_one_model(key: KeyReference | None, line: str) -> None:
    assert as_environment(endpoint("glm-4.7-flash", "gpu1", 8100, key)) == (
        f"export OPENAI_BASE_URL=http://127.0.0.1:8100/v1\n{line}\n# the model's name for requests: glm-4.7-flash\n"
    )


def test_a_shell_takes_the_environment_and_runs_nothing_else(tmp_path: object) -> None:
    lines = as_environment(endpoint("m", "gpu1", 8100, name="a\ntouch /tmp/x; $(id)"))
    script = f'{lines}echo "$OPENAI_BASE_URL $OPENAI_API_KEY"'
    done = subprocess.run(["sh", "-ec", script], capture_output=True, text=True, check=True)
    assert done.stdout == "http://127.0.0.1:8100/v1 none\n"
    assert len(lines.splitlines()) == 3


def test_a_shell_finds_the_key_where_the_reference_says(tmp_path: object) -> None:
    script = f'{as_environment(endpoint("m", "gpu1", 8100, BY_VARIABLE))}echo "$OPENAI_API_KEY"'
    done = subprocess.run(
        ["sh", "-ec", script],
        capture_output=True,
        text=True,
        check=True,
        env={"GLM_KEY": "a b", "PATH": "/usr/bin:/bin"},
    )
    assert done.stdout == "a b\n"


def test_the_json_tells_unknown_as_null() -> None:
    told = as_json(endpoint("glm-4.7-flash", "gpu1", 8100, BY_VARIABLE))
    assert told == {
        "model": "glm-4.7-flash", "host": "gpu1", "base_url": "http://127.0.0.1:8100/v1", "via": "forward",
        "served_model_name": "glm-4.7-flash", "backend": "llama.cpp", "backend_version": "b11434",
        "quantization": "Q4_K_M", "context_length": 32768, "state": "ready", "needs_key": True,
        "key_reference": "env:GLM_KEY", "reason": None,
    }  # fmt: skip
    bare = Endpoint(served=ServedModel(model="m", host="h", served_model_name="m", backend="vllm"), reason="no answer")
    told = as_json(bare)
    assert (told["base_url"], told["via"], told["quantization"], told["key_reference"]) == (None, None, None, None)
