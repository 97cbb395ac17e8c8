"""A bench beside somebody who computes, too: noticed, void, repeated. He needs his share of a CPU to be noticed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.llama_cpp
IN_A_NAMESPACE = Path(__file__).parent / "contaminated_run.py"


@pytest.mark.parametrize("times", ["once", "always"])
def test_a_foreign_process_in_mid_run_makes_it_void_and_it_is_repeated(
    tmp_path: Path, model: Path, llama_cpp_bin: Path, times: str
) -> None:
    """In a process namespace of its own, so that nobody but the stranger is a stranger."""
    if os.geteuid() != 0 or sys.platform != "linux":
        pytest.skip("process namespaces need root on Linux")
    argv = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", sys.executable, str(IN_A_NAMESPACE)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        [*argv, str(tmp_path / "host"), str(model), str(llama_cpp_bin), times],
        env=environment, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    causes = [void["cause"] for void in result["void_runs"]]
    assert all("other processes use the CPU: " in cause and "python" in cause for cause in causes)
    if times == "once":
        assert result["outcome"] == "measured" and len(causes) == 1 and result["attempt"] == 2
        assert [row["n_gen"] for row in json.loads(result["stdout"])] == [0, 4]
        assert result["said"][0].startswith("run 1 is void: ")
    else:
        assert result["outcome"] == "contaminated" and len(causes) == 2
        assert "stdout" not in result
