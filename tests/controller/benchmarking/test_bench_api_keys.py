"""The client of a keyed server gets the key by its environment; its command line holds the name of a variable."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fleet_controller.backends.base import Installation
from fleet_controller.benchmarking.clients import CLIENTS, Subject
from fleet_controller.benchmarking.keys import with_api_key
from fleet_controller.benchmarking.suites import Part
from fleet_controller.domain.steps import BenchStep, SecretVariable, ToolRef

SECRET = SecretVariable(name="OPENAI_API_KEY", secret="api-key-0123")
INSTALL = Installation(backend="llama-benchy", version="0.4.0", install_key="benchy-1")
# What the programs that are imported would do, said instead.
STAND_INS = {
    "aiohttp.py": "class TCPConnector:\n    def __init__(self, **more):\n        self.more = more\n",
    "transformers.py": (
        "class AutoTokenizer:\n    eos_token_id = 7\n    from_pretrained = classmethod(lambda cls, folder: cls())\n"
    ),
    "llama_benchy/__init__.py": "",
    "llama_benchy/client.py": (
        "class LLMClient:\n    def _build_generation_payload(self, messages, tokens, no_cache):\n"
        "        return {'max_tokens': tokens}\n"
    ),
    "llama_benchy/__main__.py": (
        "import json, sys\nimport aiohttp\nfrom .client import LLMClient\n"
        "def main():\n"
        "    connector = aiohttp.TCPConnector(limit=6, force_close=False, keepalive_timeout=600)\n"
        "    print(json.dumps({'arguments': sys.argv[1:], 'connector': connector.more,\n"
        "        'payload': LLMClient()._build_generation_payload([], 16, True),\n"
        "        'shown': open('/proc/self/cmdline').read().count('sk-the-key')}))\n"
    ),
}


def said(tmp_path: Path, step: BenchStep) -> dict[str, object]:
    """What llama-benchy is given by a step."""
    for name, content in STAND_INS.items():
        path = tmp_path / "packages" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    environment = os.environ | {"OPENAI_API_KEY": "sk-the-key", "PYTHONPATH": str(tmp_path / "packages")}
    done = subprocess.run(
        [sys.executable, *step.arguments], env=environment, capture_output=True, text=True, check=True
    )
    return dict(json.loads(done.stdout))


def benchy(backend: str, tokenizer: str = "") -> BenchStep:
    subject = Subject(
        backend, Installation(backend=backend, version="", install_key=""), "", "it", "http://x", tokenizer
    )
    return CLIENTS["llama-benchy"].step(subject, Part(client="llama-benchy", generation_tokens=16), INSTALL)


def test_a_client_that_reads_the_variable_keeps_its_command_line() -> None:
    step = BenchStep(tool=ToolRef(install_key="vllm-1", name="venv/bin/vllm"), arguments=("bench", "serve"))
    keyed = with_api_key(step, "api-key-0123")
    assert (keyed.tool, keyed.arguments, keyed.secret_environment) == (step.tool, step.arguments, (SECRET,))
    assert with_api_key(step, "") == step


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_llama_benchy_is_told_the_key_within_its_process_only(tmp_path: Path) -> None:
    step = benchy("llama.cpp")
    keyed = with_api_key(step, "api-key-0123")
    assert keyed.tool == step.tool and keyed.secret_environment == (SECRET,)
    found = said(tmp_path, keyed)
    assert found["arguments"] == [*step.arguments[2:], "--api-key", "sk-the-key"] and found["shown"] == 0


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_without_a_secret_of_the_host_the_variable_is_left_alone(tmp_path: Path) -> None:
    """A key for another service may lie in the environment: a server of somebody else does not get it."""
    step = benchy("llama.cpp")
    assert said(tmp_path, step)["arguments"] == list(step.arguments[2:])


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_each_request_has_a_connection_of_its_own(tmp_path: Path) -> None:
    """llama-server closes it after a streamed reply, and llama-benchy would lose the next request."""
    assert said(tmp_path, benchy("llama.cpp"))["connector"] == {"limit": 6, "force_close": True}


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_mlx_lm_which_knows_no_ignore_eos_gets_a_bias_on_every_token_that_ends_a_reply(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"eos_token_id": 3}')
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [3, 5]}')
    payload = said(tmp_path, benchy("mlx-lm", str(tmp_path)))["payload"]
    assert payload == {"max_tokens": 16, "logit_bias": {"3": -1000.0, "5": -1000.0, "7": -1000.0}}
    assert said(tmp_path, benchy("llama.cpp", str(tmp_path)))["payload"] == {"max_tokens": 16}


@pytest.mark.parametrize("backend", ["llama.cpp", "mlx-lm", "vllm", "sglang", "lm-studio", "unknown"])
def test_every_backend_is_asked_for_all_tokens(backend: str) -> None:
    assert "--exact-tg" in benchy(backend, "/model").arguments
