"""deploy/lock.py: pins from a lock, and their place in pyproject.toml."""

import importlib.util
import re
from types import ModuleType

import pytest
import tomllib

from fleet_controller.transport.deploy_files import deploy_file


@pytest.fixture(scope="module")
def lock() -> ModuleType:
    spec = importlib.util.spec_from_file_location("deploy_lock", deploy_file("lock.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("present", ["constraint-dependencies = []", 'constraint-dependencies = [\n    "old==1",\n]'])
def test_pins_replace_what_was_there_and_nothing_else(lock: ModuleType, present: str) -> None:
    project = f'[tool.uv]\npackage = false\n# pins\n{present}\n\n[tool.uv.workspace]\nmembers = ["agent"]\n'
    pins = ["a==1", "b==2 ; (python_full_version < '3.12')"]
    changed = lock.with_constraints(project, pins)
    parsed = tomllib.loads(changed)["tool"]["uv"]
    assert parsed == {"package": False, "constraint-dependencies": pins, "workspace": {"members": ["agent"]}}
    assert lock.with_constraints(changed, pins) == changed
    assert "# pins" in changed


def test_a_project_without_the_key_is_refused(lock: ModuleType) -> None:
    with pytest.raises(SystemExit, match="constraint-dependencies"):
        lock.with_constraints("[tool.uv]\n", ["a==1"])


def test_pins_are_exact_and_leave_out_our_own(lock: ModuleType) -> None:
    packages = [
        {"name": "numpy", "version": "2", "resolution-markers": ["python_full_version >= '3.12'"]},
        {"name": "llmfleet-agent", "version": "0.1.0"},
        {"name": "anyio", "version": "4.16.0"},
    ]
    assert lock.pins(packages) == ["anyio==4.16.0", "numpy==2 ; (python_full_version >= '3.12')"]


def test_the_agents_oldest_python_is_left_free(lock: ModuleType) -> None:
    assert lock.for_newer_python("a==1") == "a==1 ; python_full_version >= '3.11'"
    assert lock.for_newer_python("a==1 ; (x)") == "a==1 ; python_full_version >= '3.11' and ((x))"


def test_every_direct_dependency_of_the_agent_is_pinned(lock: ModuleType) -> None:
    text = lock.AGENT_REQUIREMENTS.read_text(encoding="utf-8")
    for requirement in lock.agent_dependencies():
        name = re.split(r"[^A-Za-z0-9_.-]", requirement)[0]
        assert f"\n{name.replace('_', '-')}==" in text
