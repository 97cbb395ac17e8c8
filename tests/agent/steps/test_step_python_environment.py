"""A real uv environment from a folder of wheels, without any index."""

import asyncio
import base64
import hashlib
import json
import subprocess
import zipfile
from pathlib import Path

import pytest

from fleet_agent.jobs.errors import SpecProblem
from fleet_agent.jobs.model import JobState, PythonEnvironmentStep, Step
from fleet_agent.steps import python_environment
from fleet_agent.steps.python_environment import install_argv
from support.agent_jobs import Agent, problem_of, result_of, state_of

pytestmark = pytest.mark.filterwarnings("error")


def make_wheel(folder: Path, name: str, version: str, code: str) -> None:
    """A pure Python wheel with one module and one entry point."""
    info = f"{name}-{version}.dist-info"
    files = {
        f"{name}.py": code,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/entry_points.txt": f"[console_scripts]\n{name}-say = {name}:main\n",
    }
    record = ""
    for path, text in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
        record += f"{path},sha256={digest},{len(text.encode())}\n"
    folder.mkdir(exist_ok=True)
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as wheel:
        for path, text in {**files, f"{info}/RECORD": record + f"{info}/RECORD,,\n"}.items():
            wheel.writestr(path, text)


def environment_step(wheels: Path, *requirements: str, **more: object) -> Step:
    given: dict[str, object] = {"find_links": (str(wheels),), "no_index": True, **more}
    step = PythonEnvironmentStep("tiny-1-abc", "tiny", "1", "", requirements, **given)  # type: ignore[arg-type]
    return Step("environment", python_environment=step)


def run(*words: object) -> str:
    return subprocess.run(list(map(str, words)), capture_output=True, text=True, check=True, timeout=60).stdout


async def test_environment_works_under_its_final_name(agent: Agent, tmp_path: Path) -> None:
    make_wheel(tmp_path / "wheels", "tiny_engine", "1.5", "def main():\n    print('hello')\n")
    events = await agent.run(environment_step(tmp_path / "wheels", "tiny_engine==1.5"))
    assert state_of(events) is JobState.SUCCEEDED
    install = agent.layout.engines_dir / "tiny-1-abc"
    assert result_of(events)["path"] == str(install)
    say = "import tiny_engine; tiny_engine.main()"
    assert await asyncio.to_thread(run, install / "venv/bin/python3", "-c", say) == "hello\n"
    assert await asyncio.to_thread(run, install / "venv/bin/tiny_engine-say") == "hello\n"
    record = json.loads((install / "install.json").read_text())
    assert (record["backend"], record["version"], record["binaries"]) == ("tiny", "1", ["venv/bin/python3"])
    assert not (agent.layout.engines_dir / "tiny-1-abc.tmp").exists()
    again = await agent.run(environment_step(tmp_path / "wheels", "tiny_engine==1.5"), job_id="again")
    assert result_of(again)["changed"] is False


async def test_what_is_missing_fails_clearly_and_leaves_nothing(agent: Agent, tmp_path: Path) -> None:
    (tmp_path / "wheels").mkdir()
    events = await agent.run(environment_step(tmp_path / "wheels", "not-there==9"))
    code, message, remedy = problem_of(events)
    assert (code, message) == (
        "not-on-index",
        "uv pip install failed: the package index (or the offline folder) has no such package: not-there",
    )
    assert "index or folder" in remedy
    tail = next(event.problem.tail for event in events if event.problem is not None)
    assert any("not-there was not found" in line for line in tail)
    log = Path(tail[-1].partition(" is in ")[2].removesuffix(" on the host)"))
    assert "not-there" in log.read_text(encoding="utf-8")
    assert [path.name for path in agent.layout.engines_dir.iterdir() if path.name.startswith("tiny")] == []


async def test_overrides_reach_uv(agent: Agent, tmp_path: Path) -> None:
    make_wheel(tmp_path / "wheels", "tiny_engine", "1.5", "def main(): ...\n")
    make_wheel(tmp_path / "wheels", "tiny_engine", "1.4", "def main(): ...\n")
    step = environment_step(tmp_path / "wheels", "tiny_engine==1.5", overrides=("tiny_engine==1.4",))
    assert state_of(await agent.run(step)) is JobState.SUCCEEDED
    version = "import importlib.metadata as m; print(m.version('tiny_engine'))"
    python = agent.layout.engines_dir / "tiny-1-abc/venv/bin/python3"
    assert await asyncio.to_thread(run, python, "-c", version) == "1.4\n"


def test_the_exact_command() -> None:
    step = PythonEnvironmentStep(
        "k", "vllm", "1", "3.12", ("vllm", "x==1"), torch_backend="auto", extra_index_urls=("https://wheels.example",),
        prerelease=True,
    )  # fmt: skip
    assert install_argv("uv", step, "/e/k.tmp/venv", "/o") == [
        "uv", "pip", "install", "--python", "/e/k.tmp/venv/bin/python3", "--torch-backend=auto",
        "--extra-index-url", "https://wheels.example", "--prerelease", "allow", "vllm", "x==1",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "step",
    [
        PythonEnvironmentStep("k"),
        PythonEnvironmentStep("../k", requirements=("x",)),
        PythonEnvironmentStep("k", requirements=("-r /etc/passwd",)),
        PythonEnvironmentStep("k", requirements=("x\n--index-url http://evil",)),
        PythonEnvironmentStep("k", requirements=("x",), python="--help"),
        PythonEnvironmentStep("k", requirements=("x",), find_links=("relative",)),
        PythonEnvironmentStep("k", requirements=("x",), extra_index_urls=("http://plain",)),
    ],
)
def test_steps_that_break_a_rule(step: PythonEnvironmentStep) -> None:
    with pytest.raises(SpecProblem):
        python_environment.check(step)
