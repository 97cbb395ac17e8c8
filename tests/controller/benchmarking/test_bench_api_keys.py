"""The client of a keyed server gets the key by its environment; its command line holds the name of a variable."""

import os
import subprocess
import sys
from pathlib import Path

from fleet_controller.benchmarking.keys import with_api_key
from fleet_controller.domain.steps import BenchStep, SecretVariable, ToolRef

SECRET = SecretVariable(name="OPENAI_API_KEY", secret="api-key-0123")


def test_a_client_that_reads_the_variable_keeps_its_command_line() -> None:
    step = BenchStep(tool=ToolRef(install_key="vllm-1", name="venv/bin/vllm"), arguments=("bench", "serve"))
    keyed = with_api_key(step, "api-key-0123")
    assert (keyed.tool, keyed.arguments, keyed.secret_environment) == (step.tool, step.arguments, (SECRET,))
    assert with_api_key(step, "") == step


def test_llama_benchy_is_told_the_key_within_its_process_only(tmp_path: Path) -> None:
    step = BenchStep(tool=ToolRef(install_key="benchy-1", name="venv/bin/llama-benchy"), arguments=("--runs", "3"))
    keyed = with_api_key(step, "api-key-0123")
    assert keyed.tool.name == "venv/bin/python3" and keyed.secret_environment == (SECRET,)
    package = tmp_path / "llama_benchy"
    package.mkdir()
    (package / "__init__.py").touch()
    said = "import sys\ndef main():\n    print(sys.argv[1:], open('/proc/self/cmdline').read().count('sk-the-key'))\n"
    (package / "__main__.py").write_text(said)
    environment = os.environ | {"OPENAI_API_KEY": "sk-the-key", "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, *keyed.arguments], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout == "['--runs', '3', '--api-key', 'sk-the-key'] 0\n"
